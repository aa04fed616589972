"""When a reply counts as lost."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
import uvloop

from tollgate.adapters.redis_connection import RedisAddress, RedisConnection
from tollgate.ports import StoreUnavailable

T = TypeVar("T")


@pytest.fixture
def server() -> Iterator[tuple[RedisAddress, list[bytes]]]:
    """Answers whatever it is sent with what stands in the list, 20 ms later, from a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    replies: list[bytes] = [b"+PONG\r\n"]

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            while peer.recv(4096):
                time.sleep(0.02)
                peer.sendall(b"".join(replies))

    thread = threading.Thread(target=serve)
    thread.start()
    yield RedisAddress("127.0.0.1", listener.getsockname()[1], tls=False), replies
    thread.join()
    listener.close()


def run(main: Coroutine[Any, Any, T]) -> T:
    """In uvloop, as in production; unlike asyncio's own loop it looks at timers before sockets."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def test_a_process_that_was_held_up_finds_the_reply_that_is_there(server: tuple[RedisAddress, list[bytes]]) -> None:
    async def main() -> bytes | str:
        connection = await RedisConnection.open(server[0], reply_timeout=0.05)
        reply = connection.call("PING")
        await asyncio.sleep(0)  # it leaves
        time.sleep(0.2)  # noqa: ASYNC251 - what a starved or frozen process looks like
        try:
            found: bytes | str = await reply
            return found
        finally:
            connection.close()

    assert run(main()) in (b"PONG", "PONG")


def test_a_process_that_is_slow_itself_does_not_count_that_against_redis(
    server: tuple[RedisAddress, list[bytes]],
) -> None:
    async def main() -> bytes | str:
        connection = await RedisConnection.open(server[0], reply_timeout=0.05)
        reply = connection.call("PING")
        time.sleep(0.2)  # noqa: ASYNC251 - other requests' work in the same tick, before the command leaves
        try:
            found: bytes | str = await reply
            return found
        finally:
            connection.close()

    assert run(main()) in (b"PONG", "PONG")


def test_a_reply_that_does_not_come_is_given_up_in_time(server: tuple[RedisAddress, list[bytes]]) -> None:
    server[1].clear()

    async def main() -> float:
        connection = await RedisConnection.open(server[0], reply_timeout=0.05)
        started = time.monotonic()
        try:
            with pytest.raises(StoreUnavailable):
                await connection.call("PING")
            return time.monotonic() - started
        finally:
            connection.close()

    assert 0.05 <= run(main()) < 1
