"""Streaming layers, the frame grid and counter-based randomness."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import assert_same, db, in_chunks, ragged, sine
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vivavoce.core import rng
from vivavoce.core.frames import Framing, LogMel, OverlapAdd, mel_filterbank
from vivavoce.core.layers import CausalConv1d, ConvNeXt, ConvNeXtStack

# ---------------------------------------------------------------- layers

LAYERS = {
    "dense": lambda: CausalConv1d(6, 10, 5),
    "dense, kernel 1": lambda: CausalConv1d(6, 10, 1),
    "dense, dilated": lambda: CausalConv1d(6, 10, 3, dilation=4),
    "grouped": lambda: CausalConv1d(6, 12, 3, groups=2),
    "depthwise": lambda: CausalConv1d(6, 6, 7, groups=6),
    "depthwise, kernel 1": lambda: CausalConv1d(6, 6, 1, groups=6),
    "depthwise, dilated": lambda: CausalConv1d(6, 6, 5, dilation=3, groups=6),
    "depthwise, wider": lambda: CausalConv1d(6, 12, 5, groups=6),
    "ConvNeXt": lambda: ConvNeXt(6),
    "ConvNeXtStack": lambda: ConvNeXtStack(6, 12, 3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_any_chunking_equals_one_call(name: str) -> None:
    layer, x = LAYERS[name](), torch.randn(2, 60, 6)
    whole, state = layer(x)
    for seed in range(5):
        assert_same(in_chunks(layer, (x,), ragged(60, seed=seed)), whole)
    assert_same(in_chunks(layer, (x,), [1] * 60), whole)
    _, later = layer(x, state)
    assert_same(later, layer(x, later)[1])  # a state knows its receptive field, not how old the stream is


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_causal_and_keeps_nothing(name: str) -> None:
    layer, x = LAYERS[name](), torch.randn(2, 30, 6)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    y, _ = layer(x)
    changed = x.clone()
    changed[:, 20:] += 1.0
    z, _ = layer(changed)
    assert torch.equal(y[:, :20], z[:, :20]) and (y[:, 20] - z[:, 20]).abs().max() > 1e-4
    assert torch.equal(layer(x)[0], y) and all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("kernel,dilation,groups", [(5, 1, 1), (3, 4, 1), (7, 1, 6), (5, 3, 6), (1, 1, 6)])
def test_causal_conv_is_a_left_padded_conv1d(kernel: int, dilation: int, groups: int) -> None:
    layer, x = CausalConv1d(6, 6, kernel, dilation, groups), torch.randn(2, 40, 6)
    padded = nn.functional.pad(x.transpose(1, 2), ((kernel - 1) * dilation, 0))
    assert_same(layer(x)[0], layer.conv(padded).transpose(1, 2))
    assert layer(x)[1].shape == (2, (kernel - 1) * dilation, 6)


@pytest.mark.parametrize("name", ["depthwise", "dense", "ConvNeXtStack"])
def test_layer_gradients_reach_every_parameter(name: str) -> None:
    layer = LAYERS[name]()
    layer(torch.randn(2, 30, 6))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters() if p.numel() > 1)


# ---------------------------------------------------------------- frames


@pytest.mark.parametrize("window,hop", [(640, 320), (400, 160), (1024, 320), (320, 320)])
def test_framing_any_chunking_equals_one_call(window: int, hop: int) -> None:
    framing, x = Framing(window, hop), torch.randn(2, hop * 25)
    whole, state = framing(x)
    assert whole.shape == (2, 25, window) and state.shape == (2, window - hop)
    for seed in range(5):
        assert torch.equal(in_chunks(framing, (x,), ragged(hop * 25, hop, seed)), whole)
    padded = nn.functional.pad(x, (window - hop, 0))
    for t in (0, 1, 24):  # the frame ends with the samples of its own block
        assert torch.equal(whole[:, t], padded[:, t * hop : t * hop + window])


@pytest.mark.parametrize("n", [1, 319, 321, 959])
def test_framing_names_a_ragged_length(n: int) -> None:
    with pytest.raises(ValueError, match=f"{n} samples are not a whole number of 320-sample frames"):
        Framing(640, 320)(torch.zeros(1, n))


def test_overlap_add_any_chunking_equals_one_call() -> None:
    ola, frames = OverlapAdd(32), torch.randn(2, 25, 64)
    whole, _ = ola(frames)
    assert whole.shape == (2, 25 * 32)
    for seed in range(5):
        assert_same(in_chunks(ola, (frames,), ragged(25, seed=seed)), whole)


def test_framing_then_overlap_add_returns_the_signal_one_hop_late() -> None:
    hop, x = 32, torch.randn(2, 32 * 20)
    window = torch.hann_window(2 * hop)
    y, _ = OverlapAdd(hop)(Framing(2 * hop, hop)(x)[0] * window)
    assert_same(y[:, hop:], x[:, :-hop])
    assert torch.equal(y[:, :hop], torch.zeros(2, hop))


@pytest.mark.parametrize("rate,window,n_mels", [(16000, 640, 80), (16000, 400, 80), (24000, 960, 100), (8000, 320, 40)])
def test_log_mel_of_a_full_scale_sine(rate: int, window: int, n_mels: int) -> None:
    mel, bank = LogMel(rate, window, n_mels), mel_filterbank(rate, window, n_mels, 40.0, rate / 2)
    for k in (3, 8, 20, 50, window // 2 - 10):  # bins
        y, level = mel(sine(k * rate / window, rate, window)[None, None])
        assert level.item() == pytest.approx(-3.01, abs=0.02)
        band = int(y[0, 0].argmax())
        assert bank[k, band] >= 0.99 * bank[k].max() or bank[k, band] / bank[:, band].sum() > 0.3
        # a Hann window's main lobe holds 1.5 times the power of its centre; a band reads its mean over bins
        share = float((bank[k, band] + (bank[k - 1, band] + bank[k + 1, band]) / 4) / bank[:, band].sum())
        assert 20 / math.log(10) * y[0, 0, band].item() == pytest.approx(10 * math.log10(share), abs=0.1)
        if k <= 8:
            assert abs(20 / math.log(10) * y[0, 0, band].item()) < 4  # narrow bands: about 0 dB
        far = (bank[max(k - 3, 0) : k + 4] == 0).all(0)
        assert y[0, 0, far].max() < -5.0  # 43 dB down elsewhere


def test_log_mel_floors_and_scale() -> None:
    mel = LogMel(16000, 640, 80)
    y, level = mel(torch.zeros(1, 3, 640))
    assert_same(y, torch.full_like(y, math.log(1e-4)), 1e-4)
    assert_same(level, torch.full_like(level, -100.0), 1e-4)
    frames = torch.randn(1, 5, 640)
    (a, la), (b, lb) = mel(0.1 * frames), mel(0.01 * frames)
    assert_same(a - b, torch.full_like(a, math.log(10)), 1e-3)
    assert_same(la - lb, torch.full_like(la, 20.0), 1e-3)
    assert (mel(torch.randn(1, 200, 640))[1].mean()).abs() < 0.2  # white noise of power 1 is 0 dB


@pytest.mark.parametrize("rate,window,n_mels", [(16000, 640, 80), (16000, 400, 80)])
def test_mel_bands_cover_the_spectrum(rate: int, window: int, n_mels: int) -> None:
    bank = mel_filterbank(rate, window, n_mels, 40.0, rate / 2)
    assert bank.shape == (window // 2 + 1, n_mels) and bank.min() >= 0 and bank.max() <= 1
    assert (bank.sum(0) > 0).all()  # no dead band
    freqs = torch.arange(window // 2 + 1) * rate / window
    assert torch.allclose(bank.sum(1)[(freqs > 80) & (freqs < 0.95 * rate / 2)], torch.ones(()), atol=1e-4)


# ---------------------------------------------------------------- randomness


def splitmix(z: int) -> int:
    """The reference in whole numbers: Steele et al. 2014 with Stafford's variant 13 finaliser."""
    mask = (1 << 64) - 1
    z = z * 0x9E3779B97F4A7C15 & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return z ^ z >> 31


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_hash_is_splitmix64(keys: list[int]) -> None:
    got = rng.hash64(torch.tensor(keys, dtype=torch.int64))
    assert [int(h) % 2**64 for h in got] == [splitmix(k % 2**64) for k in keys]


