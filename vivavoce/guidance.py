"""Guidance away from the source's own sound. A voice is slow, words are fast.

What the codec's encoder hears of a source differs from what the language model says of it by the way from the one voice
to the other and, frame by frame, by what the units do not tell of the words. The mean of the difference over the last
seconds of voice is the way alone: going on along it gives more likeness. What is left of the difference is mostly
words, and something of the voice: going back along it gives clearer words, and the source's breath, creak and laughter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vivavoce.codec import Codec, VoiceCodec
from vivavoce.lm import VoiceLM

KEPT = 0.5 ** (1 / 50)  # of the mean, a voiced frame: half of it in a second of voice
UNSURE = 5.0  # voiced frames, as many as the mean begins with at zero


def steerable(codec: VoiceCodec, lm: VoiceLM) -> bool:
    """Whether what is said can be moved at all before it is heard: mixed vectors can, codes that were drawn cannot."""
    return isinstance(codec, Codec) and not lm.config.autoregressive


class Way(NamedTuple):
    """The way from the source's voice so far, of a stream: a weighted sum of vectors, and the weights' sum."""

    total: Tensor  # [B, 1, d]
    weight: Tensor  # [B, 1, 1]


def lead(said: Tensor, own: Tensor, periodicity: Tensor, way: Way | None, guidance: float,
         keep: float) -> tuple[Tensor, Way]:  # fmt: skip
    """One frame of the codec's vectors, led away from the source's.

    Args:
        said: what the language model says [B, 1, d].
        own: what the codec hears of the same frame of the source [B, 1, d].
        periodicity: of that frame, 0 to 1, [B, 1]: a voice is in voiced frames.
        way: state; None at the beginning of a stream, or of a voice.
        guidance: how far to go on along the way: by 1, as far again as the language model went.
        keep: share of the source's own fast movement that takes the place of what was said, 0 to 1.

    Returns:
        vectors [B, 1, d] and the state.
    """
    if way is None:
        way = Way(torch.zeros_like(said), said.new_full((len(said), 1, 1), UNSURE))
    voiced = (periodicity > 0.5).to(said.dtype)[..., None]
    kept = 1.0 - (1.0 - KEPT) * voiced
    way = Way(kept * way.total + voiced * (said - own), kept * way.weight + voiced)
    mean = way.total / way.weight
    return said + guidance * mean + keep * (own + mean - said), way
