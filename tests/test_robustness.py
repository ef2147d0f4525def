"""The embedded default with sources and targets that it was not tuned on; each case has a number and a bound."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vivavoce.changer import Changer, load
from vivavoce.recipes import robustness
from vivavoce.recipes.robustness import Bench, Outcome

SAMPLES = Path(__file__).resolve().parent.parent / "samples"


def read(name: str) -> np.ndarray:
    x, rate = soundfile.read(SAMPLES / name)
    assert rate == robustness.RATE
    return x


@pytest.fixture(scope="module")
def bench() -> Bench:
    for package in ("swift_f0", "resemblyzer"):  # the latter imports only with a stand-in for its voice detector
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    changer: Changer = load()
    return Bench(changer, "chiara", read("speech-low.flac")[: 4 * 16000], read("speech-high.flac"))


@pytest.mark.parametrize("part", ["silence", "sources", "targets", "references"])
def test_bounds_hold(bench: Bench, part: str) -> None:
    outcomes: list[Outcome] = list(getattr(bench, part)())
    assert len(outcomes) >= 2
    assert [str(o) for o in outcomes if not o.ok] == []


def test_a_long_stream_neither_loops_nor_drifts(bench: Bench) -> None:
    bench = Bench(bench.changer, "chiara", bench.x[: 2 * 16000], None)
    assert [str(o) for o in bench.long(0.3) if not o.ok] == []  # ten minutes: the command


def test_the_measures_find_what_they_look_for() -> None:
    rng = np.random.default_rng(0)
    x = read("speech-low.flac")[: 3 * 16000]
    loud = max(range(0, len(x) - 320, 320), key=lambda i: float(np.square(x[i : i + 320]).sum()))
    stuck = np.concatenate([x[loud : loud + 320]] * 120)
    assert robustness._standing(stuck) > 3 * robustness._standing(x)
    noisy = robustness.with_noise(x, 10.0, rng)
    assert abs(10 * np.log10(np.mean(x**2) / np.mean((noisy - x) ** 2)) - 10.0) < 0.1
    assert not Outcome("c", "m", float("nan"), 1.0, "<=").ok
