"""Publishing: edits of the tables come in, versions go out to the store; repeated at will, and never what is wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import tollgate.bootstrap
from functions.publisher.handler import edits, handler
from tollgate.adapters.aws import AwsError, from_dynamo, to_dynamo
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.policy_file import load
from tollgate.adapters.policy_tables import PolicyTables
from tollgate.domain.audit import Change, Refusals
from tollgate.domain.changes import BY_HAND
from tollgate.ports import StoreUnavailable
from tollgate.services.publish import Edits, TenantEdit

DEMO = load(Path(__file__).parents[2] / "policy.yaml", {})
NOW_S = 1_795_262_400


class Dynamo:
    """As much of DynamoDB as the publisher uses: items in dictionaries, and the conditions of its own writes."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, str], dict[str, Any]] = {}
        self.writes = 0

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        if operation == "GetItem":
            item = self.items.get((payload["TableName"], _key(payload["Key"])))
            return {"Item": _encode(item)} if item is not None else {}
        if operation == "Scan":
            return {
                "Items": [_encode(item) for (table, _), item in self.items.items() if table == payload["TableName"]]
            }
        self.writes += 1
        if operation == "TransactWriteItems":
            for action in payload["TransactItems"]:
                put = action["Put"]
                item = {name: from_dynamo(value) for name, value in put["Item"].items()}
                if not _holds(put, self.items.get((put["TableName"], item["id"]))):
                    raise AwsError("TransactionCanceledException", "", 400, {})
                self.items[put["TableName"], item["id"]] = item
            return {}
        assert operation == "UpdateItem"
        item = self.items[payload["TableName"], _key(payload["Key"])]
        if not _holds(payload, item):
            raise AwsError("ConditionalCheckFailedException", "", 400, {})
        item["version"] = from_dynamo(payload["ExpressionAttributeValues"][":0"])
        return {}


def _holds(payload: Mapping[str, Any], item: Mapping[str, Any] | None) -> bool:
    """Whether a condition holds: ``attribute_exists``, ``attribute_not_exists`` and equality, joined by AND."""
    condition = payload.get("ConditionExpression", "")
    names, values = payload.get("ExpressionAttributeNames", {}), payload.get("ExpressionAttributeValues", {})
    for part in filter(None, condition.split(" AND ")):
        function, _, argument = part.rstrip(")").partition("(")
        if argument:
            if (names[argument] in (item or {})) != (function == "attribute_exists"):
                return False
        else:
            name, value = part.split(" = ")
            if (item or {}).get(names[name]) != from_dynamo(values[value]):
                return False
    return True


def _key(key: Mapping[str, Any]) -> str:
    ((value,),) = [list(inner.values()) for inner in key.values()]
    return str(value)


def _encode(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: to_dynamo(value) for name, value in item.items()}


