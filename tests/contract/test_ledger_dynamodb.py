"""What only the ledger in DynamoDB has to prove."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.aws_fixture import Recorder
from tests.contract.books import TENANT, USER, Books, make_books, take
from tests.records import a_close
from tollgate.adapters.aws import AwsError
from tollgate.adapters.dynamodb_counters import SPREAD
from tollgate.adapters.dynamodb_ledger import DynamoLedger
from tollgate.domain.bookkeeping import Counter
from tollgate.domain.limits import Unit, Window
from tollgate.ports import StoreUnavailable


@pytest.fixture
def books(runner: asyncio.Runner, request: pytest.FixtureRequest) -> Books:
    return make_books("dynamodb", runner, request)


def test_a_batch_is_one_transaction(books: Books, dynamo: Recorder) -> None:
    books.enter(a_close("first"))
    dynamo.calls.clear()
    books.enter(*[a_close(f"{i}") for i in range(80)])
    assert dynamo.calls == ["TransactWriteItems"]


def test_tenants_are_entered_beside_each_other_and_share_no_item(books: Books, dynamo: Recorder) -> None:
    touched: list[set[str]] = []
    met = asyncio.Event()

    async def overlap(operation: str, payload: dict[str, Any]) -> None:
        if operation == "TransactWriteItems" and not met.is_set():  # until four wait, nobody goes on
            actions = [next(iter(action.values())) for action in payload["TransactItems"]]
            touched.append({str(action.get("Key") or action["Item"]["pk"]) for action in actions})
            if len(touched) == 4:
                met.set()
            await asyncio.wait_for(met.wait(), 10)

    entries = [a_close(f"{t}/{i}", tenant=f"tenant{t}", user=f"u{i}") for t in range(8) for i in range(12)]
    dynamo.fault = overlap
    assert books.enter(*entries) == (96, 0)
    dynamo.fault = None
    assert len(set[str]().union(*touched)) == sum(len(items) for items in touched)
    assert {row["tenant"]: row["requests"] for row in books.rows("tenant")} == {f"tenant{t}": 12 for t in range(8)}
    assert books.enter(*entries) == (0, 96)


def test_one_tenant_that_fails_leaves_the_others_entered(books: Books, dynamo: Recorder) -> None:
    entries = [a_close(f"{t}/{i}", tenant=f"tenant{t}", user=f"u{i}") for t in range(4) for i in range(25)]

    begun = asyncio.Event()

    async def fail(operation: str, payload: dict[str, Any]) -> None:
        if operation == "TransactWriteItems" and "tenant3" in str(payload):
            begun.set()
        if operation == "TransactWriteItems" and "tenant2" in str(payload):
            await asyncio.wait_for(begun.wait(), 10)
            raise dynamo.outage()

    dynamo.fault = fail
    with pytest.raises(StoreUnavailable):
        books.enter(*entries)
    dynamo.fault = None
    others = {f"tenant{t}": 25 for t in (0, 1, 3)}
    assert {row["tenant"]: row["requests"] for row in books.rows("tenant")} == others
    assert books.enter(*entries) == (25, 75)
    assert {row["tenant"]: row["requests"] for row in books.rows("tenant")} == others | {"tenant2": 25}


def test_concurrent_batches_lose_nothing(books: Books, dynamo: Recorder) -> None:
    async def at_once() -> None:
        batches = [
            [a_close(f"{(i * 7 + j) % 40}", input_tokens=1, output_tokens=0) for j in range(10)] for i in range(8)
        ]
        await asyncio.gather(*(books.ledger.enter(batch) for batch in batches))

    books.run(at_once())
    known = len({(i * 7 + j) % 40 for i in range(8) for j in range(10)})
    assert books.spent(take(Unit.TOKENS, Window.DAY)) == [known]
    assert sum(int(row["requests"]) for row in books.rows()) == known


def test_repetitions_are_looked_up_rather_than_tried(books: Books, dynamo: Recorder) -> None:
    entries = [a_close(f"{i}", user=f"u{i}") for i in range(120)]
    books.enter(*entries)
    dynamo.calls.clear()
    assert books.enter(*entries, a_close("new")) == (1, 120)
    assert dynamo.calls.count("TransactWriteItems") <= 4
    assert dynamo.calls.count("BatchGetItem") <= 3


def test_counters_that_everybody_wants_are_spread(books: Books, dynamo: Recorder) -> None:
    """Two conflicts in a row: from then on they are in several items, and whoever reads adds them up."""
    books.enter(a_close("first", input_tokens=1, output_tokens=0))
    left = 2

    async def conflict(operation: str, payload: dict[str, Any]) -> None:
        nonlocal left
        if operation == "TransactWriteItems" and left:
            left -= 1
            codes = ["TransactionConflict" if "Update" in action else "None" for action in payload["TransactItems"]]
            reasons = {"CancellationReasons": [{"Code": code} for code in codes]}
            raise AwsError("TransactionCanceledException", "conflict", 400, reasons)

    dynamo.fault = conflict
    second = books.run(books.ledger.enter([a_close("second", input_tokens=2, output_tokens=0)]))
    dynamo.fault = None
    assert (second.entered, second.conflicts) == (1, 2)
    with pytest.MonkeyPatch.context() as patch:
        for slot in range(SPREAD):
            patch.setattr("random.randrange", lambda _, slot=slot: slot)
            books.enter(a_close(f"slot {slot}", input_tokens=4, output_tokens=0))
    total = 3 + 4 * SPREAD
    asked = [take(Unit.TOKENS, window, subject=s) for s in (USER, TENANT) for window in Window]
    assert books.spent(*asked) == [total] * 6
    elsewhere = Books(DynamoLedger(dynamo, books.ledger._table.name), books._runner)  # knows nothing of it yet
    assert elsewhere.spent(*asked) == [total] * 6
    elsewhere.enter(a_close("other", input_tokens=8, output_tokens=0))
    assert books.spent(*asked) == [total + 8] * 6
    assert [row["input_tokens"] for row in elsewhere.rows()] == [total + 8]


def test_floors_of_spread_counters_are_read_now_and_then(
    books: Books, dynamo: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.randrange", random.Random(1).randrange)
    day = take(Unit.TOKENS, Window.DAY)
    books.enter(a_close("first"))
    books.run(books.ledger._counters.spread([Counter(USER, day.label)]))
    told = 0
    for i in range(4 * SPREAD):
        report = books.run(books.ledger.enter([a_close(f"{i}", settle=(("b", day.key, 1),))]))
        told += day.key in report.floors
    assert 0 < told < 2 * SPREAD
    assert books.spent(day) == [12 * (4 * SPREAD + 1)]


def test_an_outage_is_raised_and_the_batch_can_be_repeated(books: Books, dynamo: Recorder) -> None:
    entries = [a_close(f"{i}", user=f"u{i}", input_tokens=1, output_tokens=0) for i in range(40)]
    left = 2

    async def fail(operation: str, payload: dict[str, Any]) -> None:
        nonlocal left
        left -= operation == "TransactWriteItems"
        if left < 0:
            raise dynamo.outage()

    dynamo.fault = fail
    with pytest.raises(StoreUnavailable):
        books.enter(*entries)
    dynamo.fault = None
    entered, repeated = books.enter(*entries)
    assert (entered + repeated, repeated > 0) == (40, True)
    assert books.spent(take(Unit.TOKENS, Window.DAY, subject=TENANT)) == [40]
