"""A hundred thousand records, each three times, shuffled, while a tenth of all calls and of all invocations fail: the
books are exact, and nothing but poison is left."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from tests.ledger_table import LedgerTable
from tests.records import NOON, a_close, an_open
from tollgate.adapters import dynamodb
from tollgate.adapters.aws import TRIES, AwsError
from tollgate.adapters.dynamodb_ledger import DynamoLedger
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.domain import keys
from tollgate.domain.bookkeeping import Counter as Place
from tollgate.domain.bookkeeping import Question
from tollgate.ports import StoreUnavailable
from tollgate.services.meter import DeadLetter, meter
from tollgate.services.reconcile import unbalanced

BATCH = 1000


class Faulty(LedgerTable):
    """A tenth of its calls fail: half of them unheard, half of them done before the answer was lost. The client tries
    again, as `AwsClient` does. Now and then transactions conflict."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.calm = False
        self.failed = 0

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        for _ in range(TRIES):
            luck = 0.5 if self.calm else self.chance.random()
            if luck < 0.03 and operation == "TransactWriteItems":
                codes = [{"Code": "TransactionConflict" if "Update" in a else "None"} for a in payload["TransactItems"]]
                raise AwsError("TransactionCanceledException", "", 400, {"CancellationReasons": codes})
            answer = await super().call(operation, payload, retry=retry) if luck < 0.95 else {}
            if luck < 0.9:
                return answer
            self.failed += 1
        raise AwsError("InternalServerError", "unheard, or done and the answer lost", 500, {})


class Dying:
    """What one invocation sees of the table: it is killed after some calls, where there is a number."""

    clock_offset_us = 0
    clock_known = True

    def __init__(self, table: Faulty, calls: int | None) -> None:
        self._table = table
        self._left = calls

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise StoreUnavailable("killed")
        return await self._table.call(operation, payload, retry=retry)


class Letters:
    def __init__(self) -> None:
        self.sent: list[DeadLetter] = []

    async def send(self, letters: Sequence[DeadLetter]) -> None:
        self.sent += letters


async def deliver(table: Faulty, lines: Sequence[str], letters: Letters) -> int:
    """As Lambda does: a batch that fails is delivered again, by another invocation. How many deliveries it took. One in
    ten is killed on its way."""
    for tries in range(1, 50):
        killed = table.chance.randrange(30) if table.chance.random() < 0.1 else None
        try:
            ledger = DynamoLedger(Dying(table, killed), "ledger")
            await meter(lines, ledger, MemoryLimitStore(clock=lambda: NOON), letters, NOON)
        except StoreUnavailable:
            continue
        return tries
    raise AssertionError("it never got through")


@pytest.mark.parametrize("number", [1_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_totals_are_exact_and_only_poison_is_left(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_pause(attempt: int) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr("tollgate.adapters.dynamodb_entering.pause", no_pause)
    monkeypatch.setattr(dynamodb, "pause", no_pause)
    chance = random.Random(number)
    table, letters = Faulty(chance), Letters()
    tokens: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    lines: list[str] = []
    for i in range(number):
        tenant = f"tenant{i % 7}"
        close = a_close(
            f"id{i}", tenant=tenant, user=f"user{i % 40}", model=f"model{i % 3}",
            input_tokens=chance.randrange(5000), output_tokens=chance.randrange(900),
            cost_microusd=chance.randrange(99),
        )  # fmt: skip
        tokens[tenant] += close.total_tokens
        spent[tenant] += close.cost_microusd
        lines.append(json.dumps(close.as_dict()))
        if i % 10 == 0:
            lines.append(json.dumps(an_open(f"id{i}", tenant=tenant).as_dict()))
    poison = [f'{{"event": "usage.close", "v": 1, "id": "poison{i}"}}' for i in range(number // 500)]
    stream = [line for line in (*lines, *poison) for _ in range(3)]
    chance.shuffle(stream)
    batches = [stream[at : at + BATCH] for at in range(0, len(stream), BATCH)]

    async def run() -> None:
        ledger = DynamoLedger(table, "ledger")
        deliveries = 0
        for at in range(0, len(batches), 4):  # four invocations at a time
            deliveries += sum(await asyncio.gather(*(deliver(table, each, letters) for each in batches[at : at + 4])))
        assert table.failed > len(batches)
        assert number < 10_000 or deliveries > 1.05 * len(batches)
        table.calm = True
        for tenant in tokens:
            subject = keys.tenant_subject(tenant)
            for label in ("2026-11-21", "2026-11", "life"):
                place = Place(subject, label)
                asked = [Question(place, (name,)) for name in ("tokens", "microusd", "requests")]
                count = sum(i % 7 == int(tenant[-1]) for i in range(number))
                assert await ledger.answers(asked) == [tokens[tenant], spent[tenant], count]
        assert await unbalanced(ledger, "2026-11-21") == []

    asyncio.run(run())
    assert {letter.line for letter in letters.sent} == set(poison)
