"""Degradation: what a plan makes of calls beyond a soft threshold of their budgets, and what it never does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_admit import NOON, SECOND, CountingStore
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.policy_file import FilePolicySource, parse
from tollgate.domain.degradation import Degraded, Levels
from tollgate.domain.identity import Identity
from tollgate.domain.limits import BudgetTake
from tollgate.domain.policy_document import PolicyErrors
from tollgate.services.admit import Admitter, Grant, Request
from tollgate.services.directory import Directory
from tollgate.wire.body import Body
from tollgate.wire.capabilities import cut_short, needs
from tollgate.wire.converse import route_of
from tollgate.wire.errors import ApiError
from tollgate.wire.routes import ROUTES, Call

POLICY = """
version: 1
upstreams:
  here: {api: openai, base_url: "http://127.0.0.1:9/v1"}
  other: {api: anthropic, base_url: "http://127.0.0.1:9/v1"}
models:
  large: {route: [{upstream: here, model: l}], price: {input: 10, output: 10}, class: chat}
  small:
    {route: [{upstream: here, model: s}], price: {input: 1, output: 1}, class: chat, context: 1000, serves: [tools]}
  plain: {route: [{upstream: here, model: p}], price: {input: 1, output: 1}}
  claude: {route: [{upstream: other, model: c}], price: {input: 1, output: 1}, class: chat, context: 1000}
plans:
  pro:
    models: [large, small, plain]
    budgets: [{scope: tenant, usd: 0.1, per: day}]
    degrade: {at: 0.5, models: {large: small}, max_output_tokens: 100}
tenants: {acme: {plan: pro}}
"""
CHAT = {"model": "large", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 200}


class Spent:
    def __init__(self, microusd: int) -> None:
        self.microusd = microusd

    async def spent(self, takes: Sequence[BudgetTake]) -> list[int]:
        return [self.microusd] * len(takes)


def read(fields: dict[str, Any], path: str = "/v1/chat/completions") -> tuple[Call, Body]:
    body = Body(json.dumps(fields).encode())
    route = ROUTES.get(path) or route_of(path)
    assert route is not None
    return route.read(body), body


class Container:
    """One container of many; they share a store and its clock."""

    now = NOON

    def __init__(self, folder: Path, spent: int = 0, text: str = POLICY, store: CountingStore | None = None) -> None:
        (folder / "policy.yaml").write_text(text)
        self.store = store or CountingStore(lambda: self.now)
        source = FilePolicySource(folder / "policy.yaml", {})
        directory = Directory(source, lambda: self.now, versioned=lambda: True)
        local = MemoryLimitStore(lambda: self.now)
        self.admitter = Admitter(self.store, Spent(spent), directory, local, lambda: self.now)
        self._ids = iter(range(10**9))

    async def ask(self, path: str = "/v1/chat/completions", **changes: Any) -> Grant | ApiError:
        fields = {name: value for name, value in {**CHAT, **changes}.items() if value is not None}
        call, body = read(fields, path)
        request = Request(
            f"r{next(self._ids)}", "openai", call.model, 10, call.max_output, 60 * SECOND, call.answers,
            call.max_output_field, call=call, fields=body.fields,
        )  # fmt: skip
        try:
            return await self.admitter.admit(Identity("acme", "ann"), "192.0.2.1", request, 300)
        except ApiError as error:
            return error

    def first(self, **changes: Any) -> Grant:
        """The answer to this container's first request (the budget is cold: one more call loads it)."""
        answer = asyncio.run(self.ask(**changes))
        assert isinstance(answer, Grant), answer
        return answer


def test_below_the_threshold_nothing_is_done(tmp_path: Path) -> None:
    container = Container(tmp_path, spent=49_999)
    grant = container.first()
    assert (grant.request.model, grant.request.degraded) == ("large", None)
    assert container.store.calls == 2, "its budget was cold, then it was admitted"


def test_a_cold_container_degrades_by_the_answer_of_the_admission_itself(tmp_path: Path) -> None:
    container = Container(tmp_path, spent=50_000)
    grant = container.first()
    assert grant.request.degraded == Degraded("large", "small", 100, "tenant.microusd.day", 0.5)
    assert grant.request.model == "small"
    assert [route.model for route in grant.entitlement.routes] == ["s"]
    assert container.store.calls == 2, "no further round trip"
    settled = grant.settlement(110, 110, counts=True)
    assert settled.takes == grant.admission.takes
    assert len(settled.used) == len(settled.takes)


def test_a_warm_container_takes_what_the_cheaper_model_needs(tmp_path: Path) -> None:
    async def ask() -> None:
        container = Container(tmp_path, spent=50_000)
        first, calls = await container.ask(), container.store.calls
        second = await container.ask()
        assert isinstance(first, Grant)
        assert isinstance(second, Grant)
        assert container.store.calls == calls + 1
        assert first.cost.microusd == 2_100  # held for large: ten tokens and two hundred
        assert second.cost.microusd == 110
        assert second.request.degraded == first.request.degraded

    asyncio.run(ask())


