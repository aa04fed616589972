"""What callers, clocks and other programs may do to the store: ids, addresses, foreign values, bad numbers."""

from __future__ import annotations

import asyncio
import itertools
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from redis.cluster import RedisCluster

from tests.faults.rig import (
    MINUTE,
    TENANT,
    Redis,
    budget,
    charged,
    containers,
    direct,
    requests,
    run,
    say,
    scarcely,
)
from tests.redis_cluster import Cluster, redis_cluster
from tollgate.adapters.dynamodb_limit_items import counter, subject_key
from tollgate.adapters.dynamodb_limit_markers import marker_key
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.redis_cluster_limits import RedisClusterLimitStore
from tollgate.adapters.redis_connection import RedisAddress, RedisConnection
from tollgate.adapters.redis_limits import (
    EPOCH,
    POLICY_VERSION,
    SERVERS,
    _names,
    admit_call,
    packed,
    plan_numbers,
    read_decision,
)
from tollgate.adapters.redis_scripts import Scripts
from tollgate.domain import keys
from tollgate.domain.bucket_cache import CAPACITY, BucketCache
from tollgate.domain.identity import Identity
from tollgate.domain.limits import (
    DAY_US,
    PERIOD_US,
    Admission,
    BudgetTake,
    Concurrency,
    Decision,
    Rate,
    RateTake,
    Scope,
    Settlement,
    SlotTake,
    Status,
    Unit,
    Window,
)
from tollgate.domain.policy import (
    BudgetSpec,
    GlobalSpec,
    LimitSpec,
    ModelSpec,
    PlanSpec,
    Policy,
    RouteSpec,
    TenantRecord,
)
from tollgate.domain.takes import Cost, Takes
from tollgate.domain.terms import Claim, compile_terms
from tollgate.ports import LimitStore

ADDRESSES = 1_000_000
MODELS = ("a", "b", "a.b", "b.a", "a-b", "a/b", "day", "tokens.day.a", "day.a", "life", "m", "e", "version", "slots")
"""Named like what stands beside them in a key."""
PERSONAL = (Scope.USER, Scope.KEY, Scope.TEAM, Scope.TENANT)
COUNTED = ("requests", "tokens")
LISTS: tuple[tuple[str, ...] | None, ...] = (
    None, ("a",), ("b",), ("a", "b"), ("b", "a", "a"), ("a.b",), ("b.a",), ("day",), ("day", "a"), ("day.a",),
    ("tokens.day.a",), ("life",), ("a", "b", "day"),
)  # fmt: skip


def hostile_pairs() -> list[tuple[str, str]]:
    """2,000 pairs of ids that differ in little, or would be the same if parts were joined by a separator."""
    odd = ["", *":/{}* %\0\n", "}{", "::", "{}", "é", "e\u0301", "\u202e", "\ud800", "ß", "SS"]
    words = [a + b + c for a, b, c in itertools.product(odd, ("", "a", "u"), odd)]
    ids = list(dict.fromkeys(words))
    pairs = [(ids[i], ids[(i * 7 + 1) % len(ids)]) for i in range(len(ids))]
    pairs += [(a[:-1], a[-1:] + b) for a, b in pairs]  # the same characters, split elsewhere
    assert len(pairs) >= 2_000
    return pairs


def test_no_two_hostile_ids_share_a_key() -> None:
    made: dict[str, tuple[str, ...]] = {}
    for tenant, name in hostile_pairs():
        mine: list[tuple[str, tuple[str, ...]]] = [(keys.tenant_subject(tenant), ("tenant", tenant))]
        mine += [(keys.member_subject(tenant, kind, name), (kind, tenant, name)) for kind in ("u", "k", "t")]
        mine += [(keys.global_subject(name), ("global", name)), (keys.ip_subject("192.0.2.1"), ("ip",))]
        for key, whose in mine:
            assert made.setdefault(key, whose) == whose, f"{key} stands for {made[key]} and {whose}"
            assert key.count("{") == key.count("}") == 1
            assert not set(key) & set(":/*\0 \n")
    assert keys.global_subject("") == "{g}"


