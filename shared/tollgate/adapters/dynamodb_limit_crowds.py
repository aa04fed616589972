"""Who waits for the same goes together: one write for all of a crowd, one read for all who ask in the same moment.

An item takes some hundred writes a second, whoever makes them. Ten thousand at once would open as many connections,
time out together, and find at each try that nine others were quicker. So a container makes one write of an item at a
time; who comes meanwhile waits for it, and then all of them share the next. Nobody waits for more than these two, and
who is alone waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

from tollgate.adapters.dynamodb import Plain, Table

T = TypeVar("T")
R = TypeVar("R")


class Waiting(Generic[T, R]):
    """One of a crowd: what it asks, and what it will be told."""

    __slots__ = ("asked", "told")

    def __init__(self, asked: T) -> None:
        self.asked = asked
        self.told: asyncio.Future[R] = asyncio.get_running_loop().create_future()

    def tell(self, answer: R) -> None:
        self.told.set_result(answer)


class Crowds(Generic[T, R]):
    """One crowd for each key. `serve(key, crowd)` tells each of them its answer, in any order; what it raises is told
    to the rest."""

    def __init__(self, serve: Callable[[str, Sequence[Waiting[T, R]]], Awaitable[None]]) -> None:
        self._serve = serve
        self._crowds: dict[str, list[Waiting[T, R]]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        """Of those that are being served."""

    def __len__(self) -> int:
        return len(self._crowds)

    async def join(self, key: str, asked: T) -> R:
        """Whoever is cancelled hears its answer first: then it knows what it has taken, and can give it back."""
        one = Waiting[T, R](asked)
        if key in self._crowds:
            self._crowds[key].append(one)
        else:
            self._crowds[key] = [one]
            task = asyncio.create_task(self._serve_all(key))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        try:
            return await asyncio.shield(one.told)
        except asyncio.CancelledError:
            await asyncio.wait([one.told])
            if not one.told.cancelled():
                one.told.exception()  # nobody else will ask for it
            raise

    async def _serve_all(self, key: str) -> None:
        crowd: list[Waiting[T, R]] = []
        try:
            while crowd := self._crowds[key]:
                self._crowds[key] = []
                try:
                    await self._serve(key, crowd)
                except Exception as error:  # noqa: BLE001 - whatever it is, all of them wait for an answer
                    _fail(crowd, error)
        except asyncio.CancelledError:  # the process ends
            for one in (*crowd, *self._crowds[key]):
                one.told.cancel()
            raise
        finally:
            del self._crowds[key]


def _fail(crowd: Iterable[Waiting[T, R]], error: Exception) -> None:
    for one in crowd:
        if not one.told.done():
            one.told.set_exception(error)


class Reads:
    """Items of a table, for all who ask in the same turn of the event loop at once."""

    def __init__(self, table: Table, *, consistent: bool) -> None:
        self._table = table
        self._consistent = consistent
        self._next: asyncio.Task[dict[str, Plain]] | None = None
        self._wanted: dict[str, None] = {}

    async def get(self, pks: Iterable[str]) -> dict[str, Plain]:
        """Those that exist (and perhaps some that others have asked for), by their keys."""
        if self._next is None:
            self._wanted = {}
            self._next = asyncio.create_task(self._read(self._wanted))
            self._next.add_done_callback(lambda read: read.cancelled() or read.exception())  # all may be gone by then
        self._wanted.update(dict.fromkeys(pks))
        return await asyncio.shield(self._next)

    async def _read(self, wanted: dict[str, None]) -> dict[str, Plain]:
        self._next = None  # who asks from now on asks for the next
        found = await self._table.get_many([{"pk": pk} for pk in wanted], consistent=self._consistent)
        return {plain["pk"]: plain for plain in found}
