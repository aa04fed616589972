"""From the answer to the bill: every request is in the ledger once, with the tokens that the model itself counted."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from tests.functional.callers import HELLO, LEDGER_WITHIN_S, Callers
from tests.functional.scripted import DONE_EVENT, USAGE_EVENT, Exchange, Gate, ScriptedUpstream, delta
from tests.functional.stack import DevStack

WITH_USAGE = {"include_usage": True}
PROMPT = HELLO["messages"]
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": "small", "messages": PROMPT, "max_tokens": 3}),
    ("/v1/chat/completions", {"model": "large", "messages": PROMPT, "max_tokens": 5, "n": 2}),
    ("/v1/chat/completions", {"model": "small", "messages": PROMPT, "stream": True}),
    ("/v1/chat/completions", {"model": "small", "messages": PROMPT, "stream": True, "stream_options": WITH_USAGE}),
    ("/v1/completions", {"model": "small", "prompt": "Once upon a time", "max_tokens": 4}),
    ("/v1/embeddings", {"model": "embed", "input": ["one", "two words"]}),
    ("/v1/responses", {"model": "small", "input": "Hello, world", "max_output_tokens": 6}),
    ("/v1/responses", {"model": "small", "input": "Hello, world", "max_output_tokens": 6, "stream": True}),
    ("/v1/messages", {"model": "claude", "messages": PROMPT, "max_tokens": 7}),
    ("/v1/messages", {"model": "claude", "messages": PROMPT, "max_tokens": 7, "stream": True}),
]
"""One request of each kind."""
FIGURES = ("requests", "input_tokens", "output_tokens")


def test_the_ledger_agrees_with_the_model(stack: DevStack, callers: Callers) -> None:
    """All kinds of requests of two users from eight threads, among them some that are refused and cost nothing."""
    alice = callers(limits=[{"scope": "tenant", "concurrent": 100}])
    bob = callers.colleague(alice, "bob")
    before = stack.model_counts()

    def ask(i: int) -> int:
        path, fields = KINDS[i % len(KINDS)]
        if i % 7 == 0:
            assert alice.post(path, {**fields, "model": "unheard-of"}).status == 404
        return (alice, bob)[i % 3 == 0].post(path, fields).status

    number = 6 * len(KINDS)
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(ask, range(number))) == {200}
    answered = time.monotonic()
    after = stack.model_counts()
    counted = {figure: after[figure] - before[figure] for figure in FIGURES}
    assert counted["requests"] == number

    entries = callers.entries(alice, number)
    assert len(entries) == len({entry["id"] for entry in entries}) == number
    assert {entry["outcome"] for entry in entries} == {"ok"}
    assert not any(entry["estimated"] for entry in entries)
    for figure in FIGURES[1:]:
        assert sum(entry[figure] for entry in entries) == counted[figure]

    rows = stack.usage(alice.tenant)
    assert time.monotonic() - answered < LEDGER_WITHIN_S
    for figure in FIGURES:
        assert sum(row[figure] for row in rows) == counted[figure]
    assert all(row["total_tokens"] == row["input_tokens"] + row["output_tokens"] for row in rows)
    assert {row["tenant"] for row in rows} == {alice.tenant}
    assert {row["day"] for row in rows} <= {entry_day(entry) for entry in entries}
    # rows partition the usage: no two for the same, and no totals
    keys = [(row["user"], row["model"], row["provider"], row["day"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert {row["provider"] for row in rows if row["model"] == "claude"} == {"anthropic"}
    assert sum(row["requests"] for row in rows if row["user"] == "bob") == number // 3
    assert sum(row["cost_microusd"] for row in rows) == sum(entry["cost_microusd"] for entry in entries)


def entry_day(entry: dict[str, Any]) -> str:
    return datetime.fromtimestamp(entry["ts_us"] / 1e6, UTC).strftime("%Y-%m-%d")


def test_the_report_can_be_narrowed_to_a_user(stack: DevStack, callers: Callers) -> None:
    alice = callers()
    bob = callers.colleague(alice, "bob")
    for caller in (alice, bob, bob):
        assert caller.chat(max_tokens=1).status == 200
    callers.entries(alice, 3)
    told = json.loads(stack.run("usage", "--json", "--tenant", alice.tenant, "--user", "bob").stdout)
    assert [(row["user"], row["requests"]) for row in told["rows"]] == [("bob", 2)]


def test_an_entry_says_what_was_asked_and_what_it_cost(callers: Callers) -> None:
    """`claude` costs $1 per million tokens of input, $2 of output."""
    caller = callers()
    question = {"model": "claude", "messages": PROMPT, "max_tokens": 5}
    answer = caller.post("/v1/messages", question, {"x-tollgate-use-case": "nightly-report.v2"})
    assert answer.status == 200
    (entry,) = callers.entries(caller, 1)
    assert entry["id"] == answer.headers["x-request-id"]
    told = ("tenant", "user", "plan", "model", "upstream", "upstream_model", "route", "use_case", "outcome", "status")
    assert {name: entry[name] for name in told} == {
        "tenant": caller.tenant,
        "user": "alice",
        "plan": "lab",
        "model": "claude",
        "upstream": "anthropic",
        "upstream_model": "claude-demo",
        "route": "/v1/messages",
        "use_case": "nightly-report.v2",
        "outcome": "ok",
        "status": 200,
    }
    assert (entry["input_tokens"], entry["output_tokens"], entry["cost_microusd"]) == (8, 5, 18)
    assert entry["latency_ms"] >= entry["first_byte_ms"] >= 0
    assert "Hello" not in json.dumps(entry), "never a prompt or an answer"


def test_cached_and_reasoning_tokens_are_told_apart(callers: Callers, upstream: ScriptedUpstream) -> None:
    usage = (
        b'{"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150, "prompt_tokens_details":'
        b' {"cached_tokens": 64}, "completion_tokens_details": {"reasoning_tokens": 30}}'
    )
    caller = callers()
    with upstream.play(lambda exchange: exchange.whole(200, b'{"choices": [], "usage": ' + usage + b"}")):
        assert caller.chat(model="scripted").status == 200
    (entry,) = callers.entries(caller, 1)
    names = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")
    assert [entry[name] for name in names] == [100, 64, 50, 30]


def test_a_caller_who_leaves_pays_for_what_was_made(
    callers: Callers, upstream: ScriptedUpstream, stack: DevStack
) -> None:
    """On Lambda nobody notices that a caller has left: the answer is read to its end, and billed."""
    caller = callers()
    left = Gate()

    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        exchange.send(delta("one"))
        left.wait()
        for word in ("two", "three"):
            exchange.send(delta(word))
            time.sleep(0.05)
        exchange.send(USAGE_EVENT + DONE_EVENT)
        exchange.end_stream()

    body = json.dumps({**HELLO, "model": "scripted", "stream": True}).encode()
    with upstream.play(script):
        with caller.begin("POST", "/v1/chat/completions", body) as response:
            assert b"one" in response.read1(1000)
        left.open()
        (entry,) = callers.entries(caller, 1)
    assert (entry["input_tokens"], entry["output_tokens"], entry["estimated"]) == (7, 3, False)
    assert "dead letter" not in stack.log()
