"""VCTK (Yamagishi et al. 2019): 110 speakers of English in many accents, some 400 read sentences each, 48 kHz."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vivavoce.recipes.corpora.common import (
    Clip,
    Corpus,
    Problems,
    find_folder,
    gender,
    lines_of,
    recordings,
    text_script,
)

NAME = re.compile(r"(p\d{3}|s5)_(\d{3})(?:_(mic[12]))?")


def read(root: Path, problems: Problems) -> Iterator[Clip]:
    folder = find_folder(root, "wav48_silence_trimmed") or find_folder(root, "wav48")
    if folder is None:
        return
    home = folder.parent
    people = {}
    for row in map(str.split, lines_of(home / "speaker-info.txt")):
        if len(row) >= 4 and row[1].isdecimal():
            people["p" + row[0].removeprefix("p") if row[0] != "s5" else "s5"] = row
    for path in recordings(folder, ".flac", ".wav"):
        m = NAME.fullmatch(path.stem)
        if not m:
            problems.add("of another name than p225_001_mic1.flac", path)
            continue
        if m[3] == "mic2":  # the same breath through another microphone
            continue
        text = " ".join(lines_of(home / "txt" / m[1] / f"{m[1]}_{m[2]}.txt")).strip() or None
        who = people.get(m[1])
        known: dict[str, Any] = {}
        if who:
            known = {"gender": gender(who[2]), "age": int(who[1]), "extra": {"accent": who[3]}}
        yield Clip(f"{m[1]}_{m[2]}", path, m[1], text=text, script=text_script(text), **known)


CORPUS = Corpus(
    "VCTK", 44.0, 110, "CC-BY-4.0", "many clean voices and accents: units, codec, targets",
    "Edinburgh DataShare, CSTR VCTK Corpus 0.92, doi:10.7488/ds/2645",
    "wav48_silence_trimmed/p225/p225_001_mic1.flac ..., txt/, speaker-info.txt (or wav48/ of release 0.80)", read,
)  # fmt: skip
