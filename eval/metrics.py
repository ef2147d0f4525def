"""Numbers of a pair (source, converted): pure functions of arrays, NaN where a pair says nothing.

Pairs may differ in length; what both have is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

NAN = float("nan")
HOP, WINDOW = 320, 640  # of 16 kHz: 20 ms, 40 ms
MIN_FRAMES = 10  # fewer common frames than this make no correlation
Spans = Mapping[str, Sequence[tuple[float, float]]]  # label -> (start, end) in seconds


def levels(wave: np.ndarray) -> np.ndarray:
    """Level in dB re full scale of each 40 ms Hann window, every 20 ms, [frames]; floor -100 dB."""
    x = np.pad(wave.astype(np.float64), (HOP, HOP + -len(wave) % HOP))
    w = np.hanning(WINDOW + 1)[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(x, WINDOW)[::HOP]
    return 10 * np.log10(np.maximum((frames**2 @ w**2) / (w**2).sum(), 1e-10))


def correlation(a: np.ndarray, b: np.ndarray, least_spread: float) -> float:
    """Pearson's r; NaN below MIN_FRAMES values or where either hardly varies (standard deviation)."""
    if len(a) < MIN_FRAMES or min(a.std(), b.std()) < least_spread:
        return NAN
    return float(np.corrcoef(a, b)[0, 1])


def energy_correlation(source: np.ndarray, converted: np.ndarray) -> tuple[float, int]:
    """r of frame levels in dB over the frames within 50 dB of the source's loudest, and how many they are.

    The converted clip is floored 60 dB below its own loudest frame, so that digital silence is no outlier.
    """
    n = min(len(source), len(converted))
    source, converted = source[:n], np.maximum(converted, converted.max(initial=-100.0) - 60)[:n]
    loud = source > source.max(initial=-100.0) - 50
    return correlation(source[loud], converted[loud], 0.1), int(loud.sum())


def level_shift(source: np.ndarray, converted: np.ndarray) -> float:
    """Mean level of the converted clip minus the source's, in dB of mean power."""
    a, b = (10 * np.log10(np.mean(10 ** (x / 10))) if len(x) else NAN for x in (source, converted))
    return float(b - a)


def _common(source_hz: np.ndarray, source_on: np.ndarray, converted_hz: np.ndarray,
            converted_on: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    n = min(len(source_hz), len(converted_hz))
    both = source_on[:n] & converted_on[:n]
    return np.log2(source_hz[:n][both]), np.log2(converted_hz[:n][both])


def f0_correlation(source_hz: np.ndarray, source_on: np.ndarray, converted_hz: np.ndarray,
                   converted_on: np.ndarray) -> tuple[float, int]:  # fmt: skip
    """r of log F0 over the frames voiced in both, and how many they are; a transposed melody scores 1.

    NaN where fewer than 10 frames are, or where a voice moves by less than 0.1 semitones.
    """
    a, b = _common(source_hz, source_on, converted_hz, converted_on)
    return correlation(a, b, 0.1 / 12), len(a)


def f0_shift(source_hz: np.ndarray, source_on: np.ndarray, converted_hz: np.ndarray,
             converted_on: np.ndarray) -> float:  # fmt: skip
    """Median of converted minus source F0 over the frames voiced in both, in semitones."""
    a, b = _common(source_hz, source_on, converted_hz, converted_on)
    return float(12 * np.median(b - a)) if len(a) >= MIN_FRAMES else NAN


def voicing_f1(source_on: np.ndarray, converted_on: np.ndarray) -> float:
    """F1 of the converted clip's voiced frames against the source's; beyond its end a clip is unvoiced."""
    n = max(len(source_on), len(converted_on))
    a, b = (np.pad(x.astype(bool), (0, n - len(x))) for x in (source_on, converted_on))
    total = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / total if total else NAN


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein distance: fewest insertions, deletions and substitutions."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def error_rate(reference: Sequence[str], said: Sequence[str], least: int = 3) -> float:
    """Edit distance per symbol of the reference; NaN where it has fewer than `least`."""
    return edit_distance(reference, said) / len(reference) if len(reference) >= least else NAN


def event_f1(source: Spans, converted: Spans, iou: float = 0.5) -> tuple[float, int]:
    """F1 of events of the same label that overlap by `iou` or more, and the number of events in both clips.

    The mean over clips weighted by that number is the F1 of all clips pooled. NaN where there is no event.
    """
    hits, total = 0, sum(len(s) for s in (*source.values(), *converted.values()))
    for label, spans in source.items():
        left = list(converted.get(label, ()))
        for a in spans:
            overlaps = [_iou(a, b) for b in left]
            if overlaps and max(overlaps) >= iou:
                hits += 1
                left.pop(int(np.argmax(overlaps)))
    return (2 * hits / total if total else NAN), total


def _iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / (a[1] - a[0] + b[1] - b[0] - shared)


def bootstrap(values: np.ndarray, weights: np.ndarray | None = None, draws: int = 1000,
              seed: int = 0) -> dict[str, float | int]:  # fmt: skip
    """Mean (weighted where weights are given), 95 % bootstrap interval over clips and n; NaN is left out."""
    values = np.asarray(values, np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    known = np.isfinite(values) & (weights > 0)
    values, weights = values[known], weights[known]
    n = len(values)
    if n == 0:
        return {"mean": NAN, "low": NAN, "high": NAN, "n": 0}
    rng = np.random.default_rng(seed)
    picks = (rng.integers(n, size=n) for _ in range(draws))
    means = [np.average(values[i], weights=weights[i]) for i in picks]
    low, high = np.percentile(means, [2.5, 97.5])
    mean = np.average(values, weights=weights)
    return {"mean": float(mean), "low": float(low), "high": float(high), "n": n}


def grouped(keys: Sequence[str], summarise: Callable[[np.ndarray], dict]) -> dict[str, dict]:
    """`summarise(indices)` for each distinct key, in order of size."""
    array = np.asarray(keys)
    names, counts = np.unique(array, return_counts=True)
    return {str(k): summarise(np.flatnonzero(array == k)) for k in names[np.argsort(-counts, kind="stable")]}
