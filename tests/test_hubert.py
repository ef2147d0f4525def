"""HuBERT and kin: the frame grid, layers, centroids, windows, checkpoints. Random weights in the official format."""

from __future__ import annotations

import os
import pickle
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same, in_chunks, ragged
from hypothesis import given
from hypothesis import strategies as st
from tiny import voiced

from vivavoce.core import int8
from vivavoce.core.checkpoint import load_tensors
from vivavoce.core.errors import CheckpointError, ConfigError
from vivavoce.recipes.perturb import perturb_wave, warp_wave
from vivavoce.units import HubertUnits, UnitEncoder, UnitsConfig, load_units
from vivavoce.units.hubert import (
    Centroids,
    Checkpoint,
    HubertConfig,
    Sliding,
    SpeechEncoder,
    collapse,
    expand,
    import_checkpoint,
)
from vivavoce.units.hubert.checkpoint import main as import_command
from vivavoce.units.hubert.context import agreement, whole

transformers = pytest.importorskip("transformers")
import tiny_speech  # noqa: E402

NATIVE = UnitsConfig(n_mels=20, dim=16, depth=1, content_units=50, expression_levels=[5, 5], pitch_dim=16,
                     pitch_depth=1)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {kind: tiny_speech.build(root / kind, kind) for kind in tiny_speech.KINDS}


def opened(folder: Path) -> Checkpoint:
    return Checkpoint.open(folder, 16000, 320)


# ---------------------------------------------------------------- frame grid


def test_frames_without_padding_are_those_of_the_formula(checkpoints):
    checkpoint = opened(checkpoints["hubert"])
    assert (checkpoint.hop, checkpoint.reach) == (320, 400)
    body = SpeechEncoder(checkpoint, 0).body
    for n in (400, 719, 720, 16000):
        assert body(torch.randn(1, n)).shape[1] == (n - 400) // 320 + 1


def test_frame_t_is_made_of_what_lies_around_sample_t_hop(checkpoints):
    """[320 t - 200, 320 t + 200) and nothing else. With layer norm, frames do not meet before the first layer."""
    encoder = SpeechEncoder(opened(checkpoints["hubert-large"]), 0)
    encoder.body.model.encoder.pos_conv_embed.conv = torch.nn.Identity()  # mixes neighbours on purpose
    encoder.body.model.encoder.pos_conv_embed.forward = torch.zeros_like  # type: ignore[method-assign]
    object.__setattr__(encoder.checkpoint, "normalise", False)
    x = voiced(0.4)[None]
    y, t = encoder(x), 9
    assert y.shape[1] == 20
    for sample, moves in ((320 * t - 201, False), (320 * t - 200, True), (320 * t + 199, True), (320 * t + 200, False)):
        z = x.clone()
        z[0, sample] += 0.5
        assert bool((encoder(z)[0, t] != y[0, t]).any()) is moves, sample


def test_normalisation_is_the_feature_extractor_s(checkpoints, tmp_path):
    x = 0.2 + 0.3 * voiced(0.5)
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(checkpoints["hubert-large"])
    want = torch.from_numpy(extractor(x.numpy(), sampling_rate=16000)["input_values"][0])
    heard = SpeechEncoder(opened(checkpoints["hubert-large"]), 0).heard(x[None])[0]
    assert not heard[:200].any() and len(heard) == len(x) + 80
    torch.testing.assert_close(heard[200:], want[: len(x) - 120], atol=1e-5, rtol=0)
    assert not opened(checkpoints["hubert"]).normalise
    for kind, normalise in (("hubert", False), ("hubert-large", True)):  # without one: as fairseq trained them
        assert opened(tiny_speech.build(tmp_path / kind, kind, normalise=None)).normalise is normalise


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("kind", tiny_speech.KINDS)
def test_layers_are_the_hidden_states_of_transformers(kind, checkpoints):
    checkpoint = opened(checkpoints[kind])
    name = tiny_speech.KINDS[kind][0] + "Model"
    model = getattr(transformers, name).from_pretrained(checkpoints[kind]).eval()
    x = voiced(0.6)[None]
    with torch.no_grad():
        out = model(SpeechEncoder(checkpoint, 0).heard(x), output_hidden_states=True)
    want = (*out.hidden_states[:-1], out.last_hidden_state)  # versions differ on the last one's norm
    assert len(want) == checkpoint.layers + 1 == 4
    for layer, hidden in enumerate(want):
        torch.testing.assert_close(SpeechEncoder(checkpoint, layer)(x), hidden, atol=1e-5, rtol=0)


