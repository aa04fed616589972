"""Explaining: every limit of a caller with its state and source, as an admission would meet it, and nothing taken."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from functions.inspect.handler import read
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.policy_file import parse
from tollgate.domain.identity import Identity
from tollgate.domain.limits import BudgetTake, Scope, Window
from tollgate.domain.policy import BudgetOverride, CreditSpec, DisabledUser, LimitOverride, Policy, TenantRecord
from tollgate.services.admit import Admitter, Request
from tollgate.services.directory import Directory
from tollgate.services.explain import Question, explain

NOON = 1_795_262_400_000_000
POLICY = parse(
    """
version: 1
upstreams:
  local: {api: openai, base_url: "http://127.0.0.1:1/v1", limits: [{tokens: 9000, per: minute}]}
models:
  small: {route: [{upstream: local, model: m}], price: {input: 1, output: 2}, limits: [{requests: 50, per: second}]}
  large: {route: [{upstream: local, model: n}], price: {input: 1, output: 2}}
  secret: {route: [{upstream: local, model: o}], price: {input: 1, output: 2}}
plans:
  pro:
    models: [small, large]
    limits:
      - {scope: user, requests: 3, per: minute}
      - {scope: user, tokens: 1000, per: minute}
      - {scope: team, requests: 7, per: minute}
      - {scope: tenant, concurrent: 5}
    budgets:
      - {scope: user, tokens: 5000, per: day, models: [small]}
      - {scope: tenant, usd: 5, per: month}
global:
  limits:
    - {scope: ip, requests: 100, per: minute}
    - {requests: 1000, per: second}
""",
    {},
    "policy.yaml",
)


class World:
    """A gateway's parts on one memory store, on a clock that stands still."""

    def __init__(self, record: TenantRecord | None) -> None:
        self.record = record
        self.used: dict[str, int] = {}
        self.store = MemoryLimitStore(clock=lambda: NOON)
        self.directory = Directory(self, lambda: NOON, versioned=lambda: False)

    async def policy(self) -> Policy:
        return POLICY

    async def tenant(self, name: str) -> TenantRecord | None:
        return self.record

    async def spent(self, takes: Sequence[BudgetTake]) -> list[int]:
        return [self.used.get(str(take.limit.id), 0) for take in takes]

    def explain(self, **more: Any) -> dict[str, Any]:
        question = Question(**{"tenant": "acme", "user": "ann", **more})
        return asyncio.run(explain(question, self.directory, self.store, self, lambda: NOON))

    def admit(self, count: int) -> None:
        admitter = Admitter(self.store, self, self.directory, self.store, lambda: NOON)

        async def run() -> None:
            for i in range(count):
                request = Request(f"r{i}", "openai", "small", 100, 100, 60_000_000)
                await admitter.admit(Identity("acme", "ann"), "192.0.2.1", request, 1)

        asyncio.run(run())


def acme(**more: Any) -> TenantRecord:
    return TenantRecord(tenant="acme", plan="pro", version=5, **more)


