"""Degradation through a running stack: the header, the model that serves, the record, and the end of it."""

from __future__ import annotations

from tests.functional.callers import Callers


def test_beyond_the_threshold_a_cheaper_model_serves_and_the_answer_says_so(callers: Callers) -> None:
    caller = callers("soft")
    answers = [caller.chat(model="large", max_tokens=20) for _ in range(3)]
    streamed = caller.chat(model="large", stream=True)
    assert [answer.status for answer in (*answers, streamed)] == [200] * 4
    told = [answer.headers.get("x-tollgate-degraded") for answer in (*answers, streamed)]
    degraded = "model=small; from=large; max_output_tokens=5; budget=tenant.requests.day; at=0.5"
    assert told == [None, None, degraded, degraded]
    assert [answer.json["model"] for answer in answers] == ["gpt-4o", "gpt-4o", "gpt-4o-mini"]
    assert [answer.json["usage"]["completion_tokens"] for answer in answers] == [20, 20, 5]
    entries = callers.entries(caller, 4)
    assert [(e["model"], e["degraded_from"], e["output_tokens"]) for e in entries] == [
        ("large", "", 20),
        ("large", "", 20),
        ("small", "large", 5),
        ("small", "large", 5),
    ]
    refused = caller.chat(model="large")
    assert refused.status == 402
    assert "It resets at " in refused.error["message"]
    assert "GET /v1/usage shows your budgets." in refused.error["message"]
