"""The standard library's `dataclass`, at half its price for a cold start.

It writes the methods of each class as source and compiles them, 1 ms for a class, and the proxy has fifty. Only the
constructor has to be compiled; to compare, to hash and to show is the same for all. Everything else (`field`,
`fields`, `replace`, `asdict`, the options) is the standard library's, and so is what mypy sees.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls=None, /, *, frozen=False, **options):
        """As `dataclasses.dataclass`; always with `eq` and `repr`, unless the class has its own."""
        if cls is None:
            return partial(dataclass, frozen=frozen, **options)
        own = cls.__dict__
        made = dataclasses.dataclass(cls, frozen=frozen, eq=False, repr=False, **options)
        fields = dataclasses.fields(made)
        if "__repr__" not in own:
            made.__repr__ = _repr(tuple(field.name for field in fields if field.repr))
        if "__eq__" not in own:
            made.__eq__, hashed = _compared(tuple(field.name for field in fields if field.compare))
            if "__hash__" not in own:
                made.__hash__ = hashed if frozen else None
        return made


def _repr(names: tuple[str, ...]) -> Any:
    def __repr__(self: Any) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    return __repr__


def _compared(names: tuple[str, ...]) -> tuple[Any, Any]:
    """`__eq__` and `__hash__`. With one name it is compared itself, with more a tuple."""
    values = attrgetter(*names) if names else lambda self: ()

    def __eq__(self: Any, other: object) -> bool:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(values(self))

    return __eq__, __hash__