def test_it_ends_when_the_budget_is_larger_or_whole_again(tmp_path: Path) -> None:
    async def ask() -> None:
        container = Container(tmp_path, spent=50_000)
        assert isinstance(grant := await container.ask(), Grant)
        assert grant.request.degraded is not None
        container.now += 24 * 3600 * SECOND
        container.admitter._ledger.microusd = 0  # type: ignore[attr-defined]  # the test's own
        assert isinstance(grant := await container.ask(), Grant)
        assert grant.request.degraded is None

    asyncio.run(ask())


def test_what_large_cannot_pay_for_small_may(tmp_path: Path) -> None:
    """Cold, and the budget is nearly used up: the refusal of the large model tells, and the small one is tried."""
    container = Container(tmp_path, spent=99_000)
    assert container.first().request.model == "small"
    refused = asyncio.run(Container(tmp_path, spent=99_990).ask())
    assert isinstance(refused, ApiError)
    assert (refused.status, refused.code) == (402, "insufficient_quota")


def test_where_the_cheaper_model_has_limits_of_its_own_a_cold_container_serves_one_call_as_asked(
    tmp_path: Path,
) -> None:
    async def ask() -> None:
        text = POLICY.replace(
            "class: chat, context: 1000, serves",
            "limits: [{requests: 5, per: hour}], class: chat, context: 1000, serves",
        )
        container = Container(tmp_path, spent=50_000, text=text)
        served = [await container.ask() for _ in range(7)]
        models = [one.request.model if isinstance(one, Grant) else one.status for one in served]
        assert models == ["large", *["small"] * 5, 429]

    asyncio.run(ask())


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x,"}}]}]},
        {"response_format": {"type": "json_object"}},
        {"reasoning_effort": "high"},
        {"unheard_of": 1},
    ],
)
def test_what_the_cheaper_model_cannot_serve_it_is_not_given(tmp_path: Path, changes: dict[str, Any]) -> None:
    grant = Container(tmp_path, spent=50_000).first(**changes)
    assert grant.request.model == "large"
    assert grant.request.degraded is not None, "but its answers are cut short"
    assert grant.request.degraded.header == b"model=large; max_output_tokens=100; budget=tenant.microusd.day; at=0.5"


def test_a_model_that_costs_more_today_is_not_given(tmp_path: Path) -> None:
    """By the price table, which the policy's check cannot hold against it: prices change with time."""
    text = POLICY.replace(
        "route: [{upstream: here, model: s}], price: {input: 1, output: 1}", "route: [{upstream: here, model: s}]"
    )
    text += "prices: {here: {s: [{input: 11, output: 1}]}}"
    grant = Container(tmp_path, spent=50_000, text=text).first()
    assert grant.request.model == "large"


