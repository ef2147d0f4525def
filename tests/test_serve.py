"""`vivavoce serve`: a live stream over the socket is the stream of the library, bit for bit; nobody can spoil it."""

from __future__ import annotations

import json
import os
import signal
import socket
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("httpx")
pytest.importorskip("websockets", reason="needs the extra `serve`")
pytest_plugins = ["servers"]

from servers import (  # noqa: E402
    HTTP,
    PATIENCE,
    RATE,
    SPEECH,
    WAIT,
    Client,
    Raw,
    Server,
    Town,
    eventually,
    offline,
    opened,
    stopped,
)
from websockets.exceptions import InvalidStatus  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from vivavoce.changer import Changer  # noqa: E402
from vivavoce.serve.errors import ERRORS, ProtocolError  # noqa: E402
from vivavoce.serve.limits import Limits  # noqa: E402
from vivavoce.serve.protocol import F32LE, HEADER, LATE, PASSED, S16LE, Frame, Hello  # noqa: E402

# ---------------------------------------------------------------- frames and messages


@pytest.mark.parametrize(("form", "step"), [(F32LE, 0.0), (S16LE, 1 / 65536)])
def test_frames_survive_the_wire(form: int, step: float) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (100, 2)).astype(np.float32)
    found = Frame.unpack(Frame(x, 7, 48000, form, PASSED | LATE).pack())
    assert (found.sequence, found.rate, found.format, found.flags, found.finite) == (7, 48000, form, 3, True)
    assert np.abs(found.samples - x).max() <= step + 1e-9


def frame(version: int = 1, kind: int = 1, form: int = F32LE, channels: int = 1, sequence: int = 0, rate: int = RATE,
          zero: int = 0, body: bytes = bytes(640)) -> bytes:  # fmt: skip
    return HEADER.pack(version, kind, form, channels, sequence, rate, 0, zero) + body


BAD_FRAMES: dict[str, tuple[bytes, str]] = {
    "short": (b"\x01\x01", "bad-frame"), "empty": (b"", "bad-frame"), "version": (frame(version=2), "bad-version"),
    "type": (frame(kind=9), "bad-frame"), "format": (frame(form=3), "bad-frame"),
    "reserved": (frame(zero=1), "bad-frame"),
    "no channels": (frame(channels=0), "bad-frame"), "many channels": (frame(channels=9), "bad-frame"),
    "ragged": (frame(body=bytes(641)), "bad-frame"), "rate": (frame(rate=7), "bad-rate"),
    "long": (frame(body=bytes(4 * RATE + 4)), "frame-too-long"), "another rate": (frame(rate=48000), "bad-rate"),
    "another format": (frame(form=S16LE), "bad-format"), "another width": (frame(channels=2), "bad-channels"),
    "sequence": (frame(sequence=5), "bad-sequence"), "noise": (bytes(range(256)), "bad-version"),
}  # fmt: skip
BAD_MESSAGES: dict[str, tuple[str, str]] = {
    "not JSON": ("{", "bad-message"), "no object": ("[1]", "bad-message"), "no type": ("{}", "bad-message"),
    "unknown": ('{"type": "dance"}', "bad-message"), "bypass": ('{"type": "bypass", "on": 1}', "bad-message"),
    "voice": ('{"type": "voice"}', "bad-message"), "deep": ("[" * 100_000, "bad-message"),
}  # fmt: skip


def test_nonsense_closes_its_own_stream_only(server: Server, neighbour: Client) -> None:
    bad_input: dict[str, tuple[Any, str]] = {**BAD_FRAMES, **BAD_MESSAGES}
    for name, (data, code) in bad_input.items():
        bad = server.client()
        bad.socket.send(data)
        got, message, close = bad.refused()
        assert (got, close) == (code, ERRORS[code][0]) and len(message) > 20, name


