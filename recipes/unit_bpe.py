"""Fit unit BPE to a folder of tokens, and say what it gains."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vivavoce.core.errors import CorpusError
from vivavoce.recipes import label
from vivavoce.recipes.corpus import NO_LABEL, Pack
from vivavoce.recipes.tokenise import Tokens, TokenSplit
from vivavoce.units.bpe import UnitBPE
from vivavoce.units.coarse import Coarse, digits, typical


@dataclass
class UnitBPERecipe:
    """`vivavoce train unit_bpe` reads this."""

    tokens: str
    out: str
    pieces: int = 2000
    kind: str = "bpe"  # or unigram
    longest_piece: int = 8  # values
    coarse: int = 500  # classes that stand for units which pack several levels; plain units need none
    pack: str | None = None  # the pack behind the tokens: its teacher labels make the classes phonetic
    most_frames: int = 2_000_000  # read for the fit
    threads: int = 1
    seed: int = 0


def run(config: UnitBPERecipe) -> dict[str, float]:
    """Train and write the model.

    Returns:
        on held-out clips: values (after deduplication) and pieces a second, values a piece, the share of the
        vocabulary that was used; and with a pack, the information of classes and units on its labels.

    Raises:
        CorpusError, ConfigError: no such tokens, impossible sizes.
    """
    tokens = Tokens(config.tokens)
    units, levels = int(tokens.head["content_units"]), list(tokens.head.get("content_levels") or ())
    train = tokens.split("train")
    some = draw(train, config.most_frames, config.seed)
    teacher = Teacher(config.pack) if config.pack else None
    coarse = fit_coarse(config, levels, train, some, teacher) if levels else None
    clips = [content(train, i) for i in some]
    bpe = UnitBPE.train(clips, units, config.pieces, config.kind, config.longest_piece, coarse, config.threads)
    bpe.save(config.out)
    held = tokens.split("valid") if tokens.head["shards"].get("valid") else train
    some = draw(held, 200_000, config.seed)
    result = {"pieces": float(bpe.pieces), **compression(bpe, [content(held, i) for i in some])}
    if teacher is not None:
        x = np.concatenate([content(held, i) for i in some])
        labels = np.concatenate([teacher(held, i) for i in some])
        known = labels != label.UNKNOWN
        x = x if coarse is None else coarse.classes(x)
        result["teacher_information"] = label.phone_information(x[known], labels[known])
    return result


class Teacher:
    """Teacher labels of a pack, by clip."""

    def __init__(self, pack: str) -> None:
        self.pack = Pack(pack)
        self.where = {c["id"]: c for c in self.pack.clips}

    def __call__(self, split: TokenSplit, clip: int) -> np.ndarray:
        """Label of each frame [T], UNKNOWN where there is none. Raises CorpusError: a clip of another pack."""
        name = split.clips[clip]["id"]
        if name not in self.where:
            raise CorpusError(f"{self.pack.folder}: not the pack behind the tokens (clip {name!r} is not in it)")
        c = self.where[name]
        labels = self.pack.teacher[c["offset"] : c["offset"] + c["frames"]].astype(np.int64)
        return np.where(labels == NO_LABEL, label.UNKNOWN, labels)


def fit_coarse(config: UnitBPERecipe, levels: list[int], split: TokenSplit, clips: list[int],
               teacher: Teacher | None) -> Coarse:  # fmt: skip
    """Classes of packed units, fitted to the frames of some clips."""
    units = np.concatenate([content(split, i) for i in clips]).astype(np.int64)
    x = digits(units, levels)
    labels = np.full(len(x), label.UNKNOWN) if teacher is None else np.concatenate([teacher(split, i) for i in clips])
    how = label.LabelConfig(config.tokens, "", "", units=config.coarse, dims=len(levels), seed=config.seed)
    some = np.random.default_rng(config.seed).permutation(len(x))[: how.fit_frames]
    projection, kmeans = label.fit(how, x[some].astype(np.float32), labels[some])
    bias = projection.transform(np.zeros((1, len(levels)), np.float32)).astype(np.float64)
    weight = projection.transform(np.eye(len(levels), dtype=np.float32)).astype(np.float64) - bias
    whole = Coarse(tuple(levels), weight, bias[0], kmeans.cluster_centers_.astype(np.float64), np.zeros(0, np.int64))
    classes = whole.classes(units)
    used, classes = np.unique(classes, return_inverse=True)  # a class that nothing falls into is none
    return replace(whole, centroids=whole.centroids[used], typical=typical(units, classes, len(used)))


def draw(split: TokenSplit, most_frames: int, seed: int) -> list[int]:
    """A random choice of clips, of `most_frames` frames at most in all (or one clip)."""
    chosen: list[int] = []
    total = 0
    for i in np.random.default_rng(seed).permutation(len(split.clips)):
        n = split.clips[i]["frames"]
        if chosen and total + n > most_frames:
            break
        chosen.append(int(i))
        total += n
    return chosen


def content(split: TokenSplit, clip: int) -> np.ndarray:
    """Content units of a clip [T]."""
    return split.content[slice(*split.offsets[clip : clip + 2])]


def compression(bpe: UnitBPE, clips: list[np.ndarray], frame_rate: float = 50.0) -> dict[str, float]:
    """How much shorter clips get; see `run`."""
    encoded = [bpe.encode(c) for c in clips]
    frames, values = sum(map(len, clips)), sum(len(d) for _, d in encoded)
    pieces = np.concatenate([p for p, _ in encoded])
    rate = frame_rate / frames
    return {"values_a_second": values * rate, "pieces_a_second": len(pieces) * rate,
            "values_a_piece": values / len(pieces), "vocabulary_used": len(np.unique(pieces)) / bpe.pieces}  # fmt: skip
