"""What differs between two policies (or two tenants), as a list of paths with the values before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tollgate.domain.policy_document import canonical
from tollgate.domain.policy_entries import NAMED, UNREADABLE, entry_id
from tollgate.domain.policy_paths import EntryId, Path, render


class Change(NamedTuple):
    """One difference. `before` is None where something is new, `after` where it is gone."""

    path: Path
    before: Any
    after: Any

    def __str__(self) -> str:
        where = render(self.path)
        if self.before is None:
            return f"+ {where}: {canonical(self.after)}"
        if self.after is None:
            return f"- {where}: {canonical(self.before)}"
        return f"~ {where}: {canonical(self.before)} -> {canonical(self.after)}"

    def as_dict(self) -> dict[str, Any]:
        return {"path": render(self.path), "before": self.before, "after": self.after}


def changes(before: Any, after: Any, path: Path = ()) -> list[Change]:
    """Every difference, as deep as both sides are mappings, or lists of the same length. Limits and budgets are
    compared by what they limit, disabled users by their names, wherever they stand."""
    return list(_changes(before, after, path))


def _changes(before: Any, after: Any, path: Path) -> Iterator[Change]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in dict.fromkeys([*before, *after]):
            yield from _changes(before.get(name), after.get(name), (*path, name))
    elif path and path[-1] in NAMED and (pair := _by_id(before, after)):
        yield from _changes(*pair, path)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _changes(old, new, (*path, i))
    elif canonical(before) != canonical(after):
        yield Change(path, before, after)


def _by_id(before: Any, after: Any) -> tuple[dict[EntryId, Any], dict[EntryId, Any]] | None:
    """Two lists of limits, budgets or users by their ids; None where that would not tell everything."""
    found = []
    for entries in (before or [], after or []):
        if not isinstance(entries, list):
            return None
        named = {entry_id(entry): entry for entry in entries}
        if len(named) < len(entries) or UNREADABLE in named:
            return None
        found.append(named)
    old, new = found
    if not old and not new:
        return None
    if [name for name in old if name in new] != [name for name in new if name in old]:
        return None  # their order has changed
    return old, new
