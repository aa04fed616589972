"""Users whom their tenant has disabled: refused on every route, at once where the record is at hand; nobody else is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from tests.unit.test_data_rules import Spent, a_policy
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.domain.identity import Identity, names_of_pool_user
from tollgate.domain.policy import MAX_DISABLED_USERS, Policy, TenantRecord
from tollgate.domain.policy_check import check_record
from tollgate.domain.policy_document import Document, PolicyErrors
from tollgate.services.account import Account
from tollgate.services.administration import STATUS, TENANTS, Administration
from tollgate.services.admit import Admitter, Request
from tollgate.services.directory import RECHECK_US, Directory
from tollgate.wire.errors import ApiError

NOON = 1_795_262_400_000_000  # 2026-11-21 12:00:00 UTC, in microseconds
ANN, BOB = Identity("acme", "ann"), Identity("acme", "bob")
WITH_KEY = ANN._replace(key="3kTz9QvB1xYpA")
POLICY = a_policy(
    {"here": {"api": "openai", "base_url": "http://127.0.0.1:9/v1"}}, [{"upstream": "here", "model": "m"}]
)


def a_record(version: int = 1, **fields: Any) -> TenantRecord:
    return check_record(TenantRecord, Document({"tenant": "acme", "plan": "plan", "version": version, **fields}))


def disabled(*users: str, version: int = 2, **more: Any) -> TenantRecord:
    return a_record(version, disabled_users=[{"user": user, **more} for user in users])


class Source:
    """A policy and one tenant, whose record changes."""

    def __init__(self) -> None:
        self.record: TenantRecord | None = a_record()

    async def policy(self) -> Policy:
        return POLICY

    async def tenant(self, name: str) -> TenantRecord | None:
        return self.record


class World:
    """One container, with a clock that tests set."""

    def __init__(self, *, plan_of_token: bool = True, ahead_us: int = 0) -> None:
        """`ahead_us`: how far the container's own clock is ahead."""
        self.now, self.source = NOON, Source()

        def clock() -> int:
            return self.now + ahead_us

        self.directory = Directory(self.source, clock, versioned=lambda: True, plan_of_token=plan_of_token)
        store = MemoryLimitStore(lambda: self.now)
        self.admitter = Admitter(store, Spent(), self.directory, store, clock)
        self.account = Account(self.directory, Spent(), store, self.admitter.now_us)
        self.administration = Administration(self.directory, None, lambda: {"status": "ok"}, self.admitter.now_us)
        self._id = 0

    def publish(self, record: TenantRecord) -> None:
        """An edit, which the next admission's answer from the store would tell of."""
        self.source.record = record
        asyncio.run(self.directory.refresh("acme", 0, record.version))

    def call(self, who: Identity, model: str = "small") -> str:
        """What a call is told: `ok`, or the code of the error."""
        self._id += 1
        return told(self.admitter.admit(who, "192.0.2.1", Request(str(self._id), "openai", model, 5, 0, 10**6), 0))


def told(answer: Awaitable[object]) -> str:
    async def ask() -> str:
        try:
            await answer
        except ApiError as error:
            return str(error.code)
        return "ok"

    return asyncio.run(ask())


def test_whoever_is_disabled_is_refused_at_the_next_call_and_others_are_not() -> None:
    world = World()
    assert [world.call(who) for who in (ANN, WITH_KEY, BOB)] == ["ok"] * 3  # all of them are at hand now
    world.publish(disabled("ann"))
    assert [world.call(who) for who in (ANN, WITH_KEY, BOB)] == ["user_disabled", "user_disabled", "ok"]
    assert world.call(ANN._replace(team="red", scopes=frozenset({"admin"}))) == "user_disabled"
    assert world.call(ANN, "no such model") == "user_disabled", "they learn nothing else"
    world.publish(a_record(3))
    assert world.call(ANN) == "ok"


def test_a_refusal_is_not_believed_for_ever() -> None:
    """Nothing admits them any more, so no store can tell that they were enabled."""
    world = World()
    world.publish(disabled("ann"))
    assert world.call(ANN) == "user_disabled"
    world.source.record = a_record(3)
    world.now += RECHECK_US
    assert world.call(ANN) == "ok"


def test_what_ends_ends_at_its_moment() -> None:
    world = World()
    world.publish(disabled("ann", until="2026-11-21T12:00:01Z"))
    assert world.call(ANN) == "user_disabled"
    world.now += 999_999
    assert world.call(ANN) == "user_disabled"
    world.now += 1
    assert world.call(ANN) == "ok"


@pytest.mark.parametrize("ahead_s", [-300, 300], ids=["slow", "fast"])
def test_it_ends_by_the_stores_clock(ahead_s: int) -> None:
    """Which a container knows by the answer to its first admission."""
    world = World(ahead_us=ahead_s * 10**6)
    world.publish(disabled("ann", until="2026-11-21T12:01:00Z"))
    assert (world.call(BOB), world.call(ANN), told(world.account.models(ANN))) == ("ok", *["user_disabled"] * 2)
    world.now += 60 * 10**6
    assert (world.call(ANN), told(world.account.models(ANN))) == ("ok", "ok")


def test_nobody_gets_in_early_through_a_new_container_with_a_fast_clock() -> None:
    world = World(ahead_us=300 * 10**6)
    world.publish(disabled("ann", until="2026-11-21T12:01:00Z"))
    assert world.call(ANN) == "user_disabled"


def test_nothing_else_is_told_to_them_either() -> None:
    world = World()
    world.publish(disabled("ann"))
    routes = [
        lambda who: world.account.models(who),
        lambda who: world.account.usage(who),
        lambda who: world.administration.read(who, "GET", STATUS),
        lambda who: world.administration.read(who, "GET", TENANTS + "acme"),
    ]
    for route in routes:
        assert (told(route(ANN)), told(route(BOB))) == ("user_disabled", "ok")


@pytest.mark.parametrize(("counts", "answer"), [(True, "ok"), (False, "no_plan")])
def test_the_plan_that_a_token_names_where_there_is_no_record(counts: bool, answer: str) -> None:
    world = World(plan_of_token=counts)
    world.source.record = None
    assert world.call(Identity("acme", "ana", "plan")) == answer
    assert world.call(Identity("acme", "ana")) == "no_plan"


def test_administrators_of_a_suspended_tenant_see_nothing() -> None:
    world = World()
    world.source.record = a_record(2, state="suspended")
    assert told(world.administration.read(BOB, "GET", STATUS)) == "account_suspended"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("ann", "disabled_users: expected a list"),
        (["ann"], r"disabled_users\[0\]: expected"),
        ([{}], r"disabled_users\[0\].user: is missing"),
        ([{"user": ""}], r"disabled_users\[0\].user"),
        ([{"user": "ann", "unitl": "2026-12-01"}], "did you mean until"),
        ([{"user": f"u{i}"} for i in range(MAX_DISABLED_USERS + 1)], "disabled_users: .*1000"),
    ],
)
def test_what_the_list_may_hold(entries: Any, message: str) -> None:
    with pytest.raises(PolicyErrors, match=message):
        a_record(disabled_users=entries)


def test_a_pools_user_has_several_names() -> None:
    assert names_of_pool_user("ann@example.com", "0c1d", "acme") == {"ann@example.com", "0c1d"}
    assert names_of_pool_user("acme/ann", "0c1d", "acme") == {"acme/ann", "ann", "0c1d"}
    assert names_of_pool_user("acme/ann", "", "globex") == {"acme/ann"}
