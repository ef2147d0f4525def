"""Voices that belong to nobody: blends of several, spoken by the model itself.

A prompt put together from several speakers makes the model say a sentence in a voice between theirs; the
new voice is enrolled from that output, so neither their recordings nor their codes are in it.
The embedded voices are made so by recipes/embedded_voices.py.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from vivavoce.changer import Changer
from vivavoce.core.errors import VivavoceError
from vivavoce.engine import Settings
from vivavoce.units import prosody
from vivavoce.voice import Voice

NOTE = "a blend of several speakers, spoken by the model; nobody's recording"


def crowd(voices: list[Voice], share: int = 25) -> Voice:
    """`share` frames of each of `voices` in turn, moved to one register: what strangers sound like to the model, and,
    the first of them, a prompt of an average voice."""
    register = _register(voices)
    moved = []
    for v in voices:
        units = v.prosody.clone()
        units[:, 0] += round(prosody.PITCH_STEPS * math.log2(register / v.register))
        moved.append(replace(v, prosody=units.clamp_min(0), register=register))
    return _joined(moved, "crowd", share, "not a voice to convert to").unfitted()


def _register(voices: list[Voice]) -> float:
    return math.exp(sum(math.log(v.register) for v in voices) / len(voices))


def _joined(voices: list[Voice], name: str, share: int, note: str = "") -> Voice:
    """The first `share` frames of each voice, one after another, their mean register, and their mean maps."""

    def join(key: str) -> Tensor:
        return torch.cat([getattr(v, key)[:share] for v in voices])

    def mean(key: str) -> Tensor | None:
        maps = [m for v in voices if (m := getattr(v, key)) is not None]
        return torch.stack(maps).mean(0) if len(maps) == len(voices) else None

    return Voice(name, join("content"), join("expression"), join("prosody"), join("codes"), _register(voices),
                 voices[0].tokeniser, note=note, fit=mean("fit"), strangers=mean("strangers"),
                 fitted=voices[0].fitted)  # fmt: skip


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
