"""Recipes before training, on a miniature corpus: packs, labels, tokens."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("accelerate", "datasets", "tensorboard", "swift_f0"):  # the extra `train`
    pytest.importorskip(package)
pq = pytest.importorskip("pyarrow.parquet")
pytest_plugins = ["sung"]

from sung import SPEAKERS, prepare_config, token_config  # noqa: E402

from vivavoce.codec import Codec  # noqa: E402
from vivavoce.core.checkpoint import read_json  # noqa: E402
from vivavoce.core.errors import CheckpointError, ConfigError, CorpusError  # noqa: E402
from vivavoce.recipes import corpus, label, sources, tokenise  # noqa: E402
from vivavoce.recipes.corpus import HOP, NO_LABEL, Pack, PrepareConfig  # noqa: E402
from vivavoce.recipes.tokenise import Tokeniser, Tokens  # noqa: E402
from vivavoce.units import UnitEncoder  # noqa: E402
from vivavoce.units.prosody import quantise  # noqa: E402

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
