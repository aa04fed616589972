"""A policy as plain data: mappings, lists and scalars, and where its parts came from.

A `Document` comes from a file, the items of a table or a snapshot; a `Problem` names a path in it, the place of that
path (a line of the file, an item, an environment variable), and what would be right.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from tollgate.domain.policy_paths import Path, render


class Place(NamedTuple):
    """A file (with its line, from 1), a table item or an environment variable."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


class Problem(NamedTuple):
    """One thing that is wrong, and where."""

    path: Path
    message: str
    hint: str = ""
    place: Place = Place("policy")

    @property
    def line(self) -> int:
        return self.place.line

    def __str__(self) -> str:
        where = render(self.path)
        return (
            f"{self.place}: "
            + (f"{where}: " if where else "")
            + self.message
            + (f" ({self.hint})" if self.hint else "")
        )

    def as_dict(self) -> dict[str, str | int]:
        """For ``--json`` and log lines."""
        return {
            "source": self.place.source,
            "line": self.place.line,
            "path": render(self.path),
            "message": self.message,
            "hint": self.hint,
        }


class PolicyErrors(Exception):
    """A policy that cannot be used: everything that is wrong with it, in the order of the document."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Document:
    """A policy as plain data, and where its parts came from: the place of the longest known prefix of a path."""

    __slots__ = ("places", "source", "value")

    def __init__(self, value: Any, source: str = "policy", places: dict[Path, Place] | None = None) -> None:
        self.value = value
        self.source = source
        self.places = {} if places is None else places

    def place(self, path: Path) -> Place:
        for end in range(len(path), -1, -1):
            found = self.places.get(path[:end])
            if found is not None:
                return found
        return Place(self.source)

    def problem(self, path: Path, message: str, hint: str = "") -> Problem:
        return Problem(path, message, hint, self.place(path))


def jsonable(value: Any) -> Any:
    """The data with JSON's types only, in its own order."""
    return json.loads(json.dumps(value, default=to_json))


def canonical(value: Any) -> str:
    """The same text for the same data, whatever types a table or a file gave it."""
    return json.dumps(value, default=to_json, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def to_json(value: object) -> object:
    """What DynamoDB's types and Python's moments are in JSON: a `default` for `json.dumps`."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            return math.nan if value.is_nan() else float(value)  # float() refuses a signalling one
        return int(value) if value == value.to_integral_value() and abs(value) < 10**20 else float(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__} is not allowed here")
