"""A file fed through a stream at the pace of a microphone: would it have been in time?"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from vivavoce.convert import Job
from vivavoce.core.audio import mono_blocks
from vivavoce.stream import Stream


@dataclass
class Lateness:
    """How late chunks were ready. A chunk is due when its last sample has been captured.

    Attributes:
        chunk, buffer: seconds; a chunk later than the buffer is an underrun: the loudspeaker has run dry.
        late: seconds after it was due that each chunk was ready.
    """

    chunk: float
    buffer: float
    late: list[float] = field(default_factory=list)

    @property
    def underruns(self) -> int:
        """Chunks that came later than the playback buffer lasts."""
        return sum(s > self.buffer for s in self.late)

    def __str__(self) -> str:
        p50, p95, p99, worst = 1000.0 * np.percentile(self.late, (50, 95, 99, 100))
        return (f"{len(self.late)} chunks of {1000 * self.chunk:.0f} ms, ready p50 {p50:.1f}, p95 {p95:.1f}, "
                f"p99 {p99:.1f}, worst {worst:.1f} ms after their last sample; {self.underruns} underruns "
                f"with a playback buffer of {1000 * self.buffer:.0f} ms")  # fmt: skip


@dataclass(frozen=True)
class SimulatedJob(Job):
    """A job whose chunks arrive at the pace of a microphone.

    Attributes:
        lateness: filled in on the way.
        speed: of the clock; 2 captures twice as fast.
    """

    lateness: Lateness = field(default_factory=lambda: Lateness(0.04, 0.04))
    speed: float = 1.0

    def blocks(self, source: Path) -> Iterator[Tensor]:
        """The output of a plain conversion, in chunks of `lateness.chunk` seconds, each in its time; but for rounding,
        as steps are shorter."""
        stream = self.changer.open(source, self.voice, self.settings, self.scan, self.lateness.chunk)
        stream.warm_up()
        return paced(stream, source, self.lateness, self.speed)


def paced(stream: Stream, path: str | Path, lateness: Lateness, speed: float = 1.0,
          clock: Callable[[], float] = time.perf_counter,
          sleep: Callable[[float], None] = time.sleep) -> Iterator[Tensor]:  # fmt: skip
    """Convert a file chunk by chunk, each no sooner than it would have been captured; yields what comes out.

    Nothing is ever dropped: a chunk that is late makes the next one late, as with a ring buffer that is long enough,
    and the output is the same as if it were in time.

    Args:
        lateness: filled in on the way.
        speed: of the clock; 2 captures twice as fast.
    """
    start, taken = clock(), 0
    for block in mono_blocks(path, lateness.chunk):
        taken += len(block)
        due = start + taken / stream.rate / speed
        wait = due - clock()
        if wait > 0:
            sleep(wait)
        y = stream.push(block)
        lateness.late.append(clock() - due)
        yield y
    yield stream.flush()


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other programs that want the processor: so many processes that only count, while the block runs."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for p in others:
            p.kill()
            p.wait()
