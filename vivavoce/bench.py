"""What a live stream costs on this machine: latency budget, real-time factor by stage, memory."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.changer import Changer
from vivavoce.core.cores import cores
from vivavoce.engine import Settings
from vivavoce.stream import Latency, Stream
from vivavoce.voice import Voice

WARM_UP = 10  # chunks that are not counted
STAGES = ("units", "lm", "codec", "resampling", "rest")


@dataclass(frozen=True)
class Measured:
    """Live conversion at one chunk size.

    Attributes:
        chunk_ms: length of a chunk.
        seconds: of sound converted.
        latency: algorithmic, itemised, in ms.
        p50, p95, p99, worst: compute time of a chunk, in ms.
        over: share of chunks that took longer than they last.
        uneven: p99 over p50 of a fixed piece of plain Python, run after each chunk: what the machine itself brings.
        factor: real-time factor of the whole chain: seconds of work a second of sound.
        stages: the same for each stage; they add up to `factor`: what is done side by side is taken off "rest".
        memory_mb: resident memory when the measurement began (after the warm-up), and what it grew by.
    """

    chunk_ms: float
    seconds: float
    latency: Latency
    p50: float
    p95: float
    p99: float
    worst: float
    over: float
    uneven: float
    factor: float
    stages: dict[str, float]
    memory_mb: tuple[float, float]

    @property
    def total_ms(self) -> float:
        """Algorithmic latency and p95 of compute: from mouth to playback buffer."""
        return self.latency.total + self.p95


def measure(changer: Changer, voice: str | Path | Voice, x: Tensor, rate: int, chunk: float, seconds: float,
            settings: Settings | None = None, paced: bool = False,
            progress: Callable[[float], Any] = lambda seconds: None) -> Measured:  # fmt: skip
    """Push `seconds` of a recording, over and over, through a stream, chunk by chunk.

    Args:
        x, rate: mono samples [n] at `rate` Hz, which is the stream's rate as well.
        chunk: seconds.
        paced: wait for each chunk as a microphone does, instead of pushing at full speed. A processor that sleeps
            between chunks wakes up cold.
        progress: told the seconds done, chunk by chunk.
    """
    stream = changer.stream(voice, rate, settings, chunk=chunk)
    size = max(1, round(chunk * rate))
    chunks, count = _endless(x, size), max(1, round(seconds * rate / size))
    for _ in range(WARM_UP):
        stream.push(next(chunks))
    times, control = np.zeros(count), np.zeros(count)
    before = resident_mb()
    with stopwatch(stream) as spent:
        start = time.perf_counter()
        for i in range(count):
            if paced:
                time.sleep(max(0.0, start + i * size / rate - time.perf_counter()))
            part = next(chunks)
            began = time.perf_counter()
            stream.push(part)
            times[i] = time.perf_counter() - began
            control[i] = _count()
            progress(size / rate)
    length = count * size / rate
    spent["rest"] = times.sum() - sum(spent.values())
    p50, p95, p99 = (1000.0 * np.percentile(times, (50, 95, 99))).tolist()
    uneven = float(np.percentile(control, 99) / np.median(control))
    return Measured(1000.0 * size / rate, length, stream.latency, p50, p95, p99, 1000.0 * float(times.max()),
                    float((times > size / rate).mean()), uneven, float(times.sum()) / length,
                    {k: float(spent[k]) / length for k in STAGES}, (before, resident_mb() - before))  # fmt: skip


def _count() -> float:
    """Seconds that some 1 ms of counting took."""
    began, total = time.perf_counter(), 0
    for i in range(20_000):
        total += i
    return time.perf_counter() - began


def _endless(x: Tensor, size: int) -> Iterator[Tensor]:
    """Chunks of a recording that begins anew where it ends."""
    at = 0
    while True:
        yield x[torch.arange(at, at + size) % len(x)]
        at = (at + size) % len(x)


@contextlib.contextmanager
def stopwatch(stream: Stream) -> Iterator[dict[str, float]]:
    """Seconds spent in each stage of a stream, while the block runs."""
    e, spent = stream.engine, dict.fromkeys(STAGES, 0.0)
    watched: list[tuple[Any, str, str]] = [
        (e.units, "forward", "units"), (e.lm, "generate", "lm"),
        (e.codec.framing, "forward", "codec"), (e.codec, "decode", "codec"),
        *((e.codec, n, "codec") for n in ("hear", "level") if hasattr(e.codec, n)),
        *((r, "forward", "resampling") for r in stream.resamplers)]  # fmt: skip
    stacks: dict[int, list[float]] = {}  # of threads: seconds in watched calls within the one that runs count once

    def timed(call: Callable, stage: str) -> Callable:
        def run(*args: Any, **kw: Any) -> Any:
            began, inside = time.perf_counter(), stacks.setdefault(threading.get_ident(), [0.0])
            inside.append(0.0)
            try:
                return call(*args, **kw)
            finally:
                took = time.perf_counter() - began
                spent[stage] += took - inside.pop()
                inside[-1] += took

        return run

    for owner, name, stage in watched:
        setattr(owner, name, timed(getattr(owner, name), stage))  # hides the class's own
    try:
        yield spent
    finally:
        for owner, name, _ in watched:
            delattr(owner, name)


def resident_mb() -> float:
    """Resident memory of this process in MB; its peak, where the system does not tell the present."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1e6 if sys.platform == "darwin" else 1e3)


def machine() -> dict[str, Any]:
    """Where this runs: processor, cores, threads in use, PyTorch, system."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {"processor": name, "cores": cores(), "threads": torch.get_num_threads(), "load_before": load,
            "torch": torch.__version__, "python": platform.python_version(), "system": platform.platform()}  # fmt: skip