class Store(MemoryLimitStore):
    """Remembers what it was told, and may be out of reach."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, dict[str, int]]] = []
        self.down = False

    async def publish(self, *, policy: int = 0, tenants: Mapping[str, int] | None = None) -> None:
        if self.down:
            raise StoreUnavailable("as if it were down")
        self.told.append((policy, dict(tenants or {})))


class Log:
    """An audit log that may be out of reach."""

    def __init__(self) -> None:
        self.entries: dict[str, Change | Refusals] = {}
        self.down = False

    async def note(self, entries: Sequence[Change | Refusals]) -> int:
        if self.down:
            raise StoreUnavailable("as if it were down")
        new = {entry.id: entry for entry in entries if entry.id not in self.entries}
        self.entries |= new
        return len(new)


class Stack:
    """The publisher function with its tables, its store and its audit log."""

    def __init__(self) -> None:
        self.dynamo = Dynamo()
        self.store = Store()
        self.log = Log()
        self.tables = PolicyTables(self.dynamo, "policy", "tenants", clock_s=lambda: NOW_S)
        asyncio.run(self.tables.apply(DEMO, "tests"))
        self.dynamo.writes = 0

    def policy_edited(self, **item: Any) -> dict[str, Any]:
        """What the handler says to an edit by hand of an item of the policy (no item: an edit that says the same)."""
        if item:
            self.dynamo.items["policy", item["id"]] = item
        return handler({"Records": [record({"id": item.get("id", "plan#free")})]}, None)

    def tenant_edited(self, before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any]:
        name = (after or before or {})["tenant"]
        if after is not None:
            self.dynamo.items["tenants", name] = dict(after)
        return handler({"Records": [record({"tenant": name}, before, after)]}, None)

    @property
    def revision(self) -> int:
        return int(self.dynamo.items["policy", "snapshot"]["revision"])


def record(key: dict[str, str], before: Any = None, after: Any = None) -> dict[str, Any]:
    """One record of a DynamoDB stream."""
    change = {"Keys": _encode(key), "SequenceNumber": "1", "ApproximateCreationDateTime": NOW_S}
    if before is not None:
        change["OldImage"] = _encode(before)
    if after is not None:
        change["NewImage"] = _encode(after)
    name = "INSERT" if before is None else "MODIFY" if after is not None else "REMOVE"
    return {"eventID": "1", "eventName": name, "eventSource": "aws:dynamodb", "dynamodb": change}


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Stack:
    made = Stack()

    @asynccontextmanager
    async def publisher() -> AsyncIterator[tuple[PolicyTables, Store, Log]]:
        yield made.tables, made.store, made.log

    monkeypatch.setattr(tollgate.bootstrap, "publisher", publisher)
    return made


def lines(capsys: pytest.CaptureFixture[str], level: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, capsys.readouterr().out.splitlines()) if line.get("level") == level]


# -- reading the stream ----------------------------------------------------------------------------------------------


def test_what_a_stream_says() -> None:
    acme = {"tenant": "acme", "plan": "pro", "version": 3, "limits": [{"scope": "user", "requests": 5, "per": "day"}]}
    event = {
        "Records": [
            record({"id": "plan#free"}, {"id": "plan#free"}, {"id": "plan#free"}),
            record({"tenant": "acme"}, None, acme),
            record({"tenant": "client#abc"}, None, {"tenant": "client#abc", "tenant_id": "acme"}),
            record({"tenant": "globex"}, {"tenant": "globex"}, None),
        ]
    }
    assert edits(event) == Edits(
        True, [TenantEdit("acme", None, acme), TenantEdit("globex", {"tenant": "globex"}, None)]
    )
    assert edits({"Records": [record({"id": "snapshot"})]}) == Edits()
    assert edits({}) == Edits()


# -- the policy ------------------------------------------------------------------------------------------------------


def test_an_edit_of_the_policy_becomes_the_snapshot_and_is_announced(stack: Stack) -> None:
    said = stack.policy_edited(id="plan#free", models=["small", "large"])
    assert said == {"policy": NOW_S + 1, "tenants": {}, "rejected": []}
    assert stack.store.told == [(NOW_S + 1, {})]
    assert stack.revision == NOW_S + 1
    assert asyncio.run(stack.tables.policy()).plans["free"].models == ("small", "large")


def test_an_edit_that_is_published_already_is_announced_all_the_same(stack: Stack) -> None:
    """`tollgate policy apply` publishes by itself, but cannot reach the store."""
    stack.policy_edited()
    stack.policy_edited()
    assert stack.store.told == [(NOW_S, {})] * 2
    assert (stack.dynamo.writes, stack.revision) == (0, NOW_S)


def test_a_wrong_edit_is_an_alarm_and_goes_no_further(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    said = stack.policy_edited(id="plan#free", models=["smal"])
    assert said["rejected"] == ["policy"]
    assert (stack.store.told, stack.revision) == ([], NOW_S)
    (alarm,) = lines(capsys, "ERROR")
    assert alarm["PolicyRejected"] == 1
    assert alarm["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "Tollgate"
    assert alarm["problems"][0]["path"] == "plans.free.models[0]"
    assert alarm["problems"][0]["source"] == "plan#free"


def test_a_store_that_is_down_is_told_when_the_stream_delivers_again(stack: Stack) -> None:
    stack.store.down = True
    with pytest.raises(StoreUnavailable):
        stack.policy_edited(id="plan#free", models=[])
    assert stack.revision == NOW_S + 1  # written all the same: cold gateways read it
    stack.store.down = False
    stack.policy_edited()
    assert stack.store.told == [(NOW_S + 1, {})]
    assert stack.revision == NOW_S + 1


# -- tenants ---------------------------------------------------------------------------------------------------------

ACME = {"tenant": "acme", "plan": "pro", "state": "active", "version": 5}


@pytest.mark.parametrize(
    ("before", "after", "announced"),
    [
        (None, ACME, 5),  # `tollgate tenant create`
        ({**ACME, "version": 4, "plan": "free"}, ACME, 5),  # `tollgate tenant set`
        ({**ACME, "plan": "free"}, ACME, NOW_S),  # by hand: it gets a version
        ({**ACME, "version": 9, "plan": "free"}, ACME, NOW_S),  # by hand, and the version went back
        ({**ACME, "state": "suspended"}, ACME, NOW_S),
        (None, {"tenant": "acme", "plan": "pro"}, NOW_S),
        (ACME, {**ACME, "note": "calls on Mondays"}, 0),  # nothing that matters
        (ACME, {**ACME, "limits": []}, NOW_S),
        (ACME, None, NOW_S),  # gone: whoever holds the record must look again
        ({**ACME, "version": NOW_S + 7}, None, NOW_S + 8),
        ({**ACME, "version": NOW_S + 7, "plan": "free"}, {**ACME, "version": NOW_S + 7}, NOW_S + 8),
    ],
)
def test_the_version_that_an_edit_is_known_by(
    stack: Stack, before: dict[str, Any] | None, after: dict[str, Any] | None, announced: int
) -> None:
    said = stack.tenant_edited(before, after)
    assert said["tenants"] == ({"acme": announced} if announced else {})
    assert stack.store.told == ([(0, {"acme": announced})] if announced else [])
    if after is not None and announced:
        assert stack.dynamo.items["tenants", "acme"]["version"] == announced


def test_an_edit_that_was_overtaken_is_left_to_the_next(stack: Stack) -> None:
    edited = {**ACME, "plan": "free"}
    stack.dynamo.items["tenants", "acme"] = {**edited, "version": 6}
    said = handler({"Records": [record({"tenant": "acme"}, ACME, edited)]}, None)
    assert said["tenants"] == {}
    assert stack.dynamo.items["tenants", "acme"]["version"] == 6


def test_of_several_edits_the_newest_is_announced(stack: Stack) -> None:
    second = {**ACME, "version": 6, "state": "suspended"}
    other = {**ACME, "tenant": "globex"}
    event = [record({"tenant": "acme"}, ACME, second), record({"tenant": "globex"}, None, other)]
    handler({"Records": [record({"tenant": "acme"}, None, ACME), *event]}, None)
    assert stack.store.told == [(0, {"acme": 6, "globex": 5})]


@pytest.mark.parametrize(
    ("after", "path"),
    [
        ({**ACME, "plan": "gold"}, "tenants.acme.plan"),
        ({**ACME, "state": "snoozing"}, "state"),
        ({**ACME, "limits": [{"scope": "user", "requests": "5", "per": "day"}]}, "limits[0].requests"),
        ({"tenant": "acme"}, "plan"),
    ],
)
def test_a_wrong_tenant_is_an_alarm_and_goes_no_further(
    stack: Stack, after: dict[str, Any], path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = stack.tenant_edited(ACME, after)
    assert (said["rejected"], stack.store.told) == (["acme"], [])
    (alarm,) = lines(capsys, "ERROR")
    assert (alarm["TenantRejected"], alarm["edited"]) == (1, "acme")
    assert [problem["path"] for problem in alarm["problems"]] == [path]


def test_one_wrong_tenant_does_not_hold_up_the_others(stack: Stack) -> None:
    wrong, right = {**ACME, "plan": "gold"}, {**ACME, "tenant": "globex"}
    handler({"Records": [record({"tenant": t["tenant"]}, None, t) for t in (wrong, right)]}, None)
    assert stack.store.told == [(0, {"globex": 5})]


# -- the audit log ---------------------------------------------------------------------------------------------------


def test_an_edit_is_noted_once_however_often_it_is_delivered(stack: Stack) -> None:
    for _ in range(2):
        stack.tenant_edited(ACME, {**ACME, "plan": "free", "updated_at": "now", "updated_by": "ann"})
    (entry,) = stack.log.entries.values()
    assert entry == Change(
        "1", NOW_S * 1_000_000, "ann", "tenants", "acme", "changed", '{"plan":"pro"}', '{"plan":"free"}'
    )


def test_neither_publishing_nor_the_audit_log_waits_for_the_other(stack: Stack) -> None:
    suspended = {**ACME, "state": "suspended", "version": 6}
    stack.log.down = True
    with pytest.raises(StoreUnavailable):
        stack.tenant_edited(ACME, suspended)
    assert stack.store.told == [(0, {"acme": 6})]
    stack.log.down, stack.store.down = False, True
    with pytest.raises(StoreUnavailable):
        stack.tenant_edited(ACME, suspended)
    assert len(stack.log.entries) == 1


def test_who_applied_a_policy_without_it_has_removed_an_item(stack: Stack) -> None:
    plan = stack.dynamo.items["policy", "plan#free"]
    gone = {"Records": [record({"id": "plan#free"}, plan, None)]}
    stack.dynamo.items["policy", "snapshot"] |= {"published_by": "ann", "removed": ["plan#free"]}
    handler(gone, None)
    stack.dynamo.items["policy", "snapshot"] |= {"removed": []}
    gone["Records"][0]["eventID"] = "2"
    handler(gone, None)
    assert [(it.actor, it.action) for it in stack.log.entries.values() if isinstance(it, Change)] == [
        ("ann", "deleted"),
        (BY_HAND, "deleted"),
    ]


def test_what_the_publisher_writes_itself_is_nobodys_edit(stack: Stack) -> None:
    handler({"Records": [record({"id": "snapshot"}, None, {"id": "snapshot"})]}, None)
    handler({"Records": [record({"tenant": "acme"}, ACME, {**ACME, "version": NOW_S})]}, None)
    assert stack.log.entries == {}
