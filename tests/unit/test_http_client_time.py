"""The HTTP client's deadlines, and readers that are slow or leave."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any
from unittest.mock import patch

import pytest

from tests.raw_http import CHUNKED, OK, Peer, answering, client, closed, fetch, on_both_loops, serve, until
from tests.waiting import PATIENCE_S
from tollgate.adapters.http import ClosedEarly, ConnectFailed, HttpClient, ProtocolError, Response, TimedOut, Timeouts
from tollgate.adapters.http_connection import HIGH_WATER


@on_both_loops
async def test_each_phase_has_its_deadline() -> None:
    async def stall(peer: Peer) -> None:
        head = await peer.request()
        if b"GET /path/idle" in head:
            await peer.send(CHUNKED + b"1\r\nx\r\n")
        if b"GET /path/total" in head:
            await peer.send(CHUNKED)
            while True:
                await peer.send(b"1\r\nx\r\n")
                await asyncio.sleep(0.01)
        await peer.reader.read()

    async with serve(stall) as (server, url), client() as http:
        started = time.monotonic()
        with pytest.raises(TimedOut) as caught:
            await http.request("GET", url, timeouts=Timeouts(first_byte=0.1))
        assert caught.value.phase == "first_byte"
        assert caught.value.sent
        assert time.monotonic() - started > 0.09

        response = await http.request("GET", f"{url}/idle", timeouts=Timeouts(first_byte=5, idle=0.1))
        assert await anext(response) == b"x"
        with pytest.raises(TimedOut) as caught:
            await anext(response)
        assert caught.value.phase == "idle"

        response = await http.request("GET", f"{url}/total", timeouts=Timeouts(idle=5, total=1))
        with pytest.raises(TimedOut) as caught:
            await response.read(1 << 20)
        assert caught.value.phase == "total"
        await closed(*server.peers)


@on_both_loops
async def test_a_timeout_counts_from_its_own_request() -> None:
    """The lazily armed timer of an earlier request on the connection must not fire for a later one."""

    async def slowly(peer: Peer) -> None:
        while True:
            await peer.request()
            await asyncio.sleep(0.4)
            await peer.send(OK)

    async with serve(slowly) as (server, url), client() as http:
        for _ in range(4):
            assert await fetch(http, url, timeouts=Timeouts(first_byte=1.2)) == (200, b"ok")
        assert len(server.peers) == 1


@on_both_loops
async def test_connecting_has_its_deadline_and_it_covers_tls() -> None:
    async def say_nothing(peer: Peer) -> None:
        await peer.reader.read()
        await asyncio.sleep(PATIENCE_S)

    async with serve(say_nothing) as (_, url), client() as http:
        for timeouts, phase in ((Timeouts(connect=0.1), "connect"), (Timeouts(connect=9, total=0.1), "total")):
            with pytest.raises(TimedOut) as caught:
                await http.request("GET", url.replace("http:", "https:"), timeouts=timeouts)
            assert caught.value.phase == phase
            assert not caught.value.sent


@on_both_loops
async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with client() as http:
        for host in (f"127.0.0.1:{port}", "name.invalid", f"{'a' * 70}.example"):
            with pytest.raises(ConnectFailed) as caught:
                await http.request("GET", f"http://{host}/")
            assert not caught.value.sent


@on_both_loops
async def test_a_server_that_hangs_up_at_once_is_an_error_at_once() -> None:
    """Whether that is noticed before or after the request was written; here also with words nobody asked for."""

    async def hang_up(peer: Peer) -> None:
        if peer.number % 2:
            peer.writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")

    async with serve(hang_up) as (_, url), client() as http:
        for _ in range(20):
            with pytest.raises((ConnectFailed, ClosedEarly, ProtocolError)):
                await http.request("GET", url)


@on_both_loops
async def test_a_connection_lost_between_handshake_and_request_is_noticed() -> None:
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def dawdle(*args: Any, **options: Any) -> Any:
        made = await connect(*args, **options)
        await until(made[0].is_closing)
        return made

    async def hang_up(peer: Peer) -> None:
        pass

    async with serve(hang_up) as (_, url), client() as http:
        with patch.object(loop, "create_connection", dawdle), pytest.raises(ConnectFailed) as caught:
            await http.request("GET", url)
        assert not caught.value.sent


@on_both_loops
async def test_a_slow_reader_slows_the_server_down_and_is_not_called_idle() -> None:
    size = 16 << 20

    async def pour(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size >> 16):
            await peer.send(bytes(1 << 16))
        await peer.request()
        await peer.send(OK)

    async with serve(pour) as (server, url), client() as http:
        response = await http.request("GET", url, timeouts=Timeouts(idle=0.6))
        await until(lambda: response._received > HIGH_WATER)
        await asyncio.sleep(0.9)
        assert response._received < HIGH_WATER + (1 << 20)
        assert len(await response.read(size)) == size
        assert await fetch(http, url) == (200, b"ok")
        assert len(server.peers) == 1


@on_both_loops
async def test_a_reader_that_leaves_takes_the_connection_along() -> None:
    async def endless(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"1\r\nx\r\n")
        await peer.reader.read()

    async with serve(endless) as (server, url), client() as http:
        response = await http.request("GET", url)
        response.close()
        response.close()
        await closed(server.peers[0])
        with pytest.raises(ClosedEarly):
            await anext(response)

        response = await http.request("GET", url)
        assert await anext(response) == b"x"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(response), 0.05)
        await closed(server.peers[1])


@on_both_loops
async def test_a_cancelled_request_drops_its_connection() -> None:
    async with serve(answering()) as (server, url), client() as http:
        task = asyncio.ensure_future(http.request("GET", url))
        await until(lambda: server.peers)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await closed(server.peers[0])
        assert not http._connections


@on_both_loops
async def test_connecting_can_be_cancelled_at_any_moment() -> None:
    """Nothing stays open, and closing the client does not wait for a connection that nobody will hear of again."""

    async with serve(answering(OK)) as (_, url):
        for ticks in range(30):
            http = HttpClient()
            request = asyncio.create_task(http.request("GET", url))
            for _ in range(ticks):
                await asyncio.sleep(0)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            async with asyncio.timeout(5):
                await http.aclose()


@on_both_loops
async def test_a_cancellation_in_the_tick_of_the_end_spares_the_connection() -> None:
    """By then it is back in the pool, or carries somebody else's request."""
    async with serve(answering(OK, OK)) as (server, url), client() as http:
        task = asyncio.ensure_future(http.request("GET", url))
        wake = Response._wake

        def wake_and_cancel(response: Response) -> None:
            wake(response)
            task.cancel()

        with patch.object(Response, "_wake", wake_and_cancel), pytest.raises(asyncio.CancelledError):
            await task
        assert await fetch(http, url) == (200, b"ok")
        assert len(server.peers) == 1


@on_both_loops
async def test_closing_after_the_end_keeps_the_connection() -> None:
    async with serve(answering(OK, OK)) as (server, url), client() as http:
        response = await http.request("GET", url)
        await until(lambda: response._done)
        response.close()
        assert await fetch(http, url) == (200, b"ok")
        assert len(server.peers) == 1


@on_both_loops
async def test_closing_the_client_ends_everything() -> None:
    again = asyncio.Event()

    async def once(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        again.set()
        await peer.reader.read()

    async with serve(once) as (server, url):
        http = HttpClient()
        await fetch(http, url)
        waiting = asyncio.ensure_future(http.request("GET", url))
        await again.wait()
        await http.aclose()
        with pytest.raises(ClosedEarly):
            await waiting
        await closed(*server.peers)
        with pytest.raises(ConnectFailed):
            await http.request("GET", url)
        assert len(server.peers) == 1
        await http.aclose()
