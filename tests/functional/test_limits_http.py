"""Limits as callers meet them: exactly the right requests are refused, and the answer says what to do."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.functional.callers import HELLO_ESTIMATE, Answer, Caller, Callers
from tests.functional.scripted import Exchange, Gate, ScriptedUpstream, completion
from tests.waiting import wait


def statuses(caller: Caller, number: int, **fields: Any) -> list[int]:
    return [caller.chat(max_tokens=1, **fields).status for _ in range(number)]


def largest_now(answer: Answer) -> int:
    """The maximum that a refusal says would fit now."""
    found = re.search(r"A max_tokens of up to (\d+) would fit now\.", answer.error["message"])
    assert found, answer.error["message"]
    return int(found[1])


# -- rates -----------------------------------------------------------------------------------------------------------


def test_a_request_rate_refuses_exactly_the_right_requests(callers: Callers) -> None:
    caller = callers("tight")
    answers = [caller.chat(max_tokens=1) for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]

    for left, answer in zip((2, 1, 0), answers, strict=False):
        headers = answer.headers
        assert headers["x-ratelimit-limit-requests"] == "3"
        assert headers["x-ratelimit-remaining-requests"] == str(left)
        # a request refills every 20 s
        reset = headers["x-ratelimit-reset-requests"]
        match = re.fullmatch(r"(?:(\d+)m)?(\d+(?:\.\d{1,3})?)s", reset)
        assert match, reset
        assert 0 <= (3 - left) * 20 - (int(match[1] or 0) * 60 + float(match[2])) < 15
        assert '"user.requests.minute";q=3;w=60' in headers["ratelimit-policy"]
        assert f'"user.requests.minute";r={left};t=' in headers["ratelimit"]
        assert "retry-after" not in headers
        assert "x-ratelimit-type" not in headers

    first, second = answers[3:]
    assert first.headers["x-ratelimit-type"] == "User"
    assert second.headers["x-ratelimit-type"] == "Local-User", "known here: no store was asked"
    for answer in (first, second):
        assert 1 <= int(answer.headers["retry-after"]) <= 20
        assert answer.error["code"] == "rate_limit_exceeded"
        assert answer.error["type"] == "requests"
        assert "3 requests per minute" in answer.error["message"]
        # a refusal says where the caller stands, too
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert '"user.requests.minute";q=3;w=60' in answer.headers["ratelimit-policy"]
        assert '"user.requests.minute";r=0;t=' in answer.headers["ratelimit"]

    # neither a colleague's share nor another tenant's is touched
    assert statuses(callers.colleague(caller, "bob"), 3) == [200, 200, 200]
    assert statuses(callers("tight"), 3) == [200, 200, 200]


def test_the_burst_is_exact_under_concurrency(callers: Callers) -> None:
    caller = callers(limits=[{"scope": "user", "requests": 7, "per": "day"}, {"scope": "tenant", "concurrent": 50}])
    with ThreadPoolExecutor(8) as threads:
        answered = list(threads.map(lambda _: caller.chat(max_tokens=1).status, range(24)))
    assert sorted(answered) == [200] * 7 + [429] * 17


def test_the_tenants_rate_is_shared_by_its_users(callers: Callers) -> None:
    alice = callers(limits=[{"scope": "tenant", "requests": 3, "per": "day"}])
    bob = callers.colleague(alice, "bob")
    assert [user.chat(max_tokens=1).status for user in (alice, bob, alice)] == [200, 200, 200]
    refused = bob.chat(max_tokens=1)
    assert refused.status == 429
    assert refused.headers["x-ratelimit-type"] == "Tenant"


def test_a_refusal_takes_nothing(callers: Callers) -> None:
    """The user's own rate refuses; the tenant's, which would have had room, is left whole for the colleague."""
    limits = [{"scope": "user", "requests": 2, "per": "day"}, {"scope": "tenant", "requests": 4, "per": "day"}]
    alice = callers(limits=limits)
    assert statuses(alice, 6) == [200, 200, 429, 429, 429, 429]
    assert statuses(callers.colleague(alice, "bob"), 3) == [200, 200, 429]


def test_a_token_rate_names_what_would_fit_and_gives_back_what_was_not_used(callers: Callers) -> None:
    caller = callers(limits=[{"scope": "user", "tokens": 1000, "per": "day"}])
    first = caller.chat(max_tokens=900)  # held: 907; used: 8 + 24
    assert first.status == 200
    assert first.headers["x-ratelimit-limit-tokens"] == "1000"
    assert first.headers["x-ratelimit-remaining-tokens"] == str(1000 - 900 - HELLO_ESTIMATE)
    refused = caller.chat(max_tokens=990)
    assert refused.status == 429
    assert refused.error["type"] == "tokens"
    assert refused.headers["x-ratelimit-type"] == "User"
    fit = largest_now(refused)
    assert 0 <= fit - (1000 - 32 - HELLO_ESTIMATE) <= 1, "what was held beyond real usage is back"
    # the refusal is remembered for a second, and only for requests that need as much
    wait(lambda: caller.chat(max_tokens=990).headers["x-ratelimit-type"] == "Local-User")
    assert caller.chat(max_tokens=fit).status == 200


def test_concurrent_requests(callers: Callers, upstream: ScriptedUpstream) -> None:
    caller = callers(limits=[{"scope": "tenant", "concurrent": 2}])
    gate = Gate()

    def script(exchange: Exchange) -> None:
        gate.wait()
        exchange.whole(200, completion())

    with upstream.play(script) as requests, ThreadPoolExecutor(2) as threads:
        held = [threads.submit(caller.chat, model="scripted") for _ in range(2)]
        wait(lambda: len(requests) == 2)
        refused = [callers.colleague(caller, "bob").chat(max_tokens=1) for _ in range(2)]
        gate.open()
        assert [future.result().status for future in held] == [200, 200]
    for answer in refused:
        assert answer.status == 429
        assert answer.headers["x-ratelimit-type"] == "Tenant", "slots come back any moment: never refused from memory"
        assert answer.headers["retry-after"] == "1"
        assert "in flight" in answer.error["message"]
    assert statuses(caller, 3) == [200, 200, 200]


# -- budgets ---------------------------------------------------------------------------------------------------------


def test_a_token_budget_answers_402_and_names_its_reset(callers: Callers) -> None:
    caller = callers(budgets=[{"scope": "user", "tokens": 200, "per": "day"}])
    # each uses 8 + 24 tokens and holds 7 + 24
    assert [caller.chat(max_tokens=24).status for _ in range(6)] == [200] * 6
    day_before = datetime.now(UTC)
    refused = [caller.chat(max_tokens=24) for _ in range(2)]
    for answer in refused:
        assert answer.status == 402
        assert answer.error["code"] == "insufficient_quota"
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
        resets = [(day + timedelta(days=1)).strftime("%Y-%m-%dT00:00:00Z") for day in (day_before, datetime.now(UTC))]
        told = answer.error["message"]
        assert any(f"It resets at {reset}; calls in flight may free some of it sooner." in told for reset in resets)
        assert "200 tokens per day, 8 tokens left" in told
    assert refused[0].headers["x-ratelimit-type"] == "User"
    wait(lambda: caller.chat(max_tokens=24).headers["x-ratelimit-type"] == "Local-User")
    # what is left can still be spent, to the last token
    assert largest_now(refused[0]) == 1
    assert caller.chat(max_tokens=1).status == 200
    assert caller.chat(max_tokens=1).status == 402
    assert callers.colleague(caller, "bob").chat(max_tokens=24).status == 200
    assert callers(budgets=[{"scope": "user", "tokens": 200, "per": "day"}]).chat(max_tokens=24).status == 200


def test_a_budget_is_never_overspent_under_concurrency(callers: Callers) -> None:
    """Requests are exact. Of tokens, holds are: whoever sets a maximum that the model honours never overspends but by
    what the prompt's estimate was short of; this one is exact (7 tokens)."""
    slots = {"scope": "tenant", "concurrent": 50}
    caller = callers(limits=[slots], budgets=[{"scope": "tenant", "requests": 10, "per": "month"}])
    thrifty = callers(limits=[slots], budgets=[{"scope": "tenant", "tokens": 200, "per": "month"}])
    exact = [{"role": "user", "content": "Extraordinary"}]
    with ThreadPoolExecutor(8) as threads:
        answered = list(threads.map(lambda _: caller.chat(max_tokens=1).status, range(24)))
        tokens = list(threads.map(lambda _: thrifty.chat(messages=exact, max_tokens=13).status, range(24)))
    assert sorted(answered) == [200] * 10 + [402] * 14
    assert sorted(tokens) == [200] * 10 + [402] * 14
    assert sum(entry["input_tokens"] + entry["output_tokens"] for entry in callers.entries(thrifty, 10)) == 200


