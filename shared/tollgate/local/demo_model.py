"""The demo model: a server with the API of OpenAI, of Anthropic, and Bedrock's Converse, that answers from a list of
words.

It is what `tollgate dev` sends requests to, so that nobody needs a provider's key to try the gateway, and it is a
real server to the gateway: it streams at a model's pace, counts tokens, honours `max_tokens` and `n`, adds the usage
chunk when `stream_options` asks for it, and keeps its own books (`GET /_counts`), with which bills can be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from tollgate.local import demo_text
from tollgate.local.children import Child, listening
from tollgate.local.demo_answers import APIS, CONVERSE, Api, Event, Job, echo
from tollgate.wire import converse, eventstream

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

EPILOG = """\
Environment:
  TOLLGATE_DEMO_TOKENS_PER_SECOND   pace of an answer (default 100; 0: as fast as possible)
  TOLLGATE_DEMO_FIRST_TOKEN_MS      milliseconds before its first token (default 100)
  TOLLGATE_DEMO_ANSWER_TOKENS       length of an answer unless the request sets a maximum below it (default 24)

Faults: a model of one of these names (or a header x-demo-fault with one) makes the request fail as providers do:
  fault-500               500 with an error body
  fault-429               429 with Retry-After: 7
  fault-401               401, as for a wrong provider key
  fault-garbage           200 with a body that is not JSON (streams: events that are not JSON)
  fault-close             closes the connection before it answers
  fault-close-mid-stream  streams three tokens, then closes the connection
  fault-stall             streams three tokens, then sends nothing for ten minutes
  fault-no-usage          answers without any usage
  slow                    streams one token every 0.3 s, after 0.3 s

GET /_counts answers {"requests", "input_tokens", "output_tokens"} of everything that was answered or produced.
"""

NOTHING_FOR_S = 600.0
SLOW_S = 0.3
TOKENS_BEFORE_FAULT = 3
MAX_ANSWER = 1_000_000


class Close(Exception):
    """Close the connection now, whatever was sent."""


@dataclass
class Pace:
    """How fast answers come: seconds to the first token, and between two."""

    first_s: float = 0.1
    between_s: float = 0.01
    answer_tokens: int = 24

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Pace:
        rate = float(environ.get("TOLLGATE_DEMO_TOKENS_PER_SECOND") or 100)
        return cls(
            first_s=float(environ.get("TOLLGATE_DEMO_FIRST_TOKEN_MS") or 100) / 1000,
            between_s=1 / rate if rate > 0 else 0.0,
            answer_tokens=int(environ.get("TOLLGATE_DEMO_ANSWER_TOKENS") or 24),
        )


@dataclass
class Counts:
    """The model's own books: what a provider would put on its bill."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, input_tokens: int, output_tokens: int) -> None:
        self.requests += 1
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens


