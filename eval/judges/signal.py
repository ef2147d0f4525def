"""What needs no model: how the level moves, pauses, rate, clicks, seams, noise in silence."""

from __future__ import annotations

import numpy as np

from vivavoce.eval import metrics, seams
from vivavoce.eval.judges.base import NAN, Heard, Judge


class SignalJudge(Judge):
    """Levels and samples alone.

    Args:
        chunk_ms: the period at which the converter joins chunks, in ms; None: unknown, seams are not looked for.
    """

    kind = "signal"
    columns = ("energy_corr", "energy_frames", "level_shift", "pause_f1", "pause_frames", "rate_change", "silence_rise",
               "clicks", "level_jumps", "seam_db")  # fmt: skip
    min_seconds = 0.2

    def __init__(self, chunk_ms: float | None = None) -> None:
        self.chunk_ms = chunk_ms

    def analyse(self, wave: np.ndarray) -> Heard:
        """Frame level in dB [frames], 20 ms hop, and roughness of each millisecond [milliseconds]."""
        return {"level": metrics.levels(wave).astype(np.float32), "rough": seams.roughness(wave).astype(np.float16)}

    def compare(self, source: Heard, converted: Heard, target: Heard | None = None) -> dict[str, float | str]:
        a, b = (x["level"].astype(np.float64) for x in (source, converted))
        old, new = (x["rough"].astype(np.float64) for x in (source, converted))
        corr, n = metrics.energy_correlation(a, b)
        pause, pauses = metrics.pause_f1(a, b)
        return {
            "energy_corr": corr, "energy_frames": float(n), "level_shift": metrics.level_shift(a, b),
            "pause_f1": pause, "pause_frames": float(pauses), "rate_change": metrics.rate_change(a, b),
            "silence_rise": metrics.silence_rise(a, b), "clicks": seams.clicks(old, new),
            "level_jumps": seams.level_jumps(a, b),
            "seam_db": seams.seam(old, new, self.chunk_ms) if self.chunk_ms else NAN,
        }  # fmt: skip