@pytest.mark.parametrize(("hello", "code", "word"), [
    ({"type": "hello"}, "bad-hello", "voice"), ({"type": "start"}, "no-hello", "hello"),
    ({"type": "hello", "voice": "ada"}, "bad-hello", "rate"),
    ({"type": "hello", "voice": "ada", "rate": "16000"}, "bad-hello", "rate"),
    ({"type": "hello", "voice": "ada", "rate": True}, "bad-hello", "rate"),
    ({"type": "hello", "voice": "ada", "rate": 1}, "bad-hello", "rate"),
    ({"type": "hello", "voice": "ada", "rate": RATE, "channels": 99}, "bad-hello", "channels"),
    ({"type": "hello", "voice": "ada", "rate": RATE, "format": "mp3"}, "bad-hello", "mp3"),
    ({"type": "hello", "voice": "ada", "rate": RATE, "transpose": float("nan")}, "bad-hello", "transpose"),
    ({"type": "hello", "voice": "ada", "rate": RATE, "colour": 1}, "bad-hello", "colour"),
    ({"type": "hello", "voice": "ada", "rate": RATE, "version": 2}, "bad-version", "2"),
    ({"type": "hello", "voice": "ada", "rate": RATE, "delay": 77}, "refused", "delay 77"),
    ({"type": "hello", "voice": "/etc/hostname", "rate": RATE}, "unknown-voice", "GET /voices"),
])  # fmt: skip
def test_bad_hellos_are_told_what_is_wrong(hello: dict[str, Any], code: str, word: str, server: Server) -> None:
    with connect(server.ws, proxy=None) as socket:
        socket.send(json.dumps(hello))
        told = json.loads(socket.recv(timeout=PATIENCE))
    assert (told["type"], told["code"]) == ("error", code) and word in told["message"]


def test_a_hello_keeps_its_types() -> None:
    made = Hello.of({"type": "hello", "voice": "x", "rate": 8000, "transpose": 2})
    assert made.transpose == 2 and made.format == "f32le"
    with pytest.raises(ProtocolError, match="seed"):
        Hello("x", 8000, seed=2**63)


# ---------------------------------------------------------------- a live stream is the library's stream


@pytest.mark.parametrize(("rate", "size"), [(16000, 640), (48000, 1920), (44100, 1000)])
def test_live_equals_the_library(rate: int, size: int, server: Server, changer: Changer) -> None:
    x = tiny.voiced(0.8, rate).numpy()
    client = server.client(rate=rate, delay=2, seed=3, chunk=40)
    client.audio(x, size)
    assert np.array_equal(client.finish(), offline(changer, x, rate=rate, delay=2, seed=3))
    assert not any(f.flags & PASSED for f in client.frames)
    bye = client.messages[-1]
    assert (bye["received"], bye["sent"], bye["passed"]) == (len(x), len(x), 0)


def test_latency_is_the_librarys(server: Server, changer: Changer) -> None:
    client = server.client(chunk=40.0)
    want = changer.stream("ada", RATE, chunk=0.04).latency
    assert client.messages[0]["latency"]["total"] == pytest.approx(want.total, abs=0.01)
    assert set(client.messages[0]["latency"]) == {*vars(want), "total"}
    client.finish()


def test_stereo_and_16_bit(server: Server, changer: Changer) -> None:
    wide = np.stack((SPEECH, np.zeros_like(SPEECH)), axis=1)
    client = server.client(channels=2, format="s16le")
    client.form = S16LE
    client.audio(wide)
    heard = client.finish()
    mixed = Frame.unpack(Frame(wide, 0, RATE, S16LE).pack()).samples.mean(axis=1)
    want = offline(changer, mixed)
    ready = len(want)
    assert len(heard) == len(SPEECH) and np.abs(heard[:ready] - want[:ready]).max() < 1 / 32768


def test_voice_and_bypass_take_their_turn(server: Server, changer: Changer) -> None:
    client = server.client()
    x = tiny.voiced(1.0).numpy()
    client.audio(x[:6400])
    client.tell(type="voice", voice="bela")
    client.audio(x[6400:9600])
    client.tell(type="bypass", on=True)
    client.audio(x[9600:])
    heard = client.finish()
    stream, parts = changer.stream("ada", RATE), []
    for part, then in ((x[:6400], "swap"), (x[6400:9600], "bypass"), (x[9600:], "")):
        parts.append(stream.push(torch.from_numpy(part)))
        if then == "swap":
            stream.swap("bela")
        if then == "bypass":
            stream.bypass = True
    assert np.array_equal(heard, torch.cat((*parts, stream.flush())).numpy())
    assert [m["type"] for m in client.messages] == ["ready", "voice", "bypass", "bye"]
    assert client.messages[1]["name"] == "bela" and client.frames[-1].flags & PASSED
    assert np.array_equal(heard[-3200:], x[-3200:]) and 0 < client.messages[-1]["passed"] < len(heard)


