"""What the language model misses of a voice, fitted to the voice's own reference in closed form.

The reference is said once by the language model, in its own voice, prompted with another part of itself; an affine map
from what was said to what the codec hears, found by ridge regression, mends the rest. So a recogniser's means are moved
to a speaker by linear regression (MLLR, Leggetter & Woodland 1995); here they are vectors of the codec. A few seconds
are enough, no weights are trained, and a frame costs one small matrix product.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from vivavoce.codec import Codec
from vivavoce.codec.rvq import Codebook
from vivavoce.lm import Source, VoiceLM

RIDGE = 100.0  # weight of zero slopes, in frames of reference, where vectors have unit variance
STEADY = 10.0  # and of a zero offset
PIECE = 150  # frames, at most, of a prompt and of what is said by it
STRETCH = 500  # frames that are said at once
VOICED = 0.5  # periodicity from which a frame has a voice


@torch.inference_mode()
def fit(codec: Codec, lm: VoiceLM, source: Source, codes: Tensor, own: Tensor, delay: int = 0) -> Tensor:
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
    t = codes.shape[1]
    pieces = torch.arange(t).tensor_split(max(2, math.ceil(t / PIECE)))
    prompts = [(Source(*(x[:, i] for x in source)), codes[:, i]) for i in (*pieces[1:], pieces[0])]
    said = torch.cat([say(codec, lm, p, source, i, delay) for i, p in zip(pieces, prompts)], 1)
    heard = (source.periodicity > VOICED) | (source.level > source.level.max() - 35.0)
    return _ridge(codec, said[0], own[0], heard[0].double())


def say(codec: Codec, lm: VoiceLM, prompt: tuple[Source, Tensor], source: Source, frames: Tensor, delay: int) -> Tensor:
    """What a voice (a prompt's units and its codes) says of some frames [n] of a source, at once: vectors [1, n, d]."""
    k, t = lm.config.n_codebooks, source.content.shape[1]
    books = torch.stack([b.vectors for b in codec.quantiser.books[:k]])  # type: ignore[misc,union-attr]
    ahead = Source(*(x[:, (frames + delay).clamp_max(t - 1)] for x in source))
    codes = torch.zeros(1, len(frames), k, dtype=torch.int64)  # no past and no target: neither plays a part in vectors
    _, mean = lm(prompt[0], prompt[1][..., :k], ahead, codes, codes, delay, books)
    assert mean is not None
    return mean


def say_all(codec: Codec, lm: VoiceLM, prompt: tuple[Source, Tensor], source: Source, delay: int = 0) -> Tensor:
    """What a voice says of a source, a stretch at a time: vectors [1, T, d]."""
    stretches = torch.arange(source.content.shape[1]).split(STRETCH)
    return torch.cat([say(codec, lm, prompt, source, frames, delay) for frames in stretches], 1)


class Scale(NamedTuple):
    """Where the codec's vectors lie and how far they spread, roughly, float64 [d] each."""

    centre: Tensor
    spread: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        """Vectors [..., d] -> float64 [..., d + 1], of zero mean, unit variance and with a constant."""
        return torch.nn.functional.pad((vectors.double() - self.centre) / self.spread, (0, 1), value=1.0)


def scale_of(codec: Codec) -> Scale:
    """By the codec's first codebook, and how often its vectors were used."""
    first = codec.quantiser.books[0]
    assert isinstance(first, Codebook)
    use, vectors = first.counts[:, None].double() / first.counts.sum(), first.vectors.double()
    centre = (use * vectors).sum(0)
    return Scale(centre, (use * (vectors - centre).square()).sum(0).sqrt().clamp_min(1e-3))


@functools.cache
def penalty(d: int) -> Tensor:
    """Of a map's rows, in frames: float64 [d + 1, d + 1], a diagonal."""
    return torch.diag(torch.tensor([RIDGE] * d + [STEADY], dtype=torch.float64))


def _ridge(codec: Codec, said: Tensor, own: Tensor, weight: Tensor) -> Tensor:
    scale, w = scale_of(codec), weight[:, None]
    x = scale(said)
    found = torch.linalg.solve((w * x).T @ x + penalty(said.shape[1]), (w * x).T @ (own - said).double())
    slopes, offset = found[:-1] / scale.spread[:, None], found[-1] - (scale.centre / scale.spread) @ found[:-1]
    return torch.cat((slopes, offset[None])).float()


def mend(said: Tensor, found: Tensor | None, share: float | Tensor = 1.0) -> Tensor:
    """Vectors [..., d] as the fitted voice [d + 1, d] would have them, `share` of the way; as they are without one."""
    return said if found is None else said + share * (said @ found[:-1] + found[-1])
