"""A bounded ring buffer between an audio callback and a worker thread."""

from __future__ import annotations

import threading

import numpy as np


class Ring:
    """Float32 samples, first in first out; one writer and one reader, each in its own thread. It never grows.

    Args:
        size: samples that it holds.
    """

    def __init__(self, size: int) -> None:
        self._data = np.zeros(size, np.float32)
        self._start = self._fill = 0
        self._ready = threading.Condition()

    @property
    def fill(self) -> int:
        """Samples that wait."""
        return self._fill

    def write(self, x: np.ndarray) -> int:
        """Append samples [n]; returns how many found no room (the newest of them are dropped)."""
        with self._ready:
            n = min(len(x), len(self._data) - self._fill)
            at = (self._start + self._fill) % len(self._data)
            first = min(n, len(self._data) - at)
            self._data[at : at + first] = x[:first]
            self._data[: n - first] = x[first:n]
            self._fill += n
            self._ready.notify()
        return len(x) - n

    def read(self, n: int) -> np.ndarray:
        """Take the oldest n samples, or all if there are fewer."""
        with self._ready:
            n = min(n, self._fill)
            first = min(n, len(self._data) - self._start)
            x = np.concatenate((self._data[self._start : self._start + first], self._data[: n - first]))
            self._start = (self._start + n) % len(self._data)
            self._fill -= n
        return x

    def wait(self, n: int, timeout: float) -> bool:
        """Wait until n samples are there; whether they are."""
        with self._ready:
            return self._ready.wait_for(lambda: self._fill >= n, timeout)
