"""Redis first, DynamoDB when it does not answer: one limit store made of two.

A call that Redis does not answer is decided by DynamoDB at once, so callers see no error, and until a probe has found
out more nobody else waits for Redis. Before a Redis that was away is trusted again it starts a new epoch: budgets are
loaded from the ledger once more and rates from DynamoDB, because both have moved meanwhile (docs/architecture.md,
"When a store fails").
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from tollgate.adapters import telemetry
from tollgate.adapters.breaker import Breaker
from tollgate.adapters.lru import Lru
from tollgate.adapters.patience import within
from tollgate.domain.limits import Admission, Decision, FailureMode, RateTake, Settlement, Take, Unit
from tollgate.domain.takes import Takes
from tollgate.ports import CannotDecide, LimitStore, Overloaded, StoreClosed, StoreUnavailable

T = TypeVar("T")
PROBE_EVERY = 0.25
"""Seconds between two probes."""
PROBE_TIMEOUT = 0.5
"""Seconds for one probe, a new connection included."""
FIRST_PROBE = 0.1
"""Seconds that a request waits for the first probe after a freeze; as long as for a reply."""
SPARED = 1.0
"""Seconds for which nobody waits for a fallback that let somebody wait in vain, unless a probe is answered before."""
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
        same_for_all: bool = False,
        outage_begins: Callable[[], None] = lambda: None,
    ) -> None:
        """`same_for_all`: whether the mode counts whatever a plan or a tenant says. `outage_begins` is called whenever
        the fallback begins to decide for the primary."""
        self._same_for_all = same_for_all
        self._outage_begins = outage_begins
        self._clock = asyncio.get_running_loop().time
        self._primary = primary
        self._fallback = fallback
        self._local = local
        self._mode = mode
        self._breaker = Breaker(self._clock)
        self._reason = ""
        """What the call met that put the primary in doubt."""
        self._watcher: asyncio.Task[None] | None = None
        self._probed_once = asyncio.Event()
        """Lets go, at the end of each probe, who waits for one."""
        self._closing = False
        self._returning = False
        """Whether the primary answers, and is being told what it has missed."""
        self._spared_until = 0.0
        """When the fallback is waited for again; 0: it answers, as far as is known."""
        self._heard_at = -math.inf
        """When the fallback answered last."""
        self._cold_us = 0
        """The primary's clock, when it last asked for what it lacks."""
        self._waiting: deque[Settlement | Admission] = deque()
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
        may_ask = self._breaker.is_closed or await self._closes_after_all()
        if may_ask and not (self._astray and self._astray.get(admission.id, False)):
            doubts = self._breaker.doubts
            try:
                decision = await self._primary.admit(admission)
                if decision.cold:
                    self._cold_us = decision.now_us
                return decision
            except Overloaded:
                raise
            except CannotDecide as error:
                telemetry.log("ERROR", "Redis cannot decide a request", reason=str(error))
            except StoreUnavailable as error:
                self._astray.put(admission.id, True)
                self._keep(admission)
                self._failed(error, doubts)
        second = self._second(admission)
        if second is self._local:
            decision = await second.admit(admission)
            decision.local = True
            return decision
        return await self._ask_fallback(lambda: second.admit(admission))

    async def look(self, admission: Admission) -> Decision:
        if self._breaker.is_closed:
            with contextlib.suppress(StoreUnavailable):  # whoever only looks puts nobody in doubt
                decision = await self._primary.look(admission)
                if decision.cold:
                    self._cold_us = decision.now_us
                return decision
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
                self._watch_it()
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
        """What the fallback counted while the primary was away. Where it does not answer, rates are taken to be half
        empty, as it takes those that it does not know: full, they could give a burst twice. Without a fallback nobody
        knows anything, and they start full."""
        if (fallback := self._fallback) is None:
            return [None] * len(cold)
        try:
            return await self._ask_fallback(lambda: fallback.recall(takes, cold))
        except StoreUnavailable:
            rates = [take for i in cold if isinstance(take := takes[i], RateTake)]
            return [self._cold_us + take.limit.burst_us // 2 for take in rates]

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
        if admission is not None and admission.failure_mode is not None and not self._same_for_all:
            mode = admission.failure_mode
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

    async def _ask_fallback(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Its answer. Once it has let somebody wait in vain, and answered nobody meanwhile, nobody waits for it for a
        moment: who would ask it is told at once that it does not answer."""
        began = self._clock()
        if began < self._spared_until:
            raise StoreUnavailable("neither Redis nor what stands by for it answers")
        try:
            answer = await ask()
        except Overloaded:
            raise
        except StoreUnavailable as error:
            now = self._clock()
            if self._heard_at < began <= now - PROBE_TIMEOUT:
                if not self._spared_until:
                    telemetry.log("WARNING", "what stands by for Redis does not answer either", reason=str(error))
                self._spared_until = now + SPARED
            raise
        self._heard_at, self._spared_until = self._clock(), 0.0
        return answer

    # -- while the primary is away

    def _keep(self, what: Settlement | Admission) -> None:
        self._waiting.append(what)
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self._dropped += 1

    def _failed(self, error: StoreUnavailable, doubts: int) -> None:
        if self._breaker.failed(doubts):
            self._reason = str(error)
            self._outage_begins()
            _metric(StoreDoubted=1)
            if self._breaker.is_open:
                self._opened()
        self._watch_it()

    async def _closes_after_all(self) -> bool:
        """Whether the breaker, which is not closed, is so after a probe: one that is stale tells nothing. All wait for
        the same probe, which the watcher makes as soon as it is awake; one that takes too long has failed."""
        if self._breaker.is_stale:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._probed_once.wait(), FIRST_PROBE)
            if self._breaker.is_stale and not self._returning:
                self._probed(answered=False)
        return self._breaker.is_closed

    def _watch_it(self) -> None:
        if not self._closing and (self._watcher is None or self._watcher.done()):
            self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        """Ask the primary until it may be trusted; then tell it what it has missed, and let calls pass again."""
        wake = True  # the fallback, whose connection may be long gone
        while True:
            await asyncio.gather(self._probe(), *([self._probe_fallback()] if wake or self._spared_until else []))
            if self._breaker.is_closed and not self._waiting:
                return
            wake = False
            await asyncio.sleep(PROBE_EVERY)

    async def _probe(self) -> None:
        """Ask once. A mistake of ours must not end the watch: then nobody would ever ask the primary again."""
        try:
            if self._probed(await self._primary_answers()):
                self._returning = True
                await self._close()
        except StoreUnavailable:
            self._probed(answered=False)
        except Exception as error:  # noqa: BLE001 - see above
            _mistaken(error)
            self._probed(answered=False)
        self._returning = False
        self._probed_once.set()
        self._probed_once.clear()

    async def _primary_answers(self) -> bool:
        """What was asked before a freeze tells nothing after it."""
        return await _answers(self._primary) or (self._breaker.is_stale and await _answers(self._primary))

    async def _probe_fallback(self) -> None:
        if self._fallback is not None:
            answered = await _answers(self._fallback)
            if self._spared_until:
                self._spared_until = 0.0 if answered else self._clock() + SPARED

    def _probed(self, answered: bool) -> bool:
        """Count a probe; True if the breaker may close."""
        breaker, was_open = self._breaker, self._breaker.is_open
        if breaker.is_stale:
            self._outage_begins()
        ready = breaker.probed(answered)
        if breaker.is_open and not was_open:
            self._opened()
        return ready

    async def _close(self) -> None:
        """Tell the primary what it has missed, and let calls pass. Raises `StoreUnavailable`."""
        was_open, outage = self._breaker.is_open, self._breaker.outage_seconds()
        if was_open:
            await self._primary.reopen(int(outage * 1_000_000))
        told = await self._tell()
        if self._breaker.is_open and not was_open:
            return  # it has opened meanwhile
        self._breaker.close()
        dropped, self._dropped = self._dropped, 0
        if was_open:
            telemetry.log(
                "INFO",
                "Redis answers again; the breaker is closed",
                outage_seconds=round(outage, 1),
                settled=told,
                not_settled=dropped,
            )
            _metric(StoreBreakerClosed=1)
        if was_open or dropped:
            _metric(StoreSettlementsDropped=dropped)

    async def _tell(self) -> int:
        """Settle and cancel what waits; how many there were. All of it may be told twice."""
        told = 0
        while self._waiting:
            some = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
            results = await asyncio.gather(*(self._tell_one(each) for each in some), return_exceptions=True)
            missed = [each for each, result in zip(some, results, strict=True) if result is not None]
            self._waiting.extendleft(reversed(missed))
            self._drop_oldest()
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            self._breaker.probed(answered=True)
            told += len(some)
        return told

    async def _tell_one(self, waiting: Settlement | Admission) -> None:
        try:
            if isinstance(waiting, Settlement):
                waiting.late = True
                await self._primary.settle(waiting)
            else:
                await self._primary.cancel(waiting)
        except CannotDecide:
            return
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - a mistake that would be made again, and hold up all others
            self._dropped += 1
            _mistaken(error)

    def _opened(self) -> None:
        telemetry.log("WARNING", "Redis does not answer; the breaker is open", reason=self._reason, mode=self._mode())
        _metric(StoreBreakerOpened=1)


def _counts_money(admission: Admission) -> bool:
    return any(limit.unit is Unit.MICROUSD for limit in Takes.of(admission.takes).footprint.limits)


async def _answers(store: LimitStore) -> bool:
    try:
        await within(PROBE_TIMEOUT, store.ping())
    except (StoreUnavailable, TimeoutError):
        return False
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
        _mistaken(error)
        return False
    return True


def _mistaken(error: Exception) -> None:
    telemetry.log("ERROR", "a store was not asked as it should be", reason=repr(error), where=telemetry.where(error))


def _metric(**values: int) -> None:
    telemetry.metric("Tollgate", {"service": telemetry.service()}, **values)
