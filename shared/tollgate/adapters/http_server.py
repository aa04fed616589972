"""An ASGI 3 server for HTTP/1.1: listening, lifespan, signals, and an orderly end.

It exists because the server was a fifth of each request and a quarter of a cold start
(docs/adr/0012-own-http-server.md). It knows nothing of the application that it serves. TLS, HTTP/2 and compression
are the load balancer's; WebSockets nobody asks for.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from tollgate.adapters.http_server_connection import ServerConnection, ServerTimeouts
from tollgate.adapters.http_server_cycle import Application, Cycle, Message

__all__ = ["Application", "HttpServer", "ServerTimeouts", "listen", "serve"]

BACKLOG = 2048
UNSENT = 128 * 1024
"""Bytes of an answer that the kernel takes beyond what is under way to the client."""
YOUNG = 50_000
"""Objects of containers more than were freed since that set off a collection. Requests leave no cycles behind, so all
that the default (2,000) found was what 64 requests in flight still needed, for 2 % of the CPU time. These are 5 MB."""
MAX_CONNECTIONS = 4096
"""Beyond them, or beyond half of the files that the process may open (a request may need one to its upstream),
connections are closed as they come."""
DRAIN_S = 300.0
"""How long requests in flight may go on after the first signal."""
END_S = 5.0
"""How long requests may take to end once they are cancelled; and the application, to shut down in a hurry."""
FAILED, NOT_STARTED = 1, 3
"""Exit codes: nothing could listen; the application did not start."""

if sys.version_info >= (3, 12):

    def _eager(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.Task(coroutine, loop=loop, eager_start=True)

else:

    def _eager(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return loop.create_task(coroutine)


class HttpServer:
    """Serves an application on a listening socket. Belongs to one event loop; lifespan is its caller's affair."""

    def __init__(
        self,
        application: Application,
        *,
        max_connections: int = MAX_CONNECTIONS,
        timeouts: ServerTimeouts | None = None,
    ) -> None:
        self.timeouts = timeouts or ServerTimeouts()
        self.stopping = False
        self._application = application
        self._max_connections = max_connections
        self._connections: set[ServerConnection] = set()
        self._running: dict[Cycle, asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop
        self._quiet: asyncio.Event | None = None

    async def start(self, listener: socket.socket) -> None:
        """Accept connections from now on; the socket is the server's."""
        # connections inherit both. The second: what waits for a slow client is to wait here, where its progress
        # is seen, and not in some megabytes of the kernel's
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(AttributeError, OSError):  # not every system has it
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        loop = self._loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ServerConnection(loop, self), sock=listener, backlog=BACKLOG)

    async def stop(self, drain_s: float = DRAIN_S) -> None:
        """Stop listening, end idle connections, and let requests in flight end: for `drain_s` seconds, or until
        `hurry`; what is left then is cancelled."""
        self.stopping = True
        self._quiet = asyncio.Event()
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.shut_down()
        await self._silence(drain_s)
        for task in list(self._running.values()):
            task.cancel()
        for connection in list(self._connections):
            connection.abort()
        self._quiet.clear()
        await self._silence(END_S)

    def hurry(self) -> None:
        """Wait no longer for requests in flight."""
        if self._quiet is not None:
            self._quiet.set()

    async def _silence(self, within_s: float) -> None:
        if self._quiet is None or not (self._connections or self._running):
            return
        try:
            async with asyncio.timeout(within_s):
                await self._quiet.wait()
        except TimeoutError:
            return

    def _look_if_quiet(self) -> None:
        if self._quiet is not None and not self._connections and not self._running:
            self._quiet.set()

    # Connections report to these

    def opened(self, connection: ServerConnection) -> bool:
        if self.stopping or len(self._connections) >= self._max_connections:
            return False
        self._connections.add(connection)
        return True

    def lost(self, connection: ServerConnection) -> None:
        self._connections.discard(connection)
        self._look_if_quiet()

    def launch(self, cycle: Cycle, *, at_once: bool) -> None:
        running = cycle.run(self._application, self._finished)
        task = _eager(self._loop, running) if at_once else self._loop.create_task(running)
        if not task.done():
            self._running[cycle] = task  # the loop itself holds tasks weakly

    def _finished(self, cycle: Cycle) -> None:
        self._running.pop(cycle, None)
        self._look_if_quiet()


