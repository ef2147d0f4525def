"""EmoGator (Buhl 2023): wordless bursts of 357 people on their own equipment, 30 prompted emotions, 3 of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vivavoce.recipes.corpora.common import Clip, Corpus, Problems, recordings

NAME = re.compile(r"(\d{6})-(\d\d)-([123])")
CATEGORIES = (
    "adoration", "amusement", "anger", "awe", "confusion", "contempt", "contentment", "desire", "disappointment",
    "disgust", "distress", "ecstasy", "elation", "embarrassment", "fear", "guilt", "interest", "neutral", "pain",
    "pride", "realization", "relief", "romantic_love", "sadness", "serenity", "shame", "surprise_negative",
    "surprise_positive", "sympathy", "triumph",
)  # fmt: skip


def read(root: Path, problems: Problems) -> Iterator[Clip]:
    for path in recordings(root, ".mp3"):
        m = NAME.fullmatch(path.stem)
        if not m or not 1 <= int(m[2]) <= len(CATEGORIES):
            problems.add("of another name than 000001-02-1.mp3", path)
            continue
        # the prompt says what was felt, not what was heard: a tagger may refine `burst` later
        yield Clip(path.stem, path, m[1], CATEGORIES[int(m[2]) - 1], "burst", language="none",
                   extra={"take": int(m[3])})  # fmt: skip


CORPUS = Corpus(
    "EmoGator", 17.0, 357, "Apache-2.0", "vocal bursts in 30 emotions, open licence: codec, units, language model",
    "github.com/fredbuhl/EmoGator", "data/mp3/000001-02-1.mp3 ...", read,
)  # fmt: skip
