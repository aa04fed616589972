"""Redis first, DynamoDB when it does not answer: one limit store made of two.

A call that Redis does not answer is decided by DynamoDB at once, so callers see no error; after a few such calls the
breaker opens and Redis is only probed. Before it is trusted again it starts a new epoch: every budget is loaded from
the ledger once more, because DynamoDB has spent meanwhile (docs/architecture.md, "When a store fails").
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, Protocol

from tollgate.adapters import telemetry
from tollgate.adapters.breaker import PROBE_EVERY, Breaker
from tollgate.domain.limits import Admission, Decision, RateTake, Settlement
from tollgate.ports import LimitStore, StoreUnavailable

FailureMode = Literal["fallback", "open", "closed"]
MAX_UNSETTLED = 10_000
"""Settlements kept for a Redis that is away; the oldest are dropped (their holds expire, metering brings the use)."""


class Reopenable(LimitStore, Protocol):
    async def reopen(self, outage_us: int) -> None: ...


class FailoverLimitStore:
    """`primary` decides while it answers. When it does not: `fallback` decides (mode ``fallback``), this container's
    own buckets do (``open``), or nobody does (``closed``, `StoreUnavailable`)."""

    name = "failover"

    def __init__(
        self,
        primary: Reopenable,
        fallback: LimitStore | None,
        local: LimitStore,
        mode: Callable[[], FailureMode],
    ) -> None:
        self._primary = primary
        self._fallback = fallback
        self._local = local
        self._mode = mode
        self._breaker = Breaker(asyncio.get_running_loop().time)
        self._prober: asyncio.Task[None] | None = None
        self._unsettled: deque[Settlement] = deque(maxlen=MAX_UNSETTLED)

    @property
    def deciding(self) -> str:
        """Which store decides now, or ``none``; for health and status."""
        if not self._breaker.is_open:
            return self._primary.name
        try:
            return self._second().name
        except StoreUnavailable:
            return "none"

    async def admit(self, admission: Admission) -> Decision:
        if not self._breaker.is_open:
            try:
                decision = await self._primary.admit(admission)
            except StoreUnavailable as error:
                self._failed(error)
                # Redis may have taken it all the same: give that back when it can be reached.
                self._unsettled.append(_nothing_used(admission, self._primary.name))
            else:
                self._breaker.succeeded()
                if self._unsettled and (self._prober is None or self._prober.done()):
                    self._prober = asyncio.get_running_loop().create_task(self._settle_waiting())
                return decision
        second = self._second()
        decision = await second.admit(admission)
        decision.local = second is self._local
        return decision

    async def settle(self, settlement: Settlement) -> bool:
        if settlement.store == self._local.name:
            return await self._local.settle(settlement)
        if self._fallback is not None and settlement.store == self._fallback.name:
            return await self._fallback.settle(settlement)
        if self._breaker.is_open:
            self._unsettled.append(settlement)
            return False
        try:
            return await self._primary.settle(settlement)
        except StoreUnavailable as error:
            self._failed(error)
            self._unsettled.append(settlement)
            return False

    async def recall(self, takes: Sequence[RateTake]) -> list[int | None]:
        """What the fallback counted while the primary was away; nothing, where there is none or it does not answer
        either: then rates start full, as they would without it."""
        if self._fallback is None:
            return [None] * len(takes)
        try:
            return await self._fallback.recall(takes)
        except StoreUnavailable:
            return [None] * len(takes)

    async def raise_floor(self, spent: Mapping[str, int]) -> None:
        await self._everywhere(lambda store: store.raise_floor(spent))

    async def publish(self, *, policy: int = 0, tenants: Mapping[str, int] | None = None) -> None:
        await self._everywhere(lambda store: store.publish(policy=policy, tenants=tenants))

    async def ping(self) -> None:
        await (self._second() if self._breaker.is_open else self._primary).ping()

    async def aclose(self) -> None:
        if self._prober is not None:
            self._prober.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._prober
        await self._primary.aclose()
        if self._fallback is not None:
            await self._fallback.aclose()

    def _second(self) -> LimitStore:
        mode = self._mode()
        if mode == "open":
            return self._local
        if mode == "closed" or self._fallback is None:
            raise StoreUnavailable("Redis does not answer, and nothing else may decide")
        return self._fallback

    async def _everywhere(self, act: Callable[[LimitStore], Awaitable[None]]) -> None:
        """Tell both stores; the first failure is raised after both were told."""
        stores = [self._primary, *([self._fallback] if self._fallback is not None else [])]
        results = await asyncio.gather(*(act(store) for store in stores), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _settle_waiting(self) -> None:
        """Settle what Redis did not answer to; idempotent by id, so it may be asked twice."""
        while self._unsettled:
            waiting = self._unsettled.popleft()
            try:
                await self._primary.settle(waiting)
            except StoreUnavailable as error:
                self._unsettled.appendleft(waiting)
                self._failed(error)
                return

    def _failed(self, error: StoreUnavailable) -> None:
        if self._breaker.failed():
            telemetry.log("WARNING", "Redis does not answer; the breaker is open", reason=str(error), mode=self._mode())
            telemetry.metric("Tollgate", {"service": telemetry.service()}, StoreBreakerOpened=1)
        if self._breaker.is_open and (self._prober is None or self._prober.done()):
            self._prober = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        """Ask Redis until it answers steadily; then start a new epoch, settle what waited, and close the breaker."""
        while True:
            await asyncio.sleep(PROBE_EVERY)
            try:
                await self._primary.ping()
                if not self._breaker.probed(answered=True):
                    continue
                outage = self._breaker.outage_seconds()
                await self._primary.reopen(int(outage * 1_000_000))
                await self._settle_waiting()
            except StoreUnavailable:
                self._breaker.probed(answered=False)
                continue
            self._breaker.close()
            telemetry.log("INFO", "Redis answers again; the breaker is closed", outage_seconds=round(outage, 1))
            telemetry.metric("Tollgate", {"service": telemetry.service()}, StoreBreakerClosed=1)
            return


def _nothing_used(admission: Admission, store: str) -> Settlement:
    used: list[int | None] = [
        None if isinstance(take, RateTake) and not take.limit.refundable else 0 for take in admission.takes
    ]
    return Settlement(admission.id, admission.takes, used, admission.tenant, store)
