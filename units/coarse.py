"""Coarse classes of units that pack several levels (core.radix): k-means over the levels, projected.

A product code has more units than recordings have frames; what counts them, or reads them as letters, needs
classes. With a teacher's labels the projection is a linear discriminant one, which is what makes clusters of
features phonetic (docs/decisions.md); without, principal components.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vivavoce.core import radix
from vivavoce.core.checkpoint import load_tensors, save_tensors
from vivavoce.core.errors import CheckpointError


@dataclass(frozen=True)
class Coarse:
    """Units to classes and back.

    Attributes:
        levels [C]: what a unit packs.
        weight [C, D], bias [D]: the projection, of digits divided by their level count.
        centroids [K, D]: of the classes.
        typical [K]: the unit that stands for each class.
    """

    levels: tuple[int, ...]
    weight: np.ndarray
    bias: np.ndarray
    centroids: np.ndarray
    typical: np.ndarray

    def __len__(self) -> int:
        return len(self.centroids)

    def classes(self, units: np.ndarray) -> np.ndarray:
        """Units [T] -> class of each [T]."""
        x = digits(units, self.levels) @ self.weight + self.bias
        out = np.empty(len(x), np.int64)
        for i in range(0, len(x), 16384):  # |x - c|^2 without |x|^2, which is the same for all classes
            block = x[i : i + 16384]
            out[i : i + 16384] = (np.square(self.centroids).sum(1) - 2.0 * block @ self.centroids.T).argmin(1)
        return out

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        arrays = {k: torch.from_numpy(np.ascontiguousarray(getattr(self, k)))
                  for k in ("weight", "bias", "centroids", "typical")}  # fmt: skip
        save_tensors(path, {**arrays, "levels": torch.tensor(self.levels)})

    @classmethod
    def load(cls, path: str | Path) -> Coarse:
        """Read what `save` wrote. Raises CheckpointError when it is missing or foreign."""
        tensors, _ = load_tensors(path)
        try:
            arrays = {k: v.numpy() for k, v in tensors.items()}
            found = cls(levels=tuple(arrays.pop("levels").tolist()), **arrays)
            found.classes(found.typical)
        except (KeyError, TypeError, ValueError) as e:
            raise CheckpointError(f"{path}: no coarse units ({e}); train unit BPE again") from None
        return found


def digits(units: np.ndarray, levels: tuple[int, ...] | list[int]) -> np.ndarray:
    """Units [T] -> what they pack, from -0.5 to 0.5 a level: float64 [T, C]."""
    unpacked = radix.unpack(torch.from_numpy(np.asarray(units, np.int64)), list(levels)).numpy()
    return (unpacked + 0.5) / np.array(levels) - 0.5


def typical(units: np.ndarray, classes: np.ndarray, k: int) -> np.ndarray:
    """The most frequent of units [T] in each of k classes [T] that all occur: [k]."""
    out = np.zeros(k, np.int64)
    for c in range(k):
        found, counts = np.unique(units[classes == c], return_counts=True)
        out[c] = found[counts.argmax()]
    return out
