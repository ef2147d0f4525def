"""TESS (Dupuis & Pichora-Fuller 2010): two actresses, 26 and 64 years old, "Say the word ..." in 7 emotions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vivavoce.recipes.corpora.common import Clip, Corpus, Problems, recordings

NAME = re.compile(r"(OAF?|YAF)_([a-z]+)_(angry|disgust|fear|happy|neutral|ps|sad)", re.IGNORECASE)
AGES = {"OAF": 64, "YAF": 26}


def read(root: Path, problems: Problems) -> Iterator[Clip]:
    for path in recordings(root, ".wav"):
        m = NAME.fullmatch(path.stem)
        if not m:
            problems.add("of another name than OAF_back_angry.wav", path)
            continue
        who = "YAF" if m[1].upper() == "YAF" else "OAF"  # one file of the publisher's is called OA_bite_neutral
        word, mood = m[2].lower(), m[3].lower()
        yield Clip(f"{who}_{word}_{mood}", path, who, "pleasant_surprise" if mood == "ps" else mood,
                   text=f"Say the word {word}.", script=f"tess-{word}", gender="f", age=AGES[who])  # fmt: skip


CORPUS = Corpus(
    "TESS", 1.6, 2, "CC-BY-NC-ND-4.0", "parallel acted emotion, clean; two voices only",
    "Toronto emotional speech set, Scholars Portal Dataverse, doi:10.5683/SP2/E8H2MF",
    "OAF_back_angry.wav, YAF_back_ps.wav ... at any depth", read,
)  # fmt: skip
