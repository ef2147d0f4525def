"""A small tagger of audio clips, in two instances: which vocal event is heard, and when; which emotion is heard.

Log-mel, a small non-causal ConvNeXt over 40 ms steps, a score a label and step; clips are pooled by attention.
Events may coincide (a sigmoid a label), emotions exclude one another (a softmax). It judges converted audio, so
it shares nothing with the converter: own spectrum, own weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.core.checkpoint import (
    FORMAT_VERSION,
    load_state,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
)
from vivavoce.core.config import from_dict, to_dict
from vivavoce.core.errors import CheckpointError, ConfigError
from vivavoce.core.frames import Framing, LogMel

LABELS = ("laugh", "cry", "sigh", "scream", "other", "speech")
EVENTS = LABELS[:-1]  # everything but speech
CLASS_OF = {  # corpus vocalisation -> label
    "laugh": "laugh", "cry": "cry", "sob": "cry", "sigh": "sigh", "breath": "sigh", "scream": "scream",
    "burst": "other", "groan": "other", "gasp": "other", "cough": "other", "grunt": "other", "shout": "other",
    "moan": "other", "none": "speech",
}  # fmt: skip
EMOTIONS = ("neutral", "happy", "sad", "angry", "fear", "disgust", "surprise", "pain")
STEM = Path(__file__).with_name("tagger")  # .json and .safetensors beside this file
EMOTION_STEM = Path(__file__).with_name("emotion")


@dataclass
class TaggerConfig:
    """Size of the tagger. One step is two frames of `hop` samples."""

    sample_rate: int = 16000
    hop: int = 320
    n_mels: int = 64
    dim: int = 96
    depth: int = 6
    kernel_size: int = 7
    expansion: int = 2
    dropout: float = 0.1
    exclusive: bool = False  # one label a clip (softmax) or any number (sigmoids)

    @property
    def step_seconds(self) -> float:
        return 2 * self.hop / self.sample_rate


@dataclass
class Tags:
    """What the tagger hears in one clip."""

    scores: dict[str, float]  # clip probability of each label
    thresholds: dict[str, float]
    frames: np.ndarray  # [steps, labels] probability of each label at each step
    step_seconds: float
    fired: tuple[str, ...] = field(init=False)  # labels at or above their threshold, surest first

    def __post_init__(self) -> None:
        above = [k for k in self.scores if self.scores[k] >= self.thresholds[k]]
        self.fired = tuple(sorted(above, key=self.margin, reverse=True))

    def margin(self, label: str) -> float:
        """Log-odds of `label` above its threshold."""
        p, t = (min(max(v, 1e-6), 1 - 1e-6) for v in (self.scores[label], self.thresholds[label]))
        return float(np.log(p / (1 - p)) - np.log(t / (1 - t)))

    @property
    def label(self) -> str:
        """The label furthest above (or least below) its threshold."""
        return max(self.scores, key=self.margin)

    def spans(self, label: str, shortest: float = 0.12, gap: float = 0.12) -> list[tuple[float, float]]:
        """(start, end) in seconds of each run of `label`; [] when the clip as a whole does not fire it.

        A step belongs to the label at half of the clip's own highest step probability or above; gaps up to
        `gap` seconds are closed, runs under `shortest` dropped. The training labels are of whole clips, so
        the edges are rough.
        """
        if label not in self.fired:
            return []
        p = self.frames[:, list(self.scores).index(label)]
        on = np.flatnonzero(p >= 0.5 * p.max())
        cuts = np.flatnonzero(np.diff(on) > 1 + gap / self.step_seconds)
        starts, ends = on[np.r_[0, cuts + 1]], on[np.r_[cuts, len(on) - 1]] + 1
        spans = [(float(a * self.step_seconds), float(b * self.step_seconds)) for a, b in zip(starts, ends)]
        return [s for s in spans if s[1] - s[0] >= shortest]


class Block(nn.Module):
    """Non-causal ConvNeXt block on [B, T, dim]."""

    def __init__(self, dim: int, kernel_size: int, expansion: int, dropout: float, scale: float) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, dim * expansion)
        self.down = nn.Linear(dim * expansion, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.norm(self.conv((x * mask).transpose(1, 2)).transpose(1, 2))
        return x + self.scale * self.dropout(self.down(F.gelu(self.up(y), approximate="tanh")))


class Tagger(nn.Module):
    """See the module's docstring. `labels`, `thresholds` and `card` (its scores) come from its JSON file."""

    def __init__(self, config: TaggerConfig | None = None, labels: Sequence[str] = LABELS) -> None:
        super().__init__()
        self.config = c = config or TaggerConfig()
        self.labels = tuple(labels)
        self.thresholds = dict.fromkeys(self.labels, 1 / len(self.labels) if c.exclusive else 0.5)
        self.card: dict[str, Any] = {}
        self.framing = Framing(2 * c.hop, c.hop)
        self.mel = LogMel(c.sample_rate, 2 * c.hop, c.n_mels)
        self.inp = nn.Linear(2 * c.n_mels, c.dim)
        self.blocks = nn.ModuleList(
            Block(c.dim, c.kernel_size, c.expansion, c.dropout, scale=1.0 / c.depth) for _ in range(c.depth)
        )
        self.norm = nn.LayerNorm(c.dim)
        self.out = nn.Linear(c.dim, 2 * len(self.labels))  # what is heard, and how much this step counts

    def spectrum(self, wave: Tensor) -> Tensor:
        """Wave [B, T * hop] -> natural-log mel amplitudes [B, T, n_mels]."""
        return self.mel(self.framing(wave)[0])[0]

    def forward(self, mel: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel [B, T, n_mels], `frames` [B] of it -> logits, clips [B, labels], steps [B, T/2, labels].

        The loudest bin of each clip becomes 1, everything 70 dB and more below it -1: level does not matter.
        """
        b, t, _ = mel.shape
        valid = (torch.arange(t, device=mel.device) < frames[:, None])[..., None]
        top = mel.masked_fill(~valid, -1e4).amax((1, 2), keepdim=True)
        x = ((mel - top).clamp_min(-8.0) / 4.0 + 1.0).masked_fill(~valid, -1.0)
        x, valid = F.pad(x, (0, 0, 0, t % 2), value=-1.0), F.pad(valid, (0, 0, 0, t % 2))
        mask = valid[:, ::2].to(x.dtype)
        x = self.inp(x.reshape(b, (t + 1) // 2, -1))
        for block in self.blocks:
            x = block(x, mask)
        steps, weight = self.out(self.norm(x)).float().chunk(2, dim=-1)
        weight = weight.masked_fill(mask == 0, -torch.inf).softmax(1)
        return (weight * steps).sum(1), steps

    @torch.no_grad()
    def tag(self, wave: np.ndarray) -> Tags:
        """Judge one 16 kHz mono clip [samples], 0.1 s or longer, brought to a peak of 0.5."""
        x = torch.from_numpy(np.ascontiguousarray(wave, np.float32)).to(self.inp.weight.device)[None]
        x = F.pad(0.5 * x / x.abs().max().clamp_min(1e-6), (0, -x.shape[1] % self.config.hop))
        mel = self.spectrum(x)
        clip, steps = self(mel, torch.tensor([mel.shape[1]], device=mel.device))
        scores, frames = self.probabilities(clip[0]).tolist(), self.probabilities(steps[0]).cpu().numpy()
        return Tags(dict(zip(self.labels, scores)), self.thresholds, frames, self.config.step_seconds)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [..., labels] -> probabilities."""
        return logits.softmax(-1) if self.config.exclusive else logits.sigmoid()

    def save(self, stem: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write `stem`.safetensors and `stem`.json (config, labels, thresholds, and the rest of `card`)."""
        stem = Path(stem)
        tensors = {k: v.to(dtype) for k, v in self.state_dict().items()}
        save_tensors(stem.with_suffix(".safetensors"), tensors, {"model_type": "tagger"})
        head = {"model_type": "tagger", "format_version": FORMAT_VERSION, "config": to_dict(self.config)}
        write_json(stem.with_suffix(".json"),
                   {**head, "labels": list(self.labels), "thresholds": self.thresholds, **self.card})  # fmt: skip


def load_tagger(stem: str | Path = STEM, labels: Sequence[str] = LABELS) -> Tagger:
    """Read what `Tagger.save` wrote. Raises CheckpointError: a file that is missing or does not fit `labels`."""
    where = Path(stem).with_suffix(".json")
    card = read_json(where)
    kind = card.pop("model_type", None) if isinstance(card, dict) else None
    if kind != "tagger" or card.pop("format_version", None) != FORMAT_VERSION:
        raise CheckpointError(f"{where}: not a tagger of format {FORMAT_VERSION}; train recipes/{where.stem}.yaml")
    if card.pop("labels", None) != list(labels) or set(card.get("thresholds", {})) != set(labels):
        raise CheckpointError(f"{where}: other labels than {', '.join(labels)}; train it again")
    try:
        model = Tagger(from_dict(TaggerConfig, card.pop("config", {}), str(where)), labels)
    except ConfigError as e:
        raise CheckpointError(str(e)) from None
    weights = Path(stem).with_suffix(".safetensors")
    load_state(model, load_tensors(weights)[0], str(weights))
    model.thresholds = card.pop("thresholds")
    model.card = card
    return model.eval()


@lru_cache(maxsize=1)
def shipped() -> Tagger:
    """The event tagger beside this file, loaded once."""
    return load_tagger()


@lru_cache(maxsize=1)
def shipped_emotion() -> Tagger:
    """The emotion tagger beside this file, loaded once."""
    return load_tagger(EMOTION_STEM, EMOTIONS)
