"""A worker process: one changer, many streams; requests on standard input, replies on standard output.

A message either way is a header in JSON and bytes: `<II` (their lengths), the header, the bytes. One request is
answered before the next is read, so whoever asks decides whose turn it is. The process ends when its input does.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vivavoce.core.errors import AudioError, VivavoceError

LENGTHS = struct.Struct("<II")
FILE_BLOCK = 0.5  # seconds of a file that are converted at a time
PROBE_SECONDS, PROBE_CHUNK = 2.0, 0.04  # of the measurement at start
STEPS = 2, 1  # frames at once that streams may have: a step that was not made ready would halt all others for a second
Header = dict[str, Any]
Reply = tuple[Header, bytes]


def pack(header: Header, payload: bytes = b"") -> bytes:
    """A message."""
    head = json.dumps(header).encode()
    return LENGTHS.pack(len(head), len(payload)) + head + payload


def main() -> None:
    """Serve until standard input ends. Arguments: model folder or "", niceness."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes our input
    model, nice = sys.argv[1], int(sys.argv[2])
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not get in between
    source = sys.stdin.buffer
    try:
        bench = Bench(model or None)
    except VivavoceError as e:
        _send(out, {"error": str(e)})
        return
    if nice and hasattr(os, "nice"):
        os.nice(nice)
    _send(out, bench.describe())
    while (request := _receive(source)) is not None:
        header, payload = request
        try:
            _send(out, *bench.answer(header, payload))
        except VivavoceError as e:
            _send(out, {"error": str(e)})
        except Exception as e:  # a bug must not take the other streams of this worker with it
            import traceback

            traceback.print_exc()
            _send(out, {"error": f"internal error ({type(e).__name__})", "bug": True})


def _send(out: BinaryIO, header: Header, payload: bytes = b"") -> None:
    out.write(pack(header, payload))
    out.flush()


def _receive(source: BinaryIO) -> Reply | None:
    lengths = source.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    n, m = LENGTHS.unpack(lengths)
    return json.loads(source.read(n)), source.read(m)


