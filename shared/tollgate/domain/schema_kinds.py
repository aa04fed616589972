"""The kinds of plain data that a schema is made of: how each is called, and how it is read from a document.

Every mistake is found at once, and is said in the words of whoever wrote the document. Values are taken as they are
written: ``"10"`` and ``true`` are not numbers here, as they would silently become elsewhere.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from tollgate.domain.policy_document import Document, Problem, to_json
from tollgate.domain.policy_paths import Path, nearest
from tollgate.domain.until import read_moment


class Reading:
    """A document that is being read, and what was found to be wrong with it."""

    __slots__ = ("_document", "problems")

    def __init__(self, document: Document) -> None:
        self._document = document
        self.problems: list[Problem] = []

    def wrong(self, path: Path, message: str, hint: str = "") -> None:
        self.problems.append(self._document.problem(path, message, hint))

    def unfit(self, path: Path, expected: str, value: object, hint: str = "") -> None:
        self.wrong(path, f"expected {expected}, found {_found(value)}", hint)


class Unfit(Exception):
    """A value is not of its kind. Says what was expected, where that is not just the kind, and a hint."""

    def __init__(self, expected: str = "", hint: str = "") -> None:
        self.expected = expected
        self.hint = hint


class Kind(ABC):
    """What may stand at a place: how it is called, and how plain data becomes it."""

    expected = ""
    """In words."""
    is_text = False
    optional = False
    checks: tuple[Callable[[Any], Any], ...] = ()
    """What a value must pass besides: each gives it back, changed perhaps, or raises ValueError with what is wrong."""

    def read(self, value: Any, path: Path, reading: Reading) -> Any:
        """The value that plain data says; anything at all if `reading` learned of something wrong."""
        if value is None and self.optional:
            return None
        before = len(reading.problems)
        found = self._read(value, path, reading)
        if len(reading.problems) == before:
            try:
                for check in self.checks:
                    found = check(found)
            except ValueError as error:
                reading.wrong(path, str(error))
        return found

    @abstractmethod
    def _read(self, value: Any, path: Path, reading: Reading) -> Any:
        """The value; `reading` learns of what is wrong."""

    def inner(self, part: str | int) -> Kind | None:
        """The kind of what stands under `part`; None where nothing may."""
        return None

    def names(self) -> tuple[str, ...]:
        """Those that a mapping of this kind may hold; empty unless the schema names them."""
        return ()


class Scalar(Kind):
    """A single value."""

    @abstractmethod
    def parse(self, value: Any) -> Any:
        """Raises `Unfit`."""

    def _read(self, value: Any, path: Path, reading: Reading) -> Any:
        try:
            return self.parse(value)
        except Unfit as unfit:
            quoted = isinstance(value, str) and value.lstrip("-").isdecimal() and "number" in self.expected
            hint = "without quotes" if quoted else unfit.hint
            reading.unfit(path, unfit.expected or self.expected, value, hint)
            return None


class Text(Scalar):
    is_text = True

    def __init__(self, pattern: str = "", least: int = 0, most: int = 2048) -> None:
        """`least` and `most` are characters."""
        self.expected = "a name of letters, digits, '.', '_', '-'" if pattern else "text"
        self._pattern = re.compile(pattern) if pattern else None
        self._least, self._most = least, most

    def parse(self, value: Any) -> str:
        if not isinstance(value, str) or len(value) < self._least:
            raise Unfit
        if self._pattern is not None and not self._pattern.fullmatch(value):
            raise Unfit
        if len(value) > self._most:
            raise Unfit(f"at most {self._most} characters")
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise Unfit("text without half characters (lone surrogates)")
        return value


class Whole(Scalar):
    def __init__(self, least: int, most: int) -> None:
        self.expected = f"a whole number of at least {least}"
        self._least, self._most = least, most

    def parse(self, value: Any) -> int:
        found = _native(value)
        if type(found) is not int or found < self._least:  # true is an int to Python
            raise Unfit
        if found > self._most:
            raise Unfit(f"a whole number of at most {self._most}")
        return found


class Flag(Scalar):
    expected = "true or false"

    def parse(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise Unfit
        return value


class Positive(Scalar):
    """A number above 0."""

    expected = "a number above 0"

    def __init__(self, most: float) -> None:
        self._most = most

    def parse(self, value: Any) -> float:
        found = _native(value)
        if type(found) not in (int, float) or not 0 < found < math.inf:
            raise Unfit
        if found > self._most:
            raise Unfit(f"a number of at most {self._most}")
        return float(found)


class Dollars(Scalar):
    """An amount of money, kept exact; the one number that may be quoted, as tools that know no decimals write it."""

    expected = "a number of US dollars, 0 or more, with at most six decimals"
    _WRITTEN = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

    def __init__(self, most: int) -> None:
        self._most = most

    def parse(self, value: Any) -> Decimal:
        if isinstance(value, str) and self._WRITTEN.fullmatch(value):
            exact = Decimal(value)
        elif isinstance(value, float):
            exact = Decimal(repr(value))  # its shortest decimal is the one that was written
        elif type(value) in (int, Decimal):
            exact = Decimal(value)
        else:
            raise Unfit
        if not exact.is_finite() or exact < 0:
            raise Unfit
        if exact > self._most:
            raise Unfit(f"a number of at most {self._most}")
        if exact != round(exact, 6):
            raise Unfit
        return exact


class Moment(Scalar):
    """A date and time. One without a zone is UTC, a date alone is its midnight."""

    expected = "a moment such as 2026-12-01T00:00:00Z"
    is_text = True

    def parse(self, value: Any) -> datetime:
        if not isinstance(value, str):
            raise Unfit
        try:
            return read_moment(value)
        except ValueError:
            raise Unfit from None


class Choice(Scalar):
    """One of a few values: of a literal, or an enumeration's."""

    def __init__(self, members: Mapping[Any, Any]) -> None:
        """`members` by what a document calls them."""
        self._members = members
        self._known = tuple(str(known) for known in members)
        self.expected = _either(self._known)
        self.is_text = all(isinstance(known, str) for known in members)

    def parse(self, value: Any) -> Any:
        for known, member in self._members.items():
            if type(value) is type(known) and value == known:
                return member
        hint = nearest(value, self._known) if isinstance(value, str) else ""
        raise Unfit(hint=hint if hint.startswith("did you mean ") else "")


