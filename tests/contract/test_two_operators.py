"""Two operators at once, at the command line and in the console: what one of them wrote is never lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.contract.conftest import Dynamo
from tests.policy_tables import DEMO, Tables, edited_by_two
from tollgate.adapters.policy_tables import Conflict
from tollgate.cli.edits import editor
from tollgate.domain.policy import TenantSpec


@pytest.fixture
def tables(moto: Dynamo) -> Tables:
    made = Tables(*moto)
    made.apply()
    made.run(made.main.create_tenant("acme", TenantSpec(plan="pro"), "tests"))
    return made


def test_no_edit_of_a_tenant_is_lost(tables: Tables) -> None:
    tables.run(edited_by_two(tables, edits=20))


@pytest.mark.long
def test_no_edit_of_a_thousand_is_lost(tables: Tables) -> None:
    tables.run(edited_by_two(tables, edits=1000))


def test_no_edit_of_two_plans_is_lost(tables: Tables) -> None:
    async def raise_limits(plan: str) -> None:
        view = tables.view()
        for amount in range(101, 106):
            await view.edit_plan(plan, editor([f"limits[0].requests={amount}"], ()), "tests")

    async def both() -> None:
        await asyncio.gather(raise_limits("free"), raise_limits("pro"))

    tables.run(both())
    policy = tables.run(tables.main.published())
    assert [policy.plans[name].limits[0].requests for name in ("free", "pro")] == [105, 105]


def between(tables: Tables, operation: str, *items: dict[str, Any]) -> None:
    """Edit these items by hand just before the next such call of the command, which has read what was there."""

    async def step(called: str, payload: dict[str, Any]) -> None:
        if called == operation:
            tables.client.fault = None
            for item in items:
                await tables.put_by_hand(item)

    tables.client.fault = step


def test_an_edit_by_hand_has_no_version_and_is_not_overwritten(tables: Tables) -> None:
    between(tables, "UpdateItem", {**tables.get("acme"), "state": "suspended"})
    tables.run(tables.main.edit_tenant("acme", editor(["plan=free"], ()), "tests"))
    record = tables.run(tables.main.tenants.get("acme"))
    assert (record.plan, record.state) == ("free", "suspended")


def test_nor_is_one_of_a_plan(tables: Tables) -> None:
    by_hand = {**tables.get("plan#free"), "models": ["small", "large"]}
    between(tables, "TransactWriteItems", by_hand)
    tables.run(tables.main.edit_plan("free", editor(["limits[user.requests.minute].requests=77"], ()), "tests"))
    plan = tables.run(tables.main.published()).plans["free"]
    assert (plan.models, plan.limits[0].requests) == (("small", "large"), 77)


def test_a_file_is_not_applied_over_what_it_was_not_compared_with(tables: Tables) -> None:
    new = {"id": "plan#trial", "models": ["small"]}
    wanted = DEMO.replace(plans={**DEMO.plans, "trial": DEMO.plans["free"]})
    between(tables, "TransactWriteItems", new)
    with pytest.raises(Conflict, match="look at the difference again"):
        tables.apply(wanted)
    assert tables.get("plan#trial")["models"] == ["small"]
    gone = DEMO.replace(plans={name: plan for name, plan in DEMO.plans.items() if name != "free"})
    between(tables, "TransactWriteItems", {**tables.get("plan#free"), "models": []})
    with pytest.raises(Conflict, match="look at the difference again"):
        tables.apply(gone)
    assert tables.get("plan#free")["models"] == []


def test_a_position_does_not_come_to_mean_another_entry(tables: Tables) -> None:
    """`limits[0]` is what the operator saw there; if it is gone when the edit is tried again, nothing is changed."""
    small, large = ({"scope": "user", "requests": 5, "per": per} for per in ("minute", "hour"))
    tables.run(tables.main.edit_tenant("acme", lambda data: {**data, "limits": [small, large]}, "tests"))
    between(tables, "UpdateItem", {**tables.get("acme"), "limits": [large]})
    with pytest.raises(Conflict, match="changed by somebody else"):
        tables.run(tables.main.edit_tenant("acme", editor(["limits[0].requests=9"], ()), "tests"))
    assert tables.run(tables.main.tenants.get("acme")).limits[0].requests == 5
