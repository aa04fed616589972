"""Processes of the local stack: started, watched, restarted when they die, and stopped without leaving any."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LAUNCHER = str(Path(__file__).with_name("launcher.py"))
START_S = 30.0
"""How long a part may take to come up, in seconds, on a machine that is very busy."""
RESTART_PAUSE_S = 0.05
MAX_RESTART_PAUSE_S = 5.0
LASTED_S = 10.0
"""A process that ran this long had started well: its next restart is immediate again."""

PORTS = range(15_000, 32_000)
"""Below Linux's ephemeral ports (32768 and up): no outgoing connection can take one between choosing and listening,
or while a killed server is being restarted on it."""


class NotStarted(Exception):
    """A part of the stack did not come up; the message is one line for the user."""


def say(message: str) -> None:
    """Progress, for people; standard output is for results."""
    print(f"tollgate: {message}", file=sys.stderr, flush=True)  # noqa: T201 - a command's own output


def free_port() -> int:
    """A TCP port on loopback where nobody listens now, and that this process was not given before."""
    for _ in range(100):
        port = _chance.choice(PORTS)
        if port not in _given and not taken(port):
            _given.add(port)
            return port
    raise NotStarted(f"no free port between {PORTS.start} and {PORTS.stop} on 127.0.0.1")


_given: set[int] = set()
_chance = random.SystemRandom()
"""Nobody's seed: two processes with the same would be given the same ports."""


def taken(port: int) -> bool:
    """Whether a server could not listen on this port of loopback (port 0 is never taken)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


class Child:
    """One process, in a session of its own, so that a Ctrl-C reaches only the stack, which then ends it in order.

    With `on_output` its standard output is handed over, in pieces as they come; otherwise it is dropped. `ready` is
    asked, after each start, to return once the process serves. A process that dies is restarted, unless there is
    `on_death`, which is then called instead: for what cannot come back as it was.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        ready: Callable[[], Awaitable[None]],
        on_output: Callable[[bytes], None] | None = None,
        on_death: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self._command = [sys.executable, "-I", "-S", LAUNCHER, str(os.getpid()), *command]
        self._env = dict(env)
        self._ready = ready
        self._on_output = on_output
        self._on_death = on_death
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._stopping = False
        self.serving = asyncio.Event()
        _children.add(self)

    @property
    def pid(self) -> int:
        """The process id; 0 before the first start."""
        return self._process.pid if self._process else 0

    async def start(self) -> None:
        """Returns when it serves; from then on it is watched. Raises `NotStarted`."""
        process = await self._spawn()
        await self._until_ready(process)
        self._supervisor = asyncio.create_task(self._supervise(process))

    async def stop(self, grace_s: float) -> None:
        """Ask it to end, wait up to `grace_s` seconds, then kill it and whatever it has started. Output that it
        wrote before it ended has been handed over when this returns."""
        self._stopping = True
        if self._supervisor is not None:
            self._supervisor.cancel()
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), grace_s)
        except TimeoutError:
            say(f"{self.name} did not end within {grace_s:g} s: killed")
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if self._reader is not None:
            await self._reader

    async def _spawn(self) -> asyncio.subprocess.Process:
        piped = self._on_output is not None
        spawning = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if piped else asyncio.subprocess.DEVNULL,
                env=self._env,
                start_new_session=True,
            )
        )
        try:
            await asyncio.shield(spawning)
        finally:  # also when cancelled: `stop` must know of a process that is just being made
            process = self._process = await spawning
            if piped:
                self._reader = asyncio.create_task(self._read(process))
        return process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert self._on_output is not None
        while data := await process.stdout.read(65_536):
            self._on_output(data)
        self._on_output(b"\n")  # half a line of a process that was killed must not join its successor's first

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        """Wait for `ready`, but no longer than the process lives."""
        waiting = asyncio.ensure_future(self._ready())
        ended = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait({waiting, ended}, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                how = _how(process.returncode) if ended.done() else f"did not come up within {START_S:g} s"
                raise NotStarted(f"{self.name} {how}")
            waiting.result()
        finally:
            waiting.cancel()
            ended.cancel()
        self.serving.set()

    async def _supervise(self, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        pause_s = RESTART_PAUSE_S
        while True:
            started = loop.time()
            code = await process.wait()
            self.serving.clear()
            if self._stopping:
                return
            if self._on_death is not None:
                say(f"{self.name} {_how(code)}")
                self._on_death()
                return
            if loop.time() - started > LASTED_S:
                pause_s = RESTART_PAUSE_S
            say(f"{self.name} {_how(code)}: restarting it")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, MAX_RESTART_PAUSE_S)
            process = await self._spawn()
            try:
                await self._until_ready(process)
            except NotStarted as error:
                say(str(error))
                with suppress(ProcessLookupError):
                    process.kill()
            else:
                say(f"{self.name} is back (process {process.pid})")


_children: weakref.WeakSet[Child] = weakref.WeakSet()


def kill_all() -> None:
    """Leave no process, at once and in no order."""
    for child in list(_children):
        if child.pid:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


async def listening(port: int) -> None:
    """Returns when somebody accepts connections on this port of loopback."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            return
