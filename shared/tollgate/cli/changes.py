"""A difference between two policies, for people: what changes for which plan, model, upstream and tenant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from tollgate.cli.output import flow

if TYPE_CHECKING:
    from tollgate.domain.policy_diff import Change

_COLOURS = {"+": "green", "-": "red", "~": "yellow"}


def describe(changes: Sequence[Change], tenants_on: Mapping[str, int] | None = None) -> str:
    """The changes, under what they belong to. `tenants_on`: how many tenants are on each plan that changes."""
    blocks = []
    for (kind, name), found in groupby(changes, key=_of):
        title = f"{kind} {name}".rstrip()
        if kind == "plan" and tenants_on is not None:
            count = tenants_on.get(name, 0)
            title += f" ({count} tenant{'s' if count != 1 else ''} on it)"
        blocks.append(_block(title, list(found)))
    return "\n".join(blocks)


def plans_of(changes: Sequence[Change]) -> list[str]:
    """The plans that change."""
    return sorted({name for kind, name in map(_of, changes) if kind == "plan"})


def _of(change: Change) -> tuple[str, str]:
    group = str(change.path[0])
    if group in ("plans", "models", "upstreams", "tenants") and len(change.path) > 1:
        return group[:-1], str(change.path[1])
    return group, ""


def _block(title: str, changes: list[Change]) -> str:
    depth = 2 if _of(changes[0])[1] else 1
    whole = next((change for change in changes if len(change.path) <= depth), None)
    if whole is not None and (whole.before is None or whole.after is None):
        sign, value = _sign(whole)
        lines = [_coloured(sign, f"{sign} {title}")]
        if sign == "+":
            lines += [f"    {line}" for line in _fields(value)]
        return "\n".join(lines)
    return "\n".join([title, *(f"  {_line(change, depth)}" for change in changes)])


def _line(change: Change, depth: int) -> str:
    from tollgate.domain.policy_paths import render

    sign, value = _sign(change)
    where = render(change.path[depth:])
    said = flow(value) if sign != "~" else f"{flow(change.before)} -> {flow(change.after)}"
    return _coloured(sign, f"{sign} {where}{': ' if where else ''}{said}")


def _sign(change: Change) -> tuple[str, Any]:
    if change.before is None:
        return "+", change.after
    return ("-", change.before) if change.after is None else ("~", None)


def _fields(value: Any) -> list[str]:
    """A new thing's fields, a line each, and a line for each entry of its lists of mappings."""
    if not isinstance(value, Mapping):
        return [flow(value)]
    lines = []
    for name, inner in value.items():
        if isinstance(inner, list) and any(isinstance(entry, Mapping) for entry in inner):
            lines += [f"{name}:", *(f"  - {flow(entry)}" for entry in inner)]
        else:
            lines.append(f"{name}: {flow(inner)}")
    return lines


def _coloured(sign: str, text: str) -> str:
    return click.style(text, fg=_COLOURS[sign])
