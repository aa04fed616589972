"""Each call is recorded once, on whatever way it ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.unit.test_further_upstreams import TOKENS, Counting, World, policy
from tollgate.domain.limits import Settlement


class Stalled(Counting):
    """A store that takes, and does not answer a settlement."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()

    async def settle(self, settlement: Settlement) -> bool:
        self.reached.set()
        await asyncio.Event().wait()
        return False


def test_a_call_that_is_cancelled_while_it_settles_is_recorded(tmp_path: Path) -> None:
    """The process is stopping. Metering makes the settlement, from the record."""

    async def stopped() -> World:
        world = World(tmp_path, policy())
        store = world.admitter._store = Stalled()
        call = asyncio.create_task(world.ask())
        await store.reached.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert call.cancelled()
        return world

    world = asyncio.run(stopped())
    assert [record["event"] for record in world.records] == ["usage.open", "usage.close"]
    close = world.records[1]
    assert (close["outcome"], close["status"], close["input_tokens"] + close["output_tokens"]) == ("ok", 200, TOKENS)
    assert [used for *_, used in close["settle"]] == [TOKENS, 0]
