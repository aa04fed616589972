"""Tenants, one item each: plan, state and overrides as natural maps, and a version that grows with every change.

The table has items of other kinds too (``client#…``, which app clients belong to whom); their keys hold a ``#``, which
no tenant's name can.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from tollgate.adapters.document_table import Client, Condition, ConditionFailed, DocumentTable, Item, as_read
from tollgate.domain.policy import DisabledUser, TenantRecord, TenantSpec
from tollgate.domain.policy_check import check_record
from tollgate.domain.policy_document import Document, Place, PolicyErrors, canonical
from tollgate.domain.policy_paths import Path
from tollgate.domain.schema import plain

FIELDS = TenantRecord.FIELDS
"""Attributes that mean something here; others (notes, say) are left alone."""
CONTENT = tuple(name for name in FIELDS if name not in ("tenant", "version"))
"""What a change of version announces."""
TRIES = 25
"""To write against what was read, each time with what was read anew. A program that edits without pause is met in every
second try; so often in a row once in thirty million."""
PAUSE_S, MAX_PAUSE_S = 0.01, 0.5
"""The first pause, doubled with every try up to the last, with full jitter: 5 s in all, on average."""

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")


class NotFound(Exception):
    """There is no such thing; the message names it."""


class Conflict(Exception):
    """It is there already, or somebody else changed it at the same time; the message says which."""


async def persistently(operation: Callable[[], Awaitable[T]]) -> T:
    """Do what reads and then writes what it read, again and again until nobody else was faster. Raises `Conflict`
    after `TRIES`."""
    for attempt in range(1, TRIES):
        try:
            return await operation()
        except Conflict:
            await asyncio.sleep(random.random() * min(PAUSE_S * 2**attempt, MAX_PAUSE_S))
    return await operation()


class TenantRow(NamedTuple):
    """A tenant in a list: what its item says, right or wrong."""

    tenant: str
    plan: str
    state: str
    version: int
    overrides: int

    def as_dict(self) -> dict[str, str | int]:
        return self._asdict()


def successor(version: int, now_s: float) -> int:
    """The version (or revision) after this one: at least the time in epoch seconds.

    A store remembers the newest version that it was told. If versions began at 1 again, after a tenant was deleted
    and made anew or a table was replaced, it would take the new record for an old one, for ever.
    """
    return max(version + 1, int(now_s))


def stamp(now_s: float) -> str:
    """A moment as items tell it; to the microsecond, so that each change bears another one."""
    return datetime.fromtimestamp(now_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def record_of(item: Mapping[str, Any]) -> TenantRecord:
    """The record that an item says. Raises `PolicyErrors`."""
    return check_record(TenantRecord, document_of(item))


def document_of(item: Mapping[str, Any]) -> Document:
    name = str(item["tenant"])
    places: dict[Path, Place] = {(): Place(f"tenant {name}")}
    value = {field: item[field] for field in FIELDS if field in item}
    # made by hand: the publisher gives it a version in a moment
    return Document({**value, "version": version_of(item) or 1}, places=places)


def is_tenant(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def version_of(item: Mapping[str, Any]) -> int:
    """The item's version; 0 where somebody made it without one, or wrote something else there."""
    found = item.get("version")
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0


def no_tenant(name: str) -> NotFound:
    return NotFound(f"there is no tenant {name!r}: see `tollgate tenant list`")


