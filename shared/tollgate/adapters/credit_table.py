"""Prepaid credit in DynamoDB: an entry in the ledger's table and the sum in the tenant's record, in one transaction.

    credit#<tenant>   <entry id>    one entry, for ever: user, kind, microusd, at, by, note, reverses, used_before

The entry is written on the condition that its id is new, the record on the condition that its version is the one that
was read. So an entry counts once however often a command is repeated, none is lost when two are made at once, and
warm gateways learn of the new sum as of any change of a tenant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from tollgate.adapters.dynamodb import Client, Expression, Table, encode_item, pause
from tollgate.adapters.policy_tables import Conflict, PolicyTables
from tollgate.adapters.tenants_table import content_of, no_tenant
from tollgate.domain.credit import BadEntry, Entry, spending_of, sums
from tollgate.domain.policy_document import canonical
from tollgate.ports import Spending

TRIES = 30
"""As many as there are people who add credit to one tenant at the same moment, and some."""


class CreditTable:
    """The accounts of all tenants. Failures to reach the tables are `StoreUnavailable` and `PolicyUnavailable`."""

    def __init__(self, client: Client, ledger_table: str, tables: PolicyTables, spending: Spending) -> None:
        self._table = Table(client, ledger_table, patient=True)
        self._tables = tables
        self._spending = spending

    async def entries(self, tenant: str) -> list[Entry]:
        """All entries of a tenant, in the order of their time."""
        ex = Expression()
        condition = f"{ex.name('pk')} = {ex.value(_partition(tenant))}"
        found = [_entry(tenant, item) async for item in self._table.query(ex, condition, consistent=True)]
        return sorted(found, key=lambda entry: (entry.at, entry.id))

    async def add(self, entry: Entry) -> bool:
        """Add an entry, and make the record's sums those of all entries. False: it was there already.

        Raises `NotFound` without such a tenant, `BadEntry` for what would leave less than nothing, `PolicyErrors` if
        the tenant's plan cannot be paid for in dollars, and `Conflict` if the id stands for something else. After
        another failure it may have been added: ask again with the same id.
        """
        policy = await self._tables.published()
        for attempt in range(TRIES):
            item = await self._tables.tenants.item(entry.tenant)
            if item is None:
                raise no_tenant(entry.tenant)
            known = await self.entries(entry.tenant)
            for one in known:
                if one.id == entry.id:
                    if one.repeats(entry):
                        return False
                    raise Conflict(f"the id {entry.id!r} stands for another entry of {entry.tenant!r}")
            added = await self._counted_from_now(entry) if all(one.user != entry.user for one in known) else entry
            content = content_of(item) | {"credit": sums([*known, added])}
            self._tables.check_tenant(policy, content | {"tenant": entry.tenant})
            try:
                await self._tables.tenants.write(item, content, entry.by, along=[{"Put": self._put(added)}])
            except Conflict:
                await pause(attempt)
                continue
            return True
        raise Conflict(f"tenant {entry.tenant!r} is being changed all the time: try again with --id {entry.id}")

    async def damaged(self, tenant: str) -> bool:
        """Whether the record's sums are not those of the entries: it was made again, or edited by hand.
        Raises `NotFound`."""
        item = await self._tables.tenants.item(tenant)
        if item is None:
            raise no_tenant(tenant)
        return not _holds(item, sums(await self.entries(tenant)))

    async def repair(self, tenant: str, by: str) -> bool:
        """Make the record's sums those of the entries. False: they were. Raises `NotFound`, `Conflict`."""
        item = await self._tables.tenants.item(tenant)  # first: an entry that comes after this grows its version
        if item is None:
            raise no_tenant(tenant)
        wanted = sums(await self.entries(tenant))
        if _holds(item, wanted):
            return False
        await self._tables.tenants.write(item, content_of(item) | {"credit": wanted}, by)
        return True

    async def _counted_from_now(self, entry: Entry) -> Entry:
        """An account's first entry: what has been used until now is not drawn from it."""
        if entry.microusd <= 0:
            raise BadEntry("there is no credit in this account yet")
        (used,) = await self._spending.spent([spending_of(entry.tenant, entry.user)])
        return replace(entry, used_before=max(0, used))

    def _put(self, entry: Entry) -> dict[str, Any]:
        item = {name: value for name, value in asdict(entry).items() if value and name not in ("id", "tenant")}
        item |= {"pk": _partition(entry.tenant), "sk": entry.id}
        condition = {"ConditionExpression": "attribute_not_exists(pk)"}
        return {"TableName": self._table.name, "Item": encode_item(item), **condition}


def _holds(item: Mapping[str, Any], wanted: list[dict[str, Any]]) -> bool:
    return canonical(item.get("credit") or []) == canonical(wanted)


def _partition(tenant: str) -> str:
    return f"credit#{tenant}"


def _entry(tenant: str, item: dict[str, Any]) -> Entry:
    rest = {name: value for name, value in item.items() if name not in ("pk", "sk")}
    return Entry(id=item["sk"], tenant=tenant, **{"user": "", **rest})
