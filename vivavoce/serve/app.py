"""The ASGI application: a socket for live streams, voices, files, health, metrics, and the page."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from vivavoce import __version__
from vivavoce.serve.errors import ProtocolError
from vivavoce.serve.limits import Door, Limits
from vivavoce.serve.metrics import Metrics
from vivavoce.serve.pool import Place, Pool
from vivavoce.serve.protocol import S16LE, VERSION, Hello, encode, message
from vivavoce.serve.session import Session, refuse
from vivavoce.serve.voices import Voices
from vivavoce.serve.wav import wav_header

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; media-src 'self' blob:; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache",
}  # fmt: skip
HELLO_SECONDS = 10.0  # for the first message of a socket
NUMBERS: dict[str, tuple[type, Any]] = {"delay": (int, None), "seed": (int, 0), "transpose": (float, 0.0)}


class Download(StreamingResponse):
    """A body that is made while it is sent.

    Args:
        stack: closed when the last of it has gone out, or nobody wants it any more.
        stall: seconds that the client may take to read a piece.
    """

    def __init__(self, body: AsyncIterator[bytes], stack: contextlib.AsyncExitStack, stall: float, **kw: Any) -> None:
        super().__init__(body, **kw)
        self.stack, self.stall = stack, stall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def patient(message: Message) -> None:
            await asyncio.wait_for(send(message), self.stall)

        async with self.stack:
            # What fails now can only show as a body that is too short: the head has gone out.
            with contextlib.suppress(asyncio.TimeoutError, ProtocolError, ClientDisconnect):
                await super().__call__(scope, receive, patient)


@dataclass
class Service:
    """A server: its workers, its voices, and what it allows."""

    pool: Pool
    voices: Voices
    limits: Limits
    door: Door
    metrics: Metrics
    sockets: int = 0  # open now
    jobs: int = 0  # files and enrolments under way
    began: float = field(default_factory=time.monotonic)

    def app(self) -> Starlette:
        """The ASGI application."""
        m, p = self.metrics, self.pool
        m.gauge("streams", "Live streams now.", lambda: p.taken)
        m.gauge("streams_max", "Live streams that this server takes.", lambda: p.streams)
        m.gauge("stream_real_time_factor", "Of one stream, measured at start.", lambda: p.factor)
        m.gauge("enrolled_voices", "Voices kept in memory.", lambda: len(self.voices))
        m.gauge("uptime_seconds", "Since the server started.", lambda: time.monotonic() - self.began)
        routes = [
            Route("/healthz", self.health), Route("/metrics", self._guarded(self.metrics_text)),
            Route("/voices", self._guarded(self.list_voices)),
            Route("/voices", self._guarded(self.enrol), methods=["POST"]),
            Route("/voices/{id}", self._guarded(self.voice)),
            Route("/voices/{id}", self._guarded(self.forget), methods=["DELETE"]),
            Route("/voices/{id}/preview", self._guarded(self.preview)),
            Route("/convert", self._guarded(self.convert), methods=["POST"]),
            WebSocketRoute("/stream", self.stream), *self._page(),
        ]  # fmt: skip
        return Starlette(routes=routes)

    # ---- the page -------------------------------------------------------------------------------------

    def _page(self) -> list[Route]:
        """The page's few files, read once."""
        routes = []
        for item in (resources.files("vivavoce.serve") / "web").iterdir():
            suffix = os.path.splitext(item.name)[1]
            if suffix in TYPES:
                made = Response(item.read_bytes(), media_type=TYPES[suffix], headers=HEADERS)
                path = "/" if item.name == "index.html" else f"/{item.name}"
                routes.append(Route(path, lambda _, made=made: made))
        return routes

    # ---- small things ---------------------------------------------------------------------------------

    def _guarded(self, run: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Check origin and token first; tell what went wrong in JSON."""

        async def guarded(request: Request) -> Response:
            try:
                self.door.check_origin(request.headers)
                self.door.check_token(request.headers)
                return await run(request)
            except ProtocolError as e:
                self.metrics.count("refusals_total", code=e.code)
                headers = {"Retry-After": "5"} if e.status == 503 else {}
                headers |= {"WWW-Authenticate": "Bearer"} if e.status == 401 else {}
                return JSONResponse({"error": e.json()}, e.status, headers)
            except ClientDisconnect:
                return Response(status_code=499)

        return guarded

    async def health(self, _: Request) -> Response:
        ok = self.pool.healthy
        return JSONResponse({"status": "ok" if ok else "a worker is missing", "version": __version__,
                             "protocol": VERSION, "streams": self.pool.taken, "max_streams": self.pool.streams},
                            200 if ok else 503)  # fmt: skip

    async def metrics_text(self, _: Request) -> Response:
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    # ---- voices ---------------------------------------------------------------------------------------

    async def list_voices(self, _: Request) -> Response:
        lim = self.limits
        return JSONResponse({"voices": self.voices.list(), "max_delay": self.pool.desk.about["max_delay"],
                             "upload": {"bytes": lim.upload_bytes, "seconds": lim.upload_seconds},
                             "stream_seconds": lim.stream, "late": lim.late})  # fmt: skip

    async def enrol(self, request: Request) -> Response:
        name = request.query_params.get("name", "").strip()[:60] or "My voice"
        consent = request.query_params.get("consent", "").strip()[:500]
        if not consent:
            raise ProtocolError("no-consent", "a voice is a person's: say with ?consent=... who agreed to its use")
        async with self._job(), self._upload(request) as path:
            about, data = await self.pool.desk.ask("enrol", path=path, name=name, consent=consent,
                                                   seconds=self.limits.upload_seconds)  # fmt: skip
        self.metrics.count("enrolments_total")
        return JSONResponse({"id": self.voices.add(about, data), **about}, 201)

    async def voice(self, request: Request) -> Response:
        """What there is to say of a voice; with `?file`, an enrolled one as a .voice file."""
        id = request.path_params["id"]
        about, data = self.voices.find(id)
        if "file" not in request.query_params:
            return JSONResponse({"id": id, **about})
        if not data:
            raise ProtocolError("forbidden", f"{id!r} is a voice of the model and has no file of its own")
        return Response(data, media_type="application/octet-stream",
                        headers={"Content-Disposition": 'attachment; filename="enrolled.voice"'})  # fmt: skip

    async def forget(self, request: Request) -> Response:
        self.voices.remove(request.path_params["id"])
        return Response(status_code=204)

    async def preview(self, request: Request) -> Response:
        id = request.path_params["id"]
        async with self._job():
            reply, data = await self.pool.desk.ask("preview", self.voices.find(id)[1], voice=id)
        y = np.frombuffer(data, np.float32)
        return Response(wav_header(reply["rate"], len(y)) + encode(y, S16LE), media_type="audio/wav")

    # ---- files ----------------------------------------------------------------------------------------

    async def convert(self, request: Request) -> Response:
        """A recording in, a WAV of the same length out, sent as it is made: its `Content-Length` is known."""
        query, id = request.query_params, request.query_params.get("voice", "")
        if not id:
            raise ProtocolError("bad-request", "say with ?voice=... into which voice to convert")
        settings = {k: _number(k, query[k], kind) if k in query else value for k, (kind, value) in NUMBERS.items()}
        _, data = self.voices.find(id)
        name = query.get("name", "the recording")[:120]
        stack = contextlib.AsyncExitStack()
        try:
            await stack.enter_async_context(self._job())
            path = await stack.enter_async_context(self._upload(request))
            place = await stack.enter_async_context(self.pool.job())
            head, _ = await place.ask("file", data, path=path, name=name, voice=id,
                                      seconds=self.limits.upload_seconds, **settings)  # fmt: skip
        except BaseException:
            await stack.aclose()
            raise
        size = 44 + 2 * head["samples"]
        return Download(self._blocks(place, head), stack, self.limits.stall, media_type="audio/wav", headers={
            "Content-Length": str(size), "Content-Disposition": 'attachment; filename="converted.wav"'})  # fmt: skip

    async def _blocks(self, place: Place, head: dict[str, Any]) -> AsyncIterator[bytes]:
        yield wav_header(head["rate"], head["samples"])
        while True:
            reply, data = await place.ask("next")
            if reply["last"]:
                break
            yield encode(np.frombuffer(data, np.float32), S16LE)
        self.metrics.count("conversions_total")

    @contextlib.asynccontextmanager
    async def _job(self) -> AsyncIterator[None]:
        if self.jobs >= self.limits.jobs:
            raise ProtocolError("busy", f"this server works on {self.limits.jobs} recordings at a time, and has as "
                                "many; try again in a moment")  # fmt: skip
        self.jobs += 1
        try:
            yield
        finally:
            self.jobs -= 1

    @contextlib.asynccontextmanager
    async def _upload(self, request: Request) -> AsyncIterator[str]:
        """The body in a temporary file, no longer than allowed, while the `with` block lasts."""
        most = self.limits.upload_bytes
        too_big = ProtocolError("too-big", f"this server takes recordings of up to {most / 2**20:.3g} MB; cut it, or "
                                "use `vivavoce convert`")  # fmt: skip
        said = request.headers.get("content-length", "")
        if said.isdecimal() and int(said) > most:
            raise too_big
        with tempfile.NamedTemporaryFile(prefix="vivavoce-", suffix=".upload") as file:
            stream, n = request.stream(), 0
            while True:
                try:
                    piece = await asyncio.wait_for(anext(stream, None), self.limits.stall)
                except asyncio.TimeoutError:
                    raise ProtocolError("stalled", f"nothing came for {self.limits.stall:g} s") from None
                if piece is None:
                    break
                n += len(piece)
                if n > most:
                    raise too_big
                file.write(piece)
            if not n:
                raise ProtocolError("empty", "no recording came: send its bytes as the request's body")
            file.flush()
            yield file.name

    # ---- live -----------------------------------------------------------------------------------------

    async def stream(self, socket: WebSocket) -> None:
        """`/stream`: see docs/serve.md."""
        try:
            self.door.check_origin(socket.headers)
            if self.sockets >= self.limits.sockets:
                raise ProtocolError("full", "too many connections; try again later")
        except ProtocolError as e:
            self.metrics.count("refusals_total", code=e.code)
            await socket.send_denial_response(JSONResponse({"error": e.json()}, e.status))
            return
        await socket.accept()
        self.sockets += 1
        try:
            await self._converse(socket)
        except ProtocolError as e:
            self.metrics.count("refusals_total", code=e.code)
            await refuse(socket, e)
        except WebSocketDisconnect:
            pass
        finally:
            self.sockets -= 1

    async def _converse(self, socket: WebSocket) -> None:
        try:
            first = await asyncio.wait_for(socket.receive(), HELLO_SECONDS)
        except asyncio.TimeoutError:
            raise ProtocolError("no-hello", f"no hello came within {HELLO_SECONDS:g} s") from None
        if first["type"] == "websocket.disconnect":
            return
        if first.get("text") is None:
            raise ProtocolError("no-hello", "the first message must be a hello in JSON, not audio")
        hello = Hello.of(message(first["text"]))
        self.door.check_token(socket.headers, hello.token)
        about, data = self.voices.find(hello.voice)
        async with self.pool.place() as place:
            reply, _ = await place.ask("open", data, voice=hello.voice, rate=hello.rate, chunk=hello.chunk / 1000.0,
                                       delay=hello.delay, seed=hello.seed, transpose=hello.transpose)  # fmt: skip
            self.metrics.count("streams_total")
            await socket.send_json({
                "type": "ready", "version": VERSION, "voice": hello.voice, "name": about["name"], "rate": hello.rate,
                "channels": 1, "format": hello.format, "latency": reply["latency"], "late": self.limits.late,
                "seconds": self.limits.stream})  # fmt: skip
            await Session(socket, hello, place, self.voices, self.limits, self.metrics).run()
        await socket.close()


def _number(key: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ProtocolError("bad-request", f"{key} {text[:40]!r}: expected a number") from None
