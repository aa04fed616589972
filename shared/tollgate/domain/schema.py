"""What a policy may say: classes with annotated fields, and a reader that checks plain data against them.

A `Spec` is a mapping whose names are known; its annotations are the only definition of the schema. The reader, the
errors, the paths, the suggestions and the environment's overrides all ask the `Kind` that an annotation stands for.
Every mistake is found at once, and is said in the words of whoever wrote the document. Values are taken as they are
written: ``"10"`` and ``true`` are not numbers here, as they would silently become elsewhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from functools import cache
from types import UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NoReturn,
    Self,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from tollgate.domain.policy_document import Document, Problem, to_json
from tollgate.domain.policy_paths import Path, nearest


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Spec:
    """A frozen record with named fields: what was given is in the instance, defaults stay in the class.

    Not a dataclass: those compile their methods one class at a time, which a cold start waits for, and forget what was
    given. The constructor trusts its caller (and mypy); what others wrote goes through `read`.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ()
    ALIASES: ClassVar[Mapping[str, str]] = {}
    """Of fields that a document calls by another name (a keyword of Python)."""

    def __init_subclass__(cls) -> None:
        cls.FIELDS = (*cls.FIELDS, *cls.__annotations__)

    def __init__(self, **given: Any) -> None:
        unknown = given.keys() - set(self.FIELDS)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        self.__dict__.update(given)

    def check(self) -> None:
        """What no field can say alone. Raises ValueError."""

    def replace(self, **changes: Any) -> Self:
        return type(self)(**{**self.__dict__, **changes})

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be set")

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(getattr(self, name, None) == getattr(other, name, None) for name in self.FIELDS)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"


def plain(value: Any) -> Any:
    """A part of a policy as the plain data that says it: what was given, and no more. Money stays decimal."""
    if isinstance(value, Spec):
        given = value.__dict__
        return {
            value.ALIASES.get(name, name): plain(given[name]) for name in value.FIELDS if given.get(name) is not None
        }
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, float) and value.is_integer():
        return int(value)  # as DynamoDB gives it back
    return value


# -- reading -----------------------------------------------------------------------------------------------------

S = TypeVar("S", bound=Spec)


def read(spec: type[S], document: Document) -> tuple[S | None, list[Problem]]:
    """The document as `spec`, or (None and) everything that is wrong with it."""
    reading = Reading(document)
    found = kind_of(spec).read(document.value, (), reading)
    return (None if reading.problems else found), reading.problems


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


class Kind:
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

    def _read(self, value: Any, path: Path, reading: Reading) -> Any:
        raise NotImplementedError

    def inner(self, part: str | int) -> Kind | None:
        """The kind of what stands under `part`; None where nothing may."""
        return None

    def names(self) -> tuple[str, ...]:
        """Those that a mapping of this kind may hold; empty unless the schema names them."""
        return ()


class Scalar(Kind):
    """A single value."""

    def parse(self, value: Any) -> Any:
        """Raises `Unfit`."""
        raise NotImplementedError

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
    _DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?![0-9-])")

    def parse(self, value: Any) -> datetime:
        if not isinstance(value, str) or not self._DATE.match(value):  # Python would take weeks, too
            raise Unfit
        try:
            found = datetime.fromisoformat(value.upper())
        except ValueError:
            raise Unfit from None
        return found if found.tzinfo else found.replace(tzinfo=UTC)


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


class Fields(Kind):
    """A mapping whose names the schema knows: a `Spec`."""

    expected = "a mapping"

    def __init__(self, spec: type[Spec]) -> None:
        self._spec = spec

    def _read(self, value: Any, path: Path, reading: Reading) -> Any:
        if not isinstance(value, Mapping):
            reading.unfit(path, self.expected, value)
            return None
        known = _fields(self._spec)
        before = len(reading.problems)
        given: dict[str, Any] = {}
        hints = set()
        for name, part in value.items():
            if name in known:
                field, kind = known[name]
                given[field] = kind.read(part, (*path, name), reading)
            else:
                hint = nearest(self._spec.ALIASES.get(name, str(name)), tuple(known))
                hints.add(hint)
                reading.wrong((*path, str(name)), "is not known", hint)
        for name, (field, kind) in known.items():
            # a misspelled name is one mistake, not also a missing one
            if field not in given and not hasattr(self._spec, field) and f"did you mean {name}?" not in hints:
                reading.wrong((*path, name), "is missing", f"expected {kind.expected}")
        if len(reading.problems) > before:
            return None
        found = self._spec(**given)
        try:
            found.check()
        except ValueError as error:
            reading.wrong(path, str(error))
        return found

    def inner(self, part: str | int) -> Kind | None:
        known = _fields(self._spec)
        return known[part][1] if isinstance(part, str) and part in known else None

    def names(self) -> tuple[str, ...]:
        return tuple(_fields(self._spec))


# -- from annotations to kinds -----------------------------------------------------------------------------------


def _read_fields(spec: type[Spec]) -> dict[str, tuple[str, Kind]]:
    """The field's name and its kind, by what a document calls it."""
    hints = get_type_hints(spec, include_extras=True)
    return {spec.ALIASES.get(name, name): (name, kind_of(hints[name])) for name in spec.FIELDS}


class Count:
    """Beside a list's type: how many entries it takes."""

    def __init__(self, least: int = 0, most: int = 10**6) -> None:
        self.least, self.most = least, most


_ANY_NUMBER = Count()


def _read_annotation(annotation: Any) -> Kind:
    """The kind that an annotation stands for. Beside a type may stand a scalar's kind, a list's `Count`, and checks."""
    if get_origin(annotation) is not Annotated:
        return _bare(annotation)
    bare, *notes = get_args(annotation)
    kind = copy(next((note for note in notes if isinstance(note, Scalar)), None) or _bare(bare, notes))
    kind.checks = (*kind.checks, *(note for note in notes if callable(note)))
    return kind


def _bare(annotation: Any, notes: Sequence[Any] = ()) -> Kind:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        (only,) = (argument for argument in arguments if argument is not type(None))
        kind = copy(kind_of(only))
        kind.optional = True
        return kind
    if origin is tuple:
        count = next((note for note in notes if isinstance(note, Count)), _ANY_NUMBER)
        return Entries(kind_of(arguments[0]), count.least, count.most)
    if origin is Mapping:
        name = kind_of(arguments[0])
        assert isinstance(name, Scalar)  # of a schema, not of what is read
        return Named(name, kind_of(arguments[1]))
    if origin is Literal:
        return Choice({value: value for value in arguments})
    if annotation is str:
        return Text()
    if annotation is datetime:
        return Moment()
    if issubclass(annotation, Enum):
        return Choice({member.value: member for member in annotation})
    if issubclass(annotation, Spec):
        return Fields(annotation)
    raise TypeError(f"the schema has no kind for {annotation}")


# typed again, because mypy does not take a class for hashable
kind_of: Callable[[Any], Kind] = cache(_read_annotation)
_fields: Callable[[Any], dict[str, tuple[str, Kind]]] = cache(_read_fields)


def kind_at(spec: type[Spec], path: Path) -> Kind | None:
    """The kind of what stands at `path`; None where the schema knows no such thing."""
    kind: Kind | None = kind_of(spec)
    for part in path:
        kind = kind.inner(part) if kind is not None else None
    return kind


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
