"""Train the codec: spectral reconstruction through the residual VQ, pitch given beside the codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codec import Codec, CodecConfig
from vivavoce.codec.losses import MultiResolutionSTFT
from vivavoce.recipes.corpus import RATE, Pack, check_grid, track_pitch
from vivavoce.recipes.data import VOICED, Crops, clean_pitch, collate, random_gain
from vivavoce.recipes.trainer import TrainConfig, fit


@dataclass
class CodecRecipe:
    """`vivavoce train codec` reads this."""

    pack: str
    train: TrainConfig
    model: CodecConfig = field(default_factory=CodecConfig)
    batch_size: int = 16
    crop_frames: int = 50
    boost: dict = field(default_factory=dict)
    valid_clips: int = 24


class CodecTask:
    """See recipes.trainer.Task."""

    def __init__(self, config: CodecRecipe) -> None:
        self.config = config
        check_grid("model", config.model.sample_rate, config.model.hop, config.pack)
        self.pack = Pack(config.pack)
        self.crops = Crops(self.pack, "train", config.crop_frames, config.boost)
        torch.manual_seed(config.train.seed)
        self.model: nn.Module = Codec(config.model)
        self.spectral = MultiResolutionSTFT()

    def batch(self, rng: np.random.Generator) -> dict[str, Tensor]:
        items = [self.crops.draw(rng) for _ in range(self.config.batch_size)]
        for item in items:
            item["wave"] = random_gain(item["wave"], rng)
            item["f0"] = item["f0"] * np.float32(np.exp(rng.normal(0.0, 0.004)))
        return collate([{k: i[k] for k in ("wave", "f0", "periodicity")} for i in items])

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, commit, perplexity = model(**batch)
        hop = self.config.model.hop
        self.spectral.to(y.device)
        spectral = self.spectral(y[:, hop:].float(), batch["wave"][:, :-hop])
        return spectral + 0.5 * commit, {"spectral": spectral, "commit": commit, "perplexity": perplexity}

    def validate(self) -> dict[str, float]:
        model, totals = self.model, []
        assert isinstance(model, Codec)
        clips = self.pack.split("valid") or self.pack.split("train")
        step = max(1, len(clips) // self.config.valid_clips)
        for clip in clips[::step][: self.config.valid_clips]:
            x = torch.from_numpy(self.pack.waveform(clip["offset"], clip["frames"]))[None]
            f0, per = clean_pitch(self.pack.pitch[clip["offset"] : clip["offset"] + clip["frames"]])
            device = next(model.parameters()).device
            hz, voiced = (torch.from_numpy(a.astype(np.float32))[None].to(device) for a in (f0, per))
            (codes, level), _ = model.encode(x.to(device))
            row = {}
            for k in sorted({2, 4, codes.shape[-1]}):
                if k > codes.shape[-1]:
                    continue
                y, _ = model.decode(codes[..., :k], hz, voiced, level)
                row[f"mel_db_{k}"] = mel_distance(y[:, 320:].cpu(), x[:, :-320])
            row["f0_corr"] = pitch_correlation(y[0, 320:].cpu().numpy(), f0[:-1], per[:-1])
            totals.append(row)
        known = {k: [t[k] for t in totals if not np.isnan(t[k])] for k in totals[0]}  # no voice, no correlation
        return {k: float(np.mean(v)) if v else float("nan") for k, v in known.items()}

    def export(self, folder: Path) -> None:
        assert isinstance(self.model, Codec)
        self.model.save_pretrained(folder)


def mel_distance(y: Tensor, x: Tensor) -> float:
    """Mean absolute log-mel difference in dB over the frames within 50 dB of the loudest."""
    from vivavoce.core.frames import Framing, LogMel

    mel = LogMel(RATE, 640, 80)
    n = x.shape[1] // 320 * 320
    (a, _), (b, level) = (mel(Framing(640, 320)(s[:, :n])[0]) for s in (y, x))
    loud = level > level.max() - 50
    return float((F.l1_loss(a, b, reduction="none").mean(-1)[loud]).mean() * 8.686)


def pitch_correlation(y: np.ndarray, f0: np.ndarray, periodicity: np.ndarray) -> float:
    """Correlation of log F0 of `y` (tracked offline) with the labels, on frames voiced in both."""
    got, per = clean_pitch(track_pitch(y.astype(np.float32), len(f0)))
    both = (periodicity > VOICED) & (per > VOICED)
    if both.sum() < 10 or np.std(np.log(f0[both])) < 1e-3:
        return float("nan")
    return float(np.corrcoef(np.log(f0[both]), np.log(got[both]))[0, 1])


def run(config: CodecRecipe) -> dict[str, float]:
    """Train, validate, export."""
    return fit(CodecTask(config), config.train)
