"""The HTTP server as a process: exit codes, signals, workers that die, and another ASGI server in its place."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.functional.stack import ROOT
from tests.functional.test_dev_stack import alive, descendants
from tests.waiting import wait
from tollgate.local.children import free_port

APPLICATION = """
import asyncio, os, sys
from tollgate.adapters.http_server import serve

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            phase = (await receive())["type"]
            if "failing" in sys.argv:
                await send({"type": phase + ".failed", "message": "no store here"})
            print(phase, flush=True)
            await send({"type": phase + ".complete"})
    if scope["path"] == "/die":
        os._exit(9)
    if scope["path"] == "/slow":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await asyncio.sleep(float(sys.argv[3]))
        await send({"type": "http.response.body", "body": b"ended"})
        return
    body = str(os.getpid()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})

sys.exit(serve(lambda: app, "127.0.0.1", int(sys.argv[1]), workers=int(sys.argv[2]), drain_s=10))
"""


class Process:
    def __init__(self, port: int, workers: int, *words: str) -> None:
        self.port = port
        command = [sys.executable, "-c", APPLICATION, str(port), str(workers), *words]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
        )

    def get(self, path: str = "/") -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as response:
            return str(response.read().decode())

    def pid(self) -> int:
        """Of a process that answers, waited for."""
        found: list[int] = []

        def answers() -> bool:
            with suppress(OSError):
                found.append(int(self.get()))
            return bool(found)

        wait(answers)
        return found[0]

    def begin_slow(self) -> Callable[[], bytes]:
        """Sends a request for /slow, returns when its answer has begun; call the result for all that arrived."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=15)
        client.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
        received = bytearray()
        while b"begun" not in received:
            received += client.recv(4096)

        def rest() -> bytes:
            with client, suppress(ConnectionError):
                while data := client.recv(4096):
                    received.extend(data)
            return bytes(received)

        return rest

    def end(self, *signals: signal.Signals) -> tuple[int, str, str]:
        """Exit code, standard output and standard error after these signals."""
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.1)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@contextmanager
def process(workers: int = 1, *words: str, port: int = 0) -> Iterator[Process]:
    running = Process(port or free_port(), workers, *words)
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        running.process.communicate()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(workers: int, number: signal.Signals) -> None:
    with process(workers, "0.5") as it:
        it.pid()
        rest = it.begin_slow()
        code, out, err = it.end(number)
        assert rest().endswith(b"begunended")
        assert (code, err) == (0, "")
        assert sorted(out.split()) == ["lifespan.shutdown"] * workers + ["lifespan.startup"] * workers


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_signal_ends_it_at_once(workers: int) -> None:
    with process(workers, "60") as it:
        it.pid()
        rest = it.begin_slow()
        started = time.monotonic()
        code, _, _ = it.end(signal.SIGTERM, signal.SIGTERM)
        assert time.monotonic() - started < 30  # it has 60 s to drain
        assert code == 128 + signal.SIGTERM
        assert rest().endswith(b"begun")


@pytest.mark.parametrize("workers", [1, 3])
def test_an_application_that_does_not_start_says_why(workers: int) -> None:
    with process(workers, "failing") as it:
        code, _, err = it.end()
        assert code == 3
        assert set(err.splitlines()) == {"tollgate: no store here"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_that_is_taken_is_said_in_one_line(workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with process(workers, port=port) as it:
            code, _, err = it.end()
    assert code == 1
    assert err == f"tollgate: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_a_worker_that_dies_is_replaced() -> None:
    with process(2) as it:
        it.pid()
        first = descendants(it.process.pid)
        assert len(first) == 2
        with suppress(OSError):
            it.get("/die")
        wait(lambda: len(descendants(it.process.pid) - first) == 1)
        assert it.pid()
        code, out, _ = it.end(signal.SIGTERM)
        assert code == 0
        assert "a worker died, another is started" in out


def test_workers_end_when_their_supervisor_is_killed() -> None:
    with process(2) as it:
        pid = it.pid()
        assert pid != it.process.pid
        it.process.kill()
        wait(lambda: not alive(pid))


def test_the_gateway_runs_on_another_asgi_server_too() -> None:
    """Nothing in the application knows which one serves it."""
    port = free_port()
    names = ("AWS_", "TOLLGATE_", "REDIS_")
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(names)},
        "TOLLGATE_STORE_URL": "memory://", "TOLLGATE_POLICY": str(ROOT / "policy.yaml"),
        "TOLLGATE_ISSUER": "https://issuer.example", "TOLLGATE_CLIENT_IDS": "any",
    }  # fmt: skip
    command = [sys.executable, "-m", "uvicorn", "--factory", "tollgate.bootstrap:serve_application"]
    uvicorn = subprocess.Popen([*command, "--port", str(port), "--log-level", "critical"], env=env, cwd=ROOT)
    try:
        statuses: list[int] = []

        def answers() -> bool:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as response:
                statuses.append(response.status)
            return bool(statuses)

        wait(answers)
        assert statuses == [200]
    finally:
        uvicorn.terminate()
        uvicorn.wait(20)
