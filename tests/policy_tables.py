"""The policy and tenants tables for tests, with a recording client and edits by hand."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tests.aws_fixture import Recorder
from tollgate.adapters.aws import AwsClient, from_dynamo, to_dynamo
from tollgate.adapters.policy_file import load
from tollgate.adapters.policy_tables import PolicyTables
from tollgate.domain.policy import Policy

T = TypeVar("T")
DEMO = load(Path(__file__).parents[1] / "policy.yaml", {})
NOW_S = 1_795_262_400


class Tables:
    """Two new tables, a recording client, and as many views of them as a test wants."""

    def __init__(self, client: AwsClient, runner: asyncio.Runner) -> None:
        self._runner = runner
        self.client = Recorder(client)
        self.policy_table, self.tenants_table = f"policy-{uuid.uuid4().hex}", f"tenants-{uuid.uuid4().hex}"
        for name, key in ((self.policy_table, "id"), (self.tenants_table, "tenant")):
            self.run(client.call("CreateTable", _table(name, key)))
        self.now_s = NOW_S
        self.main = self.view()

    def view(self, environ: Mapping[str, str] | None = None) -> PolicyTables:
        """The tables as a process with this environment sees them."""
        return PolicyTables(self.client, self.policy_table, self.tenants_table, environ, lambda: self.now_s)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    def apply(self, policy: Policy = DEMO) -> int:
        return self.run(self.main.apply(policy, "tests")).revision

    def put(self, item: dict[str, Any]) -> None:
        """As in the console: by hand."""
        self.run(self.put_by_hand(item))

    async def put_by_hand(self, item: dict[str, Any]) -> None:
        table = self.policy_table if "id" in item else self.tenants_table
        encoded = {name: to_dynamo(value) for name, value in item.items()}
        await self.client.call("PutItem", {"TableName": table, "Item": encoded})

    def get(self, key: str) -> dict[str, Any]:
        """An item of the policy table, or of the tenants' if it is none of a policy."""
        of_policy = "#" in key or key in ("global", "snapshot")
        table, name = (self.policy_table, "id") if of_policy else (self.tenants_table, "tenant")
        answer = self.run(self.client.call("GetItem", {"TableName": table, "Key": {name: {"S": key}}}))
        return {name: from_dynamo(value) for name, value in answer.get("Item", {}).items()}


def _table(name: str, key: str) -> dict[str, Any]:
    return {
        "TableName": name,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [{"AttributeName": key, "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": key, "KeyType": "HASH"}],
    }


async def edited_by_two(tables: Tables, edits: int) -> None:
    """Two operators make `edits` edits each of the tenant acme, at once: each counts in a field of their own, and both
    in one that they share. Every edit counts, and has a version of its own."""
    start = {
        "limits": [{"scope": "user", "requests": 1, "per": "minute"}],
        "budgets": [{"scope": scope, "requests": 1, "per": "day"} for scope in ("user", "tenant")],
    }
    first = await tables.main.edit_tenant("acme", lambda data: {**data, **start}, "tests")
    versions: list[int] = []

    async def edit(*fields: tuple[str, int]) -> None:
        view = tables.view()

        def count(data: dict[str, Any]) -> dict[str, Any]:
            for group, position in fields:
                data[group][position]["requests"] += 1
            return data

        for _ in range(edits):
            versions.append((await view.edit_tenant("acme", count, "tests")).version)

    await asyncio.gather(edit(("limits", 0), ("budgets", 1)), edit(("budgets", 0), ("budgets", 1)))
    last = await tables.main.tenants.get("acme")
    assert last.limits[0].requests == 1 + edits
    assert [budget.requests for budget in last.budgets] == [1 + edits, 1 + 2 * edits]
    assert sorted(versions) == list(range(first.version + 1, last.version + 1))
