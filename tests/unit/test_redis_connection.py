"""When a reply counts as lost."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import uvloop

from tollgate.adapters import redis_connection
from tollgate.adapters.redis_connection import ConnectionLost, RedisAddress, RedisConnection, RedisReplyError
from tollgate.ports import Overloaded, StoreUnavailable

T = TypeVar("T")


class Server:
    """Answers whatever it is sent with `reply`, from a thread of its own."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = RedisAddress("127.0.0.1", self._listener.getsockname()[1], tls=False)
        self.reply = b"+PONG\r\n"
        self.answered = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        with peer:
            while peer.recv(4096):
                peer.sendall(self.reply)
                self.answered.set()

    def stop(self) -> None:
        self._thread.join(10)  # a test that failed may have left its connection open
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def run(main: Coroutine[Any, Any, T]) -> T:
    """In uvloop, as in production; unlike asyncio's own loop it looks at timers before sockets."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def test_a_process_that_was_held_up_finds_the_reply_that_is_there(server: Server) -> None:
    async def main() -> bytes | str:
        connection = await RedisConnection.open(server.address, reply_timeout=0.1)
        reply = connection.call("PING")
        await asyncio.sleep(0)  # it leaves
        time.sleep(0.2)  # noqa: ASYNC251 - what a starved or frozen process looks like
        server.answered.wait()
        try:
            found: bytes | str = await reply
            return found
        finally:
            connection.close()

    assert run(main()) in (b"PONG", "PONG")


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_process_that_was_held_up_while_it_connected_is_connected(
    server: Server, monkeypatch: pytest.MonkeyPatch, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    monkeypatch.setattr(redis_connection, "CONNECT_TIMEOUT", 0.1)

    async def main() -> bytes | str:
        opening = asyncio.ensure_future(RedisConnection.open(replace(server.address, password="secret")))
        for _ in range(3):
            await asyncio.sleep(0)  # it is on its way
        time.sleep(0.3)  # noqa: ASYNC251 - what a starved or frozen process looks like
        connection = await opening
        try:
            found: bytes | str = await connection.call("PING")
            return found
        finally:
            connection.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(main()) in (b"PONG", "PONG")


def test_a_process_that_is_slow_itself_does_not_count_that_against_redis(
    server: Server,
) -> None:
    async def main() -> bytes | str:
        connection = await RedisConnection.open(server.address, reply_timeout=1)
        reply = connection.call("PING")
        time.sleep(1.2)  # noqa: ASYNC251 - other requests' work in the same tick, before the command leaves
        try:
            found: bytes | str = await reply
            return found
        finally:
            connection.close()

    assert run(main()) in (b"PONG", "PONG")


def test_a_reply_that_does_not_come_is_given_up_in_time(server: Server) -> None:
    server.reply = b""

    async def main() -> float:
        connection = await RedisConnection.open(server.address, reply_timeout=0.05)
        started = time.monotonic()
        try:
            with pytest.raises(StoreUnavailable):
                await connection.call("PING")
            return time.monotonic() - started
        finally:
            connection.close()

    assert 0.05 <= run(main()) < 10


@pytest.mark.parametrize(
    ("answer", "lost"),
    [
        ("READONLY You can't write against a read only replica.", True),
        ("ERR Error running script: @user_script:9: -READONLY You can't write against a read only replica.", True),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", True),
        ("LOADING Redis is loading the dataset in memory", True),
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("OOM command not allowed when used memory > 'maxmemory'.", False),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
    ],
)
def test_who_is_no_master_any_more_is_left(server: Server, answer: str, lost: bool) -> None:
    """With all that it was asked: it has done nothing of it."""
    server.reply = f"-{answer}\r\n".encode()

    async def main() -> None:
        connection = await RedisConnection.open(server.address, reply_timeout=5)
        first = connection.call("PING")
        others = [connection.call("PING") for _ in range(3)] if lost else []
        for call in (first, *others):
            with pytest.raises(ConnectionLost if lost else RedisReplyError, match=answer.partition(" ")[0]):
                await call
        assert connection.usable is not lost
        connection.close()

    run(main())


class TestQueue:
    """Many commands at once, which are answered one after the other."""

    @pytest.fixture
    def gap(self) -> list[float]:
        """Seconds that each command takes."""
        return [0.005]

    @pytest.fixture
    def busy(self, gap: list[float]) -> Iterator[RedisAddress]:
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            peer, _ = listener.accept()
            with peer, suppress(OSError):
                while asked := peer.recv(65536):
                    for _ in range(asked.count(b"PING")):
                        time.sleep(gap[0])
                        peer.sendall(b"+PONG\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield RedisAddress("127.0.0.1", listener.getsockname()[1], tls=False)
        thread.join()
        listener.close()

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(redis_connection, "QUEUE", 0.05)
        monkeypatch.setattr(redis_connection, "PAUSE", 0.3)

    async def ask(self, address: RedisAddress, count: int) -> tuple[list[BaseException | Any], float]:
        """What so many are told, and how long that took."""
        connection = await RedisConnection.open(address, reply_timeout=1.5)
        started = time.monotonic()
        try:
            told = await asyncio.gather(*(connection.call("PING") for _ in range(count)), return_exceptions=True)
            return told, time.monotonic() - started
        finally:
            connection.close()

    def test_a_crowd_is_answered_as_long_as_replies_keep_coming(
        self, busy: RedisAddress, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(redis_connection, "PAUSE", 2)
        told, _ = run(self.ask(busy, 100))
        assert [str(one) for one in told if isinstance(one, BaseException)] == []

    def test_a_pause_ends_a_queue_that_is_old(self, busy: RedisAddress, gap: list[float]) -> None:
        gap[0] = 0.4
        told, seconds = run(self.ask(busy, 20))
        assert isinstance(told[-1], StoreUnavailable)
        assert not isinstance(told[0], BaseException)
        assert seconds < 6

    def test_no_queue_is_endless(self, busy: RedisAddress, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(redis_connection, "MAX_QUEUE", 0.3)
        told, seconds = run(self.ask(busy, 2000))
        assert not isinstance(told[0], BaseException)
        assert isinstance(told[-1], StoreUnavailable)
        assert seconds < 6

    def test_who_comes_when_it_is_full_is_turned_away_and_nobody_else(
        self, busy: RedisAddress, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(redis_connection, "MAX_PENDING", 3)
        told, _ = run(self.ask(busy, 5))
        assert [isinstance(one, Overloaded) for one in told] == [False, False, False, True, True]
        assert not any(isinstance(one, BaseException) for one in told[:3])
