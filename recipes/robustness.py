"""What a converter does with sources and targets that it was not tuned on: each case ends in a number and a bound.

    python -m vivavoce.recipes.robustness SPEECH [--model DIR] [--voice NAME] [--minutes 10] [--json OUT]

SPEECH is a recording of a sentence or two. The cases are made from it: silence, whisper, shout, noise over speech, a
sung melody, speech backwards (a language nobody knows), very low and child-like targets, a noisy and a short
reference, and a long stream that must neither loop nor drift.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vivavoce.changer import Changer, load
from vivavoce.eval import metrics
from vivavoce.eval.judges import PitchJudge, SpeakerJudge
from vivavoce.recipes.corpus import RATE, read_clip
from vivavoce.voice import Voice

LPC_ORDER, LPC_WINDOW = 18, 640
WHISPERS = 8  # draws of its noise: one tells little, from 0.05 to 0.2 of it come out voiced


@dataclass(frozen=True)
class Outcome:
    """One number: `value` must be at least `bound`, or at most, as `sense` says."""

    case: str
    measure: str
    value: float
    bound: float
    sense: str  # ">=" or "<="

    @property
    def ok(self) -> bool:
        """Whether the bound holds; NaN never does."""
        return self.value >= self.bound if self.sense == ">=" else self.value <= self.bound

    def __str__(self) -> str:
        return (f"{'ok  ' if self.ok else 'MISS'} {self.case:22} {self.measure:42} "
                f"{self.value:8.2f}  ({self.sense} {self.bound:g})")  # fmt: skip


# ---- sources ------------------------------------------------------------------------------------------


def whisper(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same words without a voice: each frame's linear-prediction envelope, excited by noise."""
    from scipy.linalg import solve_toeplitz
    from scipy.signal import lfilter

    w, hop = np.hanning(LPC_WINDOW + 1)[:-1], LPC_WINDOW // 2
    out = np.zeros(len(x) + LPC_WINDOW)
    for at in range(0, len(x) - LPC_WINDOW, hop):
        frame = x[at : at + LPC_WINDOW] * w
        r = np.correlate(frame, frame, "full")[LPC_WINDOW - 1 :][: LPC_ORDER + 1]
        if r[0] < 1e-7:
            continue
        r[0] *= 1.0001
        a = solve_toeplitz(r[:-1], r[1:])
        gain = math.sqrt(max(r[0] - a @ r[1:], 1e-9) / LPC_WINDOW)
        noise = rng.standard_normal(LPC_WINDOW + 200)
        out[at : at + LPC_WINDOW] += lfilter([gain], np.r_[1.0, -a], noise)[200:] * w
    return out[: len(x)]


def shout(x: np.ndarray) -> np.ndarray:
    """Louder, brighter and clipped, as a shout into a microphone is."""
    bright = x - 0.7 * np.r_[0.0, x[:-1]]
    return np.clip(bright * (3.0 / max(np.abs(bright).max(), 1e-9)), -0.98, 0.98)


def with_noise(x: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """Pink noise added at a signal-to-noise ratio in dB."""
    spectrum = np.fft.rfft(rng.standard_normal(len(x)))
    pink = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1.0)), len(x))
    return x + pink * np.sqrt(np.mean(x**2) / np.mean(pink**2)) * 10 ** (-snr_db / 20)


def sung(seconds: float = 4.0) -> np.ndarray:
    """A sung scale on an open vowel: five notes over an octave, vibrato of 5.5 Hz and half a semitone."""
    t = np.arange(round(seconds * RATE)) / RATE
    notes = np.array([0, 4, 7, 12, 7])[np.minimum((t / seconds * 5).astype(int), 4)]
    f0 = 196.0 * 2 ** ((notes + 0.5 * np.sin(2 * np.pi * 5.5 * t)) / 12)
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    out = np.zeros_like(t)
    for k in range(1, 24):
        f = k * f0
        gain = sum(a / (1 + ((f - c) / b) ** 2) for a, c, b in ((1, 730, 90), (0.6, 1090, 110), (0.25, 2440, 160)))
        out += gain * np.sin(k * phase) * (f < 7500)
    return 0.3 * out / np.abs(out).max()


