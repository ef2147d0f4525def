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
REGISTERS = 60.0, 280.0  # Hz, within which people speak; who sounds beyond them cries, laughs or screams


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
    """The speaker's running pitch register, log2 F0, learnt on the way without bending the melody.

    Two things are kept apart. What is *believed*: a posterior mean of log2 F0, from a prior as strong as
    `prior_frames` voiced frames at `DEFAULT_REGISTER` and all voiced frames so far, forgotten with a time
    constant of `memory_frames` of them. And what is *used*, which every F0 is measured against, so that its
    motion is heard: it takes up the belief at once for the first `FREE` voiced frames, and then follows it at
    `SPEAKING` semitones a second (faster where it is far off), but at `RESTING` in a pause, where nothing is
    bent. The constants were chosen on pitch tracks, see docs/live.md.

    Args:
        start: register in Hz that is known beforehand (from a scan of the file, or an earlier session). Else, and
            unless it lies there itself, none outside `REGISTERS` is believed.
    """

    FREE = 3  # voiced frames
    SPEAKING, RESTING = 0.3, 15.0  # semitones a second
    FAR, HURRY = 2.0, 0.3  # beyond FAR semitones, HURRY semitones a second more for each
    PAUSE = 10  # unvoiced frames in a row

    def __init__(self, start: float | None = None, prior_frames: float = 1.0, memory_frames: float = 1000.0,
                 frame: float = 0.02) -> None:  # fmt: skip
        super().__init__()
        self.start = math.log2(start or DEFAULT_REGISTER)
        low, high = (math.log2(r) for r in REGISTERS)
        self.bounds = min(low, self.start), max(high, self.start)
        self.prior = memory_frames if start else prior_frames
        self.free = 0 if start else self.FREE
        self.memory, self.step = memory_frames, frame / 12.0  # seconds a frame; semitones a second -> octaves a frame

    def forward(self, f0: Tensor, periodicity: Tensor, state: State = None) -> tuple[Tensor, State]:
        """F0 (Hz) and periodicity [B, T] -> log2 register in Hz [B, T], the present frame included."""
        x, voiced = torch.log2(f0.double().clamp_min(PITCH_BASE)), periodicity > 0.5
        if state is None:
            zero = x.new_zeros(x.shape[0])
            state = (zero + self.prior * self.start, zero + self.prior, zero + self.start, zero, zero)
        total, mass, used, heard, gap = state  # sum and number of frames, register, voiced frames, unvoiced in a row
        out = []
        for t in range(x.shape[1]):
            v = voiced[:, t].double()
            keep = 1.0 - v * (mass >= self.memory).double() / self.memory
            total, mass = total * keep + x[:, t] * v, mass * keep + v
            heard, gap = (heard + v).clamp_max(self.free + 1), ((gap + 1) * (1 - v)).clamp_max(self.PAUSE)
            way = (total / mass).clamp(*self.bounds) - used
            speaking = self.SPEAKING + self.HURRY * (12.0 * way.abs() - self.FAR).clamp_min(0)
            most = self.step * torch.where(gap >= self.PAUSE, self.RESTING, speaking)
            free = voiced[:, t] & (heard <= self.free)
            used = used + torch.where(free, way, torch.minimum(torch.maximum(way, -most), most))
            out.append(used)
        y = torch.stack(out, 1) if out else x
        return y.to(f0.dtype), (total, mass, used, heard, gap)


def mean_register(f0: Tensor, periodicity: Tensor) -> float:
    """Register in Hz of a whole recording (geometric mean over voiced frames); the default if none is voiced."""
    voiced = periodicity > 0.5
    if not bool(voiced.any()):
        return DEFAULT_REGISTER
    return float(torch.exp2(torch.log2(f0[voiced]).mean()))


def speaking_register(f0: Tensor, periodicity: Tensor) -> float:
    """Register in Hz that the speaker of a recording has when speaking, as far as it tells: its mean, within
    `REGISTERS`. So a recording that is one scream remains high above the register."""
    low, high = REGISTERS
    return min(max(mean_register(f0, periodicity), low), high)
