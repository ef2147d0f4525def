"""The source encoder: what is voiced (content), how (expression), and at which pitch.

    waveform -> log-mel at 10 ms, two a frame -> causal ConvNeXt trunk -+-> content unit   (FSQ, or a class)
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

from vivavoce.core import radix
from vivavoce.core.checkpoint import PretrainedModule
from vivavoce.core.frames import Framing, LogMel
from vivavoce.core.layers import ConvNeXtStack, State
from vivavoce.core.traced import TOGETHER, traced
from vivavoce.units.fsq import FSQ
from vivavoce.units.pitch import PitchTracker


@dataclass
class UnitsConfig:
    """Shape of the unit encoder. The embedded model's is in recipes/units.yaml."""

    sample_rate: int = 16000  # Hz
    hop: int = 320  # samples a frame
    lookahead: int = 2  # frames; the pitch tracker's reach is built for 2
    n_mels: int = 80
    dim: int = 320
    depth: int = 8
    content_units: int = 500
    content_levels: list[int] = field(default_factory=list)  # of an FSQ that makes them; none: classes, by argmax
    expression_levels: list[int] = field(default_factory=lambda: [7, 7, 7])
    pitch_dim: int = 128
    pitch_depth: int = 4


class Units(NamedTuple):
    """A stretch of source units, [B, T] each but for expression, [B, T, channels]."""

    content: Tensor  # int64, one integer a frame: a class, or the FSQ's levels packed (core.radix)
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
        if c.content_levels and math.prod(c.content_levels) != c.content_units:
            raise ValueError(f"content_levels {c.content_levels} make {math.prod(c.content_levels)} units, "
                             f"content_units says {c.content_units}")  # fmt: skip
        self.content_head = nn.Linear(c.dim, len(c.content_levels) or c.content_units)
        self.content_fsq = FSQ(c.content_levels)
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

    def units_of(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Trunk features [..., dim] -> content [...] and expression [..., channels], integers."""
        content = self.content_head(h)
        if self.config.content_levels:
            content = radix.pack(self.content_fsq(content)[1], self.config.content_levels)
        else:
            content = content.argmax(-1)
        return content, self.fsq(self.expression_head(h))[1]

    def read(self, mel: Tensor, state: State = None) -> tuple[tuple[Tensor, Tensor], State]:
        """Log-mel at half hops [B, 2 T, n_mels] -> content [B, T] and expression [B, T, channels], `lookahead`
        frames late."""
        h, state = self.features(mel, state)
        return self.units_of(h), state

    def forward(self, x: Tensor, state: State = None) -> tuple[Units, State]:
        """Waveform [B, T * hop] -> Units of T frames that lag `lookahead` frames behind."""
        if state is None or x.shape[1] > TOGETHER * self.config.hop:
            return self._frames(x, state)
        units, state = traced(self, self._frames, x.shape, x, state)
        return Units(*units), state

    def _frames(self, x: Tensor, state: State) -> tuple[Units, State]:
        framing, trunk, pitch = state or (None, None, None)
        mel, framing = self.spectra(x, framing)
        (content, expression), trunk = self.read(mel, trunk)
        (f0, periodicity), pitch = self.pitch(x, pitch)
        return Units(content, expression, f0, periodicity), (framing, trunk, pitch)