# ---- cases --------------------------------------------------------------------------------------------


class Bench:
    """A model, a voice, and the speech from which the cases are made.

    Args:
        speech: 16 kHz mono [n], 3 s or more.
        reference: another recording, of a target, for the cases on references; 16 kHz [n], 6 s or more.
    """

    def __init__(self, changer: Changer, voice: str | Voice, speech: np.ndarray, reference: np.ndarray | None,
                 seed: int = 0) -> None:  # fmt: skip
        self.changer, self.voice, self.x, self.reference = changer, changer.voice(voice), speech, reference
        self.rng = np.random.default_rng(seed)
        self.pitch = PitchJudge()

    def convert(self, x: np.ndarray, voice: Voice | None = None) -> np.ndarray:
        """Through the whole chain; as long as x."""
        return self.changer.convert(torch.from_numpy(x).float(), voice or self.voice, RATE)[0].numpy()

    def follows(self, case: str, x: np.ndarray, astray: float | None, energy: float) -> Iterator[Outcome]:
        """How melody and loudness of a conversion follow the source's.

        Melody by its gross errors: where a voice hardly moves, one octave slip of a tracker ruins a correlation.
        """
        y = self.convert(x)
        if astray is not None:
            (_, a, on), (_, b, also) = self.pitch.track(x), self.pitch.track(y)
            n = min(len(a), len(b))
            both = on[:n] & also[:n]
            step = 12 * np.log2(b[:n][both] / a[:n][both])
            off = float((np.abs(step - np.median(step)) > 2).mean()) if both.sum() > 10 else math.nan
            yield Outcome(case, "frames whose melody is 2 semitones astray", off, astray, "<=")
        r, _ = metrics.energy_correlation(metrics.levels(x), metrics.levels(y))
        yield Outcome(case, "energy correlation with the source", r, energy, ">=")

    def silence(self) -> Iterator[Outcome]:
        for name, x in (("silence, digital", np.zeros(3 * RATE)),
                        ("silence, -70 dBFS hiss", self.rng.standard_normal(3 * RATE) * 10 ** (-70 / 20))):  # fmt: skip
            loud = float(metrics.levels(self.convert(x)).max())
            yield Outcome(name, "loudest frame of the output, dBFS", loud, -55.0, "<=")

    def sources(self) -> Iterator[Outcome]:
        drawn = [whisper(self.x, self.rng) for _ in range(WHISPERS)]
        voiced = float(np.mean([self.pitch.track(self.convert(x))[2].mean() for x in drawn]))
        yield Outcome("whisper", "share of the output that is voiced", voiced, 0.2, "<=")
        x = drawn[0]
        yield from self.follows("whisper", x, None, 0.9)
        yield from self.follows("shout", shout(self.x), 0.1, 0.85)
        yield from self.follows("noise 10 dB below", with_noise(self.x, 10.0, self.rng), 0.15, 0.85)
        yield from self.follows("singing, an octave", sung(), 0.05, 0.85)
        yield from self.follows("backwards (no language)", self.x[::-1].copy(), 0.1, 0.85)

    def targets(self) -> Iterator[Outcome]:
        """Registers far from the source's must be reached; the prompt stays the voice's."""
        for name, hz in (("target of 65 Hz", 65.0), ("target of 380 Hz (child)", 380.0)):
            y = self.convert(self.x, replace(self.voice, register=hz, name=name))
            _, f0, voiced = self.pitch.track(y)
            off = abs(12 * float(np.log2(f0[voiced]).mean() - math.log2(hz))) if voiced.sum() > 10 else math.nan
            yield Outcome(name, "register off by, semitones", off, 2.0, "<=")

    def references(self) -> Iterator[Outcome]:
        """What a poor reference costs in likeness to the target, against a clean one of full length."""
        if self.reference is None:
            return
        judge, clean = SpeakerJudge(), self.reference
        target = judge.embed(clean.astype(np.float32))

        def likeness(reference: np.ndarray) -> float:
            voice = self.changer.enroll(torch.from_numpy(reference).float(), RATE, "reference")
            return float(target @ judge.embed(self.convert(self.x, voice).astype(np.float32)))

        full = likeness(clean)
        for name, ref in (("reference of 3 s", clean[: 3 * RATE]),
                          ("reference, noise 15 dB", with_noise(clean, 15.0, self.rng))):  # fmt: skip
            yield Outcome(name, "likeness lost, cosine", full - likeness(ref), 0.1, "<=")

    def long(self, minutes: float) -> Iterator[Outcome]:
        """The same speech over and over: later rounds must sound like early ones, and like the words. Where there is
        time, early is after a minute, in which the source's voice is learnt (vivavoce.guidance)."""
        rounds = max(4, round(minutes * 60 * RATE / len(self.x)))
        y = self.convert(np.tile(self.x, rounds)).reshape(rounds, -1)
        spectra = [_envelope(r) for r in y]
        early = 1 if minutes < 2 else round(60 * RATE / len(self.x))
        near = _distance(spectra[early + 1], spectra[early])  # the codec's noise alone tells them apart
        far = _distance(spectra[-1], spectra[early])
        yield Outcome(f"{minutes:g} minutes", "last round's distance / an early one's", far / near, 1.25, "<=")
        drift = float(np.mean(metrics.levels(y[-1])) - np.mean(metrics.levels(y[early])))
        yield Outcome(f"{minutes:g} minutes", "level drift, dB", abs(drift), 1.0, "<=")
        yield Outcome(f"{minutes:g} minutes", "longest standing sound / the source's",
                      _standing(y[-1]) / max(_standing(self.x), 1), 2.5, "<=")  # fmt: skip

    def run(self, minutes: float = 10.0) -> Iterator[Outcome]:
        """All cases, in order."""
        for part in (self.silence, self.sources, self.targets, self.references):
            yield from part()
        yield from self.long(minutes)


