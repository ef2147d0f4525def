"""The live loop: what the audio callbacks and the worker do, without any device.

    hear (audio thread):   microphone block -> `heard` ring
    step (worker thread):  a chunk of `heard` -> stream -> gate -> `spoken` ring
    play (audio thread):   `spoken` -> loudspeaker block

Playback begins when `buffer` samples wait, so that a chunk may be late by that much. Two ways down when the machine
is too slow, both said aloud and both taken back: one missed deadline makes the buffer a chunk larger, for the
jitter of a busy machine; work that takes longer than the sound lasts pauses the conversion, and the original is heard.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from vivavoce.engine import Engine
from vivavoce.gate import Gate
from vivavoce.live.ring import Ring
from vivavoce.stream import Stream

RING_SECONDS = 4.0
CALM_SECONDS = 20.0  # without a missed deadline, after which a larger buffer becomes smaller again
REST_SECONDS = (3.0, 48.0)  # of a pause for overload: the first, and the longest; each doubles the one before
MAX_BUFFER_SECONDS = 0.4
BACKLOG = 4  # chunks that wait to be converted, which together with a high load mean overload


@dataclass
class Meters:
    """What the screen shows."""

    level_in: float = -100.0  # dB re full scale, of the last chunk
    level_out: float = -100.0
    work: deque[float] = field(default_factory=lambda: deque(maxlen=500))  # seconds of compute, a chunk each
    underruns: int = 0  # times that the loudspeaker found nothing to play
    lost: int = 0  # samples that found no room in a ring
    dropped: int = 0  # samples left out to catch up
    seconds: float = 0.0  # of sound converted
    gate_open: bool = True

    def percentile(self, p: float) -> float:
        """Percentile of the compute time a chunk, in ms."""
        return 1000.0 * float(np.percentile(self.work, p)) if self.work else 0.0


class Loop:
    """Live conversion between two rings.

    Args:
        stream: the conversion; from now on only `step` touches it.
        chunk: samples converted at a time.
        buffer: samples that wait before playback begins.
        voices: prepared voices to switch between, in the order of their keys.
        gate: or None.
        say: is told, in a line, whatever the user should know.
        clock: seconds; tests bring their own.
    """

    def __init__(self, stream: Stream, chunk: int, buffer: int, voices: list[Engine], gate: Gate | None = None,
                 say: Callable[[str], None] = lambda line: None,
                 clock: Callable[[], float] = time.perf_counter) -> None:  # fmt: skip
        self.stream, self.chunk, self.voices, self.gate, self.say, self.clock = stream, chunk, voices, gate, say, clock
        self.rate = stream.rate
        self.buffer = self.least = buffer
        self.most = max(buffer, round(MAX_BUFFER_SECONDS * self.rate))
        self.heard, self.spoken = (Ring(round(RING_SECONDS * self.rate) + 2 * chunk) for _ in range(2))
        self.meters = Meters()
        self.bypass = False  # by the user; an overload's pause is apart from it
        self.voice = 0
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._playing = self._missed = False  # `play`'s; whether a deadline was missed since the last step
        self._silence = 0  # zeros in a row from the microphone
        self._recent: deque[float] = deque(maxlen=8)  # seconds of work a second of sound, a chunk each
        self._calm_since = self._rest_until = 0.0
        self._rest = REST_SECONDS[0]
        self._lowest = 1 << 60  # of what waited in `spoken`, since it was last looked at
        self._looked = 0.0

    # ---- audio threads ----------------------------------------------------------------------------------

    def hear(self, mic: np.ndarray) -> None:
        """Take a microphone block [n]; never waits."""
        self.meters.lost += self.heard.write(mic)

    def play(self, out: np.ndarray) -> None:
        """Fill a loudspeaker block [n]; never waits for the worker."""
        if not self._playing and self.spoken.fill >= self.buffer + len(out):
            self._playing = True
        if not self._playing:
            out[:] = 0.0
            return
        y = self.spoken.read(len(out))
        out[: len(y)], out[len(y) :] = y, 0.0
        self._lowest = min(self._lowest, self.spoken.fill)
        if len(y) < len(out):
            self.meters.underruns += 1
            self._missed, self._playing = True, False  # wait for a full buffer again, rather than stutter

    # ---- user -------------------------------------------------------------------------------------------

    def toggle_bypass(self) -> None:
        """Original or converted; takes effect at the next step."""
        self._asked.put(self._toggle)

    def switch(self, voice: int) -> None:
        """Another voice, by its place in `voices`; takes effect at the next step."""
        self._asked.put(lambda: self._switch(voice % len(self.voices)))

    def next_voice(self, by: int = 1) -> None:
        """The voice `by` places on."""
        self._asked.put(lambda: self._switch((self.voice + by) % len(self.voices)))

    def _toggle(self) -> None:
        self.bypass = not self.bypass
        if not self.stream.paused:
            self.stream.bypass = self.bypass
        self.say("bypass: you hear the original" if self.bypass else f"voice {self.stream.voice.name}")

    def _switch(self, voice: int) -> None:
        self.stream.swap(self.voices[voice])
        self.voice = voice
        self.say(f"voice {self.stream.voice.name}")

    # ---- worker thread ----------------------------------------------------------------------------------

    @property
    def overloaded(self) -> bool:
        """Whether conversion is paused because the machine was too slow."""
        return self.stream.paused

    @property
    def load(self) -> float:
        """Seconds of work a second of sound: the median of the last chunks, so that one stall is no overload."""
        return float(np.median(self._recent)) if self._recent else 0.0

    def step(self, timeout: float = 0.1) -> bool:
        """Convert one chunk if it comes within `timeout` seconds; whether one came."""
        while not self._asked.empty():
            self._asked.get()()
        if not self.heard.wait(self.chunk, timeout):
            return False
        x = self.heard.read(self.chunk)
        began = self.clock()
        samples = torch.from_numpy(x)
        y = self.stream.push(samples)
        if self.gate is not None:
            self.gate.hear(samples)
            y = self.gate.apply(y)
            self.meters.gate_open = self.gate.open
        now = self.clock()
        self.meters.lost += self.spoken.write(y.numpy())
        self._measure(x, y.numpy(), now - began)
        self._govern(now)
        return True

    def _measure(self, x: np.ndarray, y: np.ndarray, work: float) -> None:
        m, length = self.meters, len(x) / self.rate
        m.work.append(work)
        m.seconds += length
        m.level_in = _db(x)
        m.level_out = _db(y) if len(y) else m.level_out
        if not self.stream.paused:
            self._recent.append(work / length)
        before = self._silence
        self._silence = 0 if x.any() else before + len(x)
        if before < 2 * self.rate <= self._silence:
            self.say("the microphone gives nothing but zeros: is it muted, or this program not allowed to use it?")

    def _govern(self, now: float) -> None:
        """Down when deadlines are missed, up again when they are kept."""
        missed, self._missed = self._missed, False
        if self.stream.paused:
            if now >= self._rest_until:
                self.stream.resume()
                self.stream.bypass = self.bypass
                self._recent.clear()
                self._calm_since = now
                self.say("trying to convert again")
            return
        if self.load > 0.9 and (missed or self.heard.fill >= BACKLOG * self.chunk):
            self.stream.pause()
            self._rest_until = now + self._rest
            self.say(f"OVERLOAD: this machine takes {self.load:.1f} s for a second of sound; "
                     f"you hear the original for {self._rest:.0f} s")  # fmt: skip
            self._rest = min(2 * self._rest, REST_SECONDS[1])
            self._catch_up(self.heard, self.chunk)
            return
        if missed:
            self._calm_since = now
            if self.buffer < self.most:
                self.buffer = min(self.most, self.buffer + self.chunk)
                self.say(f"a deadline was missed: playback buffer is now {self._ms(self.buffer):.0f} ms")
        elif now - self._calm_since > CALM_SECONDS:
            self._calm_since, self._rest = now, REST_SECONDS[0]
            if self.buffer > self.least:
                self.buffer = max(self.least, self.buffer - self.chunk)
                self.say(f"calm again: playback buffer is now {self._ms(self.buffer):.0f} ms")
        if now - self._looked > 2.0:  # what never was needed within 2 s is delay for nothing
            spare, self._lowest, self._looked = self._lowest, 1 << 60, now
            if self._playing and spare < 1 << 60 and spare > self.buffer + self.chunk:
                self._catch_up(self.spoken, self.spoken.fill - (spare - self.buffer))

    def _catch_up(self, ring: Ring, leave: int) -> None:
        """Leave out what a ring holds beyond `leave` samples: lateness must not become delay for ever."""
        surplus = max(0, ring.fill - leave)
        ring.read(surplus)  # before or after both stream and gate, so these stay aligned
        self.meters.dropped += surplus
        if surplus:
            self.say(f"{self._ms(surplus):.0f} ms of sound left out to catch up")

    def _ms(self, samples: float) -> float:
        return 1000.0 * samples / self.rate


def _db(x: np.ndarray) -> float:
    return 10.0 * float(np.log10(np.square(x, dtype=np.float64).mean() + 1e-10))
