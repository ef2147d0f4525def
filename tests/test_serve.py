"""`vivavoce serve`: a live stream over the socket is the stream of the library, bit for bit; nobody can spoil it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

pytest.importorskip("starlette", reason="needs the extra `serve`")
httpx = pytest.importorskip("httpx")
pytest.importorskip("websockets", reason="needs the extra `serve`")

import soundfile  # noqa: E402
from servers import PATIENCE, WAIT, Client, Raw, Server, Town, eventually, opened  # noqa: E402
from websockets.exceptions import InvalidStatus  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from vivavoce.changer import Changer, load  # noqa: E402
from vivavoce.core.errors import VivavoceError  # noqa: E402
from vivavoce.engine import Settings  # noqa: E402
from vivavoce.serve.errors import ERRORS, ProtocolError  # noqa: E402
from vivavoce.serve.limits import Door, Limits  # noqa: E402
from vivavoce.serve.metrics import Metrics  # noqa: E402
from vivavoce.serve.protocol import F32LE, HEADER, LATE, PASSED, S16LE, Frame, Hello  # noqa: E402
from vivavoce.serve.server import Options, banner, serve  # noqa: E402

RATE = 16000
HTTP = httpx.Client(timeout=PATIENCE, trust_env=False, verify=False)
SPEECH = tiny.voiced(0.5).numpy()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def changer(model: Path) -> Changer:
    return load(model)


@pytest.fixture(scope="module")
def town(model: Path) -> Iterator[Town]:
    town = Town(model, workers=2, streams=4)
    yield town
    town.close()


@pytest.fixture(scope="module")
def server(town: Town) -> Server:
    return town.serve(replace(WAIT, upload_bytes=300_000, upload_seconds=3.0))


KNOWN: dict[Any, np.ndarray] = {}


def offline(changer: Changer, x: np.ndarray, voice: str = "ada", rate: int = RATE, **settings: Any) -> np.ndarray:
    """What the library makes of it; the same question is answered once."""
    key = (x.tobytes(), voice, rate, *settings.items())
    if key not in KNOWN:
        stream = changer.stream(voice, rate, Settings(**settings))
        KNOWN[key] = torch.cat((stream.push(torch.from_numpy(x)), stream.flush())).numpy()
    return KNOWN[key]


@pytest.fixture
def neighbour(server: Server, changer: Changer) -> Iterator[Client]:
    """Another stream on each worker, in full swing before and after; neither may miss or change a sample."""
    others = [server.client(), server.client()]
    for other in others:
        other.audio(SPEECH[:4000])
    yield others[0]
    for other in others:
        other.audio(SPEECH[4000:])
        assert np.array_equal(other.finish(), offline(changer, SPEECH))
    server.idle()


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


class stopped:
    """A worker process that does not run for a while, as on a machine with too much to do."""

    def __init__(self, worker: Any) -> None:
        self.pid = worker.pid

    def __enter__(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGCONT)


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


# ---------------------------------------------------------------- who may come in


@pytest.mark.parametrize(("host", "origin", "code"), [
    ("localhost:80", None, None), ("127.0.0.1", None, None), ("[::1]:80", None, None),
    ("localhost:80", "http://localhost:80", None), ("localhost:80", "https://friend.example", None),
    ("localhost:80", "http://localhost:81", "foreign-origin"), ("localhost:80", "null", "foreign-origin"),
    ("localhost", "https://evil.example", "foreign-origin"), ("evil.example", "http://evil.example", "foreign-host"),
    ("", None, "foreign-host"), ("localhost.evil.example", None, "foreign-host"),
])  # fmt: skip
def test_the_door(host: str, origin: str | None, code: str | None) -> None:
    headers = {"host": host} | ({"origin": origin} if origin else {})
    door = Door(origins=("https://friend.example",))
    if code is None:
        return door.check_origin(headers)
    with pytest.raises(ProtocolError) as e:
        door.check_origin(headers)
    assert (e.value.code, e.value.status) == (code, 403)


def test_foreign_origins_are_refused(server: Server) -> None:
    with pytest.raises(InvalidStatus) as e:
        opened(server.ws, origin="https://evil.example")  # type: ignore[arg-type]
    assert e.value.response.status_code == 403 and b"--allow-origin" in (e.value.response.body or b"")
    for answer in (HTTP.get(f"{server.url}/voices", headers={"Origin": "https://evil.example"}),
                   HTTP.post(f"{server.url}/convert?voice=ada", headers={"Host": "evil.example"})):  # fmt: skip
        assert answer.status_code == 403


def test_tokens(town: Town) -> None:
    locked = town.serve(door=Door(token="sesame"))
    for token, word in (("", "missing"), ("open", "wrong")):
        code, message, _ = Client(opened(locked.ws), token=token).refused()
        assert code == "bad-token" and word in message
        answer = HTTP.get(f"{locked.url}/voices", headers={"Authorization": f"Bearer {token}"} if token else {})
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    locked.client(token="sesame").socket.close()
    bearer = {"Authorization": "Bearer sesame"}
    client = Client(opened(locked.ws, additional_headers=bearer))
    client.expect("ready")
    client.socket.close()
    assert HTTP.get(f"{locked.url}/metrics", headers=bearer).status_code == 200
    assert HTTP.get(f"{locked.url}/healthz").status_code == HTTP.get(locked.url).status_code == 200


# ---------------------------------------------------------------- voices and files


def recording(x: np.ndarray, rate: int = RATE, form: str = "FLAC") -> bytes:
    import io

    file = io.BytesIO()
    soundfile.write(file, x, rate, format=form)
    return file.getvalue()


def test_voices_are_enrolled_used_kept_private_and_forgotten(server: Server, changer: Changer) -> None:
    listed = HTTP.get(f"{server.url}/voices").json()["voices"]
    assert [v["id"] for v in listed] == ["ada", "bela"]
    x = tiny.voiced(2.5, f0=180.0)
    made = HTTP.post(f"{server.url}/voices", params={"name": "Cleo", "consent": "hers"}, content=recording(x.numpy()))
    assert made.status_code == 201
    voice = made.json()
    assert (voice["name"], voice["consent"]) == ("Cleo", "hers")
    assert HTTP.get(f"{server.url}/voices").json()["voices"] == listed  # nobody else sees it
    client = server.client(voice=voice["id"])
    client.audio(SPEECH)
    kept = HTTP.get(f"{server.url}/voices/{voice['id']}?file").content
    heard = client.finish()
    again = HTTP.post(f"{server.url}/voices", params={"consent": "hers"}, content=kept).json()
    assert again["name"] == "Cleo" and again["id"] != voice["id"]
    twin = server.client(voice=again["id"])
    twin.audio(SPEECH)
    assert np.array_equal(twin.finish(), heard) and not np.array_equal(heard, offline(changer, SPEECH))
    assert HTTP.delete(f"{server.url}/voices/{voice['id']}").status_code == 204
    assert HTTP.get(f"{server.url}/voices/{voice['id']}").status_code == 404
    assert HTTP.delete(f"{server.url}/voices/ada").status_code == 403


def test_only_so_many_voices_are_kept(town: Town) -> None:
    small = town.serve(replace(WAIT, voices=2))
    sound = recording(tiny.voiced(1.5).numpy())
    ids = [HTTP.post(f"{small.url}/voices?consent=x", content=sound).json()["id"] for _ in range(2)]
    assert HTTP.get(f"{small.url}/voices/{ids[0]}").status_code == 200  # used: the other goes first
    ids.append(HTTP.post(f"{small.url}/voices?consent=x", content=sound).json()["id"])
    assert [HTTP.get(f"{small.url}/voices/{i}").status_code for i in ids] == [200, 404, 200]


def test_preview(server: Server, changer: Changer) -> None:
    import io

    answer = HTTP.get(f"{server.url}/voices/ada/preview")
    y, rate = soundfile.read(io.BytesIO(answer.content))
    want, _ = changer.preview("ada")
    assert rate == RATE and np.abs(y - want.numpy()).max() <= 1 / 32768


def test_files_are_converted_as_the_library_does(server: Server, changer: Changer, tmp_path: Path) -> None:
    x = tiny.voiced(1.7, 22050)
    path = tmp_path / "in.flac"
    path.write_bytes(recording(x.numpy(), 22050))
    answer = HTTP.post(f"{server.url}/convert?voice=bela&seed=5", content=path.read_bytes())
    (tmp_path / "out.wav").write_bytes(answer.content)
    y, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    want, _ = changer.convert(path, "bela", settings=Settings(5))
    assert (answer.status_code, rate, len(y)) == (200, 22050, len(x))
    assert answer.headers["content-length"] == str(44 + 2 * len(x))
    assert np.abs(y - want.numpy()).max() <= 1 / 32768


SILENT = recording(np.zeros(2 * RATE, np.float32))


@pytest.mark.parametrize(("path", "body", "status", "word"), [
    ("convert?voice=ada", b"not audio at all", 422, "not readable as audio"),
    ("convert?voice=ada", b"", 400, "no recording"),
    ("convert?voice=ada", bytes(300_001), 413, "0.286 MB"),
    ("convert?voice=ada&name=my.wav", recording(np.zeros(4 * RATE)), 422, "my.wav: longer than the 3 s"),
    ("convert?voice=nobody", SILENT, 404, "nobody"), ("convert", SILENT, 400, "?voice="),
    ("convert?voice=/etc/passwd", SILENT, 404, "no voice"),
    ("convert?voice=ada&seed=x", SILENT, 400, "seed"), ("convert?voice=ada&transpose=nan", SILENT, 422, "transpose"),
    ("voices?name=x&consent=y", SILENT, 422, "x: silent"), ("voices", SILENT, 400, "consent"),
    ("voices?consent=y", recording(SPEECH)[:2000], 422, "damaged"),
    ("voices?consent=y", b"\x40\0\0\0\0\0\0\0{}", 422, "safetensors"),
])  # fmt: skip
def test_bad_uploads(path: str, body: bytes, status: int, word: str, server: Server) -> None:
    answer = HTTP.post(f"{server.url}/{path}", content=body)
    told = answer.json()["error"]
    assert answer.status_code == status and word in told["message"] and told["code"] in ERRORS
    assert "tmp" not in told["message"]


def test_an_upload_without_a_length_is_cut_off(server: Server) -> None:
    answer = HTTP.post(f"{server.url}/convert?voice=ada", content=iter([bytes(100_000)] * 4))
    assert answer.status_code == 413


def test_a_download_that_is_broken_off_frees_its_place(server: Server) -> None:
    with HTTP.stream("POST", f"{server.url}/convert?voice=ada", content=recording(tiny.voiced(2.9).numpy())) as answer:
        assert next(answer.iter_bytes())[:4] == b"RIFF"
    server.idle()


def test_only_so_many_jobs(town: Town) -> None:
    busy = town.serve(replace(WAIT, jobs=1))
    with stopped(town.pool.desk):
        body = recording(SPEECH)
        sock = socket.create_connection(("127.0.0.1", busy.port))
        head = f"POST /convert?voice=ada HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        eventually(lambda: busy.service.jobs == 1)
        answer = HTTP.post(f"{busy.url}/convert?voice=ada", content=body)
        assert answer.status_code == 503 and answer.headers["retry-after"] and "at a time" in answer.text
    sock.close()
    busy.idle()


# ---------------------------------------------------------------- metrics, page, start


def test_metrics_are_well_formed(server: Server) -> None:
    text = HTTP.get(f"{server.url}/metrics").text
    line = re.compile(r'(# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]*"\})? [-+0-9.e]+)')
    assert all(line.fullmatch(row) for row in text.strip().splitlines()), text
    assert "vivavoce_streams 0\n" in text and "vivavoce_streams_max 4\n" in text
    rows = [float(r.split()[-1]) for r in text.splitlines() if "_bucket" in r]
    assert rows == sorted(rows) and rows[-1] == float(re.findall(r"_count (\S+)", text)[0])


def test_counting() -> None:
    m = Metrics()
    m.count("refusals_total", code="full")
    m.count("refusals_total", 2, code="idle")
    assert m.value("refusals_total") == 3 and 'vivavoce_refusals_total{code="idle"} 2\n' in m.text()


def test_the_page_and_all_it_asks_for(server: Server) -> None:
    page = HTTP.get(server.url)
    assert page.headers["content-type"].startswith("text/html") and "default-src 'self'" in page.headers[
        "content-security-policy"]  # fmt: skip
    names = set(re.findall(r'(?:src|href)="([\w.-]+)"', page.text))
    scripts = [HTTP.get(f"{server.url}/{n}").text for n in names if n.endswith(".js")]
    while scripts:
        found = set(re.findall(r'(?:from|addModule\()\s*"(?:\./)?([\w.-]+\.js)"', scripts.pop())) - names
        names |= found
        scripts += [HTTP.get(f"{server.url}/{n}").text for n in found]
    assert {"style.css", "app.js", "live.js", "worklet.js"} <= names
    for name in names:
        answer = HTTP.get(f"{server.url}/{name}")
        assert answer.status_code == 200 and not re.search(r"https?://(?!www\.w3\.org)", answer.text), name
    ids = set(re.findall(r'id="([\w-]+)"', page.text)) | {"add-voice"}
    for name in (n for n in names if n.endswith(".js")):
        script = HTTP.get(f"{server.url}/{name}").text
        asked = set(re.findall(r'\$\("([\w-]+)"\)|getElementById\("([\w-]+)"\)', script))
        assert {a or b for a, b in asked} <= ids, name


def test_the_protocol_is_documented() -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "serve.md").read_text(encoding="utf-8")
    assert {c for c in ERRORS if f"`{c}`" not in text} == set()
    for code, (close, status) in ERRORS.items():
        assert re.search(rf"`{code}` \|[^\n]*\| {close} \| {status} \|", text), code
    frames = {"hello", "ready", "voice", "bypass", "ping", "pong", "stats", "late", "notice", "error", "bye"}
    assert {m for m in frames if f'"type": "{m}"' not in text} == set()


def test_the_banner_warns(town: Town) -> None:
    def said(**options: Any) -> str:
        return "\n".join(banner(Options(**options), town.pool, 8765))

    assert "http://localhost:8765/" in said() and "anyone" not in said()
    assert "anyone" in said(host="0.0.0.0") and "https" in said(host="0.0.0.0")
    assert "anyone" not in said(host="0.0.0.0", token="x") and "#token=" in said(token="secret")
    assert "secret" not in said(token="secret")


def test_an_address_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(VivavoceError, match="another --port"):
        serve(Options(port=taken.getsockname()[1]))
    with pytest.raises(VivavoceError, match="an address of this machine"):
        serve(Options(host="no.such.host.invalid"))


@pytest.mark.parametrize("words", ["--port 99999", "--port x", "--max-streams 0", "--late never",
                                   "--allow-origin example.org", "--max-upload -1"])  # fmt: skip
def test_wrong_usage(words: str, capsys: pytest.CaptureFixture) -> None:
    from vivavoce.cli import main

    with pytest.raises(SystemExit) as e:
        main(["serve", *words.split()])
    assert e.value.code == 2 and words.split()[0].strip("-") in capsys.readouterr().err


def test_a_key_without_a_certificate(capsys: pytest.CaptureFixture) -> None:
    from vivavoce.cli import main

    assert main(["serve", "--key", "key.pem"]) == 1
    assert "https needs both" in capsys.readouterr().err
