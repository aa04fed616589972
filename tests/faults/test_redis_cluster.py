"""A Redis Cluster whose slots move, whose masters die, and whose groups disagree."""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import pytest

from tests.contract.test_limit_store import USER, budget, slot
from tests.faults import rig
from tests.faults.rig import containers, load, outage_bound, run, say, until
from tests.redis_cluster import Cluster, redis_cluster
from tollgate.adapters.failover import FailoverLimitStore
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.redis_cluster import REFRESH_EVERY, Call, hash_tag, slot_of
from tollgate.adapters.redis_cluster_limits import SUSPECT, RedisClusterLimitStore, _groups
from tollgate.domain import keys
from tollgate.domain.limits import (
    Admission,
    Decision,
    Rate,
    RateTake,
    Scope,
    Settlement,
    Status,
    Take,
    Unit,
    refusal,
    remaining,
)
from tollgate.domain.takes import Takes
from tollgate.ports import CannotDecide, Overloaded, StoreUnavailable

TENANT_SLOT = slot_of(hash_tag(keys.tenant_subject("acme")))
MINUTE = 60_000_000
DAY = 1440 * MINUTE
"""The period of the limits here: they do not refill while a test runs."""


@asynccontextmanager
async def opened(
    cluster: Cluster, count: int = 1, reply_timeout: float = 2
) -> AsyncIterator[list[RedisClusterLimitStore]]:
    stores = [RedisClusterLimitStore(cluster.url, reply_timeout=reply_timeout) for _ in range(count)]
    try:
        yield stores
    finally:
        for store in stores:
            await store.aclose()


def admission(*takes: Take, **versions: int) -> Admission:
    return Admission(uuid.uuid4().hex, list(takes), MINUTE, "acme", **versions)


def rate(subject: str, scope: Scope, amount: int, cost: int) -> RateTake:
    limit = Rate(scope, Unit.REQUESTS, amount, DAY, amount, f"{scope}.requests.day")
    return RateTake(subject, f"{subject}:requests.day", limit, cost, cost)


def requests(amount: int) -> RateTake:
    return rate(USER, Scope.USER, amount, 1)


def by_address(amount: int, ip: str = "192.0.2.3", cost: int = 1) -> RateTake:
    return rate(keys.ip_subject(ip), Scope.IP, amount, cost)


def everywhere(amount: int) -> RateTake:
    return rate(keys.global_subject(), Scope.GLOBAL, amount, 1)


