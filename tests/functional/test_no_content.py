"""Prompts and answers stay between caller and model: marked text goes through every route, to success and to every kind
of failure, and is found in nothing that any process writes, nor in the ledger."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.aws_fixture import ENVIRON
from tests.functional.callers import Caller, Callers
from tests.functional.scripted import DONE_EVENT, Exchange, ScriptedUpstream, delta
from tests.functional.stack import DevStack
from tests.functional.test_serve import Served, policy
from tollgate.wire import eventstream
from tollgate.wire.converse import route_of as converse_route
from tollgate.wire.errors import Api
from tollgate.wire.routes import ROUTES, Route

MARK = "QUOKKA-7f3a"
"""Stands in everything that a caller or a model says."""

PROMPTS: dict[str, Any] = {
    "messages": [{"role": "user", "content": f"tell {MARK}"}],
    "prompt": f"tell {MARK}",
    "input": f"tell {MARK}",
}
BAD_BODIES = (
    f'{{"model": "small", "{MARK}": '.encode(),
    f'["{MARK}"]'.encode(),
    f'"{MARK}'.encode() + b"\xff",
    f'{{"model": "{MARK}", "messages": [{{"role": "user", "content": "x"}}], "prompt": "x", "input": "x"}}'.encode(),
    f'{{"model": "small", "model": "{MARK}"}}'.encode(),
    f'{{"model": "small", "messages": "{MARK}", "prompt": {{"{MARK}": 1}}, "input": {{"{MARK}": 1}}}}'.encode(),
    f'{{"model": "small", "messages": [{{"role": "{MARK}"}}], "n": "{MARK}", "max_tokens": "{MARK}"}}'.encode(),
    f'{{"model": "small", "messages": [{{}}], "service_tier": "{MARK}", "tools": [{{"type": "{MARK}"}}]}}'.encode(),
)


def whole(status: int, **more: Any) -> Callable[[Exchange], None]:
    body = {"id": MARK, "choices": [{"message": {"content": MARK}}], "output": MARK, **more}
    return lambda exchange: exchange.whole(status, json.dumps(body).encode(), x_request_id=MARK, server=MARK)


def stream(*pieces: bytes, ends: bool = True, kind: str = "text/event-stream") -> Callable[[Exchange], None]:
    def script(exchange: Exchange) -> None:
        exchange.begin_stream(kind)
        for piece in pieces:
            exchange.send(piece)
        exchange.end_stream() if ends else exchange.break_off()

    return script


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "input_tokens": 3, "output_tokens": 2}
USAGE_EVENT = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n"
ERROR_EVENT = b"data: " + json.dumps({"type": "error", "error": {"message": MARK, "type": MARK}}).encode() + b"\n\n"
ANSWERS: dict[str, Callable[[Exchange], None]] = {
    "whole": whole(200, usage=USAGE),
    "without usage": whole(200),
    "with absurd usage": whole(200, usage={"prompt_tokens": MARK, "completion_tokens": [MARK]}),
    "an error": whole(200, error={"message": MARK, "code": MARK}),
    "refused": whole(400, error={"message": MARK}),
    "not allowed": whole(401, error={"message": MARK}),
    "too many": whole(429, error={"message": MARK}),
    "failed": whole(500, error={"message": MARK}),
    "an unheard-of status": whole(299, error={"message": MARK}),
    "no JSON": lambda exchange: exchange.whole(200, f"<html>{MARK}".encode()),
    "streamed": stream(delta(MARK), USAGE_EVENT, DONE_EVENT),
    "streamed without usage": stream(delta(MARK), DONE_EVENT),
    "streamed garbage": stream(f"data: {{{MARK}\n\n".encode(), f"{MARK}: {MARK}\n\n".encode()),
    "streamed error": stream(delta(MARK), ERROR_EVENT),
    "broken off": stream(delta(MARK), f'data: {{"choices": "{MARK}'.encode(), ends=False),
    "binary": stream(
        eventstream.event("contentBlockDelta", f'{{"delta":{{"text":"{MARK}"}}}}'.encode()),
        eventstream.event("metadata", json.dumps({"usage": {"inputTokens": MARK}, MARK: MARK}).encode()),
        kind=eventstream.CONTENT_TYPE.decode(),
    ),
    "binary error": stream(
        eventstream.failure("modelStreamErrorException", json.dumps({"message": MARK}).encode()),
        f"no message: {MARK}".encode(),
        kind=eventstream.CONTENT_TYPE.decode(),
    ),
    "nothing": lambda exchange: exchange.break_off(),
}


def provoke(caller: Caller, upstream: ScriptedUpstream, models: Mapping[Api, str]) -> Iterator[int]:
    """Say the mark in every way there is, to a model of each API; gives the statuses of the answers."""
    nova = models["converse"]
    paths = f"/model/{nova}/converse", f"/model/{nova}/converse-stream"
    routes: dict[str, Route | None] = {path: converse_route(path) for path in paths}
    for path, route in (routes | ROUTES).items():
        assert route is not None
        model = models[route.api]
        prompt = {route.prompt: PROMPTS[route.prompt], "user": MARK, "metadata": {MARK: MARK}}
        for script in ANSWERS.values():
            for streamed in (False, True):
                fields = {"model": model, "max_tokens": 20, "stream": streamed, **prompt}
                with upstream.play(script):
                    try:
                        yield caller.post(path, fields).status
                    except http.client.IncompleteRead:
                        yield 0  # a whole answer that began and broke off
        for body in BAD_BODIES:
            yield caller.post(path, body).status
        yield caller.post(path, {"model": model, **prompt}, {"authorization": f"Bearer {MARK}.{MARK}.{MARK}"}).status
        yield caller.post(path, {"model": model, **prompt}, {"x-tollgate-use-case": f"{MARK} {MARK}"}).status
        yield caller.post(f"{path}?q={MARK}", {"model": model, **prompt}, {"x-any": MARK}).status
    yield caller.get(f"/v1/{MARK}").status
    yield caller.get(f"/v1/models/{MARK}").status


def test_a_gateways_output_holds_no_content(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    path = Path(policy(upstream, tmp_path))
    document = yaml.safe_load(path.read_text())
    for model, api in (("claude", "anthropic"), ("nova", "converse")):
        document["upstreams"][model] = {"api": api, "base_url": upstream.base_url, "region": "us-east-1"}
        document["models"][model] = {**document["models"]["small"], "route": [{"upstream": model, "model": "m"}]}
        document["plans"]["open"]["models"].append(model)
    path.write_text(yaml.safe_dump(document))
    with Served(str(path), upstream, **ENVIRON) as served:
        models: dict[Api, str] = {"openai": "small", "anthropic": "claude", "converse": "nova"}
        statuses = set(provoke(served.caller(), upstream, models))
        assert {200, 400, 401, 404, 502, 503} <= statuses
        assert 500 not in statuses
        assert {"ok", "upstream_error", "upstream_closed"} <= {r["outcome"] for r in served.records("usage.close")}
        assert MARK not in served.output()


@pytest.mark.long
def test_nor_does_any_part_of_the_stack(stack: DevStack, callers: Callers, upstream: ScriptedUpstream) -> None:
    caller = callers()
    models: dict[Api, str] = {"openai": "scripted", "anthropic": "claude", "converse": "nova"}
    assert {200, 400, 401, 404, 502, 503} <= set(provoke(caller, upstream, models))
    entries = callers.entries(caller, 1)
    assert entries
    assert MARK not in json.dumps(entries)
    assert MARK not in stack.log()
