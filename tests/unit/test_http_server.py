"""The HTTP server reads what it should."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.raw_client import CHUNKED, GET, OK, body_of, echo, respond, serving
from tests.raw_http import on_both_loops
from tollgate.adapters.http_server_message import parse_target


@on_both_loops
async def test_the_scope_is_what_asgi_says() -> None:
    seen = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, await body_of(receive)))
        await respond(send)

    async with serving(look) as it:
        client = await it.connect()
        request = b"POST /a%20b/%C3%A9?q=%20&r HTTP/1.1\r\nHost: a\r\nX-B:  1 \r\nX-A: \r\nx-b: 2\t\r\n"
        request += b"Content-Length: 2\r\n\r\nhi"
        assert await client.ask(request) == OK
        own = client.writer.get_extra_info("sockname")
        [(scope, body)] = seen
        assert body == b"hi"
        assert scope.pop("headers") == [
            (b"host", b"a"), (b"x-b", b"1"), (b"x-a", b""), (b"x-b", b"2"), (b"content-length", b"2"),
        ]  # fmt: skip
        assert scope == {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": "/a b/é", "raw_path": b"/a%20b/%C3%A9", "query_string": b"q=%20&r",
            "client": own, "server": ("127.0.0.1", it.port),
        }  # fmt: skip


@pytest.mark.parametrize(
    ("target", "parsed"),
    [
        (b"/", ("/", b"/", b"")),
        (b"/a?", ("/a", b"/a", b"")),
        (b"/a?b?c", ("/a", b"/a", b"b?c")),
        (b"//a/../%2e%2F", ("//a/.././/"[:-1], b"//a/../%2e%2F", b"")),
        (b"/%ff%00", ("/�\0", b"/%ff%00", b"")),
        (b"http://host:80/p?q", ("/p", b"/p", b"q")),
        (b"HTTPS://host", ("/", b"/", b"")),
        (b"http://host?q", ("/", b"/", b"q")),
        (b"*", ("*", b"*", b"")),
    ],
)
def test_targets(target: bytes, parsed: tuple[str, bytes, bytes]) -> None:
    assert parse_target(target) == parsed
    if target != b"*":  # long ones are not remembered, and read in the same way
        assert parse_target(target + b"?" + b"x" * 300)[:2] == parsed[:2]


@pytest.mark.parametrize("target", [b"", b"a", b"host:443", b"ftp://host/", b"/a#b", b"/\xc3\xa9", b"http://"])
def test_targets_that_are_none(target: bytes) -> None:
    with pytest.raises(ValueError):
        parse_target(target)


@on_both_loops
async def test_bodies_arrive_however_they_are_framed_and_split() -> None:
    wires = [
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 11\r\n\r\nhello world",
        CHUNKED + b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\n\r\n",
        CHUNKED + b"b\r\nhello world\r\n0\r\nx-sum: 1\r\n\r\n",
        CHUNKED.replace(b"chunked", b"Chunked") + b"B\r\nhello world\r\n0\r\n\r\n",
    ]
    async with serving(echo) as it:
        client = await it.connect()
        for wire in wires:
            for cut in range(1, len(wire)):
                await client.send(wire[:cut])
                await asyncio.sleep(0)
                assert (await client.ask(wire[cut:])).endswith(b"\r\n\r\nhello world")


@on_both_loops
async def test_a_large_body_arrives() -> None:
    body = bytes(range(256)) * 16_384  # 4 MB
    async with serving(echo) as it:
        client = await it.connect()
        sending = asyncio.create_task(
            client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        )
        assert (await client.answer()).endswith(b"\r\n\r\n" + body)
        await sending


@on_both_loops
async def test_trailers_do_not_become_headers_of_the_next_request() -> None:
    seen = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        await body_of(receive)
        seen.append(dict(scope["headers"]))
        await respond(send)

    async with serving(look) as it:
        client = await it.connect()
        await client.ask(CHUNKED + b"0\r\nauthorization: stolen\r\n\r\n")
        await client.ask(GET)
    assert seen[1] == {b"host": b"a"}
