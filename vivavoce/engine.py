"""The whole chain as one recurrent step: 16 kHz frames in, 16 kHz frames out, all state in the open.

Every frame is computed by itself, in the same shapes, whatever the caller's chunks are; this is why
converting a file, a stream in 100 ms chunks and a stream in single samples give the same bits.

Frame t of the input speaks, through the units' look-ahead L and the language model's extra delay d, of
frame t - L - d; the codec's overlap adds one more. `lag` states the sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vivavoce.codec import Codec
from vivavoce.core.errors import ConfigError
from vivavoce.core.layers import State
from vivavoce.lm import LMState, Source, VoiceLM
from vivavoce.units import UnitEncoder, prosody
from vivavoce.units.prosody import Register
from vivavoce.voice import Voice


@dataclass(frozen=True)
class Settings:
    """How to convert.

    Attributes:
        seed: of sampling and of the codec's noise.
        temperature: of sampling; 0 is greedy.
        guidance: how hard to lead away from an average voice, 0 to 5: more likeness, fewer clear phonemes.
            Needs a model that came with a crowd prompt; ignored by others.
        delay: extra look-ahead of the language model in frames of 20 ms.
        transpose: semitones added to the output's pitch.
        source_register: the source's mean pitch in Hz where it is known beforehand; else it is learnt
            within the first second of voice.

    Raises:
        ConfigError: a value out of range, named.
    """

    seed: int = 0
    temperature: float = 0.4
    guidance: float = 1.5
    delay: int = 1
    transpose: float = 0.0
    source_register: float | None = None

    def __post_init__(self) -> None:
        register = 100.0 if self.source_register is None else self.source_register
        for name, value, low, high in (
            ("seed", self.seed, -(2**63), 2**63 - 1),  # the counter-based generator mixes int64
            ("temperature", self.temperature, 0, 10),
            ("guidance", self.guidance, 0, 5),
            ("delay", self.delay, 0, 1000),
            ("transpose", self.transpose, -48, 48),
            ("source_register", register, 20, 2000),
        ):
            if not low <= value <= high:  # NaN included
                raise ConfigError(f"{name} {value} is out of range; give {low} to {high}")


class EngineState(NamedTuple):
    """State of one stream. The language model's cache is updated in place; see LMState."""

    taken: int  # frames so far
    units: State
    framing: Tensor | None
    levels: tuple[Tensor, ...]  # of the last L frames
    register: State
    queue: tuple[Source, ...]  # target-side units of the last d frames, waiting for the model's delay
    lm: LMState
    codec: State


class Engine:
    """units -> lm -> codec for one voice; holds no state of its own."""

    def __init__(self, codec: Codec, units: UnitEncoder, lm: VoiceLM, voice: Voice,
                 settings: Settings, crowd: Voice | None = None) -> None:  # fmt: skip
        self.codec, self.units, self.lm, self.voice, self.settings = codec, units, lm, voice, settings
        self.crowd = crowd if settings.guidance > 0 else None
        self.hop = codec.config.hop
        self.register = Register(settings.source_register)
        self.lookahead = units.config.lookahead
        self.shift = math.log2(voice.register) + settings.transpose / 12.0

    @property
    def lag(self) -> int:
        """Frames by which the output lags behind the input."""
        return self.lookahead + self.settings.delay + 1

    @torch.inference_mode()
    def start(self) -> EngineState:
        """A fresh stream: the voice prompt is read here."""
        crowd = (self.crowd.source(), self.crowd.codes[None].long()) if self.crowd is not None else None
        lm = self.lm.start(self.voice.source(), self.voice.codes[None].long(), crowd)
        return EngineState(0, None, None, (), None, (), lm, None)

    @torch.inference_mode()
    def __call__(self, x: Tensor, state: EngineState) -> tuple[Tensor, EngineState]:
        """Waveform [B, T * hop] -> waveform of the same length, `lag` frames late (zeros before)."""
        out = [x[:, :0]]
        for start in range(0, x.shape[1], self.hop):
            y, state = self._frame(x[:, start : start + self.hop], state)
            out.append(y)
        return torch.cat(out, dim=1), state

    def _frame(self, x: Tensor, s: EngineState) -> tuple[Tensor, EngineState]:
        cfg = self.settings
        frames, framing = self.codec.framing(x, s.framing)
        levels = (*s.levels, self.codec.level(frames))
        heard, units = self.units(x, s.units)
        s = s._replace(taken=s.taken + 1, framing=framing, units=units, levels=_last(levels, self.lookahead))
        if s.taken <= self.lookahead:
            return torch.zeros_like(x), s
        f0, periodicity, level = prosody.dequantise(prosody.quantise(heard.f0, heard.periodicity, levels[0]))
        own, register = self.register(f0, periodicity, s.register)
        moved = f0 * torch.exp2(self.shift - own)
        now = Source(heard.content, heard.expression, moved, periodicity, level)
        queue = (*s.queue, now)
        s = s._replace(register=register, queue=_last(queue, cfg.delay))
        if len(queue) <= cfg.delay:
            return torch.zeros_like(x), s
        codes, lm = self.lm.generate(now, s.lm, cfg.seed, cfg.temperature, cfg.delay, cfg.guidance)
        due = queue[0]
        y, codec = self.codec.decode(codes, due.f0, due.periodicity, due.level, s.codec, cfg.seed)
        return y, s._replace(lm=lm, codec=codec)


def _last(items: tuple, n: int) -> tuple:
    """The last n items or, while there are fewer, all."""
    return items[max(0, len(items) - n) :]