def now_budget(cost: int, amount: int = 1000, seed: int | None = 0) -> Take:
    return budget(cost, amount=amount, seed=seed, at=time.time_ns() // 1000)


@contextmanager
def answering(store: RedisClusterLimitStore, failures: dict[int, StoreUnavailable], count: int = 3) -> Iterator[None]:
    """The first round of so many calls is made, but some of its answers are replaced."""
    real = store._cluster.run
    waiting = [failures]

    async def run_calls(calls: Sequence[Call], **options: bool) -> list[Any]:
        replies = await real(calls, **options)
        if waiting and len(calls) == count:
            for place, failure in waiting.pop().items():
                replies[place] = failure
        return replies

    store._cluster.run = run_calls  # type: ignore[method-assign]  # a spy
    yield
    store._cluster.run = real  # type: ignore[method-assign]
    assert not waiting


async def levels(store: RedisClusterLimitStore, *takes: Take) -> list[int]:
    """What each limit has left, asked with a request that cannot be admitted."""
    blocker = by_address(1, "198.51.100.99", cost=2)
    blocker.seed_us = 0
    decision = await store.admit(admission(blocker, *takes))
    assert decision.status is Status.REFUSED
    return [remaining(take, value, decision.now_us) for take, value in zip(takes, decision.values[1:], strict=True)]


class TestAllOrNothing:
    def test_a_refusal_in_one_slot_leaves_the_others_untouched(self, cluster: Cluster) -> None:
        async def scenario() -> None:
            async with opened(cluster) as (store,):
                takes = [everywhere(50), requests(10), now_budget(300), slot(1)]
                assert (await store.admit(admission(by_address(1)))).admitted
                for _ in range(20):  # the first is given back, the others are only looked at
                    refused = await store.admit(admission(by_address(1), *takes))
                    assert refused.status is Status.REFUSED
                    assert not any(refused.granted)
                assert await levels(store, *takes) == [50, 10, 1000, 1]
                assert (await store.admit(admission(*takes))).admitted

        run(scenario)

    def test_a_request_that_was_given_back_may_come_again(self, cluster: Cluster) -> None:
        async def scenario() -> None:
            async with opened(cluster) as (store,):
                call = admission(requests(1), by_address(5), now_budget(100, seed=None))
                assert (await store.admit(call)).status is Status.COLD
                call.takes[2].seed = 950  # of the budget
                assert (await store.admit(call)).status is Status.REFUSED
                call.takes[2] = now_budget(50)
                assert (await store.admit(call)).admitted
                used: list[int | None] = [None, None, 20]
                assert await store.settle(Settlement(call.id, call.takes, used, "acme"))
                assert not await store.settle(Settlement(call.id, call.takes, used, "acme"))
                assert await levels(store, call.takes[2]) == [30]

        run(scenario)

    def test_never_more_than_the_tightest_limit_however_many_ask_at_once(self, cluster: Cluster) -> None:
        """Transient refusals are allowed; what is left over can be had afterwards, and not one more."""

        async def scenario() -> None:
            async with opened(cluster, 4) as stores:
                takes = [requests(90), by_address(60), everywhere(1000)]
                answers = await asyncio.gather(*(stores[i % 4].admit(admission(*takes)) for i in range(400)))
                together = sum(answer.admitted for answer in answers)
                assert 0 < together <= 60
                await asyncio.sleep(0)
                after = 0
                while (await stores[0].admit(admission(*takes))).admitted:
                    after += 1
                assert together + after == 60
                assert await levels(stores[0], *takes) == [30, 0, 940]

        run(scenario)

    def test_a_flood_from_a_blocked_address_does_not_starve_its_tenant(self, cluster: Cluster) -> None:
        """The tenant has exactly as many requests left as its good callers make."""

        async def scenario() -> None:
            async with opened(cluster, 3) as (bad, worse, good):
                blocked = by_address(1, "198.51.100.1")
                assert (await bad.admit(admission(blocked))).admitted
                wanted, ended = 200, asyncio.Event()
                limit = requests(wanted)
                refusals = 0

                async def flood(store: RedisClusterLimitStore) -> None:
                    nonlocal refusals
                    while not ended.is_set():
                        refused = await store.admit(admission(limit, blocked))
                        assert not refused.admitted
                        refusals += 1

                floods = [asyncio.create_task(flood(store)) for store in (bad, worse) for _ in range(16)]
                await asyncio.sleep(0.1)
                false = 0
                for _ in range(wanted):
                    while not (await good.admit(admission(limit, by_address(1000, "198.51.100.2")))).admitted:
                        false += 1
                ended.set()
                await asyncio.gather(*floods)
                print(f"{refusals} refusals of the flood, {false} false refusals of {wanted} good requests")
                assert false <= wanted // 100
                assert await levels(good, limit) == [0]

        run(scenario)

    def test_clocks_of_the_nodes_do_not_mix(self) -> None:
        """A refusal explains itself although another node's clock is ahead."""
        store = RedisClusterLimitStore("redis://127.0.0.1:1?cluster=yes")

        async def scenario() -> None:
            call = admission(requests(1), by_address(10))
            footprint = Takes.of(call.takes).footprint
            behind, ahead = 1_000 * DAY, 1_000 * DAY + 70_000_000
            answers = [
                Decision(Status.REFUSED, behind, [behind + DAY], [0]),
                Decision(Status.ADMITTED, ahead, [ahead + 6_000_000], [6_000_000]),
            ]
            decision = store._merged(_groups(footprint), answers, "", footprint)
            assert (decision.status, decision.now_us) == (Status.REFUSED, ahead)
            found = refusal(call, decision)
            assert (found.take, found.wait_us) == (call.takes[0], DAY)
            assert decision.values[1] == ahead

        run(scenario)

    def test_a_budgets_window_is_told_on_the_clock_of_its_node(self) -> None:
        """At midnight: whoever asks again with the window of another node's clock is told the same again."""
        store = RedisClusterLimitStore("redis://127.0.0.1:1?cluster=yes")

        async def scenario() -> None:
            call = admission(by_address(10), now_budget(1))
            footprint = Takes.of(call.takes).footprint
            midnight = 1_000 * DAY
            ahead, behind = midnight + 3_000_000, midnight - 3_000_000
            answers = [Decision(Status.ADMITTED, ahead, [ahead], [1]), Decision(Status.WINDOW, behind)]
            decision = store._merged(_groups(footprint), answers, "", footprint)
            assert (decision.status, decision.now_us) == (Status.WINDOW, behind)

        run(scenario)


class TestMovingSlots:
    def test_a_slot_that_moved_is_followed_and_its_buckets_with_it(self, cluster: Cluster) -> None:
        async def scenario() -> None:
            async with opened(cluster) as (store,):
                call = admission(requests(3), by_address(10), now_budget(100))
                assert (await store.admit(call)).admitted
                source = cluster.owner(TENANT_SLOT)
                target = (source + 1) % 3
                try:
                    cluster.move_slot(TENANT_SLOT, source, target)
                    assert cluster.owner(TENANT_SLOT) == target
                    assert await store.settle(Settlement(call.id, call.takes, [None, None, 40], "acme"))
                    assert [(await store.admit(admission(requests(3)))).admitted for _ in range(3)] == [
                        True,
                        True,
                        False,
                    ]
                    assert await levels(store, now_budget(0)) == [960]
                    await asyncio.sleep(0.3)
                    await store.ping()
                finally:
                    cluster.move_slot(TENANT_SLOT, cluster.owner(TENANT_SLOT), source)
                assert await levels(store, now_budget(0)) == [960]

        run(scenario)

    def test_a_slot_on_its_way_is_waited_for(self, cluster: Cluster) -> None:
        async def scenario() -> None:
            async with opened(cluster) as (store,):
                assert (await store.admit(admission(requests(10), by_address(100)))).admitted
                source = cluster.owner(TENANT_SLOT)
                target = (source + 1) % 3

                def arrive() -> None:
                    cluster.move_keys(TENANT_SLOT, source, target)
                    cluster.close_migration(TENANT_SLOT, target)

                cluster.open_migration(TENANT_SLOT, source, target)
                asyncio.get_running_loop().call_later(0.01, arrive)
                try:
                    assert (await store.admit(admission(requests(10), by_address(100)))).admitted
                    assert await levels(store, requests(10), by_address(100)) == [8, 98]
                finally:
                    cluster.move_slot(TENANT_SLOT, cluster.owner(TENANT_SLOT), source)

        run(scenario)

    def test_during_a_migration_nothing_is_admitted_twice(self, cluster: Cluster) -> None:
        """What a script needs is on both sides: the cluster says ASK or TRYAGAIN, and nobody guesses."""

        async def scenario() -> None:
            async with opened(cluster) as (store,):
                for _ in range(3):
                    assert (await store.admit(admission(requests(10), by_address(100)))).admitted
                await store.publish(tenants={"acme": 1})
                source = cluster.owner(TENANT_SLOT)
                target = (source + 1) % 3
                cluster.open_migration(TENANT_SLOT, source, target)
                try:
                    with pytest.raises(StoreUnavailable):
                        await store.admit(admission(requests(10), by_address(100)))
                    assert cluster.move_keys(TENANT_SLOT, source, target)
                    with pytest.raises(StoreUnavailable):
                        await store.admit(admission(requests(10), by_address(100)))
                    # One key, which has moved: ASK, and the new owner answers.
                    await store.publish(tenants={"acme": 5})
                    assert cluster.nodes[target].execute_command("CLUSTER", "COUNTKEYSINSLOT", TENANT_SLOT)
                finally:
                    cluster.move_keys(TENANT_SLOT, source, target)
                    cluster.close_migration(TENANT_SLOT, target)
                stale = await store.admit(admission(requests(10), tenant_version=4))
                assert (stale.status, stale.tenant_version) == (Status.STALE, 5)
                assert await levels(store, requests(10), by_address(100)) == [7, 97]
                cluster.move_slot(TENANT_SLOT, target, source)

        run(scenario)


class TestFailures:
    def test_a_dead_master_is_told_quickly_and_found_again(self, cluster: Cluster) -> None:
        async def scenario() -> None:
            async with opened(cluster) as (store,):
                takes = [requests(100), by_address(100)]
                assert (await store.admit(admission(*takes))).admitted
                dead = cluster.owner(TENANT_SLOT)
                assert cluster.owner(slot_of(hash_tag(takes[1].key))) != dead
                cluster.kill(dead)
                try:
                    for _ in range(5):
                        began = time.monotonic()
                        with pytest.raises(StoreUnavailable):
                            await store.admit(admission(*takes))
                        assert time.monotonic() - began < 5  # not a connection's whole patience
                    with pytest.raises(StoreUnavailable):
                        await store.ping()
                    # The other masters go on, and nothing that they took stays taken.
                    assert await levels(store, takes[1]) == [99]
                finally:
                    cluster.start(dead)
                    cluster.wait()
                async with asyncio.timeout(5):
                    while True:
                        try:
                            await store.ping()
                            cold = await store.admit(admission(*takes))
                            break
                        except StoreUnavailable:
                            await asyncio.sleep(0.05)
                assert (cold.status, cold.cold) == (Status.COLD, (0, 1))  # it came back empty
                for take in takes:
                    take.seed_us = 0
                assert (await store.admit(admission(*takes))).admitted
                assert await levels(store, *takes) == [99, 98]

        run(scenario)

    def test_what_others_took_is_given_back_when_one_does_not_answer(self, cluster: Cluster) -> None:
        async def scenario() -> None:
            async with opened(cluster, reply_timeout=0.2) as (store,):
                takes = [requests(100), by_address(100)]
                assert (await store.admit(admission(*takes))).admitted
                stalled = cluster.processes[cluster.owner(TENANT_SLOT)]
                stalled.send_signal(signal.SIGSTOP)
                try:
                    with pytest.raises(StoreUnavailable, match="in time"):
                        await store.admit(admission(*takes))
                    assert await levels(store, takes[1]) == [99]
                finally:
                    stalled.send_signal(signal.SIGCONT)
                assert (await levels(store, takes[1])) == [99]

        run(scenario)

    @pytest.mark.parametrize("other", [CannotDecide("not ours"), Overloaded("too many")])
    @pytest.mark.parametrize("lost", [0, 1])
    def test_a_lost_answer_is_cancelled_whatever_other_groups_answer(
        self, cluster: Cluster, other: StoreUnavailable, lost: int
    ) -> None:
        async def scenario() -> None:
            second = MemoryLimitStore()
            second.name = "second"
            primary = RedisClusterLimitStore(cluster.url, reply_timeout=5)
            store = FailoverLimitStore(primary, second, MemoryLimitStore(), lambda: "fallback")
            takes = [requests(100), by_address(100)]
            assert (await store.admit(admission(*takes))).store == "redis"
            answers = {lost: StoreUnavailable("lost after it was done"), 1 - lost: other}
            with answering(primary, answers):
                assert (await store.admit(admission(*takes))).store == "second"
            await until(lambda: store.deciding == "redis")
            assert await levels(primary, *takes) == [99, 99]
            await store.aclose()

        run(scenario)

    @pytest.mark.parametrize("other", [CannotDecide("not ours"), Overloaded("too many")])
    def test_what_was_not_given_back_is_told_as_a_lost_answer(self, cluster: Cluster, other: StoreUnavailable) -> None:
        """The address refuses, and giving back what the user's limits gave fails: it must be cancelled."""

        async def scenario() -> None:
            async with opened(cluster) as (store,):
                blocked, user = by_address(1), requests(100)
                assert (await store.admit(admission(blocked))).admitted
                call = admission(user, blocked)
                with answering(store, {0: other}, count=1), pytest.raises(StoreUnavailable) as raised:
                    await store.admit(call)
                assert type(raised.value) is StoreUnavailable
                await store.cancel(call)
                assert await levels(store, user) == [100]

        run(scenario)

    def test_under_the_failover_a_dead_master_costs_no_admission(self, cluster: Cluster) -> None:
        async def scenario() -> None:
            second = MemoryLimitStore()
            second.name = "second"
            primary = RedisClusterLimitStore(cluster.url, reply_timeout=0.5)
            store = FailoverLimitStore(primary, second, MemoryLimitStore(), lambda: "fallback")
            dead = cluster.owner(TENANT_SLOT)
            try:
                takes = [by_address(100), now_budget(1)]
                assert (await store.admit(admission(*takes))).store == "redis"
                cluster.kill(dead)
                while store.deciding == "redis":
                    decision = await store.admit(admission(*takes))
                    assert (decision.admitted, decision.store) == (True, "second")
                cluster.start(dead)
                cluster.wait()
                await until(lambda: store.deciding == "redis")
                cold = await store.admit(admission(by_address(100), now_budget(1, seed=None)))
                assert (cold.status, cold.store) == (Status.COLD, "redis")
            finally:
                if dead not in cluster.processes:
                    cluster.start(dead)
                    cluster.wait()
                await store.aclose()

        run(scenario)

    def test_a_cluster_that_was_away_asks_for_every_budget_again(self, cluster: Cluster) -> None:
        """The epoch is one for all slots, although no script sees two of them; other containers learn it."""

        async def scenario() -> None:
            async with opened(cluster, 2) as (first, second):
                for store in (first, second):
                    assert (await store.admit(admission(by_address(100), now_budget(1)))).admitted
                await first.reopen(MINUTE)
                for store in (first, second):
                    cold = await store.admit(admission(by_address(100), now_budget(1, seed=None)))
                    assert (cold.status, cold.cold) == (Status.COLD, (0, 1))
                loaded = by_address(100)
                loaded.seed_us = 0
                assert (await second.admit(admission(loaded, now_budget(1, seed=700)))).admitted
                assert (await first.admit(admission(now_budget(1, seed=None)))).values[0] >= 702
                assert await levels(first, by_address(100)) == [97]

        run(scenario)

    def test_an_epoch_that_begins_during_an_admission_has_it_decided_again(self, cluster: Cluster) -> None:
        """A master was lost, say, and its successor has answered in its place."""

        async def scenario() -> None:
            async with opened(cluster) as (store,):
                takes = [by_address(100), now_budget(1)]
                assert (await store.admit(admission(*takes))).admitted
                real = store._cluster.run
                begun: list[None] = []

                async def run_calls(calls: Sequence[Call], **options: bool) -> list[Any]:
                    replies = await real(calls, **options)
                    if not begun:
                        begun.append(await store.reopen(0))
                    return replies

                store._cluster.run = run_calls  # type: ignore[method-assign]  # a spy
                takes[1] = now_budget(1, seed=None)
                cold = await store.admit(admission(*takes))
                assert (cold.status, cold.cold) == (Status.COLD, (0, 1))
                takes[0].seed_us = 0  # type: ignore[union-attr]  # a rate
                takes[1] = now_budget(1)
                assert (await store.admit(admission(*takes))).values[1] == 2, "what was taken meanwhile was given back"

        run(scenario)

    def test_requests_of_addresses_leave_nothing_but_their_bucket_and_marker(self, cluster: Cluster) -> None:
        async def scenario() -> None:
            async with opened(cluster) as (store,):
                assert (await store.admit(admission(by_address(5), requests(5), policy_version=3))).admitted
                names = sorted(name.decode() for node in cluster.nodes for name in node.keys("*"))
                assert [name.partition("}")[2].split(":")[0] for name in names if name.startswith("{i")] == ["", "m"]
                everywhere = [name for name in names if name.startswith("{g}")]
                assert everywhere == ["{g}epoch", "{g}policy", "{g}servers"]

        run(scenario)


def test_a_replica_takes_over_from_a_master_that_is_killed() -> None:
    """Under load, with nobody's help. Whoever asks meanwhile is decided by the fallback; afterwards a new epoch has
    everything loaded again, so that what the replica had not heard of is not given twice."""

    async def scenario(cluster: Cluster) -> None:
        second = MemoryLimitStore()
        async with containers(cluster.url, lambda: second, count=3) as three:
            loop, limit = asyncio.get_running_loop(), rig.requests(600, burst=20, name="limited")
            began, admitted, amount, spent = loop.time(), 0, 2_000, list[float]()
            flying = most = 0

            async def one(number: int) -> Decision:
                nonlocal admitted, flying, most
                container = three[number % 3]
                if number % 2:
                    flying += 1
                    most = max(most, flying)
                    decision = await container.use(rig.budget(10, amount), used=[10])
                    flying -= 1
                    if decision.admitted:
                        spent.append(loop.time())
                else:
                    _, decision = await container.ask(limit)
                    admitted += decision.admitted
                return decision

            async with load(60, one) as seen:
                await asyncio.sleep(1)
                cluster.kill(cluster.owner(TENANT_SLOT))
                died = loop.time()
                await until(lambda: all(c.failover.deciding == "second" for c in three))
                out = loop.time()
                await until(lambda: any(c.failover.deciding == "redis" for c in three), 30)
                some_back = loop.time()
                await until(lambda: all(c.failover.deciding == "redis" for c in three), 30)
                back = loop.time()
                await asyncio.sleep(2)
            overlap = max(1.0, out - died) + back - some_back
            bound = outage_bound(limit.limit, t=loop.time() - began, overlap=overlap, outages=1)
            by_two = [at for at in spent if some_back <= at <= back]  # while some decided here and some there
            most_spent = amount + 10 * (len(by_two) + most)
            say(
                f"a replica takes over: back after {back - died:.1f} s, {admitted} of a rate admitted, bound {bound}; "
                f"{10 * len(spent)} of a budget of {amount} spent, bound {most_spent}"
            )
            assert not seen.failures, seen.failures[:3]
            assert admitted <= bound
            assert 10 * len(spent) <= most_spent

    with redis_cluster(node_timeout_ms=1_000) as own:
        own.add_replica(own.owner(TENANT_SLOT))
        run(lambda: scenario(own))


def test_a_planned_failover_is_followed() -> None:
    """The replica takes over from a master that lives and keeps its connections: the slot is followed, its new owner is
    greeted, and nobody sees a failure."""

    async def scenario(cluster: Cluster, master: int, replica: int) -> None:
        async with containers(cluster.url, MemoryLimitStore, reply_timeout=5) as (container,):
            limits = [rig.requests(100), rig.budget(10, 1_000)]
            assert (await container.use(*limits, used=[None, 10])).admitted
            for new in (replica, master):
                await until(partial(cluster.follows, new))
                cluster.nodes[new].execute_command("CLUSTER", "FAILOVER")
                await until(partial(cluster.agrees, TENANT_SLOT, new))
                decision = await container.use(*limits, used=[None, 10])
                assert (decision.admitted, decision.store) == (True, "redis")
                await asyncio.sleep(REFRESH_EVERY)  # the map may be read again
            assert (await container.ask(rig.budget(0, 1_000)))[1].values[0] == 30
            assert container.failover._breaker.doubts == 0

    with redis_cluster(node_timeout_ms=1_000) as own:
        master = own.owner(TENANT_SLOT)
        replica = own.add_replica(master)
        run(lambda: scenario(own, master, replica))


@pytest.mark.parametrize("who", ["who was there", "a newcomer"])
def test_a_replica_takes_over_while_nobody_asks(who: str) -> None:
    """And has not heard of half of what was spent. It is greeted, by who finds that its master is gone and by who never
    knew it, and as another server it begins an epoch: nothing is spent twice, and nobody sees a failure."""

    async def scenario(cluster: Cluster, master: int, replica: int) -> None:
        others = [index for index in range(3) if index != master]
        url = f"redis://127.0.0.1:{cluster.ports[others[0]]}?cluster=yes"
        async with containers(url, MemoryLimitStore, count=2, reply_timeout=5) as (there, newcomer):
            for _ in range(5):
                await there.use(rig.budget(10, 100), used=[10])
            with cluster.nodes[master].client() as client:
                assert client.execute_command("WAIT", 1, 5_000) == 1
                client.config_set("requirepass", "no replica knows it")
                client.client_kill_filter(_type="replica")
                await until(lambda: not client.info("replication")["connected_slaves"])
            for _ in range(5):
                assert (await there.use(rig.budget(10, 100), used=[10])).admitted
            cluster.kill(master)
            cluster.nodes[replica].execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
            await until(partial(cluster.agrees, TENANT_SLOT, replica))
            await asyncio.sleep(REFRESH_EVERY)  # so long nobody asks: the map may be read again
            container = there if who == "who was there" else newcomer
            decision = await container.use(rig.budget(10, 100), used=[10])
            assert (decision.status, decision.store, decision.values[0]) == (Status.REFUSED, "redis", 100)
            assert container.failover._breaker.doubts == 0

    with redis_cluster(node_timeout_ms=1_000) as own:
        master = own.owner(TENANT_SLOT)
        replica = own.add_replica(master)
        run(lambda: scenario(own, master, replica))


def test_a_group_is_suspected_for_a_moment_only(cluster: Cluster) -> None:
    async def scenario() -> None:
        async with opened(cluster) as (store,):
            limit = [requests(60_000), by_address(1)]
            assert (await store.admit(admission(*limit))).admitted
            assert not (await store.admit(admission(*limit))).admitted
            asked = 0
            run_calls = store._cluster.run

            async def counting(calls, **options):  # type: ignore[no-untyped-def]  # as it is called
                nonlocal asked
                asked += 1
                return await run_calls(calls, **options)

            store._cluster.run = counting  # type: ignore[method-assign]  # a spy
            assert not (await store.admit(admission(*limit))).admitted
            assert asked == 1  # it looked; nothing was taken, so nothing was given back
            await asyncio.sleep(SUSPECT)
            assert not (await store.admit(admission(*limit))).admitted
            assert asked == 3  # it took, was refused, and gave back

    run(scenario)
