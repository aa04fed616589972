"""Eight processes with a hundred callers each, on one key: exactly what fits is admitted."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import Awaitable
from typing import Any

import pytest

from tests.dynamodb_local.takes import COST, KINDS, PLACES, budget, requests, slot
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.dynamodb_limit_items import counter
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.domain.limits import Admission, Decision, Settlement, Take

PROCESSES, CALLERS = 8, 100
SKEWS_S = (0, -300, 300, 150, -150, 299.5, -0.7, 0.7)
MINUTE = 60_000_000


def at_once(url: str, table: str, kind: str) -> list[dict[str, Any]]:
    """What all callers of all processes were told."""
    command = [sys.executable, "-m", "tests.dynamodb_local.caller", url, table, kind, str(CALLERS)]
    started = [subprocess.Popen([*command, str(skew)], stdout=subprocess.PIPE) for skew in SKEWS_S]
    told = []
    for process in started:
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0
        told.append(json.loads(out))
    return told


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_what_fits_is_admitted(
    kind: str, url: str, table: str, client: AwsClient, runner: asyncio.Runner
) -> None:
    """Whatever the clocks of the processes say: they are right about DynamoDB's to a second."""
    store = DynamoLimitStore(client, table)
    runner.run(store.admit(Admission("first", [budget(0, seed=0)], MINUTE, "acme")))
    told = at_once(url, table, kind)
    assert sum(len(one["admitted"]) for one in told) == PLACES
    assert sum(len(one["refused"]) for one in told) >= PROCESSES * CALLERS - PLACES
    for skew_s, one in zip(SKEWS_S, told, strict=True):
        assert abs(one["offset_us"] + skew_s * 1e6) < 1_000_000
    item = runner.run(client.call("Scan", {"TableName": table}))["Items"]
    subject = next(i for i in item if i["pk"]["S"].startswith("s#"))
    take = {"budget": budget(), "slots": slot()}.get(kind)
    if take is not None:
        assert int(subject[counter(take)]["N"]) == PLACES * (COST if kind == "budget" else 1)


def test_what_a_bucket_refills_is_admitted_exactly_too(table: str, client: AwsClient, runner: asyncio.Runner) -> None:
    """Under constant demand, of containers that all know the time, not one more and not one less."""
    take = requests(50, period_us=5_000_000)
    stores = [DynamoLimitStore(client, table) for _ in range(8)]
    told: list[Decision] = []

    async def caller(store: DynamoLimitStore) -> None:
        for _ in range(12):
            told.append(await store.admit(Admission(uuid.uuid4().hex, [take], MINUTE, "acme")))
            await asyncio.sleep(0.1)

    runner.run(_all([caller(stores[i % 8]) for i in range(40)]))
    first = min(d.now_us for d in told)
    admitted = [d.now_us for d in told if d.admitted]
    refused = [d.now_us for d in told if not d.admitted]
    assert len(admitted) > 60
    assert len(admitted) <= 50 + (max(admitted) - first) // take.inc_us
    assert len(admitted) >= 50 + (max(refused) - first) // take.inc_us


def test_a_budget_for_ten_is_not_overspent_by_a_hundred(table: str, client: AwsClient, runner: asyncio.Runner) -> None:
    """With a maximum that the upstream honours, the overspend is 0."""
    take = budget(100, amount=1000, seed=0)
    stores = [DynamoLimitStore(client, table) for _ in range(10)]
    asked = [Admission(uuid.uuid4().hex, [take], MINUTE, "acme") for _ in range(100)]
    decisions = runner.run(_all([stores[i % 10].admit(one) for i, one in enumerate(asked)]))
    admitted = [one for one, decision in zip(asked, decisions, strict=True) if decision.admitted]
    assert len(admitted) == 10
    settled = runner.run(
        _all([stores[0].settle(Settlement(one.id, one.takes, [100], "acme")) for one in admitted for _ in range(2)])
    )
    assert settled.count(True) == 10
    assert spent(client, runner, table, take) == (1000, 1000)


def test_slots_are_given_back_and_taken_again(table: str, client: AwsClient, runner: asyncio.Runner) -> None:
    stores = [DynamoLimitStore(client, table) for _ in range(10)]
    for _ in range(3):
        asked = [Admission(uuid.uuid4().hex, [slot(20)], MINUTE, "acme") for _ in range(60)]
        decisions = runner.run(_all([stores[i % 10].admit(one) for i, one in enumerate(asked)]))
        held = [one for one, decision in zip(asked, decisions, strict=True) if decision.admitted]
        assert len(held) == 20
        runner.run(_all([stores[i % 10].settle(Settlement(h.id, h.takes, [0], "acme")) for i, h in enumerate(held)]))


def test_all_kinds_at_once_are_all_or_nothing(table: str, client: AwsClient, runner: asyncio.Runner) -> None:
    """Each of the four is short for somebody: what one refuses is found untouched in the others."""
    takes: list[Take] = [requests(40), budget(10, amount=350, seed=0), slot(37)]
    stores = [DynamoLimitStore(client, table) for _ in range(10)]
    asked = [Admission(uuid.uuid4().hex, takes, MINUTE, "acme") for _ in range(100)]
    decisions = runner.run(_all([stores[i % 10].admit(one) for i, one in enumerate(asked)]))
    assert sum(d.admitted for d in decisions) == 35
    assert spent(client, runner, table, takes[1]) == (350, 0)


def spent(client: AwsClient, runner: asyncio.Runner, table: str, take: Take) -> tuple[int, int]:
    """A budget's committed and spent units."""
    key = {"pk": {"S": f"s#{take.subject}"}}
    item = runner.run(client.call("GetItem", {"TableName": table, "Key": key, "ConsistentRead": True}))["Item"]
    return int(item[counter(take)]["N"]), int(item[counter(take) + ":spent"]["N"])


async def _all(work: list[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*work)
