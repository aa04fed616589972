"""The audit log's table: each entry once, never touched again, in time order."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.aws_fixture import make_table
from tollgate.adapters.audit_table import AuditTable
from tollgate.adapters.aws import AwsClient
from tollgate.domain.audit import Change, Refusals

SECOND = 1_000_000
NEW_YEAR = 1_798_761_600 * SECOND  # 2027-01-01T00:00:00Z
CHANGE = Change("a", NEW_YEAR, "ann", "tenants", "acme", "changed", '{"plan":"pro"}', '{"plan":"free"}')
REFUSAL = Refusals("p.1", NEW_YEAR, 429, "user.requests.minute", 17, "req_1", tenant="acme", user="ann")


def test_entries_are_put_once_and_read_in_time_order(runner: asyncio.Runner, dynamodb_client: AwsClient) -> None:
    async def story() -> None:
        log = AuditTable(dynamodb_client, await make_table(dynamodb_client, sort_key=True))
        before = replace(CHANGE, id="b", ts_us=NEW_YEAR - 1)
        assert await log.note([CHANGE, before]) == 2
        assert await log.note([CHANGE, replace(CHANGE, actor="mallory")]) == 0
        at_once = replace(CHANGE, id="c")
        assert await log.note([at_once]) == 1
        year = NEW_YEAR - 86_400 * SECOND, NEW_YEAR + 86_400 * SECOND
        assert [it async for it in log.changes(*year)] == [before, CHANGE, at_once]
        assert [it async for it in log.changes(NEW_YEAR - 1, NEW_YEAR)] == [before]
        assert [it async for it in log.changes(NEW_YEAR, NEW_YEAR + 1)] == [CHANGE, at_once]

    runner.run(story())


def test_refusals_have_their_own_place_and_an_end(runner: asyncio.Runner, dynamodb_client: AwsClient) -> None:
    async def story() -> None:
        log = AuditTable(dynamodb_client, await make_table(dynamodb_client, sort_key=True))
        earlier = replace(REFUSAL, id="p.0", ts_us=NEW_YEAR - 60 * SECOND)
        many = [replace(REFUSAL, id=f"q.{i}", ts_us=NEW_YEAR + i) for i in range(1, 25)]
        assert await log.note([REFUSAL, CHANGE, earlier, *many]) == 27
        assert await log.note([REFUSAL, earlier]) == 0
        span = NEW_YEAR - 60 * SECOND, NEW_YEAR + SECOND
        assert [it async for it in log.refusals(*span)] == [earlier, REFUSAL, *many]
        assert [it async for it in log.changes(*span)] == [CHANGE]

    runner.run(story())
