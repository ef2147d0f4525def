"""The gate on real laughs and sobs, and on rooms of several kinds: nothing of the voice is eaten, silence is quiet."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vivavoce.core.audio import load
from vivavoce.gate import Gate

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
RATE = 16000
LAG = 0.1  # s, a stream's


def noise(n: int, level: float, tilt: float = 0.0, seed: int = 0) -> Tensor:
    """Stationary noise [n], `level` dB re full scale; tilt 0.9 sounds like a ventilator."""
    w = torch.randn(n + 64, generator=torch.Generator().manual_seed(seed))
    w = torch.nn.functional.conv1d(w[None, None], tilt ** torch.arange(65.0)[None, None])[0, 0]
    return 10 ** (level / 20) * w / w.std()


def gated(gate: Gate, x: Tensor, y: Tensor, seed: int = 0, rate: int = RATE) -> Tensor:
    """As a stream does it: x goes in, ragged; of y, LAG seconds fewer have come out at any time."""
    rng, at, given, out, lag = random.Random(seed), 0, 0, [], round(LAG * rate)
    while at < len(x):
        n = min(len(x) - at, rng.choice((1, 100, 320, 640, 1777)))
        gate.hear(x[at : at + n])
        at += n
        out.append(gate.apply(y[given : max(given, at - lag)]))
        given = max(given, at - lag)
    return torch.cat((*out, gate.apply(y[given:])))


@pytest.mark.parametrize("name", ["laugh", "sob", "speech-low"])
@pytest.mark.parametrize(("snr", "tilt"), [(45, 0.9), (35, 0.0), (35, 0.9)])
def test_a_performance_comes_through_whole_and_the_room_does_not(name: str, snr: float, tilt: float) -> None:
    x, _ = load(SAMPLES / f"{name}.flac", RATE)
    frames = x[: len(x) // 320 * 320].reshape(-1, 320)
    level = 10 * torch.log10(frames.square().mean(1) + 1e-12)
    rest = torch.zeros(2 * RATE)
    room = noise(len(x) + 4 * RATE, float(level.max()) - snr, tilt)
    heard = torch.cat((rest, x, rest)) + room
    gain = gated(Gate(RATE), heard, torch.ones(len(heard)))
    assert len(gain) == len(heard)
    kept = gain[2 * RATE : -2 * RATE]
    assert 1 - float((kept * x).square().sum() / x.square().sum()) < 1e-3  # share of energy lost
    quiet = (level < level.max() - 20) & (level > level.max() - snr + 12)  # breaths between the bursts
    held = kept[: frames.numel()].reshape(-1, 320)[quiet]
    if quiet.any():
        assert 1 - float((held * frames[quiet]).square().sum() / frames[quiet].square().sum()) < 0.02
    loud = int((level > level.max() - 20).nonzero()[0]) * 320  # the first burst, and the 20 ms before it
    assert float(kept[max(0, loud - 320) : loud + 1600].min()) > 0.98
    silence = torch.cat((gain[RATE : 2 * RATE - 1600], gain[-RATE:]))
    assert float((silence < 0.02).float().mean()) > 0.95


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_any_chunking(rate: int) -> None:
    x = torch.cat((noise(rate, -60), noise(rate // 5, -30, seed=1), noise(rate, -60)))
    one = Gate(rate)
    one.hear(x)
    whole = one.apply(x)
    for seed in range(3):
        torch.testing.assert_close(gated(Gate(rate), x, x, seed, rate), whole, atol=1e-7, rtol=0)
    assert len(whole) == len(x)
    one.reset()
    one.hear(x)
    assert torch.equal(one.apply(x), whole)


def test_it_opens_before_and_without_a_step() -> None:
    x = noise(3 * RATE, -70)
    x[2 * RATE :] += noise(RATE, -30, seed=1)
    gain = gated(Gate(RATE, lookahead=0.06), x, torch.ones(len(x)))
    opening = gain[2 * RATE - 1200 : 2 * RATE]
    assert float(opening[0]) < 0.011 and float(opening[-1]) == 1.0
    assert float(gain.diff().abs().max()) < 0.02


def test_a_louder_room_is_learnt() -> None:
    """A ventilator is switched on: the gate opens, for it might be somebody; then it knows better."""
    x = torch.cat((noise(3 * RATE, -70), noise(90 * RATE, -50)))
    gate, seen = Gate(RATE), []
    for second in x.split(RATE):
        gate.hear(second)
        gate.apply(second)
        seen.append(gate.open)
    assert not seen[2] and seen[3] and not seen[-1]


def test_state_does_not_grow() -> None:
    gate, x = Gate(RATE), noise(RATE, -50)
    for _ in range(20):
        gate.hear(x)
        gate.apply(x)
    assert len(gate._gains) < 2000 and len(gate._want) < 20 and len(gate._rest) < 160