def test_no_two_whole_keys_are_alike() -> None:
    """Of all that is kept for hostile callers: every kind of limit in every scope, budgets of similar lists of models
    and in two windows, markers of requests, estimates, versions; in Redis, and as items and attributes in DynamoDB."""
    rates = [LimitSpec(scope=s, **{unit: 5}, per=p) for s in PERSONAL for unit in COUNTED for p in PERIOD_US]
    slots = [LimitSpec(scope=s, concurrent=5) for s in PERSONAL]
    budgets = [
        BudgetSpec(scope=s, tokens=5, per=window, models=models)
        for s in PERSONAL
        for window in Window
        for models in LISTS
    ]
    budgets += [BudgetSpec(scope=s, requests=5, per=Window.DAY) for s in PERSONAL]
    route = (RouteSpec(upstream="here", model="m"),)
    models = {name: ModelSpec(route=route, limits=(LimitSpec(requests=5, per="day"),)) for name in MODELS}
    plan = PlanSpec(models=MODELS, limits=(*rates, *slots), budgets=tuple(budgets))
    everyone = GlobalSpec(limits=(LimitSpec(requests=5, per="day"),))
    policy = Policy(version=1, models=models, plans={"all": plan}, everyone=everyone)
    made: dict[tuple[str, ...], tuple[object, ...]] = {}

    def note(key: tuple[str, ...], *meaning: object) -> None:
        assert made.setdefault(key, meaning) == meaning, f"{key} stands for {made[key]} and {meaning}"

    for name in (POLICY_VERSION, EPOCH, SERVERS):
        note((name,), name)
    for number, (tenant, name) in enumerate(hostile_pairs()):
        note((keys.tenant_subject(tenant) + "version",), "version", tenant)
        note((_names(tenant)[0] + name,), "marker", tenant, name)
        note((marker_key(name),), "item of a marker", name)
        for model in (name, *MODELS):
            note((keys.estimate_key(tenant, model),), "estimates", tenant, model)
        if number % 100:  # the rest is made of the same subjects
            continue
        who = Identity(tenant, name, team=name, key=name)
        for model in MODELS:
            terms = compile_terms(policy, TenantRecord(tenant="t", plan="all"), who, model, 0)
            for at in (0, 40 * DAY_US):
                for take in Claim(terms.bounds).takes(Cost(1, 1, 1, 1), at):
                    scope, limit = take.limit.scope, take.limit
                    whose = () if scope is Scope.GLOBAL else (tenant,) if scope is Scope.TENANT else (tenant, name)
                    shared = model if take.subject != keys.global_subject() and scope is Scope.GLOBAL else ""
                    label = take.label if isinstance(take, BudgetTake) else ""
                    meaning = (take.kind, limit.id, *whose, shared, label)
                    note((take.key,), *meaning)
                    note((subject_key(take.subject), counter(take)), *meaning)
                    assert take.key.count("{") == take.key.count("}") == 1
                    assert not set(take.key) & set("/*\0 \n")


def test_a_million_addresses(redis: Redis) -> None:
    """As many `ip` buckets, all alive: within 150 MB of Redis, every key expires, and a container remembers at most
    50,000. (Markers of requests live for a second here, and are not counted.)"""
    limit = Rate(Scope.IP, Unit.REQUESTS, 100, 1440 * MINUTE, 100, "ip.requests.day")
    script, block = Scripts().admit, 5_000
    cache = BucketCache()
    one = Admission("x", [RateTake("", "", limit, 1, 1)], 1_000, "acme")  # only the keys' names differ
    _, numbers = admit_call(script, one, ("", "", ""), 0)
    args = numbers, packed(plan_numbers(Takes.of(one.takes).footprint))

    async def ask_for_all() -> None:
        connection = await RedisConnection.open(RedisAddress.parse(redis.url), 10)
        for first in range(0, ADDRESSES, block):
            answers = []
            for number in range(first, first + block):
                subject = keys.ip_subject(str(IPv4Address(number * 2_654_435_761 % 2**32)))  # all over the world
                names = (f"{subject}m:x", POLICY_VERSION, f"{TENANT}version", EPOCH, f"{subject}:requests.day")
                answers.append(connection.call("EVALSHA", script.sha, len(names), *names, *args))
                if number % 10 == 0:
                    seen = Admission("x", [RateTake(subject, names[4], limit, 1, 1)], 1_000, "acme")
                    cache.learn(seen, Decision(Status.REFUSED, 1, [10**15]), 0)
            decided = [read_decision(answer, Takes.of(one.takes), "redis") for answer in await asyncio.gather(*answers)]
            assert all(decision.admitted for decision in decided)
        connection.close()

    with redis.client() as client:
        client.script_load(script.source)
        before = client.info("memory")["used_memory"]
        run(ask_for_all)
        time.sleep(0.1)
        for _ in client.scan_iter(match="*m:x", count=10_000):  # which removes the markers, as they have expired
            pass
        info = client.info("memory")
        alive = client.info("keyspace")["db0"]
        say(
            f"{ADDRESSES} addresses: {(info['used_memory'] - before) / 2**20:.0f} MB of Redis "
            f"({alive['keys']} keys, {alive['keys'] - alive['expires']} without an end), {len(cache)} in the cache"
        )
        assert alive["keys"] >= ADDRESSES
        assert alive["keys"] - alive["expires"] == 1, "only the test's own epoch does not expire"
        assert info["used_memory"] - before <= 150 * 2**20
    assert len(cache) == CAPACITY == 50_000


