"""Alignment by dynamic time warping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vivavoce.core.align import distances, dtw, warp


def cheapest(cost: np.ndarray, penalty: float) -> float:
    """By trying every path."""
    n, m = cost.shape

    def from_(i: int, j: int) -> float:
        if (i, j) == (n - 1, m - 1):
            return 0.0
        ways = []
        for a, b in ((i + 1, j + 1), (i + 1, j), (i, j + 1)):
            if a < n and b < m:
                ways.append(cost[a, b] + penalty * ((a, b) != (i + 1, j + 1)) + from_(a, b))
        return min(ways)

    return cost[0, 0] + from_(0, 0)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000), st.sampled_from((0.0, 0.3)))
def test_dtw_is_the_cheapest_path(n: int, m: int, seed: int, penalty: float) -> None:
    cost = np.random.default_rng(seed).uniform(0, 1, (n, m))
    path, mean = dtw(cost, penalty)
    steps = np.diff(path, axis=0)
    assert tuple(path[0]) == (0, 0) and tuple(path[-1]) == (n - 1, m - 1)
    assert {tuple(s) for s in steps} <= {(1, 1), (1, 0), (0, 1)}
    spent = cost[path[:, 0], path[:, 1]].sum() + penalty * (steps.sum(1) == 1).sum()
    assert spent == pytest.approx(cheapest(cost, penalty)) == pytest.approx(mean * len(path))


def test_dtw_finds_a_known_warp() -> None:
    rng = np.random.default_rng(0)
    a = np.cumsum(rng.normal(size=(120, 8)), axis=0)
    true = np.sort(np.concatenate((np.arange(120), rng.integers(0, 120, 60))))  # b lingers, and skips nothing
    index = warp(dtw(distances(a, a[true] + 0.01 * rng.normal(size=(180, 8))))[0])
    assert np.abs(index - true).max() <= 1 and (np.diff(index) >= 0).all() and (index == true).mean() > 0.9


def test_dtw_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="nothing to align"):
        dtw(np.zeros((0, 3)))