class TenantsTable:
    """The tenants table. Failures to reach it are raised as `PolicyUnavailable`."""

    def __init__(self, client: Client, name: str, clock_s: Callable[[], float]) -> None:
        self._table = DocumentTable(client, name, "tenant")
        self._clock_s = clock_s

    async def item(self, name: str) -> Item | None:
        """The tenant's item as it is."""
        return await self._table.get(name) if is_tenant(name) else None

    async def get(self, name: str) -> TenantRecord:
        """Raises `NotFound`, `PolicyErrors`."""
        return record_of(await self._existing(name))

    async def page(self, limit: int, after: str | None = None) -> tuple[list[TenantRow], str | None]:
        """Up to `limit` tenants in the table's own order, and the `after` of the next page, or None."""
        rows: list[TenantRow] = []
        async for item in self._table.scan(after, page=min(limit + 1, 1000)):
            if not is_tenant(item["tenant"]):
                continue
            if len(rows) == limit:
                return rows, rows[-1].tenant
            rows.append(_row(item))
        return rows, None

    async def records(self) -> AsyncIterator[TenantRecord]:
        """Every tenant whose record is right; `page` has the others, too."""
        async for item in self._table.scan():
            if is_tenant(item["tenant"]):
                with suppress(PolicyErrors):
                    yield record_of(item)

    async def count(self) -> int:
        return len([None async for item in self._table.scan() if is_tenant(item["tenant"])])

    async def on_plans(self, plans: Iterable[str]) -> list[tuple[str, str]]:
        """The tenants that are on one of these plans: (tenant, plan)."""
        wanted = set(plans)
        found = [(item["tenant"], item.get("plan")) async for item in self._table.scan() if is_tenant(item["tenant"])]
        return sorted((tenant, plan) for tenant, plan in found if plan in wanted)

    async def create(self, name: str, spec: TenantSpec, actor: str) -> TenantRecord:
        """Raises `Conflict` if there is one, `PolicyErrors` if it cannot be one."""
        item = {**plain(spec), "tenant": name, "state": "active", "version": successor(0, self._clock_s())}
        record = record_of(item)
        try:
            await self._table.put({**item, **self._signed(actor)}, as_read("tenant", None, ()))
        except ConditionFailed:
            raise Conflict(f"there is a tenant {name!r} already: `tollgate tenant set` changes it") from None
        return record

    async def write(
        self, item: Item, content: Mapping[str, Any], actor: str, along: Sequence[dict[str, Any]] = ()
    ) -> TenantRecord:
        """Replace the content of an item that was read before; its version grows. What `content` lacks is removed.
        `along`: actions (``{"Put": …}``) on other tables that happen with it, or not at all.

        Raises `Conflict` if the item has changed since, or a condition of `along` does not hold; `PolicyErrors`.
        """
        name, version = item["tenant"], successor(version_of(item), self._clock_s())
        changed = {**{field: content[field] for field in CONTENT if field in content}, "version": version}
        record = record_of({**changed, "tenant": name})
        removed = [field for field in CONTENT if field in item and field not in content]
        update = self._table.update_action(
            name,
            {**changed, **self._signed(actor)},
            as_read("tenant", item, ("version", *CONTENT)),
            removed=removed,
        )
        try:
            if along:
                await self._table.transact([{"Update": update}, *along])
            else:
                await self._table.update(update)
        except ConditionFailed:
            raise Conflict(f"tenant {name!r} was changed by somebody else meanwhile: look again") from None
        return record

    async def set_state(self, name: str, state: str, actor: str) -> TenantRecord:
        """Suspend or resume. Raises `NotFound`, `PolicyErrors`."""

        async def once() -> TenantRecord:
            item = await self._existing(name)
            if item.get("state", "active") == state:
                return record_of(item)
            return await self.write(item, {**content_of(item), "state": state}, actor)

        return await persistently(once)

    async def disable(self, name: str, users: Collection[str], actor: str, until: datetime | None = None) -> None:
        """Refuse the calls of these users of a tenant, for good or until a moment. Raises `NotFound`, `PolicyErrors`
        (a tenant has so many at most)."""
        entries = [plain(DisabledUser(user=user, until=until)) for user in sorted(users)]
        await self._set_disabled(name, users, entries, actor)

    async def enable(self, name: str, users: Collection[str], actor: str) -> None:
        """Undo `disable`. Raises `NotFound`, `PolicyErrors`."""
        await self._set_disabled(name, users, [], actor)

    async def _set_disabled(self, name: str, users: Collection[str], entries: list[dict[str, Any]], actor: str) -> None:
        """Replace what a record says of these users. What has ended goes, too, so that the list does not grow."""

        async def once() -> None:
            item = await self._existing(name)
            record, now_us = record_of(item), int(self._clock_s() * 1_000_000)
            kept = [one for one in record.disabled_users if record.disables(one.user, now_us) and one.user not in users]
            wanted = {**content_of(item), "disabled_users": [*plain(kept), *entries]}
            if not wanted["disabled_users"]:
                del wanted["disabled_users"]
            if not same_content(wanted, item):
                await self.write(item, wanted, actor)

        await persistently(once)

    async def upsert(self, name: str, spec: TenantSpec, actor: str) -> bool:
        """What a policy file says of a tenant; what it does not mention stays, above all its state. Whether that
        changed anything. Raises `Conflict`."""
        wanted = plain(spec)

        async def once() -> bool:
            item = await self._table.get(name)
            if item is None:
                await self.create(name, spec, actor)
                return True
            content = content_of(item)
            if same_content({**content, **wanted}, content):
                return False
            await self.write(item, {**content, **wanted}, actor)
            return True

        return await persistently(once)

    async def grow(self, name: str, version: Any, grown: int) -> bool:
        """Give an item that was edited without one a new version, unless it has changed again (`version`: the one
        that the edit left). Whether that was so."""
        try:
            await self._table.update(self._table.update_action(name, {"version": grown}, _of_version(version)))
        except ConditionFailed:
            return False
        return True

    async def _existing(self, name: str) -> Item:
        item = await self.item(name)
        if item is None:
            raise no_tenant(name)
        return item

    def _signed(self, actor: str) -> dict[str, str]:
        return {"updated_at": stamp(self._clock_s()), "updated_by": actor}


def _of_version(version: Any) -> Condition:
    """That the item has this version, or none."""
    return as_read("tenant", {} if version is None else {"version": version}, ("version",))


def content_of(item: Mapping[str, Any]) -> dict[str, Any]:
    return {field: item[field] for field in CONTENT if field in item}


def same_content(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two items say the same of a tenant, apart from their versions."""
    return canonical(content_of(one)) == canonical(content_of(other))


def _row(item: Mapping[str, Any]) -> TenantRow:
    lists: Sequence[Any] = [item.get("limits"), item.get("budgets")]
    overrides = sum(len(entries) for entries in lists if isinstance(entries, list))
    return TenantRow(
        item["tenant"], str(item.get("plan", "")), str(item.get("state", "active")), version_of(item), overrides
    )
