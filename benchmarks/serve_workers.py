"""Why `vivavoce serve` converts in processes: what a converting thread does to the event loop, and to another stream.

    python benchmarks/serve_workers.py

Prints, for streams in threads of the server's process and for streams in worker processes of their own: the real-time
factor of a stream, and by how much the event loop came late to a timer of 2 ms (median, 99 %, worst). Both are taken in
one run, so that ratios mean something on a shared machine.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
import time

import numpy as np
import torch

import vivavoce
from vivavoce.serve.metrics import Metrics
from vivavoce.serve.pool import Pool

CHUNK = 640  # samples at 16 kHz: 40 ms


def speech(seconds: float) -> np.ndarray:
    rng, t = np.random.default_rng(0), np.arange(round(16000 * seconds)) / 16000
    tone = sum(np.sin(2 * np.pi * 130 * k * t) / k for k in range(1, 12))
    return (0.1 * tone + 0.01 * rng.standard_normal(len(t))).astype(np.float32)


async def watched(work: list[asyncio.Future[float]]) -> tuple[list[float], list[float]]:
    """Results of the work, and how late the event loop was meanwhile, ms."""
    late, waiting = [], asyncio.gather(*work)
    while not waiting.done():
        began = time.perf_counter()
        await asyncio.sleep(0.002)
        late.append(1000.0 * (time.perf_counter() - began) - 2.0)
    return list(await waiting), sorted(late)


async def threads(n: int, x: np.ndarray) -> tuple[list[float], list[float]]:
    changer = vivavoce.load()
    voice = next(iter(changer.voices))
    barrier = threading.Barrier(n)

    def convert() -> float:
        stream = changer.stream(voice, 16000, chunk=CHUNK / 16000)
        barrier.wait()
        began = time.perf_counter()
        for piece in torch.from_numpy(x).split(CHUNK):
            stream.push(piece)
        return (time.perf_counter() - began) * 16000 / len(x)

    loop = asyncio.get_running_loop()
    return await watched([loop.run_in_executor(None, convert) for _ in range(n)])


async def processes(n: int, x: np.ndarray) -> tuple[list[float], list[float]]:
    async with Pool(None, n, n, Metrics()) as pool:
        voice = pool.desk.about["voices"][0]["name"]

        async def convert(k: int) -> float:
            worker, bare = pool.live[k], {"bypass": False, "pause": False}
            await worker.ask("open", stream=k, voice=voice, rate=16000, chunk=0.04, delay=0, seed=0, transpose=0.0)
            began = time.perf_counter()
            for at in range(0, len(x), CHUNK):
                await worker.ask("push", x[at : at + CHUNK].tobytes(), stream=k, **bare)
            return (time.perf_counter() - began) * 16000 / len(x)

        return await watched([asyncio.ensure_future(convert(k)) for k in range(n)])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seconds", type=float, default=8.0, help="of audio a stream (default 8)")
    p.add_argument("--streams", type=int, default=2, help="at most (default 2)")
    args = p.parse_args()
    x = speech(args.seconds)
    for name, run in (("threads", threads), ("processes", processes)):
        for n in range(1, args.streams + 1):
            factors, late = asyncio.run(run(n, x))
            at = [late[int(q * (len(late) - 1))] for q in (0.5, 0.99, 1.0)]
            print(f"{name:9} {n} stream{'s' * (n > 1)}: real-time factor {max(factors):.2f}; event loop late by "
                  f"{at[0]:.1f} / {at[1]:.1f} / {at[2]:.1f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
