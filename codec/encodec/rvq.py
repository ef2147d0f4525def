"""EnCodec's residual vector quantiser, in the reference's order of operations, so that codes come out equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Codebook(nn.Module):
    """`size` vectors of `dim`, found by Euclidean distance."""

    vectors: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.randn(size, dim))

    def nearest(self, x: Tensor) -> Tensor:
        """Indices [...] of the vectors nearest to x [..., dim]."""
        flat, book = x.reshape(-1, x.shape[-1]), self.vectors.t()
        distance = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ book + book.pow(2).sum(0, keepdim=True)
        return distance.neg().max(dim=-1).indices.view(x.shape[:-1])


class ResidualVQ(nn.Module):
    """`n` codebooks, each quantising what the ones before it left. Frame by frame: no state."""

    def __init__(self, n: int, size: int, dim: int) -> None:
        super().__init__()
        self.books = nn.ModuleList(Codebook(size, dim) for _ in range(n))

    def encode(self, z: Tensor, n: int | None = None) -> Tensor:
        """Latents [B, T, dim] -> codes [B, T, n] (int64) of the first n codebooks; all for None."""
        codes = []
        for book in self.books[:n]:
            i = book.nearest(z)  # type: ignore[operator]
            z = z - F.embedding(i, book.vectors)  # type: ignore[arg-type]
            codes.append(i)
        return torch.stack(codes, dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, T, k <= n], or weights of codes [B, T, k, size] -> latents [B, T, dim]; fewer codebooks give a
        coarser sum."""
        total = torch.zeros((), device=codes.device)
        if codes.is_floating_point():
            for book, w in zip(self.books, codes.unbind(-2)):
                total = total + w @ book.vectors  # type: ignore[operator]
            return total
        for book, i in zip(self.books, codes.unbind(-1)):
            total = total + F.embedding(i, book.vectors)  # type: ignore[arg-type]
        return total
