"""The simulator (bench/simulator): one seed gives one run, the product passes, and what is broken is caught."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import Any

import pytest

from bench.simulator.__main__ import simulate
from bench.simulator.judge import Judge
from bench.simulator.population import Call
from bench.simulator.report import Figures, table
from bench.simulator.scenarios import SCENARIOS, Flood, Scenario
from bench.simulator.simulation import asked, held_tokens
from bench.simulator.stores import RedisMemory
from bench.simulator.table import Items
from bench.simulator.virtual_time import run
from tollgate.adapters.aws import AwsError
from tollgate.adapters.breaker import MAX_CALM
from tollgate.adapters.dynamodb import Write, encode_item
from tollgate.domain.estimates import LEAST_PROMPT, Sample
from tollgate.domain.identity import Identity
from tollgate.domain.limits import (
    Admission,
    Budget,
    BudgetTake,
    Decision,
    Rate,
    RateTake,
    Scope,
    Settlement,
    Status,
    Unit,
    Window,
)
from tollgate.domain.usage import Usage
from tollgate.services.bills import sample_of

SMALL = {"tenants": 2_000, "containers": 300, "minutes": 0.25, "rps": 20.0}
GREEDY = replace(SCENARIOS["steady"], **SMALL, flood=Flood(60, 5, 0.1, 0.8, users=5, plan="enterprise"))
"""With a tenant that asks for three times its limit, so that a bucket that can overflow does."""

SHORT = {"tenants": 2_000, "containers": 2_000, "minutes": 0.03, "rps": 200.0}
"""Of a scenario with a flood of its own."""


class NeverRefuses(RedisMemory):
    """Takes what it is asked for, whether or not it fits."""

    async def admit(self, admission: Admission) -> Decision:
        decision = await super().admit(admission)
        if decision.status is Status.REFUSED:
            now = self._clock()
            decision.status = Status.ADMITTED
            decision.values = [now] * len(admission.takes)
            decision.granted = [getattr(take, "inc_us", 1) for take in admission.takes]
        return decision


class RefusesTooMuch(RedisMemory):
    """Believes every bucket to be as good as empty once it was touched."""

    async def admit(self, admission: Admission) -> Decision:
        for take in admission.takes:
            if isinstance(take, RateTake) and take.key in self._tats:
                self._tats[take.key] = self._clock() + take.limit.burst_us
        return await super().admit(admission)


@pytest.fixture(scope="module")
def greedy() -> Figures:
    return simulate(GREEDY, seed=3)


def share(figures: Figures, what: str) -> float:
    groups = figures["groups"].values()
    return sum(group[what] for group in groups) / sum(group["ideal_admits"] for group in groups)


def test_the_same_seed_gives_the_same_run() -> None:
    short = replace(GREEDY, minutes=0.08)
    first, again, other = (json.dumps(simulate(short, seed=seed)) for seed in (3, 3, 4))
    assert first == again != other


def test_on_redis_no_limit_is_exceeded_and_nobody_is_refused_falsely(greedy: Figures) -> None:
    refused = sum(group["refused"] for group in greedy["groups"].values())
    assert refused > 50  # there was something to get wrong
    assert {kind: verdict["beyond"] for kind, verdict in greedy["over_admission"].items()} == {
        "rates": 0,
        "budgets": 0,
        "slots": 0,
    }
    assert share(greedy, "missing") < 0.01
    assert share(greedy, "failed") == 0


@pytest.mark.parametrize("name", ["many-containers", "one-container"])
def test_on_dynamodb_neither(name: str) -> None:
    figures = simulate(replace(SCENARIOS[name], tenants=2_000, minutes=0.15, rps=10.0, greedy=5), seed=3)
    assert figures["over_admission"]["rates"]["beyond"] == 0
    assert share(figures, "missing") < 0.01
    assert figures["writes_per_subject"] >= 1


@pytest.mark.parametrize("changes", [SHORT, pytest.param({}, marks=pytest.mark.long)], ids=["short", "whole"])
def test_one_hot_tenant_starves_nobody(changes: dict[str, Any]) -> None:
    """It sends 2,000 requests a second to items of 1,000 writes a second: others are served, 99.9 % of them."""
    figures = simulate(replace(SCENARIOS["throttle"], **changes), seed=1)
    others = figures["groups"]["others"]
    assert others["ideal_admits"] > 250
    assert others["admitted"] >= 0.999 * others["ideal_admits"]
    turned_away = dict(figures["throttled_items"])
    assert turned_away.pop("limits of tenant") > 500
    assert not turned_away, "none of what is shared"


BRIEF = {"tenants": 2_000, "containers": 300, "minutes": 1.8, "rps": 2.0, "greedy": 5}
"""Long enough that greedy users empty their buckets, of a minute, before Redis is lost."""
LOST_S = 15.0
OUT_S = 0.7
"""From the first failure until a breaker is open (docs/architecture.md)."""


def overlap_s(figures: Figures, meanwhile_s: float) -> float:
    """How long some containers used one store and some the other, `meanwhile_s` while Redis was lost."""
    return OUT_S + meanwhile_s + float(figures["outage"]["decided_by_dynamodb_afterwards"]["max_s"])


@pytest.mark.parametrize("seed", [1, 3])
@pytest.mark.parametrize(("name", "meanwhile_s"), [("outage", 0.0), ("partition", LOST_S)])
def test_an_outage_fails_no_request_and_admits_what_the_docs_say(name: str, meanwhile_s: float, seed: int) -> None:
    """Half a burst, the overlap, and the one request that is not counted in parts. Containers are frozen in between,
    most for longer than the outage; nobody stays with DynamoDB because of that."""
    figures = simulate(replace(SCENARIOS[name], **BRIEF, **{name: (0.6, LOST_S)}), seed=seed)
    assert share(figures, "failed") == 0
    assert sum(figures["series"]["decided by dynamodb"]) > 20
    worst = figures["over_admission"]["rates"]["worst"]
    assert worst["limit"] == "user.requests.minute"
    assert 0 < worst["share"] <= 0.5 + (overlap_s(figures, meanwhile_s) + 1) / 60
    assert figures["outage"]["decided_by_dynamodb_afterwards"]["max_s"] <= MAX_CALM


def test_a_store_that_admits_too_much_is_caught() -> None:
    figures = simulate(GREEDY, seed=3, make_store=NeverRefuses)
    assert figures["over_admission"]["rates"]["beyond"] > 50


def test_a_store_that_refuses_too_much_is_caught() -> None:
    figures = simulate(GREEDY, seed=3, make_store=RefusesTooMuch)
    assert share(figures, "missing") > 0.2


def test_every_scenario_has_figures_for_people(greedy: Figures) -> None:
    boost = simulate(replace(SCENARIOS["boost"], **SMALL), seed=3)
    text = table([greedy, boost])
    assert "| steady | flood |" in text
    assert "boost: " in text


def test_the_judge_sees_one_microsecond_too_much() -> None:
    limit = Rate(Scope.USER, Unit.REQUESTS, 60, 60_000_000, 2, "user.requests.minute")
    take = RateTake("s", "k", limit, 1, 1)
    granted = [limit.inc_us(1)]
    for third_at, beyond in ((1_000_000, 0), (999_999, 1)):
        judge = Judge(0)
        for i, at_us in enumerate((0, 0, third_at)):
            judge.admitted(f"r{i}", "redis", at_us, [take], granted)
        assert judge.verdicts()["rates"].beyond == beyond


def test_the_judge_knows_debts_and_gifts() -> None:
    limit = Rate(Scope.USER, Unit.TOKENS, 60, 60_000_000, 60, "user.tokens.minute")
    take = RateTake("s", "k", limit, 60, 60)
    granted = [limit.inc_us(60)]
    for used, beyond in ((0, 0), (1, 1)):
        judge = Judge(0)
        judge.admitted("a", "redis", 0, [take], granted)
        judge.settled(Settlement("a", [take], [used], store="redis"), 0, 0)
        judge.admitted("b", "redis", 0, [take], granted)
        judge.settled(Settlement("b", [take], [90], store="dynamodb"), 0, 0)  # of another store: nobody's
        assert judge.verdicts()["rates"].beyond == beyond


def test_the_fleet_learns_as_the_gateway_does() -> None:
    """From long prompts only (a short one is mostly what a message costs beside its text), and from free answers."""
    for prompt_bytes, maximum, learned in (
        (LEAST_PROMPT - 1, 50, None),
        (LEAST_PROMPT - 1, None, Sample(LEAST_PROMPT - 1, 0, 40)),
        (LEAST_PROMPT, 50, Sample(LEAST_PROMPT, 120, 0)),
    ):
        call = Call("r", 1, Identity("t1", "u1"), "10.0.0.1", "small", prompt_bytes, maximum, Usage(120, 0, 0, 40), 1.0)
        assert sample_of(asked(call), call.usage) == learned


def test_a_hold_is_what_was_granted() -> None:
    """Where a guess shrank, that is less than was wanted."""
    limit = Rate(Scope.USER, Unit.TOKENS, 60, 60_000_000, 60, "user.tokens.minute")
    day = Budget(Scope.USER, Unit.TOKENS, 1_000, Window.DAY, "user.tokens.day")
    takes = [RateTake("s", "k", limit, 100, 10), BudgetTake("s", "b", day, 100, 10, *Window.DAY.bounds(0))]
    for granted, tokens in (([limit.inc_us(60), 100], 60), ([limit.inc_us(60), 25], 25)):
        assert held_tokens(takes, granted, 100) == tokens
    assert held_tokens([], [], 100) == 100


def test_an_hour_passes_at_once() -> None:
    async def wait() -> float:
        began = time.monotonic()
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(1))
        return time.monotonic() - began

    real = time.monotonic()
    assert run(wait(), seed=0) == pytest.approx(3600)
    assert time.monotonic() - real < 60


def test_waiting_for_nothing_is_an_error() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="everybody waits"):
        run(wait(), seed=0)


def update(items: Items, write: Write, now: float = 0.0) -> dict[str, object]:
    payload = {
        "Key": encode_item({"pk": "s#a"}),
        "UpdateExpression": write.update,
        "ReturnValues": "ALL_NEW",
        "ConditionExpression": write.condition,
        **write.payload(),
    }
    return items.answer("UpdateItem", {k: v for k, v in payload.items() if v}, now)["Attributes"]


def test_the_table_writes_under_conditions() -> None:
    items, write = Items(), Write()
    tat = write.name("tat")
    write.conditions.append(f"(attribute_not_exists({tat}) OR {tat} <= {write.value(5)})")
    write.sets += [f"{tat} = if_not_exists({tat}, {write.value(4)}) + {write.value(3)}"]
    assert update(items, write)["tat"] == {"N": "7"}
    with pytest.raises(AwsError, match="ConditionalCheckFailed") as refused:
        update(items, write)
    assert refused.value.body["Item"]["tat"] == {"N": "7"}
    between = Write()
    between.conditions.append(f"{between.name('tat')} BETWEEN {between.value(7)} AND {between.value(8)}")
    between.removes.append(between.name("tat"))
    assert "tat" not in update(items, between)
    with pytest.raises(AwsError, match="ConditionalCheckFailed"):  # what is absent compares with nothing
        update(items, between)


def test_the_table_adds_to_sets() -> None:
    items = Items()
    for mark, told in [("b", ["b"]), ("a", ["a", "b"])]:
        write = Write()
        window = write.name("j1")
        write.conditions.append(f"NOT contains({window}, {write.value(mark)})")
        write.adds.append(f"{window} {write.value(frozenset({mark}))}")
        assert update(items, write)["j1"] == {"SS": told}
        with pytest.raises(AwsError, match="ConditionalCheckFailed"):
            update(items, write)


def test_an_item_has_a_capacity() -> None:
    items, write = Items(units_per_s=10), Write()
    write.sets.append(f"{write.name('n')} = {write.value(1)}")
    for _ in range(10):
        update(items, write)
    with pytest.raises(AwsError) as throttled:
        update(items, write)
    assert throttled.value.retryable
    update(items, write, now=0.1)


def test_scenarios_can_be_told_apart() -> None:
    assert all(isinstance(scenario, Scenario) and scenario.says for scenario in SCENARIOS.values())
