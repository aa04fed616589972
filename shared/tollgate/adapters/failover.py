"""Redis first, DynamoDB when it does not answer: one limit store made of two.

A call that Redis does not answer is decided by DynamoDB at once, so callers see no error, and until a probe has found
out more nobody else waits for Redis. Before a Redis that was away is trusted again it starts a new epoch: budgets are
loaded from the ledger once more and rates from DynamoDB, because both have moved meanwhile (docs/architecture.md,
"When a store fails").
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, Protocol, TypeVar

from tollgate.adapters import telemetry
from tollgate.adapters.breaker import Breaker
from tollgate.adapters.lru import Lru
from tollgate.domain.limits import Admission, Decision, Settlement, Take, Unit
from tollgate.domain.takes import Takes
from tollgate.ports import CannotDecide, LimitStore, Overloaded, StoreClosed, StoreUnavailable

T = TypeVar("T")
FailureMode = Literal["fallback", "open", "closed"]
PROBE_EVERY = 0.25
"""Seconds between two probes."""
PROBE_TIMEOUT = 0.5
"""Seconds for one probe, a new connection included."""
MAX_WAITING = 10_000
"""Settlements kept for a Redis that is away; the oldest are dropped (their holds expire, metering brings the use)."""
AT_ONCE = 100
"""Settlements made together when it is back."""


class Primary(LimitStore, Protocol):
    """What the failover needs of the store that decides while it answers."""

    async def reopen(self, outage_us: int) -> None:
        """Begin a new epoch after an outage, unless one has begun since it did. Raises `StoreUnavailable`."""
        ...

    async def cancel(self, admission: Admission) -> None:
        """Undo an admission whose answer was lost, even if it has yet to arrive. Raises `StoreUnavailable`."""
        ...


class FailoverLimitStore:
    """`primary` decides while it answers. When it does not: `fallback` decides (mode ``fallback``), this container's
    own buckets do (``open``; of money the fallback, for budgets of money never fail open), or nobody does (``closed``,
    `StoreClosed`)."""

    name = "failover"

    def __init__(
        self,
        primary: Primary,
        fallback: LimitStore | None,
        local: LimitStore,
        mode: Callable[[], FailureMode],
        *,
        outage_begins: Callable[[], None] = lambda: None,
    ) -> None:
        """`outage_begins` is called whenever the fallback begins to decide for the primary."""
        self._outage_begins = outage_begins
        self._primary = primary
        self._fallback = fallback
        self._local = local
        self._mode = mode
        self._breaker = Breaker(asyncio.get_running_loop().time)
        self._watcher: asyncio.Task[None] | None = None
        self._closing = False
        self._waiting: deque[Settlement | Admission] = deque(maxlen=MAX_WAITING)
        """What the primary has to be told: settlements, and admissions to be cancelled."""
        self._dropped = 0
        self._astray: Lru[bool] = Lru(MAX_WAITING)
        """Admissions whose answer was lost. The primary is not asked for them again: they are being cancelled there."""

    @property
    def deciding(self) -> str:
        """Which store decides now, or ``none``; for health and status."""
        if self._breaker.is_closed:
            return self._primary.name
        try:
            return self._second().name
        except StoreUnavailable:
            return "none"

    async def warm(self) -> None:
        """Connect to both stores, so that no request has to. One that does not answer is not waited for: the first
        request finds out."""
        stores = [self._primary, *([self._fallback] if self._fallback is not None else [])]
        await asyncio.gather(*(_answers(store) for store in stores))

    async def admit(self, admission: Admission) -> Decision:
        if self._breaker.is_closed and not (self._astray and self._astray.get(admission.id, False)):
            doubts = self._breaker.doubts
            try:
                return await self._primary.admit(admission)
            except Overloaded:
                raise
            except CannotDecide as error:
                telemetry.log("ERROR", "Redis cannot decide a request", reason=str(error))
            except StoreUnavailable as error:
                self._astray.put(admission.id, True)
                self._keep(admission)
                self._failed(error, doubts)
        second = self._second(admission)
        decision = await second.admit(admission)
        decision.local = second is self._local
        return decision

    async def look(self, admission: Admission) -> Decision:
        if self._breaker.is_closed:
            with contextlib.suppress(StoreUnavailable):  # whoever only looks puts nobody in doubt
                return await self._primary.look(admission)
        return await self._second(admission).look(admission)

    async def settle(self, settlement: Settlement) -> bool:
        if settlement.store == self._local.name:
            return await self._local.settle(settlement)
        if self._fallback is not None and settlement.store == self._fallback.name:
            return await self._fallback.settle(settlement)
        if self._breaker.is_closed:
            doubts = self._breaker.doubts
            try:
                return await self._primary.settle(settlement)
            except CannotDecide:
                return False
            except Overloaded:  # it is healthy, so only this waits
                self._keep(settlement)
                self._watch_it("Redis has too much to do")
                return False
            except StoreUnavailable as error:
                self._keep(settlement)
                self._failed(error, doubts)
                return False
        self._keep(settlement)
        return False

    async def replay(self, settlements: Sequence[Settlement]) -> int:
        """Each store settles what it admitted; where a record does not say which that was, both are asked."""

        async def own(store: LimitStore) -> int:
            return await store.replay([each for each in settlements if each.store in ("", store.name)])

        return sum(await self._everywhere(own))

    async def recall(self, takes: Sequence[Take], cold: Sequence[int]) -> list[int | None]:
        """What the fallback counted while the primary was away; nothing, where there is none or it does not answer
        either: then rates start full, as they would without it."""
        if self._fallback is None:
            return [None] * len(cold)
        try:
            return await self._fallback.recall(takes, cold)
        except StoreUnavailable:
            return [None] * len(cold)

    async def raise_floor(self, spent: Mapping[str, int]) -> None:
        await self._everywhere(lambda store: store.raise_floor(spent))

    async def publish(self, *, policy: int = 0, tenants: Mapping[str, int] | None = None) -> None:
        await self._everywhere(lambda store: store.publish(policy=policy, tenants=tenants))

    async def ping(self) -> None:
        await (self._primary if self._breaker.is_closed else self._second()).ping()

    async def aclose(self) -> None:
        self._closing = True
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        await self._primary.aclose()
        if self._fallback is not None:
            await self._fallback.aclose()

    def _second(self, admission: Admission | None = None) -> LimitStore:
        """Who decides for the primary: such an admission, or, without one, most."""
        mode = self._mode()
        if mode == "closed":
            raise StoreClosed("Redis does not answer, and nothing else may decide")
        if mode == "open" and (admission is None or not _counts_money(admission)):
            return self._local
        if self._fallback is None:
            raise StoreUnavailable("Redis does not answer, and there is no other store")
        return self._fallback

    async def _everywhere(self, act: Callable[[LimitStore], Awaitable[T]]) -> list[T]:
        """Tell both stores; the first failure is raised after both were told."""
        stores = [self._primary, *([self._fallback] if self._fallback is not None else [])]
        results = await asyncio.gather(*(act(store) for store in stores), return_exceptions=True)
        done: list[T] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            done.append(result)
        return done

    # -- while the primary is away

    def _keep(self, what: Settlement | Admission) -> None:
        if len(self._waiting) == MAX_WAITING:
            self._dropped += 1
        self._waiting.append(what)

    def _failed(self, error: StoreUnavailable, doubts: int) -> None:
        if self._breaker.failed(doubts):
            self._outage_begins()
            _metric(StoreDoubted=1)
            if self._breaker.is_open:
                self._opened(str(error))
        self._watch_it(str(error))

    def _watch_it(self, reason: str) -> None:
        if not self._closing and (self._watcher is None or self._watcher.done()):
            self._watcher = asyncio.get_running_loop().create_task(self._watch(reason))

    async def _watch(self, reason: str) -> None:
        """Ask the primary until it may be trusted; then tell it what it has missed, and let calls pass again."""
        standby = [_answers(self._fallback)] if self._fallback is not None else []  # its connection may be long gone
        done, *_ = await asyncio.gather(self._probe(reason), *standby)
        while not done:
            await asyncio.sleep(PROBE_EVERY)
            done = await self._probe(reason)

    async def _probe(self, reason: str) -> bool:
        """Ask once; True if the breaker is closed, and nothing waits any more."""
        breaker = self._breaker
        was_open = breaker.is_open
        ready = breaker.probed(await _answers(self._primary))
        if breaker.is_open and not was_open:
            self._opened(reason)
        if not ready:
            return False
        outage = breaker.outage_seconds()
        try:
            if was_open:
                await self._primary.reopen(int(outage * 1_000_000))
            told = await self._tell()
        except StoreUnavailable:
            breaker.probed(answered=False)
            return False
        breaker.close()
        if was_open:
            telemetry.log(
                "INFO",
                "Redis answers again; the breaker is closed",
                outage_seconds=round(outage, 1),
                settled=told,
                not_settled=self._dropped,
            )
            _metric(StoreBreakerClosed=1, StoreSettlementsDropped=self._dropped)
            self._dropped = 0
        return True

    async def _tell(self) -> int:
        """Settle and cancel what waits; how many there were. All of it may be told twice."""
        told = 0
        while self._waiting:
            some = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
            results = await asyncio.gather(*(self._tell_one(each) for each in some), return_exceptions=True)
            missed = [each for each, result in zip(some, results, strict=True) if result is not None]
            self._waiting.extendleft(reversed(missed))
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            told += len(some)
        return told

    async def _tell_one(self, waiting: Settlement | Admission) -> None:
        with contextlib.suppress(CannotDecide):
            if isinstance(waiting, Settlement):
                await self._primary.settle(waiting)
            else:
                await self._primary.cancel(waiting)

    def _opened(self, reason: str) -> None:
        telemetry.log("WARNING", "Redis does not answer; the breaker is open", reason=reason, mode=self._mode())
        _metric(StoreBreakerOpened=1)


def _counts_money(admission: Admission) -> bool:
    return any(limit.unit is Unit.MICROUSD for limit in Takes.of(admission.takes).footprint.limits)


async def _answers(store: LimitStore) -> bool:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            await store.ping()
    except (StoreUnavailable, TimeoutError):
        return False
    return True


def _metric(**values: int) -> None:
    telemetry.metric("Tollgate", {"service": telemetry.service()}, **values)