class Lifespan:
    """ASGI's lifespan: tells the application of the server's start and end, if it wants to know."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._told: asyncio.Queue[Message] = asyncio.Queue()
        self._answer: asyncio.Future[Message] | None = None
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> str | None:
        """What prevents the start, in the application's words; None: nothing."""
        answer = await self._tell("lifespan.startup")
        if answer is not None and answer["type"] == "lifespan.startup.failed":
            return str(answer.get("message") or "the application did not say why")
        return None

    async def shutdown(self) -> None:
        await self._tell("lifespan.shutdown")

    async def _tell(self, kind: str) -> Message | None:
        """The application's answer; None if it has no lifespan."""
        if self._task is None:
            scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
            self._task = asyncio.ensure_future(self._run(scope))
        if self._task.done():
            return None
        self._answer = asyncio.get_running_loop().create_future()
        self._told.put_nowait({"type": kind})
        await _first_of(self._task, self._answer)
        return self._answer.result() if self._answer.done() else None

    async def _run(self, scope: Message) -> None:
        try:
            await self._application(scope, self._told.get, self._send)
        except Exception:  # noqa: BLE001 - by the specification: it has no lifespan, and is served all the same
            return

    async def _send(self, message: Message) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(message)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listener.setblocking(False)
    return listener


def serve(
    factory: Callable[[], Application], host: str, port: int, *, workers: int = 1, drain_s: float = DRAIN_S
) -> int:
    """Serve until SIGTERM or SIGINT, and drain; a second signal ends at once. Returns the exit code.

    `factory` makes the application, in each of the `workers` processes.
    """
    try:
        listener = listen(host, port)
    except OSError as error:
        return _say(f"cannot listen on {host}:{port}: {os.strerror(error.errno) if error.errno else error}", FAILED)
    with listener:
        if workers == 1:
            return run(factory, listener, drain_s)
        from tollgate.adapters.http_server_workers import supervise

        return supervise(lambda supervisor: run(factory, listener, drain_s, supervisor), listener, workers)


def run(
    factory: Callable[[], Application], listener: socket.socket, drain_s: float, supervisor: int | None = None
) -> int:
    """Serve in this process. `supervisor`: a file descriptor that becomes readable when this worker is to end."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(factory(), listener, drain_s, supervisor))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.new_event_loop
    return new_event_loop


async def _serve(application: Application, listener: socket.socket, drain_s: float, supervisor: int | None) -> int:
    may_open, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    server = HttpServer(application, max_connections=min(MAX_CONNECTIONS, max(may_open // 2, 16)))
    signals = _Signals(server, supervisor)
    lifespan = Lifespan(application)
    starting = asyncio.ensure_future(lifespan.startup())
    await _first_of(starting, signals.first)
    if not starting.done():  # what is half started ends best by starting first
        await asyncio.wait({starting}, timeout=END_S)
    if not starting.done():
        starting.cancel()
        return signals.exit_code
    if (problem := starting.result()) is not None:
        return _say(problem, NOT_STARTED)
    if not signals.first.done():
        gc.freeze()  # what is here now stays: a full collection need not look at it again, for some 10 ms
        gc.set_threshold(YOUNG)
        gc.enable()  # a start may have gone without
        await server.start(listener)
        await signals.first
        await server.stop(drain_s)
    ending = asyncio.ensure_future(lifespan.shutdown())
    await asyncio.wait({ending}, timeout=END_S if signals.exit_code else None)
    return signals.exit_code


class _Signals:
    """The first one ends the server in order, the second one at once."""

    def __init__(self, server: HttpServer, supervisor: int | None) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[None] = loop.create_future()
        self.exit_code = 0
        self._server = server
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        if supervisor is not None:
            loop.add_reader(supervisor, self._end, loop, supervisor)

    def _signalled(self, number: int) -> None:
        if not self.first.done():
            self.first.set_result(None)
        elif self.exit_code:
            os._exit(self.exit_code)  # it does not end, whatever holds it
        else:
            self.exit_code = 128 + number
            self._server.hurry()

    def _end(self, loop: asyncio.AbstractEventLoop, supervisor: int) -> None:
        loop.remove_reader(supervisor)
        if not self.first.done():
            self.first.set_result(None)


async def _first_of(*awaited: asyncio.Future[Any]) -> None:
    await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)


def _say(message: str, exit_code: int) -> int:
    sys.stderr.write(f"tollgate: {message}\n")
    return exit_code