def _envelope(x: np.ndarray, bands: int = 32) -> np.ndarray:
    """Log power in dB in `bands` equal bands of each 40 ms frame, every 20 ms, [frames, bands]."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(x, (0, 640)), 640)[::320] * np.hanning(640)
    power = np.abs(np.fft.rfft(frames, axis=1))[:, 1:] ** 2
    return 10 * np.log10(power.reshape(len(power), bands, -1).mean(-1) + 1e-7)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in dB."""
    return float(np.abs(a - b).mean())


def _standing(x: np.ndarray, move_db: float = 1.5) -> int:
    """Frames of the longest stretch in which a loud sound hardly moves: what a loop on one code sounds like."""
    e = _envelope(x)
    still = (np.abs(np.diff(e, axis=0)).mean(1) < move_db) & (e[1:].max(1) > -20)
    longest = run = 0
    for s in still:
        run = run + 1 if s else 0
        longest = max(longest, run)
    return longest


def main(argv: list[str] | None = None) -> int:
    """Print every number; exit status 1 when a bound does not hold."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("speech", type=Path, help="a recording of a sentence or two")
    p.add_argument("--reference", type=Path, help="a recording of a target, 6 s or more")
    p.add_argument("--model", help="model folder (default: the embedded one)")
    p.add_argument("--voice", default="chiara")
    p.add_argument("--minutes", type=float, default=10.0, help="of the long stream")
    p.add_argument("--json", type=Path, help="write the numbers here")
    a = p.parse_args(argv)
    read: Callable[[Path], np.ndarray] = lambda path: read_clip(path.parent, {"path": path.name})  # noqa: E731
    bench = Bench(load(a.model), a.voice, read(a.speech), read(a.reference) if a.reference else None)
    outcomes = []
    for outcome in tqdm(bench.run(a.minutes), unit="number"):
        outcomes.append(outcome)
        tqdm.write(str(outcome))
    if a.json:
        from vivavoce.core.checkpoint import write_json

        write_json(a.json, [{**asdict(o), "ok": o.ok} for o in outcomes])
    return 0 if all(o.ok for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