def limits(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {limit["limit"] + "@" + limit["source"]: limit for limit in found["limits"]}


def test_every_limit_is_named_with_its_source() -> None:
    until = datetime(2026, 12, 1, tzinfo=UTC)
    record = acme(
        limits=(
            LimitOverride(scope=Scope.USER, tokens=2000, per="minute"),
            LimitOverride(scope=Scope.USER, requests=30, per="minute", user="ann", until=until),
            LimitOverride(scope=Scope.USER, requests=40, per="minute", user="bob"),
            LimitOverride(scope=Scope.USER, tokens=1, per="minute", until=datetime(2026, 11, 1, tzinfo=UTC)),
        ),
        budgets=(BudgetOverride(scope=Scope.TENANT, usd=Decimal(50), per=Window.MONTH),),
    )
    found = limits(World(record).explain(ip="192.0.2.1", team="red"))
    assert {name: limit["amount"] for name, limit in found.items()} == {
        "ip.requests.minute@global, for each address": 100,
        "user.requests.minute@boost of user ann until 2026-12-01T00:00:00+00:00": 30,
        "user.tokens.minute@override of tenant acme": 2000,
        "team.requests.minute@plan pro": 7,
        "tenant.slots@plan pro": 5,
        "user.tokens.day.small@plan pro": 5000,
        "tenant.microusd.month@override of tenant acme": 50_000_000,
        "global.requests.second@model small": 50,
        "global.requests.second@global": 1000,
        "global.tokens.minute@upstream local": 9000,
    }


def test_a_boost_in_force_is_told_whatever_was_written_after_it() -> None:
    def of(requests: int, until: datetime | None = None) -> LimitOverride:
        return LimitOverride(scope=Scope.USER, requests=requests, per="minute", until=until)

    found = limits(World(acme(limits=(of(99, datetime(2026, 12, 1, tzinfo=UTC)), of(20)))).explain())
    assert found["user.requests.minute@boost of tenant acme until 2026-12-01T00:00:00+00:00"]["amount"] == 99


def test_a_refusal_says_which_limit_and_for_how_long_and_nothing_is_taken() -> None:
    world = World(acme())
    world.admit(2)
    seen = [world.explain(model="small") for _ in range(5)]
    assert [found["verdict"]["admitted"] for found in seen] == [True] * 5
    user = limits(seen[-1])["user.requests.minute@plan pro"]
    assert (user["remaining"], user["refuses"], user["reset_s"]) == (1, False, 40)
    world.admit(3)  # the first two are the same requests again
    found = world.explain(model="small")
    assert found["verdict"]["rule"] == "user.requests.minute"
    assert (found["verdict"]["status"], found["verdict"]["retry_after_s"]) == (429, 20)
    user = limits(found)["user.requests.minute@plan pro"]
    assert (user["remaining"], user["refuses"], user["wait_s"]) == (0, True, 20)
    assert limits(found)["tenant.slots@plan pro"]["remaining"] == 2


def test_a_call_of_so_many_tokens_may_be_refused_where_a_small_one_is_not() -> None:
    world = World(acme())
    world.admit(3)
    found = World(acme()).explain(tokens=1001)
    assert found["verdict"]["code"] == "exceeds_plan_limit"
    assert limits(found)["user.tokens.minute@plan pro"]["wait_s"] is None
    assert World(acme()).explain(tokens=900)["verdict"]["admitted"]


def test_what_the_store_has_not_loaded_is_read_from_the_ledger_and_stays_so() -> None:
    world = World(acme())
    world.used = {"tenant.microusd.month": 5_000_000, "user.tokens.day.small": 4000}
    for _ in range(2):
        found = world.explain()
        assert (found["verdict"]["status"], found["verdict"]["rule"]) == (402, "tenant.microusd.month")
        assert limits(found)["user.tokens.day.small@plan pro"]["remaining"] == 1000
    assert world.store._budgets == {}


@pytest.mark.parametrize(
    ("record", "question", "rule"),
    [
        (None, {}, "no_plan"),
        (acme(state="suspended"), {}, "account_suspended"),
        (acme(disabled_users=(DisabledUser(user="ann"),)), {}, "user_disabled"),
        (acme(), {"model": "secret"}, "model_not_allowed"),
        (acme(), {"model": "none"}, "model_not_found"),
    ],
)
def test_rules_come_before_limits(record: TenantRecord | None, question: dict[str, str], rule: str) -> None:
    found = World(record).explain(**question)
    assert (found["verdict"]["admitted"], found["verdict"]["rule"]) == (False, rule)


def test_a_token_may_bring_the_plan_of_a_tenant_without_a_record() -> None:
    found = World(None).explain(plan="pro")
    assert (found["verdict"]["admitted"], found["own_record"], found["plan"]) == (True, False, "pro")


def test_it_says_whether_the_store_knows_of_newer_ones() -> None:
    world = World(acme())
    assert world.explain()["versions"]["in_sync"]
    asyncio.run(world.store.publish(tenants={"acme": 5}))
    assert world.explain()["versions"]["in_sync"]
    asyncio.run(world.store.publish(tenants={"acme": 6}))
    versions = world.explain()["versions"]
    assert (versions["record"], versions["record_in_store"], versions["in_sync"]) == (5, 6, False)


@pytest.mark.parametrize(
    "event",
    [
        {}, {"tenant": "acme"}, {"tenant": "acme", "user": ""}, {"tenant": "acme", "user": "x" * 257},
        {"tenant": "acme", "user": "ann", "tokens": 0}, {"tenant": "acme", "user": "ann", "tokens": True},
        {"tenant": "acme", "user": "ann", "what": "?"}, {"tenant": "acme", "user": 7},
    ],
)  # fmt: skip
def test_a_question_that_is_none(event: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        read(event)


def test_credit_is_told_as_it_was_paid() -> None:
    world = World(acme(credit=(CreditSpec(usd=Decimal("0.5"), used_before=Decimal("2.25")),)))
    world.used["tenant.microusd.life"] = 2_350_000
    credit = limits(world.explain())["tenant.microusd.life@credit"]
    told = (credit["amount"], credit["used_and_held"], credit["remaining"])
    assert told == (500_000, 100_000, 400_000)
