"""The whole chain as one recurrent step: unit frames in, as much sound of the codec out, all state in the open.

A stream computes a fixed number of frames at a time, its step, in the same shapes, whatever the caller's chunks are;
so any chunks give the same bits. Two frames take little longer than one. An int8 layer has one scale for all frames of
a step, so another step rounds otherwise.

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

from vivavoce.codec import Codec, VoiceCodec
from vivavoce.codec.rvq import ResidualVQ
from vivavoce.core.errors import ConfigError
from vivavoce.core.layers import State
from vivavoce.core.traced import eager, traced
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
            clear phonemes, where the source speaks; other sounds are not led. Autoregressive models and EnCodec are led
            away from an average voice instead, if they came with a crowd prompt; ignored by others.
        fit: share of what was fitted to the voice's reference (vivavoce.fit) that is used, 0 to 1, where the source
            speaks; other sounds, and voices without a fit, are as the language model has them.
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
    """T frames of the source: units, F0 still in its own register, that register (log2 Hz, [B, T]), how likely they are
    speech (0 to 1, [B, T]), and what the codec hears of them, [B, T, d], where guidance asks."""

    source: Source
    own: Tensor
    speech: Tensor
    vector: Tensor | None

    @property
    def frames(self) -> int:
        """How many."""
        return self.own.shape[1]

    def at(self, frames: slice) -> Heard:
        """Some of the frames."""
        vector = None if self.vector is None else self.vector[:, frames]
        return Heard(Source(*(x[:, frames] for x in self.source)), self.own[:, frames], self.speech[:, frames], vector)

    def and_then(self, more: Heard) -> Heard:
        """These frames and those that follow them."""
        source = Source(*(torch.cat(pair, dim=1) for pair in zip(self.source, more.source)))
        own, speech = torch.cat((self.own, more.own), dim=1), torch.cat((self.speech, more.speech), dim=1)
        return Heard(source, own, speech, _and_then(self.vector, more.vector))


class EarState(NamedTuple):
    """State of the half that hears; of the voice it knows the register, until the source's is known."""

    units: State
    framing: Tensor | None
    codec: State  # of the codec's encoder, where guidance asks
    level: Tensor | None  # of the last L frames, [B, L]
    vector: Tensor | None  # what the codec hears of them, [B, L, d]
    speaking: State
    register: State