def test_an_answer_of_unknown_length_may_have_what_is_left(callers: Callers) -> None:
    """Without a maximum the hold is a guess, which shrinks to what is left instead of being refused."""
    caller = callers(budgets=[{"scope": "user", "tokens": 40, "per": "day"}])
    assert caller.chat().status == 200  # the guess alone is far more than 40
    assert caller.chat().status == 200  # 8 are left: the prompt fits
    refused = caller.chat()
    assert refused.status == 402
    assert "0 tokens left" in refused.error["message"]


def test_money(callers: Callers) -> None:
    """`scripted` costs $1 per million tokens of input, $2 of output: 7 + 3 tokens are 13 micro-dollars."""
    caller = callers(budgets=[{"scope": "tenant", "usd": "0.000045", "per": "life"}])
    # held: 7 of input (an estimate of its bytes), 3 of output
    answers = [caller.chat(model="scripted", max_tokens=3) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 402]
    message = answers[3].error["message"]
    assert "$0.000045 in all, $0.000006 left" in message
    assert "topped up" in message
    entries = callers.entries(caller, 3)
    assert [entry["cost_microusd"] for entry in entries] == [13, 13, 13]


@pytest.mark.parametrize(
    ("limit", "unit"),
    [
        ({"budgets": [{"scope": "user", "tokens": 500, "per": "day"}]}, "500 tokens per day"),
        ({"limits": [{"scope": "user", "tokens": 500, "per": "minute"}]}, "500 tokens per minute"),
        ({"budgets": [{"scope": "tenant", "usd": "0.001", "per": "month"}]}, "$0.001 per month"),
    ],
    ids=["budget", "rate", "money"],
)
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_what_can_never_fit_is_told_what_can(callers: Callers, limit: dict[str, Any], unit: str, field: str) -> None:
    """400, not "try again later"; and the maximum that it names is the very largest that is admitted."""
    caller = callers(**limit)
    refused = caller.chat(model="scripted", **{field: 501})
    assert refused.status == 400
    assert refused.error["code"] == "exceeds_plan_limit"
    assert refused.error["param"] == field
    assert refused.headers["x-should-retry"] == "false"
    assert unit in refused.error["message"]
    found = re.search(rf"The largest {field} that fits is (\d+)\.", refused.error["message"])
    assert found, refused.error["message"]
    largest = int(found[1])
    assert caller.chat(model="scripted", **{field: largest + 1}).status == 400
    assert caller.chat(model="scripted", **{field: largest}).status == 200


