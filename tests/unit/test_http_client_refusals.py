"""What the HTTP client does not take from a server, and does not send to one."""

from __future__ import annotations

import pytest

from tests.raw_http import CHUNKED, answering, client, closed, collect, fetch, on_both_loops, serve
from tollgate.adapters.http import BodyTooLarge, ClosedEarly, ProtocolError, Url
from tollgate.adapters.http_connection import MAX_HEAD
from tollgate.adapters.http_message import encode_head


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
        await closed(server.peers[0])


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
