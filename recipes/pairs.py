"""Parallel recordings, aligned: clips of one script by several actors become views of one another.

A clip's codes, prosody and prompt stay its own; its source units become those of another recording of the
same script, brought to its time by dynamic time warping. The language model's recipe reads the result as it
reads any tokens (a view is a view), and so learns across speakers from real pairs.

    vivavoce train pairs tokens=runs/tokens pack=runs/pack out=runs/pairs
    vivavoce train lm tokens=runs/pairs ...

Which clips say the same: `script` of the manifest where it is given, else the same `text` in one language.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vivavoce.core.align import distances, dtw, warp
from vivavoce.core.errors import ConfigError, CorpusError
from vivavoce.core.frames import Framing, LogMel
from vivavoce.lm import VoiceLM
from vivavoce.recipes.corpus import HOP, RATE, Pack
from vivavoce.recipes.derive import Columns, derive
from vivavoce.recipes.tokenise import Tokens, TokenSplit


@dataclass
class PairsConfig:
    """`vivavoce train pairs` reads this."""

    tokens: str
    out: str
    pack: str | None = None  # the pack behind the tokens: align its log-mel cepstra
    lm: str | None = None  # without a pack: a language model of these units, whose embedding is aligned
    views: int = 2  # partners a clip, drawn anew for each
    unpaired: bool = True  # keep clips without a partner, with their perturbed views
    penalty: float = 0.0  # of a step that is not diagonal; see core.align
    worst: float = 0.9  # a pair whose path costs more a cell is refused: only the hopeless; see docs/translation.md
    splits: list[str] = field(default_factory=lambda: ["train", "valid"])
    seed: int = 0


def script_of(clip: dict[str, Any]) -> tuple[str, str] | None:
    """What a clip says: its `script`, or its language and text without case and punctuation."""
    if clip.get("script") not in (None, ""):
        return "script", str(clip["script"])
    text = unicodedata.normalize("NFKC", str(clip.get("text") or "")).casefold()
    words = "".join(c if c.isalnum() else " " for c in text).split()
    return (str(clip.get("language")), " ".join(words)) if words else None


def partners(clips: Sequence[dict[str, Any]]) -> list[list[int]]:
    """For each clip, the others of its script by another speaker or in another emotion."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, clip in enumerate(clips):
        if (key := script_of(clip)) is not None:
            groups.setdefault(key, []).append(i)
    who = [(c.get("speaker"), c.get("emotion")) for c in clips]
    out: list[list[int]] = [[] for _ in clips]
    for group in groups.values():
        for i in group:
            out[i] = [j for j in group if who[j] != who[i]]
    return out


class Cepstra:
    """A clip as what is aligned: 20 cepstra of log-mel and their slopes, of zero mean and unit variance a clip,
    so that voices and microphones weigh less: [T, 40]."""

    def __init__(self, pack: Pack, clips: Sequence[dict[str, Any]]) -> None:
        where = {c["id"]: c["offset"] for c in pack.clips}
        missing = [c["id"] for c in clips if c["id"] not in where]
        if missing:
            raise CorpusError(f"{pack.folder}: not the pack behind the tokens (clip {missing[0]!r} is not in it)")
        self.pack, self.clips, self.where = pack, clips, where
        self.framing, self.mel = Framing(2 * HOP, HOP), LogMel(RATE, 2 * HOP, 40)
        k, m = np.arange(1, 21)[:, None], np.arange(40)[None]
        self.basis = np.cos(np.pi * k * (2 * m + 1) / 80).T  # DCT-II without its constant: level is left out

    def __call__(self, clip: int) -> np.ndarray:
        c = self.clips[clip]
        wave = torch.from_numpy(self.pack.waveform(self.where[c["id"]], c["frames"]))[None]
        x = self.mel(self.framing(wave)[0])[0][0].numpy() @ self.basis
        x = np.concatenate((x, np.gradient(x, axis=0) if len(x) > 1 else np.zeros_like(x)), axis=1)
        return (x - x.mean(0)) / (x.std(0) + 1e-3)


