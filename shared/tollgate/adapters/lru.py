"""A bounded memory: what was used least recently is forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

V = TypeVar("V")


class Lru(Generic[V]):
    """At most `size` values by name."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[str, V] = OrderedDict()

    def get(self, name: str, default: V) -> V:
        found = self._values.get(name)
        if found is None:
            return default
        self._values.move_to_end(name)
        return found

    def pop(self, name: str) -> V | None:
        return self._values.pop(name, None)

    def put(self, name: str, value: V) -> None:
        self._values[name] = value
        self._values.move_to_end(name)
        if len(self._values) > self._size:
            self._values.popitem(last=False)

    def __len__(self) -> int:
        return len(self._values)
