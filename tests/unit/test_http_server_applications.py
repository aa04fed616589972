"""The HTTP server and applications that make mistakes: no mistake reaches another request."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.raw_client import GET, App, logged, refused, serving
from tests.raw_http import on_both_loops
from tests.waiting import PATIENCE_S
from tollgate.adapters.http_server import Lifespan
from tollgate.adapters.http_server_message import encode_head

LENGTH = (b"content-length", b"3")


async def _start(send: Any, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": list(headers)})


async def raises(scope: Any, receive: Any, send: Any) -> None:
    raise KeyError("a secret")


async def raises_late(scope: Any, receive: Any, send: Any) -> None:
    await _start(send, LENGTH)  # the head of such an answer is held
    raise KeyError("a secret")


async def silent(scope: Any, receive: Any, send: Any) -> None:
    return


async def splits_the_head(scope: Any, receive: Any, send: Any) -> None:
    await _start(send, (b"x", b"a\r\nset-cookie: b"))


async def body_first(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.body", "body": b"x"})


async def starts_twice(scope: Any, receive: Any, send: Any) -> None:
    await _start(send, LENGTH)
    await _start(send, LENGTH)


async def unknown(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.push"})


async def raises_within(scope: Any, receive: Any, send: Any) -> None:
    await _start(send)
    await send({"type": "http.response.body", "body": b"x", "more_body": True})
    raise KeyError("a secret")


async def leaves_within(scope: Any, receive: Any, send: Any) -> None:
    await _start(send)
    await send({"type": "http.response.body", "body": b"x", "more_body": True})


async def says_too_much(scope: Any, receive: Any, send: Any) -> None:
    await _start(send, LENGTH)
    await send({"type": "http.response.body", "body": b"x", "more_body": True})
    await send({"type": "http.response.body", "body": b"yzzz"})


async def says_too_little(scope: Any, receive: Any, send: Any) -> None:
    await _start(send, LENGTH)
    await send({"type": "http.response.body", "body": b"x", "more_body": True})
    await send({"type": "http.response.body", "body": b"y"})


async def starts_only(scope: Any, receive: Any, send: Any) -> None:
    await _start(send)


@pytest.mark.parametrize("app", [raises, raises_late, silent, splits_the_head, body_first, starts_twice, unknown])
def test_a_mistake_before_the_answer_is_a_500(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        async with serving(app) as it:
            refused(500, await it.say(GET + GET))
            head = await it.say(GET.replace(b"GET", b"HEAD"))
            assert head.startswith(b"HTTP/1.1 500 ")
            assert head.endswith(b"\r\n\r\n")

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    lines = logged(capsys)
    assert [line["level"] for line in lines] == ["ERROR"] * 2
    assert "secret" not in json.dumps(lines)


@pytest.mark.parametrize(
    ("app", "received"),
    [
        (raises_within, b"1\r\nx\r\n"),
        (leaves_within, b"1\r\nx\r\n"),
        (says_too_much, b"x"),
        (says_too_little, b"x"),
        (starts_only, b""),
    ],
)
def test_a_mistake_within_the_answer_breaks_it_off(
    app: App, received: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        async with serving(app) as it:
            assert (await it.say(GET + GET)).partition(b"\r\n\r\n")[2] == received

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    assert [line["level"] for line in logged(capsys)] == ["ERROR"]


@pytest.mark.parametrize(
    "header",
    [
        (b"x", b"a\r\nInjected: b"), (b"x", b"a\nb"), (b"x", b"a\rb"), (b"x", b"a\0b"), (b"x\r\ninjected", b"a"),
        (b"x ", b"a"), (b"x:y", b"a"), (b"", b"a"), (b"content-length", b"-1"), (b"content-length", b"1, 1"),
        (b"Content-Length", b"x"), (b"content-length", b""), (b"content-length", b"9" * 30),
    ],
)  # fmt: skip
def test_headers_cannot_change_the_answer(header: tuple[bytes, bytes]) -> None:
    for _ in range(2):  # what was refused is not remembered as known
        with pytest.raises(ValueError):
            encode_head(200, [(b"a", b"b"), header], close=False, chunked=True, bodiless=False)


def test_framing_is_the_servers() -> None:
    given = [(b"Transfer-Encoding", b"gzip"), (b"Connection", b"upgrade"), (b"Upgrade", b"x"), (b"X-Own", b"1")]
    head, _, close = encode_head(200, given, close=False, chunked=True, bodiless=False)
    assert head == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-own: 1\r\n\r\n"
    assert not close
    for status in (100, 101, 199, 1000, -1):
        with pytest.raises(ValueError):
            encode_head(status, [], close=False, chunked=True, bodiless=False)
    twice = [(b"content-length", b"1"), (b"Content-Length", b"1")]
    with pytest.raises(ValueError):
        encode_head(200, twice, close=False, chunked=True, bodiless=False)


@on_both_loops
async def test_lifespan() -> None:
    events: list[str] = []

    async def proper(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        for phase in ("startup", "shutdown"):
            events.append((await receive())["type"])
            await send({"type": f"lifespan.{phase}.complete"})

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no store"})

    lifespan = Lifespan(proper)
    assert await lifespan.startup() is None
    await lifespan.shutdown()
    assert events == ["lifespan.startup", "lifespan.shutdown"]
    assert await Lifespan(failing).startup() == "no store"
    for without in (raises, silent):  # by the specification: served all the same
        lifespan = Lifespan(without)
        assert await lifespan.startup() is None
        await lifespan.shutdown()
