"""Voices that belong to nobody: blends of several, spoken by the model itself.

A prompt put together from several speakers makes the model say a sentence in a voice between theirs; the
new voice is enrolled from that output, so neither their recordings nor their codes are in it.
The embedded voices are made so by recipes/embedded_voices.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vivavoce.changer import Changer
from vivavoce.core.errors import VivavoceError
from vivavoce.engine import Settings
from vivavoce.voice import PARTS, Voice

NOTE = "a blend of several speakers, spoken by the model; nobody's recording"


def crowd(voices: list[Voice], frames: int = 150) -> Voice:
    """A prompt of all `voices` in turn, `frames` frames in all: what an average voice looks like to the model."""
    share = -(-frames // len(voices))
    parts = {k: torch.cat([getattr(v, k)[:share] for v in voices])[:frames]
             for k in ("content", "expression", "prosody", "codes")}  # fmt: skip
    register = math.exp(sum(math.log(v.register) for v in voices) / len(voices))
    return Voice("crowd", **parts, register=register, tokeniser=voices[0].tokeniser, note="not a voice to convert to")


def blend(changer: Changer, voices: list[Voice], speech: Tensor, name: str, seed: int = 0,
          licence: str = "Apache-2.0", note: str = NOTE) -> Voice:  # fmt: skip
    """A new voice between `voices`.

    Args:
        speech: 16 kHz mono samples [n], 4 s or more, that the blend says; its speaker does not matter.
        seed: of the sampling.

    Raises:
        VivavoceError: fewer than two voices, or voices of another model.
    """
    if len(voices) < 2:
        raise VivavoceError("a blend takes two voices or more")
    share = min(100, *(v.frames for v in voices))  # prompts longer than trained with do not help
    content, expression, units, codes = (torch.cat([getattr(v, part)[:share] for v in voices]) for part in PARTS)
    register = math.exp(sum(math.log(v.register) for v in voices) / len(voices))
    mixed = Voice(name, content, expression, units, codes, register, changer.tokeniser)
    rate = changer.codec.config.sample_rate
    spoken, _ = changer.convert(speech, mixed, rate, Settings(seed=seed, temperature=0.4))
    return changer.enroll(spoken, rate, name, licence=licence, note=note)
