"""Who decides where a store, or what it needs, does not answer: what the operator, the plan and money say."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import pytest

from tests.unit.test_admit import ALICE, NOON, SECOND
from tests.unit.test_failover import Away
from tollgate.adapters.failover import FailoverLimitStore
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.policy_file import FilePolicySource
from tollgate.domain.limits import Admission, BudgetTake, Decision, FailureMode
from tollgate.ports import LimitStore, Overloaded, StoreUnavailable
from tollgate.services.admit import Admitter, Request
from tollgate.services.directory import Directory
from tollgate.wire.errors import ApiError

POLICY = """
version: 1
upstreams: {here: {api: openai, base_url: "http://127.0.0.1:9/v1"}}
models: {small: {route: [{upstream: here, model: s}], price: {input: 1, output: 2}}}
plans:
  free:
    models: [small]
    when_stores_fail: POSTURE
    redis_failure_mode: PLANS
    limits: [{scope: user, requests: 3, per: hour}]
    budgets: [BUDGET]
tenants: {acme: {plan: free, redis_failure_mode: TENANTS}}
"""
TOKENS = "{scope: tenant, tokens: 10000000, per: day}"
DOLLAR = "{scope: tenant, usd: 1, per: day}"
REFUSED = [(503, "limits_unavailable", "2")]


class Standby(MemoryLimitStore):
    """Shared by all containers, as DynamoDB is."""

    name = "dynamodb"


class StandbyAway(Standby):
    async def admit(self, admission: Admission) -> Decision:
        raise StoreUnavailable("as if it were down")


class Ledger:
    def __init__(self, failure: StoreUnavailable | None = None) -> None:
        self._failure = failure

    async def spent(self, takes: Sequence[BudgetTake]) -> list[int]:
        if self._failure is not None:
            raise self._failure
        return [0] * len(takes)


Answer = str | tuple[int, str | None, str]
"""Which store admitted a call; or its status, code and Retry-After."""


class Containers:
    """Some containers, which share a standby. Their primary does not answer, or is one that they share, too."""

    def __init__(
        self,
        folder: Path,
        *,
        mode: FailureMode = "fallback",
        plans: FailureMode | None = None,
        tenants: FailureMode | None = None,
        same_for_all: bool = False,
        posture: str = "open",
        budget: str = TOKENS,
        standby: LimitStore | None = None,
        ledger: Ledger | None = None,
        primary: Away | None = None,
    ) -> None:
        path = folder / "policy.yaml"
        said = {"POSTURE": posture, "BUDGET": budget, "PLANS": plans or "null", "TENANTS": tenants or "null"}
        path.write_text(reduce(lambda text, word: text.replace(word, said[word]), said, POLICY))
        self._same_for_all = same_for_all
        self._source, self._mode, self._standby = FilePolicySource(path, {}), mode, standby
        self._primary, self._ledger = primary or Away(), ledger or Ledger()

    async def ask(self, each: int = 1, containers: int = 1, tokens: int = 10) -> list[Answer]:
        answers: list[Answer] = []
        for container in range(containers):
            local = MemoryLimitStore(lambda: NOON)
            directory = Directory(self._source, lambda: NOON, versioned=lambda: True)
            store = FailoverLimitStore(
                self._primary, self._standby, local, lambda: self._mode, same_for_all=self._same_for_all
            )
            admitter = Admitter(store, self._ledger, directory, local, lambda: NOON)
            for number in range(each):
                wanted = Request(f"{container}.{number}", "openai", "small", tokens, 0, 60 * SECOND)
                try:
                    grant = await admitter.admit(ALICE, "192.0.2.1", wanted, 0)
                    answers.append(grant.decision.store)
                except ApiError as error:
                    answers.append((error.status, error.code, error.headers.get("retry-after", "")))
            await store.aclose()
        return answers


def standby() -> Standby:
    return Standby(lambda: NOON)


@pytest.mark.parametrize("posture", ["open", "closed"])
def test_closed_means_nobody_whatever_a_plan_says(tmp_path: Path, posture: str) -> None:
    """And whatever else would answer."""
    world = Containers(tmp_path, mode="closed", posture=posture, standby=standby())
    assert asyncio.run(world.ask()) == REFUSED


def test_both_stores_away_is_for_the_plan_to_say(tmp_path: Path) -> None:
    away = StandbyAway(lambda: NOON)
    assert asyncio.run(Containers(tmp_path, standby=away).ask()) == ["memory"]
    assert asyncio.run(Containers(tmp_path, standby=away, posture="closed").ask()) == REFUSED
    assert asyncio.run(Containers(tmp_path, standby=away, budget=DOLLAR).ask()) == REFUSED


def test_an_open_mode_decides_alone_but_never_of_money(tmp_path: Path) -> None:
    """Each container has the full rates; but a dollar a day is one dollar, however many containers there are."""
    world = Containers(tmp_path, mode="open", standby=standby())
    assert asyncio.run(world.ask(each=3, containers=2)) == ["memory"] * 6
    world = Containers(tmp_path, mode="open", standby=standby(), budget=DOLLAR)
    answers = asyncio.run(world.ask(containers=3, tokens=900_000))
    assert answers == ["dynamodb", (402, "insufficient_quota", ""), (402, "insufficient_quota", "")]


@pytest.mark.parametrize(
    ("plans", "tenants", "answer"),
    [
        ("open", None, "memory"),
        ("open", "closed", "nobody"),
        (None, "open", "memory"),
        ("closed", "fallback", "dynamodb"),
        (None, None, "dynamodb"),
    ],
)
def test_a_plan_or_a_tenant_has_its_own_mode(
    tmp_path: Path, plans: FailureMode | None, tenants: FailureMode | None, answer: str
) -> None:
    """The tenant's word counts before the plan's, and both before the policy's; the environment's before all."""
    expected = REFUSED if answer == "nobody" else [answer]
    world = Containers(tmp_path, plans=plans, tenants=tenants, standby=standby())
    assert asyncio.run(world.ask()) == expected
    world = Containers(tmp_path, plans=plans, tenants=tenants, standby=standby(), same_for_all=True)
    assert asyncio.run(world.ask()) == ["dynamodb"]


@pytest.mark.parametrize("second", [None, StandbyAway(lambda: NOON)], ids=["none", "away"])
def test_an_open_mode_refuses_money_that_nobody_can_count(tmp_path: Path, second: LimitStore | None) -> None:
    world = Containers(tmp_path, mode="open", standby=second, budget=DOLLAR)
    assert asyncio.run(world.ask()) == REFUSED


class Here(Away):
    """A primary that answers."""

    name = "redis"

    def __init__(self) -> None:
        super().__init__(lambda: NOON)

    async def admit(self, admission: Admission) -> Decision:
        return await MemoryLimitStore.admit(self, admission)


@pytest.mark.parametrize("primary", [Here, Away], ids=["redis", "dynamodb"])
def test_a_ledger_that_cannot_be_read_is_like_a_store_that_cannot_decide(tmp_path: Path, primary: type[Away]) -> None:
    """At midnight no budget is loaded. Whoever need not count money is admitted by this container's own buckets."""

    def ask(posture: str, budget: str, failure: StoreUnavailable | None = None) -> list[Answer]:
        ledger = Ledger(failure or StoreUnavailable("as if DynamoDB were down"))
        world = Containers(
            tmp_path, posture=posture, budget=budget, standby=standby(), ledger=ledger, primary=primary()
        )
        return asyncio.run(world.ask(each=4))

    assert ask("open", TOKENS) == ["memory"] * 3 + [(429, "rate_limit_exceeded", "1200")]
    assert ask("closed", TOKENS) == REFUSED * 4
    assert ask("open", DOLLAR) == REFUSED * 4
    assert ask("open", TOKENS, Overloaded("throttled")) == [(503, "overloaded", "1")] * 4
