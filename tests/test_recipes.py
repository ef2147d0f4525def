"""Recipes on a miniature corpus: packs, labels, tokens, training that resumes exactly, the whole pipeline."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tarfile
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from vivavoce.codec import Codec, CodecConfig
from vivavoce.core.checkpoint import load_tensors, read_json
from vivavoce.core.config import load_config
from vivavoce.core.errors import CheckpointError, ConfigError, CorpusError
from vivavoce.recipes import (
    corpus,
    default,
    label,
    sources,
    tokenise,
    train_codec,
    train_critics,
    train_joint,
    train_lm,
    train_units,
)
from vivavoce.recipes.corpus import HOP, NO_LABEL, RATE, Pack, PrepareConfig
from vivavoce.recipes.tokenise import TokeniseConfig, Tokeniser, Tokens
from vivavoce.recipes.trainer import TrainConfig
from vivavoce.units import UnitEncoder, UnitsConfig
from vivavoce.units.prosody import quantise

for package in ("accelerate", "datasets", "tensorboard", "swift_f0"):  # the extra `train`
    pytest.importorskip(package)
pq = pytest.importorskip("pyarrow.parquet")

TOY = Path(corpus.__file__).with_name("toy.yaml")
PHONES = ["a", "i", "u", "s"]
FORMANTS = {"a": (750, 1200, 2500), "i": (300, 2300, 3000), "u": (330, 800, 2300)}
SPEAKERS = {"ann": (210.0, 1.1), "bob": (115.0, 0.9), "cy": (150.0, 1.0)}  # F0 in Hz, formant scale
PHONE_FRAMES = 10


def sing(rng: np.random.Generator, speaker: str, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples [frames * hop] of vowels and hisses, and the phone of each frame."""
    f0, scale = SPEAKERS[speaker]
    phones = np.repeat(rng.integers(0, len(PHONES), -(-frames // PHONE_FRAMES)), PHONE_FRAMES)[:frames]
    n = np.arange(frames * HOP)
    hz = f0 * 2 ** (0.2 * np.sin(2 * np.pi * 0.7 * n / RATE + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(hz) / RATE
    wave = np.zeros(len(n))
    for k, name in enumerate(PHONES):
        on = np.convolve(np.repeat(phones == k, HOP), np.hanning(200) / 100, "same")
        if name == "s":
            wave += on * np.diff(rng.normal(0, 0.1, len(n) + 1))
            continue
        for h in range(1, 25):
            gain = sum(np.exp(-0.5 * ((h * f0 - scale * f) / 120) ** 2) for f in FORMANTS[name]) + 0.01
            wave += on * gain * np.cos(h * phase)
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32), phones


@pytest.fixture(scope="session")
def corpora(tmp_path_factory) -> SimpleNamespace:
    """The same 12 recordings as a plain folder and as a manifest with a tar shard, labels and phonemes."""
    root = tmp_path_factory.mktemp("corpora")
    plain, listed = root / "plain", root / "listed"
    (listed / "loose").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines, labels, spans, waves = [], [], [], {}
    with tarfile.open(listed / "shard-000.tar", "w") as tar:
        for i in range(12):
            speaker = list(SPEAKERS)[i % 3]
            frames = int(rng.integers(50, 100))
            x, phones = sing(rng, speaker, frames)
            name, suffix = f"{speaker}-{i}", ".ogg" if i % 4 == 3 else ".wav"
            (plain / speaker).mkdir(parents=True, exist_ok=True)
            soundfile.write(plain / speaker / f"{i}{suffix}", x, RATE)
            split = ["train", "train", "valid"][i % 3] if i != 11 else "test"
            clip = {"id": name, "speaker": speaker, "licence": "CC-BY-4.0", "split": split,
                    "emotion": ["calm", "glad"][i % 2]}  # fmt: skip
            if i % 2:
                data = (plain / speaker / f"{i}{suffix}").read_bytes()
                info = tarfile.TarInfo(f"in-tar/{name}{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
                clip |= {"path": info.name, "shard": "shard-000.tar"}
            else:
                shutil.copy(plain / speaker / f"{i}{suffix}", listed / "loose" / f"{name}{suffix}")
                clip |= {"path": f"loose/{name}{suffix}", "strength": i / 10}
            lines.append(clip)
            labels.append(phones)
            waves[name] = x
            edges = [*range(0, frames, PHONE_FRAMES), frames]
            spans.append({"id": name, "phonemes": [PHONES[phones[e]] for e in edges[:-1]],
                          "spans": [[a * 0.02, b * 0.02] for a, b in pairwise(edges)]})  # fmt: skip
    lines[0]["licence"] = lines[2]["licence"] = "CC-BY-NC-SA-4.0"  # ann-0 in train, cy-2 in valid
    (listed / "loose" / "broken.wav").write_text("this is no sound")
    lines.append({"id": "broken", "path": "loose/broken.wav", "speaker": "bob", "split": "train"})
    (listed / "manifest.jsonl").write_text("".join(json.dumps(c) + "\n" for c in lines))
    (root / "phonemes.jsonl").write_text("".join(json.dumps(s) + "\n" for s in spans))
    lengths = np.array([len(p) for p in labels])
    np.savez(root / "teacher.npz", clip_ids=np.array([c["id"] for c in lines[:12]]), lengths=lengths,
             offsets=np.concatenate(([0], np.cumsum(lengths[:-1]))),
             units_20=np.concatenate(labels).astype(np.uint8))  # fmt: skip
    return SimpleNamespace(plain=plain, listed=listed, waves=waves, root=root, labels=labels,
                           teacher=str(root / "teacher.npz"), phonemes=str(root / "phonemes.jsonl"))


def prepare_config(corpora: SimpleNamespace, out: Path) -> PrepareConfig:
    return PrepareConfig(str(corpora.listed), str(out), teacher=corpora.teacher, teacher_array="units_20",
                         workers=1)  # fmt: skip


@pytest.fixture(scope="session")
def pack(corpora, tmp_path_factory) -> Pack:
    out = tmp_path_factory.mktemp("pack")
    corpus.prepare(prepare_config(corpora, out))
    return Pack(out)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> SimpleNamespace:
    """Untrained toy models: their tokens are arbitrary, but as deterministic as any."""
    root = tmp_path_factory.mktemp("models")
    recipe = load_config(default.DefaultRecipe, TOY)
    torch.manual_seed(1)
    Codec(CodecConfig(**recipe.codec["model"])).save_pretrained(root / "codec")
    UnitEncoder(UnitsConfig(**recipe.units["model"])).save_pretrained(root / "units")
    return SimpleNamespace(codec=str(root / "codec"), units=str(root / "units"))


def token_config(pack: Pack, models: SimpleNamespace, out: Path, **more) -> TokeniseConfig:
    return TokeniseConfig(str(pack.folder), models.codec, models.units, str(out), shard_clips=3, **more)


@pytest.fixture(scope="session")
def tokens(pack, models, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokens") / "t"
    tokenise.run(token_config(pack, models, out))
    return out


# --- corpora and packs


def test_scan_folder(corpora):
    clips = corpus.scan(corpora.plain)
    assert len(clips) == 12 and {c["speaker"] for c in clips} == set(SPEAKERS)
    assert {Path(c["path"]).suffix for c in clips} == {".wav", ".ogg"}


def test_scan_refuses(tmp_path):
    with pytest.raises(CorpusError, match="no such corpus"):
        corpus.scan(tmp_path / "none")
    with pytest.raises(CorpusError, match="no recordings"):
        corpus.scan(tmp_path)
    (tmp_path / "manifest.jsonl").write_text('{"id": "a", "path": "a.wav"}\n{"id": "a", "path": "b.wav"}\n')
    with pytest.raises(CorpusError, match="'a' appears twice"):
        corpus.scan(tmp_path)
    for line in ('{"id": "a"}', "not json"):
        (tmp_path / "manifest.jsonl").write_text(line + "\n")
        with pytest.raises(CorpusError, match=r"manifest.jsonl:1"):
            corpus.scan(tmp_path)


def test_prepare_folder_keeps_every_sample(corpora, tmp_path):
    corpus.prepare(PrepareConfig(str(corpora.plain), str(tmp_path), pitch=False, workers=1))
    pack = Pack(tmp_path)
    assert len(pack.clips) == 12 and pack.audio.shape[0] == sum(c["frames"] for c in pack.clips)
    for clip in pack.clips:
        want = corpora.waves[f"{clip['speaker']}-{Path(clip['path']).stem}"]
        got = pack.waveform(clip["offset"], clip["frames"])
        assert len(got) == len(want)
        lossy = clip["path"].endswith(".ogg")
        assert np.sqrt(np.mean((got - want) ** 2)) < (0.02 if lossy else 1e-4)
    assert (pack.teacher[:] == NO_LABEL).all()


def test_prepare_manifest(corpora, pack):
    ids = [c["id"] for c in pack.clips]
    assert "ann-0" not in ids and "cy-2" in ids  # NC is kept from training only
    assert "broken" not in ids and read_json(pack.folder / "pack.json")["skipped"] == 1
    assert len(ids) == 11 and [len(pack.split(s)) for s in ("train", "valid", "test")] == [7, 3, 1]
    assert {c["id"]: c["strength"] for c in pack.clips if "strength" in c}["bob-4"] == 0.4
    for clip in pack.clips:
        at = slice(clip["offset"], clip["offset"] + clip["frames"])
        assert (pack.teacher[at] == corpora.labels[int(clip["id"].split("-")[1])]).all()
        voiced = pack.pitch[at, 1] > 0.8
        f0 = SPEAKERS[clip["speaker"]][0]
        if voiced.sum() > 10:
            assert f0 / 1.3 < np.median(pack.pitch[at, 0][voiced]) < f0 * 1.3


def test_prepare_resumes_after_a_cut(corpora, pack, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(pack.folder, cut)
    lines = (cut / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "manifest.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:20])
    (cut / "pack.json").unlink()
    with open(cut / "audio.i16", "ab") as f:
        f.write(b"half a frame")
    with pytest.raises(CorpusError, match="not a finished pack"):
        Pack(cut)
    corpus.prepare(prepare_config(corpora, cut))
    for path in pack.folder.iterdir():
        assert (cut / path.name).read_bytes() == path.read_bytes(), path.name


def test_prepare_refuses(corpora, tmp_path):
    config = prepare_config(corpora, tmp_path)
    with pytest.raises(CorpusError, match="not a label file with units_500"):
        corpus.prepare(dataclasses.replace(config, teacher_array="units_500"))
    (tmp_path / "manifest.jsonl").write_text('{"id": "a", "path": "a.wav", "licence": "CC-BY-NC-4.0"}\n')
    with pytest.raises(CorpusError, match="every clip is excluded"):
        corpus.prepare(PrepareConfig(str(tmp_path), str(tmp_path / "p")))
    (tmp_path / "manifest.jsonl").write_text('{"id": "a", "path": "a.wav"}\n')
    with pytest.raises(CorpusError, match="none of its 1 clips could be read"):
        corpus.prepare(PrepareConfig(str(tmp_path), str(tmp_path / "p"), workers=1))


def test_prepare_refuses_to_mix_settings(corpora, pack, tmp_path):
    config = prepare_config(corpora, shutil.copytree(pack.folder, tmp_path / "p"))
    with pytest.raises(CorpusError, match=r"begun with other settings \(teacher\)"):
        corpus.prepare(dataclasses.replace(config, teacher=None))
    corpus.prepare(dataclasses.replace(config, limit=5, workers=2))  # how much and how fast may change


# --- labels


def fake_teacher(wave: np.ndarray) -> np.ndarray:
    """Random features of each frame's spectrum: [T, 24]."""
    frames = np.pad(wave, (0, -len(wave) % HOP)).reshape(-1, HOP)
    spectrum = np.log(np.abs(np.fft.rfft(frames * np.hanning(HOP))) + 1e-3)
    return (spectrum @ np.random.default_rng(5).normal(size=(spectrum.shape[1], 24)) / 10).astype(np.float32)


@pytest.mark.parametrize("with_phonemes", [True, False])
def test_label(corpora, tmp_path, with_phonemes):
    pytest.importorskip("sklearn")
    out = tmp_path / "labels.npz"
    config = label.LabelConfig(str(corpora.listed), str(out), "", corpora.phonemes if with_phonemes else None,
                               units=12, window_seconds=3.0)  # fmt: skip
    result = label.run(config, fake_teacher)
    assert result["clips"] == 12 and ("phone_nmi" in result) == with_phonemes
    if with_phonemes:
        assert result["phone_nmi"] > 0.3  # chance is below 0.05
    assert [p.name for p in tmp_path.iterdir()] == ["labels.npz"]  # no features left behind
    corpus.prepare(PrepareConfig(str(corpora.listed), str(tmp_path / "p"), teacher=str(out),
                                 teacher_array="units_12", pitch=False, workers=1))  # fmt: skip
    assert (Pack(tmp_path / "p").teacher[:] < 12).all()


def test_label_windows_do_not_matter(corpora):
    """Short clips share a window, long ones are cut; each clip gets its own frames back."""
    clips = corpus.scan(corpora.plain)
    for seconds in (1.0, 4.0):
        config = label.LabelConfig(str(corpora.plain), "", "", window_seconds=seconds)
        got = list(label._features(config, clips, fake_teacher))
        assert [c["id"] for c, _ in got] == [c["id"] for c in clips]
        for clip, features in got:
            want = fake_teacher(corpus.read_clip(corpora.plain, clip))
            assert features.shape == want.shape and np.abs(features - want).max() < 1e-4


def test_label_refuses(corpora, tmp_path):
    pytest.importorskip("sklearn")
    config = label.LabelConfig(str(corpora.listed), str(tmp_path / "x.npz"), "", units=100_000)
    with pytest.raises(CorpusError, match="lower units="):
        label.run(config, fake_teacher)
    (tmp_path / "bad.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(CorpusError, match="not a phoneme file"):
        label.read_phonemes(str(tmp_path / "bad.jsonl"))


# --- tokens


def test_tokens_carry_everything(pack, models, tokens):
    codec, units = Codec.from_pretrained(models.codec).config, UnitEncoder.from_pretrained(models.units).config
    head = Tokens(tokens).head
    assert head["shards"] == {"train": 3, "valid": 1, "test": 1}
    assert (head["codebooks"], head["content_units"]) == (codec.n_codebooks, units.content_units)
    for name in head["shards"]:
        split, clips = Tokens(tokens).split(name), pack.split(name)
        n = sum(c["frames"] for c in clips)
        assert [c["id"] for c in split.clips] == [c["id"] for c in clips]
        for got, want in zip(split.clips, clips):
            assert {k: v for k, v in got.items() if v is not None} == want
        assert split.offsets[-1] == n == len(split.content)
        assert split.codes.shape == (n, codec.n_codebooks) and split.prosody.shape == (n, 3)
        assert split.expression.shape == (n, len(units.expression_levels)) and len(split.views) == 2
        assert split.codes[:].max() < codec.codebook_size and split.content[:].max() < units.content_units
        types = [split.content, split.expression, split.prosody, split.codes, *split.views[1]]
        assert [str(a.dtype) for a in types] == ["uint32", "uint8", "int16", "uint16", "uint32", "uint8"]


@torch.inference_mode()
def test_tokens_are_aligned_with_the_live_path(pack, models, tokens):
    codec, units = Codec.from_pretrained(models.codec), UnitEncoder.from_pretrained(models.units)
    split, d = Tokens(tokens).split("valid"), units.config.lookahead
    for i, clip in enumerate(split.clips):
        at, n = slice(split.offsets[i], split.offsets[i + 1]), clip["frames"]
        x = torch.from_numpy(pack.waveform(clip["offset"], n))[None]
        live, _ = units(torch.nn.functional.pad(x, (0, d * HOP)))
        (codes, level), _ = codec.encode(x)
        prosody = quantise(live.f0[:, d:], live.periodicity[:, d:], level)
        want = (live.content[0, d:], live.expression[0, d:], prosody[0], codes[0])
        got = (split.content, split.expression, split.prosody, split.codes)
        for a, b in zip(got, want):
            assert a[at].shape == b.shape and np.mean(a[at] == b.numpy()) > 0.99


def test_batched_equals_single(pack, models, tmp_path):
    tokeniser = Tokeniser(token_config(pack, models, tmp_path))
    clips = pack.clips[:6]
    waves, ids = [pack.waveform(c["offset"], c["frames"]) for c in clips], [c["id"] for c in clips]
    together = tokeniser(waves, ids)
    for wave, name, row in zip(waves, ids, together):
        (alone,) = tokeniser([wave], [name])
        assert list(alone) == list(row)
        for k in row:
            assert row[k].shape == alone[k].shape and np.mean(row[k] == alone[k]) > 0.99, k


def test_views_depend_on_seed_clip_and_view_alone(pack, models, tmp_path):
    clip = pack.clips[0]
    wave = pack.waveform(clip["offset"], clip["frames"])
    make = Tokeniser(token_config(pack, models, tmp_path))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    (a,) = make([wave], ["x"])
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(4)
    (b,), (c,) = make([wave], ["x"]), make([wave], ["y"])
    assert all((a[k] == b[k]).all() for k in a)
    assert (a["expression_1"] != c["expression_1"]).any() and (a["expression"] == c["expression"]).all()
    assert (a["expression_1"] != a["expression_2"]).any() and (a["expression_1"] != a["expression"]).any()
    other = Tokeniser(token_config(pack, models, tmp_path, seed=9))([wave], ["x"])[0]
    assert (a["expression_1"] != other["expression_1"]).any()


def test_speeds_make_speakers_of_their_own(pack, models, tokens, tmp_path):
    whole = token_config(pack, models, tmp_path / "tokens", speeds=[0.8, 1.25], splits=["train", "valid"])
    tokenise.run(whole)
    split, plain = Tokens(whole.out).split("train"), Tokens(tokens).split("train")
    assert len(Tokens(whole.out).split("valid").clips) == len(Tokens(tokens).split("valid").clips)
    n, clips = len(plain.frames), list(split.clips)
    assert [c["id"] for c in clips] == [f"{c['id']}{s}" for s in ("", "@0.8", "@1.25") for c in plain.clips]
    assert {c["speaker"] for c in clips[n:]} == {f"{c['speaker']}@{s}" for s in ("0.8", "1.25") for c in plain.clips}
    assert (split.frames[:n] == plain.frames).all()
    for speed, part in ((0.8, split.frames[n : 2 * n]), (1.25, split.frames[2 * n :])):
        assert (np.abs(part - plain.frames / speed) <= 1).all()
    faster = sources.PackSource(str(pack.folder), ["train"], 99, [1.25])
    (*_, (clip, wave)) = next(faster.blocks("train", 0))
    own = pack.waveform(pack.split("train")[-1]["offset"], pack.split("train")[-1]["frames"])
    assert len(wave()) == clip["frames"] * HOP
    peak = [np.abs(np.fft.rfft(x)).argmax() / len(x) for x in (own, wave()[: round(len(own) / 1.25)])]
    assert abs(peak[1] / peak[0] - 1.25) < 0.01
    with pytest.raises(CorpusError, match=r"speeds differ"):
        tokenise.run(dataclasses.replace(whole, speeds=[]))
    with pytest.raises(ConfigError, match="give different ones"):
        Tokeniser(dataclasses.replace(whole, speeds=[1.0]))


def test_views_can_move_harmonics(pack, models, tmp_path):
    clip = pack.clips[0]
    wave = pack.waveform(clip["offset"], clip["frames"])
    plain, moved = (Tokeniser(token_config(pack, models, tmp_path, pitch_warp=w))([wave], ["x"])[0] for w in (0, 0.4))
    assert (plain["expression"] == moved["expression"]).all() and (plain["prosody"] == moved["prosody"]).all()
    assert (plain["expression_1"] != moved["expression_1"]).any()


def test_load_dataset_reads_tokens(tokens, tmp_path):
    import datasets

    data = datasets.load_dataset("parquet", data_dir=str(tokens), cache_dir=str(tmp_path))
    assert {k: len(v) for k, v in data.items()} == {"train": 7, "validation": 3, "test": 1}
    for row in data["train"]:
        assert len(row["content"]) == len(row["content_2"]) == row["frames"]
        assert len(row["prosody"]) == 3 * row["frames"] and row["speaker"] in SPEAKERS


def test_tokenise_resumes_and_refuses_others(pack, models, tokens, tmp_path):
    out = tmp_path / "t"
    shutil.copytree(tokens, out)
    victim, kept = out / "train/00001.parquet", out / "train/00000.parquet"
    victim.unlink()
    stamp = kept.stat().st_mtime_ns
    with pytest.raises(CorpusError, match="misses 1 of 3 shards"):
        Tokens(out).split("train")
    assert tokenise.run(token_config(pack, models, out))["hours"] > 0
    assert pq.read_table(victim).equals(pq.read_table(tokens / "train/00001.parquet"))
    assert kept.stat().st_mtime_ns == stamp
    assert tokenise.run(token_config(pack, models, out))["hours"] == 0
    other = tmp_path / "codec"
    changed = Codec.from_pretrained(models.codec)
    changed.to_code.bias.data += 1
    changed.save_pretrained(other)
    with pytest.raises(CorpusError, match=r"another tokeniser version \(codec_sha256 differ\)"):
        tokenise.run(dataclasses.replace(token_config(pack, models, out), codec=str(other)))
    with pytest.raises(CorpusError, match="seed differ"):
        tokenise.run(token_config(pack, models, out, seed=1))
    with pytest.raises(CorpusError, match=r"no tokens\.json"):
        Tokens(tmp_path)
    with pytest.raises(CorpusError, match="'dev' is not among train, valid, test"):
        Tokens(out).split("dev")
    with pytest.raises(CheckpointError, match="no such model folder"):
        tokenise.run(dataclasses.replace(token_config(pack, models, out), codec="/none"))
    with pytest.raises(ConfigError, match="precision 'fp8'"):
        tokenise.run(token_config(pack, models, out, precision="fp8"))


def test_tokenise_with_workers(pack, models, tokens, tmp_path):
    tokenise.run(token_config(pack, models, tmp_path / "t", workers=2, threads=1))
    for path in sorted(tokens.rglob("*.parquet")):
        assert pq.read_table(path).equals(pq.read_table(tmp_path / "t" / path.relative_to(tokens))), path


def test_batches_are_bounded_and_complete():
    lengths = [*np.random.default_rng(0).integers(1, 90, 200).tolist(), 500]
    groups = list(tokenise.batches(lengths, 300))
    assert sorted(i for g in groups for i in g) == list(range(201))
    assert all(len(g) == 1 or max(lengths[i] for i in g) * len(g) <= 300 for g in groups)


def test_manifest_fields_of_mixed_type():
    clips = [{"id": "a", "frames": 1, "x": 1, "y": [1], "z": None, "n": 1},
             {"id": "b", "frames": 2, "x": "s", "n": 0.5}]  # fmt: skip
    schema = {k: str(v) for k, v in sources.manifest_schema(clips).items()}
    assert schema["x"] == "string" and schema["z"] == "string" and schema["n"] == "double"
    assert schema["frames"] == "int32" and schema["y"].startswith("list")
    with pytest.raises(CorpusError, match="'codes' collides"):
        sources.manifest_schema([{"codes": 1}])


# --- training


def recipe_of(kind: str, pack: Pack, tokens: Path, out: Path):
    recipe = load_config(default.DefaultRecipe, TOY, [f"corpus={pack.folder}", f"out={out}"])
    for section in (recipe.codec, recipe.units):
        section["pack"] = str(pack.folder)
    recipe.lm.update(tokens=str(tokens), codec=None)
    config = default.stages(recipe)[kind]
    config.train = TrainConfig(str(out), steps=8, warmup_steps=2, validate_every=100)
    return config


@pytest.mark.parametrize("kind", ["codec", "units", "lm"])
def test_a_run_that_stops_and_goes_on_equals_one_that_never_stopped(kind, pack, tokens, tmp_path):
    run = {"codec": train_codec, "units": train_units, "lm": train_lm}[kind].run
    run(recipe_of(kind, pack, tokens, tmp_path / "whole"))
    halves = recipe_of(kind, pack, tokens, tmp_path / "halves")
    halves.train.stop_after = 4
    run(halves)
    assert read_json(tmp_path / "halves/run.json")["step"] == 4
    torch.rand(7)  # whatever happened in between
    run(halves)
    a, b = (load_tensors(tmp_path / n / "last.safetensors")[0] for n in ("whole", "halves"))
    assert int(a["step"]) == 8 and a.keys() == b.keys()
    different = [k for k in a if k != "minutes" and not torch.equal(a[k], b[k])]
    assert not different


def test_a_model_that_is_not_autoregressive_learns_the_codecs_vectors(pack, models, tokens, tmp_path):
    config = recipe_of("lm", pack, tokens, tmp_path)
    config.model.autoregressive, config.regression = False, 4.0
    with pytest.raises(ConfigError, match="regression: needs codec="):
        train_lm.LMTask(config)
    config.codec = models.codec
    config.train = TrainConfig(str(tmp_path), steps=60, warmup_steps=2, validate_every=1000, learning_rate=3e-3)
    task = train_lm.LMTask(config)
    before = task.validate()["error"]
    assert train_lm.run(config)["error"] < min(before, 1.2)  # 1: no better than the mean
    codes = torch.from_numpy(task.train.split.codes[:9].astype(int))
    vectors = Codec.from_pretrained(models.codec).quantiser.decode(codes)
    torch.testing.assert_close(train_lm.summed(task.books, codes), vectors)


def test_units_learn_phonemes(pack, corpora, tokens, tmp_path):
    config = recipe_of("units", pack, tokens, tmp_path)
    config.model.content_levels, config.model.content_units = [5, 5, 5, 5], 625
    config.phonemes, config.spans_earlier = corpora.phonemes, 0
    config.pitch_weight, config.expression_weight, config.speed = 0.0, 0.0, 0
    config.train = TrainConfig(str(tmp_path), steps=60, warmup_steps=2, validate_every=1000, learning_rate=3e-3)
    task = train_units.UnitsTask(config)
    (named, count), clip = train_units.phonemes_of(pack, config), pack.split("train")[0]
    assert count <= len(PHONES) and len(named["phoneme"]) == len(pack.teacher)
    spans = next(v for k, v in label.read_phonemes(corpora.phonemes).items() if k == clip["id"])
    assert named["phoneme"][clip["offset"]] == spans[0][0]
    with torch.no_grad():
        before = task.validate()["speech/spell_hit"]
    assert train_units.run(config)["speech/spell_hit"] > max(before, 1.5 / count)  # better than by chance


def test_phonemes_that_units_cannot_use_are_refused(pack, corpora, tokens, tmp_path):
    config = recipe_of("units", pack, tokens, tmp_path)
    config.phonemes = corpora.phonemes
    config.model.content_levels = []
    with pytest.raises(ConfigError, match=r"phonemes: needs model\.content_levels"):
        train_units.UnitsTask(config)
    config.model.content_levels, config.model.content_units = [5, 5], 25
    strange = tmp_path / "strange.jsonl"
    strange.write_text('{"id": "nobody", "phonemes": ["a"], "spans": [[0, 1]]}\n')
    config.phonemes = str(strange)
    with pytest.raises(CorpusError, match="names no clip"):
        train_units.UnitsTask(config)


def test_training_stops_by_the_clock(pack, tokens, tmp_path):
    config = recipe_of("codec", pack, tokens, tmp_path)
    config.train = TrainConfig(str(tmp_path), steps=10**6, budget_minutes=0.02, validate_every=10**6)
    train_codec.run(config)
    done = load_tensors(tmp_path / "last.safetensors")[0]
    assert 0 < int(done["step"]) < 10**4 and 0.02 <= float(done["minutes"]) < 0.2


def test_another_kind_of_run_is_refused(pack, tokens, tmp_path):
    train_codec.run(recipe_of("codec", pack, tokens, tmp_path))
    with pytest.raises(ConfigError, match="holds a run of Codec"):
        train_units.run(recipe_of("units", pack, tokens, tmp_path))


# --- configs and the pipeline


@pytest.mark.parametrize(("name", "cls"), [
    ("prepare", PrepareConfig), ("tokenise", TokeniseConfig), ("codec", train_codec.CodecRecipe),
    ("units", train_units.UnitsRecipe), ("lm", train_lm.LMRecipe), ("joint", train_joint.JointRecipe),
    ("critics", train_critics.CriticRecipe), ("default", default.DefaultRecipe), ("toy", default.DefaultRecipe),
])  # fmt: skip
def test_yaml_of_every_recipe(name, cls, tmp_path):
    path = TOY.with_name(f"{name}.yaml")
    config = load_config(cls, path)
    if cls is default.DefaultRecipe:
        more = ["critics", "joint"] if name == "default" else []
        assert list(default.stages(config)) == ["prepare", "codec", "units", "pitch", "tokenise", "lm", *more]
    assert "#   vivavoce " in path.read_text().split("\n\n")[0]  # the header gives the command
    (tmp_path / "c.yaml").write_text(path.read_text() + "\nlearning_speed: 3\n")
    with pytest.raises(ConfigError, match="unknown key 'learning_speed'"):
        load_config(cls, tmp_path / "c.yaml")


def test_overrides_reach_into_sections():
    over = ["lm.train.steps=77", "units.model.content_units=30", "out=/x"]
    recipe = load_config(default.DefaultRecipe, TOY, over)
    configs = default.stages(recipe)
    assert configs["lm"].train.steps == 77 and configs["lm"].train.out == "/x/lm"
    assert configs["lm"].model.content_units == configs["units"].model.content_units == 30
    assert (configs["tokenise"].codec, configs["tokenise"].units) == ("/x/model/codec", "/x/model/units")
    with pytest.raises(ConfigError, match="unknown key 'stepz'"):
        default.stages(load_config(default.DefaultRecipe, TOY, ["lm.train.stepz=77"]))


def test_default_is_made_of_the_other_recipes():
    over = ["corpus=/c", "out=/o", "prepare.teacher=/t.npz", "units.train.steps=3"]
    configs = default.stages(load_config(default.DefaultRecipe, TOY.with_name("default.yaml"), over))
    codec = load_config(train_codec.CodecRecipe, TOY.with_name("codec.yaml"), ["pack=/o/pack", "train.out=/o/codec"])
    assert configs["codec"] == codec
    assert configs["prepare"].teacher == "/t.npz" and configs["prepare"].corpus == "/c"
    assert configs["units"].train.steps == 3 and configs["units"].train.budget_minutes
    tokens, lm = configs["tokenise"], configs["lm"]
    assert (tokens.codec, tokens.units) == ("/o/model/codec", "/o/pitch/export")
    assert (lm.tokens, lm.codec, lm.train.out) == (tokens.out, tokens.codec, "/o/lm")
    for bad in ("lm.base=none.yaml", "lm=5"):
        with pytest.raises(ConfigError, match=r"^lm"):
            default.stages(load_config(default.DefaultRecipe, TOY, [bad]))


def test_a_joint_stage_goes_on_with_what_the_tokens_are_made_of():
    recipe = load_config(default.DefaultRecipe, TOY.with_name("default.yaml"), ["corpus=/c", "out=/o"])
    configs = default.stages(recipe)
    tokens, lm, joint = (configs[k] for k in ("tokenise", "lm", "joint"))
    assert joint.units == tokens.units == "/o/pitch/export"  # the shipped ones are replaced at the end
    assert (joint.tokens, joint.codec) == (tokens.out, tokens.codec)
    assert (joint.pack, joint.start_from, joint.train.out) == ("/o/pack", "/o/lm/export", "/o/joint")
    assert (configs["critics"].tokens, configs["critics"].codec) == (tokens.out, tokens.codec)
    assert joint.critics == "/o/critics/export" and [*configs][-2:] == ["critics", "joint"]
    assert joint.reader == tokens.units  # reads again what it once read for the tokens
    recipe.critics = None
    alone = default.stages(recipe)["joint"]
    assert alone.critics is None and alone.reader is None  # not those that joint.yaml names
    assert joint.model == lm.model  # it goes on with all of its weights


def test_pipeline_with_critics_and_a_joint_stage(corpora, tmp_path):
    """The joint stage's units and language model are what is assembled; a second run does nothing."""
    levels = {"content_units": 75, "content_levels": [5, 3, 5]}
    joint = {"batch_size": 2, "crop_frames": 20, "prompt_frames": [20], "valid_batches": 1,
             "train": {"steps": 3, "warmup_steps": 1, "validate_every": 100, "learning_rate": 1e-2}}  # fmt: skip
    recipe = load_config(default.DefaultRecipe, TOY, [f"corpus={corpora.listed}", f"out={tmp_path}"])
    recipe.units["model"] |= levels
    recipe.lm["model"]["autoregressive"] = False
    recipe.critics = {k: joint[k] for k in ("batch_size", "crop_frames", "valid_batches", "train")}
    recipe.joint = {**joint, "model": recipe.lm["model"], "regression": 1.0, "leak": 0.2}
    model = default.run(recipe)
    for part in ("units", "lm"):
        folders = model / part, tmp_path / "joint/export" / part
        shipped, trained = (load_tensors(f / "model.safetensors")[0] for f in folders)
        assert all(torch.equal(shipped[k], v.half()) for k, v in trained.items() if v.is_floating_point())
    before = load_tensors(tmp_path / "pitch/export/model.safetensors")[0]["content_head.weight"]
    assert not torch.equal(before.half(), load_tensors(model / "units/model.safetensors")[0]["content_head.weight"])

    from vivavoce.changer import load

    changer = load(model)
    assert not changer.lm.config.autoregressive
    trained = {c["speaker"] for c in Pack(tmp_path / "pack").split("train")}
    assert changer.crowd is not None and changer.crowd.frames == 25 * len(trained) > 25
    assert changer.enroll(torch.from_numpy(sing(np.random.default_rng(0), "cy", 100)[0]), RATE).strangers is not None
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    default.run(recipe)
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}


def test_pipeline_from_recordings_to_a_model_folder(corpora, tmp_path):
    over = [f"corpus={corpora.listed}", f"out={tmp_path}", f"prepare.teacher={corpora.teacher}"]
    with pytest.raises(ConfigError, match="codec: stopped at step 2 of 8"):
        default.run(load_config(default.DefaultRecipe, TOY, [*over, "codec.train.stop_after=2"]))
    recipe = load_config(default.DefaultRecipe, TOY, over)
    model = default.run(recipe)
    head = read_json(model / "config.json")
    assert head == {"model_type": "vivavoce", "format_version": 1, "sample_rate": 16000, "hop": 320,
                    "parts": ["codec", "units", "lm"]}  # fmt: skip
    assert (model / "voices").is_dir()
    for part in head["parts"]:
        tensors, meta = load_tensors(model / part / "model.safetensors")
        assert meta["model_type"] == f"vivavoce-{part}"
        assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float16}

    from vivavoce.changer import load

    changer = load(model)
    pack, tokens = Pack(tmp_path / "pack"), Tokens(tmp_path / "tokens").split("valid")
    x = torch.from_numpy(pack.waveform(tokens.clips[0]["offset"], tokens.clips[0]["frames"]))
    columns = (tokens.content, tokens.expression, tokens.prosody, tokens.codes)
    for got, want in zip(changer.tokenise(x), columns):
        assert np.mean(got.numpy() == want[: tokens.offsets[1]]) > 0.99  # trained on what is met live

    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    default.run(recipe)
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    default.run(load_config(default.DefaultRecipe, TOY, [*over, "lm.train.steps=5"]))
    changed = {p.relative_to(tmp_path).parts[0] for p, t in stamps.items() if p.stat().st_mtime_ns != t}
    assert changed == {"lm", "model"} and read_json(tmp_path / "lm/run.json")["step"] == 5
