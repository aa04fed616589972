"""A bounded memory that threads share: what was stored first is forgotten first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """At most `capacity` values. Reading takes no lock: it is one look-up, and what is stored is never changed."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: OrderedDict[K, V] = OrderedDict()  # a dict walks over what was deleted at its front
        self._lock = threading.Lock()

    def get(self, name: K) -> V | None:
        return self._items.get(name)

    def put(self, name: K, value: V) -> None:
        with self._lock:
            self._items.pop(name, None)
            self._items[name] = value
            if len(self._items) > self._capacity:
                self._items.popitem(last=False)

    def drop_oldest(self, over: Callable[[V], bool]) -> None:
        """Forget the two that were stored first, if they are `over`: so what is stored now leaves no more behind."""
        with self._lock:
            for _ in range(2):
                oldest = next(iter(self._items.values()), None)
                if oldest is None or not over(oldest):
                    return
                self._items.popitem(last=False)

    def __len__(self) -> int:
        return len(self._items)
