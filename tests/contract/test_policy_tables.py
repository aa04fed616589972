"""The policy and tenants tables, on moto's server: what operators write is what gateways read."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import Dynamo
from tests.policy_tables import DEMO, NOW_S, Tables
from tollgate.adapters.policy_file import parse
from tollgate.adapters.policy_items import body_of, items_of, unpack
from tollgate.adapters.policy_tables import Conflict, NotFound, PolicyTables
from tollgate.domain.policy import MAX_DISABLED_USERS, Policy, TenantRecord, TenantSpec
from tollgate.domain.policy_check import check
from tollgate.domain.policy_document import Document, PolicyErrors
from tollgate.domain.schema import plain
from tollgate.ports import PolicyUnavailable


@pytest.fixture
def tables(moto: Dynamo) -> Tables:
    return Tables(*moto)


def demo(**changes: Any) -> Policy:
    """The demo policy with other top-level parts."""
    return DEMO.replace(**changes)


def with_plan(name: str = "free", **changes: Any) -> Policy:
    plans = dict(DEMO.plans)
    plans[name] = plans[name].replace(**changes)
    return demo(plans=plans)


# -- applying --------------------------------------------------------------------------------------------------------


def test_what_is_applied_is_what_gateways_read(tables: Tables) -> None:
    with pytest.raises(PolicyUnavailable, match="tollgate policy apply"):
        tables.run(tables.main.policy())
    revision = tables.apply()
    read = tables.run(tables.main.policy())
    assert read == demo(revision=revision)
    assert revision >= NOW_S


def test_items_are_natural_maps_that_people_can_edit(tables: Tables) -> None:
    tables.apply()
    item = tables.get("plan#free")
    assert item["models"] == ["small"]
    assert item["limits"][0] == {"scope": "user", "requests": 10, "per": "minute", "burst": 10}
    assert item["updated_by"] == "tests"
    assert item["updated_at"] == "2026-11-21T12:00:00.000000Z"
    assert str(tables.get("model#small")["price"]["output"]) in ("0.6", "0.60")
    assert [limit.get("scope") for limit in tables.get("global")["limits"]] == ["ip", None]
    assert tables.get("snapshot")["revision"] == NOW_S


def test_applying_again_changes_nothing(tables: Tables) -> None:
    first = tables.apply()
    tables.now_s += 100
    tables.client.calls.clear()
    again = tables.run(tables.main.apply(DEMO, "tests"))
    assert (again.changes, again.revision, again.tenants) == ([], first, [])
    assert set(tables.client.calls) == {"Scan"}


def test_a_change_is_one_transaction_and_a_new_revision(tables: Tables) -> None:
    first = tables.apply()
    tables.client.calls.clear()
    changed = with_plan(models=("small", "large"))
    applied = tables.run(tables.main.apply(changed, "tests"))
    assert [str(change) for change in applied.changes] == ['~ plans.free.models: ["small"] -> ["small","large"]']
    assert tables.client.calls.count("TransactWriteItems") == 1
    assert applied.revision == first + 1  # the clock stands still, revisions do not
    assert tables.run(tables.main.policy()).plans["free"].models == ("small", "large")


def test_what_a_policy_lacks_is_removed(tables: Tables) -> None:
    tables.apply()
    less = demo(plans={name: plan for name, plan in DEMO.plans.items() if name != "pro"})
    assert [str(change)[:12] for change in tables.run(tables.main.diff(less))] == ["- plans.pro:"]
    tables.apply(less)
    assert tables.get("plan#pro") == {}
    assert "pro" not in tables.run(tables.main.policy()).plans


def test_a_plan_that_tenants_are_on_does_not_go(tables: Tables) -> None:
    tables.apply()
    tables.run(tables.main.create_tenant("acme", TenantSpec(plan="pro"), "tests"))
    less = demo(plans={name: plan for name, plan in DEMO.plans.items() if name != "pro"})
    with pytest.raises(Conflict, match=r"acme \(pro\); give them another plan first"):
        tables.apply(less)
    assert tables.get("plan#pro")
    moved = less.replace(tenants={"acme": TenantSpec(plan="free")})
    tables.apply(moved)
    assert tables.run(tables.main.tenants.get("acme")).plan == "free"


def test_two_who_publish_at_once_do_not_mix(tables: Tables) -> None:
    tables.apply()
    other = tables.view()
    stepped = []

    async def somebody_is_faster(operation: str, payload: dict[str, Any]) -> None:
        if operation == "TransactWriteItems" and not stepped:
            stepped.append(True)
            await other.apply(with_plan(models=()), "somebody")

    tables.client.fault = somebody_is_faster
    with pytest.raises(Conflict, match="look at the difference again"):
        tables.apply(with_plan("pro", models=()))
    tables.client.fault = None
    assert tables.run(tables.main.policy()).plans["pro"].models == DEMO.plans["pro"].models
    tables.apply(with_plan("pro", models=()))


def test_a_large_policy_is_compressed(tables: Tables) -> None:
    many = {f"plan-{i}": plan for i in range(130) for plan in [DEMO.plans["pro"]]}
    tables.apply(demo(plans=many))
    snapshot = tables.get("snapshot")
    assert "body" not in snapshot
    assert len(snapshot["packed"]) < 5_000
    assert tables.run(tables.main.policy()).plans == many


def test_a_policy_that_fits_no_item_is_refused_whole(tables: Tables) -> None:
    import random

    tables.apply()
    noise = random.Random(1)
    routes = {
        f"m{i}": {
            "route": [
                {"upstream": "openai", "model": "".join(chr(noise.randrange(0x4E00, 0x9FFF)) for _ in range(200))}
            ]
        }
        for i in range(1500)
    }
    large = parse("version: 1", {}).replace(upstreams=DEMO.upstreams)
    large = check(Document({**plain(large), "models": routes}))
    with pytest.raises(PolicyErrors, match="too large"):
        tables.apply(large)
    assert tables.run(tables.main.policy()).plans == DEMO.plans


def test_every_policy_survives_its_items_and_its_snapshot() -> None:
    whole = parse(
        (Path(__file__).parents[2] / "policy.yaml").read_text() + "redis_failure_mode: closed\n",
        {"TOLLGATE_UPSTREAMS__OPENAI__TIMEOUTS__CONNECT": "0.5"},
    )
    from tollgate.adapters.policy_items import document_of

    items = [{"id": key, **entry} for key, entry in items_of(whole).items()]
    assert check(document_of(items)) == whole
    assert check(unpack({"body": body_of(whole)})) == whole


# -- edits by hand ---------------------------------------------------------------------------------------------------


def test_an_edit_by_hand_counts_once_it_is_published(tables: Tables) -> None:
    first = tables.apply()
    item = tables.get("plan#free")
    tables.put({**item, "limits": [{"scope": "user", "requests": 3, "per": "minute"}]})
    assert tables.run(tables.main.policy()).plans["free"].limits == DEMO.plans["free"].limits
    policy, revision = tables.run(tables.main.publish())
    assert revision == first + 1
    assert policy.plans["free"].limits[0].requests == 3
    assert tables.run(tables.main.publish())[1] == revision  # again: nothing to do
    assert tables.run(tables.main.policy()).plans["free"].limits[0].requests == 3


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"id": "plan#free", "models": ["smal"]}, "plan#free: plans.free.models[0]: there is no model 'smal'"),
        ({"id": "plan#free", "models": ["small"], "limts": []}, "plan#free: plans.free.limts: is not known"),
        ({"id": "plan#free", "models": ["small"], "limits": [{"scope": "user", "requests": "5", "per": "day"}]},
         "plan#free: plans.free.limits[0].requests: expected a whole number of at least 1, found '5' (without quotes)"),
        ({"id": "plan#", "models": []}, "plan#: plans[\"\"]"),
        ({"id": "plam#x", "models": []}, "plam#x: is no part of a policy"),
        ({"id": "global", "limits": 5}, "global: global.limits: expected a list"),
        ({"id": "global", "redis_failure_mode": "shut"}, "global: redis_failure_mode: expected fallback, open"),
    ],
)  # fmt: skip
def test_a_wrong_edit_names_its_item(tables: Tables, item: dict[str, Any], said: str) -> None:
    tables.apply()
    tables.put(item)
    with pytest.raises(PolicyErrors) as caught:
        tables.run(tables.main.publish())
    assert said in str(caught.value)
    assert tables.run(tables.main.policy()).plans == DEMO.plans
    tables.apply()  # puts it right
    assert tables.run(tables.main.publish())[0].plans == DEMO.plans


def test_revisions_never_begin_again(tables: Tables) -> None:
    """A store that was told revision N takes everything older for stale; a new table must not start below it."""
    first = tables.apply()
    tables.run(tables.client.call("DeleteItem", {"TableName": tables.policy_table, "Key": {"id": {"S": "snapshot"}}}))
    tables.now_s += 60
    assert tables.run(tables.main.publish())[1] > first


# -- a process's overrides, and the last good policy -----------------------------------------------------------------


def test_the_environment_overrides_what_is_read_never_what_is_written(tables: Tables) -> None:
    tables.apply()
    view = tables.view({"TOLLGATE_PLANS__FREE__LIMITS__0__REQUESTS": "5", "REDIS_FAILURE_MODE": "open"})
    policy = tables.run(view.policy())
    assert (policy.plans["free"].limits[0].requests, policy.redis_failure_mode) == (5, "open")
    assert tables.run(view.edited()).plans == DEMO.plans
    tables.run(view.publish())
    assert tables.run(tables.main.policy()).plans == DEMO.plans


def test_a_bad_environment_stops_a_start_with_its_name(tables: Tables) -> None:
    tables.apply()
    with pytest.raises(PolicyUnavailable, match=r"TOLLGATE_PLANS__FREE__LIMITS__0__REQUESTS: .* found 'many'"):
        tables.run(tables.view({"TOLLGATE_PLANS__FREE__LIMITS__0__REQUESTS": "many"}).policy())


def test_a_running_process_keeps_the_last_good_policy_under_the_new_revision(
    tables: Tables, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.apply()
    view = tables.view({"TOLLGATE_PLANS__FREE__LIMITS__2__CONCURRENT": "7"})
    good = tables.run(view.policy())
    revision = tables.apply(with_plan(limits=DEMO.plans["free"].limits[:1]))  # the override's limit is gone
    kept = tables.run(view.policy())
    assert kept == good.replace(revision=revision)
    assert "PolicyRejected" in capsys.readouterr().out
    assert tables.run(view.policy()) is kept


def test_an_unchanged_revision_is_the_same_policy(tables: Tables) -> None:
    tables.apply()
    assert tables.run(tables.main.policy()) is tables.run(tables.main.policy())


def test_a_table_that_is_not_there_or_does_not_answer(tables: Tables) -> None:
    nowhere = PolicyTables(tables.client, "nowhere", "nowhere")
    with pytest.raises(PolicyUnavailable, match="there is no table 'nowhere': deploy the stack first"):
        tables.run(nowhere.policy())

    async def outage(operation: str, payload: dict[str, Any]) -> None:
        raise tables.client.outage()

    tables.client.fault = outage
    with pytest.raises(PolicyUnavailable, match="as if DynamoDB were down"):
        tables.run(tables.main.policy())


# -- tenants ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def acme(tables: Tables) -> TenantRecord:
    tables.apply()
    return tables.run(tables.main.create_tenant("acme", TenantSpec(plan="pro"), "tests"))


def test_a_tenant_is_made_once(tables: Tables, acme: TenantRecord) -> None:
    assert acme == TenantRecord(tenant="acme", plan="pro", version=NOW_S)
    assert tables.run(tables.main.tenant("acme")) == acme
    assert tables.get("acme")["state"] == "active"
    with pytest.raises(Conflict, match="there is a tenant 'acme' already"):
        tables.run(tables.main.create_tenant("acme", TenantSpec(plan="free"), "tests"))
    with pytest.raises(PolicyErrors, match=r"there is no plan 'fre' \(did you mean free\?\)"):
        tables.run(tables.main.create_tenant("globex", TenantSpec(plan="fre"), "tests"))
    with pytest.raises(PolicyErrors, match="expected a name"):
        tables.run(tables.main.create_tenant("client#x", TenantSpec(plan="free"), "tests"))


def test_who_is_no_tenant(tables: Tables, acme: TenantRecord) -> None:
    tables.put({"tenant": "client#abc", "tenant_id": "acme"})
    tables.client.calls.clear()
    for name in ("client#abc", "", "a" * 129, "\ud800", "nobody"):
        assert tables.run(tables.main.tenant(name)) is None
    assert tables.client.calls == ["GetItem"]  # names that cannot be are not asked for
    with pytest.raises(NotFound):
        tables.run(tables.main.tenants.get("nobody"))


def test_tenants_are_changed_against_their_version(tables: Tables, acme: TenantRecord) -> None:
    tables.put({**tables.get("acme"), "note": "calls on Mondays"})
    changed = tables.run(tables.main.edit_tenant("acme", lambda data: {**data, "plan": "free"}, "tests"))
    assert (changed.plan, changed.version) == ("free", acme.version + 1)
    assert tables.get("acme")["note"] == "calls on Mondays"
    stepped = []

    async def somebody_is_faster(operation: str, payload: dict[str, Any]) -> None:
        if operation == "UpdateItem" and not stepped:
            stepped.append(True)
            await tables.view().tenants.set_state("acme", "suspended", "somebody")

    tables.client.fault = somebody_is_faster
    tables.run(tables.main.edit_tenant("acme", lambda data: {**data, "plan": "pro"}, "tests"))
    tables.client.fault = None
    record = tables.run(tables.main.tenants.get("acme"))
    assert (record.plan, record.state) == ("pro", "suspended")  # both count
    with pytest.raises(PolicyErrors, match="there is no plan"):
        tables.run(tables.main.edit_tenant("acme", lambda data: {**data, "plan": "gold"}, "tests"))
    with pytest.raises(NotFound):
        tables.run(tables.main.edit_tenant("nobody", lambda data: data, "tests"))


def test_overrides_come_and_go(tables: Tables, acme: TenantRecord) -> None:
    limit = {"scope": "user", "requests": 5, "per": "minute", "until": "2026-12-01T00:00:00Z"}
    edited = tables.run(tables.main.edit_tenant("acme", lambda data: {**data, "limits": [limit]}, "tests"))
    assert edited.limits[0].requests == 5
    assert tables.run(tables.main.tenant("acme")) == edited
    without = tables.run(
        tables.main.edit_tenant("acme", lambda data: {k: v for k, v in data.items() if k != "limits"}, "tests")
    )
    assert without.limits == ()
    assert "limits" not in tables.get("acme")


def test_suspending_and_resuming(tables: Tables, acme: TenantRecord) -> None:
    suspended = tables.run(tables.main.tenants.set_state("acme", "suspended", "tests"))
    assert (suspended.state, suspended.version) == ("suspended", acme.version + 1)
    assert tables.run(tables.main.tenants.set_state("acme", "suspended", "tests")) == suspended  # nothing to do
    assert tables.run(tables.main.tenants.set_state("acme", "active", "tests")).state == "active"
    with pytest.raises(NotFound):
        tables.run(tables.main.tenants.set_state("nobody", "suspended", "tests"))


def test_users_are_disabled_and_enabled(tables: Tables, acme: TenantRecord) -> None:
    users = tables.main.tenants
    tables.put({**tables.get("acme"), "note": "calls on Mondays"})
    tables.run(users.disable("acme", {"ann", "0c1d"}, "tests"))
    tables.run(users.disable("acme", {"bob"}, "tests"))
    item = tables.get("acme")
    assert item["disabled_users"] == [{"user": "0c1d"}, {"user": "ann"}, {"user": "bob"}]
    assert (item["note"], item["updated_by"], item["version"]) == ("calls on Mondays", "tests", acme.version + 2)
    tables.run(users.disable("acme", {"bob"}, "somebody else"))
    assert tables.get("acme") == item  # nothing to do
    assert tables.run(tables.main.tenant("acme")).disables("ann", NOW_S * 1_000_000)
    tables.run(users.enable("acme", {"ann", "0c1d", "bob"}, "tests"))
    assert "disabled_users" not in tables.get("acme")
    with pytest.raises(NotFound):
        tables.run(users.disable("nobody", {"ann"}, "tests"))


def test_the_list_of_disabled_users_does_not_grow_for_ever(tables: Tables, acme: TenantRecord) -> None:
    users, soon = tables.main.tenants, datetime.fromtimestamp(NOW_S + 60, UTC)
    tables.run(users.disable("acme", {"gone"}, "tests", soon))
    tables.run(users.disable("acme", {"ann"}, "tests"))
    assert {entry["user"] for entry in tables.get("acme")["disabled_users"]} == {"gone", "ann"}
    tables.now_s += 60
    tables.run(users.disable("acme", {"bob"}, "tests"))
    assert {entry["user"] for entry in tables.get("acme")["disabled_users"]} == {"ann", "bob"}
    with pytest.raises(PolicyErrors, match="disabled_users"):
        tables.run(users.disable("acme", {f"u{i}" for i in range(MAX_DISABLED_USERS - 1)}, "tests"))


def test_two_operators_disable_at_once(tables: Tables, acme: TenantRecord) -> None:
    async def both() -> None:
        views = [tables.view().tenants for _ in range(8)]
        await asyncio.gather(*(view.disable("acme", {f"u{i}"}, "tests") for i, view in enumerate(views)))

    tables.run(both())
    assert {entry["user"] for entry in tables.get("acme")["disabled_users"]} == {f"u{i}" for i in range(8)}


def test_applying_a_file_enables_nobody(tables: Tables, acme: TenantRecord) -> None:
    tables.run(tables.main.tenants.disable("acme", {"ann"}, "tests"))
    tables.apply(demo(tenants={"acme": TenantSpec(plan="free")}))
    record = tables.run(tables.main.tenants.get("acme"))
    assert (record.plan, record.disables("ann", NOW_S * 1_000_000)) == ("free", True)


def test_applying_a_file_never_resumes_a_tenant(tables: Tables, acme: TenantRecord) -> None:
    tables.run(tables.main.edit_tenant("acme", _boosted, "tests"))
    tables.run(tables.main.tenants.set_state("acme", "suspended", "tests"))
    policy = demo(tenants={"acme": TenantSpec(plan="free"), "globex": TenantSpec(plan="free")})
    applied = tables.run(tables.main.apply(policy, "tests"))
    assert applied.tenants == ["acme", "globex"]
    assert [str(change) for change in applied.changes] == [
        '~ tenants.acme.plan: "pro" -> "free"',
        '+ tenants.globex: {"plan":"free"}',
    ]
    record = tables.run(tables.main.tenants.get("acme"))
    assert (record.plan, record.state, len(record.limits)) == ("free", "suspended", 1)  # what it does not say stays
    assert tables.run(tables.main.apply(policy, "tests")).tenants == []
    cleared = demo(tenants={"acme": TenantSpec(plan="free", limits=())})
    tables.apply(cleared)
    assert tables.run(tables.main.tenants.get("acme")).limits == ()


def _boosted(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "limits": [{"scope": "user", "requests": 5, "per": "minute"}]}


def test_tenants_are_listed_page_by_page(tables: Tables, acme: TenantRecord) -> None:
    for i in range(12):
        tables.put({"tenant": f"t{i}", "plan": "free", "version": 1})
        tables.put({"tenant": f"client#{i}", "tenant_id": "acme"})
    seen: list[str] = []
    after: str | None = None
    while True:
        rows, after = tables.run(tables.main.tenants.page(5, after))
        assert len(rows) <= 5
        seen += [row.tenant for row in rows]
        if after is None:
            break
    assert sorted(seen) == sorted(["acme", *(f"t{i}" for i in range(12))])
    assert tables.run(tables.main.tenants.count()) == 13


def test_a_record_made_by_hand(tables: Tables, acme: TenantRecord) -> None:
    tables.put({"tenant": "umbra", "plan": "free"})
    record = tables.run(tables.main.tenant("umbra"))
    assert record is not None
    assert (record.state, record.version) == ("active", 1)
    tables.run(tables.main.edit_tenant("umbra", lambda data: {**data, "plan": "pro"}, "tests"))
    assert tables.get("umbra")["version"] == NOW_S


def test_a_record_that_cannot_be_read_leaves_the_last_good_one(
    tables: Tables, acme: TenantRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.run(tables.main.tenant("acme"))
    tables.put({"tenant": "acme", "plan": "pro", "state": "snoozing", "version": NOW_S + 9})
    kept = tables.run(tables.main.tenant("acme"))
    assert kept == acme.replace(version=NOW_S + 9)
    assert "TenantRejected" in capsys.readouterr().out
    with pytest.raises(PolicyUnavailable, match="tenant acme: state: expected active or suspended, found 'snoozing'"):
        tables.run(tables.view().tenant("acme"))


def test_the_environment_overrides_a_tenants_record(tables: Tables, acme: TenantRecord) -> None:
    view = tables.view({"TOLLGATE_TENANTS__ACME__PLAN": "enterprise", "TOLLGATE_TENANTS__GLOBEX__PLAN": "free"})
    record = tables.run(view.tenant("acme"))
    assert record is not None
    assert record.plan == "enterprise"
    assert tables.run(tables.view().tenant("acme")) == acme
    with pytest.raises(PolicyUnavailable, match="TOLLGATE_TENANTS__ACME__PLN"):
        tables.run(tables.view({"TOLLGATE_TENANTS__ACME__PLN": "free"}).tenant("acme"))


# -- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_is_edited_and_checked_before_it_is_written(tables: Tables) -> None:
    tables.apply()
    applied = tables.run(tables.main.edit_plan("free", lambda data: {**data, "when_stores_fail": "open"}, "tests"))
    assert [str(change) for change in applied.changes] == ['+ plans.free.when_stores_fail: "open"']
    with pytest.raises(PolicyErrors, match="there is no model 'x'"):
        tables.run(tables.main.edit_plan("free", lambda data: {**data, "models": ["x"]}, "tests"))
    tables.run(tables.main.edit_plan("trial", lambda data: {"models": ["small"]}, "tests"))
    policy = tables.run(tables.main.policy())
    assert policy.plans["free"].when_stores_fail == "open"
    assert policy.plans["trial"].models == ("small",)