@pytest.mark.parametrize("offset_s", [-300, 300])
def test_a_container_whose_clock_is_off_decides_as_the_others(
    either: Redis | Cluster, tmp_path_factory: pytest.TempPathFactory, offset_s: int
) -> None:
    """Two containers, one of them 5 minutes off: each bucket is one bucket for both, to the request."""
    from tests.unit.test_admit import ALICE, POLICY, Spent
    from tollgate.adapters.policy_file import FilePolicySource
    from tollgate.services.admit import Admitter, Grant, Request
    from tollgate.services.directory import Directory
    from tollgate.wire.errors import ApiError

    path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    path.write_text(POLICY.replace("requests: 60, per: minute, burst: 10", "requests: 1, per: minute, burst: 40"))

    async def scenario() -> None:
        async with direct(either.url) as right, direct(either.url) as wrong:
            admitters = []
            for container, offset in ((right, 0), (wrong, offset_s)):

                def clock(offset: int = offset) -> int:
                    return time.time_ns() // 1000 + offset * 1_000_000

                directory = Directory(FilePolicySource(path, {}), clock, versioned=lambda: True)
                local = MemoryLimitStore(clock)
                admitters.append(Admitter(container.store, Spent(), directory, local, clock))

            async def ask(number: int) -> Grant | int:
                wanted = Request(f"r{number}", "openai", "small", 10, 0, MINUTE)
                try:
                    return await admitters[number % 2].admit(ALICE, "192.0.2.1", wanted, 0)
                except ApiError as error:
                    return error.status

            answers = [await ask(number) for number in range(60)]
            assert [isinstance(answer, Grant) for answer in answers] == [True] * 40 + [False] * 20
            assert set(answers[40:]) == {429}
            grants = [answer for answer in answers if isinstance(answer, Grant)]
            days = {take.key for grant in grants for take in grant.admission.takes if "day" in take.key}
            assert len(days) == 1
            await ask(61)

    run(scenario)


FOREIGN: list[Callable[[Any, str], object]] = [
    lambda client, key: client.rpush(key, "a", "b"),
    lambda client, key: client.sadd(key, "a"),
    lambda client, key: client.hset(key, "spent", "much"),
    lambda client, key: client.set(key, "not a number"),
    lambda client, key: client.set(key, b"\xff\x00\xfe"),
    lambda client, key: client.set(key, "9" * 400),
    lambda client, key: client.set(key, "-17"),
    lambda client, key: client.set(key, "nan"),
    lambda client, key: client.set(key, b"\xff" * 32),  # numbers that are none
    lambda client, key: client.set(key, b"\xff" * 40),
    lambda client, key: client.set(key, struct.pack("<5d", 0, 1, 1, 1e17, float("nan"))),
    lambda client, key: client.set(key, ""),
]


@pytest.mark.parametrize("foreign", range(len(FOREIGN)))
@pytest.mark.parametrize("what", ["rate", "budget", "slots", "marker", "policy", "version", "epoch", "servers"])
def test_a_foreign_value_under_a_key_of_ours_hurts_nobody_else(redis: Redis, what: str, foreign: int) -> None:
    """Whoever meets it is decided: by Redis, which takes it for nothing or refuses, or by the fallback. It is not taken
    for an outage, so that one bad key does not send everybody away from Redis."""

    async def scenario() -> None:
        async with containers(redis.url, MemoryLimitStore, reply_timeout=5) as (container,):
            rate, tokens = scarcely(), budget(10, 1_000)
            slots = SlotTake(TENANT, f"{TENANT}:slots", Concurrency(Scope.TENANT, 5, "tenant.slots"))
            places = {
                "rate": rate.key, "budget": tokens.key, "slots": slots.key, "marker": f"{TENANT}m:the-id",
                "policy": POLICY_VERSION, "version": f"{TENANT}version", "epoch": EPOCH, "servers": SERVERS,
            }  # fmt: skip
            with redis.client() as client:
                client.delete(places[what])
                FOREIGN[foreign](client, places[what])
                for attempt in range(4):
                    call = f"the-id{attempt or ''}"
                    admission, decision = await container.ask(rate, tokens, slots, id=call)
                    assert decision.status in (Status.ADMITTED, Status.REFUSED, Status.STALE)
                    used: list[int | None] = [None, 5, None]
                    await container.store.settle(
                        Settlement(admission.id, admission.takes, used, "acme", decision.store)
                    )
                assert container.failover.deciding == "redis"
                if what not in ("policy", "version", "epoch"):
                    other = requests(10, name="somebody else")
                    assert (await container.ask(other))[1].store == "redis"

    run(scenario)


