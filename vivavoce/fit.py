"""What the language model misses of a voice, fitted to the voice's own reference in closed form.

The reference is said once by the language model, in its own voice, prompted with another part of itself; an affine map
from what was said to what the codec hears, found by ridge regression, mends the rest. So a recogniser's means are moved
to a speaker by linear regression (MLLR, Leggetter & Woodland 1995); here they are vectors of the codec. A few seconds
are enough, no weights are trained, and a frame costs one small matrix product.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vivavoce.codec import Codec
from vivavoce.codec.rvq import Codebook
from vivavoce.lm import Source, VoiceLM

RIDGE = 100.0  # weight of zero slopes, in frames of reference, where vectors have unit variance
STEADY = 10.0  # and of a zero offset
PIECE = 150  # frames, at most, of a prompt and of what is said by it


@torch.inference_mode()
def fit(codec: Codec, lm: VoiceLM, source: Source, codes: Tensor, own: Tensor, delay: int = 1) -> Tensor:
    """Fit a voice.

    Args:
        codec, lm: a language model that gives weights of the codec's codes (`autoregressive=False`).
        source: the reference's units, T frames, [1, T, ...].
        codes: its codes [1, T, K].
        own: what the codec hears of it, vectors [1, T, d].
        delay: frames of extra look-ahead of the language model.

    Returns:
        map [d + 1, d]: `mend` applies it.
    """
    t, k = codes.shape[1], lm.config.n_codebooks
    books = torch.stack([b.vectors for b in codec.quantiser.books[:k]])  # type: ignore[misc,union-attr]
    pieces = torch.arange(t).tensor_split(max(2, math.ceil(t / PIECE)))
    said = []
    for piece, other in zip(pieces, (*pieces[1:], pieces[0])):
        ahead, now = (piece + delay).clamp_max(t - 1), codes[:, piece, :k]
        prompt = Source(*(x[:, other] for x in source)), codes[:, other, :k]
        _, mean = lm(*prompt, Source(*(x[:, ahead] for x in source)), now, now, delay, books)
        said.append(mean)
    heard = (source.periodicity > 0.5) | (source.level > source.level.max() - 35.0)
    return _ridge(codec, torch.cat(said, 1)[0], own[0], heard[0].double())


def _ridge(codec: Codec, said: Tensor, own: Tensor, weight: Tensor) -> Tensor:
    first = codec.quantiser.books[0]  # where vectors lie and how far they spread, roughly
    assert isinstance(first, Codebook)
    said, own, vectors = said.double(), own.double(), first.vectors.double()
    use = first.counts[:, None].double() / first.counts.sum()
    centre = (use * vectors).sum(0)
    spread = (use * (vectors - centre).square()).sum(0).sqrt().clamp_min(1e-3)
    x = torch.nn.functional.pad((said - centre) / spread, (0, 1), value=1.0)
    penalty = torch.full((x.shape[1],), RIDGE, dtype=x.dtype)
    penalty[-1] = STEADY
    w = weight[:, None]
    found = torch.linalg.solve((w * x).T @ x + penalty.diag(), (w * x).T @ (own - said))
    slopes, offset = found[:-1] / spread[:, None], found[-1] - (centre / spread) @ found[:-1]
    return torch.cat((slopes, offset[None])).float()


def mend(said: Tensor, found: Tensor | None, share: float = 1.0) -> Tensor:
    """Vectors [..., d] as the fitted voice [d + 1, d] would have them, `share` of the way; as they are without one."""
    return said if found is None or not share else said + share * (said @ found[:-1] + found[-1])
