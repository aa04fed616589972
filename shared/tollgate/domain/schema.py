"""What a policy may say: classes with annotated fields, which are the only definition of the schema.

A `Spec` is a mapping whose names are known. The reader, its errors, the suggestions and the environment's overrides all
ask the `Kind` that an annotation stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from datetime import datetime
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

from tollgate.domain.policy_document import Document, Problem
from tollgate.domain.policy_paths import Path, nearest
from tollgate.domain.schema_kinds import Choice, Entries, Flag, Kind, Moment, Named, Reading, Scalar, Text


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


# -- reading ---------------------------------------------------------------------------------------------------------

S = TypeVar("S", bound=Spec)


def read(spec: type[S], document: Document) -> tuple[S | None, list[Problem]]:
    """The document as `spec`, or (None and) everything that is wrong with it."""
    reading = Reading(document)
    found = kind_of(spec).read(document.value, (), reading)
    return (None if reading.problems else found), reading.problems


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
    if annotation is bool:
        return Flag()
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
