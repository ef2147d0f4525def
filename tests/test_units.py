"""The unit encoder with random weights, and the quantisers, pitch features and registers beside it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import assert_same, in_chunks, ragged, sine
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vivavoce.codec.source import Excitation
from vivavoce.core.frames import Framing
from vivavoce.core.layers import State
from vivavoce.units import UnitEncoder, UnitsConfig
from vivavoce.units.fsq import FSQ
from vivavoce.units.pitch import (
    BINS,
    BINS_PER_OCTAVE,
    F_MIN,
    LagFeatures,
    PitchTracker,
    decode_pitch,
    encode_pitch,
)
from vivavoce.units.prosody import (
    DEFAULT_REGISTER,
    LEVEL_STEP,
    PERIODICITY_STEPS,
    PITCH_BASE,
    Register,
    dequantise,
    mean_register,
    quantise,
    speaking_register,
)

RATE, HOP, FRAMES = 16000, 320, 40


@pytest.fixture
def units() -> UnitEncoder:
    config = UnitsConfig(
        n_mels=24, dim=16, depth=2, content_units=40, expression_levels=[7, 5], pitch_dim=16, pitch_depth=2
    )
    return UnitEncoder(config).eval()


def cents(a: Tensor, b: Tensor) -> Tensor:
    return 1200 * torch.log2(a.double() / b.double())


# ---------------------------------------------------------------- encoder


@torch.no_grad()
def test_any_chunking_equals_one_call(units: UnitEncoder) -> None:
    wave = 0.3 * torch.randn(2, FRAMES * HOP)
    whole, _ = units(wave)
    assert whole.content.shape == (2, FRAMES) and whole.expression.shape == (2, FRAMES, 2)
    assert whole.content.dtype == whole.expression.dtype == torch.int64 and len(whole.content.unique()) > 3
    assert whole.content.min() >= 0 and whole.content.max() < 40
    assert (whole.expression < torch.tensor([7, 5])).all() and whole.expression.min() >= 0
    assert whole.periodicity.min() >= 0 and whole.periodicity.max() <= 1 and whole.f0.min() > 40
    for seed in range(4):
        got = in_chunks(units, (wave,), ragged(FRAMES * HOP, HOP, seed))
        assert_same(got[:2], tuple(whole[:2]))
        torch.testing.assert_close(got[2], whole.f0, atol=1e-3, rtol=1e-5)  # Hz
        assert_same(got[3], whole.periodicity)
    assert torch.equal(units(wave[1:])[0].content, whole.content[1:])  # rows of a batch do not meet


@torch.no_grad()
def test_state_is_plain_and_bounded(units: UnitEncoder) -> None:
    def shapes(s):
        return s.shape if isinstance(s, Tensor) else [shapes(part) for part in s]

    wave = torch.randn(1, 30 * HOP)
    assert shapes(units(wave[:, :HOP])[1]) == shapes(units(wave)[1])


@torch.no_grad()
def test_a_frame_hears_its_own_block_and_none_after(units: UnitEncoder) -> None:
    """Frame t is ready with sample (t + 1) hop and speaks of frame t - lookahead: those are its look-ahead."""
    wave, t = 0.3 * torch.randn(1, FRAMES * HOP), 20
    features = lambda x: units.features(units.spectra(x)[0])[0]  # noqa: E731
    h, pitch = features(wave), units.pitch.logits(wave)[0]
    changed = wave.clone()
    changed[:, (t + 1) * HOP :] = torch.randn(1, wave.shape[1] - (t + 1) * HOP)
    assert torch.equal(features(changed)[:, : t + 1], h[:, : t + 1])
    assert torch.equal(units.pitch.logits(changed)[0][:, : t + 1], pitch[:, : t + 1])
    changed = wave.clone()
    changed[:, (t + 1) * HOP - 60 : (t + 1) * HOP] += 1.0
    assert (features(changed)[:, t] - h[:, t]).abs().max() > 1e-4
    assert (units.pitch.logits(changed)[0][:, t] - pitch[:, t]).abs().max() > 1e-6
    assert (units(changed)[0].f0[:, :t] == units(wave)[0].f0[:, :t]).all()


@torch.no_grad()
def test_units_do_not_hear_the_level(units: UnitEncoder) -> None:
    wave = 0.5 * torch.randn(1, FRAMES * HOP)
    mel, quiet = units.spectra(wave)[0], units.spectra(0.1 * wave)[0]
    assert (mel - quiet)[:, 3:].abs().max() < 0.02


@torch.no_grad()
def test_save_and_load(units: UnitEncoder, tmp_path: Path) -> None:
    units.save_pretrained(tmp_path)
    again = UnitEncoder.from_pretrained(tmp_path)
    wave = torch.randn(1, 10 * HOP)
    assert again.config == units.config
    assert_same(tuple(units(wave)[0]), tuple(again(wave)[0]), 0.0)


# ---------------------------------------------------------------- FSQ


@pytest.mark.parametrize("levels", [[7, 7, 7], [3], [5, 9, 11, 3]])
def test_fsq_integers_and_values_are_one_to_one(levels: list[int]) -> None:
    fsq = FSQ(levels)
    values, index = fsq(4 * torch.randn(3, 500, len(levels)))
    assert index.dtype == torch.int64 and index.min() == 0 and (index.amax((0, 1)) == torch.tensor(levels) - 1).all()
    assert_same(fsq.values(index), values.detach(), 1e-6)
    grid = torch.cartesian_prod(*(torch.arange(n) for n in levels)).reshape(-1, len(levels))
    inner = fsq.values(grid) * 0.999
    assert torch.equal(fsq(torch.atanh(inner))[1], grid)  # quantising a value returns its integer
    assert fsq.values(grid).abs().max() <= 1 and (fsq.values(grid).mean(0)).abs().max() < 1e-6


def test_fsq_gradient_passes() -> None:
    x = torch.randn(100, 3, requires_grad=True)
    values, _ = FSQ([7, 7, 7])(x)
    (grad,) = torch.autograd.grad(values.sum(), x)
    assert_same(grad, (1 - torch.tanh(x) ** 2).detach())  # as if it had not been rounded


def test_fsq_rounds_to_the_nearest_level() -> None:
    fsq, x = FSQ([7]), torch.linspace(-3, 3, 601)[:, None]
    assert ((fsq(x)[0] - torch.tanh(x)).abs() <= 0.5 / 3 + 1e-6).all()


@pytest.mark.parametrize("levels", [[4], [7, 1], [7, -3], [2]])
def test_fsq_refuses_even_and_small_levels(levels: list[int]) -> None:
    with pytest.raises(ValueError, match="odd and at least 3"):
        FSQ(levels)


# ---------------------------------------------------------------- prosody


@given(st.floats(20, 2000), st.floats(0, 1), st.floats(-100, 10))
def test_prosody_round_trip_is_fine(f0: float, periodicity: float, level: float) -> None:
    units = quantise(torch.tensor(f0), torch.tensor(periodicity), torch.tensor(level))
    assert units.shape == (3,) and units.dtype == torch.int64
    back = dequantise(units)
    assert cents(back[0], torch.tensor(f0)).abs() <= 3
    assert abs(float(back[1]) - periodicity) <= 0.5 / PERIODICITY_STEPS + 1e-6
    assert abs(float(back[2]) - level) <= LEVEL_STEP / 2 + 1e-4
    assert torch.equal(quantise(*back), units)  # a second round trip changes nothing


def test_prosody_keeps_the_melody() -> None:
    f0 = 150 * torch.exp2(torch.cumsum(0.03 * torch.randn(5000), 0) * 0.3)
    back, _, _ = dequantise(quantise(f0, torch.ones(5000), torch.zeros(5000)))
    pair = torch.stack((f0.log2(), back.log2())).double()
    assert torch.corrcoef(pair)[0, 1] > 0.999
    # even a nearly flat voice, one semitone up and down
    f0 = 150 * torch.exp2(torch.sin(torch.arange(1000) / 9) / 12)
    back, _, _ = dequantise(quantise(f0, torch.ones(1000), torch.zeros(1000)))
    assert torch.corrcoef(torch.stack((f0.log2(), back.log2())).double())[0, 1] > 0.999


def test_prosody_bounds() -> None:
    units = quantise(torch.tensor([0.0, 5.0]), torch.tensor([-1.0, 2.0]), torch.tensor([-65.0, 0.0]))
    f0, periodicity, _ = dequantise(units)
    assert (f0 == PITCH_BASE).all() and periodicity.tolist() == [0.0, 1.0]


# ---------------------------------------------------------------- registers


def melody(n: int, centre: float = 120.0, b: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """F0 with 3 semitones of spread around `centre`, a third of it unvoiced, all of it speech."""
    return centre * torch.exp2(0.25 * torch.randn(b, n)), (torch.rand(b, n) > 0.33).float(), speech(b, n)


def speech(b: int, n: int) -> Tensor:
    return torch.ones(b, n, dtype=torch.bool)


def learnt(register: Register, f0: Tensor, periodicity: Tensor, state: State = None) -> tuple[Tensor, State]:
    """The register of what is all speech."""
    return register(f0, periodicity, speech(*f0.shape), state)


def test_register_any_chunking_equals_one_call() -> None:
    inputs = melody(300)
    for register in (Register(), Register(start=200.0), Register(memory_frames=50)):
        whole, state = register(*inputs)
        for seed in range(3):
            assert_same(in_chunks(register, inputs, ragged(300, seed=seed)), whole, 1e-6)
        empty, same = register(*(x[:, :0] for x in inputs), state)
        assert empty.shape == (2, 0) and same == state


@pytest.mark.parametrize("centre", [90.0, 120.0, 230.0, 270.0])
def test_register_tends_to_the_true_one(centre: float) -> None:
    f0, periodicity, _ = melody(3000, centre)
    y, _ = learnt(Register(), f0, periodicity)
    truth = math.log2(centre)
    errors = [float((y[:, t] - truth).abs().max()) * 12 for t in (0, 100, 2999)]  # semitones
    prior = abs(math.log2(DEFAULT_REGISTER / centre)) * 12
    assert errors[0] <= prior + 2 and errors[1] < 1.5 + prior / 6 and errors[2] < 0.5
    assert 2 ** float(y[0, -1]) == pytest.approx(mean_register(f0[:1], periodicity[:1]), rel=0.02)


def test_register_ignores_what_is_unvoiced() -> None:
    f0, periodicity, _ = melody(200)
    y, _ = learnt(Register(), f0, periodicity)
    wild = torch.where(periodicity > 0.5, f0, 5000.0)
    assert torch.equal(learnt(Register(), wild, periodicity)[0], y)
    y, _ = learnt(Register(), f0, 0 * periodicity)
    assert_same(y, torch.full_like(y, math.log2(DEFAULT_REGISTER)), 1e-6)


def test_register_survives_trackers_that_call_unvoiced_zero_hertz() -> None:
    f0, periodicity, _ = melody(200)
    y, _ = learnt(Register(), torch.where(periodicity > 0.5, f0, 0.0), periodicity)
    assert_same(y, learnt(Register(), f0, periodicity)[0], 1e-6)


def test_a_stranger_is_taken_for_one_of_two_kinds_until_more_is_known() -> None:
    """One high frame of a low voice is no high voice, and what is between two kinds is not between them for long."""
    one = torch.ones(1, 1000)
    for hz, low, high in ((140.0, 115.0, 140.0), (250.0, 200.0, 250.0), (85.0, 85.0, 117.0)):
        y, _ = learnt(Register(), hz * one, one)
        assert low < 2 ** float(y[0, 0]) < high  # so far nearer to the many
        assert 2 ** float(y[0, -1]) == pytest.approx(hz, rel=0.01)
    y, _ = learnt(Register(), torch.cat((220.0 * one[:, :1], 110.0 * one), 1), torch.cat((one[:, :1], one), 1))
    assert 2 ** float(y[0, 12]) < 130.0  # an octave's error in the first frame costs little


def test_a_known_register_is_respected_and_slowly_left() -> None:
    y, _ = Register(start=240.0)(*melody(20, 120.0))
    assert (y - math.log2(240.0)).abs().max() < 0.05  # within half a semitone for the first voiced frames
    y, _ = Register(start=240.0)(*melody(6000, 120.0))
    assert (y[:, -1] - math.log2(120.0)).abs().max() < 0.1


def test_a_laugh_does_not_move_the_register() -> None:
    register, one = Register(), torch.ones(1, 1000)
    _, state = learnt(register, 120.0 * one, one)
    leap, _ = learnt(register, 480.0 * one[:, :25], one[:, :25], state)  # half a second, two octaves up
    assert (leap - math.log2(120.0)).max() * 12 < 0.7  # semitones


def test_register_does_not_bend_a_melody_and_catches_up_in_pauses() -> None:
    """A sentence that falls by an octave in 2 s: measured against the register it still does, nearly."""
    f0, one = 300.0 * torch.exp2(-torch.linspace(0, 1, 100))[None], torch.ones(1, 100)
    y, _ = learnt(Register(), f0, one)
    relative = torch.log2(f0) - y
    assert 0.85 < float(relative[0, 3] - relative[0, -1]) <= 1.0  # octaves; the first frames may be free
    silent = torch.cat((one, 0 * one[:, :50]), 1)  # 1 s of it at the end
    rest, _ = learnt(Register(), torch.cat((f0, f0[:, -50:]), 1), silent)
    assert float(rest[0, -1]) == pytest.approx(math.log2(mean_register(f0, one)), abs=0.02)


def test_register_memory_is_bounded_and_forgets() -> None:
    register, one, state = Register(memory_frames=300), torch.ones(1, 1500), None
    for hz in (100.0, 100.0, 250.0, 250.0):
        y, state = learnt(register, hz * one, one, state)
        ((heard, *_),) = state
        assert heard.spoken <= 301 and math.isfinite(heard.speech) and heard.other == 0
    assert float(y[0, -1]) == pytest.approx(math.log2(250.0), abs=0.01)


def test_mean_register() -> None:
    f0, voiced = torch.tensor([100.0, 400.0, 3.0]), torch.tensor([1.0, 1.0, 0.0])
    assert mean_register(f0, voiced) == pytest.approx(200.0)
    assert mean_register(f0, 0 * voiced) == DEFAULT_REGISTER


@pytest.mark.parametrize(("hz", "believed"), [(700.0, 280.0), (200.0, 200.0), (50.0, 60.0)])
def test_nobody_speaks_at_the_pitch_of_a_scream(hz: float, believed: float) -> None:
    """What is one scream is not taken for a speaker of such a register, so it stays a scream."""
    one = torch.ones(1, 1000)
    assert speaking_register(hz * one, one, one > 0) == pytest.approx(believed, rel=1e-3)
    assert mean_register(hz * one, one) == pytest.approx(hz, rel=1e-5)
    y, _ = learnt(Register(), hz * one, one)
    assert 2 ** float(y[0, -1]) == pytest.approx(believed, rel=0.01)
    y, _ = learnt(Register(start=hz), hz * one, one)  # who says so is believed
    assert 2 ** float(y[0, -1]) == pytest.approx(hz, rel=0.01)


# ---------------------------------------------------------------- pitch


@given(st.floats(55, 1000))
def test_encode_decode_pitch(f0: float) -> None:
    target = encode_pitch(torch.tensor([f0]))
    assert target.shape == (1, BINS) and float(target.sum()) == pytest.approx(1.0)
    place = BINS_PER_OCTAVE * math.log2(f0 / F_MIN)
    assert abs(int(target.argmax()) - place) <= 0.51
    assert cents(decode_pitch(target.log()), torch.tensor([f0])).abs() < 10


@pytest.mark.parametrize("f0", [0.0, 20.0, 50.0, 1200.0, 5000.0])
def test_pitch_beyond_the_bins_takes_the_nearest(f0: float) -> None:
    back = float(decode_pitch(encode_pitch(torch.tensor(f0)).clamp_min(1e-30).log()))
    top = F_MIN * 2 ** ((BINS - 1) / BINS_PER_OCTAVE)
    assert back == pytest.approx(min(max(f0, F_MIN), top), rel=0.05)


def pulses(f0: float, frames: int = 10, tilt: int = 0) -> Tensor:
    """[1, frames * HOP] of the codec's band-limited pulse train; each `tilt` takes 6 dB an octave off it."""
    wave = 0.1 * Excitation(RATE, HOP).eval()(torch.full((1, frames), f0))[0]
    for _ in range(tilt):
        spectrum, freqs = torch.fft.rfft(wave), torch.fft.rfftfreq(wave.shape[1], 1 / RATE)
        wave = torch.fft.irfft(spectrum / (1 + freqs / 100), wave.shape[1])
    return wave


