"""LibriSpeech (Panayotov et al. 2015) and LibriTTS (Zen et al. 2019): read books by some 2,500 volunteers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vivavoce.recipes.corpora.common import Clip, Corpus, Problems, gender, lines_of, recordings

SPEECH, TTS = re.compile(r"(\d+)-(\d+)-(\d{4})"), re.compile(r"(\d+)_(\d+)_(\d{6})_(\d{6})")
SUBSET = re.compile(r"(train|dev|test)-(clean|other)(-\d+)?")
SPLITS = {"train": "train", "dev": "valid", "test": "test"}


def read(root: Path, problems: Problems) -> Iterator[Clip]:
    """Both: they differ in names, in where the text stands, and in nothing else."""
    people: dict[str, str | None] = {}
    for path in (p for n in ("SPEAKERS.TXT", "SPEAKERS.txt") for p in sorted({*root.glob(n), *root.glob(f"*/{n}")})):
        rows = (line.split("|") for line in lines_of(path) if line and line[0] != ";")
        people |= {r[0].strip(): gender(r[1]) for r in rows if len(r) >= 3}
    texts: dict[Path, dict[str, str]] = {}
    for path in recordings(root, ".flac", ".wav"):
        subset = next((p.name for p in path.parents if SUBSET.fullmatch(p.name)), None)
        m = SPEECH.fullmatch(path.stem) or TTS.fullmatch(path.stem)
        if not m or subset is None:
            problems.add("not in a subset folder such as train-clean-100, or of another name", path)
            continue
        chapter = path.parent
        if chapter not in texts:  # LibriSpeech: a file a chapter, LibriTTS: a file an utterance
            listed = (x.split(" ", 1) for p in chapter.glob("*.trans.txt") for x in lines_of(p) if " " in x)
            texts[chapter] = dict(listed)
            for name in texts[chapter]:
                if not (chapter / f"{name}.flac").is_file() and not (chapter / f"{name}.wav").is_file():
                    problems.add("missing", chapter / f"{name}.flac")
        text = texts[chapter].get(path.stem) or " ".join(lines_of(chapter / f"{path.stem}.normalized.txt")).strip()
        yield Clip(path.stem, path, m[1], text=text or None, gender=people.get(m[1]),
                   split=SPLITS[subset.split("-")[0]], extra={"subset": subset})  # fmt: skip


LIBRISPEECH = Corpus(
    "LibriSpeech", 982.0, 2484, "CC-BY-4.0", "many voices, plain reading: units; 16 kHz", "openslr.org/12",
    "LibriSpeech/train-clean-100/103/1240/103-1240-0000.flac ..., 103-1240.trans.txt, SPEAKERS.TXT", read,
    splits="speakers",
)  # fmt: skip
LIBRITTS = Corpus(
    "LibriTTS", 585.0, 2456, "CC-BY-4.0", "many voices at 24 kHz: codec and language model", "openslr.org/60",
    "LibriTTS/train-clean-100/103/1241/103_1241_000000_000001.wav ..., .normalized.txt, SPEAKERS.txt", read,
    splits="speakers",
)  # fmt: skip
