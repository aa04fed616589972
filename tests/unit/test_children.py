"""Processes of the local stack: watched, restarted, stopped, and never left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tollgate.local.children import LAUNCHER, PORTS, Child, NotStarted, free_port, kill_all, listening, taken

SERVER = """
import http.server, sys
http.server.test(http.server.BaseHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
"""
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    if sys.platform != "linux":
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it was reaped in between
        return False
    return stat.rpartition(") ")[2][0] != "Z"


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - processes set no events
            await asyncio.sleep(0.01)


async def at_once() -> None:
    """Ready as soon as it is asked."""


def sleeper(**options: object) -> Child:
    return Child("sleeper", SLEEP, os.environ, ready=at_once, **options)  # type: ignore[arg-type]  # any options


def test_ports_are_below_the_ephemeral_ones_and_free() -> None:
    port = free_port()
    assert port in PORTS
    assert not taken(port)


def test_a_child_that_dies_is_restarted_on_its_port() -> None:
    async def run() -> None:
        port = free_port()
        command = [sys.executable, "-c", SERVER, str(port)]
        child = Child("server", command, os.environ, ready=lambda: listening(port))
        await child.start()
        first = child.pid
        assert child.serving.is_set()
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.pid != first and child.serving.is_set())
        await listening(port)
        await child.stop(60)
        assert not alive(child.pid)
        assert not alive(first)

    asyncio.run(run())


def test_a_child_that_cannot_be_replaced_is_reported() -> None:
    async def run() -> None:
        dead = asyncio.Event()
        child = sleeper(on_death=dead.set)
        await child.start()
        os.kill(child.pid, signal.SIGKILL)
        await asyncio.wait_for(dead.wait(), 60)
        await child.stop(1)

    asyncio.run(run())


def test_a_child_that_ends_before_it_is_ready_is_an_error() -> None:
    async def run() -> None:
        async def never() -> None:
            await asyncio.Event().wait()

        child = Child("broken", [sys.executable, "-c", "raise SystemExit(3)"], os.environ, ready=never)
        with pytest.raises(NotStarted, match="broken ended with exit code 3"):
            await child.start()
        await child.stop(1)

    asyncio.run(run())


def test_a_child_that_ignores_sigterm_is_killed() -> None:
    async def run() -> None:
        seen: list[bytes] = []
        code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
        child = Child("deaf", [sys.executable, "-c", code], os.environ, ready=at_once, on_output=seen.append)
        await child.start()
        await until(lambda: bool(seen))
        await child.stop(0.1)
        assert not alive(child.pid)

    asyncio.run(run())


def test_output_is_handed_over_to_the_last_byte() -> None:
    async def run() -> None:
        seen: list[bytes] = []
        code = textwrap.dedent("""
            import signal, sys, time
            def end(*_):
                sys.stdout.write("x" * 200_000 + "end")
                sys.stdout.flush()
                raise SystemExit(0)
            signal.signal(15, end)
            print("up", flush=True)
            time.sleep(60)
        """)
        child = Child("talker", [sys.executable, "-c", code], os.environ, ready=at_once, on_output=seen.append)
        await child.start()
        await until(lambda: b"".join(seen) == b"up\n")  # an unbuffered interpreter writes the line in two pieces
        await child.stop(60)
        assert b"".join(seen) == b"up\n" + b"x" * 200_000 + b"end\n"

    asyncio.run(run())


def test_kill_all_leaves_nothing() -> None:
    async def run() -> None:
        child = sleeper(on_death=lambda: None)
        await child.start()
        kill_all()
        await until(lambda: not alive(child.pid))
        await child.stop(1)

    asyncio.run(run())


def test_a_child_dies_with_its_parent() -> None:
    """Even if that is killed with SIGKILL and can do nothing about it. (Linux tells a process so.)"""
    code = textwrap.dedent(f"""
        import os, subprocess, sys, time
        command = [sys.executable, "-I", "-S", {LAUNCHER!r}, str(os.getpid()), *{SLEEP!r}]
        print(subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL).pid, flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.3)  # until the launcher has asked to be told
        assert alive(pid)
        parent.kill()
    asyncio.run(until(lambda: not alive(pid) or sys.platform != "linux"))


def test_a_launcher_without_its_parent_does_not_start() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", LAUNCHER, "1", sys.executable, "-c", "print('started')"], capture_output=True
    )
    assert (done.returncode, done.stdout) == (1, b"") or sys.platform != "linux"
