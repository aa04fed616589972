"""What one admission costs: `python bench/limits.py [--rounds N]`.

One admission with eight limits against a bare token bucket (one key, one EVALSHA: TIME, GET, SET with its expiry), one
after the other and many at once, in turns, over our own connection and by redis-py, as most would call them; 10,000
admissions at once on one key; and a refusal that this process gives by itself. Needs a Redis server, as `make setup`
brings one.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median

import redis.asyncio
from rig import CannotRun, Rig

from tollgate.adapters.redis_connection import RedisAddress, RedisConnection
from tollgate.adapters.redis_limits import (
    EPOCH,
    POLICY_VERSION,
    RedisLimitStore,
    admit_call,
    packed,
    plan_numbers,
    read_decision,
)
from tollgate.adapters.redis_scripts import Script
from tollgate.domain import keys
from tollgate.domain.bucket_cache import BucketCache
from tollgate.domain.limits import Admission, Budget, BudgetTake, Concurrency, Rate, Scope, Settlement, Unit, Window
from tollgate.domain.takes import Cost, Takes
from tollgate.domain.terms import Bound, Claim
from tollgate.services.admit import impossible

CALLS, BATCH = 400, 40
"""Calls of each kind in one round, and how many of one kind come in a row."""
AT_ONCE = 64
MINUTE_US = 60_000_000
BARE = b"""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local tat = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now) + tonumber(ARGV[1])
if tat > now + tonumber(ARGV[2]) then return {0, tat - now} end
redis.call('SET', KEYS[1], tat, 'PX', math.ceil((tat - now) / 1000))
return {1, tat - now}
"""


def eight_limits() -> Claim:
    """Of a caller: requests and tokens per user, a key's and a team's, the tenant's slots and its money, the address,
    everybody."""
    tenant, big = keys.tenant_subject("acme"), 10**9

    def rate(scope: Scope, unit: Unit, subject: str) -> Bound:
        return Bound(Rate(scope, unit, big, MINUTE_US, big, f"{scope}.{unit}"), subject, f"{subject}:{unit}")

    user, key, team = (keys.member_subject("acme", kind, "one") for kind in "ukt")
    money = Budget(Scope.TENANT, Unit.MICROUSD, 10**12, Window.MONTH, "tenant.money")
    return Claim(
        [
            rate(Scope.USER, Unit.REQUESTS, user), rate(Scope.USER, Unit.TOKENS, user),
            rate(Scope.KEY, Unit.TOKENS, key), rate(Scope.TEAM, Unit.REQUESTS, team),
            rate(Scope.IP, Unit.REQUESTS, keys.ip_subject("203.0.113.7")), rate(Scope.GLOBAL, Unit.REQUESTS, "{g}"),
            Bound(money, tenant, f"{tenant}:money"),
            Bound(Concurrency(Scope.TENANT, 1_000_000, "tenant.slots"), tenant, f"{tenant}:slots"),
        ]
    )  # fmt: skip


class Bench:
    def __init__(self, url: str) -> None:
        self.url = url
        self.ids = iter(range(10**9))
        self.names: list[bytes] = []
        self.plan = b""

    async def open(self) -> None:
        self.store = RedisLimitStore(self.url, reply_timeout=10)
        self.bare = await RedisConnection.open(RedisAddress.parse(self.url), 10)
        await self.bare.call("SET", EPOCH, 1)
        self.sha = await self.bare.call("SCRIPT", "LOAD", BARE)
        self.usual = redis.asyncio.Redis.from_url(self.url)
        self.script = Script("admit")
        self.claim = eight_limits()
        first = list(self.takes())
        for take in first:
            if isinstance(take, BudgetTake):
                take.seed = 0
        assert (await self.store.admit(Admission("first", first, MINUTE_US, "acme"))).admitted

    def takes(self) -> Takes:
        return self.claim.takes(Cost(500, 500, 90, 90), time.time_ns() // 1000)

    async def one_bare(self) -> None:
        await self.bare.call("EVALSHA", self.sha, 1, "{bare}bucket", 60, MINUTE_US)

    async def usual_bare(self) -> None:
        await self.usual.execute_command(
            "EVALSHA", self.sha, 1, "{bare}bucket", 60, MINUTE_US
        )  # evalsha has no exact type

    async def usual_admission(self) -> None:
        id, takes = f"r{next(self.ids)}", self.takes()
        tenant = keys.tenant_subject("acme")
        admission, head = Admission(id, takes, MINUTE_US, "acme"), (POLICY_VERSION, f"{tenant}version", EPOCH)
        _, numbers = admit_call(self.script, admission, head, 0)
        if not self.names:  # once, as our own connection does
            self.names = [name.encode() for name in (*head, *takes.footprint.keys)]
            self.plan = packed(plan_numbers(takes.footprint))
        names = [f"{tenant}m:{id}".encode(), *self.names]
        reply = await self.usual.execute_command("EVALSHA", self.script.sha, len(names), *names, numbers, self.plan)
        assert read_decision(reply, takes, "redis").admitted

    async def one_admission(self) -> None:
        id = f"r{next(self.ids)}"
        takes = self.takes()
        assert (await self.store.admit(Admission(id, takes, MINUTE_US, "acme"))).admitted
        self.last = id, takes

    async def settle(self) -> None:
        id, takes = self.last
        await self.store.settle(Settlement(id, takes, self.claim.used(400, 70, sent=True), "acme"))

    async def redis_us(self) -> float:
        """Redis's own time for each script call since CONFIG RESETSTAT, in microseconds."""
        info: bytes = await self.bare.call("INFO", "commandstats")
        line = next(line for line in info.decode().splitlines() if line.startswith("cmdstat_evalsha:"))
        return float(line.partition("usec_per_call=")[2].partition(",")[0])

    async def compare(self, rounds: int) -> dict[str, float]:
        """Microseconds of wall time and of Redis's own, in turns; medians over the rounds."""
        found: dict[str, list[float]] = {}
        for _ in range(rounds):
            kinds = {
                "bare": self.one_bare, "eight": self.one_admission, "settle": self.settle,
                "usual bare": self.usual_bare, "usual eight": self.usual_admission,
            }  # fmt: skip
            wall: dict[str, list[float]] = {name: [] for name in kinds}
            redis = dict.fromkeys(kinds, 0.0)
            for _ in range(CALLS // BATCH):
                taken = []
                for name, one in kinds.items():
                    await self.bare.call("CONFIG", "RESETSTAT")
                    for i in range(BATCH):
                        if name == "settle":
                            self.last = taken[i]
                        started = time.perf_counter()
                        await one()
                        wall[name].append((time.perf_counter() - started) * 1e6)
                        if name == "eight":
                            taken.append(self.last)
                    redis[name] += await self.redis_us() / (CALLS // BATCH)
            for name in kinds:
                found.setdefault(name, []).append(median(wall[name]))
                found.setdefault(f"{name} redis", []).append(redis[name])
            crowded = {name: await self.together(kinds[name]) for name in ("bare", "eight")}
            for name, us in crowded.items():
                found.setdefault(f"{name} together", []).append(us)
            found.setdefault("ratio", []).append(median(wall["eight"]) / median(wall["bare"]))
            found.setdefault("ratio ours", []).append(median(wall["eight"]) / median(wall["usual bare"]))
            found.setdefault("ratio usual", []).append(median(wall["usual eight"]) / median(wall["usual bare"]))
            found.setdefault("ratio together", []).append(crowded["eight"] / crowded["bare"])
            found.setdefault("ratio redis", []).append(redis["eight"] / redis["bare"])
        return {name: median(values) for name, values in found.items()}

    async def together(self, one: Callable[[], Awaitable[None]]) -> float:
        """Microseconds of wall time for each call, where so many are always asked at once."""
        started = time.perf_counter()
        for _ in range(CALLS // AT_ONCE):
            await asyncio.gather(*(one() for _ in range(AT_ONCE)))
        return (time.perf_counter() - started) / (CALLS // AT_ONCE * AT_ONCE) * 1e6

    async def crowd(self, size: int) -> tuple[float, int]:
        """`size` admissions at once on one key: p99 in milliseconds, and errors."""
        took: list[float] = []

        async def one() -> None:
            started = time.perf_counter()
            await self.one_admission()
            took.append((time.perf_counter() - started) * 1e3)

        results = await asyncio.gather(*(one() for _ in range(size)), return_exceptions=True)
        return sorted(took)[int(len(took) * 0.99)], sum(isinstance(r, BaseException) for r in results)

    async def local_refusal(self, rounds: int) -> float:
        """CPU microseconds of a refusal from the cache: all of the limiter, from the caller's terms to the answer."""
        claim = Claim([Bound(Rate(Scope.USER, Unit.REQUESTS, 1, MINUTE_US, 1, "user.requests"), "{r}", "{r}:requests")])
        cache, cost, best = BucketCache(), Cost(500, 500, 90, 90), float("inf")
        for id in ("a", "b"):
            admission = Admission(id, claim.takes(cost, 0), MINUTE_US, "acme")
            decision = await self.store.admit(admission)
        for _ in range(rounds):
            cache.learn(admission, decision, decision.now_us)
            started = time.process_time()
            for _ in range(CALLS):
                asked = Admission("c", claim.takes(cost, decision.now_us), MINUTE_US, "acme")
                assert impossible(asked, decision.now_us) is None
                assert cache.refuses(asked, decision.now_us) is not None
            best = min(best, (time.process_time() - started) / CALLS * 1e6)
        return best


async def measure(url: str, rounds: int) -> None:
    bench = Bench(url)
    await bench.open()
    found = await bench.compare(rounds)
    for name, title in (
        ("bare", "a bare bucket"), ("eight", "one admission, 8 limits"), ("settle", "its settlement"),
        ("usual bare", "a bucket, redis-py"), ("usual eight", "8 limits, redis-py"),
    ):  # fmt: skip
        print(f"{title:24}{found[name]:6.0f} us, of which Redis {found[f'{name} redis']:.0f}")
    for name, title in (("bare", "a bare bucket"), ("eight", "one admission, 8 limits")):
        print(f"{title:24}{found[f'{name} together']:6.0f} us each, {AT_ONCE} at once")
    for name, where in (
        ("ratio", ""),
        ("ratio ours", " by redis-py"),
        ("ratio usual", ", both by redis-py"),
        ("ratio together", f", {AT_ONCE} at once"),
        ("ratio redis", ", in Redis alone"),
    ):
        print(f"eight limits cost {found[name]:.2f} times a bare bucket{where}")
    p99, failed = await bench.crowd(10_000 - 1)
    print(f"10,000 at once, one key{p99:7.0f} ms p99, {failed} errors")
    print(f"a refusal from memory  {await bench.local_refusal(rounds):7.1f} us of CPU, no store call")
    await bench.store.aclose()
    await bench.usual.aclose()
    bench.bare.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python bench/limits.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    try:
        with Rig() as rig:
            asyncio.run(measure(f"redis://127.0.0.1:{rig.redis_port}", options.rounds))
    except CannotRun as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
