"""The demo model: a server with the API of OpenAI (and of Anthropic) that answers from a list of words.

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
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from tollgate.local import demo_text
from tollgate.local.children import Child, listening

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
EMBEDDING_SIZE = 8
MAX_ANSWER = 1_000_000


KNOWN = frozenset({
    "frequency_penalty", "input", "instructions", "max_completion_tokens", "max_output_tokens", "max_tokens",
    "messages", "model", "n", "presence_penalty", "prompt", "seed", "stop", "store", "stream", "stream_options",
    "system", "temperature", "tool_choice", "tools", "top_p", "user",
})  # fmt: skip
"""Request fields that are not echoed."""


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


@dataclass
class Job:
    """One request, understood."""

    fields: dict[str, Any]
    model: str
    fault: str
    stream: bool
    prompt_tokens: int
    answer_tokens: int
    choices: int
    finish: str
    """``stop``, or ``length`` where the request's maximum cut the answer short."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def output_tokens(self) -> int:
        return self.answer_tokens * self.choices


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
            await self._post(APIS[path], scope, receive, send)
        else:
            await _answer(send, 404, _error(f"no such route: {method} {scope['path']}", "not_found"))

    async def _post(self, api: Api, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        try:
            fields = json.loads(body)
            job = self._job(api, fields, dict(scope["headers"]))
        except (ValueError, TypeError, AttributeError) as error:
            await _answer(send, 400, _error(f"bad request: {error}", "invalid_request_error"))
            return
        if job.fault in STATUS_FAULTS:
            status, headers = STATUS_FAULTS[job.fault]
            await _answer(send, status, _error(f"the demo model was told to answer {status}", "demo_fault"), headers)
        elif job.fault == "fault-close":
            await _hang_up(send)
        elif job.fault == "fault-garbage" and not job.stream:
            await _answer(send, 200, b"<html>not JSON")
        elif job.stream and api.events is not None:
            await self._stream(api.events(job), job, receive, send)
        else:
            await self._whole(api, job, send)

    def _job(self, api: Api, fields: dict[str, Any], headers: Mapping[bytes, bytes]) -> Job:
        model = str(fields.get("model", ""))
        fault = headers.get(b"x-demo-fault", model.encode()).decode("ascii", "replace")
        asked = next((fields[name] for name in api.maxima if fields.get(name) is not None), MAX_ANSWER)
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
        await _answer(send, 200, {**answer, **_echo(job)})

    async def _stream(self, events: Iterator[Event], job: Job, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        produced = 0
        gone = asyncio.ensure_future(receive())  # the request has been read: this ends when the client leaves
        try:
            async for event in self._paced(events, job):
                if gone.done():
                    return  # as providers do, stop producing for nobody
                produced += event.tokens
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
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


@dataclass(frozen=True)
class Event:
    """One server-sent event. `tokens` is how many tokens of answer it brings; `usage`: it only reports usage."""

    name: str
    data: bytes | dict[str, Any]
    tokens: int = 0
    usage: bool = False

    def encode(self) -> bytes:
        data = self.data if isinstance(self.data, bytes) else json.dumps(self.data, separators=(",", ":")).encode()
        return (f"event: {self.name}\n".encode() if self.name else b"") + b"data: " + data + b"\n\n"


@dataclass(frozen=True)
class Api:
    """One route: where its prompt and maxima are, and how its answers look, whole and streamed."""

    prompts: tuple[str, ...]
    maxima: tuple[str, ...]
    whole: Callable[[Job], dict[str, Any]]
    events: Callable[[Job], Iterator[Event]] | None = None


# Chat completions


def _openai_usage(job: Job) -> dict[str, Any]:
    return {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.output_tokens,
        "total_tokens": job.prompt_tokens + job.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _echo(job: Job) -> dict[str, Any]:
    """Fields that this server does not know come back unchanged, so that one can see whether they arrived."""
    unknown = {name: value for name, value in job.fields.items() if name not in KNOWN}
    return {"echo": unknown} if unknown else {}


def _text(job: Job) -> str:
    return "".join(demo_text.words(job.answer_tokens)).rstrip()


def _chat(job: Job) -> dict[str, Any]:
    message = {"role": "assistant", "content": _text(job), "refusal": None}
    return {
        "id": f"chatcmpl-{job.id}",
        "object": "chat.completion",
        "created": job.created,
        "model": job.model,
        "choices": [
            {"index": i, "message": message, "logprobs": None, "finish_reason": job.finish} for i in range(job.choices)
        ],
        "usage": _openai_usage(job),
        "system_fingerprint": "fp_demo",
    }


def _chunks(job: Job, kind: str, id_: str, choice: Callable[[str | None, bool], dict[str, Any]]) -> Iterator[Event]:
    """The chunks of a streamed OpenAI completion: one for each token, the end, and usage if asked for. `choice` makes
    a choice of a token's text (None: the end) and whether it is the first."""
    asked = (job.fields.get("stream_options") or {}).get("include_usage") is True
    base = {"id": id_, "object": kind, "created": job.created, "model": job.model, "system_fingerprint": "fp_demo"}
    # with include_usage every chunk has the key, and only the last one a value
    base |= {**_echo(job), **({"usage": None} if asked else {})}
    words = list(demo_text.words(job.answer_tokens))
    for i, word in enumerate(words):
        text = word.rstrip() if i == len(words) - 1 else word
        for index in range(job.choices):
            yield Event("", {**base, "choices": [{"index": index, **choice(text, i == 0)}]}, tokens=1)
    for index in range(job.choices):
        end = {"index": index, **choice(None, False), "finish_reason": job.finish}
        yield Event("", {**base, "choices": [end]})
    if asked:
        yield Event("", {**base, "choices": [], "usage": _openai_usage(job)}, usage=True)
    yield Event("", b"[DONE]")


def _chat_events(job: Job) -> Iterator[Event]:
    def choice(text: str | None, first: bool) -> dict[str, Any]:
        delta = {} if text is None else {"content": text}
        return {"delta": ({"role": "assistant"} if first else {}) | delta, "logprobs": None, "finish_reason": None}

    return _chunks(job, "chat.completion.chunk", f"chatcmpl-{job.id}", choice)


# Completions and embeddings


def _completion(job: Job) -> dict[str, Any]:
    return {
        "id": f"cmpl-{job.id}",
        "object": "text_completion",
        "created": job.created,
        "model": job.model,
        "choices": [
            {"index": i, "text": _text(job), "logprobs": None, "finish_reason": job.finish} for i in range(job.choices)
        ],
        "usage": _openai_usage(job),
    }


def _completion_events(job: Job) -> Iterator[Event]:
    def choice(text: str | None, first: bool) -> dict[str, Any]:
        return {"text": text or "", "logprobs": None, "finish_reason": None}

    return _chunks(job, "text_completion", f"cmpl-{job.id}", choice)


def _embeddings(job: Job) -> dict[str, Any]:
    given = job.fields.get("input")
    number = len(given) if isinstance(given, list) and not all(isinstance(x, int) for x in given) else 1
    vector = [round(1 / (i + 2), 6) for i in range(EMBEDDING_SIZE)]
    return {
        "object": "list",
        "model": job.model,
        "data": [{"object": "embedding", "index": i, "embedding": vector} for i in range(number)],
        "usage": {"prompt_tokens": job.prompt_tokens, "total_tokens": job.prompt_tokens},
    }


# Responses


def _response(job: Job, *, status: str | None = None) -> dict[str, Any]:
    cut = job.finish == "length"
    status = status or ("incomplete" if cut else "completed")
    done = status != "in_progress"
    message = {
        "type": "message",
        "id": f"msg_{job.id}",
        "status": status,
        "role": "assistant",
        "content": [{"type": "output_text", "text": _text(job), "annotations": []}],
    }
    usage = {
        "input_tokens": job.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": job.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": job.prompt_tokens + job.output_tokens,
    }
    return {
        "id": f"resp_{job.id}",
        "object": "response",
        "created_at": job.created,
        "model": job.model,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if done and cut else None,
        "output": [message] if done else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "store": bool(job.fields.get("store", True)),
        "usage": usage if done else None,
    }


def _response_events(job: Job) -> Iterator[Event]:
    number = 0

    def event(name: str, data: dict[str, Any], tokens: int = 0) -> Event:
        nonlocal number
        number += 1
        return Event(name, {"type": name, "sequence_number": number - 1, **data}, tokens)

    item = {"item_id": f"msg_{job.id}", "output_index": 0, "content_index": 0}
    yield event("response.created", {"response": _response(job, status="in_progress")})
    for word in demo_text.words(job.answer_tokens):
        yield event("response.output_text.delta", {**item, "delta": word}, 1)
    yield event("response.output_text.done", {**item, "text": _text(job)})
    final = _response(job)
    if job.fault == "fault-no-usage":
        final["usage"] = None
    yield event("response.incomplete" if job.finish == "length" else "response.completed", {"response": final})


# Anthropic's messages


def _anthropic_usage(job: Job, output_tokens: int) -> dict[str, Any]:
    cached = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    return {"input_tokens": job.prompt_tokens, **cached, "output_tokens": output_tokens}


def _message(job: Job) -> dict[str, Any]:
    return {
        "id": f"msg_{job.id}",
        "type": "message",
        "role": "assistant",
        "model": job.model,
        "content": [{"type": "text", "text": _text(job)}],
        "stop_reason": "max_tokens" if job.finish == "length" else "end_turn",
        "stop_sequence": None,
        "usage": _anthropic_usage(job, job.output_tokens),
    }


def _message_events(job: Job) -> Iterator[Event]:
    def event(name: str, data: dict[str, Any], tokens: int = 0) -> Event:
        return Event(name, {"type": name, **data}, tokens)

    told = job.fault != "fault-no-usage"
    whole = _message(job)
    start = {**whole, "content": [], "stop_reason": None, "usage": _anthropic_usage(job, 1) if told else None}
    yield event("message_start", {"message": start})
    yield event("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}})
    yield event("ping", {})
    for word in demo_text.words(job.answer_tokens):
        yield event("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": word}}, 1)
    yield event("content_block_stop", {"index": 0})
    end: dict[str, Any] = {"delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None}}
    yield event("message_delta", end | ({"usage": {"output_tokens": job.output_tokens}} if told else {}))
    yield event("message_stop", {})


APIS = {
    "/chat/completions": Api(("messages",), ("max_completion_tokens", "max_tokens"), _chat, _chat_events),
    "/completions": Api(("prompt",), ("max_tokens",), _completion, _completion_events),
    "/embeddings": Api(("input",), (), _embeddings),
    "/responses": Api(("input", "instructions"), ("max_output_tokens",), _response, _response_events),
    "/messages": Api(("messages", "system"), ("max_tokens",), _message, _message_events),
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


async def _hang_up(send: Send) -> None:
    """Close the connection. ASGI has no message for that before an answer has begun (a server then answers 500 by
    itself), so this takes hold of uvicorn's own connection; with another `send` nothing happens."""
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is not None:
        transport.close()
        await asyncio.sleep(0.01)  # until uvicorn knows


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
    import uvicorn

    # a closed connection is what some faults are: uvicorn's complaints about them say nothing. Idle connections live
    # longer here than in the gateway's pool: else both ends may use and close one at the same moment
    uvicorn.run(
        DemoModel(Pace.from_env(os.environ)), host="127.0.0.1", port=port, log_level="critical", access_log=False,
        lifespan="off", timeout_graceful_shutdown=1, timeout_keep_alive=75,
    )  # fmt: skip


if __name__ == "__main__":
    main()