def strange_takes() -> list[tuple[str, RateTake | BudgetTake]]:
    limit = Rate(Scope.USER, Unit.TOKENS, 1_000, MINUTE, 1_000, "user.tokens.60s")
    subject = keys.member_subject("acme", "u", "alice")

    def take(cost: int, floor: int, of: Rate = limit) -> RateTake:
        return RateTake(subject, f"{subject}:{of.id}", of, cost, floor)

    huge = Rate(Scope.USER, Unit.TOKENS, 10**12, MINUTE, 10**12, "user.tokens.60s")
    return [
        ("nothing", take(0, 0)),
        ("far too much", take(10**15, 10**15)),
        ("beyond what a double holds", take(10**30, 10**30)),
        ("a guess beyond everything", take(10**30, 1)),
        ("an enormous limit", take(10**11, 10**11, huge)),
        ("less than nothing", take(-500, -500)),
        ("a guess of less than nothing", take(-500, 0)),
        ("a need of less than nothing", take(500, -500)),
        ("nothing of a budget", budget(0, 1_000)),
        ("far too much of a budget", budget(10**15, 1_000)),
        ("more of a budget than a double holds", budget(10**30, 1_000)),
        ("less than nothing of a budget", budget(-500, 1_000)),
    ]


@pytest.mark.parametrize(("what", "take"), strange_takes(), ids=[name for name, _ in strange_takes()])
def test_strange_costs_are_decided_alike_and_never_fill_a_bucket(
    redis: Redis, what: str, take: RateTake | BudgetTake
) -> None:
    """From nothing, where what is given away would be felt at once: more than all is never admitted."""

    async def told(store: LimitStore, call: Admission) -> Status | str:
        try:
            return (await store.admit(call)).status
        except ValueError as error:
            return str(error)

    async def scenario() -> None:
        async with direct(redis.url) as there:
            here = MemoryLimitStore()
            if isinstance(take, BudgetTake):
                take.seed = 0
            calls = [Admission(f"s{i}", [take], MINUTE, "acme") for i in range(3)]
            more = take.limit.amount + 1
            calls.append(Admission("more than all", [replace(take, cost=more, floor=more)], MINUTE, "acme"))
            answers = [[await told(store, call) for call in calls] for store in (there.store, here)]
            assert answers[0] == answers[1]
            assert answers[0][-1] is Status.REFUSED
            assert isinstance(answers[0][0], Status) is (take.floor >= 0 and take.cost >= take.floor)

    run(scenario)


def test_hostile_ids_of_requests_and_tenants_are_just_names(redis: Redis) -> None:
    async def scenario() -> None:
        async with direct(redis.url) as container:
            admitted = 0
            for name in ("", "{", "}", "a\r\nSET x y\r\n", "\0", "*", "{g}", "#", "é", "x" * 10_000, "-1", "nan"):
                _, decision = await container.ask(scarcely(), budget(10, 1_000), id=f"id{name}")
                assert decision.admitted
                admitted += 1
                call = Admission(f"of {name}", [scarcely()], MINUTE, name)
                assert (await container.store.admit(call)).admitted
                admitted += 1
            _, decision = await container.ask(scarcely(), budget(0, 1_000))
            assert charged(scarcely(), decision.values[0], decision.now_us) == admitted + 1
            assert decision.values[1] == 10 * admitted // 2

    run(scenario)


def test_foreign_values_in_a_cluster() -> None:
    async def scenario(url: str) -> None:
        store = RedisClusterLimitStore(url, reply_timeout=5)
        try:
            await store.reopen(0)
            rate, tokens = scarcely(), budget(10, 1_000)
            rate.seed_us, tokens.seed = 0, 0

            assert (await store.admit(Admission("a", [rate, tokens], MINUTE, "acme"))).admitted

            port = int(url.rpartition(":")[2].partition("?")[0])
            with RedisCluster(host="127.0.0.1", port=port) as client:
                client.delete(tokens.key)
                client.rpush(tokens.key, "not ours")
            tokens.seed = None
            assert (await store.admit(Admission("b", [rate, tokens], MINUTE, "acme"))).status is Status.COLD
            tokens.seed = 995
            assert not (await store.admit(Admission("b", [rate, tokens], MINUTE, "acme"))).admitted
            assert (await store.admit(Admission("c", [rate], MINUTE, "acme"))).admitted
        finally:
            await store.aclose()

    with redis_cluster() as cluster:
        asyncio.run(scenario(cluster.url))
