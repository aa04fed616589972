"""Real servers for tests: each is started on a free port, and stopped when the session ends."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from tollgate.local.children import free_port

_FOLDER = TemporaryDirectory(prefix="tollgate-redis-")
"""Where servers may write: a snapshot that lies elsewhere would be loaded."""


def redis_binary() -> str:
    beside = Path(sys.executable).with_name("redis-server")
    found = shutil.which("redis-server") or shutil.which("valkey-server") or (str(beside) if beside.exists() else None)
    if found is None:
        raise RuntimeError("no redis-server or valkey-server: run `make setup`, which fetches one")
    return found


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} does not listen on {port}")


def start_redis(port: int, *options: str) -> subprocess.Popen[bytes]:
    command = [redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    command += ["--dir", _FOLDER.name, "--dbfilename", f"{port}.rdb", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_port(port, process)
    return process


@contextmanager
def redis_server() -> Iterator[str]:
    """A Redis of one's own; gives its URL."""
    port = free_port()
    process = start_redis(port)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


DYNAMODB_LOCAL = Path(__file__).parents[1] / ".tools" / "dynamodb-local"


@contextmanager
def dynamodb_local() -> Iterator[str]:
    """A DynamoDB Local of one's own, in memory; gives its URL."""
    if not (DYNAMODB_LOCAL / ".ready").exists() or shutil.which("java") is None:
        raise RuntimeError("no DynamoDB Local, or no java: run `make dynamodb-local` (Java 17 and Maven)")
    port = free_port()
    options = ["-Xmx512m", "-XX:+UseSerialGC", "-cp", f"{DYNAMODB_LOCAL}/*"]
    main = "software.amazon.dynamodb.services.local.main.ServerRunner"
    process = subprocess.Popen(
        ["java", *options, main, "-inMemory", "-disableTelemetry", "-port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port, process, seconds=60)
        with suppress(urllib.error.HTTPError), urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=60):
            pass  # its first answer (it refuses this) loads half of Java, and callers wait for 2 s only
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
