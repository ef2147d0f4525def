"""Residual vector quantisation (SoundStream, Zeghidour et al. 2021, section III-C) with EMA codebooks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Codebook(nn.Module):
    """One codebook of `size` vectors of `dim`, learnt as moving averages of what they attract.

    Started from the first training batch; codes that attract less than `revive_below` vectors a step
    (moving average) are moved onto random vectors of the batch.
    """

    vectors: Tensor
    counts: Tensor
    started: Tensor

    def __init__(self, size: int, dim: int, decay: float = 0.99, revive_below: float = 0.05) -> None:
        super().__init__()
        self.decay, self.revive_below = decay, revive_below
        self.register_buffer("vectors", torch.randn(size, dim))
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("started", torch.zeros((), dtype=torch.int64))

    def nearest(self, x: Tensor) -> Tensor:
        """Indices [...] of the nearest vectors to x [..., dim] (squared Euclidean distance)."""
        return (2.0 * x @ self.vectors.T - self.vectors.square().sum(-1)).argmax(-1)

    @torch.no_grad()
    def learn(self, x: Tensor, codes: Tensor) -> None:
        """Update the moving averages with x [N, dim] and their codes [N], over all processes."""
        hot = F.one_hot(codes, len(self.vectors)).to(x.dtype)
        counts, sums = hot.sum(0), hot.T @ x
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        total = (self.vectors * self.counts[:, None]).lerp(sums, 1 - self.decay)
        self.counts.lerp_(counts, 1 - self.decay)
        self.vectors.copy_(total / self.counts.clamp_min(1e-5)[:, None])
        dead = (self.counts < self.revive_below).nonzero()[:, 0]
        self._place(dead, x)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Data initialisation from x [N, dim]."""
        self._place(torch.arange(len(self.vectors), device=x.device), x)
        self.started.fill_(1)

    def _place(self, which: Tensor, x: Tensor) -> None:
        if not len(which):
            return
        new = x[torch.randint(len(x), (len(which),), device=x.device)]
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(new, 0)
        self.vectors[which], self.counts[which] = new, 1.0


class ResidualVQ(nn.Module):
    """`n` codebooks, each quantising what the ones before it left."""

    def __init__(self, n: int, size: int, dim: int) -> None:
        super().__init__()
        self.books = nn.ModuleList(Codebook(size, dim) for _ in range(n))

    def encode(self, x: Tensor) -> Tensor:
        """x [B, T, dim] -> codes [B, T, n] (int64)."""
        codes = []
        for book in self.books:
            i = book.nearest(x)  # type: ignore[operator]
            x = x - book.vectors[i]  # type: ignore[index]
            codes.append(i)
        return torch.stack(codes, -1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, T, k <= n], or weights of codes [B, T, k, size] -> vectors [B, T, dim]; fewer codebooks give a
        coarser sum."""
        if codes.is_floating_point():
            return codes.flatten(-2) @ torch.cat([book.vectors for book in self.books[: codes.shape[-2]]])  # type: ignore
        return sum(F.embedding(codes[..., k], self.books[k].vectors) for k in range(codes.shape[-1]))  # type: ignore

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training pass: straight-through vectors, commitment loss, and mean code perplexity.

        Quantiser dropout: each row of the batch uses a random number of codebooks, half of them all.
        """
        x = x.float()
        b, n = x.shape[0], len(self.books)
        keep = torch.where(torch.rand(b, device=x.device) < 0.5, torch.randint(1, n + 1, (b,), device=x.device), n)
        total, residual, loss, entropy = torch.zeros_like(x), x, x.new_zeros(()), []
        for k, book in enumerate(self.books):
            flat = residual.detach().reshape(-1, x.shape[-1])
            if self.training and not book.started:
                book.start(flat)  # type: ignore[operator]
            codes = book.nearest(residual.detach())  # type: ignore[operator]
            q = F.embedding(codes, book.vectors)  # type: ignore[arg-type]
            if self.training:
                book.learn(flat, codes.reshape(-1))  # type: ignore[operator]
            on = (keep > k).to(x.dtype)[:, None, None]
            loss = loss + (on * (residual - q).square()).mean() / n
            total = total + on * q
            residual = residual - q
            p = torch.bincount(codes.reshape(-1), minlength=len(book.vectors)).float()  # type: ignore[arg-type]
            p = p / p.sum()
            entropy.append(-(p * p.clamp_min(1e-9).log()).sum())
        return x + (total - x).detach(), loss, torch.stack(entropy).mean().exp()
