"""What lies under our keys and is not ours: the safe decision, or an error that says what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.dynamodb_local.takes import PLACES, SUBJECT, budget, requests, slot, tokens
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.dynamodb_limit_items import counter
from tollgate.adapters.dynamodb_limit_markers import marker_key
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.domain.limits import Admission, Decision, Settlement, Status, Take
from tollgate.ports import StoreUnavailable

MINUTE = 60_000_000
FOREIGN: list[dict[str, Any]] = [
    {"S": "1795262400000000"}, {"N": "9795262400000000.5"}, {"NULL": True}, {"BOOL": True},
    {"M": {}}, {"L": [{"N": "1"}]}, {"SS": ["a"]}, {"NS": ["1"]}, {"B": "AAAA"},
]  # fmt: skip


class World:
    """One table, what is put into it, and a store that finds it."""

    def __init__(self, client: AwsClient, runner: asyncio.Runner, table: str) -> None:
        self.client, self.table, self.run = client, table, runner.run
        self.store = DynamoLimitStore(client, table)

    def put(self, pk: str, **attributes: dict[str, Any]) -> None:
        item = {"pk": {"S": pk}, **attributes}
        self.run(self.client.call("PutItem", {"TableName": self.table, "Item": item}))

    def admit(self, *takes: Take, id: str = "a") -> Decision:
        return self.run(self.store.admit(Admission(id, list(takes), MINUTE, "acme")))


@pytest.fixture
def world(client: AwsClient, runner: asyncio.Runner, table: str) -> World:
    return World(client, runner, table)


@pytest.mark.parametrize("value", FOREIGN, ids=lambda value: next(iter(value)))
@pytest.mark.parametrize("make", [requests, tokens, budget, slot])
def test_a_counter_of_another_type(world: World, make: Callable[[], Take], value: dict[str, Any]) -> None:
    take = make()
    world.put(f"s#{SUBJECT}", **{counter(take): value})
    with pytest.raises(StoreUnavailable):
        world.admit(take)
    if not isinstance(take, type(requests())):
        return
    with pytest.raises(StoreUnavailable):
        world.run(world.store.recall([take], [0]))


@pytest.mark.parametrize(
    "attributes",
    [
        {"=abc": {"S": "soon x=1"}},
        {"=abc": {"S": ""}},
        {"=abc": {"SS": ["a"]}},
        {"~abcdenever": {"N": "1"}},
        {"~abcde1": {"S": "1"}},
        {"whatever": {"S": "x"}},
    ],
)
def test_holds_that_cannot_be_read(world: World, attributes: dict[str, Any]) -> None:
    world.put(f"s#{SUBJECT}", **{counter(slot()): {"N": str(PLACES)}}, **attributes)
    with pytest.raises(StoreUnavailable, match="not what Tollgate writes"):
        world.admit(slot())


@pytest.mark.parametrize("number", ["9" * 38, "1" + "0" * 30, str(2**63)])
def test_numbers_too_large_to_be_true_refuse(world: World, number: str) -> None:
    world.put(f"s#{SUBJECT}", **{counter(t): {"N": number} for t in (requests(), tokens(), budget(), slot())})
    for i, take in enumerate((requests(), tokens(), budget(), slot())):
        assert world.admit(take, id=f"{i}").status is Status.REFUSED


@pytest.mark.parametrize("number", ["-" + "9" * 37, "-1"])
def test_numbers_below_zero_are_a_bucket_that_has_long_been_full(world: World, number: str) -> None:
    world.put(f"s#{SUBJECT}", **{counter(requests()): {"N": number}})
    assert [world.admit(requests(2), id=f"{i}").admitted for i in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"e": {"N": "9" * 17}},
        {"e": {"N": "9" * 17}, "g": {"S": "no json"}, "w": {"S": "[]"}, "n": {"S": "x"}},
        {"e": {"N": "9" * 17}, "g": {"S": "[1]"}, "w": {"S": "[1]"}, "n": {"S": "x"}},
        {"e": {"S": "never"}, "g": {"S": "[1]"}, "w": {"S": "[]"}, "n": {"S": "x"}},
    ],
)
def test_a_marker_that_cannot_be_read(world: World, attributes: dict[str, Any]) -> None:
    world.put(marker_key("a"), **attributes)
    with pytest.raises(StoreUnavailable, match="not a marker"):
        world.admit(slot(), id="a")
    key = {"pk": {"S": f"s#{SUBJECT}"}}
    item = world.run(world.client.call("GetItem", {"TableName": world.table, "Key": key}))["Item"]
    assert item[counter(slot())]["N"] == "0", "given back"
    try:
        assert not world.run(world.store.settle(Settlement("a", [slot()], [0], "acme")))
    except StoreUnavailable as error:
        assert "not a marker" in str(error)  # noqa: PT017 - either answer is right


def test_versions_that_are_no_numbers(world: World) -> None:
    world.put("v#policy", v={"S": "5"})
    with pytest.raises(StoreUnavailable, match="no version"):
        world.run(world.store.admit(Admission("a", [requests()], MINUTE, "acme", policy_version=3)))
    assert world.admit(requests(1), id="b").admitted, "given back, and unversioned admissions do not ask"


@pytest.mark.parametrize("id", ["", "é😀", "\ud800", "a b=c", "{g}", "x" * 5000, "\0", "s#", ":v", "'; --"])
def test_ids_of_any_shape(world: World, id: str) -> None:
    world.admit(budget(0, seed=0), id="first")
    takes: list[Take] = [requests(), budget(), slot()]
    assert world.admit(*takes, id=id).admitted
    assert world.admit(*takes, id=id).admitted
    settle = Settlement(id, takes, [None, 7, 0], "acme")
    assert [world.run(world.store.settle(settle)) for _ in range(2)] == [True, False]


@pytest.mark.parametrize("cost", [10**18, 10**30, 2**63])
def test_huge_costs_are_refused_and_take_nothing(world: World, cost: int) -> None:
    assert world.admit(tokens(cost), id="a").status is Status.REFUSED
    assert world.admit(budget(cost, seed=0), id="b").status is Status.REFUSED
    assert world.admit(tokens(7), budget(7), id="c").admitted


def test_limits_of_zero_refuse(world: World) -> None:
    assert world.admit(slot(0), id="a").status is Status.REFUSED
    assert world.admit(budget(1, amount=0, seed=0), id="b").status is Status.REFUSED
