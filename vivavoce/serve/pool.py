"""Worker processes as the event loop sees them: ask, await the reply; places for streams; the dead are replaced.

Why processes: a step of the model is hundreds of small operations, so a thread that converts holds the GIL for half
of its time, and everything that shares it waits: the event loop, and every other stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from vivavoce.core.cores import cores
from vivavoce.core.errors import VivavoceError
from vivavoce.serve.errors import ProtocolError
from vivavoce.serve.metrics import Metrics
from vivavoce.serve.worker import LENGTHS, Header, Reply, pack

START_SECONDS = 180.0  # a worker imports torch and loads the model
HEADROOM = 0.7  # of a core's time is given to streams; the rest is for what else the machine does
MOST_WORKERS = 8  # without being asked: each takes about 370 MB
NICE = 10  # of the worker for files and enrolment: live streams go first
CODE = "import sys; sys.path[:] = {path!r}; from vivavoce.serve.worker import main; main()"


class WorkerLost(ProtocolError):
    """The process that held a stream or a file has ended."""

    def __init__(self) -> None:
        super().__init__("worker-lost", "the process that converted this has ended unexpectedly; connect again")


class Worker:
    """One worker process. Requests are answered in the order in which they were asked."""

    def __init__(self, model: str | None, nice: int = 0) -> None:
        self.model, self.nice = model, nice
        self.about: Header = {}
        self.factor = 1.0  # real-time factor of one stream
        self.streams = 0  # that live here
        self.alive = False
        self._queue: asyncio.Queue[tuple[bytes, asyncio.Future[Reply]]] = asyncio.Queue()

    async def start(self) -> None:
        """Start the process and wait until its model is loaded.

        Raises:
            VivavoceError: the model cannot be loaded.
        """
        code = CODE.format(path=[p or os.getcwd() for p in sys.path])
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads of one frame only wait for one another
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, self.model or "", str(self.nice), env=environment,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)  # fmt: skip
        try:
            self.about, _ = await asyncio.wait_for(self._read(), START_SECONDS)
        except (asyncio.TimeoutError, asyncio.IncompleteReadError):
            await self.stop()
            raise VivavoceError("a worker process ended, or hung, before its model was loaded; see above") from None
        if "error" in self.about:
            await self.stop()
            raise VivavoceError(self.about["error"])
        self.alive = True
        self._task = asyncio.create_task(self._run())

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(self, op: str, payload: bytes = b"", **header: Any) -> Reply:
        """A request and its reply.

        Raises:
            WorkerLost: the process has ended.
            ProtocolError: what the worker could not do, in its words.
        """
        reply, data = await self.tell(op, payload, **header)
        if "error" in reply:
            bug = reply.get("bug", False)
            raise ProtocolError("internal" if bug else "refused", reply["error"])
        return reply, data

    def tell(self, op: str, payload: bytes = b"", **header: Any) -> asyncio.Future[Reply]:
        """A request whose reply, a future, may be left alone. Raises WorkerLost."""
        if not self.alive:
            raise WorkerLost()
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((pack({"op": op, **header}, payload), future))
        return future

    async def _run(self) -> None:
        """Hand over one request after the other. Whoever gave up waiting is ignored: its reply must still be read."""
        assert self._process.stdin is not None
        try:
            while True:
                request, future = await self._queue.get()
                self._asked = future
                self._process.stdin.write(request)
                await self._process.stdin.drain()
                reply = await self._read()
                if not future.done():
                    future.set_result(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.alive = False
            waiting = [self._asked, *(self._queue.get_nowait()[1] for _ in range(self._queue.qsize()))]
            for future in waiting:
                if not future.done():
                    future.set_exception(WorkerLost())

    async def _read(self) -> Reply:
        assert self._process.stdout is not None
        n, m = LENGTHS.unpack(await self._process.stdout.readexactly(LENGTHS.size))
        return json.loads(await self._process.stdout.readexactly(n)), await self._process.stdout.readexactly(m)

    async def lost(self) -> None:
        """Wait until the process has ended."""
        await self._process.wait()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def stop(self) -> None:
        """End the process: politely first."""
        assert self._process.stdin is not None
        self.alive = False
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 2.0)
        except asyncio.TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if hasattr(self, "_task"):
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


@dataclass
class Place:
    """Where a stream lives: a worker, and its number there."""

    worker: Worker
    number: int

    async def ask(self, op: str, payload: bytes = b"", **header: Any) -> Reply:
        return await self.worker.ask(op, payload, stream=self.number, **header)


class Pool:
    """The workers of a server.

    Args:
        model: folder or hub id; None for the embedded one.
        workers: for live streams; None for one a core, up to `MOST_WORKERS`.
        streams: how many live streams are taken; None for what was measured.
    """

    def __init__(self, model: str | None, workers: int | None, streams: int | None, metrics: Metrics) -> None:
        n = workers or min(cores(), MOST_WORKERS)
        self.live = [Worker(model) for _ in range(min(n, streams or n))]
        self.desk = Worker(model, NICE)  # for files and enrolment
        self.streams, self.metrics = streams or 0, metrics
        self._numbers = itertools.count()
        self._keepers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Pool:
        everyone = [*self.live, self.desk]
        try:
            await _all(*(w.start() for w in everyone))
            replies = await _all(*(w.ask("measure") for w in self.live))  # at once: they share the machine
        except BaseException:
            await asyncio.gather(*(w.stop() for w in everyone if hasattr(w, "_process")))
            raise
        for worker, (reply, _) in zip(self.live, replies, strict=True):
            worker.factor = reply["factor"]
        self.streams = self.streams or sum(max(1, int(HEADROOM / w.factor)) for w in self.live)
        self._keepers = [asyncio.create_task(self._keep(w)) for w in everyone]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(w.stop() for w in (*self.live, self.desk)))

    async def _keep(self, worker: Worker) -> None:
        """Replace a process that ended, at most one a second."""
        while True:
            await worker.lost()
            self.metrics.count("worker_restarts_total")
            print("vivavoce: a worker process ended unexpectedly; starting another", file=sys.stderr)
            while True:
                await asyncio.sleep(1.0)
                with contextlib.suppress(VivavoceError, OSError):
                    await worker.start()
                    break

    @property
    def factor(self) -> float:
        """Real-time factor of one stream, measured at start with all workers busy; the slowest."""
        return max(w.factor for w in self.live)

    @property
    def taken(self) -> int:
        """Live streams now."""
        return sum(w.streams for w in self.live)

    @property
    def healthy(self) -> bool:
        """Whether every worker is there."""
        return all(w.alive for w in (*self.live, self.desk))

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        """A place for a live stream, on the worker with the fewest, while the `with` block lasts.

        Raises:
            ProtocolError: `full`.
        """
        there = [w for w in self.live if w.alive]
        if self.taken >= self.streams or not there:
            raise ProtocolError("full", f"this server converts {self.streams} stream{'s' * (self.streams != 1)} at a "
                                "time, and all are taken; try again later")  # fmt: skip
        worker = min(there, key=lambda w: w.streams)
        async with self._at(worker) as place:
            worker.streams += 1
            try:
                yield place
            finally:
                worker.streams -= 1

    @contextlib.asynccontextmanager
    async def job(self) -> AsyncIterator[Place]:
        """A number on the desk, for a file, while the `with` block lasts."""
        async with self._at(self.desk) as place:
            yield place

    @contextlib.asynccontextmanager
    async def _at(self, worker: Worker) -> AsyncIterator[Place]:
        place = Place(worker, next(self._numbers))
        try:
            yield place
        finally:
            with contextlib.suppress(WorkerLost):  # not waited for: a worker that hangs must hold up nobody
                worker.tell("close", stream=place.number).add_done_callback(lambda f: f.exception())


async def _all(*coroutines: Any) -> list[Any]:
    """Like gather, but waits for all before the first error is raised."""
    done = await asyncio.gather(*coroutines, return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            raise result
    return done
