"""What the HTTP server refuses: everything that two parsers could read differently, and too much of anything."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.raw_client import CHUNKED, GET, OK, ok, refused, respond, serving
from tests.raw_http import on_both_loops
from tollgate.adapters.http_server_connection import MAX_HEAD, MAX_HEADERS

MALFORMED = {
    "garbage": b"garbage\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version 2": b"GET / HTTP/2.0\r\nhost: a\r\n\r\n",
    "version 0.9": b"GET /\r\n\r\n",
    "version 1.2": b"GET / HTTP/1.2\r\nhost: a\r\n\r\n",
    "method": b"FOO / HTTP/1.1\r\nhost: a\r\n\r\n",
    "connect": b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
    "target": b"GET a HTTP/1.1\r\nhost: a\r\n\r\n",
    "fragment": b"GET /#a HTTP/1.1\r\nhost: a\r\n\r\n",
    "bytes in target": "GET /é HTTP/1.1\r\nhost: a\r\n\r\n".encode(),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
    "length and chunks": CHUNKED[:-2] + b"content-length: 5\r\n\r\n0\r\n\r\n",
    "chunks and length": CHUNKED.replace(b"host: a", b"host: a\r\ncontent-length: 5") + b"0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    "one length twice": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    "list of lengths": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5, 5\r\n\r\nhello",
    "signed length": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\nhello",
    "negative length": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\nhello",
    "huge length": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\nhello",
    "empty length": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: \r\n\r\nhello",
    "gzip": CHUNKED.replace(b"chunked", b"gzip") + b"0\r\n\r\n",
    "gzip, chunked": CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n",
    "chunked, gzip": CHUNKED.replace(b"chunked", b"chunked, gzip") + b"0\r\n\r\n",
    "chunked twice": CHUNKED[:-2] + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "xchunked": CHUNKED.replace(b"chunked", b"xchunked") + b"0\r\n\r\n",
    "tab chunked": CHUNKED.replace(b" chunked", b"\x0bchunked") + b"0\r\n\r\n",
    "chunked on 1.0": CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n",
    "folded": b"GET / HTTP/1.1\r\nhost: a\r\nx: a\r\n b\r\n\r\n",
    "folded first": b"GET / HTTP/1.1\r\n x: a\r\nhost: a\r\n\r\n",
    "bare LF after the line": b"GET / HTTP/1.1\nhost: a\r\n\r\n",
    "bare LF after a header": b"GET / HTTP/1.1\r\nhost: a\nx: b\r\n\r\n",
    "bare LF at the end": b"GET / HTTP/1.1\r\nhost: a\r\n\n",
    "bare CR": b"GET / HTTP/1.1\r\nhost: a\rx: b\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n",
    "NUL in a name": b"GET / HTTP/1.1\r\nhost: a\r\nx\0: b\r\n\r\n",
    "space before the colon": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length : 5\r\n\r\nhello",
    "no name": b"GET / HTTP/1.1\r\nhost: a\r\n: b\r\n\r\n",
}
BAD_CHUNKS = {
    "not hexadecimal": b"g\r\n",
    "0x": b"0x5\r\nhello\r\n",
    "negative": b"-1\r\n",
    "huge": b"fffffffffffffffff\r\n",
    "space": b"5 \r\nhello\r\n",
    "bare LF": b"5\nhello\r\n",
    "bare LF in an extension": b"5;a\nb\r\nhello\r\n",
    "longer than it says": b"2\r\nhello\r\n",
    "length among trailers": b"0\r\ncontent-length: 4\r\n\r\n",
}


@on_both_loops
async def test_what_is_not_http_is_refused_and_nothing_behind_it_is_read() -> None:
    asked = []

    async def count(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope)
        await respond(send)

    async with serving(count) as it:
        for name, wire in MALFORMED.items():
            refused(400, await it.say(wire + GET))
            assert asked == [], name


@on_both_loops
async def test_a_bad_chunk_is_refused_before_the_answer_and_ends_it_afterwards() -> None:
    told = []

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            continue
        told.append(message["type"])
        await respond(send)

    async def talks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await reads(scope, receive, _nobody)

    for chunk in BAD_CHUNKS.values():
        async with serving(reads) as it:
            refused(400, await it.say(CHUNKED + chunk + GET))
            client = await it.connect()
            await client.send(CHUNKED)
            await asyncio.sleep(0.01)
            await client.send(chunk + GET)
            refused(400, await client.rest())
        assert told == ["http.disconnect"], "the first one was not even begun"
        told.clear()
        async with serving(talks) as it:
            client = await it.connect()
            await client.send(CHUNKED)
            await client.reader.readuntil(b"x\r\n")
            await client.send(chunk + GET)
            assert await client.rest() == b""
        assert told == ["http.disconnect"]
        told.clear()


async def _nobody(message: Any) -> None:
    pass


@on_both_loops
async def test_a_bad_request_is_refused_after_the_answers_before_it() -> None:
    async def later(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.02)
        await respond(send)

    async with serving(later) as it:
        answers = await it.say(GET + GET + b"garbage\r\n\r\n" + GET)
        assert answers.startswith(OK + OK)
        refused(400, answers.removeprefix(OK + OK))
        client = await it.connect()
        await client.send(GET)
        await asyncio.sleep(0.01)
        await client.send(b"garbage")
        answers = await client.rest()
        assert answers.startswith(OK)
        refused(400, answers.removeprefix(OK))


@on_both_loops
async def test_heads_are_bounded() -> None:
    line = b"x-filler: " + b"y" * 1000 + b"\r\n"
    start = GET[:-2]
    too_much = {
        "in one piece": start + line * 70 + b"\r\n",
        "endless headers": start + line * 3000,
        "endless header": start + b"x: " + b"y" * (2 << 20),
        "endless target": b"GET /" + b"y" * (2 << 20),
        "too many": start + b"x:\r\n" * MAX_HEADERS + b"\r\n",
    }
    async with serving(ok) as it:
        for name, wire in too_much.items():
            client = await it.connect()
            sending = asyncio.create_task(client.send(wire))
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 431 "), name
            refused(431, answer)
            client.writer.transport.abort()
            await asyncio.gather(sending, return_exceptions=True)
        client = await it.connect()
        assert await client.ask(start + line * 30 + b"\r\n") == OK
        for wire in (CHUNKED + b"5;" + b"x" * (MAX_HEAD * 8), CHUNKED + b"0\r\n" + line * 500):
            client = await it.connect()
            sending = asyncio.create_task(client.send(wire))
            await client.rest()
            client.writer.transport.abort()
            await asyncio.gather(sending, return_exceptions=True)


@on_both_loops
async def test_what_the_client_sends_unread_does_not_cost_it_the_answer() -> None:
    """Most clients read no answer before they have sent everything: a close at once would be a reset."""
    size = 8 << 20
    post = b"POST / HTTP/1.1\r\nhost: a\r\n%bcontent-length: %d\r\n\r\n"

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"too large", status=413)

    async with serving(refuse) as it:
        client = await it.connect()
        for _ in range(2):
            await client.send(post % (b"", size) + bytes(size))
            assert (await client.answer()).endswith(b"too large")
        client = await it.connect()
        await client.send(post % (b"connection: close\r\n", size) + bytes(size))
        assert (await client.rest()).endswith(b"too large")