class Entries(Kind):
    """A list."""

    expected = "a list"

    def __init__(self, entry: Kind, least: int, most: int) -> None:
        self._entry = entry
        self._least, self._most = least, most

    def _read(self, value: Any, path: Path, reading: Reading) -> Any:
        if isinstance(value, set | frozenset):  # DynamoDB has sets of strings
            value = sorted(value, key=str)
        if not isinstance(value, list | tuple):
            reading.unfit(path, self.expected, value)
        elif len(value) < self._least:
            reading.wrong(path, f"expected at least {self._least} entry")
        elif len(value) > self._most:
            reading.wrong(path, f"expected at most {self._most} entries")
        else:
            return tuple(self._entry.read(entry, (*path, i), reading) for i, entry in enumerate(value))
        return None

    def inner(self, part: str | int) -> Kind | None:
        return self._entry if isinstance(part, int) else None


class Named(Kind):
    """A mapping of names that whoever writes it gives."""

    expected = "a mapping"

    def __init__(self, name: Scalar, entry: Kind) -> None:
        self._name = name
        self._entry = entry

    def _read(self, value: Any, path: Path, reading: Reading) -> Any:
        if not isinstance(value, Mapping):
            reading.unfit(path, self.expected, value)
            return None
        for name in value:
            try:
                self._name.parse(name)
            except Unfit:
                hint = "letters, digits, '.', '_', '-', starting with one"
                reading.wrong((*path, str(name)), f"{name!r:.80} cannot be a name", hint)
        return {name: self._entry.read(entry, (*path, name), reading) for name, entry in value.items()}

    def inner(self, part: str | int) -> Kind | None:
        return self._entry if isinstance(part, str) else None


# -- words and numbers -------------------------------------------------------------------------------------------------


def _either(known: Sequence[str]) -> str:
    return known[0] if len(known) == 1 else f"{', '.join(known[:-1])} or {known[-1]}"


def _found(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple | set | frozenset):
        return "a list"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value) if isinstance(value, str | bytes) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _native(value: object) -> Any:
    """A table's decimals as the numbers that they are in JSON."""
    return to_json(value) if isinstance(value, Decimal) else value
