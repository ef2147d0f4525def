"""Dynamic time warping: which instant of one recording is which instant of another."""

from __future__ import annotations

import numpy as np

DIAGONAL, DOWN, RIGHT = 0, 1, 2  # the step that led into a cell: both advance, only a, only b


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine distance (0 to 2) of all rows of a [N, D] and b [M, D]: [N, M]. Rows of zeros are 1 from all else."""
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (a, b))
    return 1.0 - a @ b.T


def dtw(cost: np.ndarray, penalty: float = 0.0) -> tuple[np.ndarray, float]:
    """The cheapest monotone path through `cost` [N, M] from corner to corner (Sakoe & Chiba 1978).

    Steps are (1, 1), (1, 0) and (0, 1), each of which pays the cell that it enters; a step that is not diagonal
    pays `penalty` beside. Anti-diagonals are done at once, so that time is O(N + M) calls of NumPy.

    Returns:
        path [L, 2] of indices (i, j), and its cost a cell.

    Raises:
        ValueError: an empty axis.
    """
    n, m = cost.shape
    if not n or not m:
        raise ValueError(f"nothing to align: the cost matrix is {n} x {m}")
    steps = np.zeros((n, m), np.uint8)
    rows = np.arange(n)
    # total[i + 1] is the best cost of cell (i, d - i): of the anti-diagonal d - 2, then of d - 1
    before, last = np.full(n + 1, np.inf), np.full(n + 1, np.inf)
    before[0] = 0.0  # only cell (0, 0) may start
    for d in range(n + m - 1):
        i = rows[max(0, d - m + 1) : min(n, d + 1)]
        choices = np.stack((before[i], last[i] + penalty, last[i + 1] + penalty))
        step = choices.argmin(0)
        steps[i, d - i] = step
        total = np.full(n + 1, np.inf)
        total[i + 1] = cost[i, d - i] + choices.min(0)
        before, last = last, total
    path = [(n - 1, m - 1)]
    while path[-1] != (0, 0):
        i, j = path[-1]
        step = steps[i, j]
        path.append((i - (step != RIGHT), j - (step != DOWN)))
    return np.array(path[::-1]), float(last[n]) / len(path)


def warp(path: np.ndarray) -> np.ndarray:
    """A path [L, 2] as a map: for each of the M columns the middle one of the rows that it was aligned to, [M]."""
    j = path[:, 1]
    first, last = np.searchsorted(j, np.arange(j[-1] + 1)), np.searchsorted(j, np.arange(j[-1] + 1), "right") - 1
    return path[(first + last) // 2, 0]
