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


def f0_range(source_hz: np.ndarray, source_on: np.ndarray, converted_hz: np.ndarray,
             converted_on: np.ndarray) -> float:  # fmt: skip
    """log2 of the converted clip's F0 range over the source's: 0 kept, -1 halved, 1 doubled.

    A range is from the 5th to the 95th percentile of log F0 over the frames voiced in both. NaN where fewer than
    10 frames are, or where a range is below 0.1 semitones.
    """
    logs = _common(source_hz, source_on, converted_hz, converted_on)
    if len(logs[0]) < MIN_FRAMES:
        return NAN
    a, b = (float(np.subtract(*np.percentile(x, [95, 5]))) for x in logs)
    return float(np.log2(b / a)) if min(a, b) > 0.1 / 12 else NAN


def f1_of_frames(source: np.ndarray, converted: np.ndarray) -> float:
    """F1 of two boolean arrays; beyond its end a clip has False. NaN where neither is ever True."""
    n = max(len(source), len(converted))
    a, b = (np.pad(x.astype(bool), (0, n - len(x))) for x in (source, converted))
    total = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / total if total else NAN


def voicing_f1(source_on: np.ndarray, converted_on: np.ndarray) -> float:
    """F1 of the converted clip's voiced frames against the source's; beyond its end a clip is unvoiced."""
    return f1_of_frames(source_on, converted_on)


def runs(on: np.ndarray) -> np.ndarray:
    """[runs, 2]: first frame and one past the last of each run of True."""
    edges = np.flatnonzero(np.diff(np.r_[0, on.astype(np.int8), 0]))
    return edges.reshape(-1, 2)


def silence(level: np.ndarray, below: float = 40.0, guard: int = 3) -> np.ndarray:
    """Whether each frame is silent, [frames]: `below` dB under the clip's loudest frame or less, and at least
    `guard` frames away from any that is not (so that a window's skirts and an echo's tail do not count)."""
    loud = level > level.max(initial=-100.0) - below
    return np.convolve(loud, np.ones(2 * guard + 1), "full")[guard : guard + len(level)] < 0.5


def silence_rise(source: np.ndarray, converted: np.ndarray) -> float:
    """How much louder, in dB, the converted clip is where the source is silent; each against its own loudest
    frame. Positive: noise or voices came in. NaN where the source has fewer than 10 silent frames."""
    n = min(len(source), len(converted))
    quiet = silence(source)[:n]
    if quiet.sum() < MIN_FRAMES:
        return NAN
    depths = [10 * np.log10(np.mean(10 ** (x[:n][quiet] / 10))) - x.max() for x in (source, converted)]
    return float(depths[1] - depths[0])


def voiced_in_silence(source_silent: np.ndarray, source_on: np.ndarray,
                      converted_on: np.ndarray) -> tuple[float, int]:  # fmt: skip
    """Share of the source's silent, unvoiced frames in which the converted clip is voiced, and how many they are.

    NaN below 10 frames.
    """
    n = min(len(source_on), len(converted_on))
    quiet = source_silent[:n] & ~source_on[:n]
    return (float(converted_on[:n][quiet].mean()) if quiet.sum() >= MIN_FRAMES else NAN), int(quiet.sum())


def pauses(level: np.ndarray, below: float = 30.0, shortest: int = 10) -> np.ndarray:
    """Whether each frame lies in a pause, [frames]: a run of `shortest` frames (200 ms) or more that are `below` dB
    under the clip's loudest frame, between sounds: the edges of a clip are no pauses."""
    out = np.zeros(len(level), bool)
    for start, end in runs(level < level.max(initial=-100.0) - below):
        if start > 0 and end < len(level) and end - start >= shortest:
            out[start:end] = True
    return out


def pause_f1(source: np.ndarray, converted: np.ndarray) -> tuple[float, int]:
    """F1 of the frames in pauses, and how many both clips have; NaN where neither pauses. From frame levels in dB."""
    a, b = pauses(source), pauses(converted)
    return f1_of_frames(a, b), int(a.sum() + b.sum())


