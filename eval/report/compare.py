"""Two systems on the same clips: the difference of every metric with its paired bootstrap interval.

Clips are drawn with replacement, both systems' numbers of a clip together (Efron & Tibshirani 1993, section 8;
Bisani & Ney 2004 for error rates): what makes a clip hard is then in both and cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vivavoce.eval.catalogue import CATALOGUE, Metric
from vivavoce.eval.report.study import Other, Row, Study

DRAWS = 2000
POOLED_DRAWS = 500  # of numbers that are no means: each draw is computed anew
EQUAL = 1e-6  # differences up to this are the rounding of tables
LEAST = 2  # clips below which an interval says nothing


@dataclass(frozen=True)
class Difference:
    """One metric on the clips that both systems have.

    Attributes:
        ours, theirs: means over those clips (pooled where the metric is).
        mean, low, high: ours minus theirs and its 95 % interval.
        n: clips.
        better: whether ours is; None where the interval holds zero or the metric has no good side.
    """

    metric: Metric
    ours: float
    theirs: float
    mean: float
    low: float
    high: float
    n: int
    better: bool | None


@dataclass(frozen=True)
class Comparison:
    """Another system beside ours.

    Attributes:
        clips: that both have; `only_ours`, `only_theirs` and `changed` (same name, other source) are left out.
        judges_differ: judges whose package or version is not the same; their metrics are not compared.
    """

    name: str
    clips: int
    only_ours: int
    only_theirs: int
    changed: int
    judges_differ: list[str]
    differences: list[Difference]
    rows: list[Row]


def compare(study: Study, other: Other, seed: int = 0) -> Comparison:
    """Both systems on the clips of the same id and the same source recording."""
    ours = {r["id"]: r for r in study.rungs["converted"]}
    theirs = {r["id"]: r for r in other.rows}
    shared = [k for k in ours if k in theirs]
    same = [k for k in shared if ours[k]["content"] == theirs[k].get("content", ours[k]["content"])]
    stamps = [{k: (v.get("package"), v.get("version")) for k, v in cards.items() if "absent" not in v}
              for cards in (study.summary["judges"], other.judges)]  # fmt: skip
    differ = [k for k in stamps[0] if k in stamps[1] and stamps[0][k] != stamps[1][k]]
    pairs = [(ours[k], theirs[k]) for k in same]
    found = [d for m in CATALOGUE if m.judge not in differ and (d := difference(m, pairs, seed)) is not None]
    name = other.name if other.name != study.name else f"{other.name} (the other)"
    return Comparison(name, len(same), len(ours) - len(shared), len(theirs) - len(shared),
                      len(shared) - len(same), differ, found, [theirs[k] for k in same])  # fmt: skip


def difference(metric: Metric, pairs: Sequence[tuple[Row, Row]], seed: int = 0) -> Difference | None:
    """Paired bootstrap of one metric; None where fewer than two clips have it on both sides."""
    drawn = _pooled(metric, pairs, seed) if metric.pool else _means(metric, pairs, seed)
    if drawn is None:
        return None
    (ours, theirs), draws, n = drawn
    low, high = np.percentile(draws[:, 0] - draws[:, 1], [2.5, 97.5])
    better = None
    if metric.better in ("higher", "lower") and (low > EQUAL or high < -EQUAL):
        better = bool((low > EQUAL) == (metric.better == "higher"))
    return Difference(metric, ours, theirs, ours - theirs, float(low), float(high), n, better)


Drawn = tuple[tuple[float, float], np.ndarray, int]  # both numbers, [draws, 2], clips


def _means(metric: Metric, pairs: Sequence[tuple[Row, Row]], seed: int) -> Drawn | None:
    values = _column(metric.key, pairs)
    weights = _column(metric.weight, pairs) if metric.weight else np.ones_like(values)
    known = np.isfinite(values).all(1) & (np.nan_to_num(weights) > 0).all(1)
    values, weights = values[known], weights[known]
    n = len(values)
    if n < LEAST:
        return None
    picks, sums = np.random.default_rng(seed).integers(n, size=(DRAWS, n)), weights * values
    ours, theirs = sums.sum(0) / weights.sum(0)
    return (float(ours), float(theirs)), sums[picks].sum(1) / weights[picks].sum(1), n


def _column(key: str, pairs: Sequence[tuple[Row, Row]]) -> np.ndarray:
    """[clips, 2]"""
    return np.array([[r.get(key, np.nan) for r in p] for p in pairs], np.float64).reshape(-1, 2)


def _pooled(metric: Metric, pairs: Sequence[tuple[Row, Row]], seed: int) -> Drawn | None:
    """For functions of whole columns of labels: the same clips of both systems in each draw."""
    assert metric.pool is not None
    texts = [[str(r.get(c) or "") for r in p for c in metric.columns] for p in pairs]
    texts = [t for t in texts if all(t)]
    n, width = len(texts), len(metric.columns)
    if n < LEAST:
        return None
    codes = np.unique(np.array(texts), return_inverse=True)[1].reshape(n, 2, width)
    both = [metric.pool(*codes[:, k].T) for k in (0, 1)]
    picks = np.random.default_rng(seed).integers(n, size=(POOLED_DRAWS, n))
    draws = np.array([[metric.pool(*codes[i, k].T) for k in (0, 1)] for i in picks])
    draws = draws[np.isfinite(draws).all(1)]
    return ((both[0], both[1]), draws, n) if len(draws) and np.isfinite(both).all() else None
