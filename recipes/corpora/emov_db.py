"""EmoV-DB (Adigwe et al. 2018): four English speakers, ARCTIC sentences in five styles, with laughs and yawns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vivavoce.recipes.corpora.common import Clip, Corpus, Problems, lines_of, recordings

NAME = re.compile(r"(amused|anger|disgust|neutral|sleepiness|sleepy)_\d+-\d+_(\d{4})", re.IGNORECASE)
SPEAKERS = {"bea": "f", "jenie": "f", "josh": "m", "sam": "m"}
ARCTIC = re.compile(r'\(\s*(arctic_[ab]\d{4})\s+"(.*)"\s*\)')


def read(root: Path, problems: Problems) -> Iterator[Clip]:
    listed = (m for p in root.rglob("cmuarctic.data") for m in map(ARCTIC.match, lines_of(p)) if m)
    prompts = {m[1]: m[2] for m in listed}
    for path in recordings(root, ".wav"):
        m = NAME.fullmatch(path.stem)
        who = next((w for p in path.parents if (w := p.name.lower().split("_")[0]) in SPEAKERS), None)
        if not m or who is None:
            problems.add("of another name than bea/Amused/amused_1-15_0001.wav", path)
            continue
        prompt = f"arctic_a{m[2]}"
        yield Clip(f"{who}-{path.stem}", path, who, m[1].lower(), text=prompts.get(prompt), script=prompt,
                   gender=SPEAKERS[who])  # fmt: skip


CORPUS = Corpus(
    "EmoV-DB", 7.0, 4, "EmoV-DB-NC", "parallel emotion with laughter and yawns inside the sentence",
    "openslr.org/115 or github.com/numediart/EmoV-DB (for non-commercial purposes)",
    "bea/Amused/amused_1-15_0001.wav or bea_Amused/... and, for the text, cmuarctic.data of CMU ARCTIC", read,
)  # fmt: skip
