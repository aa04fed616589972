"""Our `dataclass` does what the standard library's does."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from tollgate.domain.dataclass import dataclass as ours

OPTIONS: list[dict[str, bool]] = [
    {},
    {"slots": True},
    {"frozen": True},
    {"frozen": True, "slots": True},
    {"kw_only": True, "slots": True},
]


def classes(made_by: Callable[..., Any], options: dict[str, bool]) -> list[Any]:
    """The same classes, made by one or the other."""

    @made_by(**options)
    class Point:
        """A point."""

        kind: ClassVar[str] = "point"
        x: int
        y: list[int] = dataclasses.field(default_factory=list)
        hidden: str = dataclasses.field(default="secret", repr=False)
        noted: str = dataclasses.field(default="", compare=False)

    @made_by(**options)
    class Single:
        """One field."""

        x: int

    @made_by(**options)
    class Empty:
        """None."""

    @made_by(**options)
    class Own:
        """Methods of its own."""

        x: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, type(self)) and self.x % 2 == other.x % 2

        def __hash__(self) -> int:
            return 7

        def __repr__(self) -> str:
            return "own"

    return [Point, Single, Empty, Own]


def observed(made_by: Callable[..., Any], options: dict[str, bool]) -> list[object]:
    point, single, empty, own = classes(made_by, options)
    a, b, c = point(x=1, y=[2]), point(x=1, y=[2], noted="other"), point(x=2)
    values: list[object] = [repr(it).replace("ours", "") for it in (a, b, c, single(x=1), empty(), own(x=1))]
    values += [a == b, a != b, a == c, a == single(x=1), a == 1, single(x=1) == single(x=1), empty() == empty()]
    values += [own(x=1) == own(x=3), hash(own(x=1)), dataclasses.replace(a, x=2, y=[]) == c, copy.copy(a) == a]
    values += [dataclasses.asdict(a), [field.name for field in dataclasses.fields(point)], point.__doc__]
    for it in (single(x=1), empty(), a):
        try:
            values.append(hash(it) == hash(copy.copy(it)))
        except TypeError as error:
            values.append(str(error))
    for change in (lambda: setattr(single(x=1), "x", 2), lambda: setattr(single(x=1), "z", 2)):
        try:
            values.append(change())
        except (AttributeError, TypeError) as error:
            values.append((type(error), str(error)))
    return values


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_the_standard_librarys(options: dict[str, bool]) -> None:
    assert observed(ours, options) == observed(dataclasses.dataclass, options)


@ours
class Bare:
    """Without any option."""

    x: int = 1


def test_it_needs_no_options_and_no_call() -> None:
    assert Bare() == Bare(1) != Bare(2)
    assert repr(Bare()) == "Bare(x=1)"
    assert pickle.loads(pickle.dumps(Bare(3))) == Bare(3)