class Bench:
    """The changer and what is in work on it: live streams and files, by their numbers."""

    def __init__(self, model: str | None) -> None:
        import torch

        from vivavoce.changer import load

        self.torch, self.changer = torch, load(model)
        self.streams: dict[int, Any] = {}
        self.files: dict[int, Iterator[Any]] = {}
        self.answers: dict[str, Callable[..., Reply]] = {
            "measure": self.measure, "open": self.open, "push": self.push, "swap": self.swap, "close": self.close,
            "enrol": self.enrol, "preview": self.preview, "file": self.file, "next": self.next, "ping": self.ping,
        }  # fmt: skip

    def answer(self, header: Header, payload: bytes) -> Reply:
        return self.answers[header.pop("op")](payload, **header)

    def describe(self) -> Header:
        voices = [about(v) for v in self.changer.voices.values()]
        return {"voices": voices, "max_delay": self.changer.lm.config.max_delay}

    def ping(self, _: bytes) -> Reply:
        return {}, b""

    def measure(self, _: bytes) -> Reply:
        """Real-time factor of one stream, at 48 kHz as browsers send it, after warming up for every step."""
        from vivavoce.engine import Settings

        rate, rng = 48000, np.random.default_rng(0)
        t = np.arange(round((0.5 + PROBE_SECONDS) * rate)) / rate
        tone = sum(np.sin(2 * np.pi * 130 * k * t) / k for k in range(1, 12))
        x = self.torch.from_numpy((0.1 * tone + 0.01 * rng.standard_normal(len(t))).astype(np.float32))
        voice = next(iter(self.changer.voices.values()), None)
        if voice is None:
            voice = self.changer.enroll(x, rate, "probe")
        for step in STEPS:
            self.changer.stream(voice, rate, Settings(), step=step).warm_up()
        stream = self.changer.stream(voice, rate, Settings(), chunk=PROBE_CHUNK)
        began, size = 0.0, round(PROBE_CHUNK * rate)
        for at in range(0, len(x), size):
            if at >= 0.5 * rate and not began:
                began = time.perf_counter()
            stream.push(x[at : at + size])
        return {"factor": (time.perf_counter() - began) / PROBE_SECONDS}, b""

    # ---- live streams ---------------------------------------------------------------------------------

    def open(self, data: bytes, stream: int, voice: str, rate: int, chunk: float, delay: int, seed: int,
             transpose: float) -> Reply:  # fmt: skip
        """Begin a live stream; `data` is a voice file, or empty where `voice` is embedded."""
        from vivavoce.engine import Settings

        settings = Settings(seed, delay=delay, transpose=transpose)
        step = next(s for s in STEPS if self.changer.step_of(chunk) % s == 0)
        made = self.changer.stream(self._voice(voice, data), rate, settings, chunk=chunk, step=step)
        self.streams[stream] = made
        items = {k: round(v, 3) for k, v in vars(made.latency).items()}
        return {"latency": {**items, "total": round(made.latency.total, 3)}}, b""

    def push(self, data: bytes, stream: int, bypass: bool, pause: bool, last: bool = False) -> Reply:
        """float32 samples in, float32 samples out; `passed`: whether any of them is the source's."""
        s, began = self.streams[stream], time.perf_counter()
        if pause and not s.paused:
            s.pause()
        elif not pause and s.paused:
            s.resume()
        if s.bypass != (bypass or pause):
            s.bypass = bypass or pause
        before = s.wet
        y = s.push(self.torch.from_numpy(np.frombuffer(data, np.float32).copy()))
        if last:
            y = self.torch.cat((y, s.flush()))
        passed = min(before, s.wet) < 1.0
        return {"passed": passed, "seconds": time.perf_counter() - began}, y.numpy().tobytes()

    def swap(self, data: bytes, stream: int, voice: str) -> Reply:
        self.streams[stream].swap(self._voice(voice, data))
        return {}, b""

    def close(self, _: bytes, stream: int) -> Reply:
        """End a stream or a file, if there is one of this number."""
        self.streams.pop(stream, None)
        self.files.pop(stream, None)
        return {}, b""

    # ---- voices and files -----------------------------------------------------------------------------

    def _voice(self, name: str, data: bytes) -> Any:
        from vivavoce.voice import Voice

        if not data:
            return self.changer.voice(name)
        with tempfile.TemporaryDirectory(prefix="vivavoce-") as folder:
            path = Path(folder) / "enrolled.voice"
            path.write_bytes(data)
            with _named(str(path), "the voice file"):
                return self.changer.voice(Voice.load(path))

    def enrol(self, _: bytes, path: str, name: str, consent: str, seconds: float) -> Reply:
        """A recording, or a voice file, at `path` -> what it is, and the voice file."""
        with _named(path, name), tempfile.TemporaryDirectory(prefix="vivavoce-") as folder:
            with open(path, "rb") as f:
                head = f.read(9)
            if head[8:] == b"{":  # safetensors: a length of 8 bytes, then JSON
                voice = self._voice("", Path(path).read_bytes())
            else:
                _length(path, seconds)
                voice = self.changer.enroll(path, name=name, consent=consent)
            made = Path(folder) / "enrolled.voice"
            voice.save(made)
            return about(voice), made.read_bytes()

    def preview(self, data: bytes, voice: str) -> Reply:
        """How a voice sounds: float32 samples."""
        y, rate = self.changer.preview(self._voice(voice, data))
        return {"rate": rate}, y.numpy().tobytes()

    def file(self, data: bytes, stream: int, path: str, name: str, voice: str, seconds: float, delay: int | None,
             seed: int, transpose: float) -> Reply:  # fmt: skip
        """Begin to convert a file: its rate and number of samples, once it is known to be whole."""
        from vivavoce.engine import Settings

        with _named(path, name):
            rate, samples = _length(path, seconds)
            settings = Settings(seed, delay=delay, transpose=transpose)
            blocks = self.changer.convert_blocks(path, self._voice(voice, data), settings, FILE_BLOCK)
        self.files[stream] = blocks
        return {"rate": rate, "samples": samples}, b""

    def next(self, _: bytes, stream: int) -> Reply:
        """The next block of a file, float32; `last` when there is none left."""
        block = next(self.files[stream], None)
        if block is None:
            del self.files[stream]
        return {"last": block is None}, b"" if block is None else block.numpy().tobytes()


def about(voice: Any) -> Header:
    """What a list says of a voice."""
    return {"name": voice.name, "register_hz": round(voice.register, 1), "seconds": round(voice.frames / 50, 2),
            "licence": voice.licence, "consent": voice.consent, "note": voice.note}  # fmt: skip


class _named:
    """Errors speak of the upload by its name, not of the temporary file it lies in."""

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name or "the recording"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if isinstance(value, VivavoceError):
            raise type(value)(str(value).replace(self.path, self.name)) from None


def _length(path: str, seconds: float) -> tuple[int, int]:
    """Rate and samples of a recording that is read to its end once, so that damage shows before anything is sent.
    Raises AudioError, also when it lasts longer than `seconds`: headers lie."""
    from vivavoce.core.audio import mono_blocks, open_audio

    with open_audio(path) as f:
        rate = int(f.samplerate)
    n = 0
    for block in mono_blocks(path):
        n += len(block)
        if n > seconds * rate:
            raise AudioError(f"{path}: longer than the {seconds:g} s that this server takes; cut it, or use "
                             "`vivavoce convert`")
    return rate, n


if __name__ == "__main__":
    main()
