"""The embedded voices: six blends of train speakers, three low and three high, so that no one's recording ships.

    python -m vivavoce.recipes.embedded_voices MODEL PACK [SOURCE]      writes MODEL/voices/*.voice

Speakers: adults of the corpus `source` SOURCE (default librispeech; all, if the pack holds none of it) with
8 s of read speech. They are sorted by pitch, and neighbours are blended. Takes about a minute on two cores.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.blend import blend, crowd
from vivavoce.changer import Changer
from vivavoce.core.errors import CorpusError
from vivavoce.recipes.corpus import RATE, Pack
from vivavoce.voice import Voice

NAMES = {"low": ("bruno", "dario", "ugo"), "high": ("alba", "chiara", "livia")}  # three each, by rising pitch
SPLIT_HZ = 155.0  # between low and high registers


def candidates(changer: Changer, clips: list[dict[str, Any]], wave: Callable[[dict[str, Any]], Tensor],
               per_register: int) -> dict[str, list[Voice]]:  # fmt: skip
    """Voices of adult speakers with long, clean read speech, sorted by pitch, [low] and [high]."""
    out: dict[str, list[Voice]] = {"low": [], "high": []}
    seen = set()
    for clip in sorted(clips, key=lambda c: -c["frames"]):
        child = int(clip.get("age") or 18) < 18
        if clip["speaker"] in seen or child or clip.get("vocalisation", "none") != "none" or clip["frames"] < 400:
            continue
        seen.add(clip["speaker"])
        voice = changer.enroll(wave(clip), RATE, clip["speaker"])
        group = out["low" if voice.register < SPLIT_HZ else "high"]
        if len(group) < per_register:
            group.append(voice)
        if all(len(g) >= per_register for g in out.values()):
            break
    return {k: sorted(g, key=lambda v: v.register) for k, g in out.items()}


def make_embedded(model: Path, pack_folder: Path, source: str = "librispeech", seed: int = 0) -> list[Voice]:
    """Make the six embedded voices from a pack's train speakers and write them into `model`/voices.

    Neighbours in pitch are blended; of all such blends three a register are kept whose units and codes
    come from speakers not shared, from low to high.
    """
    changer = Changer.from_pretrained(model)
    pack = Pack(pack_folder)

    def wave(clip: dict[str, Any]) -> Tensor:
        return torch.from_numpy(pack.waveform(clip["offset"], min(clip["frames"], 500)))

    clips = [c for c in pack.split("train") if c.get("source") == source] or pack.split("train")
    groups = candidates(changer, clips, wave, per_register=12)
    long = [c for c in clips if c["frames"] > 450]
    rng = np.random.default_rng(seed)
    made = []
    (model / "voices").mkdir(exist_ok=True)
    for register, names in NAMES.items():
        group = groups[register]
        if len(group) < 2 * len(names):
            raise CorpusError(f"{pack_folder}: too few {register} voices with 8 s of speech for blends")
        third = len(group) // len(names)
        for i, name in enumerate(names):
            pool = group[i * third : (i + 1) * third]
            pair = list(combinations(pool, 2))[int(rng.integers(0, math.comb(len(pool), 2)))]
            speech = wave(long[int(rng.integers(0, len(long)))])
            voice = blend(changer, list(pair), speech, name, seed)
            voice.save(model / "voices" / f"{name}.voice")
            made.append(voice)
            print(f"{name}: {voice.register:.0f} Hz, {voice.frames * 0.02:.1f} s, of {', '.join(v.name for v in pair)}")
    crowd(made).save(model / "crowd.voice")
    return made


if __name__ == "__main__":
    torch.set_num_threads(2)
    make_embedded(Path(sys.argv[1]), Path(sys.argv[2]), (*sys.argv[3:4], "librispeech")[0])
