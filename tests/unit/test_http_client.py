"""The HTTP client against real sockets: a server that sends exactly the bytes that a test wants, on both loops."""

from __future__ import annotations

import asyncio

from tests.raw_http import CHUNKED, OK, Peer, answering, client, fetch, on_both_loops, serve

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
