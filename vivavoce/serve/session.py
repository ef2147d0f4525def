"""One live stream: what comes in is queued, converted in order and sent back; floods and nonsense are not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import MutableMapping
from typing import Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from vivavoce.serve.errors import ProtocolError
from vivavoce.serve.limits import Limits
from vivavoce.serve.metrics import Metrics
from vivavoce.serve.pool import Place
from vivavoce.serve.protocol import FORMATS, LAST, LATE, PASSED, Frame, Hello, message
from vivavoce.serve.voices import Voices

MOST_AT_ONCE = 0.1  # seconds given to the worker at a time: others wait behind it
LONGEST_HOLD = 16.0  # seconds of pass-through before a stream that is late again and again is tried once more


class Session:
    """A stream from `hello` to its end.

    Args:
        place: where its changer is; `hello` was opened there.
        latency: what the worker said of it, in ms.
    """

    def __init__(self, socket: WebSocket, hello: Hello, place: Place, voices: Voices, limits: Limits,
                 metrics: Metrics) -> None:  # fmt: skip
        self.socket, self.hello, self.place = socket, hello, place
        self.voices, self.limits, self.metrics = voices, limits, metrics
        self._inbox: deque[np.ndarray | dict[str, Any]] = deque()
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._backlog = 0  # samples in the inbox
        self.received = self.sent = self.passed = 0  # samples
        self._frames_in = self._frames_out = 0
        self._began = self._heard = time.monotonic()  # start; when audio last came
        self._credit, self._credited = limits.burst, self._began
        self._held = 0.0  # seconds for which the client was not read from
        self._bypass = self._late = False
        self._late_times, self._punctual, self._hold = 0, 0.0, limits.recover_after
        self._since_late = 0.0  # seconds of audio since the last pass-through for lateness ended
        self._told: set[str] = set()  # notices that were given
        self._compute = self._computed = 0.0  # seconds of work, for seconds of audio

    async def run(self) -> None:
        """Until `bye`, an error or the end of the connection. Raises ProtocolError."""
        tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._convert())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if tasks[0] in done:  # `bye`: what is queued is still to be converted
                await tasks[1]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # ---- in -------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            got = await self._next()
            if got.get("bytes") is not None:
                await self._audio(Frame.unpack(got["bytes"]))
            elif await self._control(message(got["text"])):
                return

    async def _next(self) -> MutableMapping[str, Any]:
        """The next WebSocket message; not for ever."""
        now, lim = time.monotonic(), self.limits
        over, idle = self._began + lim.stream - now, self._heard + lim.idle - now
        try:
            got = await asyncio.wait_for(self.socket.receive(), max(0.0, min(over, idle)))
        except asyncio.TimeoutError:
            if over <= idle:
                raise self._over() from None
            raise ProtocolError("idle", f"no audio came for {lim.idle:g} s") from None
        if got["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(got.get("code", 1005))
        if time.monotonic() > self._began + lim.stream:
            raise self._over()
        return got

    def _over(self) -> ProtocolError:
        return ProtocolError("time-limit", f"a stream may last {self.limits.stream / 60:g} minutes here; connect again "
                             "to go on")  # fmt: skip

    async def _audio(self, frame: Frame) -> None:
        h = self.hello
        if frame.sequence != self._frames_in & 0xFFFFFFFF:
            raise ProtocolError("bad-sequence", f"frame {frame.sequence} came where {self._frames_in} was due")
        self._frames_in += 1
        for name, is_, was in (("rate", frame.rate, h.rate), ("channels", frame.samples.shape[1], h.channels),
                               ("format", frame.format, FORMATS[h.format])):  # fmt: skip
            if is_ != was:
                raise ProtocolError(f"bad-{name}", f"frame {frame.sequence} says {name} {is_}, hello said {was}; open "
                                    "another stream to change it")  # fmt: skip
        n, seconds, now = len(frame.samples), len(frame.samples) / h.rate, time.monotonic()
        self._credit = min(self.limits.burst, self._credit + now - self._credited) - seconds
        self._credited = self._heard = now
        self.received += n
        if self._credit < 0:
            raise ProtocolError("too-fast", f"{self.received / h.rate:.1f} s of audio came in "
                                f"{now - self._began:.1f} s; a live stream sends in real time. Is {h.rate} Hz right? "
                                "For files there is POST /convert")  # fmt: skip
        await self._check_slow(now)
        if not frame.finite:
            await self._notice("not-finite", f"frame {frame.sequence} held NaN or infinite samples; such frames are "
                               "taken as silence")  # fmt: skip
        self._put(np.ascontiguousarray(frame.samples.mean(axis=1, dtype=np.float32)))
        self._backlog += n
        if self._backlog > self.limits.backlog * h.rate:
            self._room.clear()
            await self._room.wait()  # not read from meanwhile: TCP tells the client
            self._heard = time.monotonic()  # it was we who did not listen
            self._held += self._heard - now

    async def _check_slow(self, now: float) -> None:
        elapsed = now - self._began - self._held
        if elapsed > 10.0 and self.received < 0.7 * elapsed * self.hello.rate:
            await self._notice("too-slow", f"{self.received / self.hello.rate:.1f} s of audio came in {elapsed:.1f} s; "
                               f"is {self.hello.rate} Hz right?")  # fmt: skip

    async def _control(self, m: dict[str, Any]) -> bool:
        """Act on a control message, or put it in order with the audio; whether it was the last."""
        kind = m["type"]
        if kind == "ping":
            await self._tell({"type": "pong", "t": m.get("t")})
        elif kind == "stats":
            await self._tell({"type": "stats", **self.stats()})
        elif kind == "bypass":
            if not isinstance(m.get("on"), bool):
                raise ProtocolError("bad-message", "bypass needs \"on\": true or false")
            self._put(m)
        elif kind == "voice":
            if not isinstance(m.get("voice"), str):
                raise ProtocolError("bad-message", "voice needs \"voice\": a name or id")
            self._put(m)
        elif kind == "bye":
            self._put(m)
            return True
        else:
            raise ProtocolError("bad-message", f"unknown type {kind[:40]!r}; a stream takes voice, bypass, ping, stats "
                                "and bye")  # fmt: skip
        if len(self._inbox) > 1000:
            raise ProtocolError("flood", "too many messages at once")
        return False

    def _put(self, item: np.ndarray | dict[str, Any]) -> None:
        self._inbox.append(item)
        self._news.set()

    # ---- through --------------------------------------------------------------------------------------

    async def _convert(self) -> None:
        while True:
            while not self._inbox:
                self._news.clear()
                await self._news.wait()
            if isinstance(self._inbox[0], np.ndarray):
                x = self._take()
                await self._keep_time(len(x) / self.hello.rate)
                await self._push(x)
                continue
            m = self._inbox.popleft()
            assert isinstance(m, dict)
            if m["type"] == "bye":
                await self._push(np.zeros(0, np.float32), last=True)
                await self._tell({"type": "bye", **self.stats()})
                return
            if m["type"] == "bypass":
                self._bypass = m["on"]
                await self._tell({"type": "bypass", "on": m["on"], "at": self.sent})
            else:
                await self._swap(m["voice"])

    def _take(self) -> np.ndarray:
        """Audio from the head of the inbox: whole frames, up to a tenth of a second, or one frame or its part."""
        most, pieces, n = round(MOST_AT_ONCE * self.hello.rate), [], 0
        while self._inbox and n < most and isinstance(piece := self._inbox[0], np.ndarray):
            if n + len(piece) > most:
                self._inbox[0] = piece[most - n :]
                piece = piece[: most - n]
            else:
                self._inbox.popleft()
            pieces.append(piece)
            n += len(piece)
        self._backlog -= n
        if self._backlog <= self.limits.backlog * self.hello.rate:
            self._room.set()
        return np.concatenate(pieces)

    async def _swap(self, id: str) -> None:
        try:
            about, data = self.voices.find(id)
            await self.place.ask("swap", data, voice=id)
        except ProtocolError as e:
            if e.code not in ("unknown-voice", "refused"):
                raise
            await self._tell({"type": "notice", "code": e.code, "message": f"{e}; the voice stays as it was"})
            return
        await self._tell({"type": "voice", "voice": id, "name": about["name"], "at": self.sent})

    async def _keep_time(self, seconds: float) -> None:
        """Decide whether the next `seconds` are converted or, because the stream is behind, passed through."""
        if self.limits.late == "wait":
            return
        behind = self._backlog / self.hello.rate
        self._since_late += seconds
        if not self._late and behind > self.limits.late_after:
            again = self._late_times and self._since_late < 10 * self._hold
            self._hold = min(LONGEST_HOLD, 2 * self._hold) if again else self.limits.recover_after
            self._late, self._punctual = True, 0.0
            self._late_times += 1
            self.metrics.count("late_total")
            await self._tell({"type": "late", "on": True, "behind_ms": round(1000 * behind), "at": self.sent,
                              "message": "this server cannot keep up; the source is passed through, unconverted, until "
                              "it has caught up"})  # fmt: skip
        elif self._late:
            self._punctual = self._punctual + seconds if behind < 0.25 * self.limits.late_after else 0.0
            if self._punctual >= self._hold:
                self._late, self._since_late = False, 0.0
                await self._tell({"type": "late", "on": False, "at": self.sent, "message": "converted again"})

    async def _push(self, x: np.ndarray, last: bool = False) -> None:
        """Through the worker and out."""
        rate = self.hello.rate
        reply, data = await self.place.ask("push", x.tobytes(), bypass=self._bypass, pause=self._late, last=last)
        y = np.frombuffer(data, np.float32)
        if not self._late and len(x):
            self.metrics.chunk(reply["seconds"] * rate / len(x))
            self._compute, self._computed = self._compute + reply["seconds"], self._computed + len(x) / rate
        self.metrics.count("input_seconds_total", len(x) / rate)
        flags = PASSED * reply["passed"] | LATE * (reply["passed"] and self._late)
        if reply["passed"]:
            self.passed += len(y)
            self.metrics.count("passed_seconds_total", len(y) / rate, reason="late" if self._late else "bypass")
        for at in range(0, max(len(y), last), rate):  # a frame holds a second at most
            piece = y[at : at + rate]
            end = LAST * (last and at + rate >= len(y))
            self.sent += len(piece)
            await self._send(Frame(piece, self._frames_out, rate, FORMATS[self.hello.format], flags | end).pack())
            self._frames_out += 1

    # ---- out ------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Where the stream stands; samples, ms, and the real-time factor of its conversion."""
        ms = 1000.0 / self.hello.rate
        return {"received": self.received, "sent": self.sent, "passed": self.passed, "late": self._late,
                "late_times": self._late_times, "backlog_ms": round(self._backlog * ms, 1),
                "seconds": round(time.monotonic() - self._began, 3),
                "factor": round(self._compute / self._computed, 4) if self._computed else None}  # fmt: skip

    async def _notice(self, code: str, text: str) -> None:
        """Say once a stream what is odd, but bearable."""
        if code not in self._told:
            self._told.add(code)
            await self._tell({"type": "notice", "code": code, "message": text})

    async def _tell(self, m: dict[str, Any]) -> None:
        await self._within(self.socket.send_json(m))

    async def _send(self, data: bytes) -> None:
        await self._within(self.socket.send_bytes(data))

    async def _within(self, sending: Any) -> None:
        """Wait for a slow reader, but not for ever; what it has not read lies in the socket's buffer."""
        try:
            await asyncio.wait_for(sending, self.limits.stall)
        except asyncio.TimeoutError:
            raise ProtocolError("stalled", f"nothing was read for {self.limits.stall:g} s") from None
        except (RuntimeError, OSError):  # closed meanwhile
            raise WebSocketDisconnect(1006) from None


async def refuse(socket: WebSocket, error: ProtocolError) -> None:
    """Say why, and close. A peer that does not read is not waited for."""
    with contextlib.suppress(RuntimeError, OSError, WebSocketDisconnect, asyncio.TimeoutError):
        await asyncio.wait_for(socket.send_json(error.json()), 1.0)
        await asyncio.wait_for(socket.close(error.close, str(error).encode()[:120].decode(errors="ignore")), 1.0)
