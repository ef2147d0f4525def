"""Bad input at the command line gets one clear line, and loses nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import torch
from conftest import full_disk, names

from vivavoce.core.checkpoint import save_tensors
from vivavoce.voice import Voice

pytest_plugins = ["shell"]

from shell import Run, says, sound  # noqa: E402


def bad_sources(folder: Path) -> dict[str, str]:
    """Name of a file -> what must be said of it."""
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is no recording\n" * 100)
    soundfile.write(folder / "none.wav", np.zeros(0), 16000)
    x = tiny.voiced(1.5).numpy()
    x[20000] = np.nan
    soundfile.write(folder / "nan.wav", x, 16000, subtype="FLOAT")
    x[20000] = np.inf
    soundfile.write(folder / "inf.wav", x, 16000, subtype="DOUBLE")
    soundfile.write(folder / "slow.wav", np.zeros(100), 500)
    return {"missing.wav": "no such file", "empty.wav": "empty", "text.wav": "not readable as audio",
            "none.wav": "no samples", "nan.wav": "NaN or infinite sample at index 20000", "inf.wav": "NaN",
            "slow.wav": "500 Hz"}  # fmt: skip


def test_bad_sources(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    half = ("--source-pitch", "live", "--chunk", "0.1s")  # the fault is met when half is written
    for name, words in bad_sources(tmp_path).items():
        for options in ((), ("--chunk", "0.1s"), half):
            says(run("convert", tmp_path / name, "-o", tmp_path / "out" / "x.wav", "--voice", "ada", *options), words)
            assert names(tmp_path / "out") == []


def test_bad_voices(run: Run, tmp_path: Path, other: Path) -> None:
    source, bad = sound(tmp_path / "in.wav"), tmp_path / "bad"
    bad.mkdir()
    expected = {bad / k: v for k, v in bad_sources(bad).items()}
    sound(bad / "short.wav", 0.9)
    soundfile.write(bad / "silent.wav", np.zeros(48000), 16000)
    soundfile.write(bad / "hiss.wav", 1e-4 * np.random.default_rng(0).standard_normal(48000), 16000, subtype="FLOAT")
    (bad / "text.voice").write_text("no voice")
    save_tensors(bad / "foreign.voice", {"x": torch.zeros(1)})
    expected |= {
        bad / "short.wav": "too short", bad / "silent.wav": "silent", bad / "hiss.wav": "silent",
        bad / "text.voice": "not a safetensors file", bad / "foreign.voice": "not a voice file",
        bad / "missing.voice": "missing", Path("adda"): "did you mean ada?", Path("qqq"): "there are: ada, bela",
        other / "voices" / "ada.voice": "of another model", bad: "is a folder",
    }  # fmt: skip
    for voice, words in expected.items():
        says(run("convert", source, "-o", tmp_path / "out.wav", "--voice", voice), words)
    for name in ("short.wav", "silent.wav", "missing.wav", "text.wav"):
        says(run("enroll", bad / name, "-o", tmp_path / "x.voice"), expected[bad / name])
    assert names(tmp_path) == ["bad", "in.wav"]


def test_damaged_voice(run: Run, tmp_path: Path, model: Path) -> None:
    source, good = sound(tmp_path / "in.wav"), Voice.load(model / "voices" / "ada.voice")
    for i, damage in enumerate((
        {"codes": good.codes + 1000}, {"codes": good.codes[:, :1]}, {"content": good.content[:-1]},
        {"expression": good.expression + 7}, {"prosody": good.prosody[:, :2]}, {"codes": good.codes[0, 0]},
    )):  # fmt: skip
        path = tmp_path / f"{i}.voice"
        Voice(**{**good.__dict__, **damage}).save(path)
        says(run("convert", source, "-o", tmp_path / "out.wav", "--voice", path), "damaged")
        path.unlink()
    assert names(tmp_path) == ["in.wav"]


def test_bad_models(run: Run, tmp_path: Path, model: Path) -> None:
    source, broken = sound(tmp_path / "in.wav"), tmp_path / "broken"

    def convert(words: str) -> None:
        says(run("convert", source, "-o", tmp_path / "out.wav", "--voice", "ada", model=broken), words)
        shutil.rmtree(broken)
        shutil.copytree(model, broken)

    says(run("voices", model=tmp_path / "nowhere"), "no such model folder")
    says(run("voices", model=tmp_path), "not a model folder")
    shutil.copytree(model, broken)
    files = [f"{part}/{name}" for part in ("codec", "units", "lm") for name in ("config.json", "model.safetensors")]
    for name in ("config.json", *files):
        (broken / name).unlink()
        convert("missing")
        (broken / name).write_text("[]" if name.endswith("json") else "rubbish")
        convert(str(broken))
    shutil.rmtree(broken / "lm")
    convert("lm: no such model folder")
    head = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**head, "format_version": 99}))
    convert("format version 99")
    (broken / "config.json").write_text(json.dumps({**head, "hop": 160}))
    convert("do not belong together")
    shutil.rmtree(broken / "units")
    shutil.copytree(broken / "codec", broken / "units")
    convert("expected 'vivavoce-units'")
    shutil.copy(broken / "lm" / "model.safetensors", broken / "codec" / "model.safetensors")
    convert("does not fit")
    whole = (broken / "lm" / "model.safetensors").read_bytes()
    (broken / "lm" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    convert("not a safetensors file")
    config = json.loads((broken / "codec" / "config.json").read_text())
    config["config"]["decoder_dim"] = "wide"
    (broken / "codec" / "config.json").write_text(json.dumps(config))
    convert("decoder_dim")
    (broken / "voices" / "ada.voice").write_text("rubbish")
    convert("ada.voice")
    assert names(tmp_path) == ["broken", "in.wav"]


def test_bad_outputs(run: Run, tmp_path: Path) -> None:
    source = sound(tmp_path / "in.wav", 1.5)
    before = source.read_bytes()
    (tmp_path / "link.wav").symlink_to(source)
    cases = {
        source: "the source itself", tmp_path / "link.wav": "the source itself", tmp_path: "the source itself",
        tmp_path / "x.xyz": "unknown suffix", source / "x.wav": "cannot be made",
    }  # fmt: skip
    for out, words in cases.items():
        says(run("convert", source, "-o", out, "--voice", "ada"), words)
    reference = sound(tmp_path / "ref.wav", 1.5, 44100)
    says(run("convert", source, "-o", reference, "--voice", reference), "would overwrite", "ref.wav")
    says(run("convert", reference, "-o", tmp_path / "x.opus", "--voice", "ada"), "44100")
    says(run("enroll", source, "-o", tmp_path / "none" / "x.voice"), "x.voice: cannot be written (No such file")
    assert names(tmp_path) == ["in.wav", "link.wav", "ref.wav"] and source.read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(run: Run, tmp_path: Path) -> None:
    source, locked = sound(tmp_path / "in.wav", 1.5), tmp_path / "locked"
    locked.mkdir(mode=0o555)
    says(run("convert", source, "-o", locked / "x.wav", "--voice", "ada"), "no permission")
    says(run("convert", source, "-o", locked / "x" / "x.wav", "--voice", "ada"), "cannot be made")
    says(run("enroll", source, "-o", locked / "x.voice"), "Permission denied")


def test_full_disk(run: Run, tmp_path: Path) -> None:
    source, out = sound(tmp_path / "in.wav", 2.0), tmp_path / "out"
    out.mkdir()
    for suffix in ("wav", "flac", "ogg", "mp3"):
        with full_disk(4096):
            result = run("convert", source, "-o", out / f"x.{suffix}", "--voice", "ada")
        says(result, f"x.{suffix}: cannot be written (File too large)")
        assert names(out) == []
    (out / "x.wav").write_text("precious")
    with full_disk(4096):
        says(run("convert", source, "-o", out / "x.wav", "--voice", "ada"), "cannot be written")
    assert (out / "x.wav").read_text() == "precious"
    with full_disk(64):
        says(run("enroll", source, "-o", out / "x.voice"), "x.voice: cannot be written", "too large")
    assert names(out) == ["x.wav"]


@pytest.mark.parametrize(("option", "value"), [
    ("--temperature", "-1"), ("--temperature", "nan"), ("--delay", 3), ("--delay", -1), ("--transpose", 100),
    ("--seed", 2**70), ("--source-pitch", 3), ("--source-pitch", "inf"),
])  # fmt: skip
def test_settings_out_of_range(run: Run, tmp_path: Path, option: str, value: object) -> None:
    source = sound(tmp_path / "in.wav")
    says(run("convert", source, "-o", tmp_path / "out.wav", "--voice", "ada", f"{option}={value}"), str(value))
    assert names(tmp_path) == ["in.wav"]


def test_usage_errors(run: Run, tmp_path: Path) -> None:
    source = sound(tmp_path / "in.wav")
    for args in (
        ("convert", source), ("convert", source, "--voice", "ada", "--chunk", "40"), ("nonsense",),
        ("convert", source, "--voice", "ada", "--rate", 8000), ("convert", source, "--voice", "a", "--threads", 0),
        ("convert", source, "--voice", "ada", "--source-pitch", "high"), ("enroll", source, "-o", "x.wav"),
        ("convert", source, "--voice", "ada", "--chunk", "0ms"), ("tokenize", "corpus"),
    ):  # fmt: skip
        status, out, err = run(*args)
        assert status == 2 and out == "" and "error: " in err and "Traceback" not in err
    assert run("train", "nonsense", model=None)[0] == 2
    assert run("prepare", tmp_path, model=None)[0] == 2
