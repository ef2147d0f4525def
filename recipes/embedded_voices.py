"""The embedded voices: six blends of train speakers, three low and three high, so that no one's voice ships; and the
crowd, moments of many speakers, by which guidance tells a stranger (vivavoce.guidance).

    python -m vivavoce.recipes.embedded_voices MODEL PACK [SOURCE]      writes MODEL/voices/*.voice, MODEL/crowd.voice

Speakers: adults of the corpus `source` SOURCE (default librispeech; all, if the pack holds none of it). The crowd is
half a second each of up to 96. Voices are of those with 8 s of read speech, sorted by pitch, neighbours blended. Takes
about a minute on two cores.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.blend import blend, crowd
from vivavoce.changer import Changer
from vivavoce.core.errors import AudioError, CorpusError
from vivavoce.recipes.corpus import RATE, Pack
from vivavoce.voice import Voice

NAMES = {"low": ("bruno", "dario", "ugo"), "high": ("alba", "chiara", "livia")}  # three each, by rising pitch
SPLIT_HZ = 155.0  # between low and high registers
CROWD = 96  # speakers, at most, of whom the crowd has moments


def speakers(pack: Pack, source: str) -> list[dict[str, Any]]:
    """Train clips of one source, or all where the pack holds none of it."""
    return [c for c in pack.split("train") if c.get("source") == source] or pack.split("train")


def adults(clips: list[dict[str, Any]], frames: int) -> Iterator[dict[str, Any]]:
    """The longest clip of speech of each adult speaker, if it has `frames`, the longest of all first."""
    seen = set()
    for clip in sorted(clips, key=lambda c: -c["frames"]):
        child = int(clip.get("age") or 18) < 18
        if clip["speaker"] in seen or child or clip.get("vocalisation", "none") != "none" or clip["frames"] < frames:
            continue
        seen.add(clip["speaker"])
        yield clip


def candidates(changer: Changer, clips: list[dict[str, Any]], wave: Callable[[dict[str, Any]], Tensor],
               per_register: int) -> dict[str, list[Voice]]:  # fmt: skip
    """Voices of adult speakers with long, clean read speech, sorted by pitch, [low] and [high]."""
    out: dict[str, list[Voice]] = {"low": [], "high": []}
    for clip in adults(clips, 400):
        voice = changer.enroll(wave(clip), RATE, clip["speaker"])
        group = out["low" if voice.register < SPLIT_HZ else "high"]
        if len(group) < per_register:
            group.append(voice)
        if all(len(g) >= per_register for g in out.values()):
            break
    return {k: sorted(g, key=lambda v: v.register) for k, g in out.items()}


def make_crowd(model: Path, pack_folder: Path, source: str = "librispeech") -> Changer:
    """Make the crowd of a pack's train speakers, write it into `model`, and return that, loaded. One alone is no
    crowd."""
    (model / "crowd.voice").unlink(missing_ok=True)  # of other weights it would not load
    changer, pack, some = Changer.from_pretrained(model), Pack(pack_folder), []
    for clip in islice(adults(speakers(pack, source), 75), CROWD):
        with suppress(AudioError):  # silent: another serves
            x = torch.from_numpy(pack.waveform(clip["offset"], min(clip["frames"], 100)))
            some.append(changer.enroll(x, RATE, clip["speaker"]))
    if len(some) > 1:
        changer.crowd = crowd(some)
        changer.crowd.save(model / "crowd.voice")
    return changer


def make_embedded(model: Path, pack_folder: Path, source: str = "librispeech", seed: int = 0) -> list[Voice]:
    """Make the crowd and the six embedded voices from a pack's train speakers and write them into `model`.

    Neighbours in pitch are blended; of all such blends three a register are kept whose units and codes
    come from speakers not shared, from low to high.
    """
    changer = make_crowd(model, pack_folder, source)
    pack = Pack(pack_folder)

    def wave(clip: dict[str, Any]) -> Tensor:
        return torch.from_numpy(pack.waveform(clip["offset"], min(clip["frames"], 500)))

    clips = speakers(pack, source)
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
    return made


if __name__ == "__main__":
    torch.set_num_threads(2)
    make_embedded(Path(sys.argv[1]), Path(sys.argv[2]), (*sys.argv[3:4], "librispeech")[0])
