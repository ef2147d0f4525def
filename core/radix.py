"""Several small integers as one: a product code as a single unit, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(digits: Tensor, levels: list[int] | tuple[int, ...]) -> Tensor:
    """Digits [..., C], digit c in [0, levels[c]) -> integers [...] below the product of the levels."""
    total = torch.zeros_like(digits[..., 0])
    for c, n in enumerate(levels):
        total = total * n + digits[..., c]
    return total


def unpack(units: Tensor, levels: list[int] | tuple[int, ...]) -> Tensor:
    """The inverse of `pack`: integers [...] -> digits [..., C]."""
    digits = []
    for n in reversed(levels):
        digits.append(units % n)
        units = units // n
    return torch.stack(digits[::-1], dim=-1)
