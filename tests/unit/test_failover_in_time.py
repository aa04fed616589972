"""The failover store in virtual time: what it logs and counts, what it knows after a freeze, whom it waits for."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import pytest

from bench.simulator.virtual_time import WALL_CLOCK, VirtualTimeLoop, run
from tests.contract.test_limit_store import requests, tokens
from tollgate.adapters import failover
from tollgate.adapters.breaker import CALM, OPEN_AFTER
from tollgate.adapters.failover import (
    FIRST_PROBE,
    MAX_WAITING,
    PROBE_EVERY,
    PROBE_TIMEOUT,
    SPARED,
    FailoverLimitStore,
)
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.domain.limits import Admission, Decision, RateTake, Settlement, Status, Take
from tollgate.ports import CannotDecide, Overloaded, StoreUnavailable

NOON_US = 1_795_262_400_000_000
CALL_S = 0.001
HANG_S = 2.0
"""After which whoever asks a store that hangs gives up by itself, as the DynamoDB client does."""
HOUR_S = 3600.0


def now_us() -> int:
    return NOON_US + round(asyncio.get_running_loop().time() * 1e6)


class Store(MemoryLimitStore):
    """A store that takes a moment for everything, and in which a test says what goes wrong."""

    def __init__(self, name: str) -> None:
        super().__init__(now_us)
        self.name = name
        self.health: BaseException | None = None
        """What every call raises; `hanging`: after a long wait."""
        self.hanging = False
        self.call_s = CALL_S
        self.refuses: dict[str, BaseException] = {}
        """What single settlements raise, by their ids."""
        self.reopening: BaseException | None = None
        self.asked: Counter[str] = Counter()
        self.told: list[Settlement] = []
        self.outages_us: list[int] = []

    async def _asked(self, what: str) -> None:
        self.asked[what] += 1
        await asyncio.sleep(HANG_S if self.hanging else self.call_s)
        if self.hanging:
            raise StoreUnavailable("it hangs")
        if self.health is not None:
            raise self.health

    async def admit(self, admission: Admission) -> Decision:
        await self._asked("admit")
        return await super().admit(admission)

    async def settle(self, settlement: Settlement) -> bool:
        await self._asked("settle")
        if settlement.id in self.refuses:
            raise self.refuses[settlement.id]
        self.told.append(settlement)
        return await super().settle(settlement)

    async def recall(self, takes: Sequence[Take], cold: Sequence[int]) -> list[int | None]:
        await self._asked("recall")
        return await super().recall(takes, cold)

    async def ping(self) -> None:
        await self._asked("ping")

    async def reopen(self, outage_us: int) -> None:
        await self._asked("reopen")
        if self.reopening is not None:
            raise self.reopening
        self.outages_us.append(outage_us)

    async def cancel(self, admission: Admission) -> None:
        await self._asked("cancel")


@dataclass
class World:
    redis: Store = field(default_factory=lambda: Store("redis"))
    second: Store = field(default_factory=lambda: Store("second"))
    begun: list[float] = field(default_factory=list)
    """When the second store was told that it decides."""
    number: int = 0

    def __post_init__(self) -> None:
        self.loop = cast(VirtualTimeLoop, asyncio.get_running_loop())
        self.store = FailoverLimitStore(
            self.redis,
            self.second,
            MemoryLimitStore(now_us),
            lambda: "fallback",
            outage_begins=lambda: self.begun.append(self.loop.time()),
        )

    async def ask(self, take: RateTake | None = None) -> Decision:
        self.number += 1
        return await self.store.admit(Admission(f"r{self.number}", [take or tokens(1)], 60_000_000, "acme"))

    async def who_decides(self) -> str:
        return (await self.ask()).store

    async def settle(self, id: str) -> bool:
        return await self.store.settle(Settlement(id, [tokens(1)], [1], "acme", "redis"))

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(100_000):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise TimeoutError

    async def open(self) -> None:
        """Redis fails, until the breaker is open."""
        self.redis.health = StoreUnavailable("it is away")
        assert await self.who_decides() == "second"
        await self.until(lambda: self.store._breaker.is_open)

    def has_doubted(self, times: int) -> bool:
        return self.store._breaker.doubts == times

    async def close(self) -> None:
        self.redis.health = None
        await self.until(lambda: self.store.deciding == "redis")


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    WALL_CLOCK.set(now_us)
    await asyncio.sleep(10)  # a loop's time does not begin with its process
    made = World()
    try:
        yield made
    finally:
        await made.store.aclose()


def play(story: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with world() as made:
            await story(made)

    run(main(), seed=0)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[[], Counter[str]]:
    """What was logged and counted since the last time: lines by their message, metrics by their name."""

    def read() -> Counter[str]:
        found: Counter[str] = Counter()
        for line in capsys.readouterr().out.splitlines():
            record = json.loads(line)
            if "message" in record:
                found[record["message"]] += 1
            for name in (name for name in record if name.startswith("Store")):
                found[name] += record[name]
        return found

    return read


OPENED, CLOSED = "Redis does not answer; the breaker is open", "Redis answers again; the breaker is closed"
MISTAKEN = "a store was not asked as it should be"


class TestStates:
    @pytest.mark.parametrize("pings", [True, False])
    def test_opening_and_closing_are_logged_and_counted_once(
        self, told: Callable[[], Counter[str]], pings: bool
    ) -> None:
        """Whether Redis answers nothing, or every PING, as one does that may not be written to."""

        async def story(world: World) -> None:
            if pings:

                async def ping() -> None:
                    """Answered."""

                world.redis.ping = ping  # type: ignore[method-assign]
            await world.open()
            await asyncio.sleep(20)
            assert told() == {"StoreDoubted": 1, OPENED: 1, "StoreBreakerOpened": 1}
            await world.close()
            await asyncio.sleep(20)
            assert told() == {CLOSED: 1, "StoreBreakerClosed": 1, "StoreSettlementsDropped": 0}

        play(story)

    def test_a_hiccup_is_a_doubt_and_no_more(self, told: Callable[[], Counter[str]]) -> None:
        async def story(world: World) -> None:
            world.redis.health = StoreUnavailable("for a moment")
            await asyncio.gather(*(world.ask() for _ in range(50)))
            await world.close()
            await asyncio.sleep(20)
            assert told() == {"StoreDoubted": 1}

        play(story)

    def test_three_doubts_are_an_opening(self, told: Callable[[], Counter[str]]) -> None:
        async def story(world: World) -> None:
            for _ in range(3):
                world.redis.health = StoreUnavailable("for a moment")
                await world.ask()
                world.redis.health = None
                await asyncio.sleep(0.5)
            assert told() == {"StoreDoubted": 3, OPENED: 1, "StoreBreakerOpened": 1}
            await world.close()
            assert told() == {CLOSED: 1, "StoreBreakerClosed": 1, "StoreSettlementsDropped": 0}

        play(story)

    def test_a_doubt_that_follows_another_at_once_is_watched_too(self) -> None:
        """The watch of the first doubt still waits for the store that stands by, whose connection is long gone."""

        async def story(world: World) -> None:
            world.second.hanging, admit, lost = True, world.redis.admit, 2

            async def loses_two(admission: Admission) -> Decision:
                nonlocal lost
                if lost:
                    lost -= 1
                    raise StoreUnavailable("its reply was lost")
                return await admit(admission)

            world.redis.admit = loses_two  # type: ignore[method-assign]
            asked = []
            for doubts in (1, 2):
                asked.append(asyncio.create_task(world.ask()))
                await world.until(partial(world.has_doubted, doubts))
                await world.until(lambda: world.store._breaker.is_closed)
            assert await world.who_decides() == "redis"
            for each in asked:
                each.cancel()

        play(story)


class TestMistakes:
    def test_a_mistake_does_not_end_the_watch(self, told: Callable[[], Counter[str]]) -> None:
        async def story(world: World) -> None:
            await world.open()
            world.redis.health = KeyError("a mistake of ours")
            await asyncio.sleep(2)
            world.redis.health, world.redis.reopening = None, KeyError("another one")
            await asyncio.sleep(3)
            assert told()[MISTAKEN] > 1
            world.redis.reopening = None
            await world.close()
            assert told()[CLOSED] == 1

        play(story)

    def test_what_the_standby_answers_to_its_ping_does_not_matter(self, told: Callable[[], Counter[str]]) -> None:
        async def story(world: World) -> None:
            async def ping() -> None:
                raise KeyError("a mistake of ours")

            world.second.ping = ping  # type: ignore[method-assign]
            await world.open()
            assert told()[MISTAKEN] == 1
            await world.close()
            assert await world.who_decides() == "redis"

        play(story)

    def test_a_settlement_that_cannot_be_made_holds_up_no_other(self, told: Callable[[], Counter[str]]) -> None:
        async def story(world: World) -> None:
            await world.open()
            for name in ("before", "odd", "foreign", "after"):
                assert not await world.settle(name)
            world.redis.refuses = {"odd": KeyError("a mistake of ours"), "foreign": CannotDecide("not ours")}
            told()
            await world.close()
            assert [each.id for each in world.redis.told] == ["before", "after"]
            assert told() == {MISTAKEN: 1, CLOSED: 1, "StoreBreakerClosed": 1, "StoreSettlementsDropped": 1}

        play(story)


class TestWaiting:
    def test_what_has_waited_is_told_as_late_and_nothing_else(self) -> None:
        async def story(world: World) -> None:
            await world.settle("in time")
            await world.open()
            await world.settle("waits")
            await world.close()
            await world.settle("in time again")
            assert {each.id: each.late for each in world.redis.told} == {
                "in time": False,
                "waits": True,
                "in time again": False,
            }

        play(story)

    def test_the_oldest_are_dropped_and_counted(
        self, told: Callable[[], Counter[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also those that come while Redis is told of others, in vain."""
        monkeypatch.setattr(failover, "MAX_WAITING", 50)

        async def story(world: World) -> None:
            await world.open()
            for i in range(60):
                await world.settle(f"early {i}")
            settle, came = world.redis.settle, 0

            async def in_vain(settlement: Settlement) -> bool:
                nonlocal came
                if came < 30:
                    came += 1
                    await world.settle(f"meanwhile {came}")
                    raise StoreUnavailable("away again")
                return await settle(settlement)

            world.redis.settle = in_vain  # type: ignore[method-assign]
            told()
            await world.close()
            left = [each.id for each in world.redis.told]
            assert sorted(left) == sorted(
                [f"early {i}" for i in range(20, 60)] + [f"meanwhile {i}" for i in range(1, 31)]
            )
            assert told()["StoreSettlementsDropped"] == 20 + 1  # and the admission that was to be cancelled

        play(story)

    def test_what_a_busy_redis_was_not_told_is_counted_too(
        self, told: Callable[[], Counter[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(failover, "MAX_WAITING", 5)

        async def story(world: World) -> None:
            world.redis.health = Overloaded("too much to do")
            for i in range(8):
                await world.settle(f"s{i}")
            world.redis.health = None
            await world.until(lambda: not world.store._waiting)
            assert [each.id for each in world.redis.told] == [f"s{i}" for i in range(3, 8)]
            await asyncio.sleep(1)
            assert told() == {"StoreSettlementsDropped": 3}

        play(story)

    def test_enough_are_kept(self) -> None:
        assert MAX_WAITING == 10_000  # docs/architecture.md says so


class TestThaw:
    """A process that was frozen while the breaker was open."""

    @pytest.mark.parametrize("after_s", [0.0, CALL_S / 2, 1.5 * CALL_S, 2.5 * CALL_S, 3.5 * CALL_S])
    @pytest.mark.parametrize("asleep_s", [0.0, 0.1])
    def test_one_probe_decides_first_and_all_share_it(self, after_s: float, asleep_s: float) -> None:
        """Redis has long been back. Whenever the requests come, before the watch is awake or while it probes, nobody
        goes to the second store."""

        async def story(world: World) -> None:
            await world.open()
            await asyncio.sleep(PROBE_EVERY + asleep_s)
            world.loop.freeze(HOUR_S)
            world.redis.health = None
            world.redis.asked.clear()
            if after_s:
                await asyncio.sleep(after_s)
            woke = world.loop.time()
            decided = await asyncio.gather(*(world.who_decides() for _ in range(10)))
            assert decided == ["redis"] * 10
            assert world.loop.time() - woke < FIRST_PROBE
            assert world.redis.asked["ping"] <= 2  # one may have been under way when it was frozen
            assert world.redis.outages_us[0] >= HOUR_S * 1e6

        play(story)

    def test_one_that_is_being_told_what_waits_has_answered(self) -> None:
        """That takes longer than anybody waits for a probe; it is no failed probe, which would begin another outage."""

        async def story(world: World) -> None:
            await world.open()
            for number in range(2_000):
                await world.settle(f"s{number}")
            world.redis.call_s = 0.01
            world.loop.freeze(HOUR_S)
            world.redis.health = None

            async def later(after_s: float) -> str:
                await asyncio.sleep(after_s)
                return await world.who_decides()

            await asyncio.gather(*(later(0.02 * i) for i in range(15)))
            await world.close()
            assert len(world.begun) == 2, "the old one, and the freeze"
            assert len(world.redis.outages_us) == 1
            assert len(world.redis.told) == 2_000

        play(story)

    @pytest.mark.parametrize("hanging", [True, False])
    def test_where_redis_is_away_the_outage_is_another_one(self, hanging: bool) -> None:
        """The second store is told again that it decides; what it knew of the old outage is not to be believed."""

        async def story(world: World) -> None:
            await world.open()
            assert len(world.begun) == 1
            world.redis.hanging = hanging
            world.loop.freeze(HOUR_S)
            woke = world.loop.time()
            decided = await asyncio.gather(*(world.ask() for _ in range(10)))
            assert [decision.store for decision in decided] == ["second"] * 10
            assert world.loop.time() - woke <= FIRST_PROBE + 2 * CALL_S
            assert world.begun[1] >= woke
            assert all(decision.now_us >= NOON_US + world.begun[1] * 1e6 for decision in decided)
            await asyncio.sleep(60)
            assert len(world.begun) == 2, "and it stays that one"
            world.redis.hanging = False
            await world.close()
            assert 0 < world.redis.outages_us[0] / 1e6 - 60 < 10

        play(story)

    def test_who_was_awake_asks_for_a_calm(self) -> None:
        async def story(world: World) -> None:
            await world.open()
            world.redis.health = None
            back = world.loop.time()
            await world.until(lambda: world.store._breaker.is_closed)
            assert CALM <= world.loop.time() - back < CALM + 2 * PROBE_EVERY

        play(story)

    def test_a_frozen_doubt_is_decided_by_a_probe_too(self) -> None:
        async def story(world: World) -> None:
            world.redis.health = StoreUnavailable("away")
            await world.ask()
            assert not world.store._breaker.is_closed
            assert not world.store._breaker.is_open
            world.loop.freeze(HOUR_S)
            await asyncio.gather(*(world.ask() for _ in range(3)))
            assert len(world.begun) == 2
            assert not world.store._breaker.is_open, "an hour of sleep is no hour without an answer"
            await asyncio.sleep(OPEN_AFTER + PROBE_EVERY)
            assert world.store._breaker.is_open

        play(story)

    def test_who_was_not_frozen_waits_for_no_probe(self) -> None:
        async def story(world: World) -> None:
            await world.open()
            world.redis.hanging = True
            for _ in range(50):
                began = world.loop.time()
                assert await world.who_decides() == "second"
                assert world.loop.time() - began == pytest.approx(CALL_S)
                await asyncio.sleep(0.2)
            assert len(world.begun) == 1

        play(story)


class TestBothAway:
    def test_who_comes_after_one_has_waited_in_vain_does_not_wait(self) -> None:
        async def story(world: World) -> None:
            await world.open()
            world.second.hanging = True
            waited = []
            for _ in range(100):
                began = world.loop.time()
                with pytest.raises(StoreUnavailable):
                    await world.ask()
                waited.append(world.loop.time() - began)
                await asyncio.sleep(0.1)
            assert waited == [pytest.approx(HANG_S), *[0.0] * 99]
            world.second.hanging = False
            await asyncio.sleep(PROBE_TIMEOUT + PROBE_EVERY + CALL_S)
            assert await world.who_decides() == "second"

        play(story)

    def test_after_a_freeze_the_standby_is_asked_again(self) -> None:
        async def story(world: World) -> None:
            await world.open()
            world.second.hanging = True
            with pytest.raises(StoreUnavailable):
                await world.ask()
            world.second.hanging = False
            world.loop.freeze(HOUR_S)
            assert await world.who_decides() == "second"

        play(story)

    def test_one_that_fails_among_others_that_are_answered_spares_nobody(self) -> None:
        """A reply that was lost, or one subject that is throttled: the others are answered."""

        async def story(world: World) -> None:
            await world.open()
            admit = world.second.admit

            async def sometimes(admission: Admission) -> Decision:
                if admission.id == "lost":
                    await asyncio.sleep(HANG_S)
                    raise StoreUnavailable("nobody can tell")
                if admission.id == "throttled":
                    await asyncio.sleep(PROBE_TIMEOUT)
                    raise Overloaded("too many writes of it")
                return await admit(admission)

            world.second.admit = sometimes  # type: ignore[method-assign]
            lost = asyncio.create_task(world.store.admit(Admission("lost", [tokens(1)], 60_000_000, "acme")))
            await asyncio.sleep(HANG_S / 2)
            assert await world.who_decides() == "second"
            with pytest.raises(StoreUnavailable):
                await lost
            assert await world.who_decides() == "second"
            await asyncio.sleep(1)
            with pytest.raises(Overloaded):
                await world.store.admit(Admission("throttled", [tokens(1)], 60_000_000, "acme"))
            assert await world.who_decides() == "second"

        play(story)

    def test_one_that_fails_at_once_holds_nobody_up_and_is_asked_again(self) -> None:
        async def story(world: World) -> None:
            await world.open()
            world.second.health = StoreUnavailable("connection refused")
            with pytest.raises(StoreUnavailable):
                await world.ask()
            world.second.health = None
            assert await world.who_decides() == "second"

        play(story)

    def test_it_is_told_once(self, told: Callable[[], Counter[str]]) -> None:
        async def story(world: World) -> None:
            await world.open()
            world.second.hanging = True
            for _ in range(20):
                with pytest.raises(StoreUnavailable):
                    await world.ask()
                await asyncio.sleep(SPARED)
            assert told()["what stands by for Redis does not answer either"] == 1

        play(story)


class TestRecall:
    def test_what_cannot_be_recalled_is_half_empty_by_the_clock_of_redis(self) -> None:
        async def story(world: World) -> None:
            take, ahead = requests(60, burst=60), 7_000_000_000

            async def cold(admission: Admission) -> Decision:
                return Decision(Status.COLD, now_us() + ahead, cold=(0,), store="redis")

            world.redis.admit = cold  # type: ignore[method-assign]
            assert (await world.ask(take)).cold == (0,)
            asked_us = now_us() + ahead
            assert await world.store.recall([take], [0]) == [None], (
                "it answers that it knows nothing: then there is nothing"
            )
            world.second.health = Overloaded("throttled")
            assert await world.store.recall([take, tokens(1)], [0, 1]) == [
                asked_us + take.limit.burst_us // 2,
                asked_us + tokens(1).limit.burst_us // 2,
            ]

        play(story)
