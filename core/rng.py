"""Counter-based randomness: a number depends only on its key, never on call order or chunking.

SplitMix64 finaliser (Steele et al. 2014, "Fast splittable pseudorandom number generators") on int64
tensors, whose multiplication wraps.
"""

from __future__ import annotations

import torch
from torch import Tensor

_C1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9 as int64
_C2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # logical, not arithmetic


def hash64(z: Tensor) -> Tensor:
    """Mix int64 keys of any shape into uniform int64 bits."""
    z = z * _GOLDEN
    z = (z ^ _shift(z, 30)) * _C1
    z = (z ^ _shift(z, 27)) * _C2
    return z ^ _shift(z, 31)


def uniform(seed: int | Tensor, *keys: Tensor) -> Tensor:
    """Uniform floats in (0, 1), shape = broadcast of the int64 `keys`."""
    h = hash64(torch.as_tensor(seed, dtype=torch.int64, device=keys[0].device))
    for key in keys:
        h = hash64(h ^ (key + 1))
    return (_shift(h, 41).float() + 0.5) * 2.0**-23  # 23 bits: with 24 the largest would round to 1.0


def gumbel(seed: int | Tensor, *keys: Tensor) -> Tensor:
    """Standard Gumbel noise; `argmax(logits + gumbel)` samples from softmax(logits)."""
    return -torch.log(-torch.log(uniform(seed, *keys)))