class EngineState(NamedTuple):
    """State of one stream. The language model's cache is updated in place: `clone()` before keeping a snapshot."""

    taken: int  # frames so far
    ear: EarState
    queue: Heard | None  # the last d + step frames, for the model's delay, or WARM_UP, for the next voice
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
                 beside: Executor | None = None, speaking: Speaking | None = None, step: int = 1) -> None:  # fmt: skip
        """`way`: what is known of the source's own voice beforehand, as against `voice`; `beside`: where the next step
        is heard while one is spoken; `speaking`: tells speech from other sounds, without which all is speech; `step`:
        frames that are computed at once, one where the model cannot do more (see `together`)."""
        self.beside, self.speaking = beside, speaking
        self.step = step if together(codec, units, lm) else 1
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
        self.grid, self.even = codec.grid, codec.grid.ratio == 1  # a code frame a unit frame
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
            self._prompt = self.lm.start(self.voice.source(), self.voice.codes[None].long(), crowd, self.step)
        return self._prompt.clone()

    def start(self) -> EngineState:
        """A fresh stream."""
        codec = self.codec.begin(self.voice.codes[None, :, : self.lm.config.n_codebooks].long())
        return EngineState(0, EarState(*[None] * 7), None, self.prompted(), self.way, codec)

    @torch.inference_mode()
    def take_over(self, s: EngineState) -> EngineState:
        """Go on with another voice's stream (same models, delay and look-ahead).

        Source side and codec go on, so no seam can be. The language model's
        cache is full of the old voice, and with it the new one would go on imitating; it is thrown away. In
        its place the new voice says the last `WARM_UP` frames once more, unheard.
        """
        lm, said = self.prompted(), self._due(s.taken)
        if s.queue is not None and said:
            again = min(said, WARM_UP)
            with eager(again % self.step > 0):  # not whole steps
                _, lm = self._speak(s.queue.at(slice(s.queue.frames - again, None)), lm, said - again)
        return s._replace(lm=lm, way=self.way)

    def _due(self, taken: int) -> int:
        """Frames that were to be said by the time that so many were taken."""
        return max(0, taken - self.lookahead - self.delay)

    @torch.inference_mode()
    def __call__(self, x: Tensor, state: EngineState) -> tuple[Tensor, EngineState]:
        """Waveform [B, T * hop] -> waveform at the codec's rate, as long to within a tick of the grid, `lag` frames
        late (zeros of `out_hop` samples a frame before)."""
        out, steps = [x[:, :0]], x.split(self.step * self.hop, dim=1) if x.shape[1] else ()
        for part, (heard, ear) in zip(steps, self._listen(steps, state.ear)):
            y, state = self._answer(part, heard, state._replace(ear=ear))
            out.append(y)
        return torch.cat(out, dim=1), state

    def _listen(self, steps: tuple[Tensor, ...], ear: EarState) -> Iterator[tuple[Heard | None, EarState]]:
        """Steps [B, T * hop] -> what is heard, one after another; if there is somebody `beside`, one ahead of use."""
        if self.beside is None or len(steps) < 2:
            for x in steps:
                heard, ear = self._hear(x, ear)
                yield heard, ear
            return
        context = contextvars.copy_context()  # whether to trace
        due = self.beside.submit(context.run, self._hear, steps[0], ear)
        for following in (*steps[1:], None):
            heard, ear = due.result()
            if following is not None:
                due = self.beside.submit(context.run, self._hear, following, ear)
            yield heard, ear

    @torch.inference_mode()
    def _hear(self, x: Tensor, s: EarState) -> tuple[Heard | None, EarState]:
        """A step [B, T * hop]; nothing is heard of a stream's first `lookahead` frames."""
        with eager(x.shape[1] != self.step * self.hop):
            frames, framing = self.codec.framing(x, s.framing)
            if self.scale:
                (now, level), codec = self.codec.hear(frames, s.codec)  # type: ignore[operator]
            else:
                now, level, codec = None, self.codec.level(frames), None
            h, units = self.units(x, s.units)
        level, vector = _and_then(s.level, level), _and_then(s.vector, now)
        assert level is not None
        n = max(0, level.shape[1] - self.lookahead)  # frames that both the units and the codec have heard
        later = level[:, n:], None if vector is None else vector[:, n:]
        s = EarState(units, framing, codec, *later, s.speaking, s.register)
        if not n:
            return None, s
        content, expression, f0, periodicity = (u[:, -n:] for u in h)
        with eager(n != self.step):
            key, due = ("rounded", *f0.shape), (f0, periodicity, level[:, :n])
            f0, periodicity, level = traced(self.codec.framing, prosody.rounded, key, *due)
        odds, speaking = torch.full_like(periodicity, math.inf), None
        if self.speaking is not None:
            odds, speaking = self.speaking(content, periodicity, s.speaking)
        own, register = self.register(f0, periodicity, odds > 0, s.register)
        source, vector = Source(content, expression, f0, periodicity, level), None if vector is None else vector[:, :n]
        return Heard(source, own, odds.sigmoid(), vector), s._replace(speaking=speaking, register=register)

    def _answer(self, x: Tensor, heard: Heard | None, s: EngineState) -> tuple[Tensor, EngineState]:
        """What is to be said once a step [B, T * hop] was taken, and something heard: zeros while nothing is due."""
        taken = x.shape[1] // self.hop
        before, s = self._due(s.taken), s._replace(taken=s.taken + taken)
        n = self._due(s.taken) - before
        if heard is not None:
            queue = heard if s.queue is None else s.queue.and_then(heard)
            s = s._replace(queue=queue.at(slice(-max(self.delay + self.step, WARM_UP), None)))
        if heard is None or s.queue is None or not n:
            return x.new_zeros(x.shape[0], taken * self.out_hop), s
        with eager(n != self.step):
            codes, lm = self._speak(heard.at(slice(heard.frames - n, None)), s.lm, before)
            last = s.queue.frames - self.delay
            frames = s.queue.at(slice(last - n, last))
            due, way = self._spread(self._moved(frames), before), s.way
            said, way = self._steered(codes, frames, due.periodicity, way) if self.steers else (codes, None)
            y, codec = self.codec.decode(said, due.f0, due.periodicity, due.level, s.codec, self.settings.seed)
        y = torch.nn.functional.pad(y, ((taken - n) * self.out_hop, 0))
        return y, s._replace(lm=lm, way=way, codec=codec)

    def _steered(self, weights: Tensor, frames: Heard, periodicity: Tensor,
                 way: Way | None) -> tuple[Tensor, Way | None]:  # fmt: skip
        """Weights of codes of T frames -> vectors of the codec: mixed, mended, and led away from the source's own."""
        found = (self.voice.fit,) if self.voice.fit is not None and self.settings.fit else ()
        heard = () if frames.vector is None or way is None else (frames.vector, periodicity, way)
        key = "steered", weights.shape, len(found), len(heard)
        said, way = traced(self.codec.quantiser, self.steer, key, weights, frames.speech, found, heard, self.shares)
        return said, Way(*way) if way else None

    def _speak(self, frames: Heard, lm: LMState, first: int) -> tuple[Tensor, LMState]:
        c, source = self.settings, self._spread(self._moved(frames), first)
        return self.lm.generate(source, lm, c.seed, c.temperature, self.delay, c.guidance)

    def _moved(self, frames: Heard) -> Source:
        """Frames with their F0 moved from the source's register to the voice's."""
        return frames.source._replace(f0=frames.source.f0 * torch.exp2(self.shift - frames.own))

    def _spread(self, source: Source, first: int) -> Source:
        """Unit frames, the first of which is said as frame `first` -> as many code frames as they cover."""
        if self.even:
            return source
        edges = self.grid.codes(torch.arange(first, first + source.content.shape[1] + 1))
        return Source(*(x.repeat_interleave(edges.diff(), dim=1) for x in source))


