"""The failover store: what it tells the store that stands by."""

from __future__ import annotations

import asyncio

from tests.contract.test_limit_store import tokens
from tollgate.adapters.failover import FailoverLimitStore
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.domain.limits import Admission, Decision
from tollgate.ports import StoreUnavailable


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
