"""Voices that belong to nobody: blends of several, spoken by the model itself.

A prompt put together from several speakers makes the model say a sentence in a voice between theirs; the
new voice is enrolled from that output, so neither their recordings nor their codes are in it.

    python -m vivavoce.blend MODEL PACK       writes the embedded voices into MODEL/voices
"""

from __future__ import annotations

import math
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.changer import Changer
from vivavoce.core.errors import VivavoceError
from vivavoce.engine import Settings
from vivavoce.voice import Voice

NAMES = {"low": ("bruno", "dario", "ugo"), "high": ("alba", "chiara", "livia")}  # three each, by rising pitch
SPLIT_HZ = 155.0  # between low and high registers
NOTE = "a blend of several speakers, spoken by the model; nobody's recording"


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
    share = min(v.frames for v in voices)
    parts: dict[str, list[Tensor]] = {k: [] for k in ("content", "expression", "prosody", "codes")}
    for v in voices:
        for key, tensors in parts.items():
            tensors.append(getattr(v, key)[:share])
    register = math.exp(sum(math.log(v.register) for v in voices) / len(voices))
    mixed = Voice(name, **{k: torch.cat(t) for k, t in parts.items()}, register=register,
                  tokeniser=changer.tokeniser)  # fmt: skip
    rate = changer.codec.config.sample_rate
    spoken, _ = changer.convert(speech, mixed, rate, Settings(seed=seed, temperature=0.4))
    return changer.enroll(spoken, rate, name, licence=licence, note=note)


def candidates(changer: Changer, clips: list[dict[str, Any]], wave: Any, per_register: int) -> dict[str, list[Voice]]:
    """Voices of adult speakers with long, clean read speech, sorted by pitch, [low] and [high]."""
    out: dict[str, list[Voice]] = {"low": [], "high": []}
    seen = set()
    for clip in sorted(clips, key=lambda c: -c["frames"]):
        child = int(clip.get("age") or 18) < 18
        if clip["speaker"] in seen or child or clip.get("vocalisation", "none") != "none" or clip["frames"] < 400:
            continue
        seen.add(clip["speaker"])
        voice = changer.enroll(wave(clip), 16000, clip["speaker"])
        group = out["low" if voice.register < SPLIT_HZ else "high"]
        if len(group) < per_register:
            group.append(voice)
        if all(len(g) >= per_register for g in out.values()):
            break
    return {k: sorted(g, key=lambda v: v.register) for k, g in out.items()}


def make_embedded(model: Path, pack_folder: Path, seed: int = 0) -> list[Voice]:
    """Make the six embedded voices from a pack's train speakers and write them into `model`/voices.

    Neighbours in pitch are blended; of all such blends three a register are kept whose units and codes
    come from speakers not shared, from low to high.
    """
    from vivavoce.recipes.corpus import Pack

    changer = Changer.from_pretrained(model)
    pack = Pack(pack_folder)

    def wave(clip: dict[str, Any]) -> Tensor:
        return torch.from_numpy(pack.waveform(clip["offset"], min(clip["frames"], 500)))

    clips = [c for c in pack.split("train") if c.get("source", "librispeech") == "librispeech"]
    groups = candidates(changer, clips, wave, per_register=12)
    long = [c for c in clips if c["frames"] > 450]
    rng = np.random.default_rng(seed)
    made = []
    (model / "voices").mkdir(exist_ok=True)
    for register, names in NAMES.items():
        group = groups[register]
        if len(group) < 2 * len(names):
            raise VivavoceError(f"{pack_folder}: too few {register} voices with 8 s of speech for blends")
        third = len(group) // len(names)
        for i, name in enumerate(names):
            pool = group[i * third : (i + 1) * third]
            pair = list(combinations(pool, 2))[int(rng.integers(0, math.comb(len(pool), 2)))]
            speech = wave(long[int(rng.integers(0, len(long)))])
            voice = blend(changer, list(pair), speech, name, seed)
            voice.save(model / "voices" / f"{name}.voice")
            made.append(voice)
            print(f"{name}: {voice.register:.0f} Hz, {voice.frames * 0.02:.1f} s, of {', '.join(v.name for v in pair)}")
    return made


if __name__ == "__main__":
    make_embedded(Path(sys.argv[1]), Path(sys.argv[2]))