def test_an_unknown_voice_changes_nothing(server: Server, changer: Changer) -> None:
    client = server.client()
    client.audio(SPEECH[:3200])
    client.tell(type="voice", voice="nobody")
    assert "nobody" in client.expect("notice")["message"]
    client.audio(SPEECH[3200:])
    assert np.array_equal(client.finish(), offline(changer, SPEECH))


def test_ping_and_stats(server: Server) -> None:
    client = server.client()
    client.tell(type="ping", t=12.5)
    assert client.expect("pong")["t"] == 12.5
    client.audio(SPEECH[:6400])
    assert client.settle()["received"] == 6400
    client.finish()


# ---------------------------------------------------------------- bad input


def test_nan_is_silence_and_told_once(server: Server, changer: Changer, neighbour: Client) -> None:
    bad = server.client()
    x, holes = SPEECH.copy(), SPEECH.copy()
    for at, what in ((1280, np.nan), (3840, np.inf)):
        x[at + 5], holes[at : at + 640] = what, 0.0
    bad.audio(x)
    assert np.array_equal(bad.finish(), offline(changer, holes))
    assert [m["code"] for m in bad.messages if m["type"] == "notice"] == ["not-finite"]


def test_absurd_loudness_is_clipped(server: Server, changer: Changer) -> None:
    client = server.client()
    client.audio(SPEECH * np.float32(1e30))
    heard = client.finish()
    assert np.array_equal(heard, offline(changer, np.clip(SPEECH * np.float32(1e30), -1, 1)))


