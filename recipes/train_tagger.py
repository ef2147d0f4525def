"""Train the vocal event tagger of `eval/`: weak clip labels, classes drawn evenly, spectra disguised.

The disguises serve fairness: the judge must hear the event, not the channel. Another voice (formant and
pitch warp), equaliser, band limit, noise, and the blur of a vocoder hit all classes alike; a clip is often
joined to one of another class, so that speech does not rule out a laugh.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.core.errors import CorpusError
from vivavoce.eval.tagger import CLASS_OF, LABELS, Tagger, TaggerConfig
from vivavoce.recipes.corpus import HOP, Pack, iterate
from vivavoce.recipes.data import collate, random_gain
from vivavoce.recipes.perturb import perturb
from vivavoce.recipes.trainer import TrainConfig, fit


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
    valid_clips: int = 300
    label_smoothing: float = 0.05
    version: str = "1"
    licence: str = "Apache-2.0"


class TaggerTask:
    """See recipes.trainer.Task."""

    def __init__(self, config: TaggerRecipe) -> None:
        self.config = config
        self.pack = Pack(config.pack)
        self.pools = class_pools(self.pack.split("train"))
        missing = [k for k in LABELS if not self.pools[k]]
        if missing:
            raise CorpusError(f"{config.pack}: no training clip whose vocalisation is {missing[0]}; the "
                              f"manifest's field `vocalisation` must cover {', '.join(LABELS)}")  # fmt: skip
        torch.manual_seed(config.train.seed)
        self.model: nn.Module = Tagger(config.model)

    def crop(self, label: int, frames: int, rng: np.random.Generator) -> np.ndarray:
        """Up to `frames` frames of a clip of this class: a source, then a clip, drawn evenly."""
        sources = self.pools[LABELS[label]]
        clips = sources[rng.integers(len(sources))]
        clip = clips[rng.integers(len(clips))]
        n = min(frames, clip["frames"])
        start = int(rng.integers(clip["frames"] - n + 1))
        return random_gain(self.pack.waveform(clip["offset"] + start, n), rng)

    def batch(self, rng: np.random.Generator) -> dict[str, Tensor]:
        c, items = self.config, []
        for _ in range(c.batch_size):
            label = int(rng.integers(len(LABELS)))
            target = np.zeros(len(LABELS), np.float32)
            target[label] = 1.0
            if rng.random() < c.join_probability:
                other = int((label + rng.integers(1, len(LABELS))) % len(LABELS))
                target[other] = 1.0
                wave = np.concatenate([self.crop(k, c.crop_frames // 2, rng) for k in (label, other)])
            else:
                wave = self.crop(label, c.crop_frames, rng)
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
        soft = target * (1 - 2 * c.label_smoothing) + c.label_smoothing
        single = target.sum(1) == 1
        hit = (clip.argmax(1) == target.argmax(1))[single].float().mean()
        return F.binary_cross_entropy_with_logits(clip, soft), {"hit": hit}

    def validate(self) -> dict[str, float]:
        labels, scores = judge(self.model, self.pack, "valid", self.config.valid_clips)
        card = report(labels, scores, break_even(labels, scores))
        return {"uar": card["uar"], **{f"f1_{k}": card[k]["f1"] for k in LABELS}}

    def export(self, folder: Path) -> None:
        model = self.model
        assert isinstance(model, Tagger)
        valid = judge(model, self.pack, "valid")
        model.thresholds = break_even(*valid)
        scores = {"valid": report(*valid, model.thresholds)}
        if self.pack.split("test"):
            scores["test"] = report(*judge(model, self.pack, "test"), model.thresholds)
        train = self.pack.split("train")
        model.card = {
            "version": self.config.version,
            "licence": self.config.licence,
            "about": "Weak clip labels (manifest field `vocalisation`); valid and test are unseen speakers. "
                     "Thresholds: precision = recall on valid. f1, precision, recall: each label by its own "
                     "threshold. uar: mean recall of the label furthest above its threshold (chance 0.167).",
            "recipe": "recipes/tagger.yaml",
            "seed": self.config.train.seed,
            "train_clips": {k: sum(map(len, self.pools[k])) for k in LABELS},
            "train_licences": sorted({str(c.get("licence")) for c in train}),
            "scores": scores,
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        model.save(folder / "tagger")


def class_pools(clips: list[dict[str, Any]]) -> dict[str, list[list[dict[str, Any]]]]:
    """Label -> clips grouped by source, so that a large source does not drown a small one."""
    pools: dict[str, dict[str, list[dict[str, Any]]]] = {k: {} for k in LABELS}
    for clip in clips:
        label = CLASS_OF.get(clip.get("vocalisation", "none"))
        if label is not None:
            pools[label].setdefault(str(clip.get("source")), []).append(clip)
    return {k: list(v.values()) for k, v in pools.items()}


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


def judge(model: nn.Module, pack: Pack, split: str,
          limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """True label indices [n] and clip probabilities [n, labels] of (at most `limit`) clips of a split."""
    assert isinstance(model, Tagger)
    model.eval()
    total = len(pack.split(split))
    step = max(1, total // limit) if limit else 1
    labels, scores = [], []
    for i, (clip, wave) in enumerate(iterate(pack, split)):
        label = CLASS_OF.get(clip.get("vocalisation", "none"))
        if i % step or label is None:
            continue
        labels.append(LABELS.index(label))
        scores.append(np.array(list(model.tag(wave).scores.values())))
    if not labels:
        raise CorpusError(f"{pack.folder}: no labelled clip in split {split!r}")
    return np.array(labels), np.stack(scores)


def break_even(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """For each label the threshold at which as many clips fire as there are: precision equals recall."""
    out = {}
    for k, name in enumerate(LABELS):
        n = int((labels == k).sum())
        ranked = np.sort(scores[:, k])[::-1]
        out[name] = float((ranked[n - 1] + ranked[min(n, len(ranked) - 1)]) / 2) if n else 0.5
    return out


def report(labels: np.ndarray, scores: np.ndarray, thresholds: dict[str, float]) -> dict[str, Any]:
    """Per label F1, precision, recall and n; and UAR over the labels that occur."""
    t = np.array([thresholds[k] for k in LABELS])
    odds = np.log(np.clip(scores, 1e-6, 1 - 1e-6) / np.clip(1 - scores, 1e-6, 1))
    said = (odds - np.log(t / (1 - t))).argmax(1)
    card: dict[str, Any] = {"n": len(labels)}
    recalls = []
    for k, name in enumerate(LABELS):
        is_k, fired = labels == k, scores[:, k] >= t[k]
        hits, n = int((is_k & fired).sum()), int(is_k.sum())
        precision, recall = hits / max(int(fired.sum()), 1), hits / max(n, 1)
        f1 = 2 * hits / max(n + int(fired.sum()), 1)
        numbers = {"f1": f1, "precision": precision, "recall": recall}
        card[name] = {**{key: round(v, 4) for key, v in numbers.items()}, "n": n}
        if n:
            recalls.append(float((said[is_k] == k).mean()))
    card["uar"] = round(float(np.mean(recalls)), 4)
    return card


def run(config: TaggerRecipe) -> dict[str, float]:
    """Train, validate, export."""
    return fit(TaggerTask(config), config.train)
