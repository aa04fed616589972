"""Replies that are lost after Redis has done the work, commands that arrive too late, scripts that are forgotten."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial

import pytest

from tests.fault_proxy import FaultProxy
from tests.faults.rig import (
    MINUTE,
    Container,
    Redis,
    budget,
    charged,
    containers,
    direct,
    run,
    say,
    scarcely,
    until,
)
from tests.redis_cluster import Cluster
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.redis_cluster import hash_tag, slot_of
from tollgate.adapters.redis_cluster_limits import RedisClusterLimitStore
from tollgate.adapters.redis_connection import RedisNode
from tollgate.adapters.redis_limits import RedisLimitStore
from tollgate.domain import keys
from tollgate.domain.limits import Admission, Rate, RateTake, Scope, Settlement, Unit
from tollgate.ports import StoreUnavailable

LOST = 1_000


async def answered(act: Callable[[], Awaitable[object]]) -> None:
    """Call until there is an answer: a busy machine may be late for 40 ms, too."""
    for _ in range(100):
        with suppress(StoreUnavailable):
            await act()
            return
    raise AssertionError("no answer")


def test_who_asks_again_with_the_same_id_is_charged_once(redis: Redis) -> None:
    """1,000 admissions and 1,000 settlements, each of whose first replies is lost, half of them with the connection."""

    async def scenario() -> None:
        rate = scarcely()

        async def client(number: int, share: int) -> None:
            async with (
                FaultProxy(redis.port) as proxy,
                direct(f"redis://127.0.0.1:{proxy.port}", reply_timeout=0.04) as container,
            ):
                store = container.store
                await answered(store.ping)

                async def insist(act: Callable[[], Awaitable[object]], close: bool) -> None:
                    """Make a call whose first reply is lost, until there is an answer."""
                    lost = proxy.dropped
                    proxy.drop_replies(1, close=close)
                    await answered(act)
                    assert proxy.dropped == lost + 1

                for i in range(share):
                    tokens = budget(100, 10_000_000)
                    tokens.seed = 0
                    call = Admission(uuid.uuid4().hex, [scarcely(), tokens], MINUTE, "acme")
                    used = Settlement(call.id, call.takes, [None, 30], "acme")
                    await insist(partial(store.admit, call), i % 2 == 0)
                    await insist(partial(store.settle, used), i % 2 == 0)

        clients = 20
        await asyncio.gather(*(client(i, LOST // clients) for i in range(clients)))
        async with direct(redis.url) as reader:
            _, decision = await reader.ask(scarcely(), budget(0, 10_000_000))
        say(f"{2 * LOST} replies lost: {charged(rate, decision.values[0], decision.now_us) - 1} requests charged")
        assert charged(rate, decision.values[0], decision.now_us) == LOST + 1
        assert decision.values[1] == LOST * 30

    run(scenario)


def test_on_a_cluster_too_who_asks_again_with_the_same_id_is_charged_once(cluster: Cluster) -> None:
    """The same in two slots of two nodes, of which the one and the other loses replies: what the other took is given
    back, and taken again."""

    async def scenario() -> None:
        user, everyone = slot_of(hash_tag(scarcely().key)), slot_of(hash_tag(by_address().key))
        losing = [cluster.owner(user), cluster.owner(everyone)]
        assert losing[0] != losing[1]

        async def client(share: int) -> None:
            async with AsyncExitStack() as stack:
                ways = [await stack.enter_async_context(FaultProxy(port)) for port in cluster.ports]
                store = RedisClusterLimitStore(f"redis://127.0.0.1:{ways[0].port}?cluster=yes", reply_timeout=0.04)
                stack.push_async_callback(store.aclose)
                lead_through(store, ways)
                await answered(store.ping)

                async def insist(act: Callable[[], Awaitable[object]], number: int) -> None:
                    """Make a call of which one node's first reply is lost, until there is an answer."""
                    way = ways[losing[number % 2]]
                    lost = way.dropped
                    way.drop_replies(1, close=number % 4 < 2)
                    await answered(act)
                    assert way.dropped == lost + 1

                for i in range(share):
                    tokens = budget(100, 10_000_000)
                    tokens.seed = 0
                    call = Admission(uuid.uuid4().hex, [scarcely(), by_address(), tokens], MINUTE, "acme")
                    used = Settlement(call.id, call.takes, [None, None, 30], "acme")
                    await insist(partial(store.admit, call), i)
                    await insist(partial(store.settle, used), i // 2)

        await asyncio.gather(*(client(LOST // 20) for _ in range(20)))
        async with direct(cluster.url) as reader:
            rates = [scarcely(), by_address()]
            _, decision = await reader.ask(*rates, budget(0, 10_000_000))
        found = [charged(rate, tat, decision.now_us) for rate, tat in zip(rates, decision.values, strict=False)]
        say(f"{2 * LOST} replies of a cluster lost: {found[0] - 1} and {found[1] - 1} requests charged")
        assert found == [LOST + 1, LOST + 1]
        assert decision.values[2] == LOST * 30

    run(scenario)


def by_address() -> RateTake:
    """As `scarcely`, in another slot."""
    subject = keys.ip_subject("192.0.2.3")
    limit = Rate(Scope.IP, Unit.REQUESTS, 1, MINUTE, 100_000, "ip.requests.minute")
    return RateTake(subject, f"{subject}:{limit.id}", limit, 1, 1)


def lead_through(store: RedisClusterLimitStore, ways: list[FaultProxy]) -> None:
    """Have the store reach each node through its proxy, as if that were the place that the slot map tells."""
    ports, node = {way.target: way.port for way in ways}, store._cluster._node

    def through(host: str, port: int, hostname: str | None = None) -> RedisNode:
        return node(host, ports.get(port, port), hostname)

    store._cluster._node = through  # type: ignore[method-assign]  # where nodes are


def test_what_the_fallback_decided_instead_is_charged_once_in_all(redis: Redis) -> None:
    """1,000 admissions whose replies are lost are decided by the fallback. Redis gives back what it took, requests
    included, so that both together have charged 1,000."""

    async def scenario() -> None:
        async with FaultProxy(redis.port) as proxy:
            second = MemoryLimitStore()
            url = f"redis://127.0.0.1:{proxy.port}"
            async with containers(url, lambda: second, count=20) as crowd:
                rate, tokens = scarcely(), budget(10, 10_000_000)
                await asyncio.gather(*(each.store.ping() for each in crowd))
                proxy.drop_replies(None)

                async def one(number: int) -> None:
                    admission, decision = await crowd[number % 20].ask(scarcely(), tokens)
                    assert (decision.admitted, decision.store) == (True, "second")
                    taken = admission.takes
                    await crowd[0].store.settle(Settlement(admission.id, taken, [None, 7], "acme", decision.store))

                await asyncio.gather(*(one(i) for i in range(LOST)))
                assert proxy.dropped > 0
                proxy.drop_replies(0)
                await until(lambda: all(each.failover.deciding == "redis" for each in crowd))
                assert not any(each.failover._waiting for each in crowd)
            async with direct(redis.url) as reader:
                reader.books.spent_of[tokens.key] = 7 * LOST
                _, there = await reader.ask(scarcely(), budget(0, 10_000_000))
            _, here = await Container(second).ask(scarcely(), budget(0, 10_000_000))
            in_redis = charged(rate, there.values[0], there.now_us) - 1
            in_second = charged(rate, here.values[0], here.now_us) - 1
            say(f"{LOST} replies lost: {in_redis} requests charged in Redis, {in_second} in the fallback")
            assert in_redis + in_second == LOST
            assert there.values[1] == here.values[1] == 7 * LOST

    run(scenario)


def test_an_admission_that_arrives_after_it_was_cancelled_takes_nothing(redis: Redis) -> None:
    """The network holds the command back, the caller gives up and cancels on another way; then it arrives."""

    async def scenario() -> None:
        async with FaultProxy(redis.port) as proxy:
            slow = RedisLimitStore(f"redis://127.0.0.1:{proxy.port}")
            fast = RedisLimitStore(redis.url)
            await slow.ping()
            tokens = budget(100, 10_000)
            tokens.seed = 0
            call = Admission(uuid.uuid4().hex, [scarcely(), tokens], MINUTE, "acme")
            proxy.latency_s = 0.5
            with pytest.raises(StoreUnavailable):
                await slow.admit(call)
            await fast.cancel(call)
            await fast.cancel(call)
            with redis.client() as client:
                calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
                await until(lambda: client.info("commandstats")["cmdstat_evalsha"]["calls"] > calls)
            _, decision = await Container(fast).ask(scarcely(), tokens)
            assert charged(scarcely(), decision.values[0], decision.now_us) == 1
            assert decision.values[1] == 100
            await fast.aclose()
            await slow.aclose()

    run(scenario)


def test_an_admission_is_not_asked_for_again_where_it_is_being_cancelled(redis: Redis) -> None:
    """The fallback says COLD; by then Redis answers again, but that request stays with the fallback."""

    async def scenario() -> None:
        async with FaultProxy(redis.port) as proxy:
            second = MemoryLimitStore()
            async with containers(f"redis://127.0.0.1:{proxy.port}", lambda: second) as (container,):
                await container.ask(scarcely())
                call = Admission(uuid.uuid4().hex, [scarcely(), budget(100, 1_000)], MINUTE, "acme")
                call.takes[1].seed = 0  # type: ignore[union-attr]  # a budget
                proxy.drop_replies(1)
                call.takes[1].seed = None  # type: ignore[union-attr]  # a budget
                assert not (await container.store.admit(call)).admitted
                await until(lambda: container.failover.deciding == "redis")
                call.takes[1].seed = 0  # type: ignore[union-attr]  # a budget
                decision = await container.store.admit(call)
                assert (decision.admitted, decision.store) == (True, "second")
                await container.store.settle(Settlement(call.id, call.takes, [None, 40], "acme", decision.store))
                assert (await Container(second).ask(budget(0, 1_000)))[1].values[0] == 40

    run(scenario)


def test_scripts_are_forgotten_all_the_time(either: Redis | Cluster) -> None:
    """SCRIPT FLUSH every 50 ms for 30 s, on every node: no error, and every request charged once."""

    async def scenario() -> None:
        async with containers(either.url, None, count=4, reply_timeout=5) as four:
            over, admitted = asyncio.Event(), 0

            async def flush() -> int:
                flushes = 0
                nodes = either.nodes if isinstance(either, Cluster) else [either.client()]
                while not over.is_set():
                    for node in nodes:
                        await asyncio.to_thread(node.script_flush)
                    flushes += 1
                    await asyncio.sleep(0.05)
                return flushes

            async def call(container: Container) -> None:
                nonlocal admitted
                while not over.is_set():
                    decision = await container.use(scarcely(), budget(10, 10_000_000), used=[None, 3])
                    assert (decision.admitted, decision.store) == (True, "redis")
                    admitted += 1
                    await asyncio.sleep(0.002)

            flushing = asyncio.create_task(flush())
            calls = [asyncio.create_task(call(container)) for container in four for _ in range(3)]
            await asyncio.sleep(30)
            over.set()
            await asyncio.gather(*calls)
            say(f"SCRIPT FLUSH: {await flushing} times during {admitted} requests")
            assert all(container.failover._breaker.doubts == 0 for container in four)
            _, decision = await four[0].ask(scarcely(), budget(0, 10_000_000))
            assert charged(scarcely(), decision.values[0], decision.now_us) == admitted + 1
            assert decision.values[1] == 3 * admitted

    run(scenario)
