"""`vivavoce live` against a real sound server: a private PulseAudio whose microphone plays a file and whose
loudspeaker is recorded; keys come through a pseudo-terminal. Nothing here depends on how fast the machine is."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from vivavoce.core.audio import save

RATE = 48000
PATIENCE = 120.0  # s; machines are slow at times
SERVER = """\
load-module module-native-protocol-unix socket={folder}/native auth-anonymous=1
load-module module-null-sink sink_name=speaker rate=48000 channels=1
load-module module-null-sink sink_name=stage rate=48000 channels=1
load-module module-remap-source master=stage.monitor source_name=mic
set-default-sink speaker
set-default-source mic
"""

pytestmark = pytest.mark.realtime


def until(what: str, true: object) -> None:
    end = time.monotonic() + PATIENCE
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:.0f} s"
        time.sleep(0.05)


@contextlib.contextmanager
def running(*command: str, env: dict[str, str], **kw: object) -> Iterator[subprocess.Popen]:
    """A process that is gone afterwards."""
    process = subprocess.Popen(command, env=env, **kw)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment in which programs find the private server."""
    for program in ("pulseaudio", "pactl", "paplay", "parec"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: pulseaudio, pulseaudio-utils)")
    pytest.importorskip("sounddevice", exc_type=OSError, reason="PortAudio is not installed")
    folder = tmp_path / "pulse"
    folder.mkdir(mode=0o700)
    (folder / "default.pa").write_text(SERVER.format(folder=folder))
    env = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder), "PULSE_RUNTIME_PATH": str(folder),
           "PULSE_SERVER": f"unix:{folder}/native", "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}  # fmt: skip
    command = ("pulseaudio", "-n", "-F", str(folder / "default.pa"), "--daemonize=no", "--exit-idle-time=-1",
               "--use-pid-file=no", "--disable-shm=yes", "--realtime=no", "--high-priority=no")  # fmt: skip
    with open(folder / "log", "w") as log, running(*command, env=env, stdout=log, stderr=log) as process:
        until("PulseAudio", lambda: process.poll() is not None or (folder / "native").exists())
        assert process.poll() is None, (folder / "log").read_text()
        listed = subprocess.run([sys.executable, "-m", "vivavoce", "live", "--list-devices"], env=env,
                                capture_output=True, text=True)  # fmt: skip
        if "pulse" not in listed.stdout:
            said = listed.stdout + listed.stderr
            pytest.skip(f"PortAudio does not see PulseAudio (Debian: libasound2-plugins): {said}")
        yield env


class Terminal:
    """The program's terminal: what it shows, and keys to press."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.text = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end closes
            while data := os.read(self.master, 65536):
                self.text += data.decode(errors="replace")

    def press(self, key: str, answer: str) -> None:
        seen = self.text.count(answer)
        os.write(self.master, key.encode())
        until(f"{key!r} answered by {answer!r}", lambda: self.text.count(answer) > seen)


def likeness(part: np.ndarray, whole: np.ndarray) -> float:
    """The largest normalised correlation of `part` with any stretch of `whole`."""
    n = 1 << (len(part) + len(whole)).bit_length()
    dots = np.fft.irfft(np.fft.rfft(whole, n) * np.conj(np.fft.rfft(part, n)), n)[: len(whole) - len(part) + 1]
    power = np.concatenate(([0.0], np.cumsum(np.square(whole, dtype=np.float64))))
    norms = np.sqrt(np.maximum(power[len(part) :] - power[: -len(part)], 1e-9) * np.square(part).sum())
    return float((dots / norms).max())


def test_from_microphone_to_loudspeaker(server: dict[str, str], tmp_path: Path) -> None:
    model, terminal, recording = tiny.build(tmp_path / "model"), Terminal(), tmp_path / "speaker.f32"
    voice = np.tile(tiny.voiced(1.0, RATE).numpy(), 3)
    noise = 0.1 * torch.randn(3 * RATE, generator=torch.Generator().manual_seed(1))
    save(tmp_path / "voice.wav", torch.from_numpy(voice), RATE)
    save(tmp_path / "noise.wav", noise, RATE)

    def say(name: str) -> np.ndarray:
        """Play a file to the microphone; what the loudspeaker gave meanwhile, and a little longer."""
        start = recording.stat().st_size // 4
        subprocess.run(["paplay", "--device=stage", str(tmp_path / name)], env=server, check=True, timeout=PATIENCE)
        end = recording.stat().st_size // 4 + RATE
        until("the recording goes on", lambda: recording.stat().st_size // 4 >= end)
        return np.fromfile(recording, "<f4")[start:]

    command = (sys.executable, "-m", "vivavoce", "live", "--model", str(model), "--input", "pulse", "--output", "pulse",
               "--rate", str(RATE), "--buffer", "200ms", "--chunk", "100ms", "--voice", "ada", "--voice", "bela")
    with (
        open(recording, "wb") as out,
        open(tmp_path / "stderr", "w+") as errors,
        running("parec", "--device=speaker.monitor", "--format=float32le", f"--rate={RATE}", "--channels=1", "--raw",
                "--latency-msec=50",
                env=server, stdout=out),
        running(*command, env=server, stdin=terminal.slave, stdout=terminal.slave, stderr=errors) as program,
    ):  # fmt: skip
        said = (tmp_path / "stderr").read_text
        until("start", lambda: program.poll() is not None or "vivavoce: live" in said())
        assert program.poll() is None, said()
        until("the recording", lambda: recording.stat().st_size > 0)
        until("a microphone that runs", lambda: float(np.square(say("voice.wav")).mean()) > 1e-6)  # converted
        terminal.press("2", "voice bela")
        terminal.press("p", "voice ada")
        terminal.press("b", "bypass: you hear the original")
        y = say("noise.wav")
        parts = noise.numpy()[RATE // 2 : 5 * RATE // 2].reshape(20, -1)  # 100 ms each; some may have been late
        assert max(likeness(part, y) for part in parts) > 0.95
        os.write(terminal.master, b"q")
        assert program.wait(PATIENCE) == 0, said()
    assert "mouth to ear" in terminal.text and "missed deadlines" in said()


def test_interrupt_leaves_a_sane_terminal(server: dict[str, str], tmp_path: Path) -> None:
    termios = pytest.importorskip("termios")
    model, terminal = tiny.build(tmp_path / "model"), Terminal()
    before = termios.tcgetattr(terminal.slave)
    command = sys.executable, "-m", "vivavoce", "live", "--model", str(model), "--input", "pulse", "--output", "pulse"
    with open(tmp_path / "stderr", "w") as errors, running(
        *command, env=server, stdin=terminal.slave, stdout=terminal.slave, stderr=errors
    ) as program:  # fmt: skip
        said = (tmp_path / "stderr").read_text
        until("start", lambda: program.poll() is not None or "vivavoce: live" in said())
        program.send_signal(signal.SIGINT)
        assert program.wait(PATIENCE) == 130
    assert said().splitlines()[-1] == "vivavoce: interrupted" and "Traceback" not in said()
    assert termios.tcgetattr(terminal.slave) == before
