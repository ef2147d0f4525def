"""Prosody units: pitch in 5-cent steps, periodicity in 16, level in half decibels; and pitch registers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vivavoce.core.layers import State

PITCH_BASE = 20.0  # Hz
PITCH_STEPS = 240  # an octave
PERIODICITY_STEPS = 15
LEVEL_STEP = 0.5  # dB
DEFAULT_REGISTER = 160.0  # Hz, between most low and most high voices


def quantise(f0: Tensor, periodicity: Tensor, level: Tensor) -> Tensor:
    """F0 (Hz), periodicity (0 to 1) and level (dB re full scale), each [...] -> integers [..., 3]."""
    pitch = (PITCH_STEPS * torch.log2(f0.clamp_min(PITCH_BASE) / PITCH_BASE)).round()
    voiced = (periodicity.clamp(0, 1) * PERIODICITY_STEPS).round()
    return torch.stack((pitch, voiced, (level / LEVEL_STEP).round()), dim=-1).long()


def dequantise(units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integers [..., 3] -> F0 (Hz), periodicity, level (dB)."""
    pitch, voiced, level = units.unbind(-1)
    f0 = PITCH_BASE * torch.exp(pitch * (math.log(2.0) / PITCH_STEPS))
    return f0, voiced / PERIODICITY_STEPS, level * LEVEL_STEP


class Register(nn.Module):
    """The speaker's running pitch register: mean log2 F0 over what was voiced, slow enough that a laugh's
    leaps survive.

    It is a posterior mean: a prior at `DEFAULT_REGISTER` as strong as `prior_frames` voiced frames, then
    all voiced frames so far, forgotten with a time constant of `memory_frames` of them.

    Args:
        start: register in Hz that is known beforehand (from a scan of the file, or an earlier session).
    """

    def __init__(self, start: float | None = None, prior_frames: float = 6.0, memory_frames: float = 1000.0) -> None:
        super().__init__()
        self.start = math.log2(start or DEFAULT_REGISTER)
        self.prior = memory_frames if start else prior_frames
        self.memory = memory_frames

    def forward(self, f0: Tensor, periodicity: Tensor, state: State = None) -> tuple[Tensor, State]:
        """F0 (Hz) and periodicity [B, T] -> log2 register in Hz [B, T], the present frame included."""
        if state is None:
            mass = torch.full((f0.shape[0],), self.prior, dtype=torch.float64, device=f0.device)
            state = (mass * self.start, mass)
        total, mass = state
        x, w = torch.log2(f0.double().clamp_min(PITCH_BASE)), (periodicity > 0.5).double()
        out = []
        for t in range(x.shape[1]):
            keep = 1.0 - w[:, t] * (mass >= self.memory).double() / self.memory
            total, mass = total * keep + x[:, t] * w[:, t], mass * keep + w[:, t]
            out.append(total / mass)
        y = torch.stack(out, 1) if out else x
        return y.to(f0.dtype), (total, mass)


def mean_register(f0: Tensor, periodicity: Tensor) -> float:
    """Register in Hz of a whole recording (geometric mean over voiced frames); the default if none is voiced."""
    voiced = periodicity > 0.5
    if not bool(voiced.any()):
        return DEFAULT_REGISTER
    return float(torch.exp2(torch.log2(f0[voiced]).mean()))
