"""Deduplication: a frame-wise sequence of units as runs, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def collapse(units: Tensor) -> tuple[Tensor, Tensor]:
    """Units [T] -> units [N] of which no two neighbours are equal, and durations [N] in frames, summing to T."""
    if units.ndim != 1:
        raise ValueError(f"collapse takes units of shape [T], got {tuple(units.shape)}")
    values, durations = torch.unique_consecutive(units, return_counts=True)
    return values, durations


def expand(units: Tensor, durations: Tensor) -> Tensor:
    """The exact inverse of `collapse`: units [N] and durations [N] in frames -> units [T]."""
    return torch.repeat_interleave(units, durations)