def test_what_it_can_serve_it_is_given(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert Container(tmp_path, spent=50_000).first(tools=tools).request.model == "small"


def test_a_prompt_that_may_not_fit_stays(tmp_path: Path) -> None:
    text = POLICY.replace("context: 1000, serves", "context: 112, serves")
    assert Container(tmp_path, spent=50_000, text=text).first().request.model == "small"
    text = POLICY.replace("context: 1000, serves", "context: 111, serves")
    assert Container(tmp_path, spent=50_000, text=text).first().request.model == "large"


def test_embeddings_are_never_degraded(tmp_path: Path) -> None:
    grant = Container(tmp_path, spent=50_000).first(path="/v1/embeddings", messages=None, max_tokens=None, input="hi")
    assert (grant.request.model, grant.request.degraded) == ("large", None)


def test_a_guess_is_cut_and_may_still_shrink(tmp_path: Path) -> None:
    grant = Container(tmp_path, spent=50_000).first(max_tokens=None, n=2)
    assert grant.request.output_tokens is None
    assert grant.request.degraded is not None


@pytest.mark.parametrize(
    ("path", "given", "changed"),
    [
        ("/v1/chat/completions", {}, {"max_completion_tokens": "100"}),
        ("/v1/chat/completions", {"max_tokens": 50}, {}),
        ("/v1/chat/completions", {"max_tokens": 500, "max_completion_tokens": 50}, {"max_tokens": "100"}),
        ("/v1/responses", {"max_output_tokens": 500}, {"max_output_tokens": "100"}),
        ("/v1/messages", {"max_tokens": 500}, {"max_tokens": "100"}),
        ("/v1/completions", {}, {"max_tokens": "100"}),
        ("/model/m/converse", {"inferenceConfig": {"topP": 1}}, {"inferenceConfig": '{"topP": 1, "maxTokens": 100}'}),
        ("/model/m/converse", {"inferenceConfig": {"maxTokens": 50}}, {}),
    ],
)
def test_answers_are_cut_short_where_the_caller_said_more(path: str, given: Any, changed: Any) -> None:
    content = {"messages": CHAT["messages"], "input": "hi", "prompt": "hi"}
    prompt = "messages" if path.startswith("/model/") else ROUTES[path].prompt
    call, body = read({"model": "m", prompt: content[prompt], **given}, path)
    assert cut_short(call, body.fields, 100) == changed


def messages(*content: dict[str, Any]) -> dict[str, Any]:
    return {"max_tokens": 1, "messages": [{"role": "user", "content": list(content)}]}


@pytest.mark.parametrize(
    ("path", "fields", "needed"),
    [
        ("/v1/chat/completions", {"temperature": 1, "stop": "x", "seed": 1, "logprobs": None}, set()),
        ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, {"tools"}),
        ("/v1/messages", messages({"type": "tool_result"}), {"tools"}),
        ("/v1/messages", messages({"type": "document", "source": {"url": "u"}}), {"media"}),
        ("/v1/messages", {**messages(), "thinking": {"type": "enabled"}}, {"reasoning"}),
        ("/v1/responses", {"input": [{"type": "function_call_output", "output": "x"}]}, {"tools"}),
        ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_schema"}}}, {"structured"}),
        ("/v1/chat/completions", {"top_logprobs": 2, "prediction": {}}, {"logprobs", "other"}),
        ("/v1/messages", messages({"type": "thinking", "thinking": "x"}), {"reasoning"}),
        ("/v1/messages", messages({"type": "text", "text": "x"}, {"type": "novelty"}), {"other"}),
        ("/v1/responses", {"input": [{"role": "user", "content": "x"}, {"type": "reasoning"}]}, {"reasoning"}),
        ("/model/m/converse", {"messages": [{"role": "user", "content": [{"text": "x"}]}]}, set()),
        ("/model/m/converse", {"messages": [{"content": [{"toolResult": {}}, {"document": {}}]}]}, {"tools", "media"}),
        ("/model/m/converse", {"inferenceConfig": {"maxTokens": 1}, "toolConfig": {"tools": []}}, {"tools"}),
        ("/model/m/converse", {"additionalModelRequestFields": {"top_k": 1}}, {"other"}),
    ],
)
def test_what_requests_need(path: str, fields: dict[str, Any], needed: set[str]) -> None:
    content = {"messages": CHAT["messages"]} if path != "/v1/responses" else {}
    call, body = read({"model": "m", **content, **fields}, path)
    assert needs(call, body.fields) == needed


@pytest.mark.parametrize(
    ("changed", "to", "said"),
    [
        ("{large: small}", "{large: plain}", "are not of the same class"),
        ("{large: small}", "{plain: large}", "are not of the same class"),
        ("{large: small}", "{small: large}", "costs more than"),
        ("{large: small}", "{small: large}", "has no context"),
        ("{large: small}", "{large: large}", "is the same model"),
        ("{large: small}", "{large: claude}", "the plan does not include the model 'claude'"),
        ("models: [large, small, plain]", "models: [large, small, plain, claude]", ""),
        ("{large: small}, max_output_tokens: 100", "{}", "give models, max_output_tokens, or both"),
        ("at: 0.5", "at: 1.5", "degrade.at"),
    ],
)
def test_a_policy_says_what_could_not_be_served(changed: str, to: str, said: str) -> None:
    text = POLICY.replace(changed, to)
    if not said:
        text = text.replace("{large: small}", "{large: claude}")
        said = "is not served in the shapes of every API"
    with pytest.raises(PolicyErrors) as errors:
        parse(text, {})
    assert said in str(errors.value)


def test_what_was_heard_is_believed_for_a_while_and_bounded() -> None:
    from tests.contract.test_ledger import take
    from tollgate.domain.limits import Decision, Status, Unit, Window

    levels, one = Levels(capacity=2), take(Unit.TOKENS, Window.DAY)
    levels.learn([one], Decision(Status.ADMITTED, NOON, [8 * 10**8 + 5], [5]))
    assert levels.passed(0.8, [one], NOON + 9 * SECOND) is one.limit
    assert levels.passed(0.81, [one], NOON) is None
    assert levels.passed(0.8, [one], NOON + 10 * SECOND) is None
    assert levels.passed(0.8, [one], NOON - SECOND) is None
    for window in (Window.MONTH, Window.LIFE):
        levels.learn([take(Unit.TOKENS, window)], Decision(Status.REFUSED, NOON, [0], [0]))
    assert levels.passed(0.8, [one], NOON) is None
