"""Guidance away from the source's own voice, and what is kept of its words.

What the codec's encoder hears of a source differs from what the language model says of it in the voice, and in what the
units do not tell of the words. The voice can be told from what is said: a running affine map (recursive least squares;
the same map as in vivavoce.fit, here from the target's voice to the source's) predicts the difference. Going on away
from what it predicts gives more likeness. What it does not predict is mostly words, and breath, creak and laughter:
some of that is put back. Before anything was heard a source is taken for a stranger like others: the map begins as that
of a crowd, as against the same voice (`strangers`), and a map of little voice is little believed.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from vivavoce.codec import Codec, VoiceCodec
from vivavoce.fit import VOICED, Scale, penalty, say_all, scale_of
from vivavoce.lm import Source, VoiceLM

RELAX = 1e-5  # share, a voiced frame, by which a map becomes as unsure as at first: some 60 s of voice are remembered
SURE = 100.0  # voiced frames after which half of what is kept in the end is kept


def steerable(codec: VoiceCodec, lm: VoiceLM) -> bool:
    """Whether what is said can be moved at all before it is heard: mixed vectors can, codes that were drawn cannot."""
    return isinstance(codec, Codec) and not lm.config.autoregressive


class Way(NamedTuple):
    """The way from what is said to the source, as far as a stream knows it."""

    found: Tensor  # float64 [B, d + 1, d], the map
    covariance: Tensor  # float64 [B, d + 1, d + 1], how unsure it is: the inverse of what was seen, penalty included
    seen: Tensor  # [B, 1, 1], voiced frames


@functools.cache
def unknown(d: int) -> Tensor:
    """Covariance of a map before anything was seen, [d + 1, d + 1]."""
    return torch.linalg.inv(penalty(d))


def begin(d: int, guess: Tensor | None = None) -> Way:
    """Nothing was heard: a guess [d + 1, d] (see `strangers`), or none."""
    covariance = unknown(d)[None]
    found = covariance.new_zeros(1, d + 1, d) if guess is None else guess.double()[None]
    return Way(found, covariance, covariance.new_zeros(1, 1, 1))


def look(said: Tensor, own: Tensor, periodicity: Tensor, scale: Scale, guess: Tensor | None = None) -> Way:
    """What a stretch of a source says beforehand: vectors [T, d] and periodicity [T], as `lead` would learn them one by
    one from `begin(d, guess)`."""
    before = begin(said.shape[1], guess)
    x, voiced = scale(said), (periodicity > VOICED).double()[:, None]
    covariance = torch.linalg.inv((voiced * x).T @ x + penalty(said.shape[1]))
    missed = (own - said).double() - x @ before.found[0]
    return before._replace(found=before.found + covariance @ (voiced * x).T @ missed, covariance=covariance[None],
                           seen=before.seen + voiced.sum())  # fmt: skip


@torch.inference_mode()
def strangers(codec: Codec, lm: VoiceLM, prompt: tuple[Source, Tensor], crowd: Source, codes: Tensor) -> Tensor:
    """How a crowd differs from what a voice says, on the whole: the map that a stream of this voice begins with.

    Args:
        codec, lm: such as are `steerable`.
        prompt: of the voice: its units and codes.
        crowd: a few frames each of many speakers, with F0 in the voice's register, [1, T, ...].
        codes: their codes [1, T, K].

    Returns:
        map [d + 1, d].
    """
    said, own = say_all(codec, lm, prompt, crowd), codec.quantiser.decode(codes)
    return look(said[0], own[0], crowd.periodicity[0], scale_of(codec)).found[0].float()


def lead(said: Tensor, own: Tensor, periodicity: Tensor, way: Way, scale: Scale,
         guidance: float | Tensor, keep: float | Tensor) -> tuple[Tensor, Way]:  # fmt: skip
    """How one frame of the codec's vectors is to be moved.

    Args:
        said: what the language model says [B, 1, d].
        own: what the codec hears of the same frame of the source [B, 1, d].
        periodicity: of that frame, 0 to 1, [B, 1]: a voice is in voiced frames.
        way: state.
        scale: of the codec.
        guidance: how far to go on away from the source's voice: by 1, as far again as the language model went.
        keep: share of what the map does not predict that is put back, 0 to 1.

    Returns:
        what is to be added to `said`, [B, 1, d], and the state.
    """
    x, missed = scale(said), (own - said).double()
    voice = x @ way.found
    more = keep * way.seen / (way.seen + SURE) * (missed - voice) - guidance * voice
    voiced = (periodicity > VOICED).double()[..., None]
    relaxed = RELAX * voiced * (unknown(said.shape[-1]) - way.covariance)  # so hours follow who speaks now
    covariance = way.covariance + relaxed
    gain = covariance @ x.mT  # [B, d + 1, 1]
    step = voiced * gain / (1.0 + x @ gain)
    way = Way(way.found + step @ (missed - voice), covariance - step @ gain.mT, way.seen + voiced)
    return more.to(said.dtype), way