def test_long_clips_are_heard_in_pieces_with_a_margin(checkpoints, monkeypatch):
    from vivavoce.units.hubert import encoder as module

    encoder, x = SpeechEncoder(opened(checkpoints["wav2vec2"]), 0), voiced(3.0)[None]
    encoder.body.model.feature_extractor.conv_layers[0].layer_norm = torch.nn.Identity()  # it hears whole clips
    whole_clip = encoder(x)
    monkeypatch.setattr(module, "PIECE_SECONDS", 0.5)
    monkeypatch.setattr(module, "MARGIN_SECONDS", 0.4)
    assert encoder(x).shape == whole_clip.shape
    torch.testing.assert_close(encoder(x), whole_clip, atol=1e-5, rtol=0)


def test_contentvec_s_final_projection(tmp_path):
    folder = tiny_speech.build(tmp_path, final_proj=True, head="ForCTC")
    x, checkpoint = voiced(0.4)[None], opened(folder)
    plain, projected = SpeechEncoder(checkpoint, 2), SpeechEncoder(checkpoint, 2, final_proj=True)
    tensors, _ = load_tensors(folder / "model.safetensors")
    want = plain(x) @ tensors["final_proj.weight"].T + tensors["final_proj.bias"]
    assert projected.dim == 12
    torch.testing.assert_close(projected(x), want, atol=1e-5, rtol=0)