def test_n_answers_count_n_times(callers: Callers) -> None:
    caller = callers(budgets=[{"scope": "user", "tokens": 100, "per": "day"}])
    refused = caller.chat(max_tokens=30, n=4)
    assert refused.error["code"] == "exceeds_plan_limit"
    assert f"The largest max_tokens that fits is {(100 - HELLO_ESTIMATE) // 4}." in refused.error["message"]
    assert caller.chat(max_tokens=23, n=4).status == 200


# -- what operators change -------------------------------------------------------------------------------------------


def test_a_larger_budget_is_felt_within_10_s_without_a_new_token(callers: Callers) -> None:
    caller = callers(budgets=[{"scope": "user", "requests": 1, "per": "day"}])
    assert statuses(caller, 3) == [200, 402, 402]
    callers.put(caller.tenant, budgets=[{"scope": "user", "requests": 3, "per": "day"}])
    wait(lambda: caller.chat(max_tokens=1).status == 200)
    assert statuses(caller, 2) == [200, 402], "what was used before counts"


def test_the_caller_sees_own_limits_and_use(callers: Callers) -> None:
    caller = callers(budgets=[{"scope": "user", "tokens": 1000, "per": "day"}])
    assert caller.chat(max_tokens=5).status == 200
    callers.entries(caller, 1)
    seen = caller.get("/v1/usage").json
    assert (seen["tenant"], seen["user"], seen["plan"]) == (caller.tenant, "alice", "lab")
    assert {"scope": "tenant", "unit": "requests in flight", "limit": 5, "remaining": 5} in seen["limits"]
    assert [used["total_tokens"] for used in seen["used"]] == [13, 13]
    (tokens,) = [budget for budget in seen["budgets"] if budget["unit"] == "tokens"]
    assert (tokens["limit"], tokens["used"], tokens["remaining"]) == (1000, 13, 987)


def test_health_says_which_store_decides(callers: Callers) -> None:
    nobody = Caller(callers().url, "", "", "")
    answer = nobody.get("/healthz", {"authorization": ""})
    assert answer.status == 200
    assert answer.json["store"] == "redis"


def test_every_answer_has_a_request_id(callers: Callers) -> None:
    caller = callers()
    answers = [caller.chat(max_tokens=1), caller.chat(n=0), caller.get("/v1/models"), caller.get("/v1/nothing")]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 4
    assert all(ids)