class Embedded:
    """A clip as a language model's embedding of its content units: [T, D]."""

    def __init__(self, lm: VoiceLM, split: TokenSplit) -> None:
        self.lm, self.split = lm, split

    @torch.no_grad()
    def __call__(self, clip: int) -> np.ndarray:
        units = self.split.content[slice(*self.split.offsets[clip : clip + 2])]
        return self.lm.content(torch.from_numpy(units.astype(np.int64))).numpy()


def align(a: np.ndarray, b: np.ndarray, penalty: float = 0.0) -> tuple[np.ndarray, float]:
    """Features [N, D] and [M, D] -> for each frame of b the frame of a that it answers to [M]; cost a cell."""
    path, cost = dtw(distances(a, b), penalty)
    return warp(path), cost


class Aligned:
    """The views of each clip; see the module's head. Counts pairs and those that were refused."""

    def __init__(self, config: PairsConfig, tokens: Tokens) -> None:
        self.config, self.tokens = config, tokens
        self.rng = np.random.default_rng(config.seed)
        self.pairs, self.refused, self.costs = 0, 0, [0.0]
        self.split = ""
        self.data: TokenSplit
        if config.pack is None and config.lm is None:
            raise ConfigError("pairs need pack= (aligns sound) or lm= (aligns units by a model's embedding)")

    def _open(self, split: str) -> None:
        self.split, self.data = split, self.tokens.split(split)
        self.partners = partners(self.data.clips)
        if self.config.pack is not None:
            self.features: Any = Cepstra(Pack(self.config.pack), self.data.clips)
        else:
            lm = VoiceLM.from_pretrained(str(self.config.lm))
            if lm.config.content_units != self.tokens.head["content_units"]:
                raise ConfigError(f"{self.config.lm}: knows other units than {self.config.tokens}")
            self.features = Embedded(lm, self.data)

    def __call__(self, split: str, clip: int) -> Columns | None:
        if split != self.split:
            self._open(split)
        d, n = self.data, self.config.views
        here = slice(*d.offsets[clip : clip + 2])
        own = (d.content[here], d.expression[here])
        found: list[tuple[np.ndarray, np.ndarray]] = []
        others = self.rng.permutation(self.partners[clip])
        features = self.features(clip) if len(others) else np.zeros(0)
        for other in others[: 2 * n]:
            index, cost = align(self.features(int(other)), features, self.config.penalty)
            if cost > self.config.worst:
                self.refused += 1
                continue
            self.costs.append(cost)
            there = d.offsets[other] + index
            found.append((d.content[there], d.expression[there]))
            if len(found) == n:
                break
        self.pairs += len(found)
        if not found and not self.config.unpaired:
            return None
        spare = found or [(c[here], e[here]) for c, e in d.views] or [own]
        out = {"content": own[0], "expression": own[1]}
        for v, (content, expression) in enumerate((found + spare * n)[:n], 1):
            out |= {f"content_{v}": content, f"expression_{v}": expression}
        return out


def run(config: PairsConfig) -> dict[str, float]:
    """Write tokens whose views are aligned partners.

    Returns:
        clips, pairs aligned, pairs refused, and the mean cost of those kept.

    Raises:
        ConfigError, CorpusError: nothing to align by, or nothing to align.
    """
    tokens = Tokens(config.tokens)
    aligned = Aligned(config, tokens)
    head = {"views": config.views, "pairs": {k: getattr(config, k) for k in ("penalty", "worst", "unpaired", "seed")}}
    kept = derive(tokens, config.out, config.splits, aligned, head)
    if not aligned.pairs:
        raise CorpusError(f"{config.tokens}: no two clips share a script (fields `script`, or `text` and `language`)")
    return {"clips": float(sum(kept.values())), "pairs": float(aligned.pairs), "refused": float(aligned.refused),
            "cost": float(np.sum(aligned.costs) / aligned.pairs)}  # fmt: skip
