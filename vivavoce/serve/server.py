"""Bind, start the workers, say where it is, serve until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import uvicorn

from vivavoce.core.errors import ConfigError, VivavoceError
from vivavoce.serve.app import Service
from vivavoce.serve.limits import LOOPBACK, Door, Limits
from vivavoce.serve.metrics import Metrics
from vivavoce.serve.pool import Pool
from vivavoce.serve.voices import Voices

MESSAGE_BYTES = 1 << 20  # of a WebSocket message; a frame of 1 s needs less


@dataclass(frozen=True)
class Options:
    """How to serve.

    Attributes:
        workers, streams: None for what fits this machine.
        certificate, key: PEM files, for https.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    model: str | None = None
    workers: int | None = None
    streams: int | None = None
    limits: Limits = field(default_factory=Limits)
    token: str = ""
    origins: tuple[str, ...] = ()
    certificate: str | None = None
    key: str | None = None


def serve(options: Options) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        VivavoceError: the address is taken or not ours, the model cannot be loaded, a certificate cannot be read.
    """
    with _bind(options.host, options.port) as listener:
        asyncio.run(_serve(options, listener, _tell))


async def _serve(o: Options, listener: socket.socket, tell: Callable[[str], None]) -> None:
    metrics = Metrics()
    tell("starting the workers, and measuring how many streams this machine holds ...")
    async with Pool(o.model, o.workers, o.streams, metrics) as pool:
        service = Service(pool, Voices(pool.desk.about["voices"], o.limits.voices), o.limits,
                          Door(o.token, o.origins, is_loopback(o.host)), metrics)  # fmt: skip
        server = make_server(service, o.certificate, o.key)
        for line in banner(o, pool, listener.getsockname()[1]):
            tell(line)
        await run_until_signal(server, listener)


def make_server(service: Service, certificate: str | None = None, key: str | None = None) -> uvicorn.Server:
    """A uvicorn server for the application, which leaves signals alone."""
    config = uvicorn.Config(
        service.app(), log_level="warning", access_log=False, lifespan="off", ws="websockets-sansio",
        ws_max_size=MESSAGE_BYTES, ws_per_message_deflate=False, ws_ping_interval=None, server_header=False,
        timeout_graceful_shutdown=2, ssl_certfile=certificate, ssl_keyfile=key)  # fmt: skip
    # No keep-alive pings: a client that is held back is not read from, so its pongs would not be seen. Who has gone
    # without a word shows by sending no audio, or by reading none.
    try:
        config.load()
    except OSError as e:  # ssl.SSLError is one
        raise ConfigError(f"{certificate}: certificate or key cannot be used ({e.strerror or e})") from None
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    return server


async def run_until_signal(server: uvicorn.Server, listener: socket.socket) -> None:
    def stop() -> None:
        server.should_exit = True

    loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
    with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C interrupts asyncio.run
        for number in numbers:
            loop.add_signal_handler(number, stop)
    await server.serve(sockets=[listener])


def banner(o: Options, pool: Pool, port: int) -> list[str]:
    """What to say once all is ready."""
    scheme = "https" if o.certificate else "http"
    host = "localhost" if is_loopback(o.host) or o.host in ("0.0.0.0", "::") else o.host
    secret = "#token=..." if o.token else ""  # the token itself would stay in logs
    lines = [f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/{secret}"]
    how = "as asked for" if o.streams else "measured"
    lines.append(f"{pool.streams} live stream{'s' * (pool.streams != 1)} at a time ({how}; real-time factor "
                 f"{pool.factor:.2f} a stream, {len(pool.live)} worker{'s' * (len(pool.live) != 1)})")  # fmt: skip
    if pool.factor * pool.streams > len(pool.live):
        lines.append("warning: that is more than this machine converted in real time just now; streams will be late")
    if not is_loopback(o.host):
        if not o.token:
            lines.append("warning: anyone who can reach this address can use it; set VIVAVOCE_TOKEN, or give a --token")
        if not o.certificate:
            lines.append("warning: without https (--certificate), browsers on other machines give no microphone")
    return lines


def is_loopback(host: str) -> bool:
    try:
        return host in LOOPBACK or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as e:
        mend = "choose another --port" if not isinstance(e, socket.gaierror) else "give an address of this machine"
        raise VivavoceError(f"{host} port {port}: cannot be listened on ({e.strerror}); {mend}") from None
    return listener


def _tell(line: str) -> None:
    print(f"vivavoce: {line}", file=sys.stderr, flush=True)
