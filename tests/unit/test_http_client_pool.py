"""The HTTP client's connections: which is used again, and which never."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from tests.raw_http import OK, Peer, answering, client, closed, fetch, on_both_loops, serve, until
from tests.waiting import PATIENCE_S
from tollgate.adapters.http import ClosedEarly


@on_both_loops
async def test_the_connection_used_last_is_used_first() -> None:
    numbers = []
    turns = [asyncio.Event() for _ in range(3)]

    async def number(peer: Peer) -> None:
        while True:
            await peer.request()
            await turns[peer.number].wait()
            numbers.append(peer.number)
            await peer.send(OK)

    async with serve(number) as (server, url), client() as http:
        fetching = [asyncio.ensure_future(fetch(http, url)) for _ in range(3)]
        await until(lambda: len(server.peers) == 3)
        for answered, turn in enumerate((1, 2, 0)):
            turns[turn].set()
            await until(lambda: sum(fetched.done() for fetched in fetching) > answered)  # noqa: B023
        await asyncio.gather(*fetching)
        await fetch(http, url)
        assert numbers == [1, 2, 0, 0]  # 0 finished last


@on_both_loops
async def test_idle_connections_are_bounded_in_number_and_time() -> None:
    async def slow(peer: Peer) -> None:
        while True:
            await peer.request()
            await asyncio.sleep(0.02)
            await peer.send(OK)

    async with serve(slow) as (server, url), client(max_idle_per_origin=2, idle_ttl=1) as http:
        await asyncio.gather(*(fetch(http, url) for _ in range(5)))
        await until(lambda: sum(peer.gone.is_set() for peer in server.peers) >= 3)
        assert sum(peer.gone.is_set() for peer in server.peers) == 3
        await closed(*server.peers)


@on_both_loops
async def test_drop_idle_makes_connections_anew() -> None:
    async with serve(answering(OK, OK)) as (server, url), client() as http:
        await fetch(http, url)
        http.drop_idle()
        assert await fetch(http, url) == (200, b"ok")
        assert len(server.peers) == 2


@on_both_loops
async def test_a_connection_that_its_server_closed_is_not_used_again() -> None:
    async with serve(answering(OK, close=True)) as (server, url), client() as http:
        for _ in range(3):
            assert await fetch(http, url, body=b"charge me once") == (200, b"ok")
        assert len(server.peers) == 3


@on_both_loops
async def test_a_close_that_the_loop_has_not_seen_yet_is_noticed_before_writing() -> None:
    """As on a thawed Lambda: the loop did not run while the server closed."""
    listener = socket.create_server(("127.0.0.1", 0))
    received: list[bytes] = []
    closed = threading.Event()

    def serve_blocking() -> None:
        for turn in range(2):
            connection, _ = listener.accept()
            with connection:
                received.append(connection.recv(65536))
                connection.sendall(OK)
                if turn == 0:
                    time.sleep(0.05)
            closed.set()

    thread = threading.Thread(target=serve_blocking)
    thread.start()
    async with client() as http:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        assert await fetch(http, url) == (200, b"ok")
        closed.wait()  # blocks the loop on purpose
        response = await http.request("POST", url, [], b"body")
        assert await response.read(9) == b"ok"
    thread.join()
    listener.close()
    assert len(received) == 2


@on_both_loops
async def test_a_close_after_the_request_was_written_is_not_retried() -> None:
    requests = []

    async def close_on_the_second(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.send(OK)
        requests.append(await peer.request())

    async with serve(close_on_the_second) as (server, url), client() as http:
        await fetch(http, url)
        with pytest.raises(ClosedEarly) as caught:
            await http.request("POST", url, [], b"body")
        assert caught.value.sent
        assert caught.value.after_bytes == 0
        assert len(requests) == 2
        assert len(server.peers) == 1


@on_both_loops
async def test_a_connection_with_bytes_left_over_is_not_used_again() -> None:
    for extra in (b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"garbage", b"\0"):
        async with serve(answering(OK + extra, OK)) as (server, url), client() as http:
            assert await fetch(http, url) == (200, b"ok"), extra
            assert await fetch(http, url) == (200, b"ok"), extra
            assert len(server.peers) == 2, extra


@on_both_loops
async def test_bytes_that_arrive_in_the_pool_end_the_connection() -> None:
    answered = asyncio.Event()

    async def unasked(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        if peer.number == 0:
            await answered.wait()
            await peer.send(OK.replace(b"ok", b"no"))
        await peer.reader.read()

    async with serve(unasked) as (server, url), client() as http:
        assert await fetch(http, url) == (200, b"ok")
        answered.set()
        await closed(server.peers[0])
        assert await fetch(http, url) == (200, b"ok")
        assert len(server.peers) == 2


@on_both_loops
async def test_connection_close_is_obeyed() -> None:
    wire = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    async with serve(answering(wire)) as (server, url), client() as http:
        await fetch(http, url)
        await fetch(http, url)
        assert len(server.peers) == 2


@on_both_loops
async def test_an_answer_before_the_request_was_read_ends_the_connection() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(PATIENCE_S)

    async with serve(refuse) as (server, url), client() as http:
        for _ in range(2):
            response = await http.request("POST", url, [], bytes(32 << 20))
            assert response.status == 413
            assert await response.read(0) == b""
        assert len(server.peers) == 2


@on_both_loops
async def test_small_writes_are_not_delayed() -> None:
    async with serve(answering(OK)) as (_, url), client() as http:
        await fetch(http, url)
        (connection,) = http._connections
        raw = connection._transport.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
