"""A server in a thread for tests, as fixtures, too; clients: a well-behaved one, and a raw one that can misbehave."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tiny
import torch
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from vivavoce.changer import Changer, load
from vivavoce.engine import Settings
from vivavoce.serve.app import Service
from vivavoce.serve.limits import Door, Limits
from vivavoce.serve.metrics import Metrics
from vivavoce.serve.pool import Pool
from vivavoce.serve.protocol import F32LE, LAST, Frame
from vivavoce.serve.server import make_server
from vivavoce.serve.voices import Voices

PATIENCE = 300.0  # seconds; only a broken test waits so long
WAIT = Limits(late="wait", idle=PATIENCE)
RATE = 16000
HTTP = httpx.Client(timeout=PATIENCE, trust_env=False, verify=False)
SPEECH = tiny.voiced(0.5).numpy()


def eventually(true: Callable[[], bool]) -> None:
    """Wait for something that must come, however slow the machine."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "did not come"
        time.sleep(0.01)


def opened(url: str, **options: Any) -> ClientConnection:
    return connect(url, proxy=None, **options).__enter__()


class Town:
    """An event loop in a thread, one pool of workers, and any number of servers with limits of their own."""

    def __init__(self, model: Path, workers: int, streams: int) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.pool = Pool(str(model), workers, streams, Metrics())
        self.pool.desk.nice = 0  # beside a whole test suite, a polite process would get no turn at all
        self.run(self.pool.__aenter__())
        self.servers: list[Any] = []

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    def serve(self, limits: Limits = WAIT, door: Door | None = None, buffer: int | None = None) -> Server:
        """Another server; `buffer`: bytes that the system may hold for a client that does not read."""
        listener = socket.create_server(("127.0.0.1", 0))
        if buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        service = Service(self.pool, Voices(self.pool.desk.about["voices"], limits.voices), limits, door or Door(),
                          Metrics())  # fmt: skip
        server = make_server(service)
        asyncio.run_coroutine_threadsafe(server.serve(sockets=[listener]), self.loop)
        self.servers.append(server)
        eventually(lambda: server.started)
        return Server(service, listener.getsockname()[1])

    def close(self) -> None:
        for server in self.servers:
            server.should_exit = True
        self.run(self.pool.__aexit__())
        self.loop.call_soon_threadsafe(self.loop.stop)


class Server:
    def __init__(self, service: Service, port: int) -> None:
        self.service, self.port = service, port
        self.url, self.ws = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}/stream"

    def client(self, **hello: Any) -> Client:
        """A live stream, ready."""
        client = Client(opened(self.ws), **hello)
        client.expect("ready")
        return client

    def idle(self) -> None:
        """Wait until nobody is there any more."""
        eventually(lambda: not self.service.pool.taken and not self.service.sockets and not self.service.jobs)


class Client:
    """Speaks the protocol; collects what comes back."""

    def __init__(self, socket: ClientConnection, voice: str = "ada", rate: int = 16000, **hello: Any) -> None:
        self.socket, self.rate, self.form = socket, rate, F32LE
        self.sequence, self.frames, self.messages = 0, [], []  # type: ignore[var-annotated]
        self.tell(type="hello", voice=voice, rate=rate, **hello)

    def tell(self, **message: Any) -> None:
        self.socket.send(json.dumps(message))

    def audio(self, x: np.ndarray, size: int = 640) -> None:
        """Send samples in frames of `size`."""
        for at in range(0, len(x), size):
            self.socket.send(Frame(x[at : at + size], self.sequence, self.rate, self.form).pack())
            self.sequence += 1

    @contextmanager
    def until_refused(self) -> Iterator[None]:
        """Around sending that the server refuses: it may close the socket before all is sent."""
        with suppress(ConnectionClosed):
            yield

    def read(self) -> dict[str, Any] | None:
        """The next message; None for a frame, which is kept."""
        got = self.socket.recv(timeout=PATIENCE)
        if isinstance(got, bytes):
            self.frames.append(Frame.unpack(got))
            return None
        self.messages.append(json.loads(got))
        return self.messages[-1]

    def expect(self, kind: str) -> dict[str, Any]:
        """Read up to the message of this type."""
        while True:
            m = self.read()
            if m and m["type"] == kind:
                return m
            assert not m or m["type"] != "error", m

    def settle(self) -> dict[str, Any]:
        """Read until nothing waits to be converted; the stats."""
        while True:
            self.tell(type="stats")
            if not (stats := self.expect("stats"))["backlog_ms"]:
                return stats

    def finish(self) -> np.ndarray:
        """Say bye; all that came back, [n]."""
        self.tell(type="bye")
        self.expect("bye")
        assert self.frames[-1].flags & LAST
        assert [f.sequence for f in self.frames] == list(range(len(self.frames)))
        self.socket.close()
        return self.heard

    @property
    def heard(self) -> np.ndarray:
        return np.concatenate([f.samples[:, 0] for f in self.frames])

    def refused(self) -> tuple[str, str, int]:
        """Read up to the error: its code and message, and the socket's close code."""
        while not (m := self.read()) or m["type"] != "error":
            pass
        try:
            while True:
                self.socket.recv(timeout=PATIENCE)
        except ConnectionClosed as e:
            assert e.rcvd is not None
            return m["code"], m["message"], e.rcvd.code


class Raw:
    """A WebSocket client made of bare bytes, which reads only when told to."""

    def __init__(self, port: int, buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        lines = ("GET /stream HTTP/1.1", f"Host: localhost:{port}", "Upgrade: websocket", "Connection: Upgrade",
                 f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", "")  # fmt: skip
        self.socket.sendall("\r\n".join(lines).encode())
        assert self.socket.recv(1000).startswith(b"HTTP/1.1 101")

    @staticmethod
    def message(data: bytes, opcode: int) -> bytes:
        """A masked frame (RFC 6455, 5.2); the mask is zero."""
        n = len(data)
        size = bytes([n]) if n < 126 else struct.pack(">BH", 126, n) if n < 65536 else struct.pack(">BQ", 127, n)
        return bytes([0x80 | opcode, 0x80 | size[0]]) + size[1:] + bytes(4) + data

    def hello(self, **hello: Any) -> None:
        self.socket.sendall(self.message(json.dumps({"type": "hello", **hello}).encode(), 1))

    def audio(self, x: np.ndarray, rate: int, size: int) -> None:
        for i, at in enumerate(range(0, len(x), size)):
            self.socket.sendall(self.message(Frame(x[at : at + size], i, rate, F32LE).pack(), 2))


class stopped:
    """A worker process that does not run for a while, as on a machine with too much to do."""

    def __init__(self, worker: Any) -> None:
        self.pid = worker.pid

    def __enter__(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGCONT)


# ---------------------------------------------------------------- fixtures of test_serve and test_serve_http


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
