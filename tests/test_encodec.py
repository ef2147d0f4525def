"""EnCodec here against the reference package and transformers, offline and in any chunking.

Weights are random but not trivial: every codebook is drawn anew at the scale of the latents. Comparisons of integers
run in double precision where the shapes of the computation differ, so that ties of the last bit play no part.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vivavoce.cli import main
from vivavoce.codec import Encodec, EncodecConfig, EncodecDecoderStream, EncodecEncoderStream
from vivavoce.codec.encodec.config import OFFICIAL
from vivavoce.codec.encodec.weights import from_state, open_encodec
from vivavoce.core.errors import AudioError, CheckpointError, ConfigError

warnings.filterwarnings("ignore", message=".*weight_norm.*")
TINY = EncodecConfig(n_filters=2, dimension=8, n_codebooks=6, codebook_size=32)
FRAMES = {1.5: 2, 3.0: 4, 6.0: 8, 12.0: 16, 24.0: 32}  # codebooks by bandwidth


def signal(n: int, channels: int = 1, seed: int = 0) -> Tensor:
    """Noise in bursts, [1, channels, n]."""
    g = torch.Generator().manual_seed(seed)
    burst = torch.linspace(0, 20, n).sin().abs() + 0.1
    return 0.3 * torch.randn(1, channels, n, generator=g) * burst


def ragged_sizes(n: int, seed: int) -> list[int]:
    rng, sizes = random.Random(seed), []
    while sum(sizes) < n:
        sizes.append(min(rng.choice((1, 1, 2, 7, 319, 320, 321, 1000, 2400)), n - sum(sizes)))
    return sizes


@torch.no_grad()
def draw_codebooks(books: list[Any], latents: Tensor) -> None:
    """Non-trivial codebooks: around the latents' mean, of a scale that shrinks from book to book as residuals do."""
    mean, std = latents.mean((0, 2)), latents.std((0, 2))
    for k, book in enumerate(books):
        book.embed.copy_((mean if k == 0 else 0.0) + torch.randn_like(book.embed) * std * 0.9**k)


@pytest.fixture(scope="module")
def reference() -> Any:
    """The `encodec` package; of its torchaudio, which it imports for resampling files, nothing is used here."""
    if importlib.util.find_spec("encodec") is None:
        pytest.skip("encodec is not installed")
    stub = "torchaudio" not in sys.modules and importlib.util.find_spec("torchaudio") is None
    if stub:
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    try:
        return importlib.import_module("encodec").EncodecModel
    finally:
        if stub:
            del sys.modules["torchaudio"]


