"""The HTTP client against real sockets: a server that sends exactly the bytes that a test wants, on both loops."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.raw_http import OK, Peer, answering, client, on_both_loops, serve
from tollgate.adapters.http import (
    BodyTooLarge,
    ClosedEarly,
    ConnectFailed,
    HttpClient,
    ProtocolError,
    Response,
    TimedOut,
    Timeouts,
    Url,
)
from tollgate.adapters.http_connection import HIGH_WATER, MAX_HEAD
from tollgate.adapters.http_message import encode_head

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def fetch(http: HttpClient, url: str, **options: Any) -> tuple[int, bytes]:
    response = await http.request("GET", url, **options)
    return response.status, await response.read(1 << 24)


async def collect(response: Response, into: list[bytes]) -> None:
    async for chunk in response:
        into.append(chunk)


# -- Responses as they should be ---------------------------------------------------------------------------------------


WELL_FORMED = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nX-A: b\r\n\r\nhello world", b"hello world"),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "chunked": (CHUNKED + b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\n\r\n", b"hello world"),
    "trailers": (CHUNKED + b"b\r\nhello world\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n", b"hello world"),
    "informational": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK.replace(b"2\r", b"11\r")[:-2]
        + b"hello world",
        b"hello world",
    ),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx", b"x"),
}  # fmt: skip


@on_both_loops
async def test_reads_every_framing_however_it_is_split() -> None:
    for name, (wire, body) in WELL_FORMED.items():

        async def whole_then_split(peer: Peer, wire: bytes = wire) -> None:
            await peer.request()
            await peer.send(wire)
            await peer.request()
            await peer.trickle(wire)
            await peer.reader.read()

        async with serve(whole_then_split) as (server, url), client() as http:
            assert await fetch(http, url) == (200, body), name
            assert await fetch(http, url) == (200, body), name
            assert len(server.peers) == 1, f"{name}: the connection was not used again"


@on_both_loops
async def test_every_two_way_split_gives_the_same_answer() -> None:
    wire, body = WELL_FORMED["trailers"]

    async def split(peer: Peer) -> None:
        for at in range(1, len(wire)):
            await peer.request()
            await peer.send(wire[:at])
            await asyncio.sleep(0)
            await peer.send(wire[at:])

    async with serve(split) as (_, url), client() as http:
        for _ in range(1, len(wire)):
            assert await fetch(http, url) == (200, body)


@on_both_loops
async def test_a_body_may_end_with_the_connection() -> None:
    wire = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end"
    async with serve(answering(wire, close=True)) as (server, url), client() as http:
        assert await fetch(http, url) == (200, b"until the end")
        assert await fetch(http, url) == (200, b"until the end")
        assert len(server.peers) == 2


@on_both_loops
async def test_headers_keep_their_order_and_are_in_lower_case() -> None:
    wire = b"HTTP/1.1 418 Teapot\r\nX-B: 1\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n"
    async with serve(answering(wire)) as (_, url), client() as http:
        response = await http.request("GET", url)
        assert response.status == 418
        assert response.headers == [
            (b"x-b", b"1"), (b"set-cookie", b"a"), (b"set-cookie", b"b"), (b"content-length", b"0"),
        ]  # fmt: skip
        assert response.header(b"set-cookie") == b"a"
        assert response.header(b"missing") is None
        assert await response.read(0) == b""


@on_both_loops
async def test_some_responses_have_no_body() -> None:
    no_body = [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n"]
    async with serve(answering(*no_body, OK)) as (server, url), client() as http:
        assert await fetch(http, url) == (204, b"")
        assert await fetch(http, url) == (304, b"")
        assert await fetch(http, url) == (200, b"ok")
        assert len(server.peers) == 1


@on_both_loops
async def test_head_reads_no_body() -> None:
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"
    async with serve(answering(wire)) as (_, url), client() as http:
        response = await http.request("HEAD", url)
        assert response.header(b"content-length") == b"99"
        assert await response.read(0) == b""


@on_both_loops
async def test_chunks_arrive_as_they_are_made() -> None:
    """Each chunk is sent only after the one before has been read: nothing may be held back."""
    read = asyncio.Event()

    async def in_step(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        for i in range(5):
            await peer.send(b"2\r\n%02d\r\n" % i)
            await read.wait()
            read.clear()
        await peer.send(b"0\r\n\r\n")

    async with serve(in_step) as (_, url), client() as http:
        response = await http.request("GET", url)
        seen = []
        async for chunk in response:
            seen.append(chunk)
            read.set()
        assert seen == [b"00", b"01", b"02", b"03", b"04"]


@on_both_loops
async def test_the_request_is_exactly_this() -> None:
    seen = []

    async def record(peer: Peer) -> None:
        while True:
            seen.append(await peer.request())
            await peer.send(OK)

    async with serve(record) as (_, url), client() as http:
        await fetch(http, url + "?a=b%20c#fragment", headers=[(b"X-Y", b"z")])
        response = await http.request("POST", url, [], b"body")
        await response.read(9)
        response = await http.request("POST", url, [], b"")
        await response.read(9)
        authority = url.split("/")[2].encode()
        assert seen == [
            b"GET /path?a=b%20c HTTP/1.1\r\nhost: " + authority + b"\r\nX-Y: z\r\n\r\n",
            b"POST /path HTTP/1.1\r\nhost: " + authority + b"\r\ncontent-length: 4\r\n\r\nbody",
            b"POST /path HTTP/1.1\r\nhost: " + authority + b"\r\ncontent-length: 0\r\n\r\n",
        ]


@on_both_loops
async def test_a_large_request_body_arrives() -> None:
    body = bytes(range(256)) * 16_384  # 4 MB
    received = []

    async def slow_reader(peer: Peer) -> None:
        received.append(await peer.request())
        await peer.send(OK)

    async with serve(slow_reader) as (_, url), client() as http:
        response = await http.request("POST", url, [], body)
        assert await response.read(9) == b"ok"
        assert received[0].endswith(body)


# -- The pool ----------------------------------------------------------------------------------------------------------


@on_both_loops
async def test_the_connection_used_last_is_used_first() -> None:
    numbers = []

    async def number(peer: Peer) -> None:
        while True:
            await peer.request()
            await asyncio.sleep(0.03 * (peer.number + 1))
            numbers.append(peer.number)
            await peer.send(OK)

    async with serve(number) as (server, url), client() as http:
        await asyncio.gather(*(fetch(http, url) for _ in range(3)))
        assert len(server.peers) == 3
        numbers.clear()
        await fetch(http, url)
        assert numbers == [2]  # it finished last


@on_both_loops
async def test_idle_connections_are_bounded_in_number_and_time() -> None:
    async def slow(peer: Peer) -> None:
        while True:
            await peer.request()
            await asyncio.sleep(0.02)
            await peer.send(OK)

    async with serve(slow) as (server, url), client(max_idle_per_origin=2, idle_ttl=0.5) as http:
        await asyncio.gather(*(fetch(http, url) for _ in range(5)))
        gone = await asyncio.gather(*(closed_within(peer, 0.1) for peer in server.peers))
        assert sum(gone) == 3
        assert all(await asyncio.gather(*(closed_within(peer, 5) for peer in server.peers)))


async def closed_within(peer: Peer, seconds: float) -> bool:
    """Whether the client ends this connection in time (for handlers that read until then)."""
    with suppress(TimeoutError):
        await asyncio.wait_for(peer.gone.wait(), seconds)
    return peer.gone.is_set()


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
    async def unasked(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        if peer.number == 0:
            await asyncio.sleep(0.02)
            await peer.send(OK.replace(b"ok", b"no"))
        await peer.reader.read()

    async with serve(unasked) as (server, url), client() as http:
        assert await fetch(http, url) == (200, b"ok")
        await asyncio.sleep(0.05)
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
        await asyncio.sleep(10)

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


# -- Responses as they should not be -----------------------------------------------------------------------------------


@on_both_loops
async def test_truncated_bodies_are_errors_after_what_did_arrive() -> None:
    truncated = [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", b"half"),
        (CHUNKED + b"4\r\nhalf\r\n", b"half"),
        (CHUNKED + b"8\r\nhalf", b"half"),
        (CHUNKED + b"4\r\nhalf\r\n0\r\n", b"half"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b""),
    ]
    for wire, before in truncated:
        async with serve(answering(wire, close=True)) as (_, url), client() as http:
            response = await http.request("GET", url)
            seen: list[bytes] = []
            with pytest.raises(ClosedEarly) as caught:
                await collect(response, seen)
            assert b"".join(seen) == before, wire
            assert caught.value.after_bytes == len(before), wire
            assert caught.value.sent


@on_both_loops
async def test_truncated_heads_are_errors() -> None:
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    for cut in range(len(wire)):
        async with serve(answering(wire[:cut], close=True)) as (_, url), client() as http:
            with pytest.raises(ClosedEarly):
                await http.request("GET", url)


MALFORMED = [
    b"garbage\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"HTTP/1.1 abc OK\r\n\r\n",
    b"HTTP/1.1 000 No\r\n\r\n",
    b"HTTP/3.7 200 OK\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
]


@on_both_loops
async def test_what_is_not_http_is_refused() -> None:
    for wire in MALFORMED:
        async with serve(answering(wire)) as (_, url), client() as http:
            with pytest.raises(ProtocolError) as caught:
                await http.request("GET", url)
            assert caught.value.sent, wire


@on_both_loops
async def test_a_bad_chunk_is_an_error_after_the_good_ones() -> None:
    async with serve(answering(CHUNKED + b"4\r\ngood\r\nxyz\r\n")) as (_, url), client() as http:
        response = await http.request("GET", url)
        assert await anext(response) == b"good"
        with pytest.raises(ProtocolError):
            await anext(response)


@on_both_loops
async def test_heads_trailers_and_informational_responses_are_bounded() -> None:
    line = b"x-filler: " + b"y" * 1000 + b"\r\n"
    too_much = [
        b"HTTP/1.1 200 OK\r\n" + line * 70 + b"content-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + line * 70,
        b"HTTP/1.1 200 OK\r\nx-endless: " + b"y" * (MAX_HEAD + 100),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 4000,
    ]
    for wire in too_much:
        async with serve(answering(wire)) as (_, url), client() as http:
            with pytest.raises(ProtocolError):
                await http.request("GET", url)
    async with serve(answering(CHUNKED + b"0\r\n" + line * 70)) as (_, url), client() as http:
        response = await http.request("GET", url)
        with pytest.raises(ProtocolError):
            await response.read(9)
    enough = b"HTTP/1.1 200 OK\r\n" + line * 60 + b"content-length: 2\r\n\r\nok"
    async with serve(answering(enough)) as (_, url), client() as http:
        assert await fetch(http, url) == (200, b"ok")


@on_both_loops
async def test_read_is_bounded() -> None:
    async with serve(answering(CHUNKED + b"4\r\nmore\r\n" * 9)) as (server, url), client() as http:
        response = await http.request("GET", url)
        with pytest.raises(BodyTooLarge):
            await response.read(3)
        assert await closed_within(server.peers[0], 1)


# -- Time --------------------------------------------------------------------------------------------------------------


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

        response = await http.request("GET", f"{url}/total", timeouts=Timeouts(idle=5, total=0.3))
        with pytest.raises(TimedOut) as caught:
            await response.read(1 << 20)
        assert caught.value.phase == "total"
        assert [peer.number for peer in server.peers if not await closed_within(peer, 1)] == []


@on_both_loops
async def test_a_timeout_counts_from_its_own_request() -> None:
    """The lazily armed timer of an earlier request on the connection must not fire for a later one."""

    async def slowly(peer: Peer) -> None:
        while True:
            await peer.request()
            await asyncio.sleep(0.15)
            await peer.send(OK)

    async with serve(slowly) as (server, url), client() as http:
        for _ in range(4):
            assert await fetch(http, url, timeouts=Timeouts(first_byte=0.4)) == (200, b"ok")
        assert len(server.peers) == 1


@on_both_loops
async def test_connecting_has_its_deadline_and_it_covers_tls() -> None:
    async def say_nothing(peer: Peer) -> None:
        await peer.reader.read()
        await asyncio.sleep(10)

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
        await asyncio.sleep(0.02)
        return made

    async def hang_up(peer: Peer) -> None:
        pass

    async with serve(hang_up) as (_, url), client() as http:
        with patch.object(loop, "create_connection", dawdle), pytest.raises(ConnectFailed) as caught:
            await http.request("GET", url)
        assert not caught.value.sent


# -- Readers that are slow or leave ------------------------------------------------------------------------------------


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
        response = await http.request("GET", url, timeouts=Timeouts(idle=0.3))
        await asyncio.sleep(0.5)
        assert HIGH_WATER < response._received < HIGH_WATER + (1 << 20)
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
        await response.aclose()
        await response.aclose()
        assert await closed_within(server.peers[0], 1)
        with pytest.raises(ClosedEarly):
            await anext(response)

        response = await http.request("GET", url)
        assert await anext(response) == b"x"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(response), 0.05)
        assert await closed_within(server.peers[1], 1)


@on_both_loops
async def test_a_cancelled_request_drops_its_connection() -> None:
    async with serve(answering()) as (server, url), client() as http:
        task = asyncio.ensure_future(http.request("GET", url))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await closed_within(server.peers[0], 1)
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
        await asyncio.sleep(0.02)
        await response.aclose()
        assert await fetch(http, url) == (200, b"ok")
        assert len(server.peers) == 1


@on_both_loops
async def test_closing_the_client_ends_everything() -> None:
    async with serve(answering(OK)) as (server, url):
        http = HttpClient()
        await fetch(http, url)
        waiting = asyncio.ensure_future(http.request("GET", url))
        await asyncio.sleep(0.02)
        await http.aclose()
        with pytest.raises(ClosedEarly):
            await waiting
        assert [peer.number for peer in server.peers if not await closed_within(peer, 1)] == []
        with pytest.raises(ConnectFailed):
            await http.request("GET", url)
        assert len(server.peers) == 1
        await http.aclose()


# -- What must not be sent ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        (b"x", b"a\r\nInjected: b"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\0b"),
        (b"x\r\ninjected", b"a"),
        (b"x ", b"a"),
        (b"x:y", b"a"),
        (b"", b"a"),
        (b"Host", b"elsewhere"),
        (b"content-length", b"0"),
        (b"Transfer-Encoding", b"chunked"),
        (b"connection", b"upgrade"),
    ],
)
def test_headers_cannot_change_the_message(header: tuple[bytes, bytes]) -> None:
    url = Url.parse("http://upstream.example/")
    with pytest.raises(ValueError):
        encode_head("GET", url, [(b"accept", b"*/*"), header], 0)


def test_neither_can_the_method() -> None:
    with pytest.raises(ValueError):
        encode_head("GET / HTTP/1.1\r\nx: y\r\n\r\nGET", Url.parse("http://upstream.example/"), [], 0)


@pytest.mark.parametrize(
    "text",
    [
        "http://host/a b",
        "http://host/\r\nx: y",
        "http://host/\n",
        "http://host/é",
        "http://user:pass@host/",
        "http://user@host/",
        "http:///path",
        "http://ho%20st/",
        "http://host:99999/",
        "http://[::1/",
        "ftp://host/",
        "/path",
        "",
    ],
)
def test_bad_urls_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Url.parse(text)


def test_urls_are_taken_apart() -> None:
    plain = Url.parse("https://API.example.com?q=1")
    assert (plain.host, plain.port, plain.target, plain.authority) == (
        "api.example.com",
        443,
        "/?q=1",
        b"api.example.com",
    )
    six = Url.parse("http://[::1]:8080/v1")
    assert (six.host, six.port, six.authority) == ("::1", 8080, b"[::1]:8080")
    assert Url.parse("http://h:80/").authority == b"h"
    assert Url.parse("http://h/a").origin == Url.parse("http://h:80/b").origin


# -- TLS ---------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate for 127.0.0.1, and its key (PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tollgate test")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return signed.public_bytes(serialization.Encoding.PEM), private


def server_context() -> ssl.SSLContext:
    public, private = certificate()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with TemporaryDirectory() as folder:
        pem = Path(folder) / "both.pem"
        pem.write_bytes(public + private)
        context.load_cert_chain(pem)
    return context


def trusting_context() -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=certificate()[0].decode())
    context.set_alpn_protocols(["http/1.1"])
    return context


@on_both_loops
async def test_tls_with_streaming_reuse_and_alpn() -> None:
    protocols = []

    async def handle(peer: Peer) -> None:
        protocols.append(peer.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        for _ in range(3):
            await peer.request()
            await peer.trickle(WELL_FORMED["trailers"][0])
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 << 20))
        await peer.send(bytes(2 << 20))
        await peer.reader.read()

    async with serve(handle, server_context()) as (server, url), client(ssl_context=trusting_context()) as http:
        for _ in range(3):
            assert await fetch(http, url) == (200, b"hello world")
        response = await http.request("GET", url)
        await asyncio.sleep(0.05)
        assert len(await response.read(2 << 20)) == 2 << 20
        assert len(server.peers) == 1
        assert protocols == ["http/1.1"]


@on_both_loops
async def test_tls_to_somebody_else_is_refused() -> None:
    async with serve(answering(OK), server_context()) as (_, url):
        async with client() as unaware:  # the default trust store does not know the certificate
            unaware.warm()
            with pytest.raises(ConnectFailed):
                await unaware.request("GET", url)
        async with client(ssl_context=trusting_context()) as http:
            with pytest.raises(ConnectFailed):
                await http.request("GET", url.replace("127.0.0.1", "localhost"))