@given(st.integers(-(2**40), 2**40), st.integers(0, 2**40), st.integers(0, 64))
def test_uniform_is_the_same_in_every_release(seed: int, frame: int, book: int) -> None:
    """Seeds of users' recordings stay valid: the chain of hashes is part of the format."""
    h = splitmix(seed % 2**64)
    for key in (frame, book):
        h = splitmix(h ^ (key + 1))
    got = rng.uniform(seed, torch.tensor(frame), torch.tensor(book))
    assert float(got) == pytest.approx(h / 2**64, abs=2e-7)


def test_uniform_is_a_pure_function_of_its_keys() -> None:
    frame, book = torch.arange(50), torch.arange(8)
    whole = rng.uniform(7, frame[:, None], book)
    assert whole.shape == (50, 8)
    torch.randn(3)
    for t in (49, 3, 0):
        for k in (7, 0):
            assert rng.uniform(7, torch.tensor(t), torch.tensor(k)) == whole[t, k]
    assert torch.equal(torch.cat([rng.uniform(7, c[:, None], book) for c in frame.split(7)]), whole)
    torch.manual_seed(5)
    assert torch.equal(rng.uniform(7, frame[:, None], book), whole)
    assert not torch.equal(rng.uniform(8, frame[:, None], book), whole)
    assert not torch.equal(rng.uniform(7, book, frame[:, None]), whole)  # keys are not interchangeable


