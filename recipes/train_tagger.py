"""Train the vocal event tagger of `eval/`: weak clip labels, classes drawn evenly, spectra disguised.

The disguises serve fairness: the judge must hear the event, not the channel. Another voice (formant and
pitch warp), equaliser, band limit, noise, and the blur of a vocoder hit all classes alike; a clip is often
joined to one of another class, so that speech does not rule out a laugh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.core.errors import CorpusError
from vivavoce.eval.metrics import pooled, uar
from vivavoce.eval.tagger import CLASS_OF, LABELS, Tagger, TaggerConfig
from vivavoce.recipes.corpus import HOP, Pack, check_grid, iterate, licence_parts
from vivavoce.recipes.data import collate, random_gain
from vivavoce.recipes.perturb import perturb
from vivavoce.recipes.second_opinion import opinions
from vivavoce.recipes.trainer import TrainConfig, fit

Clip = dict[str, Any]  # a line of the pack's manifest


@dataclass
class TaggerRecipe:
    """`vivavoce train tagger` reads this."""

    pack: str
    train: TrainConfig
    model: TaggerConfig = field(default_factory=TaggerConfig)
    batch_size: int = 32
    crop_frames: int = 120  # 2.4 s
    join_probability: float = 0.3  # of two half-length crops of different classes
    noise_probability: float = 0.5  # added white noise, 10 to 45 dB below the voice
    warp: float = 0.15  # another voice: formants and pitch by up to this factor
    eq_db: float = 6.0
    blur_probability: float = 0.5  # of a vocoder's blur over frequency and time
    confidence: float = 1.0  # clips are drawn by vocalisation_conf to this power (0: evenly)
    exclude_licences: list[str] = field(default_factory=lambda: ["NC", "ND", "GFDL"])  # not trained or tuned on
    valid_clips: int = 300
    label_smoothing: float = 0.05
    teacher: str | None = None  # folder of a Whisper, for a second opinion on labels (recipes.second_opinion)
    trust: float = 0.7  # in that opinion; the rest in the label
    version: str = "3"
    licence: str = "Apache-2.0"


class TaggerTask:
    """See recipes.trainer.Task."""

    labels: Sequence[str] = LABELS
    stem = "tagger"
    about = (
        "Weak clip labels (manifest field `vocalisation`); valid and test are unseen speakers. Thresholds: precision "
        "= recall on valid. f1, precision, recall: each label by its own threshold; low, high: 95 % bootstrap "
        "interval of f1 over clips. uar: mean recall of the label furthest above its threshold (chance 0.167). "
        "second_opinion: how much of what was taught came from a Whisper's probe, and of how many clips."
    )

    def __init__(self, config: TaggerRecipe) -> None:
        self.config = config
        check_grid("model", config.model.sample_rate, config.model.hop, config.pack)
        self.pack = Pack(config.pack)
        self.clips = self.permitted("train")
        self.pools = class_pools(self.clips, self.labels, self.label, config.confidence)
        missing = [k for k in self.labels if not self.pools[k]]
        if missing:
            raise CorpusError(f"{config.pack}: no training clip whose label is {missing[0]}; the "
                              f"manifest must have clips of {', '.join(self.labels)}")  # fmt: skip
        self.targets = self.believed()
        torch.manual_seed(config.train.seed)
        self.model: nn.Module = Tagger(config.model, self.labels)

    def believed(self) -> dict[str, np.ndarray]:
        """What is taught of each training clip, by id: its label and, with `teacher`, the opinion on it, [labels]."""
        c, clips = self.config, [x for x in self.clips if self.label(x) is not None]
        named = np.array([self.labels.index(str(self.label(x))) for x in clips])
        taught = np.eye(len(self.labels), dtype=np.float32)[named]
        if c.teacher is not None:
            told = opinions(self.pack, clips, named, c.teacher, Path(c.train.out) / "teacher.safetensors")
            taught += c.trust * (told - taught)
        return {str(x["id"]): t for x, t in zip(clips, taught)}

    @staticmethod
    def label(clip: Clip) -> str | None:
        return CLASS_OF.get(clip.get("vocalisation", "none"))

    def permitted(self, split: str) -> list[Clip]:
        """The clips of a split whose licence allows weights to be published."""
        banned = {x.upper() for x in self.config.exclude_licences}
        return [c for c in self.pack.split(split) if not licence_parts(c.get("licence")) & banned]

    def crop(self, label: int, frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Up to `frames` frames of a clip of this class, and what is taught of it: a source drawn evenly, then a clip
        by its weight."""
        sources = self.pools[self.labels[label]]
        clips, cumulative = sources[rng.integers(len(sources))]
        clip = clips[min(int(np.searchsorted(cumulative, rng.random() * cumulative[-1])), len(clips) - 1)]
        n = min(frames, clip["frames"])
        start = int(rng.integers(clip["frames"] - n + 1))
        return random_gain(self.pack.waveform(clip["offset"] + start, n), rng), self.targets[str(clip["id"])]

    def join(self, label: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A crop of `label` and one of another class: both are true."""
        other = int((label + rng.integers(1, len(self.labels))) % len(self.labels))
        (a, first), (b, second) = (self.crop(k, self.config.crop_frames // 2, rng) for k in (label, other))
        return np.concatenate((a, b)), np.maximum(first, second)

    def batch(self, rng: np.random.Generator) -> dict[str, Tensor]:
        c, items = self.config, []
        for _ in range(c.batch_size):
            label = int(rng.integers(len(self.labels)))
            if rng.random() < c.join_probability:
                wave, target = self.join(label, rng)
            else:
                wave, target = self.crop(label, c.crop_frames, rng)
            if rng.random() < c.noise_probability:
                level = np.sqrt(np.mean(wave**2)) * 10 ** (-rng.uniform(10, 45) / 20)
                wave = wave + rng.normal(0, level, wave.shape).astype(np.float32)
            n = len(wave) // HOP
            wave = np.pad(wave, (0, c.crop_frames * HOP - len(wave)))
            items.append({"wave": wave, "frames": np.array(n), "target": target})
        return collate(items)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        assert isinstance(self.model, Tagger)
        with torch.no_grad():
            mel = disguise(self.model.spectrum(batch["wave"]), c)
        clip, _ = model(mel, batch["frames"])
        target = batch["target"]
        single = target.sum(1) < 1.01  # not joined: what is taught adds up to 1
        hit = (clip.argmax(1) == target.argmax(1))[single].float().mean()
        if c.model.exclusive:
            return F.cross_entropy(clip, target, label_smoothing=c.label_smoothing), {"hit": hit}
        soft = target * (1 - 2 * c.label_smoothing) + c.label_smoothing
        return F.binary_cross_entropy_with_logits(clip, soft), {"hit": hit}

    def judge(self, split: str, limit: int | None = None,
              keep: Callable[[Clip], bool] | None = None) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """True label indices [n] and clip probabilities [n, labels] of (at most `limit`) clips of a split."""
        model = self.model
        assert isinstance(model, Tagger)
        model.eval()
        total = len(self.pack.split(split))
        step = max(1, total // limit) if limit else 1
        labels, scores = [], []
        for i, (clip, wave) in enumerate(iterate(self.pack, split)):
            label = self.label(clip)
            if i % step or label is None or (keep is not None and not keep(clip)):
                continue
            labels.append(self.labels.index(label))
            scores.append(np.array(list(model.tag(wave).scores.values())))
        if not labels:
            raise CorpusError(f"{self.pack.folder}: no labelled clip in split {split!r}")
        return np.array(labels), np.stack(scores)

    def validate(self) -> dict[str, float]:
        labels, scores = self.judge("valid", self.config.valid_clips)
        card = report(labels, scores, break_even(labels, scores, self.labels), draws=0)
        return {"uar": card["uar"], **{f"f1_{k}": card[k]["f1"] for k in self.labels}}

    def scores(self) -> dict[str, Any]:
        """Sets the thresholds on valid; scores on valid and, where there is one, test."""
        model = self.model
        assert isinstance(model, Tagger)
        valid = self.judge("valid")
        model.thresholds = break_even(*valid, self.labels)
        out = {"valid": report(*valid, model.thresholds)}
        if self.pack.split("test"):
            out["test"] = report(*self.judge("test"), model.thresholds)
        return out

    def export(self, folder: Path) -> None:
        model = self.model
        assert isinstance(model, Tagger)
        scores = self.scores()
        model.card = {
            "version": self.config.version,
            "licence": self.config.licence,
            "about": self.about,
            "recipe": f"recipes/{self.stem}.yaml",
            "seed": self.config.train.seed,
            "train_clips": {k: sum(len(clips) for clips, _ in self.pools[k]) for k in self.labels},
            "train_licences": sorted({str(c.get("licence")) for c in self.clips}),
            "scores": scores,
        }  # fmt: skip
        if self.config.teacher is not None:
            model.card["second_opinion"] = {"trust": self.config.trust, "clips": len(self.targets)}
        folder.mkdir(parents=True, exist_ok=True)
        model.save(folder / self.stem)


def class_pools(clips: list[Clip], labels: Sequence[str], label: Callable[[Clip], str | None],
                power: float) -> dict[str, list[tuple[list[Clip], np.ndarray]]]:  # fmt: skip
    """Label -> (clips, cumulative weights) of each source, so that a large source does not drown a small one.

    A clip weighs as its `vocalisation_conf` over the median of its pool, within 1/3 and 3, to the power `power`.
    """
    pools: dict[str, dict[str, list[Clip]]] = {k: {} for k in labels}
    for clip in clips:
        name = label(clip)
        if name is not None:
            pools[name].setdefault(str(clip.get("source")), []).append(clip)

    def cumulative(members: list[Clip]) -> np.ndarray:
        conf = np.array([c.get("vocalisation_conf") or np.nan for c in members], np.float64)
        if np.isnan(conf).all():
            return np.cumsum(np.ones(len(members)))
        middle = np.nanmedian(conf)
        return np.cumsum(np.clip(np.nan_to_num(conf, nan=middle) / middle, 1 / 3, 3) ** power)

    return {k: [(m, cumulative(m)) for m in v.values()] for k, v in pools.items()}


def disguise(mel: Tensor, c: TaggerRecipe) -> Tensor:
    """Log-mel [B, T, M] in another voice, channel and quality, bands and moments masked (SpecAugment)."""
    b, t, m = mel.shape
    device = mel.device
    blurred = F.avg_pool2d(mel[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    mix = torch.rand(b, 1, 1, device=device) * (torch.rand(b, 1, 1, device=device) < c.blur_probability)
    mel = perturb(mel + mix * (blurred - mel), c.warp, c.eq_db, noise=0.2)
    bands, times = torch.arange(m, device=device)[None, None], torch.arange(t, device=device)[None, :, None]
    narrow = torch.rand(b, 1, 1, device=device) < 0.3
    limit = torch.where(narrow, torch.rand(b, 1, 1, device=device) * 0.4 + 0.6, 1.0)
    floor = mel.amin((1, 2), keepdim=True)
    mel = torch.where(bands < limit * m, mel, floor)
    mean = mel.mean((1, 2), keepdim=True)
    for axis, size, widest in ((bands, m, m // 8), (bands, m, m // 8), (times, t, t // 6)):
        width = torch.rand(b, 1, 1, device=device) * widest
        start = torch.rand(b, 1, 1, device=device) * (size - width)
        mel = torch.where((axis >= start) & (axis < start + width), mean, mel)
    return mel


def break_even(labels: np.ndarray, scores: np.ndarray, names: Sequence[str] = LABELS) -> dict[str, float]:
    """For each label the threshold at which as many clips fire as there are: precision equals recall."""
    out = {}
    for k, name in enumerate(names):
        n = int((labels == k).sum())
        ranked = np.sort(scores[:, k])[::-1]
        out[name] = float((ranked[n - 1] + ranked[min(n, len(ranked) - 1)]) / 2) if n else 0.5
    return out


def f1_score(is_k: np.ndarray, fired: np.ndarray) -> float:
    """F1 of two boolean arrays; 0 where both are empty."""
    return 2 * int((is_k & fired).sum()) / max(int(is_k.sum() + fired.sum()), 1)


def report(labels: np.ndarray, scores: np.ndarray, thresholds: dict[str, float], draws: int = 1000) -> dict[str, Any]:
    """Per label F1 (with interval), precision, recall and n; and UAR over the labels that occur."""
    t = np.array(list(thresholds.values()))
    odds = np.log(np.clip(scores, 1e-6, 1 - 1e-6) / np.clip(1 - scores, 1e-6, 1))
    said = (odds - np.log(t / (1 - t))).argmax(1)
    card: dict[str, Any] = {"n": len(labels)}
    for k, name in enumerate(thresholds):
        is_k, fired = labels == k, scores[:, k] >= t[k]
        hits, n = int((is_k & fired).sum()), int(is_k.sum())
        s = pooled(f1_score, is_k, fired, draws=draws)
        numbers = {"f1": s["mean"], "precision": hits / max(int(fired.sum()), 1), "recall": hits / max(n, 1)}
        if draws:
            numbers |= {"low": s["low"], "high": s["high"]}
        card[name] = {**{key: round(v, 4) for key, v in numbers.items()}, "n": n}
    card["uar"] = round(uar(labels, said), 4)
    return card


def run(config: TaggerRecipe) -> dict[str, float]:
    """Train, validate, export."""
    return fit(TaggerTask(config), config.train)
