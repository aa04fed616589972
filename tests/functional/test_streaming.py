"""Streams: chunks reach the caller as the model makes them, and nothing is held back, merged or lost."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from itertools import pairwise
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.functional.callers import HELLO, Caller, Callers
from tests.functional.scripted import DONE_EVENT, USAGE_EVENT, Exchange, Gate, ScriptedUpstream, delta
from tests.waiting import PATIENCE_S, wait

ASKED = {"stream": True, "stream_options": {"include_usage": True}}
SCRIPTED = {**HELLO, "model": "scripted"}


@pytest.fixture(scope="module")
def caller(callers: Callers) -> Caller:
    return callers()


@pytest.mark.parametrize("options", [{"stream": True}, ASKED], ids=["plain", "with usage"])
def test_a_chunk_arrives_before_the_next_is_made(
    caller: Caller, upstream: ScriptedUpstream, options: dict[str, Any]
) -> None:
    """The provider makes each chunk only when the caller has the one before: no clock is needed to prove it."""
    words = ["one", "two", "three"]
    gates = {word: Gate() for word in words}

    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        for word in words:
            exchange.send(delta(word))
            gates[word].wait()
        exchange.send(USAGE_EVENT)
        exchange.send(DONE_EVENT)
        exchange.end_stream()

    with upstream.play(script), caller.sdk() as client:
        chunks = []
        for chunk in client.chat.completions.create(**SCRIPTED, **options):
            chunks.append(chunk)
            if chunk.choices:
                gates[str(chunk.choices[0].delta.content)].open()
    assert [chunk.choices[0].delta.content for chunk in chunks if chunk.choices] == words
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == ([10] if options is ASKED else [])


def test_half_an_event_is_passed_on_where_nothing_has_to_be_kept_back(
    caller: Caller, upstream: ScriptedUpstream
) -> None:
    event = delta("whole")
    gate = Gate()

    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        exchange.send(event[:40])
        gate.wait()
        exchange.send(event[40:] + USAGE_EVENT + DONE_EVENT)
        exchange.end_stream()

    body = json.dumps({**SCRIPTED, **ASKED}).encode()
    with upstream.play(script), caller.begin("POST", "/v1/chat/completions", body) as response:
        assert response.status == 200
        assert response.read1(1000) == event[:40]
        gate.open()
        assert response.read() == event[40:] + USAGE_EVENT + DONE_EVENT


def test_the_head_arrives_before_the_first_chunk(caller: Caller, upstream: ScriptedUpstream) -> None:
    gate = Gate()

    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        gate.wait()
        exchange.send(DONE_EVENT)
        exchange.end_stream()

    body = json.dumps({**SCRIPTED, "stream": True}).encode()
    with upstream.play(script), caller.begin("POST", "/v1/chat/completions", body) as response:
        assert response.status == 200
        assert response.headers["content-type"] == "text/event-stream"
        assert "content-length" not in response.headers
        gate.open()
        assert response.read() == DONE_EVENT


def test_the_slow_model_is_heard_while_it_speaks(caller: Caller) -> None:
    """It makes a token every 0.3 s. Asynchronous, with the time of every chunk."""

    async def listen() -> list[float]:
        async with AsyncOpenAI(api_key=caller.token, base_url=f"{caller.url}/v1") as client:
            question: dict[str, Any] = {**HELLO, "model": "slow", "max_tokens": 5}
            stream = await client.chat.completions.create(**question, stream=True)
            return [time.monotonic() async for chunk in stream if chunk.choices[0].delta.content]

    arrived = asyncio.run(listen())
    assert len(arrived) == 5
    # four pauses of 0.3 s lie between the first and the last; had they come together there would be none
    assert arrived[-1] - arrived[0] >= 0.8
    assert sum(later - earlier >= 0.1 for earlier, later in pairwise(arrived)) >= 3


def test_events_are_the_providers_own_bytes(caller: Caller, upstream: ScriptedUpstream) -> None:
    """Comments, odd line ends, several events at once, one in pieces: all as it was sent, but for the usage chunk that
    only the gateway asked for."""
    pieces = [
        b": keep-alive\n\n" + delta("a", x_new={"k": 1}),
        delta("b")[:17],
        delta("b")[17:] + delta("c").replace(b"\n", b"\r\n") + b"event: ping\nid: 7\ndata: {}\n\n",
        delta('text with "usage": {"prompt_tokens": 1} in it'),
        USAGE_EVENT[:30],
        USAGE_EVENT[30:],
        DONE_EVENT,
    ]

    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        for piece in pieces:
            exchange.send(piece)
        exchange.end_stream()

    with upstream.play(script) as requests:
        with_usage = caller.post("/v1/chat/completions", {**SCRIPTED, **ASKED})
        without = caller.post("/v1/chat/completions", {**SCRIPTED, "stream": True})
    assert with_usage.body == b"".join(pieces)
    assert without.body == b"".join(pieces).replace(USAGE_EVENT, b"")
    assert requests[0].json == {**SCRIPTED, "model": "scripted-model", **ASKED}
    assert requests[1].json == requests[0].json, "usage is asked for in every case"


def test_a_caller_who_leaves_does_not_disturb_the_others(
    caller: Caller, callers: Callers, upstream: ScriptedUpstream
) -> None:
    """Three streams are cut by a reset after their first chunk; their slots come back and the gateway goes on."""
    few = callers(limits=[{"scope": "tenant", "concurrent": 3}])
    gate = Gate()

    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        exchange.send(delta("one"))
        gate.wait()
        exchange.send(delta("two") + USAGE_EVENT + DONE_EVENT)
        exchange.end_stream()

    body = json.dumps({**SCRIPTED, "stream": True}).encode()
    host, port = caller.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {few.token}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode()
    with upstream.play(script):
        for _ in range(3):
            with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
                connection.sendall(head + body)
                received = b""
                while b"one" not in received:
                    received += connection.recv(65536)
                # no linger: the peer sees a reset, not an orderly end
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        assert few.chat().status == 429
        gate.open()
        wait(lambda: few.chat(max_tokens=1).status == 200)  # or a slot is stuck
    entries = callers.entries(few, 4)
    # billed for what the provider made, whether or not somebody was there to take it
    assert [entry["output_tokens"] for entry in entries] == [3, 3, 3, 1]
