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
from vivavoce.voice import Voice

NOTE = "a blend of several speakers, spoken by the model; nobody's recording"


def crowd(voices: list[Voice], frames: int = 150) -> Voice:
    """A prompt of all `voices` in turn, `frames` frames in all: what an average voice looks like to the model."""
    return _joined(voices, "crowd", -(-frames // len(voices)), "not a voice to convert to")


def _joined(voices: list[Voice], name: str, share: int, note: str = "") -> Voice:
    """The first `share` frames of each voice, one after another, their mean register, and their mean fit."""

    def join(key: str) -> Tensor:
        return torch.cat([getattr(v, key)[:share] for v in voices])

    register = math.exp(sum(math.log(v.register) for v in voices) / len(voices))
    fits = [v.fit for v in voices if v.fit is not None]
    fit = torch.stack(fits).mean(0) if len(fits) == len(voices) else None
    return Voice(name, join("content"), join("expression"), join("prosody"), join("codes"), register,
                 voices[0].tokeniser, note=note, fit=fit, fitted=voices[0].fitted)  # fmt: skip


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
    mixed = _joined(voices, name, share)
    rate = changer.units.config.sample_rate
    spoken, _ = changer.convert(speech, mixed, rate, Settings(seed=seed, temperature=0.4))
    return changer.enroll(spoken, rate, name, licence=licence, note=note)
