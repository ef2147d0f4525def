"""The live loop without devices: a fake back end calls back, a fake clock says how long work took."""

from __future__ import annotations

import io
import random
import sys
import types
from collections import deque
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import vivavoce
from vivavoce.changer import Changer
from vivavoce.cli import main
from vivavoce.cli.live import shown
from vivavoce.core.errors import AudioError
from vivavoce.gate import Gate
from vivavoce.live import audio, screen
from vivavoce.live.loop import REST_SECONDS, Loop
from vivavoce.live.ring import Ring

RATE, CHUNK, BLOCK = 16000, 640, 160


@pytest.fixture(scope="module")
def changer(tmp_path_factory: pytest.TempPathFactory) -> Changer:
    return vivavoce.load(tiny.build(tmp_path_factory.mktemp("model")))


class Studio:
    """A microphone and a loudspeaker of blocks, and a machine whose work takes `work` seconds a chunk."""

    def __init__(self, changer: Changer, gate: Gate | None = None, buffer: int = CHUNK) -> None:
        self.now, self.work, self.ready = 0.0, 0.0, 0.0
        self.said: list[str] = []
        stream = changer.stream("ada", RATE, chunk=CHUNK / RATE)
        voices = [stream.engine, stream.prepare("bela")]
        self.loop = Loop(stream, CHUNK, buffer, voices, gate, self.said.append, lambda: self.now)
        self.out: list[np.ndarray] = []
        push = stream.push

        def busy(x: torch.Tensor) -> torch.Tensor:
            self.ready = max(self.ready, self.now) + (0.0 if stream.paused else self.work)
            before, self.now = self.now, self.ready  # the clock, as it is when the work is done
            self._back = before
            return push(x)

        stream.push = busy  # type: ignore[method-assign]

    def play(self, x: np.ndarray) -> None:
        """Real time, block by block; the worker works when it is not busy."""
        for block in np.split(x, range(BLOCK, len(x), BLOCK)):
            out = np.full(len(block), np.nan, np.float32)
            self.loop.hear(block)
            self.loop.play(out)
            self.out.append(out)
            self.now += len(block) / RATE
            if self.ready <= self.now and self.loop.step(0.0):
                self.now = self._back

    def heard(self) -> np.ndarray:
        return np.concatenate(self.out)


def talk(seconds: float) -> np.ndarray:
    return tiny.voiced(seconds).numpy()


def test_what_is_played_is_the_stream(changer: Changer) -> None:
    studio, x = Studio(changer), talk(1.2)
    studio.play(x)
    y, want = studio.heard(), changer.stream("ada", RATE).push(torch.from_numpy(x)).numpy()
    start = int(np.flatnonzero(y)[0])
    first = int(np.flatnonzero(want)[0])
    n = len(y) - start
    assert n > 0.8 * RATE and np.array_equal(y[start:], want[first : first + n])
    stated = studio.loop.stream.latency.total / 1000 * RATE + studio.loop.buffer
    assert abs((start - first) - stated) <= CHUNK  # how late the sound is: what is stated, within a chunk
    assert studio.loop.meters.underruns == 0 and studio.said == []


