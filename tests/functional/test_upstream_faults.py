"""Providers that fail, each in its way: the caller is told clearly, what was held is settled, and the use recorded.

Every test has one slot and one budget: whatever is not given back is missed by the request that follows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.functional.callers import HELLO_ESTIMATE, Answer, Caller, Callers
from tests.functional.scripted import DONE_EVENT, Exchange, ScriptedUpstream, delta

BUDGET = 400
HELD = 300
"""Answer tokens that each request asks for, so that no two holds fit beside each other."""


@pytest.fixture
def make_caller(callers: Callers) -> Callable[[], Caller]:
    budgets = [{"scope": "user", "tokens": BUDGET, "per": "day"}, {"scope": "user", "requests": 2, "per": "month"}]
    return lambda: callers(limits=[{"scope": "tenant", "concurrent": 1}], budgets=budgets)


@pytest.fixture
def caller(make_caller: Callable[[], Caller]) -> Caller:
    return make_caller()


def spend_the_rest(caller: Caller, used: int) -> None:
    """Everything but what was really `used` can be had at once, in one request; and not a token more."""
    rest = BUDGET - used - HELLO_ESTIMATE
    assert caller.chat(max_tokens=rest + 1).status in (400, 402)
    assert caller.chat(max_tokens=rest).status == 200


def events(answer: Answer) -> list[Any]:
    """The data of a stream's events, parsed where it is JSON."""
    found: list[Any] = []
    for line in answer.body.decode().splitlines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            found.append(json.loads(data) if data.startswith("{") else data)
    return found


FAILURES = {
    "fault-500": (502, "upstream_error", "upstream_error"),
    "fault-401": (502, "upstream_error", "upstream_error"),
    "fault-429": (503, "upstream_rate_limited", "upstream_error"),
    "fault-close": (502, "upstream_error", "upstream_closed"),
}
"""By the demo model's name for it: the status and code that the caller gets, and the outcome that is recorded."""


@pytest.mark.parametrize("model", FAILURES)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_no_answer(caller: Caller, model: str, stream: bool) -> None:
    answer = caller.chat(model=model, max_tokens=HELD, stream=stream)
    status, code, _ = FAILURES[model]
    assert answer.status == status
    assert answer.error["code"] == code
    assert answer.error["type"] == "server_error"
    assert "demo model" not in answer.error["message"], "what a provider says of our key is not the caller's business"
    assert answer.headers["retry-after"] == ("7" if model == "fault-429" else None)
    spend_the_rest(caller, 0)


def test_no_answer_is_recorded_and_costs_nothing(make_caller: Callable[[], Caller], callers: Callers) -> None:
    """Neither at once nor when metering has looked at it: two requests fit into the budget, and still do."""
    tried = {model: make_caller() for model in FAILURES}
    for model, caller in tried.items():
        assert caller.chat(model=model, max_tokens=HELD).status >= 500
        assert caller.chat(max_tokens=1).status == 200
    for model, caller in tried.items():
        status, _, outcome = FAILURES[model]
        entry, _ = callers.entries(caller, 2)
        assert (entry["outcome"], entry["status"]) == (outcome, status)
        assert (entry["input_tokens"], entry["output_tokens"], entry["cost_microusd"]) == (0, 0, 0)
        assert [caller.chat(max_tokens=1).status for _ in range(2)] == [200, 402]
        assert callers.colleague(caller, "bob").chat(max_tokens=1).status == 200


def test_a_whole_answer_that_is_garbage(caller: Caller, callers: Callers) -> None:
    answer = caller.chat(model="fault-garbage", max_tokens=HELD)
    assert answer.status == 502
    assert "not JSON" in answer.error["message"]
    spend_the_rest(caller, 0)
    entry, _ = callers.entries(caller, 2)
    assert (entry["outcome"], entry["output_tokens"]) == ("upstream_error", 0)