def test_a_client_that_lies_about_its_rate_floods(town: Town, neighbour: Client) -> None:
    bad = town.serve(replace(WAIT, burst=1.0)).client(rate=8000)
    with bad.until_refused():
        bad.audio(np.zeros(48000 // 2, np.float32), 1920)  # half a second of 48 kHz, at once
    code, message, close = bad.refused()
    assert (code, close) == ("too-fast", 1008) and "8000 Hz" in message


def test_a_flood_of_messages(server: Server, neighbour: Client) -> None:
    bad, (one, two) = server.client(), server.service.pool.live
    with stopped(one), stopped(two):  # so that nothing is taken out of the queue
        bad.audio(SPEECH[:640])
        with bad.until_refused():
            for _ in range(1100):
                bad.tell(type="bypass", on=True)
        eventually(lambda: bad.read() is not None)
    assert bad.messages[-1]["code"] == "flood"


def test_a_client_that_does_not_read(town: Town, server: Server, neighbour: Client) -> None:
    slow = town.serve(replace(WAIT, stall=0.5), buffer=4096)
    bad = Raw(slow.port, buffer=4096)
    bad.hello(voice="ada", rate=192000)
    bad.audio(np.zeros(192000, np.float32), 192000, 19200)  # 0.8 MB to come back
    eventually(lambda: slow.service.metrics.value("refusals_total") == 1)
    assert 'code="stalled"' in slow.service.metrics.text()
    eventually(lambda: not slow.service.sockets)
    bad.socket.close()


@pytest.mark.parametrize("part", [3, 20, 400])
def test_a_client_that_goes_in_mid_frame(part: int, server: Server, neighbour: Client) -> None:
    bad = Raw(server.port)
    bad.hello(voice="ada", rate=RATE)
    eventually(lambda: server.service.pool.taken == 3)
    bad.socket.sendall(Raw.message(frame(), 2)[:part])
    bad.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not a farewell
    bad.socket.close()
    eventually(lambda: server.service.pool.taken == 2)


def test_a_hundred_streams_at_once(server: Server, neighbour: Client) -> None:
    crowd = [Client(opened(server.ws)) for _ in range(100)]
    answers = [client.read() or {} for client in crowd]
    ready = [c for c, a in zip(crowd, answers) if a["type"] == "ready"]
    refused = [a for a in answers if a["type"] == "error"]
    assert (len(ready), len(refused)) == (2, 98)  # the neighbours have the other two places
    assert {a["code"] for a in refused} == {"full"} and "4 streams at a time" in refused[0]["message"]
    for client in crowd:
        client.socket.close()


def test_too_many_sockets_are_refused_before_they_open(town: Town) -> None:
    small = town.serve(replace(WAIT, sockets=2))
    held = [opened(small.ws) for _ in range(2)]
    eventually(lambda: small.service.sockets == 2)
    with pytest.raises(InvalidStatus) as e:
        opened(small.ws)
    assert e.value.response.status_code == 503 and b"too many connections" in (e.value.response.body or b"")
    for socket_ in held:
        socket_.close()


def test_idle_streams_and_long_ones_end(town: Town) -> None:
    for limits, code in ((replace(WAIT, idle=0.3), "idle"), (replace(WAIT, stream=0.3), "time-limit")):
        client = town.serve(limits).client()
        got, _, close = client.refused()
        assert (got, close) == (code, 1000)


def test_a_frame_beyond_the_sockets_limit(server: Server, neighbour: Client) -> None:
    from websockets.exceptions import ConnectionClosed

    bad = server.client()
    with pytest.raises(ConnectionClosed) as e:
        bad.socket.send(bytes(3 << 20))
        while True:
            bad.socket.recv(timeout=PATIENCE)
    assert e.value.rcvd is None or e.value.rcvd.code == 1009


# ---------------------------------------------------------------- late


def test_late_streams_pass_through_loudly_and_recover(town: Town, server: Server, changer: Changer) -> None:
    hasty = town.serve(Limits(late_after=0.2, recover_after=0.2))
    x = tiny.voiced(4.0, seed=1).numpy()
    late = hasty.client()
    worker = next(w for w in town.pool.live if w.streams)
    near, far = server.client(), server.client()  # one is on the same worker
    with stopped(worker):
        late.audio(x[:16000])
        eventually(lambda: _stats(late)["backlog_ms"] > 800)
        for other in (near, far):
            other.audio(SPEECH[:4000])
    told = late.expect("late")
    assert told["on"] and told["behind_ms"] > 200
    at = 16000
    while not any(m["type"] == "late" and not m["on"] for m in late.messages):  # punctual from now on
        late.audio(x[at : at + 640])
        at += 640
        late.settle()
        assert at < 48000
    for _ in range(25):
        late.audio(x[at : at + 640])
        at += 640
        late.settle()
    heard = late.finish()
    assert len(heard) == at and hasty.service.metrics.value("late_total") >= 1
    flags = np.concatenate([np.full(len(f.samples), f.flags) for f in late.frames])
    passing = np.flatnonzero(flags & LATE)
    assert len(passing) > 8000 and not (flags[-3200:] & PASSED).any()  # loudly; and recovered
    inner = passing[(passing > passing[0] + 800) & (passing < passing[-1] - 3200)]
    assert np.array_equal(heard[inner], x[inner])  # the source itself, in its place
    assert not np.array_equal(heard[-3200:], x[at - 3200 : at])
    for other in (near, far):
        other.audio(SPEECH[4000:])
        assert np.array_equal(other.finish(), offline(changer, SPEECH))


def _stats(client: Client) -> dict[str, Any]:
    client.tell(type="stats")
    return client.expect("stats")


def test_a_lost_worker_is_told_and_replaced(town: Town, server: Server, changer: Changer) -> None:
    client = server.client()
    worker = next(w for w in town.pool.live if w.streams)
    other = server.client()
    os.kill(worker.pid, signal.SIGKILL)
    with client.until_refused():
        client.audio(SPEECH[:640])
    assert client.refused()[0] == "worker-lost"
    other.audio(SPEECH)
    assert np.array_equal(other.finish(), offline(changer, SPEECH))
    eventually(lambda: HTTP.get(f"{server.url}/healthz").status_code == 200)
    again = [server.client(), server.client()]
    for c in again:
        c.audio(SPEECH)
        assert np.array_equal(c.finish(), offline(changer, SPEECH))
