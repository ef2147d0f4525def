"""Prosody units: pitch in 5-cent steps, periodicity in 16, level in half decibels; and pitch registers."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vivavoce.core.layers import State

PITCH_BASE = 20.0  # Hz
PITCH_STEPS = 240  # an octave
PERIODICITY_STEPS = 15
LEVEL_STEP = 0.5  # dB
DEFAULT_REGISTER = 160.0  # Hz, between most low and most high voices
REGISTERS = 60.0, 280.0  # Hz, within which people speak; who sounds beyond them cries, laughs or screams
BOUNDS = math.log2(REGISTERS[0]), math.log2(REGISTERS[1])


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


MODES = (0.37, 117.0, 2.5), (0.63, 212.0, 2.7)  # registers: share of speakers, Hz, semitones of spread
SWAY, ALIKE = 3.6, 15.0  # semitones by which F0 sways about its register, and frames after which that averages out
FALL, FELL = 1.0, 60.0  # semitones by which speech begins above its mean, and voiced frames in which it comes down
TELLS = 8.0  # semitones that what speech says of a register may be off by for it to be followed half the way


class Pitches(NamedTuple):
    """What was voiced so far: the sum of log2 F0 of speech, its number of frames, and that of other sounds'."""

    speech: float = 0.0
    spoken: float = 0.0
    other: float = 0.0

    def plus(self, x: float, speaking: bool, memory: float = math.inf) -> Pitches:
        """One frame of log2 F0 more; beyond `memory` frames of its kind, the mean so far counts as that many."""
        speech, spoken, other = self
        if not speaking:
            return Pitches(speech, spoken, min(other + 1.0, memory))
        keep = 1.0 - (spoken >= memory) / memory
        return Pitches(speech * keep + x, spoken * keep + 1.0, other)

    def said(self) -> tuple[float, float]:
        """What speech says of its register, in semitones (12 log2 Hz), and the variance of that; of some speech.

        The more there is, the better it tells; a little among much that is none may be none itself.
        """
        mean = self.speech / self.spoken - FALL / 12.0 * math.exp(-self.spoken / FELL)
        stray = (1.0 + self.other / self.spoken) ** 2
        return 12.0 * mean, stray * SWAY**2 / (1.0 + (self.spoken / ALIKE) ** 2)

    def register(self) -> float:
        """The log2 register of who spoke: the posterior mean, given that most are near one of two (`MODES`). The
        numbers were measured on pitch tracks of a corpus' train split (docs/experiments.md, no. 59)."""
        mean, noise = self.said()
        likely, means = [], []
        for share, hz, spread in MODES:
            away, variance = mean - 12.0 * math.log2(hz), spread**2 + noise
            likely.append(math.log(share) - 0.5 * (math.log(variance) + away**2 / variance))
            means.append(math.log2(hz) + away / 12.0 * spread**2 / variance)
        chance = [math.exp(x - max(likely)) for x in likely]
        return sum(c * m for c, m in zip(chance, means)) / sum(chance)

    def used(self, home: float) -> float:
        """`register`, within `BOUNDS`, as far as speech tells it; else `home` (log2 Hz), the register of the voice that
        it is to be. So a cry or a laugh of who did not speak is not moved: a cry that is moved is none
        (docs/experiments.md, no. 68 to 75)."""
        if not self.spoken:
            return home
        believed = min(max(self.register(), BOUNDS[0]), BOUNDS[1])
        return home + (believed - home) / (1.0 + (self.said()[1] / TELLS**2) ** 4)


