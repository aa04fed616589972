"""The demo model's answers: what each route of OpenAI's and Anthropic's APIs, and of Converse, says, whole and
streamed."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tollgate.local import demo_text
from tollgate.wire import eventstream

EMBEDDING_SIZE = 8
KNOWN = frozenset({
    "frequency_penalty", "inferenceConfig", "input", "instructions", "max_completion_tokens", "max_output_tokens",
    "max_tokens", "messages", "model", "n", "presence_penalty", "prompt", "seed", "stop", "store", "stream",
    "stream_options", "system", "temperature", "tool_choice", "tools", "top_p", "user",
})  # fmt: skip
"""Request fields that are not echoed."""


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


@dataclass(frozen=True)
class Event:
    """One server-sent event. `tokens` is how many tokens of answer it brings; `usage`: it only reports usage."""

    name: str
    data: bytes | dict[str, Any]
    tokens: int = 0
    usage: bool = False

    def encode(self, *, binary: bool = False) -> bytes:
        data = self.data if isinstance(self.data, bytes) else json.dumps(self.data, separators=(",", ":")).encode()
        if binary:
            return eventstream.event(self.name, data)
        return (f"event: {self.name}\n".encode() if self.name else b"") + b"data: " + data + b"\n\n"


@dataclass(frozen=True)
class Api:
    """One route: where its prompt and maxima are, and how its answers look, whole and streamed."""

    prompts: tuple[str, ...]
    maxima: tuple[str, ...]
    whole: Callable[[Job], dict[str, Any]]
    events: Callable[[Job], Iterator[Event]] | None = None
    binary: bool = False
    """Bedrock's Converse: its streams are binary, and its maxima stand in `inferenceConfig`."""


# Chat completions


def _openai_usage(job: Job) -> dict[str, Any]:
    return {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.output_tokens,
        "total_tokens": job.prompt_tokens + job.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def echo(job: Job) -> dict[str, Any]:
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
    base |= {**echo(job), **({"usage": None} if asked else {})}
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


# Bedrock's Converse


def _converse_usage(job: Job) -> dict[str, Any]:
    usage = {"inputTokens": job.prompt_tokens, "outputTokens": job.output_tokens}
    return {"usage": usage | {"totalTokens": job.prompt_tokens + job.output_tokens}, "metrics": {"latencyMs": 1}}


def _stop_reason(job: Job) -> str:
    return "max_tokens" if job.finish == "length" else "end_turn"


def _converse(job: Job) -> dict[str, Any]:
    message = {"role": "assistant", "content": [{"text": _text(job)}]}
    return {"output": {"message": message}, "stopReason": _stop_reason(job), **_converse_usage(job)}


def _converse_events(job: Job) -> Iterator[Event]:
    yield Event("messageStart", {"role": "assistant"})
    for word in demo_text.words(job.answer_tokens):
        yield Event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": word}}, tokens=1)
    yield Event("contentBlockStop", {"contentBlockIndex": 0})
    yield Event("messageStop", {"stopReason": _stop_reason(job)})
    yield Event("metadata", _converse_usage(job), usage=True)


CONVERSE = Api(("messages", "system"), ("maxTokens",), _converse, _converse_events, binary=True)
APIS = {
    "/chat/completions": Api(("messages",), ("max_completion_tokens", "max_tokens"), _chat, _chat_events),
    "/completions": Api(("prompt",), ("max_tokens",), _completion, _completion_events),
    "/embeddings": Api(("input",), (), _embeddings),
    "/responses": Api(("input", "instructions"), ("max_output_tokens",), _response, _response_events),
    "/messages": Api(("messages", "system"), ("max_tokens",), _message, _message_events),
}
