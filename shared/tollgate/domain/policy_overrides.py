"""Single values of the policy, set by the environment: ``TOLLGATE_PLANS__FREE__LIMITS__0__REQUESTS=5``.

The parts between double underscores are names, fields and list positions. Letters match in either case, and ``_``
stands for any character that a variable's name cannot hold (``MODELS__GPT_4_1__PRICE__INPUT`` is ``gpt-4.1``'s).
Named things and list entries must exist: a variable that changes nothing is an error, not a silence. Fields may be
absent, as long as the schema has them. Values are JSON (numbers, true, lists, mappings), or else text.

``REDIS_FAILURE_MODE`` is one of them: environment, then policy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from decimal import Decimal
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

from tollgate.domain.policy import Policy
from tollgate.domain.policy_document import Document, Place, Problem
from tollgate.domain.policy_paths import Path, nearest, render
from tollgate.domain.schema import kind_at, kind_of
from tollgate.domain.schema_kinds import Kind

GROUPS = ("PLANS", "MODELS", "UPSTREAMS", "GLOBAL", "TENANTS")
"""Only variables below these are overrides; ``TOLLGATE_STORE_URL`` and the like are settings of a process."""

_PREFIX = "TOLLGATE_"
_NOT_IN_VARIABLES = re.compile(r"[^A-Z0-9]")


def override(document: Document, environ: Mapping[str, str], groups: Iterable[str] = GROUPS) -> list[Problem]:
    """Set in `document` what the environment says about `groups` of the policy. Returns what cannot be set."""
    if not isinstance(document.value, dict):
        return []  # not a policy at all, which is reported as such
    problems: list[Problem] = []
    wanted = {group.upper() for group in groups}
    seen: dict[Path, str] = {}
    document.value = deepcopy(document.value)
    for variable in sorted(environ):
        spelled = _spelled(variable)
        if spelled.partition("__")[0] not in wanted:
            continue
        place = Place(variable)
        found = list(dict.fromkeys(_resolve(document.value, kind_of(Policy), spelled, ())))
        if not found:
            path, message, hint = _nowhere(document.value, spelled)
            problems.append(Problem(path, message, hint, place))
        elif len(found) > 1:
            both = " and ".join(render(path) for path in found)
            problems.append(Problem((), f"could mean {both}", "rename one, or change it in the policy", place))
        elif found[0] in seen:
            problems.append(Problem(found[0], f"is set by {seen[found[0]]} too", "unset one", place))
        else:
            seen[found[0]] = variable
            _set(document, found[0], value_of(environ[variable], kind_at(Policy, found[0])), place)
    mode = environ.get("REDIS_FAILURE_MODE")
    if mode and "GLOBAL" in wanted:
        _set(document, ("redis_failure_mode",), mode, Place("REDIS_FAILURE_MODE"))
    return problems


def value_of(text: str, kind: Kind | None) -> Any:
    """A variable's value: text where the schema wants text, otherwise JSON, and text where it is none."""
    if kind is not None and kind.is_text:
        return text
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_refuse)
    except (ValueError, ArithmeticError, RecursionError):
        return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _spelled(variable: str) -> str:
    """What an override's name says after its prefix, folded; empty if it is none."""
    folded = variable.upper()
    rest = folded.removeprefix(_PREFIX)
    return (
        rest if folded.startswith(_PREFIX) and rest.partition("__")[:2] in [(group, "__") for group in GROUPS] else ""
    )


def _fold(name: str) -> str:
    return _NOT_IN_VARIABLES.sub("_", name.upper())


class _Step(NamedTuple):
    part: str | int
    value: Any
    rest: str | None
    """What follows in the variable's name; None at its end."""


def _steps(value: Any, kind: Kind | None, spelled: str) -> Iterator[_Step]:
    """What the first words can mean below `value`. A name may hold two underscores itself, or end with one."""
    if isinstance(value, list):
        word, separator, rest = spelled.partition("__")
        if word.isascii() and word.isdecimal() and len(word) < 6 and int(word) < len(value):
            yield _Step(int(word), value[int(word)], rest if separator else None)
        return
    if value is not None and not isinstance(value, dict):
        return
    existing = value or {}
    for name in dict.fromkeys([*existing, *(kind.names() if kind else ())]):
        folded = _fold(name)
        if spelled == folded:
            yield _Step(name, existing.get(name), None)
        elif spelled.startswith(f"{folded}__"):
            yield _Step(name, existing.get(name), spelled[len(folded) + 2 :])


def _resolve(value: Any, kind: Kind | None, spelled: str | None, path: Path) -> Iterator[Path]:
    if spelled is None:
        yield path
        return
    for step in _steps(value, kind, spelled):
        yield from _resolve(step.value, kind.inner(step.part) if kind else None, step.rest, (*path, step.part))


def _nowhere(value: Any, spelled: str) -> tuple[Path, str, str]:
    """How far a variable's name can be followed, and what was expected there."""
    path: Path = ()
    kind: Kind | None = kind_of(Policy)
    while (step := next(_steps(value, kind, spelled), None)) is not None and step.rest is not None:
        path, value, spelled = (*path, step.part), step.value, step.rest
        kind = kind.inner(step.part) if kind else None
    word = spelled.partition("__")[0].lower()
    if isinstance(value, list):
        return path, f"has no entry {word!r}: there are {len(value)}, counted from 0", ""
    known = tuple(dict.fromkeys([*(value if isinstance(value, dict) else ()), *(kind.names() if kind else ())]))
    return path, f"has no {word!r}", nearest(word, known)


def _set(document: Document, path: Path, value: Any, place: Place) -> None:
    """Set a value whose containers exist, or may be made because they are fields of the schema."""
    here = document.value
    for part, following in pairwise(path):
        if isinstance(here, dict) and here.get(part) is None:
            here[part] = [] if isinstance(following, int) else {}
        here = here[part]
    here[path[-1]] = value
    for known in [known for known in document.places if known[: len(path)] == path]:
        del document.places[known]
    document.places[path] = place