def test_a_stream_that_is_garbage(caller: Caller) -> None:
    answer = caller.chat(model="fault-garbage", max_tokens=HELD, stream=True)
    assert answer.status == 200, "it had begun well"
    *garbage, last = events(answer)
    assert set(garbage) == {"this is not JSON"}
    assert last["error"]["code"] == "upstream_error"
    spend_the_rest(caller, 0)


@pytest.mark.parametrize(
    ("model", "outcome", "code"),
    [
        ("fault-close-mid-stream", "upstream_closed", "upstream_error"),
        ("fault-stall", "timed_out", "upstream_timeout"),
    ],
)
def test_a_stream_that_breaks_off(caller: Caller, callers: Callers, model: str, outcome: str, code: str) -> None:
    """What was produced is paid for, by an estimate: its usage never came."""
    answer = caller.chat(model=model, max_tokens=HELD, stream=True)
    assert answer.status == 200
    *chunks, last = events(answer)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "the gate lets "
    assert last["error"]["code"] == code
    assert answer.body.endswith(b"\n\n")
    produced = -(-len("the gate lets ") // 4)
    spend_the_rest(caller, HELLO_ESTIMATE + produced)
    entry, _ = callers.entries(caller, 2)
    assert (entry["outcome"], entry["estimated"]) == (outcome, True)
    assert (entry["input_tokens"], entry["output_tokens"]) == (HELLO_ESTIMATE, produced)


def test_the_sdk_raises_when_a_stream_breaks_off(caller: Caller) -> None:
    with caller.sdk() as client:
        stream = client.chat.completions.create(
            model="fault-close-mid-stream", messages=[{"role": "user", "content": "Hello"}], stream=True
        )
        words = []
        with pytest.raises(openai.APIError) as caught:  # noqa: PT012 - the error comes after the words
            for chunk in stream:
                words.append(chunk.choices[0].delta.content)
    assert words == ["the ", "gate ", "lets "]
    assert "closed the connection" in caught.value.message


def test_no_answer_in_time(caller: Caller, callers: Callers) -> None:
    answer = caller.chat(model="fault-stall", max_tokens=HELD)
    assert answer.status == 504
    assert answer.error["code"] == "upstream_timeout"
    spend_the_rest(caller, 0)
    entry, _ = callers.entries(caller, 2)
    assert (entry["outcome"], entry["status"]) == ("timed_out", 504)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_answer_without_usage_is_estimated(caller: Caller, callers: Callers, stream: bool) -> None:
    answer = caller.chat(model="fault-no-usage", max_tokens=HELD, stream=stream)
    assert answer.status == 200
    assert b"error" not in answer.body
    (entry,) = callers.entries(caller, 1)
    assert (entry["outcome"], entry["estimated"], entry["input_tokens"]) == ("ok", True, HELLO_ESTIMATE)
    assert 15 <= entry["output_tokens"] <= 30, "24 words"
    spend_the_rest(caller, HELLO_ESTIMATE + entry["output_tokens"])


def test_the_callers_own_mistake_is_told_in_the_providers_words(caller: Caller, upstream: ScriptedUpstream) -> None:
    body = b'{"error": {"message": "temperature is too high", "type": "invalid_request_error", "extra": 1}}'
    with upstream.play(lambda exchange: exchange.whole(400, body, set_cookie="a=b", x_request_id="up-1")):
        answer = caller.chat(model="scripted", max_tokens=HELD)
    assert (answer.status, answer.body) == (400, body)
    assert answer.headers["x-upstream-request-id"] == "up-1"
    assert answer.headers["set-cookie"] is None
    assert answer.headers["x-request-id"].startswith("req_")
    spend_the_rest(caller, 0)


def test_an_absurd_usage_is_not_believed(caller: Caller, upstream: ScriptedUpstream, callers: Callers) -> None:
    body = b'{"choices": [{"message": {"content": "Hello"}}], "usage": {"prompt_tokens": -5, "completion_tokens": 1e9}}'
    with upstream.play(lambda exchange: exchange.whole(200, body)):
        answer = caller.chat(model="scripted", max_tokens=HELD)
    assert (answer.status, answer.body) == (200, body)
    (entry,) = callers.entries(caller, 1)
    assert entry["estimated"]
    assert entry["input_tokens"] == HELLO_ESTIMATE


def test_more_than_the_hold_is_a_debt(caller: Caller, upstream: ScriptedUpstream, callers: Callers) -> None:
    """A provider that ignores the maximum: the overage is charged, once, and nothing more is admitted."""
    body = b'{"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": 900, "total_tokens": 908}}'
    with upstream.play(lambda exchange: exchange.whole(200, body)):
        assert caller.chat(model="scripted", max_tokens=HELD).status == 200
    refused = caller.chat(max_tokens=1)
    assert refused.status == 402
    assert "0 tokens left" in refused.error["message"]
    (entry,) = callers.entries(caller, 1)
    assert entry["output_tokens"] == 900


def test_an_answer_that_breaks_off(caller: Caller, upstream: ScriptedUpstream) -> None:
    def script(exchange: Exchange) -> None:
        exchange._handler.send_response(200)
        exchange._handler.send_header("content-length", "1000")
        exchange._handler.end_headers()
        exchange._handler.wfile.write(b'{"choices": [')
        exchange.break_off()

    with upstream.play(script):
        answer = caller.chat(model="scripted", max_tokens=HELD)
    assert answer.status == 502
    assert "closed the connection" in answer.error["message"]
    spend_the_rest(caller, 0)


def test_a_break_in_the_middle_of_an_event(caller: Caller, upstream: ScriptedUpstream) -> None:
    """The error is an event of its own, whatever was there before it."""

    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        exchange.send(delta("one"))
        exchange.send(delta("two")[:25])
        exchange.break_off()

    options = {"stream": True, "stream_options": {"include_usage": True}}
    with upstream.play(script):
        answer = caller.chat(model="scripted", max_tokens=HELD, **options)
    last = re.split(rb"\n\n", answer.body.removesuffix(b"\n\n"))[-1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_error"


def test_an_upstream_that_says_nothing_at_all(caller: Caller, upstream: ScriptedUpstream) -> None:
    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        exchange.end_stream()

    with upstream.play(script):
        answer = caller.chat(model="scripted", max_tokens=HELD, stream=True)
    assert events(answer)[0]["error"]["code"] == "upstream_error"
    spend_the_rest(caller, 0)


def test_a_stream_that_was_not_asked_for(caller: Caller, upstream: ScriptedUpstream, callers: Callers) -> None:
    """What it is decides how it is read, not what was asked for."""

    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        exchange.send(delta("one two three four"))
        exchange.send(DONE_EVENT)
        exchange.end_stream()

    with upstream.play(script):
        answer = caller.chat(model="scripted", max_tokens=HELD)
    assert answer.headers["content-type"] == "text/event-stream"
    (entry,) = callers.entries(caller, 1)
    assert (entry["estimated"], entry["output_tokens"]) == (True, 5)


@pytest.mark.parametrize("model", ["second-route", "second-answer"])
def test_the_second_route_serves(caller: Caller, callers: Callers, model: str) -> None:
    """One whose first place cannot be reached, and one whose first place answers 500."""
    whole = caller.chat(model=model, max_tokens=5)
    assert whole.status == 200
    assert whole.json["model"] == "gpt-4o"
    spend_the_rest(caller, 13)
    streamed = callers.colleague(caller, "bob").chat(model=model, max_tokens=5, stream=True)
    assert events(streamed)[0]["model"] == "gpt-4o"
    entry, *_ = callers.entries(caller, 3)
    assert (entry["upstream"], entry["upstream_model"], entry["output_tokens"]) == ("openai", "gpt-4o", 5)
