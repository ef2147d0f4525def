"""How the voice moves: F0, voicing, and voices where the source is silent."""

from __future__ import annotations

import importlib.metadata

import numpy as np

from vivavoce.eval import metrics
from vivavoce.eval.judges.base import RATE, Heard, Judge, stand_in

VOICED = 0.4  # confidence of swift-f0 from which a frame counts as voiced
WORLD_HOP = 0.01  # s, of the WORLD tracker


class PitchColumns(Judge):
    """What any F0 tracker's frames tell."""

    kind = "pitch"
    columns = ("f0_corr", "f0_frames", "f0_shift", "f0_range", "voicing_f1", "silence_voiced", "silence_frames")
    min_seconds = 0.1

    def track(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Times in s, F0 in Hz and whether it is voiced, each [frames], of a 16 kHz clip of any length."""
        raise NotImplementedError

    def analyse(self, wave: np.ndarray) -> Heard:
        """F0 in Hz, voiced or not, and whether the clip is silent there, each [frames]."""
        times, hz, on = self.track(wave)
        quiet = metrics.silence(metrics.levels(wave))
        at = np.minimum(np.round(times * RATE / metrics.HOP).astype(int), len(quiet) - 1)
        return {"hz": hz.astype(np.float32), "on": on.astype(bool), "silent": quiet[at]}

    def compare(self, source: Heard, converted: Heard, target: Heard | None = None) -> dict[str, float | str]:
        pair = (source["hz"], source["on"], converted["hz"], converted["on"])
        corr, n = metrics.f0_correlation(*pair)
        invented, silent = metrics.voiced_in_silence(source["silent"], source["on"], converted["on"])
        return {"f0_corr": corr, "f0_frames": float(n), "f0_shift": metrics.f0_shift(*pair),
                "f0_range": metrics.f0_range(*pair), "voicing_f1": metrics.voicing_f1(source["on"], converted["on"]),
                "silence_voiced": invented, "silence_frames": float(silent)}  # fmt: skip


class PitchJudge(PitchColumns):
    """swift-f0 on its own grid of 16 ms."""

    package, install, licence = "swift-f0", "swift-f0", "MIT"

    def __init__(self) -> None:
        self._tracker = self.require("swift_f0").SwiftF0(threads=1, spin=False)

    def track(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        padded = np.pad(wave.astype(np.float32), (0, max(0, 4096 - len(wave))))
        r = self._tracker.detect(padded, RATE)
        n = int(np.searchsorted(r.timestamps, len(wave) / RATE, side="right"))
        return r.timestamps[:n], r.pitch_hz[:n], r.confidence[:n] >= VOICED


class WorldPitchJudge(PitchColumns):
    """WORLD's Harvest (Morise 2017), 50 to 1100 Hz, every 10 ms: slower, and without any training."""

    package, install, licence = "pyworld", "pyworld", "MIT"

    def __init__(self) -> None:
        with stand_in("pkg_resources", get_distribution=importlib.metadata.distribution):  # for its version
            self.world = self.require("pyworld")

    @property
    def name(self) -> str:
        return "pitch:world"

    def track(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        hz, times = self.world.harvest(wave.astype(np.float64), RATE, 50.0, 1100.0, 1000 * WORLD_HOP)
        keep = times <= len(wave) / RATE
        return times[keep], np.maximum(hz[keep], 1.0), hz[keep] > 0
