"""The source-filter codec with random weights: streaming, alignment, excitation, residual VQ."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import assert_same, db, in_chunks, ragged
from torch import Tensor

from vivavoce.codec import Codec, CodecConfig
from vivavoce.codec.losses import MultiResolutionSTFT
from vivavoce.codec.rvq import Codebook, ResidualVQ
from vivavoce.codec.source import Excitation

RATE, HOP, FRAMES = 16000, 160, 40


@pytest.fixture
def codec() -> Codec:
    return Codec(CodecConfig(
        sample_rate=RATE, hop=HOP, n_mels=24, n_codebooks=4, codebook_size=32, code_dim=8,
        encoder_dim=16, encoder_depth=2, decoder_dim=16, decoder_depth=2,
    )).eval()  # fmt: skip


def controls(b: int = 2, t: int = FRAMES) -> tuple[Tensor, Tensor, Tensor]:
    """F0, periodicity, level."""
    return 80 + 200 * torch.rand(b, t), torch.rand(b, t), -60 + 50 * torch.rand(b, t)


def transparent(codec: Codec) -> Codec:
    """A decoder whose gains are all 1: what comes out is level times excitation."""
    torch.nn.init.zeros_(codec.head.weight)
    torch.nn.init.zeros_(codec.head.bias)
    return codec


def power_at(x: Tensor, rate: int = RATE) -> tuple[Tensor, Tensor]:
    """Power spectrum of [n] (sums to mean power) and its frequencies; no window: use whole periods."""
    p = torch.fft.rfft(x.double()).abs().square() / len(x) ** 2
    p[1:] *= 2
    return p, torch.arange(len(p)) * rate / len(x)


# ---------------------------------------------------------------- streaming


@torch.no_grad()
def test_encode_any_chunking_equals_one_call(codec: Codec) -> None:
    wave = 0.3 * torch.randn(2, FRAMES * HOP)
    (codes, level), _ = codec.encode(wave)
    assert codes.shape == (2, FRAMES, 4) and codes.dtype == torch.int64 and level.shape == (2, FRAMES)
    assert codes.min() >= 0 and codes.max() < 32 and len(codes.unique()) > 4
    for seed in range(4):
        assert_same(in_chunks(lambda x, state: codec.encode(x, state), (wave,), ragged(FRAMES * HOP, HOP, seed)),
                    (codes, level))  # fmt: skip
    (alone, _), _ = codec.encode(wave[1:])
    assert torch.equal(alone, codes[1:])  # rows of a batch do not meet


@torch.no_grad()
def test_decode_any_chunking_equals_one_call(codec: Codec) -> None:
    codes, inputs = torch.randint(32, (2, FRAMES, 4)), controls()
    whole, _ = codec.decode(codes, *inputs, seed=3)
    assert whole.shape == (2, FRAMES * HOP) and torch.isfinite(whole).all() and whole.abs().max() > 1e-3
    for seed in range(4):
        assert_same(in_chunks(codec.decode, (codes, *inputs), ragged(FRAMES, seed=seed), seed=3), whole)
    assert not torch.allclose(codec.decode(codes, *inputs, seed=4)[0], whole)
    torch.randn(7)  # PyTorch's own generator has no say
    assert torch.equal(codec.decode(codes, *inputs, seed=3)[0], whole)


@torch.no_grad()
def test_state_is_plain_and_bounded(codec: Codec) -> None:
    def tensors(s):
        return [s] if isinstance(s, Tensor) else [t for part in s for t in tensors(part)]

    states = [codec.decode(torch.randint(32, (1, t, 4)), *controls(1, t))[1] for t in (1, 30)]
    assert [t.shape for t in tensors(states[0])] == [t.shape for t in tensors(states[1])]
    wave = torch.randn(1, 30 * HOP)
    states = [codec.encode(wave[:, : t * HOP])[1] for t in (1, 30)]
    assert [t.shape for t in tensors(states[0])] == [t.shape for t in tensors(states[1])]


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 2, 3])
def test_decode_with_fewer_codebooks(codec: Codec, k: int) -> None:
    codes, inputs = torch.randint(32, (2, 10, 4)), controls(2, 10)
    y, _ = codec.decode(codes[..., :k], *inputs)
    want = sum(codec.quantiser.books[i].vectors[codes[..., i]] for i in range(k))
    assert_same(y, codec.synthesise(want, *inputs)[0])
    assert not torch.allclose(y, codec.decode(codes, *inputs)[0])


@torch.no_grad()
def test_level_is_taken_out_of_the_codes(codec: Codec) -> None:
    wave = 0.3 * torch.randn(1, 20 * HOP)
    (codes, level), _ = codec.encode(wave)
    (quiet, below), _ = codec.encode(0.1 * wave)
    assert (codes == quiet).float().mean() > 0.97
    torch.testing.assert_close(level - below, torch.full_like(level, 20.0), atol=0.1, rtol=0)
    (_, floor), _ = codec.encode(torch.zeros(1, 5 * HOP))
    assert torch.allclose(floor, torch.full_like(floor, -65.0), atol=0.1)


@torch.no_grad()
def test_save_and_load(codec: Codec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path)
    again = Codec.from_pretrained(tmp_path)
    wave = torch.randn(1, 10 * HOP)
    assert_same(codec.encode(wave)[0], again.encode(wave)[0], 0.0)


def test_training_pass_reaches_encoder_and_decoder(codec: Codec) -> None:
    f0, periodicity, _ = controls(2, 20)
    wave = 0.1 * torch.randn(2, 20 * HOP)
    y, commit, perplexity = codec.train()(wave, f0, periodicity)
    assert y.shape == wave.shape and 1 <= perplexity <= 32
    loss = MultiResolutionSTFT((256, 512))(y[:, HOP:], wave[:, :-HOP]) + commit
    loss.backward()
    for name, p in codec.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0, name


# ---------------------------------------------------------------- alignment


@torch.no_grad()
def test_decoder_returns_its_source_exactly_one_hop_late(codec: Codec) -> None:
    f0, _, _ = controls(1)
    one = torch.ones(1, FRAMES)
    y, _ = transparent(codec).decode(torch.zeros(1, FRAMES, 4, dtype=torch.int64), f0, one, 0 * one, seed=5)
    pulses, noise, _ = codec.source(f0, 5)
    assert_same(y[:, 2 * HOP :], (pulses + noise)[:, HOP:-HOP], 1e-3)  # the first frame fades in from silence
    assert y[:, :HOP].abs().max() < 10


@torch.no_grad()
@pytest.mark.parametrize("at", [10 * HOP, 10 * HOP + HOP // 2, 13 * HOP - 3])
def test_an_impulse_comes_out_where_it_was_one_hop_late(codec: Codec, at: int) -> None:
    wave = torch.zeros(1, FRAMES * HOP)
    wave[:, at] = 0.9
    (codes, level), _ = transparent(codec).encode(wave)
    f0 = torch.full((1, FRAMES), 5000.0)  # one harmonic: an even carrier
    codec.head.bias[2 * (HOP + 1) :] = -12.0  # no noise
    y, _ = codec.decode(codes, f0, torch.ones(1, FRAMES), level)
    energy = y[0, HOP:].square().double()  # without the one hop of delay
    energy[energy < energy.max() * 1e-3] = 0  # the -65 dB floor
    centre = float((energy * torch.arange(len(energy))).sum() / energy.sum())
    assert abs(centre - at) < 0.1 * HOP


@torch.no_grad()
def test_an_onset_of_level_opens_at_its_frame(codec: Codec) -> None:
    t = 12
    level = torch.full((1, FRAMES), -100.0)
    level[:, t:] = 0.0
    f0 = torch.full((1, FRAMES), 5000.0)
    y, _ = transparent(codec).decode(torch.zeros(1, FRAMES, 4, dtype=torch.int64), f0, torch.ones(1, FRAMES), level)
    y = y[0, HOP:]  # frame t spans [(t - 1) hop, (t + 1) hop) and is centred at t * hop
    assert y[: (t - 1) * HOP].abs().max() < 1e-3 and y[(t - 1) * HOP :][: HOP // 4].abs().max() > 1e-3
    rise, full = y[(t - 1) * HOP : t * HOP].square().mean(), y[t * HOP : (t + 5) * HOP].square().mean()
    assert db(rise / full) == pytest.approx(db(0.375), abs=0.7)  # mean square of a half Hann window


@torch.no_grad()
def test_level_scales_the_output(codec: Codec) -> None:
    codes, (f0, periodicity, _) = torch.zeros(1, FRAMES, 4, dtype=torch.int64), controls(1)
    out = [transparent(codec).decode(codes, f0, periodicity, torch.full((1, FRAMES), x))[0] for x in (0.0, -20.0)]
    assert_same(out[0] / 10, out[1], 1e-4)


# ---------------------------------------------------------------- excitation


@pytest.mark.parametrize("f0", [40.3, 55.0, 101.0, 220.0, 437.0, 900.0, 1001.0, 3000.0])
def test_pulse_train_has_its_f0_unit_power_and_no_aliases(f0: float) -> None:
    n = 10 * RATE  # ten seconds: whole periods of a tenth of a Hz
    pulses, _, _ = Excitation(RATE, HOP).eval()(torch.full((1, n // HOP), f0))
    p, freqs = power_at(pulses[0])
    assert db(p.sum()) == pytest.approx(0.0, abs=0.1)
    harmonics = torch.zeros(len(p), dtype=torch.bool)
    harmonics[(torch.arange(1, int((RATE / 2 - 1) // f0) + 1) * f0 * 10).round().long()] = True
    assert db(p[~harmonics & (freqs < RATE / 2)].sum()) < -55  # nothing beside the harmonics
    heard = 10 * torch.log10(p[harmonics])
    assert heard.max() - heard.min() < 0.1  # all equally strong


def test_pulse_train_follows_a_glide() -> None:
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    f0 = (200 * 2 ** (2 * t))[None]  # two octaves in a second
    pulses, _, (phase, last, count) = Excitation(RATE, HOP).eval()(f0)
    assert db(pulses.square().mean()) == pytest.approx(0.0, abs=0.2) and count == 100 and last == f0[:, -1]
    ends = torch.cat((f0[:, :1], f0), dim=1)
    cycles = (ends[:, 1:] + ends[:, :-1]).sum() / 200 + float((ends[:, -1] - ends[:, 0]) / 2 / RATE)
    assert abs((float(phase) - float(cycles) + 0.5) % 1.0 - 0.5) < 1e-6  # the integral of F0, sample by sample
    loud = pulses[0].reshape(100, HOP).abs().amax(1)
    assert (loud > 3).all()  # a pulse in every frame: no dropped cycle


@pytest.mark.parametrize("value", [0.0, 5.0, 1e5, 7999.9])
def test_extreme_f0_stays_finite(value: float) -> None:
    pulses, noise, _ = Excitation(RATE, HOP).eval()(torch.full((1, 200), value))
    assert torch.isfinite(pulses).all() and torch.isfinite(noise).all() and pulses.square().mean() < 4


def test_excitation_any_chunking_equals_one_call() -> None:
    source, f0 = Excitation(RATE, HOP).eval(), controls(2, 80)[0]
    pulses, noise, _ = source(f0, 7)
    for seed in range(4):
        got = in_chunks(lambda f, state: unpack(source(f, 7, state)), (f0,), ragged(80, seed=seed))
        assert_same(got, (pulses, noise))
    steps = source(torch.full((1, 80), 100.0))[0][0].reshape(-1, HOP)  # period 160 samples = one hop
    assert (steps - steps[0]).abs().max() < 1e-2  # phase neither slips nor jumps at borders of frames


def unpack(out: tuple[Tensor, Tensor, object]) -> tuple[tuple[Tensor, Tensor], object]:
    return out[:2], out[2]


def test_phase_is_as_good_after_ten_minutes() -> None:
    source, state = Excitation(RATE, HOP).eval(), None
    _, _, (phase, last, count) = source(torch.full((1, 100), 123.0))
    late = (phase, last, count + 30_000)
    a = source(torch.full((1, 50), 123.0), 0, (phase, last, count))
    b = source(torch.full((1, 50), 123.0), 0, late)
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])
    for _ in range(10):
        _, _, state = source(torch.full((1, 3000), 123.0), 0, state)
    assert 0 <= float(state[0]) < 1
    # 300 s * 123 Hz is a whole number of cycles
    assert abs((float(state[0]) + 0.5) % 1.0 - 0.5) < 1e-6


def test_noise_is_white_of_power_one_and_depends_on_the_seed() -> None:
    source, f0 = Excitation(RATE, HOP).eval(), torch.full((2, 1000), 100.0)
    a, b, c = (source(f0, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(a, b) and torch.equal(a[0], a[1])
    assert abs(float((a[0] * c[0]).mean())) < 0.02
    assert db(a.square().mean()) == pytest.approx(0.0, abs=0.1) and abs(float(a.mean())) < 0.01
    bands = power_at(a[0])[0][1:-1][:79_990].reshape(10, -1).mean(1)
    assert (bands / bands.mean() - 1).abs().max() < 0.06
    trained = source.train()(f0)[1]
    assert db(trained.square().mean()) == pytest.approx(0.0, abs=0.1) and not torch.equal(trained[0], trained[1])


# ---------------------------------------------------------------- residual VQ


def clusters(n: int, dim: int = 8, k: int = 12) -> Tensor:
    """[1, n, dim] around k centres."""
    centres = 2 * torch.randn(k, dim, generator=torch.Generator().manual_seed(1))
    return (centres[torch.randint(k, (n,))] + 0.5 * torch.randn(n, dim))[None]


def trained(steps: int = 60) -> ResidualVQ:
    vq = ResidualVQ(4, 16, 8).train()
    for _ in range(steps):
        vq(clusters(400))
    return vq.eval()


def test_error_falls_with_every_codebook() -> None:
    vq, x = trained(), clusters(1000)
    codes = vq.encode(x)
    assert codes.shape == (1, 1000, 4) and codes.min() >= 0 and codes.max() < 16
    errors = [float((x - vq.decode(codes[..., :k])).square().mean()) for k in (1, 2, 3, 4)]
    power = float(x.square().mean())
    assert power > 2 * errors[0] and all(b < 0.9 * a for a, b in pairwise(errors))
    assert all(len(codes[..., k].unique()) > 8 for k in range(4))


def test_encode_takes_the_nearest_vector() -> None:
    book, x = Codebook(32, 8), torch.randn(3, 50, 8)
    assert torch.equal(book.nearest(x), torch.cdist(x, book.vectors[None].expand(3, -1, -1)).argmin(-1))


def test_first_batch_starts_the_codebooks_and_eval_does_not_learn() -> None:
    vq, x = ResidualVQ(2, 16, 8), clusters(400)
    before = vq.books[0].vectors.clone()
    vq.eval()(x)
    assert torch.equal(vq.books[0].vectors, before) and not vq.books[0].started
    vq.train()(x)
    assert all(book.started for book in vq.books)
    assert torch.cdist(vq.books[0].vectors, x[0]).min(1).values.mean() < torch.cdist(before, x[0]).min(1).values.mean()


def test_dead_codes_are_revived() -> None:
    book = Codebook(8, 2, decay=0.5)
    x = torch.randn(200, 2)
    book.start(x)
    with torch.no_grad():
        book.vectors[3] = torch.tensor([100.0, 100.0])
    for _ in range(10):
        book.learn(x, book.nearest(x))
    assert book.vectors.abs().max() < 5
    assert len(book.nearest(x).unique()) == 8


def test_moving_average_tends_to_the_mean_of_what_is_attracted() -> None:
    book, x = Codebook(2, 1, decay=0.9), torch.tensor([[-3.0], [-1.0], [4.0], [6.0]])
    with torch.no_grad():
        book.vectors.copy_(torch.tensor([[-1.0], [1.0]]))
    for _ in range(200):
        book.learn(x, book.nearest(x))
    assert_same(book.vectors, torch.tensor([[-2.0], [5.0]]), 1e-3)


def test_gradient_passes_straight_through() -> None:
    vq = trained(5)
    x = clusters(50).requires_grad_()
    y, commit, _ = vq(x)
    weight = torch.randn_like(y)
    (grad,) = torch.autograd.grad((y * weight).sum(), x, retain_graph=True)
    assert torch.equal(grad, weight)
    (pull,) = torch.autograd.grad(commit, x)
    assert pull.abs().max() > 0 and (pull * (x - y)).detach().sum() > 0  # towards the vectors


def test_quantiser_dropout_uses_a_number_of_codebooks_a_row() -> None:
    vq, x = trained(), clusters(20).expand(200, -1, -1).contiguous()
    y, _, _ = vq(x)
    codes = vq.encode(x[:1])
    options = [vq.decode(codes[..., :k])[0] for k in (1, 2, 3, 4)]
    used = [min(range(4), key=lambda k: float((row - options[k]).abs().max())) + 1 for row in y.detach()]
    assert max(float((row - options[k - 1]).abs().max()) for row, k in zip(y, used)) < 1e-4
    share = [used.count(k) / 200 for k in (1, 2, 3, 4)]
    assert share[3] == pytest.approx(0.5 + 0.125, abs=0.12) and min(share) > 0.05


def test_autocast_keeps_codebooks_in_single_precision(codec: Codec) -> None:
    f0, periodicity, _ = controls(2, 20)
    codec.train()
    with torch.autocast("cpu", torch.bfloat16):
        y, commit, _ = codec(0.1 * torch.randn(2, 20 * HOP), f0, periodicity)
    assert y.dtype == torch.float32 and commit.dtype == torch.float32 and torch.isfinite(y).all()
    vq = ResidualVQ(2, 16, 8).train()
    x = clusters(300)
    with torch.autocast("cpu", torch.bfloat16):
        y, _, _ = vq(x)
    assert y.dtype == torch.float32
    for book in (*codec.quantiser.books, *vq.books):
        assert book.vectors.dtype == book.counts.dtype == torch.float32
    rough = vq.books[0].vectors.bfloat16().float()
    assert not torch.equal(rough, vq.books[0].vectors)  # not computed in bfloat16 either


# ---------------------------------------------------------------- loss


def test_spectral_loss_is_zero_for_itself_and_grows_with_error() -> None:
    loss, x = MultiResolutionSTFT(), torch.randn(2, 8000)
    noise = torch.randn(2, 8000)
    values = [float(loss(x + e * noise, x)) for e in (0.0, 0.01, 0.1, 1.0)]
    assert values[0] == 0 and values == sorted(values) and values[3] > 10 * values[1]
    assert float(loss(0.1 * (x + 0.1 * noise), 0.1 * x)) == pytest.approx(values[2], rel=1e-3)  # level-free
    assert math.isfinite(float(loss(torch.zeros(1, 8000), torch.zeros(1, 8000))))
