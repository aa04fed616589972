"""A Redis for the local stack: a real server where there is one, else fakeredis, which is said.

The server keeps nothing on disk: one that dies comes back empty on the same port, as a cache node that is replaced.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tollgate.local.children import Child, say

SERVERS = ("redis-server", "valkey-server")


def find_server(path: str | None = None) -> str | None:
    """A Redis or Valkey server's binary: on the PATH, or where `make setup` puts one, beside this Python."""
    for name in SERVERS:
        if found := shutil.which(name, path=path) or shutil.which(name, path=str(Path(sys.executable).parent)):
            return found
    return None


def redis_child(port: int, env: Mapping[str, str]) -> Child:
    """The server's process, not started yet."""
    server = find_server(env.get("PATH"))
    if server is None:
        say("no redis-server or valkey-server found: using fakeredis (correct, but slow and of one process)")
        return Child(
            "redis",
            [sys.executable, "-m", "tollgate.local.redis_server", "--port", str(port)],
            env,
            ready=lambda: answers(port),
        )
    options = {
        "--bind": "127.0.0.1",
        "--port": str(port),
        "--save": "",
        "--appendonly": "no",
        "--dir": tempfile.gettempdir(),
        "--dbfilename": "tollgate-keeps-nothing.rdb",  # by its usual name somebody else's snapshot might lie there
        "--daemonize": "no",
    }
    command = [server, *(word for option in options.items() for word in option)]
    return Child("redis", command, env, ready=lambda: answers(port))


async def answers(port: int) -> None:
    """Returns when a PING is answered."""
    while True:
        with suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"*1\r\n$4\r\nPING\r\n")
                if (await reader.readline()).startswith(b"+PONG"):
                    return
            finally:
                writer.close()
        await asyncio.sleep(0.02)


def serve_fake(port: int) -> None:
    """fakeredis over TCP, with Lua, until SIGTERM."""
    os.environ["FAKEREDIS_LUA_VERSION"] = "5.4"  # has string.unpack, in place of the `struct` that Redis's own 5.1 has
    from fakeredis import TcpFakeServer

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    TcpFakeServer.daemon_threads = True
    with TcpFakeServer(("127.0.0.1", port), server_type="redis") as server:
        server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tollgate.local.redis_server", description=serve_fake.__doc__)
    parser.add_argument("--port", type=int, required=True)
    serve_fake(parser.parse_args().port)
