"""Data rules over HTTP: on every route, streamed or not, whatever the caller adds to its request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.functional.callers import Answer, Callers
from tests.functional.scripted import Exchange, ScriptedUpstream, completion
from tollgate.wire.routes import ROUTES

RULES: dict[str, Mapping[str, Any]] = {
    "phi": {"phi": True},
    "regions": {"regions": ["eu"]},
    "no_content_logging": {"no_content_logging": True},
    "models": {"models": ["large"]},
}
LISTED = {
    "phi": {"guarded"},
    "regions": {"guarded", "nova", "nova-breaks"},
    "no_content_logging": {"guarded"},
    "models": {"large"},
}
PROMPTS: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "prompt": "hi",
    "input": "hi",
}
PLEAS: dict[str, Any] = {"team": "free", "tenant": "globex", "region": "eu", "metadata": {"phi": "false"}}
"""What a caller may add to its body. None of it is believed."""
HEADERS = {"x-tollgate-use-case": "phi", "x-tollgate-team": "free", "x-amzn-request-context": '{"authorizer":{}}'}


def request_for(path: str, model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, ROUTES[path].prompt: PROMPTS[ROUTES[path].prompt], "max_tokens": 5, **more}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_holds_on_every_route(callers: Callers, upstream: ScriptedUpstream, rule: str) -> None:
    caller = callers()
    callers.put(caller.tenant, data=RULES[rule])
    with upstream.play() as received:
        for path, route in ROUTES.items():
            model = "claude" if route.api == "anthropic" else "scripted"
            for stream in (False, True):
                answer = caller.post(path, request_for(path, model, stream=stream, **PLEAS), HEADERS)
                assert answer.status == 403, (path, answer.body)
                error = answer.json["error"]
                assert error.get("code", "data_rule") == "data_rule"
                assert "data rules" in error["message"]
        for path in ("/model/nova/converse", "/model/nova/converse-stream"):
            answer = caller.post(path, {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}, HEADERS)
            assert answer.status == (200 if rule == "regions" else 403), (path, answer.body)  # it is in Europe
        assert received == []
    listed = caller.get("/v1/models").json["data"]
    assert {model["id"] for model in listed} == LISTED[rule]


def unreachable(answer: Answer) -> bool:
    """Whether the call was allowed, and found nobody (at once, or on a very busy machine after a while)."""
    return (answer.status, answer.error["code"]) in ((502, "upstream_error"), (504, "upstream_timeout"))


def test_a_team_can_only_narrow_its_tenant(callers: Callers, upstream: ScriptedUpstream) -> None:
    tenant = callers().tenant
    callers.put(tenant, data={"phi": True}, teams={"labs": {"data": {"models": ["large"]}}})
    free = callers.colleague(tenant, "alice")
    labs = type(free)(free.url, tenant, "bob", callers.token(tenant, "bob", team="labs"))
    with upstream.play():
        assert unreachable(free.chat(model="guarded"))
        assert labs.chat(model="guarded").error["code"] == "data_rule"
        for caller in (free, labs):
            assert caller.chat(model="scripted").error["code"] == "data_rule"


def test_a_failover_never_goes_to_a_forbidden_place(callers: Callers, upstream: ScriptedUpstream) -> None:
    """`guarded` has a first route that is cleared and cannot be reached, and a second that is not and would serve."""
    everyone, cleared = callers(), callers()
    callers.put(cleared.tenant, data={"phi": True, "regions": ["eu"], "no_content_logging": True})
    with upstream.play(lambda exchange: exchange.whole(200, completion())) as received:
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"):
            for stream in (False, True):
                assert everyone.post(path, request_for(path, "guarded", stream=stream)).status == 200
                before = len(received)
                refused = cleared.post(path, request_for(path, "guarded", stream=stream))
                assert unreachable(refused)
                assert len(received) == before


def test_who_must_leave_nothing_behind_cannot_ask_for_it(callers: Callers, upstream: ScriptedUpstream) -> None:
    quiet = callers()
    callers.put(quiet.tenant, data={"no_content_logging": True})
    answer = quiet.chat(model="guarded", prompt_cache_retention="24h")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (403, "data_rule", "prompt_cache_retention")
    for retention in ("24h", "in_memory", None):

        def script(exchange: Exchange, retention: str | None = retention) -> None:
            assert exchange.received.json["prompt_cache_retention"] == retention
            exchange.whole(200, completion())

        with upstream.play(script):
            assert callers().chat(model="scripted", prompt_cache_retention=retention).status == 200


def test_the_command_line_knows_them(callers: Callers, stack: Any) -> None:
    tenant = callers().tenant
    change = "data={phi: true, regions: [eu, us-east-1]}"
    shown = json.loads(stack.run("tenant", "set", tenant, change, "teams.labs.data.models=[small]", "--json").stdout)
    assert shown["data"] == {"phi": True, "regions": ["eu", "us-east-1"]}
    assert shown["teams"] == {"labs": {"data": {"models": ["small"]}}}
    text = stack.run("tenant", "show", tenant).stdout
    assert "phi: true, regions: [eu, us-east-1]" in text
    assert "labs" in text
    refused = stack.run("tenant", "set", tenant, "data.phi=maybe", check=False)
    assert refused.returncode != 0
    assert "data.phi" in refused.stderr
    assert "true or false" in refused.stderr
