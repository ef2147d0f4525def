"""The command line on a tiny random model: what it makes, and that bad input gets one clear line."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import torch
from conftest import names

from vivavoce.changer import Changer
from vivavoce.voice import Voice

pytest_plugins = ["shell"]

from shell import Run, says, sound  # noqa: E402

# ---- what convert makes -------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "channels"), [(4000, 1), (16000, 8), (22050, 2), (44100, 1), (192000, 1)])
def test_convert_keeps_rate_and_length(run: Run, tmp_path: Path, rate: int, channels: int) -> None:
    source = sound(tmp_path / "in.wav", 0.333, rate, channels)
    status, out, err = run("convert", source, "-o", tmp_path / "out.wav", "--voice", "ada")
    assert (status, out) == (0, ""), err
    assert "1 file converted; 0.3 s of audio" in err and "real-time factor" in err
    a, b = soundfile.info(source), soundfile.info(tmp_path / "out.wav")
    assert (b.frames, b.samplerate, b.channels) == (a.frames, rate, 1)
    assert np.abs(soundfile.read(tmp_path / "out.wav")[0]).max() > 1e-3


@pytest.mark.parametrize(("suffix", "rate"), [("flac", 22050), ("ogg", 44100), ("opus", 48000), ("mp3", 16000)])
def test_convert_formats(run: Run, tmp_path: Path, suffix: str, rate: int) -> None:
    source = sound(tmp_path / "in.wav", 0.5, rate)
    assert run("convert", source, "-o", tmp_path / f"out.{suffix}", "--voice", "ada")[0] == 0
    assert len(soundfile.read(tmp_path / f"out.{suffix}")[0]) == soundfile.info(source).frames
    assert run("convert", tmp_path / f"out.{suffix}", "-o", tmp_path / "back.wav", "--voice", "bela")[0] == 0
    assert soundfile.info(tmp_path / "back.wav").frames == soundfile.info(source).frames


def test_convert_is_reproducible(run: Run, tmp_path: Path) -> None:
    source = sound(tmp_path / "in.wav", 0.7, 22050)

    def bits(*args: object) -> bytes:
        assert run("convert", source, "-o", tmp_path / "out.wav", "--voice", "ada", *args)[0] == 0
        return (tmp_path / "out.wav").read_bytes()

    first = bits()
    assert bits() == first
    assert bits("--chunk", "7ms") == first and bits("--chunk", "0.3s") == first
    assert bits("--seed", 1) != first and bits("--voice", "bela") != first
    assert bits("--transpose", -3) != first and bits("--delay", 0) != first
    assert bits("--temperature", 0, "--seed", 1) == bits("--temperature", "0", "--seed", 1)
    assert bits("--source-pitch", "live") != bits("--source-pitch", 500)


def test_one_sample_converts(run: Run, tmp_path: Path) -> None:
    for rate in (16000, 44100):
        soundfile.write(tmp_path / "one.wav", np.full(1, 0.5), rate)
        assert run("convert", tmp_path / "one.wav", "-o", tmp_path / "out.wav", "--voice", "ada")[0] == 0
        assert soundfile.info(tmp_path / "out.wav").frames == 1


def test_where_output_goes(run: Run, tmp_path: Path) -> None:
    source = sound(tmp_path / "in.wav")
    assert run("convert", source, "--voice", "ada")[0] == 0
    assert run("convert", source, "-o", tmp_path / "new", "--voice", "ada")[0] == 0
    assert run("convert", source, "-o", tmp_path / "new" / "sub" / "x.flac", "--voice", "ada")[0] == 0
    assert names(tmp_path) == ["in.ada.wav", "in.wav", "new"] and names(tmp_path / "new") == ["in.wav", "sub"]


def test_folder(run: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "in" / "out"  # an output folder inside the source is no source
    (source / "a" / "b").mkdir(parents=True)
    (source / ".hidden").mkdir()
    sound(source / "one.WAV")
    sound(source / "a" / "b" / "two.flac", rate=8000)
    sound(source / "a" / ".three.wav")
    sound(source / ".hidden" / "four.wav")
    (source / "notes.txt").write_text("not audio")
    (source / "a" / "bad.wav").write_text("not audio either")
    command = ("convert", source, "-o", out, "--voice", "ada")
    status, _, err = run(*command)
    assert status == 1 and "2 files converted, 1 failed" in err
    assert err.count("\n") == 2 and "bad.wav: not readable as audio" in err
    made = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert made == ["a/b/two.flac", "one.WAV"]
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    (source / "a" / "bad.wav").unlink()
    sound(source / "three.ogg")
    status, _, err = run(*command)
    assert status == 0 and "1 file converted, 2 skipped" in err
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    assert run(*command, "--overwrite")[0] == 0
    assert all(p.stat().st_mtime_ns > t for p, t in before.items())


def test_folder_mistakes(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    says(run("convert", tmp_path / "in", "-o", tmp_path / "out", "--voice", "ada"), "no recordings")
    sound(tmp_path / "in" / "x.wav")
    says(run("convert", tmp_path / "in", "--voice", "ada"), "-o")
    says(run("convert", tmp_path / "in", "-o", tmp_path / "in", "--voice", "ada"), "the source folder itself")
    says(run("convert", tmp_path / "in", "-o", tmp_path / "in" / "x.wav", "--voice", "ada"), "is a file")
    assert names(tmp_path) == ["in"] and names(tmp_path / "in") == ["x.wav"]


# ---- raw PCM ------------------------------------------------------------------------------------------


class Pipe(io.BytesIO):
    """Stands for sys.stdin or sys.stdout."""

    @property
    def buffer(self) -> Pipe:
        return self

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2)])
def test_raw_equals_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int, channels: int
) -> None:
    x = (tiny.voiced(0.5, rate).numpy() * 32767).astype("<i2")
    soundfile.write(tmp_path / "in.wav", x, rate)
    live = ("-o", tmp_path / "out.wav", "--source-pitch", "live")
    assert run("convert", tmp_path / "in.wav", "--voice", "ada", *live)[0] == 0
    want = soundfile.read(tmp_path / "out.wav", dtype="int16")[0].astype(int)
    raw = np.repeat(x, channels).tobytes() + b"\0" * (channels * 2 - 1)  # and a part of a sample
    got = Pipe()
    monkeypatch.setattr("sys.stdin", Pipe(raw))
    monkeypatch.setattr("sys.stdout", got)
    assert run("convert", "-", "--voice", "ada", "--rate", rate, "--channels", channels)[0] == 0
    y = np.frombuffer(got.getvalue(), "<i2").astype(int)
    assert len(y) == len(x) and np.abs(y - want).max() <= 1  # two ways to round
    monkeypatch.setattr("sys.stdin", Pipe(raw))
    args = ("--rate", rate, "--channels", channels, "-o", tmp_path / "raw.wav")
    assert run("convert", "-", "--voice", "ada", *args)[0] == 0
    assert (tmp_path / "raw.wav").read_bytes() == (tmp_path / "out.wav").read_bytes()


def test_raw_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Pipe(b"x"))
    says(run("convert", "-", "--voice", "ada", "-o", tmp_path / "x.wav"), "not one sample")
    assert names(tmp_path) == []


def process(model: Path, *args: object, **kw: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "vivavoce", *map(str, args), "--model", str(model)]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kw}
    return subprocess.Popen(command, **streams)  # type: ignore[call-overload]


def test_raw_is_live(model: Path) -> None:
    """A second goes in, the pipe stays open, and all but the latency comes out."""
    p = process(model, "convert", "-", "--voice", "ada")
    p.stdin.write((tiny.voiced(1.0).numpy() * 32767).astype("<i2").tobytes())
    p.stdin.flush()
    due = 2 * (16000 - 3 * 320)  # look-ahead of 2 frames, and the overlap
    assert len(p.stdout.read(due)) == due
    p.stdin.close()
    assert len(p.stdout.read()) == 32000 - due
    assert p.wait() == 0 and b"1.0 s of audio" in p.stderr.read()
    p.stdout.close()
    p.stderr.close()


def test_reader_gone(model: Path) -> None:
    p = process(model, "convert", "-", "--voice", "ada")
    p.stdout.close()
    with pytest.raises(BrokenPipeError):
        for _ in range(1000):
            p.stdin.write(b"\1" * 32000)
    assert p.wait() == 141 and p.stderr.read() == b""
    p.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_stdout_full(model: Path) -> None:
    with open("/dev/full", "wb") as full:
        p = process(model, "convert", "-", "--voice", "ada", stdout=full)
        _, err = p.communicate(b"\1" * 32000)
    assert p.returncode == 1 and err == b"vivavoce: No space left on device\n"


@pytest.mark.parametrize(("sign", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(model: Path, tmp_path: Path, sign: signal.Signals, status: int) -> None:
    (tmp_path / "out").mkdir()
    p = process(model, "convert", "-", "-o", tmp_path / "out" / "x.wav", "--voice", "ada")
    p.stdin.write(b"\1" * 64000)
    p.stdin.flush()
    for _ in range(600):
        if names(tmp_path / "out"):
            break
        time.sleep(0.05)
    time.sleep(0.1)
    p.send_signal(sign)
    _, err = p.communicate()
    assert p.returncode == status and b"Traceback" not in err
    assert names(tmp_path / "out") == []


def test_interrupted_in_a_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def blocks(self: Changer, *args: object) -> object:
        yield torch.zeros(1000)
        raise KeyboardInterrupt

    monkeypatch.setattr(Changer, "convert_blocks", blocks)
    (tmp_path / "in").mkdir()
    sound(tmp_path / "in" / "x.wav")
    status, _, err = run("convert", tmp_path / "in", "-o", tmp_path / "out", "--voice", "ada")
    assert (status, err) == (130, "vivavoce: interrupted\n") and names(tmp_path / "out") == []


# ---- voices, help, memory -----------------------------------------------------------------------------


def test_enroll_and_voices(run: Run, tmp_path: Path) -> None:
    recording = sound(tmp_path / "someone.flac", 3.0, 44100, 2)
    status, out, _ = run("enroll", recording, "-o", tmp_path / "a.voice")
    assert status == 0 and "a.voice: someone, " in out
    words = {"name": "Frau Groß", "licence": "CC0-1.0", "consent": "signed", "note": "of test"}
    args = [x for k, v in words.items() for x in (f"--{k}", v)]
    assert run("enroll", recording, "-o", tmp_path / "b.voice", *args)[0] == 0
    voice = Voice.load(tmp_path / "b.voice")
    assert {k: getattr(voice, k) for k in words} == words
    source = sound(tmp_path / "in.wav")
    for i, name in enumerate((tmp_path / "a.voice", tmp_path / "b.voice", recording)):
        assert run("convert", source, "-o", tmp_path / f"{i}.wav", "--voice", name)[0] == 0
    assert len({(tmp_path / f"{i}.wav").read_bytes() for i in range(3)}) == 1  # one voice, whatever its name
    assert run("convert", source, "--voice", tmp_path / "b.voice")[0] == 0
    assert (tmp_path / "in.Frau_Groß.wav").is_file()

    status, out, _ = run("voices")
    assert status == 0 and [line.split()[0] for line in out.splitlines()] == ["ada", "bela"]
    assert "Hz" in out and "CC0-1.0" in out
    listed = json.loads(run("voices", "--json")[1])
    assert [v["name"] for v in listed] == ["ada", "bela"] and listed[0]["note"] == "110 Hz of test"


def test_help_teaches_and_is_quick(run: Run) -> None:
    for name in ("convert", "enroll", "voices", "prepare", "tokenize", "train"):
        status, out, _ = run(name, "--help")
        assert status == 0 and "examples:" in out and f"vivavoce {name}" in out
        assert max(map(len, out.splitlines())) <= 120
    assert run("--version", model=None)[1].startswith("vivavoce 0.")
    code = ("import sys, vivavoce.cli\n"
            "try: vivavoce.cli.main(['convert', '--help'])\n"
            "except SystemExit: print({'torch', 'numpy', 'soundfile'} & set(sys.modules))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's peak of memory")
def test_memory_does_not_grow_with_the_file(model: Path, tmp_path: Path) -> None:
    """30 s more of 4 channels at 96 kHz would be 46 MB, 12 MB as mono."""
    code = "import sys; from vivavoce.cli import main; main(sys.argv[1:]); print(open('/proc/self/status').read())"
    peak = []
    second = np.repeat(tiny.voiced(1.0, 96000).numpy()[:, None], 4, axis=1)
    for seconds in (10, 40):
        with soundfile.SoundFile(tmp_path / "in.wav", "w", 96000, 4) as f:
            for _ in range(seconds):
                f.write(second)
        command = ["convert", tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--voice", "ada", "--model", model,
                   "--source-pitch", "120"]  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code, *map(str, command)], capture_output=True, check=True)
        peak.append(int(done.stdout.split(b"VmHWM:")[1].split()[0]) / 1024)  # MB; ru_maxrss may be our own
        assert soundfile.info(tmp_path / "out.wav").frames == seconds * 96000
    assert peak[1] - peak[0] < 6, peak


def test_register_scan_stops_after_a_minute(model: Path) -> None:
    heard = []

    def blocks():
        for i in range(1000):
            heard.append(i)
            yield tiny.voiced(10.0, 4000)

    register = Changer.from_pretrained(model)._register_of(blocks(), 4000)
    assert len(heard) == 6 and 50 < register < 1100


# ---- recipes ------------------------------------------------------------------------------------------


def test_recipe_mistakes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")

    def train(*args: object) -> tuple[int, str, str]:
        return run("train", *args, model=None)

    says(train("codec", "nosuch"), "nosuch: no such config file", "codec", "units")
    says(train("codec", "pack=x", "train.speed=9"), "unknown key 'speed'")
    says(train("codec", "codec", "pack=[x"), "pack=[x")
    says(train("codec", f"pack={tmp_path / 'none'}", f"train.out={tmp_path}"), "not a finished pack")
    says(run("prepare", tmp_path / "none", "-o", tmp_path / "pack", model=None), "no such corpus folder")
    (tmp_path / "c").mkdir()
    says(run("tokenize", tmp_path / "c", "-o", tmp_path / "units"), "no recordings")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    pack = tmp_path / "pack2"
    sound_pack(tmp_path, pack, run)
    says(train("codec", f"pack={pack}", f"train.out={tmp_path / 'run'}"), 'pip install "vivavoce[train]"')


def sound_pack(tmp_path: Path, pack: Path, run: Run) -> None:
    (tmp_path / "corpus" / "someone").mkdir(parents=True)
    for i in range(3):
        sound(tmp_path / "corpus" / "someone" / f"{i}.wav", 0.8, 22050)
    status, _, err = run("prepare", tmp_path / "corpus", "-o", pack, "pitch=false", "workers=1", model=None)
    assert status == 0 and (pack / "pack.json").is_file(), err


def test_tokenize(run: Run, tmp_path: Path) -> None:
    for package in ("accelerate", "pyarrow", "swift_f0"):
        pytest.importorskip(package)
    from vivavoce.recipes.tokenise import Tokens

    sound_pack(tmp_path, tmp_path / "pack", run)
    for source, out in ((tmp_path / "corpus", tmp_path / "a b: c"), (tmp_path / "pack", tmp_path / "units")):
        status, stdout, err = run("tokenize", source, "-o", out, "views=1")
        assert status == 0 and "hours" in stdout, err
    a, b = (Tokens(tmp_path / p).split("train") for p in ("a b: c", "units"))
    assert len(a.clips) == 3 and (a.codes[:] == b.codes[:]).all() and (a.content[:] == b.content[:]).all()
