"""A bounded memory that threads share: what was stored first is forgotten first."""

from __future__ import annotations

import threading
from collections import OrderedDict
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
