"""Transformer blocks whose key/value cache is [voice prompt | ring of recent frames]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def slopes(heads: int) -> Tensor:
    """ALiBi slopes (Press et al. 2022), the last head without decay: [heads]."""
    s = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
    s[-1] = 0.0
    return s * 2.0


class SwiGLU(nn.Module):
    """Gated feed-forward (Shazeer 2020) with one fused input projection."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class Block(nn.Module):
    """Pre-norm attention and feed-forward. Distances enter as an additive mask only, so that keys never
    need re-rotating in the ring and the prompt is equally near from any point of an endless stream."""

    def __init__(self, dim: int, heads: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp = SwiGLU(dim, hidden)
        for layer in (self.out, self.mlp.down):
            nn.init.normal_(layer.weight, std=0.02 / (2 * depth) ** 0.5)

    def forward(self, x: Tensor, mask: Tensor, cache: tuple[Tensor, Tensor] | None = None,
                at: Tensor | None = None) -> Tensor:  # fmt: skip
        """x [B, T, dim]; mask [1, heads, T, S].

        With a cache of keys and values [B, heads, S, head_dim], those of x are written *in place* into
        slots `at` [T], and attention runs over all S slots; without, over x itself (S = T).
        """
        b, t, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, dim // self.heads).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None and at is not None:
            k, v = cache[0].index_copy_(2, at, k), cache[1].index_copy_(2, at, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
        x = x + self.out(y.transpose(1, 2).reshape(b, t, dim))
        return x + self.mlp(self.norm2(x))
