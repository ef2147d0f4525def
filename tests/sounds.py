"""Signals whose truth is known, for tests of judges and measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vivavoce.core import audio
from vivavoce.eval.judges import Judge, JudgeError, make

RATE = 16000


def voice(seed: int, seconds: float = 1.6, shift: float = 1.0) -> np.ndarray:
    """A sung line: harmonics under three formants; melody and level follow `seed`, F0 is times `shift`."""
    rng = np.random.default_rng(seed)
    n = int(RATE * seconds)
    knots = np.linspace(0, n, 9)
    hz = shift * 180 * 2 ** np.interp(np.arange(n), knots, rng.uniform(-0.5, 0.5, 9))
    level = 10 ** (np.interp(np.arange(n), knots, rng.uniform(-30, -6, 9)) / 20)
    phase = 2 * np.pi * np.cumsum(hz) / RATE
    formants = rng.uniform((300, 900, 2200), (900, 2000, 3200))
    x = np.zeros(n)
    for h in range(1, 16):
        gain = sum(1 / (1 + ((h * hz - f) / 120) ** 2) for f in formants) + 0.02
        x += np.where(h * hz < 6000, gain, 0.0) * np.sin(h * phase)
    x = level * x / np.abs(x).max() + 1e-4 * rng.standard_normal(n)
    return x.astype(np.float32)


def write(path: Path, wave: np.ndarray, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.save(path, torch.from_numpy(wave), rate)
    return path


def available(name: str) -> Judge:
    """The judge, or a skipped test (importorskip fails on Resemblyzer where webrtcvad is absent)."""
    try:
        return make(name)
    except JudgeError as e:
        pytest.skip(str(e))
