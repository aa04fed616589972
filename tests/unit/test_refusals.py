"""Refusals are counted per minute, caller and rule, and written once the minute is over, or the process ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from functions.metering.handler import split
from tests.contract.test_limit_store import requests
from tollgate.domain import keys
from tollgate.domain.audit import Refusals
from tollgate.domain.identity import Identity
from tollgate.domain.limits import Admission, Decision, Status
from tollgate.services import refusals
from tollgate.services.refusals import MAX_KEYS, OTHERS, RefusalCounts
from tollgate.wire import errors
from tollgate.wire.refusals import refusal_error

NOON = 1_795_262_400_000_000
ANN = Identity("acme", "ann", team="red", key="k1")
BUSY = errors.rate_limit_exceeded("", 1, "User")


class Counts:
    """What a process counts, on a clock that tests set, and the lines that it has written."""

    def __init__(self) -> None:
        self.now = NOON + 1_000_000
        self.lines: list[Mapping[str, Any]] = []
        self.wrote = asyncio.Event()
        self.made = RefusalCounts(self, lambda: self.now)

    def write(self, record: Mapping[str, Any]) -> None:
        self.lines.append(record)
        self.wrote.set()

    def count(
        self, error: errors.ApiError = BUSY, who: Identity | None = ANN, address: str = "", id: str = "r"
    ) -> None:
        self.made.count(error, who, address, id)

    def written(self) -> list[Refusals]:
        self.made.flush()
        return [Refusals.parse(line) for line in self.lines]


def run(story: Any) -> None:
    asyncio.run(story(Counts()))


def test_many_refusals_are_one_line() -> None:
    async def story(counts: Counts) -> None:
        for i in range(1000):
            counts.count(id=f"req_{i}")
        (line,) = counts.written()
        assert (line.count, line.sample, line.ts_us) == (1000, "req_0", NOON)
        assert (line.status, line.rule) == (429, "rate_limit_exceeded")
        assert (line.tenant, line.user, line.team, line.key) == ("acme", "ann", "red", "k1")
        assert counts.written() == [line]

    run(story)


def test_another_caller_rule_or_minute_is_another_line() -> None:
    async def story(counts: Counts) -> None:
        counts.count()
        counts.count(errors.tenant_suspended())
        counts.count(who=ANN._replace(user="bob"))
        counts.now += 60_000_000
        counts.count()
        assert len(counts.lines) == 3  # of the minute that is over
        lines = counts.written()
        assert [line.ts_us - NOON for line in lines] == [0, 0, 0, 60_000_000]
        assert len({line.id for line in lines}) == 4

    run(story)


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (errors.invalid_api_key(), True),
        (errors.insufficient_quota(""), True),
        (errors.model_not_allowed("m"), True),
        (errors.exceeds_plan_limit(""), True),
        (errors.invalid_request(""), False),
        (errors.model_not_found("m"), False),
        (errors.upstream_error(), False),
        (errors.unavailable(""), False),
    ],
)
def test_what_is_a_refusal(error: errors.ApiError, counted: bool) -> None:
    async def story(counts: Counts) -> None:
        counts.count(error)
        assert len(counts.written()) == counted

    run(story)


def test_a_limit_is_named_by_its_id() -> None:
    async def story(counts: Counts) -> None:
        take = requests(1)
        decision = Decision(Status.REFUSED, NOON, [NOON + 60_000_000])
        counts.count(refusal_error(Admission("r", [take], 1), decision))
        assert [line.rule for line in counts.written()] == ["user.requests.minute"]

    run(story)


def test_who_is_not_known_is_counted_by_neighbourhood() -> None:
    async def story(counts: Counts) -> None:
        for address in ("192.0.2.1", "192.0.2.99", "2001:db8:1:2::3", "2001:db8:1:ffff::", "", "what?"):
            counts.count(errors.invalid_api_key(), None, address)
        found = {line.network: line.count for line in counts.written()}
        assert found == {"192.0.2.0/24": 2, "2001:db8:1::/48": 2, "": 1, "unknown": 1}
        assert keys.network("::ffff:192.0.2.7") == "192.0.2.0/24"

    run(story)


def test_lines_are_bounded_and_the_rest_is_counted_together() -> None:
    async def story(counts: Counts) -> None:
        for i in range(MAX_KEYS + 70):
            counts.count(who=ANN._replace(user=f"user-{i}"))
        counts.count(errors.tenant_suspended(), who=ANN._replace(user="one more"))
        lines = counts.written()
        assert len(lines) == MAX_KEYS + 2
        assert [(line.status, line.rule, line.count, line.tenant) for line in lines[-2:]] == [
            (429, OTHERS, 70, ""),
            (403, OTHERS, 1, ""),
        ]

    run(story)


def test_they_are_written_when_the_minute_is_over_without_another_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MINUTE_US", 20_000)

    async def story(counts: Counts) -> None:
        counts.count()
        assert counts.lines == []
        await asyncio.wait_for(counts.wrote.wait(), 60)

    run(story)


def test_metering_tells_them_from_usage_and_keeps_what_is_wrong() -> None:
    line = json.dumps(Refusals("p.1", NOON, 429, "user.requests.minute", 17, "req_1").line())
    usage = '{"event":"usage.close","v":1,"user":"refusals"}'
    wrong = ['{"event":"refusals","v":9}', '{"event":"refusals"', '["refusals"]']
    records, counted, letters, _ = split([usage, line, *wrong])
    assert (records, [it.count for it in counted]) == ([usage], [17])
    assert [letter.line for letter in letters] == wrong
