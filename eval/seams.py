"""Clicks, seams of chunks and jumps of level: what a stream does wrong where one block ends and the next begins.

Pure functions of arrays; clips are 16 kHz.
"""

from __future__ import annotations

import numpy as np

from vivavoce.eval.metrics import NAN

MS = 16  # samples a millisecond
CLICK = 16.0  # roughness from which a millisecond is a click: one in 4 s of clean recordings reaches it
MIN_CHUNKS = 5


def roughness(wave: np.ndarray) -> np.ndarray:
    """How far the sharpest bend of each millisecond stands out from its 21 ms, [milliseconds].

    The bend is the third difference (0 on any smooth curve, large at a step or a kink), its standing-out the ratio
    of the millisecond's largest to the neighbourhood's median. The clip is brought to a peak of 0.5 first; bends
    below 1e-3 count as nothing.
    """
    x = wave.astype(np.float64)
    x = 0.5 * x / max(float(np.abs(x).max(initial=0.0)), 1e-9)
    bend = np.abs(np.diff(x, 3, prepend=x[:1].repeat(3)))
    n = len(x) // MS
    top = bend[: n * MS].reshape(n, MS).max(1, initial=0.0)
    padded = np.pad(top, 10, mode="edge")
    usual = np.median(np.lib.stride_tricks.sliding_window_view(padded, 21), axis=1) if n else top
    return top / np.maximum(usual, 1e-3)


def clicks(source: np.ndarray, converted: np.ndarray) -> float:
    """Clicks a second in the converted clip where the source, within 3 ms, has nothing half as sharp.

    Both are `roughness` [milliseconds].
    """
    if not len(converted):
        return NAN
    near = np.zeros(len(converted))
    for shift in range(-3, 4):
        at = np.arange(len(converted)) + shift
        inside = (at >= 0) & (at < len(source))
        near[inside] = np.maximum(near[inside], source[at[inside]])
    hit = (converted >= CLICK) & (near < CLICK / 2)
    return float((hit & ~np.r_[False, hit[:-1]]).sum() / (len(converted) / 1000))


def folded(rough: np.ndarray, period: float) -> float:
    """How much rougher, in dB, the roughest phase of a period of `period` ms is than the median phase."""
    phase = (np.arange(len(rough)) % period).astype(int)
    db = 20 * np.log10(np.maximum(rough, 0.1))
    count = np.bincount(phase)
    means = (np.bincount(phase, db) / np.maximum(count, 1))[count >= MIN_CHUNKS]
    return float(means.max() - np.median(means)) if len(means) else NAN


def seam(source: np.ndarray, converted: np.ndarray, period: float) -> float:
    """`folded` of the converted clip minus the source's, in dB: 0 where chunks of `period` ms leave no trace.

    Where the borders lie need not be known. NaN where a clip holds fewer than 5 chunks.
    """
    return folded(converted, period) - folded(source, period)


def level_jumps(source: np.ndarray, converted: np.ndarray, jump: float = 15.0) -> float:
    """Jumps of level a second: from one 20 ms frame to the next, the converted clip moves `jump` dB more than the
    source does within 40 ms. From frame levels in dB, each floored 50 dB below its loudest frame."""
    n = min(len(source), len(converted))
    if n < 2:
        return NAN
    a, b = (np.abs(np.diff(np.maximum(x, x.max() - 50)[:n])) for x in (source, converted))
    around = np.max(np.lib.stride_tricks.sliding_window_view(np.pad(a, 2, mode="edge"), 5), axis=1)
    return float((b > around + jump).sum() / (n * 0.02))
