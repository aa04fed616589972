"""The audit log: every edit of a table becomes an entry, once, whoever made it and with whatever tool.

The edits come from the tables' streams, which deliver at least once and know before and after, but not who. Whoever
edits with the command line signs the item; an item cannot be signed once it is gone, so the snapshot that was published
with its removal says by whom.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tollgate.domain.audit import Change, Refusals
from tollgate.domain.changes import BY_HAND, Image, Table, change


class Edit(NamedTuple):
    """One record of a table's stream; an image is empty where there was, or is, no item."""

    id: str
    ts_us: int
    table: Table
    item: str
    before: Image
    after: Image


class Log(Protocol):
    """Append-only."""

    async def note(self, entries: Sequence[Change | Refusals]) -> int:
        """Enter each once, by its id; how many were new. Raises `StoreUnavailable`."""
        ...


class Removals(Protocol):
    """Who removed items from the policy."""

    async def removed_by(self) -> tuple[str, frozenset[str]]:
        """Who published last, and which items that removed. Raises `PolicyUnavailable`."""
        ...


async def note(edits: Sequence[Edit], removals: Removals, log: Log) -> int:
    """Enter what was changed; how many entries were new. Raises `StoreUnavailable`, `PolicyUnavailable`."""
    by, removed = "", frozenset[str]()
    if any(edit.table == "policy" and not edit.after for edit in edits):
        by, removed = await removals.removed_by()
    found = [
        change(
            id=edit.id,
            ts_us=edit.ts_us,
            table=edit.table,
            item=edit.item,
            before=edit.before,
            after=edit.after,
            remover=by if edit.table == "policy" and edit.item in removed else BY_HAND,
        )
        for edit in edits
    ]
    entries = [entry for entry in found if entry is not None]
    return await log.note(entries) if entries else 0