LAG_SIGNALS = {
    "pulses": lambda f0: pulses(f0),  # flat to 8 kHz: peaks one sample wide, which may fall between two bins
    "voice": lambda f0: pulses(f0, tilt=2),
    "sine": lambda f0: 0.1 * sine(f0, RATE, 10 * HOP)[None],
}


@pytest.mark.parametrize("f0", [60.0, 100.0, 220.0, 440.0, 900.0])
@pytest.mark.parametrize("kind", LAG_SIGNALS)
def test_lag_features_peak_at_the_true_lag(f0: float, kind: str) -> None:
    r = LagFeatures(RATE)(Framing(1024, HOP)(LAG_SIGNALS[kind](f0))[0])[0, 4:8]
    assert r.shape == (4, BINS) and r.min() >= -1 and r.max() <= 1.5
    place = round(BINS_PER_OCTAVE * math.log2(f0 / F_MIN))
    for frame in r:
        near = frame[max(place - 1, 0) : place + 2].max()
        assert near > (0.6 if kind != "pulses" else 5 * frame.abs().median())
        if f0 >= 100:  # multiples of the period, if they are in reach, match as well; shorter lags must not
            assert near >= frame[place - 1 :].max()
        else:
            assert near >= frame.max()


def test_lag_features_do_not_hear_the_level_or_an_offset() -> None:
    lags, frames = LagFeatures(RATE), Framing(1024, HOP)(pulses(150.0))[0][:, 5:]
    assert_same(lags(frames), lags(0.1 * frames), 1e-3)
    assert_same(lags(frames), lags(frames + 0.2), 1e-3)
    assert lags(torch.zeros(1, 3, 1024)).abs().max() == 0
    noise = lags(torch.randn(1, 200, 1024))
    assert noise.mean(1).abs().max() < 0.1


