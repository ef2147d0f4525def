"""Recipes that train, on a miniature corpus: runs that resume exactly, configs, the whole pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

for package in ("accelerate", "datasets", "tensorboard", "swift_f0"):  # the extra `train`
    pytest.importorskip(package)
pytest.importorskip("pyarrow.parquet")
pytest_plugins = ["sung"]

from sung import PHONES, TOY, sing  # noqa: E402

from vivavoce.changer import fingerprint  # noqa: E402
from vivavoce.codec import Codec  # noqa: E402
from vivavoce.core.checkpoint import load_tensors, read_json  # noqa: E402
from vivavoce.core.config import load_config  # noqa: E402
from vivavoce.core.errors import ConfigError, CorpusError  # noqa: E402
from vivavoce.recipes import (  # noqa: E402
    default,
    label,
    train_codec,
    train_critics,
    train_decoder,
    train_joint,
    train_lm,
    train_units,
)
from vivavoce.recipes.corpus import RATE, Pack, PrepareConfig  # noqa: E402
from vivavoce.recipes.tokenise import TokeniseConfig, Tokens  # noqa: E402
from vivavoce.recipes.trainer import TrainConfig  # noqa: E402
from vivavoce.units.speaking import Speaking, SpeakingConfig  # noqa: E402

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
    ("critics", train_critics.CriticRecipe), ("decoder", train_decoder.DecoderRecipe),
    ("default", default.DefaultRecipe), ("toy", default.DefaultRecipe),
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


def test_a_decoder_stage_hears_what_will_be_used_with_it():
    over = ["corpus=/c", "out=/o", "decoder.reader=/w"]
    recipe = load_config(default.DefaultRecipe, TOY.with_name("default.yaml"), over)
    recipe.decoder = {"base": "decoder.yaml", "reader": "/w"}
    found = default.stages(recipe)["decoder"]
    assert (found.units, found.lm) == ("/o/joint/export/units", "/o/joint/export/lm")
    assert (found.codec, found.reader, found.train.out) == ("/o/model/codec", "/w", "/o/decoder")
    recipe.joint = None
    found = default.stages(recipe)["decoder"]
    assert (found.units, found.lm) == ("/o/pitch/export", "/o/lm/export")
    recipe.codec = "encodec_24khz"
    with pytest.raises(ConfigError, match="decoder: trains a codec of ours"):
        default.stages(recipe)


def test_pipeline_with_critics_and_a_joint_stage(corpora, tmp_path, monkeypatch):
    """The joint stage's units and language model are what is assembled; a second run does nothing."""
    levels = {"content_units": 75, "content_levels": [5, 3, 5]}
    joint = {"batch_size": 2, "crop_frames": 20, "prompt_frames": [20], "valid_batches": 1,
             "train": {"steps": 3, "warmup_steps": 1, "validate_every": 100, "learning_rate": 1e-2}}  # fmt: skip
    recipe = load_config(default.DefaultRecipe, TOY, [f"corpus={corpora.listed}", f"out={tmp_path}"])
    recipe.units["model"] |= levels
    recipe.lm["model"]["autoregressive"] = False
    recipe.critics = {k: joint[k] for k in ("batch_size", "crop_frames", "valid_batches", "train")}
    recipe.joint = {**joint, "model": recipe.lm["model"], "regression": 1.0, "leak": 0.2}
    told = []

    def make_speaking(model: Path, pack: Path) -> None:  # three steps of training hear no voice that could be told
        told.append((model, pack))
        Speaking(SpeakingConfig(fingerprint(model, ("units",)), 75, [5, 3, 5])).save_pretrained(model / "speaking")

    monkeypatch.setattr(default, "make_speaking", make_speaking)
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
    assert changer.speaking is not None and told == [(model, tmp_path / "pack")]
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
