"""The failover store: what it tells the store that stands by."""

from __future__ import annotations

import asyncio

import pytest

from tests.contract.test_limit_store import tokens
from tests.faults.rig import until
from tollgate.adapters.failover import PROBE_EVERY, FailoverLimitStore
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.domain.limits import Admission, Decision, Settlement
from tollgate.ports import Overloaded, StoreUnavailable


class Away(MemoryLimitStore):
    """A primary that does not answer."""

    async def admit(self, admission: Admission) -> Decision:
        raise StoreUnavailable("as if it were down")

    async def ping(self) -> None:
        raise StoreUnavailable("as if it were down")

    async def reopen(self, outage_us: int) -> None:
        """Never reached."""

    async def cancel(self, admission: Admission) -> None:
        raise StoreUnavailable("as if it were down")


def test_the_fallback_hears_once_that_it_begins_to_decide() -> None:
    async def outage() -> tuple[int, bool]:
        begun: list[int] = []
        second = MemoryLimitStore()
        store = FailoverLimitStore(
            Away(), second, MemoryLimitStore(), lambda: "fallback", outage_begins=lambda: begun.append(1)
        )
        admitted = [(await store.admit(Admission(f"r{i}", [tokens(1)], 1_000_000, "acme"))).admitted for i in range(5)]
        await store.aclose()
        return len(begun), all(admitted)

    assert asyncio.run(outage()) == (1, True)


class Busy(MemoryLimitStore):
    """A primary that has too much to do, until it has not."""

    full = True

    async def admit(self, admission: Admission) -> Decision:
        self._turn_away()
        return await super().admit(admission)

    async def settle(self, settlement: Settlement) -> bool:
        self._turn_away()
        return await super().settle(settlement)

    async def reopen(self, outage_us: int) -> None:
        """Never reached."""

    async def cancel(self, admission: Admission) -> None:
        """Never reached: nothing was sent."""

    def _turn_away(self) -> None:
        if self.full:
            raise Overloaded("too much to do")


def test_a_primary_with_too_much_to_do_is_not_in_doubt() -> None:
    """Who comes now is turned away, and not sent to the fallback, whose buckets are others; what is settled waits."""

    async def crowd() -> tuple[str, int, bool]:
        busy = Busy()
        store = FailoverLimitStore(busy, MemoryLimitStore(), MemoryLimitStore(), lambda: "fallback")
        take = tokens(100)
        busy.full = False
        await store.admit(Admission("first", [take], 60_000_000, "acme"))
        busy.full = True
        with pytest.raises(Overloaded):
            await store.admit(Admission("second", [tokens(1)], 60_000_000, "acme"))
        assert not await store.settle(Settlement("first", [take], [30], "acme"))
        await asyncio.sleep(2 * PROBE_EVERY)
        deciding, busy.full = store.deciding, False
        await until(lambda: store._watcher is not None and store._watcher.done())
        again = await MemoryLimitStore.settle(busy, Settlement("first", [take], [30], "acme"))
        doubts = store._breaker.doubts
        await store.aclose()
        return deciding, doubts, again

    assert asyncio.run(crowd()) == ("memory", 0, False)
