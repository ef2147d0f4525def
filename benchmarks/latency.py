"""Compute time of a live stream, chunk by chunk.

    python benchmarks/latency.py [FILE] [--chunk 40] [--seconds 60]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from vivavoce.changer import load
from vivavoce.core.audio import load as load_audio

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("file", nargs="?", type=Path, default=Path(__file__).parent.parent / "samples" / "speech-low.flac")
p.add_argument("--chunk", type=float, default=40.0, help="ms")
p.add_argument("--seconds", type=float, default=60.0)
a = p.parse_args()
changer = load()
x, rate = load_audio(a.file)
stream = changer.stream("chiara", rate)
size = int(rate * a.chunk / 1000)
x = x.repeat(int(a.seconds * rate / len(x)) + 1)[: int(a.seconds * rate)]
times = []
for chunk in x.split(size):
    began = time.perf_counter()
    stream.push(chunk)
    times.append(1000 * (time.perf_counter() - began))
p50, p95, p99 = np.percentile(times[5:], (50, 95, 99))
wait = a.chunk - stream.latency.frame  # a chunk's first frame waits for its last
print(f"chunk {a.chunk:.0f} ms: compute p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms; real-time factor "
      f"{sum(times) / 1000 / a.seconds:.2f}; algorithmic {stream.latency.total:.0f} ms + chunk {max(0, wait):.0f} ms; "
      f"with p95 {stream.latency.total + max(0, wait) + p95:.0f} ms")  # fmt: skip
