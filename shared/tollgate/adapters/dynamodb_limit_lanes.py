"""Who writes an item when: a crowd that asks for one subject goes in single file, four abreast.

An item takes some hundred writes a second, whoever makes them. Ten thousand at once would open as many connections,
time out together, and find at each try that nine others were quicker. So this container makes a few writes of one item
at a time, in the order in which they were asked for; other items do not notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tollgate.ports import Overloaded

ABREAST = 4
"""Writes of one item at once. At 5 ms each these are 800 a second: about all that an item can take."""
PATIENCE_S = 2.0
"""How long an admission waits for its turn."""


@dataclass(slots=True)
class Lane:
    """One item's."""

    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(ABREAST))
    users: int = 0
    """Who writes or waits; a lane that nobody uses is forgotten."""


class Lanes:
    """One for each item that is being written."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    @asynccontextmanager
    async def turn(self, pk: str, *, patient: bool = False) -> AsyncIterator[None]:
        """One's turn to write `pk`. Raises `Overloaded` where it does not come in time, and one is not `patient`."""
        lane = self._lanes.setdefault(pk, Lane())
        lane.users += 1
        try:
            try:
                async with asyncio.timeout(PATIENCE_S if lane.turns.locked() and not patient else None):
                    await lane.turns.acquire()
            except TimeoutError:
                raise Overloaded(f"DynamoDB: too many wait for {pk}") from None
            try:
                yield
            finally:
                lane.turns.release()
        finally:
            lane.users -= 1
            if not lane.users:
                del self._lanes[pk]
