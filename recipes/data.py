"""Random crops from a pack, and what every recipe does to pitch labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.core.errors import CorpusError
from vivavoce.recipes.corpus import HOP, NO_LABEL, Pack

VOICED = 0.5  # periodicity from which a frame counts as voiced


def clean_pitch(pitch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tracker labels [T, 2] (Hz, confidence) -> F0 held through unvoiced frames [T], periodicity [T] in 0..1."""
    hz, conf = pitch[:, 0], pitch[:, 1]
    s = np.clip((conf - 0.1) / 0.6, 0.0, 1.0)
    periodicity = s * s * (3.0 - 2.0 * s)
    good = periodicity > 0.2
    if not good.any():
        return np.full_like(hz, 150.0), periodicity
    index = np.where(good, np.arange(len(hz)), -1)
    index = np.maximum.accumulate(index)
    index[index < 0] = np.argmax(good)
    return hz[index], periodicity


def weights(
    frames: np.ndarray, boost: dict[str, float], labels: Callable[[str], tuple[np.ndarray, list[Any]]]
) -> np.ndarray:
    """Sampling weights [clips]: duration to the power 3/4, times `boost` by vocalisation, emotion or source.

    Args:
        frames: length of each clip.
        labels: a field's name -> integers [clips] into the list of its values; -1 where a clip has none.
    """
    w = frames.astype(np.float64) ** 0.75
    for field in ("vocalisation", "emotion", "source") if boost else ():
        index, values = labels(field)
        w *= np.array([boost.get(str(v), 1.0) for v in (*values, None)])[index]
    return w / w.sum()


def encode(values: list[Any]) -> tuple[np.ndarray, list[Any]]:
    """Values -> integers into the list of distinct ones; -1 for None."""
    distinct = {v: i for i, v in enumerate(dict.fromkeys(v for v in values if v is not None))}
    return np.array([distinct.get(v, -1) for v in values], np.int64), list(distinct)


class Crops:
    """Draws crops of `frames` frames from one split; short clips are padded with silence.

    Args:
        labels: further integers a frame of the whole pack [frames], by name; padded with NO_LABEL.

    Raises:
        CorpusError: the split holds no clip.
    """

    def __init__(self, pack: Pack, split: str, frames: int, boost: dict[str, float] | None = None,
                 labels: dict[str, np.ndarray] | None = None) -> None:  # fmt: skip
        self.pack, self.frames, self.clips = pack, frames, pack.split(split)
        self.labels = {"teacher": pack.teacher, **(labels or {})}
        if not self.clips:
            raise CorpusError(f"{pack.folder}: no clip in split {split!r}")
        lengths = np.array([c["frames"] for c in self.clips])
        self.cumulative = np.cumsum(weights(lengths, boost or {}, lambda f: encode([c.get(f) for c in self.clips])))

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One crop: wave [frames * hop], f0, periodicity, teacher and other labels [frames], its clip's index."""
        i = int(np.searchsorted(self.cumulative, rng.random() * self.cumulative[-1]))
        clip = self.clips[min(i, len(self.clips) - 1)]
        spare = clip["frames"] - self.frames
        start = int(rng.integers(0, spare + 1)) if spare > 0 else 0
        return {**self.cut(clip, start), "clip": np.int64(i)}

    def cut(self, clip: dict[str, Any], start: int = 0, frames: int | None = None) -> dict[str, np.ndarray]:
        """The crop of `clip` from frame `start`, padded to `frames`."""
        frames = frames or self.frames
        n = min(frames, clip["frames"] - start)
        at, pad = clip["offset"] + start, frames - n
        f0, periodicity = clean_pitch(self.pack.pitch[clip["offset"] : clip["offset"] + clip["frames"]])
        f0, periodicity = f0[start : start + n], periodicity[start : start + n]
        return {
            "wave": np.pad(self.pack.waveform(at, n), (0, pad * HOP)),
            "f0": np.pad(f0, (0, pad), constant_values=f0[-1]).astype(np.float32),
            "periodicity": np.pad(periodicity, (0, pad)).astype(np.float32),
            **{k: np.pad(v[at : at + n], (0, pad), constant_values=NO_LABEL).astype(np.int64)
               for k, v in self.labels.items()},
        }  # fmt: skip


def faster(item: dict[str, np.ndarray], twentieths: int, frames: int) -> dict[str, np.ndarray]:
    """A crop played `twentieths` / 20 times as fast: tempo, pitch and formants (speed perturbation, Ko et al. 2015).

    It is cut to `frames` frames and must be that much longer. F0 follows; other labels stay with what they name.
    """
    ratio = twentieths / 20.0
    out = stretched(item["wave"], round(len(item["wave"]) / ratio))[: frames * HOP]
    at = np.minimum(((np.arange(frames) + 0.5) * ratio).astype(np.int64), len(item["f0"]) - 1)
    moved = {k: v[at] for k, v in item.items() if v.ndim and k != "wave"}
    moved["f0"] = moved["f0"] * np.float32(ratio)
    return {**item, **moved, "wave": out}


def stretched(wave: np.ndarray, samples: int) -> np.ndarray:
    """A waveform at `samples` samples, by its spectrum: some ten times as fast as the exact resampler, and good enough
    for what wraps round at the edges of a crop."""
    spectrum = np.fft.rfft(wave)
    kept = np.zeros(samples // 2 + 1, np.complex128)
    n = min(len(kept), len(spectrum))
    kept[:n] = spectrum[:n]
    return (np.fft.irfft(kept, samples) * (samples / len(wave))).astype(np.float32)


def collate(items: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """Stack crops into tensors with a batch dimension."""
    return {k: torch.from_numpy(np.stack([i[k] for i in items])) for k in items[0]}


def random_gain(wave: np.ndarray, rng: np.random.Generator, spread_db: float = 8.0) -> np.ndarray:
    """Scale by a random gain (normal, dB), without clipping."""
    gain = 10.0 ** (rng.normal(0.0, spread_db) / 20.0)
    return wave * np.float32(min(gain, 0.99 / max(float(np.abs(wave).max()), 1e-6)))