class DemoModel:
    """The ASGI application."""

    def __init__(self, pace: Pace | None = None) -> None:
        self._pace = pace or Pace()
        self.counts = Counts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"].removeprefix("/v1")
        if method == "GET" and path == "/_counts":
            await _answer(send, 200, vars(self.counts))
        elif method == "GET" and path == "/models":
            models = [{"id": name, "object": "model", "created": 0, "owned_by": "demo"} for name in ("demo", "slow")]
            await _answer(send, 200, {"object": "list", "data": models})
        elif method == "POST" and path in APIS:
            await self._post(APIS[path], {}, scope, receive, send)
        elif method == "POST" and (route := converse.route_of(path)) is not None:
            known = {"model": route.model, "stream": route.operation == "converse-stream"}
            await self._post(CONVERSE, known, scope, receive, send)
        else:
            await _answer(send, 404, _error(f"no such route: {method} {scope['path']}", "not_found"))

    async def _post(self, api: Api, known: dict[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
        """`known`: what the path says."""
        body = await _body(receive)
        try:
            fields = json.loads(body) | known
            job = self._job(api, fields, dict(scope["headers"]))
        except (ValueError, TypeError, AttributeError) as error:
            await _answer(send, 400, _error(f"bad request: {error}", "invalid_request_error"))
            return
        if job.fault in STATUS_FAULTS:
            status, headers = STATUS_FAULTS[job.fault]
            await _answer(send, status, _error(f"the demo model was told to answer {status}", "demo_fault"), headers)
        elif job.fault == "fault-close":
            # our server holds the head of an answer of known length until there is a body, and closes where none comes
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        elif job.fault == "fault-garbage" and not job.stream:
            await _answer(send, 200, b"<html>not JSON")
        elif job.stream and api.events is not None:
            await self._stream(api, api.events(job), job, receive, send)
        else:
            await self._whole(api, job, send)

    def _job(self, api: Api, fields: dict[str, Any], headers: Mapping[bytes, bytes]) -> Job:
        model = str(fields.get("model", ""))
        fault = headers.get(b"x-demo-fault", model.encode()).decode("ascii", "replace")
        limits = fields.get("inferenceConfig") or {} if api.binary else fields
        asked = next((limits[name] for name in api.maxima if limits.get(name) is not None), MAX_ANSWER)
        length = 0 if api.events is None else min(self._pace.answer_tokens, int(asked))
        return Job(
            fields=fields,
            model=model,
            fault=fault,
            stream=bool(fields.get("stream")),
            prompt_tokens=sum(demo_text.count_content(fields.get(name)) for name in api.prompts),
            answer_tokens=length,
            choices=int(fields.get("n") or 1),
            finish="length" if length < self._pace.answer_tokens else "stop",
        )

    async def _whole(self, api: Api, job: Job, send: Send) -> None:
        slow = job.fault == "slow"
        first_s, between_s = (SLOW_S, SLOW_S) if slow else (self._pace.first_s, self._pace.between_s)
        await asyncio.sleep(NOTHING_FOR_S if job.fault == "fault-stall" else first_s + between_s * job.answer_tokens)
        self.counts.add(job.prompt_tokens, job.output_tokens)
        answer = api.whole(job)
        if job.fault == "fault-no-usage":
            answer.pop("usage", None)
        await _answer(send, 200, {**answer, **echo(job)})

    async def _stream(self, api: Api, events: Iterator[Event], job: Job, receive: Receive, send: Send) -> None:
        kind = eventstream.CONTENT_TYPE if api.binary else b"text/event-stream"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        produced = 0
        gone = asyncio.ensure_future(receive())  # the request has been read: this ends when the client leaves
        try:
            async for event in self._paced(events, job):
                if gone.done():
                    return  # as providers do, stop producing for nobody
                produced += event.tokens
                await send({"type": "http.response.body", "body": event.encode(binary=api.binary), "more_body": True})
        except Close:
            return
        finally:
            gone.cancel()
            # a provider bills what was produced, whether or not it arrived
            self.counts.add(job.prompt_tokens, produced)
        await send({"type": "http.response.body", "body": b""})

    async def _paced(self, events: Iterator[Event], job: Job) -> AsyncIterator[Event]:
        slow = job.fault == "slow"
        produced = 0
        await asyncio.sleep(SLOW_S if slow else self._pace.first_s)
        for event in events:
            if event.usage and job.fault == "fault-no-usage":
                continue
            if produced >= TOKENS_BEFORE_FAULT:
                if job.fault == "fault-close-mid-stream":
                    raise Close
                if job.fault == "fault-stall":
                    await asyncio.sleep(NOTHING_FOR_S)
            if job.fault == "fault-garbage":
                yield Event("", b"this is not JSON", tokens=event.tokens)
                continue
            yield event
            produced += event.tokens
            if event.tokens:
                await asyncio.sleep(SLOW_S if slow else self._pace.between_s)


STATUS_FAULTS: dict[str, tuple[int, list[tuple[bytes, bytes]]]] = {
    "fault-500": (500, []),
    "fault-429": (429, [(b"retry-after", b"7")]),
    "fault-401": (401, []),
}


def _error(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": kind}}


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _answer(
    send: Send, status: int, body: Mapping[str, Any] | bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": fixed + (headers or [])})
    await send({"type": "http.response.body", "body": raw})


def model_child(port: int, env: Mapping[str, str]) -> Child:
    """The demo model's process, not started yet."""
    command = [sys.executable, "-m", "tollgate.local.demo_model", "--port", str(port)]
    return Child("model", command, env, ready=lambda: listening(port))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tollgate.local.demo_model",
        description="An OpenAI-compatible server that answers from a list of words.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=8090, help="port on 127.0.0.1 (default 8090)")
    port = parser.parse_args().port
    from tollgate.adapters.http_server import serve

    sys.exit(serve(lambda: DemoModel(Pace.from_env(os.environ)), "127.0.0.1", port, drain_s=1))


if __name__ == "__main__":
    main()
