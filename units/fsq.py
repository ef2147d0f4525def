"""Finite scalar quantisation (Mentzer et al. 2023, eq. 1): a codebook without a codebook."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FSQ(nn.Module):
    """Each channel is squashed and rounded to an odd number of levels; gradients pass straight through.

    Args:
        levels: odd level counts, one a channel.
    """

    reach: Tensor

    def __init__(self, levels: tuple[int, ...] | list[int]) -> None:
        super().__init__()
        if any(n < 3 or n % 2 == 0 for n in levels):
            raise ValueError(f"FSQ levels must be odd and at least 3, got {levels}")
        self.levels = tuple(levels)
        self.register_buffer("reach", torch.tensor([n // 2 for n in levels], dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., C] -> values in [-1, 1] (straight-through) and integers in [0, level), both [..., C]."""
        bounded = torch.tanh(x.float()) * self.reach
        rounded = bounded.round()
        values = (bounded + (rounded - bounded).detach()) / self.reach
        return values, (rounded + self.reach).long()

    def values(self, index: Tensor) -> Tensor:
        """Integers [..., C] -> values in [-1, 1]."""
        return index / self.reach - 1.0