def test_what_cannot_be_used_is_named(checkpoints, tmp_path):
    with pytest.raises(ConfigError, match="layers 0 to 3"):
        SpeechEncoder(opened(checkpoints["hubert"]), 4)
    with pytest.raises(CheckpointError, match="has no final_proj"):
        SpeechEncoder(opened(checkpoints["hubert"]), 1, final_proj=True)
    with pytest.raises(ConfigError, match="backend 'onnx'"):
        SpeechEncoder(opened(checkpoints["hubert"]), 1, backend="onnx")
    with pytest.raises(CheckpointError, match="16000 Hz and 640"):
        Checkpoint.open(checkpoints["hubert"], 16000, 640)
    for name, text, message in (
        ("other", '{"model_type": "bert"}', "'bert' model"),
        ("no-weights", '{"model_type": "hubert"}', "holds no model.safetensors"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            opened(tmp_path / name)
    wrong = tiny_speech.build(tmp_path / "wrong")
    text = (wrong / "config.json").read_text()
    (wrong / "config.json").write_text(text.replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))
    with pytest.raises(CheckpointError, match="do not fit its config"):
        SpeechEncoder(opened(wrong), 4)


def test_pickled_weights_are_imported_and_code_in_them_is_not_run(checkpoints, tmp_path, capsys):
    source, out = tmp_path / "pickled", tmp_path / "out"
    source.mkdir()
    (source / "config.json").write_text((checkpoints["hubert"] / "config.json").read_text())
    tensors, _ = load_tensors(checkpoints["hubert"] / "model.safetensors")
    torch.save(tensors, source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights only; `python -m vivavoce"):
        opened(source)
    assert import_command([str(source), str(out)]) == 0 and capsys.readouterr().out.strip() == str(out)
    x = voiced(0.3)[None]
    assert torch.equal(SpeechEncoder(opened(out), 2)(x), SpeechEncoder(opened(checkpoints["hubert"]), 2)(x))

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    (source / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Code()}, protocol=2))
    with pytest.raises(CheckpointError, match="refused"):
        import_checkpoint(source, tmp_path / "out2")
    assert import_command([str(source), str(out)]) == 1 and "refused" in capsys.readouterr().err
    assert not (tmp_path / "run").exists() and not (tmp_path / "out2").exists()


# ---------------------------------------------------------------- units


@given(st.lists(st.integers(0, 3), max_size=40))
def test_runs_collapse_and_expand_exactly(units):
    x = torch.tensor(units, dtype=torch.int64)
    values, durations = collapse(x)
    assert values.tolist() == [k for k, _ in groupby(units)] and torch.equal(expand(values, durations), x)


def test_centroids_are_those_of_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    x = np.random.default_rng(0).normal(size=(2000, 12)).astype(np.float32)
    kmeans = cluster.MiniBatchKMeans(20, n_init=1, random_state=0).fit(x)
    centroids = Centroids(12, 12, 20)
    centroids.vectors.copy_(torch.from_numpy(kmeans.cluster_centers_))
    assert np.mean(centroids(torch.from_numpy(x)).numpy() == kmeans.predict(x)) > 0.999  # but for ties of floats


# ---------------------------------------------------------------- sliding windows


def moving_sum(x: torch.Tensor) -> torch.Tensor:
    """A clip's frames [B, T, 2]: the level of a frame, and the sum of all before and after it in the clip."""
    level = x.unfold(1, 4, 4).sum(-1)
    return torch.stack((level, level.sum(1, keepdim=True).expand_as(level)), -1)


@pytest.mark.parametrize(("window", "lookahead", "stride", "group"), [
    (5, 0, 1, 1), (5, 2, 1, 1), (7, 3, 4, 1), (6, 5, 2, 1), (50, 3, 2, 1), (5, 2, 1, 8), (7, 4, 3, 3),
])  # fmt: skip
def test_sliding_windows_by_hand_and_in_any_chunking(window, lookahead, stride, group):
    x, n = torch.randn(2, 4 * 31), 31
    sliding = Sliding(moving_sum, 2, 4, window, lookahead, stride, group)
    y, state = sliding(x)
    for t in range(n):
        f = t - lookahead
        if f < 0:
            assert not y[:, t].any()
            continue
        late = lookahead - stride + 1
        end = (f + late) // stride * stride + stride  # the first window end that has f and `late` frames after it
        start = max(0, end - window)
        torch.testing.assert_close(y[:, t], moving_sum(x[:, start * 4 : end * 4])[:, f - start])
    for seed in range(3):
        assert_same(in_chunks(sliding, (x,), ragged(4 * n, 4, seed)), y, 0.0 if group == 1 else 1e-5)
    assert state[1].shape[1] <= window * 4 and len(state[2]) <= stride


def test_impossible_windows_are_refused():
    for window, lookahead, stride in ((5, 5, 1), (5, 1, 3), (5, 2, 0)):
        with pytest.raises(ValueError, match="a window of"):
            Sliding(moving_sum, 2, 4, window, lookahead, stride)


# ---------------------------------------------------------------- unit folders


def unit_folder(folder: Path, checkpoint: Path, **more) -> Path:
    """A unit folder with random centroids among the features of some sound."""
    found = opened(checkpoint)
    config = HubertConfig(str(checkpoint), found.sha256, 2, 24, 24, 12, native=NATIVE, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        units = HubertUnits(config)
        features = SpeechEncoder(found, 2)(torch.cat((voiced(2.0), voiced(2.0, f0=210.0)))[None])[0]
        units.centroids.vectors.copy_(features[torch.randperm(len(features))[:12]])
        units.save_pretrained(folder)
    return folder


def test_unit_folder_offline(checkpoints, tmp_path):
    units = load_units(unit_folder(tmp_path, checkpoints["hubert"], expression=True))
    assert isinstance(units, HubertUnits) and units.config.expression_levels == [5, 5]
    x = voiced(1.0)[None]
    padded = torch.nn.functional.pad(x, (0, 2 * 320))
    heard, state = units(padded)
    content = units.content(x)
    assert torch.equal(heard.content[:, 2:], content) and len(content.unique()) > 2
    native, _ = units.native(padded)
    for a, b in zip(heard[1:], native[1:]):
        assert_same(a, b)
    with pytest.raises(ConfigError, match="window 0 hears whole clips"):
        units(padded, state)
    assert all("encoder" not in k or k.startswith("native") for k in units.state_dict())


@pytest.mark.parametrize("expression", (False, True))
def test_unit_folder_streams_in_any_chunking(expression, checkpoints, tmp_path):
    folder = unit_folder(tmp_path, checkpoints["hubert"], window=20, stride=2, lookahead=5, expression=expression)
    units = load_units(folder)
    x = voiced(1.2)[None]
    y, _ = units(x)
    assert y.expression.shape == (1, 60, 2 if expression else 0)
    for seed in range(2):
        got = in_chunks(units, (x,), ragged(x.shape[1], 320, seed))
        assert all(torch.equal(a, b) for a, b in zip(got[:2], y[:2]))
        assert_same(tuple(got), tuple(y))
    native, _ = units.native(x)
    assert_same(y.f0[:, 3:], native.f0[:, :-3])  # as late as the content
    assert not expression or torch.equal(y.expression[:, 3:], native.expression[:, :-3])
    small = int8.int8(units)
    assert small._loaded is units._loaded  # the speech model is neither copied nor quantised
    assert torch.equal(small(x)[0].content, y.content)


def test_long_windows_with_far_look_ahead_give_the_offline_units(checkpoints, tmp_path):
    units = load_units(unit_folder(tmp_path, checkpoints["hubert"], window=50, stride=25, lookahead=49))
    x = voiced(1.0)[None]
    y, _ = units(torch.nn.functional.pad(x, (0, 49 * 320)))
    assert torch.equal(y.content[:, 49 : 49 + 25], units.content(x)[:, :25])  # the one window that is the clip


def test_other_weights_than_those_of_the_fit_are_refused(tmp_path):
    checkpoint = tiny_speech.build(tmp_path / "c")
    units = load_units(unit_folder(tmp_path / "u", checkpoint))
    tiny_speech.build(checkpoint, seed=1)
    with pytest.raises(CheckpointError, match="not the weights that the units"):
        units.content(voiced(0.2)[None])
    units.config.checkpoint = "nobody/nothing-here"
    with pytest.raises(CheckpointError, match="neither a folder nor a reachable hub model"):
        units.content(voiced(0.2)[None])


# ---------------------------------------------------------------- context


def test_agreement_with_offline_is_complete_where_the_window_holds_all_that_is_heard():
    torch.manual_seed(0)
    native = UnitEncoder(NATIVE).eval()  # one block of 7 frames: 6 frames of past, its look-ahead, and the analysis
    clips = [voiced(1.6), voiced(1.6, f0=220.0, seed=2)]
    with torch.no_grad():  # an untrained head says one thing of all frames: centre it on these
        h, _ = native.features(native.spectra(torch.stack(clips))[0])
        native.content_head.bias.copy_(-native.content_head.weight @ h.mean((0, 1)))
    shares, chance, judged = agreement(lambda x: whole(native, x), clips, 320, [3, 12, 20], [0, 2], every=3)
    assert shares[12][2] == shares[20][2] == 1.0
    assert 0 < shares[3][2] < 1.0 and shares[20][0] < 1.0 and 0 < chance < 0.5 and judged > 30
    with pytest.raises(ValueError, match="no clip is longer than 22 frames"):
        agreement(lambda x: whole(native, x), [voiced(0.2)], 320, [20], [2])


def test_context_benchmark_writes_a_curve(checkpoints, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    import sys

    import soundfile

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import hubert_context

    soundfile.write(tmp_path / "x.wav", voiced(1.0).numpy(), 16000)
    units = unit_folder(tmp_path / "u", checkpoints["hubert"])
    result = hubert_context.main([str(units), str(tmp_path / "x.wav"), "-o", str(tmp_path / "curve"), "--every", "8",
                                  "--windows", "0.2", "0.5", "--lookaheads", "0", "240"])  # fmt: skip
    assert [(r["window_ms"], r["lookahead_ms"]) for r in result["agreement"]] == [(200, 0), (500, 0), (500, 240)]
    assert all(0 <= r["agreement"] <= 1 for r in result["agreement"])
    assert (tmp_path / "curve.json").stat().st_size and (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    sys.modules.pop("hubert_context")


# ---------------------------------------------------------------- perturbed waveforms


@pytest.mark.parametrize("factor", (0.85, 1.0, 1.17))
def test_warping_a_waveform_moves_its_pitch_and_keeps_its_length(factor):
    n = torch.arange(16000)
    x = 0.3 * torch.sin(2 * torch.pi * 440 / 16000 * n)[None]
    y = warp_wave(x, torch.tensor([factor]))
    spectrum = torch.fft.rfft(y[0, 4000:12000]).abs()
    assert y.shape == x.shape and abs(2 * int(spectrum.argmax()) - 440 * factor) <= 2
    assert 0.7 < float(y[0, 4000:12000].std() / x.std()) < 1.3
    if factor == 1.0:
        torch.testing.assert_close(y, x, atol=1e-3, rtol=0)


def test_perturbed_waveforms_differ_and_depend_on_the_generator_alone():
    x = voiced(0.5).reshape(1, -1, 160)
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(perturb_wave(x))
    assert torch.equal(outs[0], outs[1]) and not torch.allclose(outs[0], outs[2], atol=1e-2)
    assert outs[0].shape == x.shape and not perturb_wave(torch.zeros(1, 8, 160)).any()
