"""The source encoder: what is voiced (content), how (expression), and at which pitch.

    waveform -> log-mel at 10 ms, two a frame -> causal ConvNeXt trunk -+-> content unit   (argmax of a head)
                                                                        +-> expression unit (tight FSQ)
    waveform -> lag features -> pitch tracker -> F0, periodicity

Outputs lag `lookahead` frames behind the input: frame t speaks of frame t - lookahead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vivavoce.core.checkpoint import PretrainedModule
from vivavoce.core.frames import Framing, LogMel
from vivavoce.core.layers import ConvNeXtStack, State
from vivavoce.units.fsq import FSQ
from vivavoce.units.pitch import PitchTracker


@dataclass
class UnitsConfig:
    """Shape of the unit encoder; the defaults are the embedded model's."""

    sample_rate: int = 16000  # Hz
    hop: int = 320  # samples a frame
    lookahead: int = 2  # frames; the pitch tracker's reach is built for 2
    n_mels: int = 80
    dim: int = 320
    depth: int = 8
    content_units: int = 500
    expression_levels: list[int] = field(default_factory=lambda: [7, 7, 7])
    pitch_dim: int = 128
    pitch_depth: int = 4


class Units(NamedTuple):
    """A stretch of source units, [B, T] each but for expression, [B, T, channels]."""

    content: Tensor  # int64
    expression: Tensor  # int64, one integer an FSQ channel
    f0: Tensor  # Hz, held through unvoiced frames
    periodicity: Tensor  # 0 to 1


class UnitEncoder(PretrainedModule):
    """Speech to units, as a stream."""

    model_type: ClassVar[str] = "vivavoce-units"
    Config: ClassVar[type] = UnitsConfig

    def __init__(self, config: UnitsConfig) -> None:
        super().__init__()
        self.config = c = config
        half = c.hop // 2
        self.framing = Framing(400, half)
        self.mel = LogMel(c.sample_rate, 400, c.n_mels)
        self.trunk = ConvNeXtStack(2 * c.n_mels, c.dim, c.depth)
        self.content_head = nn.Linear(c.dim, c.content_units)
        self.expression_head = nn.Linear(c.dim, len(c.expression_levels))
        self.fsq = FSQ(c.expression_levels)
        self.pitch = PitchTracker(c.sample_rate, c.hop, c.pitch_dim, c.pitch_depth)

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def spectra(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Waveform [B, T * hop] -> level-free log-mel at half hops [B, 2 T, n_mels]."""
        frames, state = self.framing(x, state)
        mel, level = self.mel(frames)
        return mel - level.clamp_min(-60.0)[..., None] * (math.log(10.0) / 20.0), state

    def features(self, mel: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Log-mel at half hops [B, 2 T, n_mels] -> trunk features [B, T, dim]."""
        b, t, c = mel.shape
        return self.trunk(mel.reshape(b, t // 2, 2 * c), state)

    def forward(self, x: Tensor, state: State = None) -> tuple[Units, State]:
        """Waveform [B, T * hop] -> Units of T frames that lag `lookahead` frames behind."""
        framing, trunk, pitch = state or (None, None, None)
        mel, framing = self.spectra(x, framing)
        h, trunk = self.features(mel, trunk)
        _, expression = self.fsq(self.expression_head(h))
        (f0, periodicity), pitch = self.pitch(x, pitch)
        return Units(self.content_head(h).argmax(-1), expression, f0, periodicity), (framing, trunk, pitch)
