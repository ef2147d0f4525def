"""Train the translator: from one actor's pieces to another's, with the other's durations.

Two kinds of pairs, mixed by `parallel`:

    parallel   two recordings of one script, by different speakers or in different emotions
    self       a clip and a speaker-perturbed view of it, at another tempo: no parallel data is needed to learn
               to repeat what was said, only to learn how others say it
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vivavoce.core.checkpoint import write_json
from vivavoce.core.errors import ConfigError, CorpusError
from vivavoce.eval.metrics import edit_distance
from vivavoce.lm.translator import NONE, Pieces, Translator, TranslatorConfig
from vivavoce.recipes.data import weights
from vivavoce.recipes.pairs import partners, script_of
from vivavoce.recipes.tokenise import Tokens, TokenSplit
from vivavoce.recipes.trainer import TrainConfig, fit
from vivavoce.units.bpe import UnitBPE

PARTS = ("source", "target", "prompt")


@dataclass
class TranslateRecipe:
    """`vivavoce train translate` reads this."""

    tokens: str
    bpe: str
    train: TrainConfig
    model: TranslatorConfig = field(default_factory=TranslatorConfig)  # pieces and emotions come from the data
    batch_size: int = 16
    most_frames: int = 400  # of a clip; longer ones are cropped (self pairs) or left out (parallel ones)
    prompt_frames: int = 200
    parallel: float = 0.5  # share of parallel pairs, where there are any
    hold_out_scripts: float = 0.1  # of all scripts, chosen by their hash: never trained on
    tempo: float = 0.2  # spread (nepers) of a self pair's tempo
    corruption: float = 0.1  # share of source pieces, and of remembered target pieces, that are random
    emotion_dropout: float = 0.5
    valid_pairs: int = 96
    valid_decodes: int = 32  # of those, decoded and compared with what the target speaker said


class Pairs:
    """Pairs of one split, as pieces. `parallel` holds (source, target) by index, `held` those of held-out scripts."""

    def __init__(self, split: TokenSplit, bpe: UnitBPE, config: TranslateRecipe, emotions: list[str]) -> None:
        self.split, self.bpe, self.config, self.emotions = split, bpe, config, emotions
        self.speakers: dict[str, list[int]] = {}
        for i, clip in enumerate(split.clips):
            self.speakers.setdefault(str(clip.get("speaker")), []).append(i)
        self.parallel: list[tuple[int, int]] = []
        self.held: list[tuple[int, int]] = []
        short = [c["frames"] <= config.most_frames for c in split.clips]
        for target, sources in enumerate(partners(split.clips)):
            pairs = [(s, target) for s in sources if short[s] and short[target]]
            (self.held if held_out(split.clips[target], config.hold_out_scripts) else self.parallel).extend(pairs)
        free = [not held_out(c, config.hold_out_scripts) for c in split.clips]
        self.cumulative = np.cumsum(weights(split.frames, {}, split.labels) * free)
        self.encoded = lru_cache(maxsize=100_000)(self._encoded)

    def _encoded(self, clip: int, view: int) -> tuple[np.ndarray, np.ndarray]:
        at = slice(*self.split.offsets[clip : clip + 2])
        content = self.split.content if view == 0 else self.split.views[view - 1][0]
        return self._cut(content[at])

    def _cut(self, content: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Content units [T] -> pieces [P] and their frames [P]."""
        pieces, durations = self.bpe.encode(content)
        return pieces, self.bpe.totals(pieces, durations)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """One training pair."""
        c = self.config
        views = len(self.split.views)
        if self.parallel and rng.random() < c.parallel:
            source, target = self.parallel[int(rng.integers(len(self.parallel)))]
            return self.pair(source, target, rng, view=int(rng.integers(0, views + 1)))
        clip = min(int(np.searchsorted(self.cumulative, rng.random() * self.cumulative[-1])), len(self.cumulative) - 1)
        at = self.split.offsets[clip]
        n = min(self.split.clips[clip]["frames"], c.most_frames)
        first = int(at + rng.integers(0, self.split.clips[clip]["frames"] - n + 1))
        view = int(rng.integers(1, views + 1)) if views else 0
        content = self.split.content if view == 0 else self.split.views[view - 1][0]
        (said, lasts), own = (self._cut(column[first : first + n]) for column in (content, self.split.content))
        pace = np.exp(rng.normal(0, c.tempo) + rng.normal(0, c.tempo / 2, len(said)))
        return self._row((said, np.maximum(1, np.round(lasts * pace).astype(np.int64))), own, clip, rng)

    def pair(self, source: int, target: int, rng: np.random.Generator, view: int = 0) -> dict[str, Any]:
        """A parallel pair by index."""
        return self._row(self.encoded(source, view), self.encoded(target, 0), target, rng)

    def _row(self, source: Any, target: Any, clip: int, rng: np.random.Generator) -> dict[str, Any]:
        emotion = self.split.clips[clip].get("emotion")
        known = 1 + self.emotions.index(emotion) if emotion in self.emotions else 0
        return {"source": source, "target": target, "prompt": self._prompt(clip, rng), "emotion": known}

    def _prompt(self, clip: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Other clips of the target's speaker, `prompt_frames` in all at most (or one clip); none if there are none."""
        pieces, frames, total = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
        for j in rng.permutation(self.speakers[str(self.split.clips[clip].get("speaker"))])[:8]:
            if j == clip:
                continue
            p, f = self.encoded(int(j), 0)
            keep = np.cumsum(f) <= self.config.prompt_frames - total
            pieces.append(p[keep])
            frames.append(f[keep])
            total += int(f[keep].sum())
        return np.concatenate(pieces), np.concatenate(frames)


def held_out(clip: dict[str, Any], share: float) -> bool:
    """Whether a clip's script is among those that are never trained on."""
    key = script_of(clip)
    return key is not None and hashlib.sha256("/".join(key).encode()).digest()[0] < 256 * share


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows -> padded tensors {part}_pieces, {part}_frames [B, N] and emotion [B]."""
    out = {"emotion": torch.tensor([r["emotion"] for r in rows])}
    for part in PARTS:
        n = max(1, *(len(r[part][0]) for r in rows))
        for at, (name, pad) in enumerate((("pieces", NONE), ("frames", 0))):
            padded = [np.pad(r[part][at], (0, n - len(r[part][at])), constant_values=pad) for r in rows]
            out[f"{part}_{name}"] = torch.from_numpy(np.stack(padded).astype(np.int64))
    return out


def part(batch: dict[str, Tensor], name: str) -> Pieces:
    return Pieces(batch[f"{name}_pieces"], batch[f"{name}_frames"])


class TranslateTask:
    """See recipes.trainer.Task."""

    def __init__(self, config: TranslateRecipe) -> None:
        tokens, self.bpe = Tokens(config.tokens), UnitBPE.load(config.bpe)
        if tokens.head["content_units"] != self.bpe.units:
            raise ConfigError(f"{config.bpe}: of {self.bpe.units} units, but {config.tokens} holds "
                              f"{tokens.head['content_units']}; train unit BPE on these tokens")
        train = tokens.split("train")
        emotions = sorted({e for c in train.clips if (e := c.get("emotion")) not in (None, "", "unknown")})
        model = dataclasses.replace(config.model, pieces=self.bpe.pieces, emotions=emotions)
        self.config, self.units = config, tokens.head["units_sha256"]
        self.train = Pairs(train, self.bpe, config, emotions)
        if not self.train.cumulative[-1]:
            raise CorpusError(f"{config.tokens}: every script is held out; lower hold_out_scripts=")
        held = "valid" if tokens.head["shards"].get("valid") else "train"
        self.valid = Pairs(tokens.split(held), self.bpe, config, emotions) if held != "train" else self.train
        torch.manual_seed(config.train.seed)
        self.model: nn.Module = Translator(model)

    def batch(self, rng: np.random.Generator) -> dict[str, Tensor]:
        c, rows = self.config, [self.train.draw(rng) for _ in range(self.config.batch_size)]
        out = collate(rows)
        for name, key in (("source_pieces", "source_pieces"), ("past", "target_pieces")):
            x = out[key]
            hit = torch.from_numpy(rng.random(x.shape) < c.corruption * rng.random((len(x), 1)) * 2) & (x >= 0)
            out[name] = torch.where(hit, torch.from_numpy(rng.integers(0, self.bpe.pieces, x.shape)), x)
        out["emotion"] *= torch.from_numpy(rng.random(len(rows)) >= c.emotion_dropout)
        return out

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        target = part(batch, "target")
        pieces, frames = model(part(batch, "source"), target, part(batch, "prompt"), batch["emotion"],
                               batch.get("past"))  # fmt: skip
        n = (target.pieces >= 0).sum()
        numbers = {"pieces": pieces.sum() / (n + len(target.pieces)), "frames": frames.sum() / n.clamp_min(1)}
        return numbers["pieces"] + 0.5 * numbers["frames"], numbers

    def validate(self) -> dict[str, float]:
        """On speakers held out: the loss of parallel pairs whose scripts were trained on (`seen`) and of others
        (`unseen`), and how far decoded values lie from the target speaker's own recording.

        Of what is decoded: edit distance of values over those of the recording, for the translation (`uer`) and
        for the source as it is (`uer_copy`); and the mean |log| of length over the recording's, likewise.
        """
        out: dict[str, float] = {}
        rng = np.random.Generator(np.random.Philox(key=4321))
        for name, pairs in (("seen", self.valid.parallel), ("unseen", self.valid.held)):
            if not pairs:
                continue
            some = [pairs[int(i)] for i in rng.permutation(len(pairs))[: self.config.valid_pairs]]
            rows = [self.valid.pair(s, t, rng) for s, t in some]
            losses = [self._loss(rows[i : i + 8]) for i in range(0, len(rows), 8)]
            out |= {f"{k}_{name}": float(np.mean([x[k] for x in losses])) for k in losses[0]}
            decoded = np.mean([self._decode(r) for r in rows[: self.config.valid_decodes]], axis=0)
            out |= dict(zip((f"{k}_{name}" for k in ("uer", "uer_copy", "length", "length_copy")), decoded.tolist()))
        return out or self._loss([self.valid.draw(rng) for _ in range(self.config.valid_pairs)])

    def _tensors(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        return {k: v.to(device) for k, v in collate(rows).items()}

    def _loss(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        return {k: float(v) for k, v in self.loss(self.model, self._tensors(rows))[1].items()}

    def _decode(self, row: dict[str, Any]) -> tuple[float, float, float, float]:
        b = self._tensors([row])
        assert isinstance(self.model, Translator)
        found = self.model.translate(part(b, "source"), part(b, "prompt"))
        out = (found.pieces[0].cpu().numpy(), found.frames[0].cpu().numpy())
        wanted = self._values(row["target"][0])
        wrong = [edit_distance(self._values(x[0]), wanted) / max(len(wanted), 1) for x in (out, row["source"])]
        length = [abs(float(np.log(x[1].sum() / row["target"][1].sum()))) for x in (out, row["source"])]
        return (wrong[0], wrong[1], length[0], length[1])

    def _values(self, pieces: np.ndarray) -> list[str]:
        return [str(v) for p in pieces for v in self.bpe.spelled[int(p)]]

    def export(self, folder: Path) -> None:
        assert isinstance(self.model, Translator)
        self.model.save_pretrained(folder)
        self.bpe.save(folder / "bpe")
        write_json(folder / "units.json", {"units_sha256": self.units})


def run(config: TranslateRecipe) -> dict[str, float]:
    """Train, validate, export: a folder for `vivavoce convert --mode translate --translator`."""
    return fit(TranslateTask(config), config.train)