class Register(nn.Module):
    """The speaker's running pitch register, log2 F0, learnt on the way without bending the melody.

    Two things are kept apart. What is *believed*: see `Pitches.register`; of each kind of sound the mean so far is
    forgotten with a time constant of `memory_frames`. And what is *used*, which every F0 is measured against, so that
    its motion is heard: it takes up the belief at once for the first `FREE` voiced frames of speech; then it follows it
    at `SPEAKING` semitones a second (faster where it is far off) while somebody speaks, and at `RESTING` in a pause,
    where nothing is bent. Another sound that is voiced does not move it, but where there was no more speech than those
    few frames they are taken for part of that sound, and it is the voice's again: so few may be a cry's beginning. The
    constants were chosen on pitch tracks, see docs/live.md.

    Args:
        start: register in Hz that is known beforehand (from a scan of the file, or an earlier session); it counts as
            the mean of `memory_frames` of speech. Else none outside `REGISTERS` is believed.
        home: register in Hz of the voice that it is to be, used until somebody speaks.
    """

    FREE = 8  # voiced frames of speech
    SPEAKING, RESTING = 0.3, 15.0  # semitones a second
    FAR, HURRY = 2.0, 0.3  # beyond FAR semitones, HURRY semitones a second more for each
    PAUSE = 10  # unvoiced frames in a row

    def __init__(self, start: float | None = None, home: float = DEFAULT_REGISTER, memory_frames: float = 1000.0,
                 frame: float = 0.02) -> None:  # fmt: skip
        super().__init__()
        self.start, self.home = math.log2(start or home), math.log2(home)
        self.bounds = min(BOUNDS[0], self.start), max(BOUNDS[1], self.start)
        self.known = start is not None
        self.memory, self.step = memory_frames, frame / 12.0  # seconds a frame; semitones a second -> octaves a frame

    def forward(
        self, f0: Tensor, periodicity: Tensor, speaking: Tensor, state: State = None
    ) -> tuple[Tensor, State]:
        """F0 (Hz), periodicity and whether it is speech [B, T] -> log2 register in Hz [B, T], the present frame
        included."""
        rows = [] if state is None else list(state)
        out: list[list[float]] = []
        for b, row in enumerate(zip(f0.tolist(), periodicity.tolist(), speaking.tolist())):
            if state is None:
                known = Pitches(self.memory * self.start, self.memory) if self.known else Pitches()
                rows.append((known, self.start, 0))
            out.append([])
            for hz, p, s in zip(*row):
                rows[b] = self._follow(math.log2(max(hz, PITCH_BASE)), p > 0.5, s, *rows[b])
                out[b].append(rows[b][1])
        return f0.new_tensor(out).reshape(f0.shape), tuple(rows)

    def _follow(self, x: float, voiced: bool, speaking: bool, heard: Pitches, used: float, gap: int) -> tuple:
        """One frame of log2 F0; what was heard, register, unvoiced frames in a row. Plain numbers: a tensor's operation
        costs a hundred times what it does here."""
        if voiced:
            heard = heard.plus(x, speaking, self.memory)
        gap = 0 if voiced else min(gap + 1, self.PAUSE)
        if self.known:
            way = min(max(heard.speech / heard.spoken, self.bounds[0]), self.bounds[1]) - used
        else:
            way = heard.used(self.home) - used
        little = heard.spoken <= self.FREE
        if voiced and not speaking:
            return heard, self.home if little else used, gap
        if not (voiced and little):
            quick = self.SPEAKING + self.HURRY * max(12.0 * abs(way) - self.FAR, 0.0)
            most = self.step * (self.RESTING if gap >= self.PAUSE else quick)
            way = min(max(way, -most), most)
        return heard, used + way, gap


def mean_register(f0: Tensor, periodicity: Tensor) -> float:
    """Register in Hz of a whole recording (geometric mean over voiced frames); the default if none is voiced."""
    voiced = periodicity > 0.5
    if not bool(voiced.any()):
        return DEFAULT_REGISTER
    return float(torch.exp2(torch.log2(f0[voiced]).mean()))


def speaking_register(f0: Tensor, periodicity: Tensor, speaking: Tensor, home: float = DEFAULT_REGISTER) -> float:
    """Register in Hz that the speaker of a recording has when speaking, as far as it tells; else `home` (Hz): see
    `Pitches.used`. F0 (Hz), periodicity and whether it is speech, [T] each."""
    voiced = periodicity > 0.5
    x = torch.log2(f0.double().clamp_min(PITCH_BASE))[voiced & speaking]
    return 2.0 ** Pitches(float(x.sum()), float(len(x)), float((voiced & ~speaking).sum())).used(math.log2(home))