def random_reference(make: Any, channels: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = make(pretrained=False)
        with torch.no_grad():
            draw_codebooks([layer._codebook for layer in model.quantizer.vq.layers],
                           model.encoder(signal(12000, channels)))  # fmt: skip
    return model


@pytest.fixture(scope="module")
def official(reference: Any) -> Any:
    return random_reference(reference.encodec_model_24khz, 1)


@pytest.fixture(scope="module")
def ours(official: Any) -> Encodec:
    return from_state(official.state_dict(), "reference")


@pytest.fixture(scope="module")
def tiny() -> Encodec:
    """A small model in double precision, for streams: rounding flips no code there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = Encodec(TINY).double().eval()
        z, _ = model.encoder(signal(12000).double(), None, True)
        for k, book in enumerate(model.quantiser.books):
            book.vectors.normal_().mul_(float(z.detach().std()) * 0.9**k)
    return model


# ---- equal to the reference ---------------------------------------------------------------------------


@pytest.mark.parametrize("bandwidth", FRAMES)
@torch.no_grad()
def test_equals_the_reference_at_every_bandwidth(official: Any, ours: Encodec, bandwidth: float) -> None:
    x = signal(6345)
    official.set_target_bandwidth(bandwidth)
    ((want, scale),) = official.encode(x)
    codes = ours.encode(x[:, 0], bandwidth)
    assert scale is None and codes.shape == (1, 20, FRAMES[bandwidth])
    assert torch.equal(codes.transpose(1, 2), want)
    assert min(len(c.unique()) for c in codes[0].T) > 8  # not all the same
    wave = official.decode([(want, None)])
    assert float(wave.std()) > 1e-3
    torch.testing.assert_close(ours.decode(codes), wave[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(x[:, 0], bandwidth), official(x)[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 5, 7, 8, 319, 320, 321, 961, 2240, 2241])
@torch.no_grad()
def test_equals_the_reference_at_any_length(official: Any, ours: Encodec, n: int) -> None:
    """Shorter than what is reflected, a whole number of frames, one sample more."""
    x = signal(n, seed=n)
    official.set_target_bandwidth(3.0)
    ((want, _),) = official.encode(x)
    codes = ours.encode(x[:, 0], 3.0)
    assert torch.equal(codes.transpose(1, 2), want) and codes.shape[1] == -(-n // 320)
    torch.testing.assert_close(ours.decode(codes), official.decode([(want, None)])[:, 0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_stream_equals_the_reference(official: Any) -> None:
    """The official size, in double precision: ragged pushes give the reference's codes and its waveform."""
    import copy

    reference = copy.deepcopy(official).double()
    model = Encodec(OFFICIAL["24khz"]).double()
    model.load_state_dict(from_state(reference.state_dict(), "reference", None).state_dict())
    for own, book in zip(model.quantiser.books, reference.quantizer.vq.layers):
        own.vectors.copy_(book._codebook.embed)
    x = signal(3500).double()
    reference.set_target_bandwidth(6.0)
    ((want, _),) = reference.encode(x)
    stream = EncodecEncoderStream(model, 6.0)
    codes = torch.cat([stream.push(p) for p in x[0, 0].split(ragged_sizes(3500, 1))] + [stream.flush()])
    assert torch.equal(codes.T[None], want)
    decoder = EncodecDecoderStream(model)
    wave = torch.cat([decoder.push(c) for c in codes.split(2)] + [decoder.flush()])
    torch.testing.assert_close(wave, reference.decode([(want, None)])[0, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", [20000, 60001])
@torch.no_grad()
def test_48_khz_equals_the_reference(reference: Any, n: int) -> None:
    """Stereo, less than a segment, one, and several with overlap: codes, loudness and waveform."""
    official = random_reference(reference.encodec_model_48khz, 2)
    model = from_state(official.state_dict(), "reference")
    assert model.config == OFFICIAL["48khz"]
    x = signal(n, 2)
    official.set_target_bandwidth(6.0)
    want, got = official.encode(x), model.encode_segments(x, 6.0)
    assert len(want) == len(got) == -(-n // 47520)
    for (codes, scale), segment in zip(want, got):
        assert torch.equal(codes, segment.codes.transpose(1, 2)) and torch.equal(scale, segment.scale)
    torch.testing.assert_close(model.decode_segments(got), official.decode(want), atol=1e-5, rtol=0)
    assert model(x, 6.0).shape == x.shape


@pytest.mark.parametrize("parametrised", [True, False])
@torch.no_grad()
def test_equals_transformers(parametrised: bool, tmp_path: Path) -> None:
    """Its state dict, with weight norm by either of PyTorch's names, through the folder that it saves."""
    transformers = pytest.importorskip("transformers")
    config = transformers.EncodecConfig(num_filters=4, hidden_size=16, codebook_size=64, target_bandwidths=[0.9, 3.6])
    theirs = transformers.EncodecModel(config).eval()
    draw_codebooks([layer.codebook for layer in theirs.quantizer.layers], theirs.encoder(signal(6000)))
    theirs.save_pretrained(tmp_path / "hub")
    if not parametrised:
        from vivavoce.core.checkpoint import load_tensors, save_tensors

        tensors, meta = load_tensors(tmp_path / "hub/model.safetensors")
        new, old = ("parametrizations.weight.original0", "parametrizations.weight.original1"), ("weight_g", "weight_v")
        if not any(new[0] in k for k in tensors):
            new, old = old, new
        swapped = {k.replace(new[0], old[0]).replace(new[1], old[1]): v for k, v in tensors.items()}
        assert swapped.keys() != tensors.keys()
        save_tensors(tmp_path / "hub/model.safetensors", swapped, meta)
    assert main(["import", "encodec", str(tmp_path / "hub"), "-o", str(tmp_path / "own")]) == 0
    model = Encodec.from_pretrained(tmp_path / "own")
    argv = ["import", "encodec", str(tmp_path / "hub"), "-o", str(tmp_path / "less"), "--bandwidth", "0.9"]
    assert main(argv) == 0
    less = Encodec.from_pretrained(tmp_path / "less")
    assert (less.config.n_codebooks, less.config.bandwidths) == (2, [0.9])
    x = signal(5000)
    assert torch.equal(less.encode(x[:, 0]), model.encode(x[:, 0], 0.9))
    for bandwidth in config.target_bandwidths:
        want = theirs.encode(x, bandwidth=bandwidth)
        codes = model.encode(x[:, 0], bandwidth)
        assert torch.equal(codes.transpose(1, 2), want.audio_codes[0])
        wave = theirs.decode(want.audio_codes, want.audio_scales).audio_values
        torch.testing.assert_close(model.decode(codes), wave[:, 0], atol=1e-5, rtol=0)


# ---- streams ------------------------------------------------------------------------------------------


def pushed(stream: Any, x: Tensor, sizes: list[int]) -> Tensor:
    return torch.cat([stream.push(p) for p in x.split(sizes)] + [stream.flush()])


@pytest.mark.parametrize("n", [0, 1, 7, 320, 2240, 2241, 3100])
def test_any_chunking_of_a_stream_equals_offline(tiny: Encodec, n: int) -> None:
    """Ragged and single samples; codes equal, waveform to 1e-5; an ended stream gives what offline gives."""
    x = signal(max(n, 1))[0, 0, :n].double()
    whole = tiny.encode(x[None])[0] if n else torch.zeros(0, 6, dtype=torch.int64)
    for sizes, block in ((ragged_sizes(n, 0), 1), (ragged_sizes(n, 1), 3), ([1] * n, 1), ([n], 3)):
        stream = EncodecEncoderStream(tiny, block=block)
        assert torch.equal(pushed(stream, x, sizes), whole)
    if n:
        wave = tiny.decode(whole[None])[0]
        for size, block in ((1, 1), (2, 3), (5, 1), (100, 3)):
            y = pushed(EncodecDecoderStream(tiny, block=block), whole, [len(c) for c in whole.split(size)])
            torch.testing.assert_close(y, wave, atol=1e-5, rtol=0)


def test_recurrent_signature_takes_any_number_of_samples(tiny: Encodec) -> None:
    """Without the streams' blocks: state in, state out, nothing kept on the module."""
    x = signal(3001)[0].double()
    whole = tiny.encode(x, None)
    for seed in range(3):
        parts, state = [], None
        sizes = ragged_sizes(3001, seed)
        for i, part in enumerate(x.split(sizes, dim=1)):
            codes, state = tiny.encode_stream(part, state, last=i == len(sizes) - 1)
            parts.append(codes)
        assert torch.equal(torch.cat(parts, 1), whole)
    a, state = tiny.decode_stream(whole[:, :9])
    b, _ = tiny.decode_stream(whole[:, 9:], state, last=True)
    c, _ = tiny.decode_stream(whole[:, 9:], state, last=True)  # the state is as it was
    torch.testing.assert_close(torch.cat((a, b), 1), tiny.decode(whole), atol=1e-5, rtol=0)
    assert torch.equal(b, c)


def test_chunking_changes_no_bit_in_single_precision(ours: Encodec) -> None:
    x = signal(3000)[0, 0]
    a, b = (pushed(EncodecEncoderStream(ours, 6.0), x, sizes) for sizes in (ragged_sizes(3000, 2), [3000]))
    assert torch.equal(a, b)
    c, d = (pushed(EncodecDecoderStream(ours), a, sizes) for sizes in ([1] * len(a), [len(a)]))
    assert torch.equal(c, d)


def test_latency_is_as_stated(tiny: Encodec) -> None:
    """Seven frames at the start, a frame from then on; with a lead-in, a frame at once."""
    x = signal(320 * 20)[0, 0].double()
    for stream, first in ((EncodecEncoderStream(tiny), 7), (EncodecEncoderStream(tiny, lead_in=True), 1)):
        counts = [len(stream.push(p)) for p in x.split(320)]
        assert counts == [0] * (first - 1) + [first] + [1] * (20 - first)
        assert stream.latency.start == pytest.approx(first * 40 / 3)
        assert stream.latency.block == pytest.approx(40 / 3)
    codes = tiny.encode(x[None])[0]
    for decoder, first in ((EncodecDecoderStream(tiny), 7), (EncodecDecoderStream(tiny, before=codes[:8]), 1)):
        counts = [len(decoder.push(c)) // 320 for c in codes.split(1)]
        assert counts == [0] * (first - 1) + [first] + [1] * (20 - first)
        assert decoder.latency.start == pytest.approx(first * 40 / 3)


def test_lead_in_is_silence_before_the_recording(tiny: Encodec) -> None:
    x = signal(3000)[0, 0].double()
    silence = torch.zeros(7 * 320, dtype=torch.float64)
    want = tiny.encode(torch.cat((silence, x))[None])[0]
    assert torch.equal(pushed(EncodecEncoderStream(tiny, lead_in=True), x, [999, 2001]), want[7:])
    y = pushed(EncodecDecoderStream(tiny, before=want[:7]), want[7:], [3, len(want) - 10])
    torch.testing.assert_close(y, tiny.decode(want[None])[0, 7 * 320 :], atol=1e-5, rtol=0)


def test_state_does_not_grow(tiny: Encodec) -> None:
    def size(state: Any) -> int:
        if isinstance(state, Tensor):
            return state.untyped_storage().nbytes()
        return sum(map(size, state)) if isinstance(state, tuple) else 0

    encoder, decoder, seen = EncodecEncoderStream(tiny), EncodecDecoderStream(tiny), []
    for k in range(4):
        decoder.push(encoder.push(signal(6400, seed=k)[0, 0].double()))
        seen.append(size(encoder._state) + size(decoder._state))
    assert len(set(seen)) == 1 and seen[0] < 200_000


def test_reset_in_the_middle(tiny: Encodec) -> None:
    x = signal(3000)[0, 0].double()
    stream = EncodecEncoderStream(tiny)
    whole = pushed(stream, x, [3000])
    assert len(stream.flush()) == 0
    with pytest.raises(AudioError, match="flushed"):
        stream.push(x)
    stream.reset()
    stream.push(x[:1234])
    stream.reset()
    assert torch.equal(pushed(stream, x, ragged_sizes(3000, 4)), whole)


def test_what_is_refused(tiny: Encodec) -> None:
    with pytest.raises(ConfigError, match=r"bandwidth 2 kbit/s: this EnCodec model has 1\.5, 3, 6, 12, 24"):
        tiny.encode(torch.zeros(1, 100).double(), 2.0)
    with pytest.raises(AudioError, match=r"takes 24000 Hz of shape \[batch, samples\], got \(2, 1, 9\)"):
        tiny.encode(torch.zeros(2, 1, 9).double())
    stream = EncodecEncoderStream(tiny)
    for bad in (torch.tensor([0.0, float("nan")]), torch.zeros(1, 5)):
        with pytest.raises(AudioError):
            stream.push(bad)
    with pytest.raises(ConfigError, match="block 0"):
        EncodecEncoderStream(tiny, block=0)
    decoder = EncodecDecoderStream(tiny)
    for codes in (torch.full((1, 2), 32), torch.full((1, 2), -1), torch.zeros(3, 7).long(), torch.zeros(3).long()):
        with pytest.raises(AudioError, match="codes"):
            decoder.push(codes)
    with pytest.raises(AudioError, match="too few"):
        EncodecDecoderStream(tiny, before=torch.zeros(6, 2).long())
    stereo = Encodec(EncodecConfig(channels=2, n_filters=4, dimension=16, n_codebooks=2, codebook_size=64, causal=False,
                                   normalise=True, segment_seconds=1.0))  # fmt: skip
    with pytest.raises(ConfigError, match="offline only"):
        EncodecEncoderStream(stereo)
    with pytest.raises(ConfigError, match="offline only"):
        EncodecDecoderStream(stereo)
    with pytest.raises(ConfigError, match="encode_segments"):
        stereo.encode(torch.zeros(1, 2, 100))
    with pytest.raises(AudioError, match=r"shape \[batch, 2, samples\]"):
        stereo.encode_segments(torch.zeros(1, 100))


# ---- import -------------------------------------------------------------------------------------------


def test_import_of_an_original_checkpoint(official: Any, ours: Encodec, tmp_path: Path, capsys: Any) -> None:
    torch.save(official.state_dict(), tmp_path / "encodec_24khz.th")
    out = tmp_path / "own"
    assert main(["import", "encodec", str(tmp_path / "encodec_24khz.th"), "-o", str(out)]) == 0
    assert "EnCodec, 24 kHz, 1 channel, 32 codebooks, streams" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]
    model = Encodec.from_pretrained(out)
    assert model.config == EncodecConfig()
    for k, v in ours.state_dict().items():
        assert torch.equal(v, model.state_dict()[k]), k
    assert main(["import", "encodec", str(tmp_path / "encodec_24khz.th"), "-o", str(out)]) == 1
    assert "holds a model already" in capsys.readouterr().err


class _Code:
    def __reduce__(self) -> tuple:
        return (print, ("this ran",))


def test_a_pickle_with_code_is_refused(tmp_path: Path, capsys: Any) -> None:
    torch.save({"encoder.model.0.conv.conv.bias": torch.zeros(3), "x": _Code()}, tmp_path / "bad.th")
    assert main(["import", "encodec", str(tmp_path / "bad.th"), "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "this ran" not in said.out and not (tmp_path / "out").exists()
    assert "bad.th: refused" in said.err and "print" in said.err and said.err.count("\n") == 1


def test_a_wrong_checkpoint_is_named(official: Any, tmp_path: Path) -> None:
    def refused(state: Any, match: str) -> None:
        torch.save(state, tmp_path / "x.th")
        with pytest.raises(CheckpointError, match=match):
            open_encodec(tmp_path / "x.th")

    own = official.state_dict()
    short = {k: v for k, v in own.items() if "layers.31." not in k}
    refused(short, r"missing \['quantiser\.books\.31\.vectors'\] \(compared with the official 24khz EnCodec\)")
    small = {**own, "encoder.model.0.conv.conv.bias": torch.zeros(3)}
    refused(small, r"encoder\.layers\.0\.conv\.bias: \(3,\) instead of \(32,\)")
    refused({"transformer.weight": torch.zeros(2)}, r"unexpected \['transformer\.weight'\]")
    refused({"best_state": {"a": torch.zeros(1)}}, r"no EnCodec weights by name \(but best_state\)")
    refused([1, 2], r"no EnCodec weights by name \(but list\)")
    (tmp_path / "x.th").write_text("no checkpoint at all")
    with pytest.raises(CheckpointError, match=r"x\.th: "):
        open_encodec(tmp_path / "x.th")
    with pytest.raises(CheckpointError, match="no such model folder"):
        open_encodec(tmp_path / "none")


def test_another_architecture_on_the_hub_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "encodec", "use_conv_shortcut": false, "kernel_size": 9}')
    with pytest.raises(CheckpointError, match=r"kernel_size 9 \(here 7\), use_conv_shortcut False \(here True\)"):
        open_encodec(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "dac"}')
    with pytest.raises(CheckpointError, match="holds 'dac'"):
        open_encodec(tmp_path)
