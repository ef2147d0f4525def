"""ESD (Zhou et al. 2021): 10 English and 10 Mandarin speakers, 350 parallel sentences in 5 emotions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vivavoce.recipes.corpora.common import Clip, Corpus, Problems, recordings

NAME = re.compile(r"(00[01]\d|0020)_(\d{6})")
BLOCKS = ("neutral", "angry", "happy", "sad", "surprise")  # sentences 1-350, 351-700 ... of each speaker
SPLITS = {"train": "train", "evaluation": "valid", "test": "test"}


def read(root: Path, problems: Problems) -> Iterator[Clip]:
    texts: dict[Path, dict[str, str]] = {}
    for path in recordings(root, ".wav"):
        m = NAME.fullmatch(path.stem)
        number = int(m[2]) - 1 if m else -1
        if not m or not 0 <= number < 1750:
            problems.add("of another name than 0011_000351.wav", path)
            continue
        home = next((p for p in path.parents if p.name == m[1]), path.parent)
        if home not in texts:
            texts[home] = transcripts(home / f"{m[1]}.txt")
        english = int(m[1]) > 10
        language = "en" if english else "zh"
        yield Clip(path.stem, path, m[1], BLOCKS[number // 350], language=language, text=texts[home].get(path.stem),
                   script=f"esd-{language}-{number % 350 + 1:03d}", split=SPLITS.get(path.parent.name))  # fmt: skip


def transcripts(path: Path) -> dict[str, str]:
    """`0011_000001<tab>text<tab>Neutral`, a line a clip, in whatever encoding the speaker's file has."""
    raw = path.read_bytes() if path.is_file() else b""
    encodings = ("utf-16",) if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "gb18030")
    for encoding in encodings:
        try:
            text = raw.decode(encoding)
            break
        except UnicodeDecodeError:
            text = raw.decode("utf-8", "replace")
    rows = (line.split("\t") for line in text.splitlines())
    return {r[0].strip(): r[1].strip() for r in rows if len(r) >= 2}


CORPUS = Corpus(
    "ESD", 29.0, 20, "ESD-research-NC", "parallel emotion, English and Mandarin, many sentences",
    "github.com/HLTSingapore/Emotional-Speech-Data (on request, for research)",
    "0011/Angry/[train|evaluation|test/]0011_000351.wav ... and 0011/0011.txt", read, splits="clips",
)  # fmt: skip