def nuclei(level: np.ndarray, dip: float = 3.0, below: float = 25.0) -> int:
    """Number of syllable-like peaks of the level in dB (after de Jong & Wempe 2009): within `below` dB of the
    loudest frame, with a dip of `dip` dB or more between one peak and the next."""
    smooth = np.convolve(np.pad(level, 1, mode="edge"), np.ones(3) / 3, "valid")
    floor = smooth.max(initial=-100.0) - below
    count, low, high, rising = 0, np.inf, -np.inf, True
    for x in np.r_[smooth, -200.0]:
        if rising:
            high = max(high, x)
            if x < high - dip:
                count += int(high > floor)
                rising, low = False, x
        else:
            low = min(low, x)
            if x > low + dip:
                rising, high = True, x
    return count


def rate_change(source: np.ndarray, converted: np.ndarray) -> float:
    """log2 of syllable-like peaks a second, converted over source: 0 kept, 1 twice as fast. From frame levels in dB.

    NaN where either has fewer than two peaks.
    """
    a, b = nuclei(source), nuclei(converted)
    return float(np.log2(b / len(converted) / (a / len(source)))) if min(a, b) >= 2 else NAN


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


def matches(source: Spans, converted: Spans, iou: float = 0.5) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Pairs of events of the same label that overlap by `iou` or more, each event in one pair at most."""
    found = []
    for label, spans in source.items():
        left = list(converted.get(label, ()))
        for a in spans:
            overlaps = [_iou(a, b) for b in left]
            if overlaps and max(overlaps) >= iou:
                found.append((a, left.pop(int(np.argmax(overlaps)))))
    return found


def event_f1(source: Spans, converted: Spans, iou: float = 0.5) -> tuple[float, int]:
    """F1 of events of the same label that overlap by `iou` or more, and the number of events in both clips.

    The mean over clips weighted by that number is the F1 of all clips pooled. NaN where there is no event.
    """
    total = sum(len(s) for s in (*source.values(), *converted.values()))
    return (2 * len(matches(source, converted, iou)) / total if total else NAN), total


def onset_error(source: Spans, converted: Spans, iou: float = 0.5) -> tuple[float, int]:
    """Mean absolute difference of the beginnings of matched events in ms, and how many they are; NaN for none."""
    pairs = matches(source, converted, iou)
    return (1000 * float(np.mean([abs(b[0] - a[0]) for a, b in pairs])) if pairs else NAN), len(pairs)


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
    picks, sums = np.random.default_rng(seed).integers(n, size=(draws, n)), weights * values
    low, high = np.percentile(sums[picks].sum(1) / weights[picks].sum(1), [2.5, 97.5])
    return {"mean": float(sums.sum() / weights.sum()), "low": float(low), "high": float(high), "n": n}


def pooled(statistic: Callable[..., float], *columns: np.ndarray, draws: int = 1000,
           seed: int = 0) -> dict[str, float | int]:  # fmt: skip
    """`statistic(*columns)` of all clips, its 95 % interval over bootstrap draws of clips, and n.

    Draws in which the statistic is NaN are left out of the interval; without draws the interval is NaN.
    """
    n = len(columns[0])
    if n == 0:
        return {"mean": NAN, "low": NAN, "high": NAN, "n": 0}
    rng = np.random.default_rng(seed)
    picks = (rng.integers(n, size=n) for _ in range(draws))
    drawn = np.array([statistic(*(c[i] for c in columns)) for i in picks])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (NAN, NAN)
    return {"mean": float(statistic(*columns)), "low": float(low), "high": float(high), "n": n}


def uar(labels: np.ndarray, said: np.ndarray) -> float:
    """Unweighted average recall: the mean, over the labels that occur, of the share that is named right."""
    if len(labels) == 0:
        return NAN
    names, index = np.unique(labels, return_inverse=True)
    right = np.bincount(index, labels == said, len(names))
    return float((right / np.bincount(index, minlength=len(names))).mean())


def grouped(keys: Sequence[str], summarise: Callable[[np.ndarray], dict]) -> dict[str, dict]:
    """`summarise(indices)` for each distinct key, in order of size."""
    array = np.asarray(keys)
    names, counts = np.unique(array, return_counts=True)
    return {str(k): summarise(np.flatnonzero(array == k)) for k in names[np.argsort(-counts, kind="stable")]}