def test_a_missed_deadline_enlarges_the_buffer_and_calm_shrinks_it(
    changer: Changer, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = Studio(changer)
    loop = studio.loop
    studio.play(talk(1.0))
    studio.work = 0.1  # a hiccup: one chunk comes two chunks late
    studio.play(talk(0.04))
    studio.work = 0.001
    studio.play(talk(1.0))
    assert loop.meters.underruns == 1 and loop.buffer == 2 * CHUNK and not loop.overloaded
    assert "playback buffer is now 80 ms" in studio.said[0]
    monkeypatch.setattr("vivavoce.live.loop.CALM_SECONDS", 2.0)
    studio.play(talk(2.5))
    assert loop.buffer == CHUNK and any("calm again" in line for line in studio.said)
    assert loop.meters.underruns == 1


def test_overload_pauses_says_so_and_recovers(changer: Changer) -> None:
    studio = Studio(changer)
    loop = studio.loop
    studio.play(talk(1.0))
    studio.work = 0.08  # twice as long as the sound
    studio.play(talk(1.5))
    assert loop.overloaded
    assert [line for line in studio.said if "OVERLOAD" in line] == [
        "OVERLOAD: this machine takes 2.0 s for a second of sound; you hear the original for 3 s"]  # fmt: skip
    before, x = len(studio.heard()), talk(1.0)
    studio.play(x)
    y = studio.heard()[before:]
    assert _contains(x, y[-3200:])  # the original, as it is
    studio.work = 0.001  # the machine is free again
    for _ in range(6):
        studio.play(talk(REST_SECONDS[0] / 6))
    assert not loop.overloaded and any("again" in line for line in studio.said)
    before, x = len(studio.heard()), talk(1.0)
    studio.play(x)
    assert not _contains(x, studio.heard()[-3200:])  # converted
    assert len(studio.heard()) % BLOCK == 0 and np.isfinite(studio.heard()).all()


def test_a_machine_that_stays_slow_rests_longer_and_longer(changer: Changer) -> None:
    studio = Studio(changer)
    studio.work = 0.1
    for _ in range(12):
        studio.play(talk(1.0))
    rests = [line.split()[-2] for line in studio.said if "OVERLOAD" in line]
    assert rests[:2] == ["3", "6"] and studio.loop.heard.fill <= 8 * CHUNK


def _contains(x: np.ndarray, part: np.ndarray) -> bool:
    return any(np.array_equal(x[i : i + len(part)], part) for i in range(len(x) - len(part) + 1))


def test_lateness_does_not_become_delay_for_ever(changer: Changer) -> None:
    studio = Studio(changer)
    loop = studio.loop
    studio.play(talk(0.5))
    extra = talk(0.3)
    loop.spoken.write(extra)  # as after a long stall
    studio.play(talk(4.0))
    assert loop.meters.dropped > 0.2 * RATE and any("left out to catch up" in line for line in studio.said)
    assert loop.spoken.fill <= loop.buffer + 2 * CHUNK


def test_keys(changer: Changer) -> None:
    studio = Studio(changer)
    loop = studio.loop
    studio.play(talk(0.3))
    for key, name in (("n", "bela"), ("n", "ada"), ("p", "bela"), ("1", "ada"), ("2", "bela"), ("9", "bela")):
        assert screen.act(loop, key)
        studio.play(talk(0.08))
        assert loop.stream.voice.name == name == loop.voices[loop.voice].voice.name
    screen.act(loop, "b")
    x = talk(0.6)
    studio.play(x)
    assert loop.bypass and _contains(x, studio.heard()[-1600:])
    screen.act(loop, "b")
    studio.play(x)
    assert not loop.bypass and not _contains(x, studio.heard()[-1600:])
    assert not screen.act(loop, "q")
    assert studio.said == ["voice bela", "voice ada", "voice bela", "voice ada", "voice bela",
                           "bypass: you hear the original", "voice bela"]  # fmt: skip


def test_the_gate_is_quiet_and_zeros_are_told(changer: Changer) -> None:
    hiss = 1e-3 * np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
    studio = Studio(changer, Gate(RATE))
    studio.play(hiss)
    assert not studio.loop.meters.gate_open
    open_ = Studio(changer)
    open_.play(hiss)
    loud, quiet = (float(np.square(s.heard()[-RATE // 2 :]).mean()) for s in (open_, studio))
    assert quiet < 1e-3 * loud
    studio.play(np.zeros(round(2.1 * RATE), np.float32))
    assert sum("nothing but zeros" in line for line in studio.said) == 1


def test_screen_shows_what_counts(changer: Changer) -> None:
    from rich.console import Console

    studio = Studio(changer, Gate(RATE))
    studio.play(talk(0.5))
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(screen.panel(studio.loop, (0.01, 0.02), deque(["said"])))
    text = console.export_text()
    items = screen.budget(studio.loop.stream.latency, studio.loop, (0.01, 0.02))
    assert [name for name, _ in items][:3] == ["microphone", "chunk", "look-ahead"]
    assert f"{sum(ms for _, ms in items):.0f} ms from mouth to ear" in text
    for word in ("ada", "bela", "said", "b bypass", "live", "compute p95", "missed deadlines"):
        assert word in text, word
    assert screen.meter(-30.0, 10) == "█████·····  -30 dB" and screen.meter(-200.0, 4).startswith("····")


def test_ring_is_a_bounded_queue() -> None:
    rng, ring, model, at = random.Random(0), Ring(100), deque(), 0
    for _ in range(2000):
        if rng.random() < 0.5:
            x = np.arange(at, at + rng.randrange(60), dtype=np.float32)
            at += len(x)
            lost = ring.write(x)
            assert lost == max(0, len(x) + len(model) - 100)
            model.extend(x[: len(x) - lost])
        else:
            n = rng.randrange(60)
            want = [model.popleft() for _ in range(min(n, len(model)))]
            assert ring.read(n).tolist() == want
        assert ring.fill == len(model)
    assert ring.wait(ring.fill, 0.0) and not ring.wait(101, 0.0)


# ---- devices ------------------------------------------------------------------------------------------


class PortAudioError(Exception):
    pass


def fake_sounddevice(found: list[tuple[str, int, int, int]], rates: dict[int, set[int]]) -> Any:
    """A module like sounddevice: devices (name, inputs, outputs, default rate), and the rates each takes."""
    sd = types.ModuleType("sounddevice")

    def check(device: int, channels: int, dtype: str, samplerate: int) -> None:
        if samplerate not in rates[device]:
            raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")

    def refuse(**kw: Any) -> None:
        raise PortAudioError("Device unavailable [PaErrorCode -9985]")

    sd.query_devices = lambda: [  # type: ignore[attr-defined]
        {"name": n, "hostapi": 0, "max_input_channels": i, "max_output_channels": o, "default_samplerate": float(r)}
        for n, i, o, r in found]  # fmt: skip
    sd.query_hostapis = lambda: [{"name": "ALSA"}]  # type: ignore[attr-defined]
    sd.default = types.SimpleNamespace(device=(0, 1))  # type: ignore[attr-defined]
    sd.check_input_settings = sd.check_output_settings = check  # type: ignore[attr-defined]
    sd.PortAudioError, sd.InputStream, sd.OutputStream = PortAudioError, refuse, refuse  # type: ignore[attr-defined]
    return sd


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [("USB mic", 1, 0, 44100), ("Built-in", 0, 2, 48000), ("USB headset", 1, 2, 16000)]
    rates = {0: {44100, 48000}, 1: {48000}, 2: {16000}}
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice(found, rates))


def test_devices_by_name_and_rate(room: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert audio.find(None, "input")["index"] == 0 and audio.find(None, "output")["index"] == 1
    assert audio.find("HEADSET", "input")["index"] == audio.find("2", "output")["index"] == 2
    assert audio.Devices().rate == 48000  # the microphone's own 44100 is not the loudspeaker's
    for wanted, kind, said in (("usb", "input", r"could be 0 \(USB mic\), 2"), ("Built", "input", "no input device 'B"),
                               ("7", "output", "no output device '7'; there are: 1")):  # fmt: skip
        with pytest.raises(AudioError, match=said):
            audio.find(wanted, kind)
    with pytest.raises(AudioError, match=r"do not both take 8000 Hz.*Invalid sample rate.*leave --rate out"):
        audio.Devices(rate=8000)
    with pytest.raises(AudioError, match=r"do not both take.*choose others"):
        audio.Devices("USB mic", "headset")
    with pytest.raises(AudioError, match=r"cannot be opened \(Device unavailable\).*permission"):
        audio.Devices().start(print, print)
    assert main(["live", "--list-devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0] == "  0  USB mic  [ALSA; 1 in, 0 out; 44100 Hz] in"


def test_no_device_no_library_no_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", fake_sounddevice([], {}))
    assert main(["live"]) == 1
    assert "no input device at all" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # makes `import` fail
    assert main(["live"]) == 1
    assert "pip install 'vivavoce[live]'" in capsys.readouterr().err

    class Missing:
        def find_spec(self, name: str, *rest: Any) -> None:
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    assert main(["live"]) == 1
    assert "apt install libportaudio2" in capsys.readouterr().err


def test_an_interrupt_while_the_screen_comes_up_gives_the_terminal_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told afterwards goes to stderr, not to a screen that is gone."""
    rich = pytest.importorskip("rich.live")
    start = rich.Live.start

    def interrupted(self: Any, refresh: bool = False) -> None:
        start(self, refresh)
        raise KeyboardInterrupt

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(rich.Live, "start", interrupted)
    monkeypatch.setattr(screen, "panel", lambda *_: "")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    own = sys.stderr
    with pytest.raises(KeyboardInterrupt), shown(None, types.SimpleNamespace(latency=None), deque()):
        pytest.fail("it was never up")
    assert sys.stderr is own and sys.stdout is terminal
    assert terminal.getvalue().endswith("\x1b[?25h")  # the cursor is back
