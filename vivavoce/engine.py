"""The whole chain as one recurrent step: unit frames in, as much sound of the codec out, all state in the open.

Every frame is computed by itself, in the same shapes, whatever the caller's chunks are; this is why
converting a file, a stream in 100 ms chunks and a stream in single samples give the same bits.

Frame t of the input speaks, through the units' look-ahead L and the language model's extra delay d, of
frame t - L - d; the codec's overlap, if it has one, adds one more. `lag` states the sum. Where the codec's frames are
shorter than the units', the language model speaks once for each code frame that the unit frame covers (core.grid).
"""

from __future__ import annotations

import contextvars
import copy
import functools
import math
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vivavoce.codec import VoiceCodec
from vivavoce.codec.rvq import ResidualVQ
from vivavoce.core.errors import ConfigError
from vivavoce.core.layers import State
from vivavoce.core.traced import traced
from vivavoce.fit import Scale, mend, scale_of
from vivavoce.guidance import Way, begin, lead, steerable
from vivavoce.lm import LMState, Source, VoiceLM
from vivavoce.units import HubertUnits, UnitEncoder, prosody
from vivavoce.units.prosody import Register
from vivavoce.units.speaking import Speaking
from vivavoce.voice import Voice

WARM_UP = 8  # frames that a new voice says unheard before it is heard, when a stream changes its voice


@dataclass(frozen=True)
class Settings:
    """How to convert.

    Attributes:
        seed: of the codec's noise, and of sampling.
        temperature: of sampling; 0 is greedy. Only autoregressive models sample; the embedded one does not.
        guidance: how hard to lead away from the source's own voice (vivavoce.guidance), 0 to 5: more likeness, fewer
            clear phonemes. Autoregressive models and EnCodec are led away from an average voice instead, if they came
            with a crowd prompt; ignored by others.
        fit: share of what was fitted to the voice's reference (vivavoce.fit) that is used, 0 to 1; voices without a fit
            are spoken as the language model has them.
        keep: share of the source's own sound that its voice does not explain which is kept, 0 to 1: clearer words, more
            of laughs and breath, less likeness. Ignored by autoregressive models and EnCodec.
        delay: extra look-ahead of the language model in frames of 20 ms; None for none, or for 1 where a file is heard
            beforehand, which has the time.
        transpose: semitones added to the output's pitch.
        source_register: the source's mean pitch in Hz where it is known beforehand; else it is learnt
            within the first second of speech, until which the pitch stays as it is.
        context: recent frames that the language model attends to, beside the voice prompt, which it always
            sees; None for as many as the model has. Fewer cost a little less time; through the layers the
            model still remembers several times as far.

    Raises:
        ConfigError: a value out of range, named.
    """

    seed: int = 0
    temperature: float = 0.2
    guidance: float = 0.6
    fit: float = 1.0
    keep: float = 0.5
    delay: int | None = None
    transpose: float = 0.0
    source_register: float | None = None
    context: int | None = None

    def __post_init__(self) -> None:
        register = 100.0 if self.source_register is None else self.source_register
        for name, value, low, high in (
            ("seed", self.seed, -(2**63), 2**63 - 1),  # the counter-based generator mixes int64
            ("temperature", self.temperature, 0, 10),
            ("guidance", self.guidance, 0, 5),
            ("fit", self.fit, 0, 1),
            ("keep", self.keep, 0, 1),
            ("delay", self.delay or 0, 0, 1000),
            ("transpose", self.transpose, -48, 48),
            ("source_register", register, 20, 2000),
            ("context", 1 if self.context is None else self.context, 1, 100_000),
        ):
            if not low <= value <= high:  # NaN included
                raise ConfigError(f"{name} {value} is out of range; give {low} to {high}")

    def unhurried(self, lm: VoiceLM) -> Settings:
        """As for a recording that is at hand, which has the time: one frame of delay, where nothing else was asked."""
        return self if self.delay is not None else replace(self, delay=min(1, lm.config.max_delay))


class Heard(NamedTuple):
    """One frame of the source: its units, F0 still in its own register, that register (log2 Hz, [B, 1]), and what the
    codec hears of it, [B, 1, d], where guidance asks."""

    source: Source
    own: Tensor
    vector: Tensor | None


class EarState(NamedTuple):
    """State of the half that hears; of the voice it knows the register, until the source's is known."""

    units: State
    framing: Tensor | None
    codec: State  # of the codec's encoder, where guidance asks
    levels: tuple[tuple[Tensor, Tensor | None], ...]  # of the last L frames: level, and what the codec hears
    speaking: State
    register: State


class EngineState(NamedTuple):
    """State of one stream. The language model's cache is updated in place: `clone()` before keeping a snapshot."""

    taken: int  # frames so far
    ear: EarState
    queue: tuple[Heard, ...]  # the last d + 1 frames, for the model's delay, or WARM_UP, for the next voice
    lm: LMState
    way: Way | None
    codec: State

    def clone(self) -> EngineState:
        """A snapshot. Nothing but the language model's cache is ever changed in place."""
        return self._replace(lm=self.lm.clone())