@torch.no_grad()
def test_tracker_holds_pitch_through_unvoiced_frames() -> None:
    tracker = PitchTracker(RATE, HOP, 8, 1).eval()
    tracker.head.bias[BINS] = -20.0  # never voiced
    (f0, periodicity), state = tracker(torch.randn(2, 10 * HOP))
    assert (f0 == 150.0).all() and periodicity.max() < 0.2
    tracker.head.bias[BINS] = 20.0
    (voiced, _), state = tracker(torch.randn(2, 10 * HOP), state)
    assert (voiced != 150.0).any()
    tracker.head.bias[BINS] = -20.0
    (held, _), _ = tracker(torch.randn(2, 10 * HOP), state)
    assert torch.equal(held, voiced[:, -1:].expand(-1, 10))


def test_learns_pitch_of_pulse_trains() -> None:
    """The head can read F0 off its features: a few steps on synthetic pulses, judged on other pulses."""
    tracker = PitchTracker(RATE, HOP, 24, 1)
    optimiser = torch.optim.AdamW(tracker.parameters(), lr=1e-2)
    f0 = 80 * torch.exp2(3 * torch.rand(600))
    waves = 0.1 * Excitation(RATE, HOP).eval()(f0[:, None].expand(-1, 6))[0]
    for rows in torch.arange(500).split(50) * 6:
        y = tracker.logits(waves[rows])[0][:, -1, :BINS]
        loss = -(encode_pitch(f0[rows]) * y.log_softmax(-1)).sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        got = decode_pitch(tracker.logits(waves[500:])[0][:, -1, :BINS])
    assert cents(got, f0[500:]).abs().median() < 60
