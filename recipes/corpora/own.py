"""Your own recordings, named as the recording guide in docs/corpora.md says: SPEAKER/WHAT_EMOTION_TAKE.wav.

WHAT is the number of a sentence (its text in scripts.csv: script,text) or the name of a vocal event (`laugh`,
`sob`). speakers.csv (speaker,gender,age,language,licence,consent) says the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vivavoce.recipes.corpora.common import VOCALISATIONS, Clip, Corpus, Problems, gender, recordings, table

NAME = re.compile(r"([A-Za-z0-9]+)_([A-Za-z-]+)_(\d+)")


def read(root: Path, problems: Problems) -> Iterator[Clip]:
    scripts = {r.get("script"): r for r in table(root / "scripts.csv")}
    people = {r.get("speaker"): r for r in table(root / "speakers.csv")}
    for path in recordings(root):
        m, speaker = NAME.fullmatch(path.stem), path.parent.name
        if not m or path.parent == root:
            problems.add("of another name than SPEAKER/042_happy_1.wav", path)
            continue
        what, who = m[1].lower(), people.get(speaker, {})
        event = what in VOCALISATIONS
        sentence = scripts.get(m[1])
        if sentence is None and not event:
            problems.add("without a line in scripts.csv, and no vocal event", path)
            continue
        age = who.get("age") or ""
        extra = {k: who[k] for k in ("licence", "consent") if who.get(k)} | {"take": int(m[3])}
        yield Clip(f"{speaker}-{path.stem}", path, speaker, m[2].lower(), what if event else "none",
                   language="none" if event else who.get("language") or None,
                   text=None if sentence is None else sentence.get("text"), script=None if event else f"own-{m[1]}",
                   gender=gender(who.get("gender")), age=int(age) if age.isdecimal() else None,
                   extra=extra)  # fmt: skip


CORPUS = Corpus(
    "your own recordings", None, None, "unknown", "whatever you need", "the recording guide in docs/corpora.md",
    "SPEAKER/042_happy_1.wav, SPEAKER/laugh_happy_1.wav ..., scripts.csv (script,text), "
    "speakers.csv (speaker,gender,age,language,licence,consent)", read,
)  # fmt: skip
