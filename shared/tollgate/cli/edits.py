"""Single changes to a plan or tenant, in the words of its errors: ``limits[0].requests=5``.

A list's entries are counted from 0, or named by what they limit, as `plan show` prints it:
``limits[user.requests.minute].requests=5``. ``limits+={scope: user, requests: 5, per: minute}`` adds an entry. Values
are written as in policy.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import click

from tollgate.cli.output import flow
from tollgate.domain.policy_paths import Path, parse, render

_ASSIGNMENT = re.compile(r"(?s)(?P<path>(?:[^=\"]|\"(?:[^\"\\]|\\.)*\")*?)\s*(?P<more>\+?)=(?P<value>.*)")


def editor(assignments: Sequence[str], unset: Sequence[str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that makes all changes to a copy of plain data. Raises `click.UsageError` for what cannot be read;
    so does the function, for paths that are not there.

    Whoever finds that somebody else was faster calls it again, with what they left. A position may mean another entry
    by then: where one is named, that raises `Conflict`.
    """
    steps = [_read(text) for text in assignments]
    gone = [_path(text) for text in unset]
    positional = any(isinstance(part, int) for path in [*(step[0] for step in steps), *gone] for part in path)
    seen: list[Any] = []

    def edit(data: dict[str, Any]) -> dict[str, Any]:
        from tollgate.adapters.policy_tables import Conflict

        if positional and seen and seen[0] != data:
            raise Conflict("it was changed by somebody else meanwhile: look again at what stands where")
        seen[:] = [data]
        data = deepcopy(data)
        for path, append, value in steps:
            _assign(data, path, append=append, value=deepcopy(value))
        # from the end, so that positions mean what they meant
        for path in sorted((_resolve(data, path) for path in gone), key=_order, reverse=True):
            _delete(data, path)
        return data

    return edit


def _read(text: str) -> tuple[Path, bool, Any]:
    from tollgate.adapters.policy_file import fragment
    from tollgate.domain.policy_document import PolicyErrors

    found = _ASSIGNMENT.fullmatch(text)
    if found is None:
        raise click.UsageError(f"{text!r} is no change: write path=value, path+=value")
    try:
        return _path(found["path"]), bool(found["more"]), fragment(found["value"])
    except PolicyErrors as errors:
        raise click.UsageError(f"{text}: the value {errors.problems[0].message}") from None


def _path(text: str) -> Path:
    try:
        return parse(text.strip())
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _assign(data: dict[str, Any], path: Path, *, append: bool, value: Any) -> None:
    *above, last = _resolve(data, path[:-1]) + path[-1:]
    here: Any = data
    for part in above:
        here = here.setdefault(part, {}) if isinstance(here, dict) else here[part]
    if isinstance(here, list):
        last = _position(here, last, path)
    elif not isinstance(here, dict) or isinstance(last, int):
        raise click.UsageError(f"{render(path)}: there is nothing to set")
    if not append:
        here[last] = value
        return
    if isinstance(here, list):
        raise click.UsageError(f"{render(path)}: only a list can be added to")
    entries = here.setdefault(last, [])
    if not isinstance(entries, list):
        raise click.UsageError(f"{render(path)}: only a list can be added to")
    entries.append(value)


def _resolve(data: Any, path: Path) -> Path:
    """The path with every list position as a number. What is not there may be a field that is not set yet."""
    found: list[str | int] = []
    here = data
    for i, part in enumerate(path):
        if isinstance(here, list):
            part = _position(here, part, path[: i + 1])
            here = here[part]
        elif isinstance(part, int):
            raise click.UsageError(f"{render(path[: i + 1])}: there is no list")
        else:
            here = here.get(part) if isinstance(here, dict) else None
        found.append(part)
    return tuple(found)


def _position(entries: list[Any], part: str | int, path: Path) -> int:
    where = render(path[:-1])
    if isinstance(part, int):
        if part < len(entries):
            return part
        raise click.UsageError(f"{where} has {len(entries)} entries, counted from 0: there is no [{part}]")
    from tollgate.domain.policy_entries import entry_id

    ids: list[str] = [entry_id(entry) for entry in entries]
    if ids.count(part) == 1:
        return ids.index(part)
    if part in ids:
        raise click.UsageError(f"{where} has several {part}: name one by its position")
    raise click.UsageError(f"{where} has no {part}: it has {', '.join(ids) or 'no entries'}")


def _delete(data: Any, path: Path) -> None:
    here = data
    for part in path[:-1]:
        here = here[part] if not isinstance(here, dict) else here.get(part)
        if not isinstance(here, dict | list):
            raise click.UsageError(f"{render(path)} is not set")
    if isinstance(here, dict) and path[-1] not in here:
        raise click.UsageError(f"{render(path)} is not set")
    del here[path[-1]]


def _order(path: Path) -> tuple[tuple[int, str], ...]:
    return tuple((part, "") if isinstance(part, int) else (-1, part) for part in path)


def entry_lines(shown: dict[str, Any], titles: Mapping[str, str]) -> Iterator[str]:
    """The limits and budgets of a plan or tenant in a line each: the group's title, its id, and what it says."""
    from tollgate.domain.policy_entries import entry_id

    found = [(titles[group], f"[{entry_id(entry)}]", entry) for group in titles for entry in shown.get(group, [])]
    width = max((len(id) for _, id, _ in found), default=0)
    for title, id, entry in found:
        yield f"{title.ljust(8)} {id.ljust(width)}  {flow(entry)}"
