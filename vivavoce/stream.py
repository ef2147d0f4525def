"""Push/pull conversion at any sample rate and chunk size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vivavoce.core.errors import AudioError
from vivavoce.core.resample import Resampler
from vivavoce.engine import Engine, EngineState
from vivavoce.voice import Voice

KNEE = 0.9  # amplitude above which the limiter bends
FADE_SECONDS = 0.01  # between the converted and the original signal, where a bypass begins or ends


@dataclass(frozen=True)
class Latency:
    """Algorithmic delay of a stream in milliseconds, item by item. Compute and devices come on top."""

    chunk: float  # the first sample of a chunk waits for the last; 0 where the chunk was not named
    frame: float  # what is left of a chunk, or comes in smaller chunks, waits until its frame of 20 ms is whole
    look_ahead: float  # of the units
    delay: float  # of the language model
    overlap: float  # of the codec's synthesis
    resampling: float  # both ways

    @property
    def total(self) -> float:
        """The sum: from a sample going in to the same instant coming out, at worst."""
        return self.chunk + self.frame + self.look_ahead + self.delay + self.overlap + self.resampling


def limit(x: Tensor) -> Tensor:
    """Keep peaks below 1 by a smooth, memoryless knee at `KNEE`; nothing changes below it."""
    over = x.abs() > KNEE
    bent = KNEE + (1.0 - KNEE) * torch.tanh((x.abs() - KNEE) / (1.0 - KNEE))
    return torch.where(over, x.sign() * bent, x)


class StreamState(NamedTuple):
    """All that a stream remembers."""

    engine: Engine
    state: EngineState
    down: Any  # resampler states
    up: Any
    rest: Tensor  # [1, n], 16 kHz samples that wait for their frame to be whole
    dry: Tensor  # [n], samples taken and not yet given back
    skip: int  # 16 kHz samples of the chain's lag that are still to be dropped
    frames: int  # that went into the chain, or past it in a pause
    taken: int
    given: int
    bypass: bool = False
    wet: int = 0  # place in the fade: 0 all original, the last all converted
    wet_from: int = 0  # output sample before which nothing converted is there: after a pause
    block: int = 1  # frames of the next step: all are as long, but for the first
    awake: int | None = None  # frames until the chain rests; None while it works
    open: bool = True


class Stream:
    """One live conversion: `push` samples, get what is ready; `flush` for the tail.

    Over a whole stream exactly as many samples come out as went in, aligned with the input. Any chunking
    gives the same output, bit for bit, as the engine takes its step of frames at a time; `swap`, `bypass`, `pause` and
    `resume` act at the sample where they are called.

    Args:
        engine: the chain for one voice.
        rate: sample rate in Hz of what goes in and comes out.
        chunk: seconds that will be pushed at a time: `latency` asks, and where the first step ends.
        find: makes a Voice of what `swap` is given; without it, `swap` takes a Voice.
    """

    def __init__(self, engine: Engine, rate: int, chunk: float | None = None,
                 find: Callable[[str | Path | Voice], Voice] | None = None) -> None:  # fmt: skip
        self.rate, self.chunk, self._find = rate, chunk, find
        self._down, self._up = Resampler(rate, engine.rate), Resampler(engine.out_rate, rate)
        self._fade = round(FADE_SECONDS * rate)
        self._gains = (1.0 - torch.cos(torch.linspace(0.0, math.pi, self._fade + 1))) / 2.0
        self._begin(engine)

    def _begin(self, e: Engine) -> None:
        self._s = StreamState(e, e.start(), None, None, torch.zeros(1, 0), torch.zeros(0), e.lag * e.out_hop,
                              0, 0, 0, wet=self._fade, block=self._first(e) or e.step)  # fmt: skip

    def reset(self) -> None:
        """Back to the beginning of a stream, with the present voice and without a bypass."""
        self._begin(self.engine)

    def warm_up(self) -> None:
        """Convert half a second of nothing and forget it: the first frames of a process are slow."""
        before = self.snapshot()
        self.push(torch.zeros(self.rate // 2))
        self.restore(before)

    # ---- what it is -----------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The chain that works now."""
        return self._s.engine

    @property
    def latency(self) -> Latency:
        """Algorithmic latency, itemised: what a sample waits at worst until its like comes out."""
        e = self.engine
        hop = Fraction(e.hop, e.rate)
        reach = Fraction(self._down.lookahead, self.rate) + Fraction(self._up.lookahead, e.out_rate)
        items = self._chunk, self._waits(e, self._first(e)), e.lookahead * hop, e.delay * hop, e.codec.late * hop, reach
        return Latency(*(1000.0 * float(x) for x in items))

    @property
    def _chunk(self) -> Fraction:
        """Seconds; 0 where it was not named."""
        return Fraction(max(1, round(self.chunk * self.rate)) if self.chunk else 0, self.rate)

    def _waits(self, e: Engine, first: int) -> Fraction:
        """Seconds that what has arrived waits at most until its step is whole, if `first` frames precede whole steps.
        After k chunks k * chunk less the resampler's reach has arrived: the largest remainder for any k."""
        hop, down = Fraction(e.hop, e.rate), Fraction(self._down.lookahead, self.rate)
        if not self._chunk:
            return e.step * hop
        common = _gcd(self._chunk, e.step * hop)
        return e.step * hop - common + -(down + first * hop) % common

    def _first(self, e: Engine) -> int:
        """Frames before the first whole step, so that what waits is least."""
        return min(range(e.step), key=lambda first: self._waits(e, first))

    @property
    def resamplers(self) -> tuple[Resampler, Resampler]:
        """To the model's rate, and back."""
        return self._down, self._up

    @property
    def voice(self) -> Voice:
        """The voice that is spoken now."""
        return self.engine.voice

    # ---- push and pull --------------------------------------------------------------------------------

    def push(self, samples: Tensor) -> Tensor:
        """Take any number of mono samples [n] in [-1, 1]; return those that are ready, [m].

        Raises:
            AudioError: NaN or infinite samples (nothing is taken), a wrong shape, or a flushed stream.
        """
        self._check_open()
        x = torch.as_tensor(samples, dtype=torch.float32)
        if x.ndim != 1:
            raise AudioError(f"push takes mono samples of shape [n], got {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            raise AudioError("NaN or infinite samples in the stream")
        s = self._s
        self._s = s._replace(taken=s.taken + len(x), dry=torch.cat((s.dry, x)))
        return self._give(self._advance(x[None], last=False))

    def flush(self) -> Tensor:
        """End the stream and return its tail, so that output and input are equally long."""
        if not self._s.open:
            return torch.zeros(0)
        self._s = self._s._replace(open=False)
        y, owed = self._advance(torch.zeros(1, 0), last=True), self._s.taken - self._s.given
        return self._give(torch.nn.functional.pad(y[:owed], (0, max(0, owed - len(y)))))

    def _check_open(self) -> None:
        if not self._s.open:
            raise AudioError("the stream was flushed; call reset() to begin another")

    @torch.inference_mode()
    def _advance(self, x: Tensor, last: bool) -> Tensor:
        """Input [1, n] through the whole chain -> converted samples [m] at the stream's rate."""
        s, hop = self._s, self.engine.hop
        x, down = self._down(x, s.down, last=last)
        x = torch.cat((s.rest, x), dim=1)
        if last:
            whole = self._whole(math.ceil(x.shape[1] / hop) + self.engine.lag, up=True)
            x = torch.nn.functional.pad(x, (0, whole * hop - x.shape[1]))
        frames = self._whole(x.shape[1] // hop)
        rest, heard = x[:, frames * hop :], frames if s.awake is None else min(frames, s.awake)
        first = min(heard, s.block if s.block < self.engine.step else 0)
        out, state = [], s.state
        for part in (x[:, : first * hop], x[:, first * hop : heard * hop]):
            y, state = self.engine(part, state)
            out.append(y)
        y = torch.nn.functional.pad(torch.cat(out, dim=1), (0, (frames - heard) * self.engine.out_hop))
        drop = min(s.skip, y.shape[1])
        y, up = self._up(limit(y[:, drop:]), s.up, last=last)
        self._s = s._replace(state=state, down=down, up=up, rest=rest, skip=s.skip - drop, frames=s.frames + frames,
                             awake=None if s.awake is None else s.awake - heard,
                             block=self.engine.step if frames else s.block)  # fmt: skip
        return y[0].clamp(-1.0, 1.0)

    def _whole(self, frames: int, up: bool = False) -> int:
        """So many frames, down (or up) to whole steps."""
        first, step = self._s.block, self.engine.step
        if frames < first:
            return first if up else 0
        return first + (-(-(frames - first) // step) if up else (frames - first) // step) * step

    def _give(self, y: Tensor) -> Tensor:
        """Converted samples [m] -> what is given back: these, the original ones, or a fade between."""
        s, m = self._s, len(y)
        y = y.clone()  # an ordinary tensor: those made in inference mode refuse in-place work
        if s.bypass or s.wet < self._fade:
            step = torch.arange(m) + s.given - max(s.given, s.wet_from)
            place = s.wet - 1 - torch.arange(m) if s.bypass else s.wet + (step + 1).clamp_min(0)
            place = place.clamp(0, self._fade)
            gain = self._gains[place]
            y = gain * y + (1.0 - gain) * s.dry[:m].clamp(-1.0, 1.0)
            s = s._replace(wet=int(place[-1]) if m else s.wet)
        self._s = s._replace(given=s.given + m, dry=s.dry[m:])
        return y

    # ---- another voice, no voice ----------------------------------------------------------------------

    def prepare(self, voice: str | Path | Voice) -> Engine:
        """Read a voice's prompt beforehand, in any thread: `swap(stream.prepare(voice))` then only swaps.

        Raises:
            VivavoceError: an unknown voice, or one of another model.
        """
        engine = self.engine.to(self._find(voice) if self._find else voice)  # type: ignore[arg-type]
        engine.prompted()
        return engine

    def swap(self, voice: str | Path | Voice | Engine) -> None:
        """Speak in another voice from the next frame on: no seam, no sample lost or added.

        Args:
            voice: whatever `Changer.voice` takes, or what `prepare` returned.

        Raises:
            VivavoceError: an unknown voice, or one of another model (the old one is then kept); a flushed stream.
        """
        self._check_open()
        engine = voice if isinstance(voice, Engine) else self.prepare(voice)
        state = engine.take_over(self._s.state) if self._s.awake != 0 else self._s.state
        self._s = self._s._replace(engine=engine, state=state)

    @property
    def bypass(self) -> bool:
        """Whether the original is heard: delayed like the converted signal, so that A/B stays aligned in time.

        Setting it fades over 10 ms. Conversion goes on underneath; `pause` stops that too.
        """
        return self._s.bypass

    @bypass.setter
    def bypass(self, on: bool) -> None:
        self._check_open()
        s = self._s._replace(bypass=bool(on))
        if not s.given:  # nothing to fade from
            s = s._replace(wet=0 if on else self._fade)
        self._s = s if on else self._awake(s)

    @property
    def wet(self) -> float:
        """How much of the last sample given back was converted: 0 the original, 1 the conversion, a fade between."""
        s = self._s
        return 0.0 if s.wet_from > s.given else s.wet / self._fade

    @property
    def paused(self) -> bool:
        """Whether the chain rests; see `pause`."""
        return self._s.awake is not None

    def pause(self) -> None:
        """Bypass and, once the fade is over, compute nothing: for a machine that cannot keep up."""
        self.bypass = True
        if self._s.awake is None:
            self._s = self._s._replace(awake=self._s.block)

    def resume(self) -> None:
        """End a pause or bypass. After a pause the chain begins anew (what is known of the source is kept), and the
        original is heard until the first converted samples have come through."""
        self.bypass = False

    def _awake(self, s: StreamState) -> StreamState:
        if s.awake != 0:  # it worked all the time
            return s._replace(awake=None)
        e = s.engine
        first = math.ceil(Fraction(s.frames * e.hop * self.rate, e.rate))
        state = e.start()._replace(way=s.state.way)
        state = state._replace(ear=state.ear._replace(register=s.state.ear.register))
        return s._replace(state=state, awake=None, wet=0, wet_from=first)

    # ---- snapshots ------------------------------------------------------------------------------------

    def snapshot(self) -> StreamState:
        """The present state, to go back to: what follows a `restore` is the same, bit for bit."""
        return self._s._replace(state=self._s.state.clone())

    def restore(self, snapshot: StreamState) -> None:
        """Go back to a snapshot, voice included. It can be restored any number of times, also in another stream of
        the same changer and rate."""
        self._s = snapshot._replace(state=snapshot.state.clone())


def _gcd(a: Fraction, b: Fraction) -> Fraction:
    d = math.lcm(a.denominator, b.denominator)
    return Fraction(math.gcd(int(a * d), int(b * d)), d)