class Engine:
    """units -> lm -> codec for one voice; holds no state of a stream, only what the model makes of the prompt."""

    def __init__(self, codec: VoiceCodec, units: UnitEncoder | HubertUnits, lm: VoiceLM, voice: Voice,
                 settings: Settings, crowd: Voice | None = None, way: Way | None = None,
                 beside: Executor | None = None, speaking: Speaking | None = None) -> None:  # fmt: skip
        """`way`: what is known of the source's own voice beforehand, as against `voice`; `beside`: where the next frame
        is heard while one is spoken; `speaking`: tells speech from other sounds, without which all is speech."""
        self.beside, self.speaking = beside, speaking
        if settings.context is not None:  # the ring is as long as the model's config says: same weights, other ring
            lm = copy.copy(lm)
            lm.config = replace(lm.config, context=settings.context)
        self.codec, self.units, self.lm = codec, units, lm
        self.delay, self.settings = settings.delay or 0, settings
        self.steers = steerable(codec, lm)
        leads = self.steers and settings.guidance + settings.keep > 0
        self.scale = scale_of(codec) if leads else None  # type: ignore[arg-type]
        # of what it needs alone: a graph keeps, and copies when it is made, all that it is of
        self.steer = functools.partial(_steer, codec.quantiser, self.scale)  # type: ignore[arg-type]
        self.shares = torch.tensor((settings.fit, settings.guidance, settings.keep), dtype=torch.float64)
        self.crowd = crowd if settings.guidance > 0 and not self.steers else None
        self.rate, self.hop = units.config.sample_rate, units.config.hop
        self.out_rate = codec.config.sample_rate
        self.out_hop = self.hop * self.out_rate // self.rate
        self.lookahead = units.config.lookahead
        self._address(voice)
        self.way = way or self._unknown()

    def _address(self, voice: Voice) -> None:
        self.voice = voice
        self.shift = math.log2(voice.register) + self.settings.transpose / 12.0
        self.register = Register(self.settings.source_register, voice.register)
        self._prompt: LMState | None = None

    def _unknown(self) -> Way | None:
        return None if self.scale is None else begin(len(self.scale.centre), self.voice.strangers)

    def to(self, voice: Voice) -> Engine:
        """The same chain for another voice."""
        other = copy.copy(self)
        other._address(voice)
        other.way = other._unknown()  # what is said is another's
        return other

    @property
    def lag(self) -> int:
        """Frames by which the output lags behind the input."""
        return self.lookahead + self.delay + self.codec.late

    @torch.inference_mode()
    def prompted(self) -> LMState:
        """The language model with the voice prompt read and nothing said yet; read once, then copied."""
        if self._prompt is None:
            crowd = (self.crowd.source(), self.crowd.codes[None].long()) if self.crowd is not None else None
            self._prompt = self.lm.start(self.voice.source(), self.voice.codes[None].long(), crowd)
        return self._prompt.clone()

    def start(self) -> EngineState:
        """A fresh stream."""
        codec = self.codec.begin(self.voice.codes[None, :, : self.lm.config.n_codebooks].long())
        return EngineState(0, EarState(None, None, None, (), None, None), (), self.prompted(), self.way, codec)

    @torch.inference_mode()
    def take_over(self, s: EngineState) -> EngineState:
        """Go on with another voice's stream (same models, delay and look-ahead).

        Source side and codec go on, so no seam can be. The language model's
        cache is full of the old voice, and with it the new one would go on imitating; it is thrown away. In
        its place the new voice says the last `WARM_UP` frames once more, unheard.
        """
        lm, said = self.prompted(), max(0, s.taken - self.lookahead - self.delay)
        again = _last(s.queue, min(said, WARM_UP))
        for due, frame in enumerate(again, said - len(again)):
            _, lm = self._speak(frame, lm, self._codes_of(due))
        return s._replace(lm=lm, way=self.way)

    @torch.inference_mode()
    def __call__(self, x: Tensor, state: EngineState) -> tuple[Tensor, EngineState]:
        """Waveform [B, T * hop] -> waveform at the codec's rate, as long to within a tick of the grid, `lag` frames
        late (zeros of `out_hop` samples a frame before)."""
        out, frames = [x[:, :0]], x.split(self.hop, dim=1) if x.shape[1] else ()
        for heard, ear in self._listen(frames, state.ear):
            y, state = self._answer(heard, state._replace(ear=ear))
            out.append(x.new_zeros(x.shape[0], self.out_hop) if y is None else y)
        return torch.cat(out, dim=1), state

    def _listen(self, frames: tuple[Tensor, ...], ear: EarState) -> Iterator[tuple[Heard | None, EarState]]:
        """Frames [B, hop] -> what is heard, one after another; where there is somebody `beside`, one ahead of use."""
        if self.beside is None or len(frames) < 2:
            for x in frames:
                heard, ear = self._hear(x, ear)
                yield heard, ear
            return
        context = contextvars.copy_context()  # whether to trace
        due = self.beside.submit(context.run, self._hear, frames[0], ear)
        for following in (*frames[1:], None):
            heard, ear = due.result()
            if following is not None:
                due = self.beside.submit(context.run, self._hear, following, ear)
            yield heard, ear

    @torch.inference_mode()
    def _hear(self, x: Tensor, s: EarState) -> tuple[Heard | None, EarState]:
        """One frame [B, hop]; nothing is heard of the first `lookahead` ones."""
        frames, framing = self.codec.framing(x, s.framing)
        if self.scale:
            (now, level), codec = self.codec.hear(frames, s.codec)  # type: ignore[operator]
        else:
            now, level, codec = None, self.codec.level(frames), None
        h, units = self.units(x, s.units)
        levels = (*s.levels, (level, now))
        s = EarState(units, framing, codec, _last(levels, self.lookahead), s.speaking, s.register)
        if len(levels) <= self.lookahead:
            return None, s
        due, vector = levels[0]
        key, pitch = ("rounded", *due.shape), (h.f0, h.periodicity)
        f0, periodicity, level = traced(self.codec.framing, prosody.rounded, key, *pitch, due)
        odds, speaking = torch.ones_like(periodicity), None
        if self.speaking is not None:
            odds, speaking = self.speaking(h.content, periodicity, s.speaking)
        own, register = self.register(f0, periodicity, odds > 0, s.register)
        source = Source(h.content, h.expression, f0, periodicity, level)
        return Heard(source, own, vector), s._replace(speaking=speaking, register=register)

    def _answer(self, heard: Heard | None, s: EngineState) -> tuple[Tensor | None, EngineState]:
        """What is to be said once a frame was heard; None as long as nothing is due."""
        delay = self.delay
        s = s._replace(taken=s.taken + 1)
        if heard is None:
            return None, s
        s = s._replace(queue=_last((*s.queue, heard), max(delay + 1, WARM_UP)))
        t = s.taken - 1 - self.lookahead - delay  # the frame that is due
        if t < 0:
            return None, s
        n, frame = self._codes_of(t), s.queue[-1 - delay]
        codes, lm = self._speak(heard, s.lm, n)
        due, way = _times(self._moved(frame), n), s.way
        said, way = self._steered(codes, frame.vector, due.periodicity, way) if self.steers else (codes, None)
        y, codec = self.codec.decode(said, due.f0, due.periodicity, due.level, s.codec, self.settings.seed)
        return y, s._replace(lm=lm, way=way, codec=codec)

    def _steered(
        self, weights: Tensor, own: Tensor | None, periodicity: Tensor, way: Way | None
    ) -> tuple[Tensor, Way | None]:
        """Weights of codes of a frame -> vectors of the codec: mixed, mended, and led away from the source's own."""
        found = (self.voice.fit,) if self.voice.fit is not None and self.settings.fit else ()
        heard = () if own is None or way is None else (own, periodicity, way)
        key = "steered", weights.shape, len(found), len(heard)
        said, way = traced(self.codec.quantiser, self.steer, key, weights, found, heard, self.shares)
        return said, Way(*way) if way else None

    def _codes_of(self, t: int) -> int:
        """Code frames that unit frame t covers."""
        return self.codec.grid.codes(t + 1) - self.codec.grid.codes(t)

    def _speak(self, frame: Heard, lm: LMState, codes: int) -> tuple[Tensor, LMState]:
        c = self.settings
        return self.lm.generate(_times(self._moved(frame), codes), lm, c.seed, c.temperature, self.delay, c.guidance)

    def _moved(self, frame: Heard) -> Source:
        """A frame with its F0 moved from the source's register to the voice's."""
        return frame.source._replace(f0=frame.source.f0 * torch.exp2(self.shift - frame.own))


def _steer(books: ResidualVQ, scale: Scale | None, weights: Tensor, found: tuple, heard: tuple,
           shares: Tensor) -> tuple[Tensor, tuple]:  # fmt: skip
    """See `Engine._steered`; of tensors and tuples, for a graph."""
    said = books.decode(weights)
    fit, guidance, keep = shares.unbind()
    mended = mend(said, found[0] if found else None, fit.to(said.dtype))
    if not heard or scale is None:
        return mended, ()
    own, periodicity, way = heard
    more, way = lead(said, own, periodicity, Way(*way), scale, guidance, keep)
    return mended + more, way


def _times(source: Source, n: int) -> Source:
    """One frame of units -> n of them, one for each code frame."""
    return source if n == 1 else Source(*(x.repeat_interleave(n, dim=1) for x in source))


def _last(items: tuple, n: int) -> tuple:
    """The last n items or, while there are fewer, all."""
    return items[max(0, len(items) - n) :]
