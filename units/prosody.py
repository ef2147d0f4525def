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


def rounded(f0: Tensor, periodicity: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `dequantise` gives back what `quantise` made of them."""
    return dequantise(quantise(f0, periodicity, level))


def dequantise(units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integers [..., 3] -> F0 (Hz), periodicity, level (dB)."""
    pitch, voiced, level = units.unbind(-1)
    f0 = PITCH_BASE * torch.exp(pitch * (math.log(2.0) / PITCH_STEPS))
    return f0, voiced / PERIODICITY_STEPS, level * LEVEL_STEP


class Register(nn.Module):
    """The speaker's running pitch register, log2 F0, learnt on the way without bending the melody.

    Two things are kept apart. What is *believed*: the posterior mean of a register, given the mean of all voiced frames
    so far (forgotten with a time constant of `memory_frames` of them) and that most registers are near one of two
    (`MODES`). And what is *used*, which every F0 is measured against, so that its motion is heard: it takes up the
    belief at once for the first `FREE` voiced frames, and then follows it at `SPEAKING` semitones a second (faster
    where it is far off), but at `RESTING` in a pause, where nothing is bent. The constants were chosen on pitch tracks,
    see docs/live.md.

    Args:
        start: register in Hz that is known beforehand (from a scan of the file, or an earlier session). Else, and
            unless it lies there itself, none outside `REGISTERS` is believed.
    """

    MODES = (0.37, 117.0, 2.5), (0.63, 212.0, 2.7)  # share of speakers, Hz, semitones of spread
    SWAY, ALIKE = 3.6, 15.0  # semitones by which F0 sways about its register, and frames after which that averages out
    FALL, FELL = 1.0, 60.0  # semitones by which speech begins above its mean, and voiced frames in which it comes down
    FREE = 8  # voiced frames
    SPEAKING, RESTING = 0.3, 15.0  # semitones a second
    FAR, HURRY = 2.0, 0.3  # beyond FAR semitones, HURRY semitones a second more for each
    PAUSE = 10  # unvoiced frames in a row

    def __init__(self, start: float | None = None, memory_frames: float = 1000.0, frame: float = 0.02) -> None:
        super().__init__()
        self.start = math.log2(start or DEFAULT_REGISTER)
        low, high = (math.log2(r) for r in REGISTERS)
        self.bounds = min(low, self.start), max(high, self.start)
        self.known, self.free = start is not None, 0 if start else self.FREE
        self.memory, self.step = memory_frames, frame / 12.0  # seconds a frame; semitones a second -> octaves a frame

    def forward(self, f0: Tensor, periodicity: Tensor, state: State = None) -> tuple[Tensor, State]:
        """F0 (Hz) and periodicity [B, T] -> log2 register in Hz [B, T], the present frame included."""
        rows = [] if state is None else list(state)
        out: list[list[float]] = []
        for b, (track, certain) in enumerate(zip(f0.tolist(), periodicity.tolist())):
            if state is None:
                mass = self.memory if self.known else 0.0
                rows.append((mass * self.start, mass, self.start, 0, 0))
            out.append([])
            for hz, p in zip(track, certain):
                rows[b] = self._follow(math.log2(max(hz, PITCH_BASE)), p > 0.5, *rows[b])
                out[b].append(rows[b][2])
        return f0.new_tensor(out).reshape(f0.shape), tuple(rows)

    def _follow(self, x: float, voiced: bool, total: float, mass: float, used: float, heard: int, gap: int) -> tuple:
        """One frame of log2 F0; sum and number of frames, register, voiced frames, unvoiced ones in a row. Plain
        numbers: a tensor's operation costs a hundred times what it does here."""
        if voiced:
            keep = 1.0 - (mass >= self.memory) / self.memory
            total, mass = total * keep + x, mass * keep + 1.0
        heard, gap = min(heard + voiced, self.free + 1), 0 if voiced else min(gap + 1, self.PAUSE)
        low, high = self.bounds
        way = min(max(self._believed(total, mass), low), high) - used
        if not (voiced and heard <= self.free):
            speaking = self.SPEAKING + self.HURRY * max(12.0 * abs(way) - self.FAR, 0.0)
            most = self.step * (self.RESTING if gap >= self.PAUSE else speaking)
            way = min(max(way, -most), most)
        return total, mass, used + way, heard, gap

    def _believed(self, total: float, mass: float) -> float:
        """Posterior mean of the register, of a mixture of two normal distributions."""
        if self.known or not mass:
            return total / mass if mass else self.start
        mean = total / mass - self.FALL / 12.0 * math.exp(-mass / self.FELL)
        noise = self.SWAY**2 / (1.0 + (mass / self.ALIKE) ** 2)  # squared semitones, as are the variances below
        likely, means = [], []
        for share, hz, spread in self.MODES:
            away, variance = 12.0 * (mean - math.log2(hz)), spread**2 + noise
            likely.append(math.log(share) - 0.5 * (math.log(variance) + away**2 / variance))
            means.append(math.log2(hz) + away / 12.0 * spread**2 / variance)
        chance = [math.exp(x - max(likely)) for x in likely]
        return sum(c * m for c, m in zip(chance, means)) / sum(chance)


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
