"""What goes over the wire: binary audio frames and JSON messages. docs/serve.md describes it for other clients."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from vivavoce.serve.errors import ProtocolError

VERSION = 1
AUDIO = 1  # the one frame type
S16LE, F32LE = 1, 2
FORMATS = {"s16le": S16LE, "f32le": F32LE}
PASSED, LATE, LAST = 1, 2, 4  # flags: holds samples of the source; because the server was late; nothing follows
HEADER = struct.Struct("<BBBBIIHH")  # version, type, format, channels, sequence, rate, flags, 0
MAX_FRAME_SECONDS = 1.0
MAX_CHANNELS = 8
RATES = range(8000, 192_001)


@dataclass(frozen=True)
class Frame:
    """A piece of audio.

    Attributes:
        samples: float32 [n, channels], within [-1, 1].
        sequence: counts the frames of one direction from 0.
        rate: Hz.
        flags: PASSED, LATE, LAST.
        finite: whether all samples were; where not, `samples` holds silence.
    """

    samples: np.ndarray
    sequence: int
    rate: int
    format: int
    flags: int = 0
    finite: bool = True

    def pack(self) -> bytes:
        """The frame as it goes over the wire."""
        x = self.samples if self.samples.ndim == 2 else self.samples[:, None]
        head = HEADER.pack(VERSION, AUDIO, self.format, x.shape[1], self.sequence % 2**32, self.rate, self.flags, 0)
        return head + encode(x, self.format)

    @classmethod
    def unpack(cls, data: bytes) -> Frame:
        """Read what came over the wire. Raises ProtocolError naming what is wrong with it."""
        if len(data) < HEADER.size:
            raise ProtocolError("bad-frame", f"a frame of {len(data)} bytes is shorter than its header of "
                                f"{HEADER.size}; see docs/serve.md")  # fmt: skip
        version, kind, form, channels, sequence, rate, flags, zero = HEADER.unpack_from(data)
        if version != VERSION:
            raise ProtocolError("bad-version", f"frame version {version}; this server speaks version {VERSION}")
        if kind != AUDIO or form not in FORMATS.values() or zero:
            raise ProtocolError("bad-frame", f"frame {sequence}: type {kind}, format {form}, reserved {zero}; expected "
                                f"type {AUDIO}, format {S16LE} (s16le) or {F32LE} (f32le), reserved 0")  # fmt: skip
        if not 1 <= channels <= MAX_CHANNELS:
            raise ProtocolError("bad-frame", f"frame {sequence}: {channels} channels; 1 to {MAX_CHANNELS}")
        width = channels * (2 if form == S16LE else 4)
        body = memoryview(data)[HEADER.size :]
        if len(body) % width:
            raise ProtocolError("bad-frame", f"frame {sequence}: {len(body)} bytes of audio are no whole number of "
                                f"samples of {width} bytes")  # fmt: skip
        if rate not in RATES:
            raise ProtocolError("bad-rate", f"frame {sequence}: {rate} Hz; {RATES[0]} to {RATES[-1]}")
        if len(body) // width > MAX_FRAME_SECONDS * rate:
            raise ProtocolError("frame-too-long", f"frame {sequence}: {len(body) / width / rate:.2f} s of audio; at "
                                f"most {MAX_FRAME_SECONDS:g} s a frame, 10 to 100 ms are usual")  # fmt: skip
        if form == S16LE:
            x, finite = np.frombuffer(body, "<i2").astype(np.float32) / 32768.0, True
        else:
            x = np.frombuffer(body, "<f4").astype(np.float32)
            finite = bool(np.isfinite(x).all())
            x = np.clip(x, -1.0, 1.0) if finite else np.zeros_like(x)
        return cls(x.reshape(-1, channels), sequence, rate, form, flags, finite)


def encode(x: np.ndarray, form: int) -> bytes:
    """float32 samples in [-1, 1] -> bytes."""
    if form == F32LE:
        return x.astype("<f4").tobytes()
    return np.clip(np.rint(x * 32768.0), -32768, 32767).astype("<i2").tobytes()


@dataclass(frozen=True)
class Hello:
    """How a client wants its stream: its first message.

    Attributes:
        voice: name of an embedded voice, or the id of an enrolled one.
        rate, channels, format: of the frames it will send; what comes back is mono, otherwise alike.
        delay: extra look-ahead of the model, in frames of 20 ms.
        chunk: milliseconds that it will send at a time; the latency budget asks.
        token: what the server was started with, if it was.
    """

    voice: str
    rate: int
    channels: int = 1
    format: str = "f32le"
    delay: int = 0
    seed: int = 0
    transpose: float = 0.0
    chunk: float = 40.0
    token: str = ""

    def __post_init__(self) -> None:
        for name, low, high in (("rate", RATES[0], RATES[-1]), ("channels", 1, MAX_CHANNELS), ("delay", 0, 1000),
                                ("seed", -(2**63), 2**63 - 1), ("transpose", -48, 48), ("chunk", 1, 1000)):  # fmt: skip
            _within("hello", name, getattr(self, name), low, high)
        if self.format not in FORMATS:
            raise ProtocolError("bad-hello", f"format {self.format!r}; one of {', '.join(FORMATS)}")

    @classmethod
    def of(cls, message: dict[str, Any]) -> Hello:
        """From the JSON message. Raises ProtocolError naming what is missing, unknown or out of range."""
        given = {k: v for k, v in message.items() if k not in ("type", "version")}
        if message.get("type") != "hello":
            raise ProtocolError("no-hello", "the first message must be {\"type\": \"hello\", \"voice\": ..., "
                                "\"rate\": ...}")  # fmt: skip
        if message.get("version", VERSION) != VERSION:
            raise ProtocolError("bad-version", f"protocol version {message['version']!r}; this server speaks "
                                f"{VERSION}")  # fmt: skip
        types = {f: type(d) for f, d in (("voice", ""), ("rate", 0), ("channels", 1), ("format", ""), ("delay", 0),
                                         ("seed", 0), ("transpose", 0.0), ("chunk", 0.0), ("token", ""))}  # fmt: skip
        for key, value in given.items():
            if key not in types:
                raise ProtocolError("bad-hello", f"hello knows no {key!r}; it takes {', '.join(types)}")
            number = types[key] is float and isinstance(value, int)
            if isinstance(value, bool) or not (number or isinstance(value, types[key])):
                raise ProtocolError("bad-hello", f"{key} {value!r}; expected {types[key].__name__}")
        for key in ("voice", "rate"):
            if key not in given:
                raise ProtocolError("bad-hello", f"hello needs {key!r}")
        return cls(**given)


def _within(where: str, name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ProtocolError(f"bad-{where}", f"{name} {value} is out of range; give {low} to {high}")


def message(text: str) -> dict[str, Any]:
    """A JSON text message with its `type`. Raises ProtocolError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ProtocolError("bad-message", f"not JSON ({e})") from None
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise ProtocolError("bad-message", "a message is a JSON object with a \"type\"")
    return found