def together(codec: VoiceCodec, units: UnitEncoder | HubertUnits, lm: VoiceLM) -> bool:
    """Whether several frames can be computed at once: codes are on the units' grid, and none waits for another."""
    return isinstance(codec, Codec) and isinstance(units, UnitEncoder) and not lm.config.autoregressive


def _steer(books: ResidualVQ, scale: Scale | None, weights: Tensor, speech: Tensor, found: tuple, heard: tuple,
           shares: Tensor) -> tuple[Tensor, tuple]:  # fmt: skip
    """See `Engine._steered`; of tensors and tuples, for a graph."""
    said = books.decode(weights)
    fit, guidance, keep = shares.unbind()
    mended = mend(said, found[0] if found else None, (fit * speech[..., None]).to(said.dtype))
    if not heard or scale is None:
        return mended, ()
    (own, periodicity, way), led = heard, []
    for x, y, p, g in zip(*(a.split(1, dim=1) for a in (said, own, periodicity, guidance * speech[..., None]))):
        more, way = lead(x, y, p, Way(*way), scale, g, keep)
        led.append(more)
    return mended + torch.cat(led, dim=1), way


def _and_then(frames: Tensor | None, more: Tensor | None) -> Tensor | None:
    """[B, T, ...] and what follows, where there is any."""
    return more if frames is None or more is None else torch.cat((frames, more), dim=1)