@pytest.mark.parametrize("seed", [0, 1, 2, 12345, -1, 2**62])
def test_uniform_is_uniform(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for keys in ((torch.arange(20000),), (torch.arange(20000) // 8, torch.arange(20000) % 8),
                 (torch.arange(20000) * 320 + 2**40,)):  # fmt: skip
        assert stats.kstest(rng.uniform(seed, *keys).numpy(), "uniform").pvalue > 1e-3


def test_uniform_of_neighbouring_keys_is_uncorrelated() -> None:
    n = torch.arange(100_000)
    one = rng.uniform(0, n)
    zero = torch.zeros_like(n)
    for other in (rng.uniform(0, n + 1), rng.uniform(1, n), rng.uniform(-1, n), rng.uniform(0, n + 2**32),
                  rng.uniform(0, n, n), rng.uniform(0, n, zero), rng.uniform(0, zero, n)):  # fmt: skip
        assert abs(float(torch.corrcoef(torch.stack((one, other)))[0, 1])) < 0.015
    spectrum = torch.fft.rfft(one.double() - 0.5).abs().square() / (len(n) / 12)
    assert spectrum.max() < 20  # exponential of mean 1 over 50,000 bins: no line stands out


def test_uniform_is_never_zero_or_one() -> None:
    """Keys whose 24 bits are all ones: Gumbel noise of infinity would force a token, or make -inf into NaN."""
    key = torch.tensor([1869153])
    bits = int(rng.hash64(rng.hash64(torch.tensor(0)) ^ (key + 1))) % 2**64 >> 40
    assert bits == 2**24 - 1
    u = rng.uniform(0, key)
    assert 0 < u < 1
    assert torch.isfinite(rng.gumbel(0, key)).all()


def test_gumbel_argmax_samples_the_softmax() -> None:
    stats = pytest.importorskip("scipy.stats")
    p = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    for seed in (0, 1, 99):
        noise = rng.gumbel(seed, torch.arange(20000)[:, None], torch.arange(5))
        counts = torch.bincount((p.log() + noise).argmax(-1), minlength=5)
        assert stats.chisquare(counts.numpy(), 20000 * p.double().numpy() / float(p.double().sum())).pvalue > 1e-3
    assert noise.mean() == pytest.approx(0.5772, abs=0.02) and noise.var() == pytest.approx(np.pi**2 / 6, abs=0.05)


def test_noise_made_of_it_is_white_and_of_known_power() -> None:
    x = (rng.uniform(3, torch.arange(160_000)) - 0.5) * math.sqrt(12)
    assert abs(db(x.square().mean())) < 0.05 and abs(float(x.mean())) < 0.01
    bands = torch.fft.rfft(x).abs().square()[1:-1].reshape(-1)[:79_990].reshape(10, -1).mean(1)
    assert (bands / bands.mean() - 1).abs().max() < 0.06
