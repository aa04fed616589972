"""Prepaid credit in DynamoDB: never lost and never doubled, whatever is repeated, lost or done at once."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.aws_fixture import Recorder, make_table
from tests.contract.conftest import Dynamo
from tests.contract.test_policy_tables import Tables
from tests.records import a_close
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.credit_table import CreditTable
from tollgate.adapters.dynamodb_ledger import DynamoLedger
from tollgate.adapters.policy_tables import Conflict, NotFound
from tollgate.domain.credit import BadEntry, Entry, Kind, reversal, sums
from tollgate.domain.limits import Scope
from tollgate.domain.policy import TenantRecord, TenantSpec
from tollgate.domain.policy_document import PolicyErrors
from tollgate.domain.terms import budgets, credit_budget
from tollgate.ports import PolicyUnavailable, StoreUnavailable

NOW_US = 1_795_262_400_000_000


def entry(id: str, usd: float = 1, *, user: str = "", kind: Kind = "payment", reverses: str = "") -> Entry:
    return Entry(id, "acme", user, kind, round(usd * 1e6), "2026-11-21T12:00:00Z", "tests", "", reverses)


class World:
    """The tenant acme on plan pro, its credit and its ledger."""

    def __init__(self, client: AwsClient, runner: asyncio.Runner) -> None:
        self.tables = Tables(client, runner)
        self.run = runner.run
        self.tables.apply()
        self.run(self.tables.main.create_tenant("acme", TenantSpec(plan="pro"), "tests"))
        self.client = Recorder(client)
        self.ledger_table = self.run(make_table(client, sort_key=True))
        self.ledger = DynamoLedger(client, self.ledger_table)
        self.credit = self.view()

    def view(self) -> CreditTable:
        tables = self.tables.view()
        tables.tenants._table._client = self.client  # its writes, too, pass where faults are made
        return CreditTable(self.client, self.ledger_table, tables, self.ledger)

    def add(self, *entries: Entry) -> list[bool]:
        return [self.run(self.credit.add(one)) for one in entries]

    @property
    def record(self) -> TenantRecord:
        return self.run(self.tables.main.tenants.get("acme"))

    @property
    def credits(self) -> dict[str, Decimal]:
        return {account.user or "": account.usd for account in self.record.credit}

    def limit(self, user: str = "ann") -> Any:
        policy, record = self.run(self.tables.main.published()), self.record
        scope = Scope.TENANT if user == "" else Scope.USER
        return {b.id: b for b in budgets(policy.plans["pro"], record, user, NOW_US)}[credit_budget(scope)]


@pytest.fixture
def world(each_dynamodb: Dynamo) -> World:
    return World(*each_dynamodb)


def test_what_is_added_stands_in_the_record_and_every_entry_stays(world: World) -> None:
    version = world.record.version
    assert world.add(entry("a", 25), entry("b", 0.000001), entry("c", 5, user="ann")) == [True] * 3
    assert world.credits == {"": Decimal("25.000001"), "ann": 5}
    assert world.record.version == version + 3  # so warm gateways read it again
    found = world.run(world.credit.entries("acme"))
    assert [(one.id, one.user, one.microusd) for one in found] == [
        ("a", "", 25_000_000),
        ("b", "", 1),
        ("c", "ann", 5_000_000),
    ]


def test_a_repeated_entry_adds_nothing_and_another_of_its_id_is_refused(world: World) -> None:
    assert world.add(entry("a", 25), entry("a", 25)) == [True, False]
    for other in (entry("a", 26), entry("a", 25, user="ann"), entry("a", 25, kind="refund")):
        with pytest.raises(Conflict, match="another entry"):
            world.add(other)
    assert world.credits == {"": 25}


def test_at_once_none_is_lost_and_none_is_doubled(world: World) -> None:
    """Four people add, each command twice at the same time."""

    async def all_at_once() -> list[bool]:
        return await asyncio.gather(*(world.view().add(entry(f"id{i // 2}", 1)) for i in range(8)))

    assert sum(world.run(all_at_once())) == 4
    assert world.credits == {"": 4}
    assert len(world.run(world.credit.entries("acme"))) == 4


@pytest.mark.parametrize("after", [False, True])
def test_killed_before_or_after_the_write(world: World, after: bool) -> None:
    """There is one write: it is there, or it is not, and whoever repeats the command finds out which."""
    killed = Recorder.outage()

    async def kill(operation: str, payload: dict[str, Any]) -> None:
        if operation == "TransactWriteItems":
            if after:
                await world.client._client.call(operation, payload)
            raise killed

    world.add(entry("first", 1))
    world.client.fault = kill
    with pytest.raises((StoreUnavailable, PolicyUnavailable)):
        world.add(entry("second", 2))
    world.client.fault = None
    assert world.credits == {"": 3 if after else 1}
    assert world.add(entry("second", 2)) == [not after]
    assert world.credits == {"": 3}


def test_refunds_and_reversals_are_entries_of_their_own(world: World) -> None:
    world.add(entry("a", 25), entry("b", 5), entry("r", -10, kind="refund"))
    user, amount = reversal(world.run(world.credit.entries("acme")), "b")
    undo = Entry("reversal:b", "acme", user, "reversal", amount, "2026-11-21T12:00:01Z", "tests", "", "b")
    assert world.add(undo, undo) == [True, False]
    assert world.credits == {"": 15}
    with pytest.raises(BadEntry, match="more than was ever added"):
        world.add(entry("r2", -16, kind="refund"))
    with pytest.raises(BadEntry, match="is a reversal itself"):
        reversal(world.run(world.credit.entries("acme")), "reversal:b")
    with pytest.raises(BadEntry, match="no entry 'x'"):
        reversal([], "x")
    with pytest.raises(BadEntry, match="no credit in this account"):
        world.add(entry("r3", -1, user="ann", kind="refund"))


def test_what_was_used_before_is_not_drawn_from_it(world: World) -> None:
    world.run(world.ledger.enter([a_close("old", user="ann", cost_microusd=3_000_000)]))
    world.add(entry("a", 25), entry("u", 2, user="ann"))
    world.run(world.ledger.enter([a_close("new", user="ann", cost_microusd=1_000_000)]))
    world.add(entry("b", 5))
    tenants, anns = world.limit(""), world.limit("ann")
    assert (tenants.amount, tenants.before) == (33_000_000, 3_000_000)
    assert (anns.amount, anns.before) == (5_000_000, 3_000_000)


def test_a_record_that_lost_its_sum_gets_it_back_with_the_next_entry(world: World) -> None:
    """Deleted and made again, or edited in the console: the entries are what counts."""
    world.add(entry("a", 25))
    version = world.record.version
    world.tables.put({"tenant": "acme", "plan": "pro", "version": version + 1})
    assert world.credits == {}
    world.add(entry("b", 5))
    assert world.credits == {"": 30}
    assert not world.run(world.credit.damaged("acme"))


def test_a_record_that_lost_its_sum_can_be_repaired(world: World) -> None:
    world.add(entry("a", 25), entry("u", 1, user="ann"))
    assert not world.run(world.credit.repair("acme", "tests"))
    version = world.record.version
    world.tables.put({"tenant": "acme", "plan": "pro", "version": version + 1, "credit": [{"usd": 999}]})
    assert world.run(world.credit.damaged("acme"))
    assert world.run(world.credit.repair("acme", "tests"))
    assert world.credits == {"": 25, "ann": 1}
    assert world.record.version > version + 1
    with pytest.raises(NotFound):
        world.run(world.credit.repair("nobody", "tests"))


def test_only_the_credit_command_changes_credit(world: World) -> None:
    world.add(entry("a", 25))
    edit = world.tables.main.edit_tenant
    with pytest.raises(PolicyErrors, match="tollgate credit"):
        world.run(edit("acme", lambda data: {**data, "credit": [{"usd": 99}]}, "tests"))
    with pytest.raises(PolicyErrors, match="tollgate credit"):
        world.run(edit("acme", lambda data: {n: v for n, v in data.items() if n != "credit"}, "tests"))
    world.run(edit("acme", lambda data: {**data, "plan": "enterprise"}, "tests"))
    world.run(world.tables.main.tenants.upsert("acme", TenantSpec(plan="free"), "tests"))
    world.run(world.tables.main.tenants.set_state("acme", "suspended", "tests"))
    assert world.credits == {"": 25}


def test_credit_needs_a_tenant(world: World) -> None:
    with pytest.raises(NotFound, match="no tenant 'globex'"):
        world.run(world.credit.add(Entry("a", "globex", "", "payment", 1, "", "tests")))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["", "ann", "bob"]), st.integers(1, 10**15), st.integers(0, 10**9))))
def test_sums_are_exact(movements: list[tuple[str, int, int]]) -> None:
    entries = [
        Entry(str(i), "acme", user, "payment", amount, "", "", used_before=before)
        for i, (user, amount, before) in enumerate(movements)
    ]
    found = {account.get("user", ""): account for account in sums(entries)}
    for user in {user for user, _, _ in movements}:
        mine = [(amount, before) for who, amount, before in movements if who == user]
        assert found[user]["usd"] * 10**6 == sum(amount for amount, _ in mine)
        assert found[user].get("used_before", 0) * 10**6 == sum(before for _, before in mine)
