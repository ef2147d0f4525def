"""Recordings for a report: what the converter makes of a set of clips, and the rungs of the ladder beside it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vivavoce.changer import Changer
from vivavoce.core import audio
from vivavoce.core.checkpoint import read_json, write_json
from vivavoce.core.errors import VivavoceError
from vivavoce.core.resample import resample
from vivavoce.engine import Settings
from vivavoce.eval.pairs import Pair
from vivavoce.units import prosody
from vivavoce.voice import Voice

LIVE_CHUNK = 0.04  # seconds that the live rung's streams are pushed at a time, or as if they were

Rung = Callable[[Tensor, int, Pair], Tensor]  # samples [n], their rate and the pair -> samples


@dataclass
class Made:
    """A rung's recordings: its pairs, what went wrong, and seconds of audio and of CPU time."""

    pairs: list[Pair] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    audio: float = 0.0
    work: float = 0.0


def make(name: str, one: Rung, pairs: Sequence[Pair], folder: Path, stamp: dict[str, Any]) -> Made:
    """Write `folder`/ID.wav for every pair; what is there already stays, so a run that was stopped goes on.

    Args:
        stamp: what decides the recordings. A folder that was made with another is refused.

    Raises:
        VivavoceError: such a folder, or one that cannot be written into.
    """
    _stamp(folder, stamp)
    made = Made()
    for pair in tqdm(pairs, desc=name, unit="clip", disable=None):
        path = folder / f"{pair.id}.wav"
        try:
            if not path.is_file():
                x, rate = audio.load(pair.source)
                began = time.process_time()
                y = one(x, rate, pair)
                made.work, made.audio = made.work + time.process_time() - began, made.audio + len(x) / rate
                path.parent.mkdir(parents=True, exist_ok=True)
                audio.save(path, y.clamp(-1.0, 1.0), rate)
        except (VivavoceError, OSError) as e:
            made.notes.append(f"{name}: {pair.id} left out ({e})")
            tqdm.write(f"vivavoce: {name}: {pair.id} left out ({e})", file=sys.stderr)
            continue
        made.pairs.append(replace(pair, converted=path))
    return made


def _stamp(folder: Path, stamp: dict[str, Any]) -> None:
    path = folder / "made.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = read_json(path) if path.is_file() else stamp
        if found != stamp:
            keys = found.keys() | stamp.keys() if isinstance(found, dict) else ()
            differ = ", ".join(sorted(k for k in keys if found.get(k) != stamp.get(k)))
            raise VivavoceError(f"{folder}: made with other settings ({differ}); choose another -o, or remove it")
        write_json(path, stamp)
    except OSError as e:
        raise VivavoceError(f"{folder}: cannot be written into ({e.strerror})") from None


def converter(changer: Changer, voices: dict[str, Voice], settings: Settings, live: bool = False) -> Rung:
    """The changer itself; `voices` by pair id. `live`: as a stream, whose register is learnt on the way."""

    def one(x: Tensor, rate: int, pair: Pair) -> Tensor:
        if not live:
            return changer.convert(x, voices[pair.id], rate, settings)[0]
        stream = changer.stream(voices[pair.id], rate, settings, chunk=LIVE_CHUNK)
        return torch.cat((stream.push(x), stream.flush()))

    return one


def codec_only(changer: Changer) -> Rung:
    """The source through the codec alone, with as many codes as the language model writes, as long as it came."""

    @torch.inference_mode()
    def one(x: Tensor, rate: int, pair: Pair) -> Tensor:
        inner, hop = changer.codec.config.sample_rate, changer.codec.config.hop
        y = resample(x[None], rate, inner)[0]
        padded = torch.nn.functional.pad(y, (0, hop - len(y) % hop + hop))
        _, _, units, codes = changer.tokenise(padded)
        f0, periodicity, level = prosody.dequantise(units)
        k = changer.lm.config.n_codebooks
        z, _ = changer.codec.decode(codes[None, :, :k], f0[None], periodicity[None], level[None])
        z = resample(z[:, hop : hop + len(y)], inner, rate)[0][: len(x)]
        return torch.nn.functional.pad(z, (0, len(x) - len(z)))

    return one


def cascade() -> Rung:
    """Speech to text to speech. Raises JudgeError where recogniser or synthesiser is not installed."""
    from vivavoce.eval.baselines import Cascade

    parts = Cascade()

    def one(x: Tensor, rate: int, pair: Pair) -> Tensor:
        register = "low" if pair.target is None else parts.register(pair.target)
        return parts(x, rate, register)[0]

    return one
