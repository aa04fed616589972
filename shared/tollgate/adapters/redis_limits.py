"""`redis://` and `rediss://`: the limit store in Redis, by the scripts in `lua/`. One call per admission, one per
settlement."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from tollgate.adapters.lru import Lru
from tollgate.adapters.redis_connection import (
    REPLY_TIMEOUT,
    ConnectionLost,
    Login,
    RedisAddress,
    RedisConnection,
    RedisNode,
    RedisReplyError,
    refused,
)
from tollgate.adapters.redis_scripts import NO_PARTS, Bulks, Prepared, Script, ScriptCall, Scripts
from tollgate.domain import keys
from tollgate.domain.estimates import Learned
from tollgate.domain.limits import (
    FIRM_US,
    FOREVER_US,
    Admission,
    Decision,
    Settlement,
    Status,
    Take,
    hold_grid_us,
    undone,
)
from tollgate.domain.takes import Footprint, Takes
from tollgate.ports import StoreUnavailable

EPOCH = keys.global_subject() + "epoch"
SERVERS = keys.global_subject() + "servers"
POLICY_VERSION = keys.global_subject() + "policy"

PORTION = 500
"""Keys that one call looks at."""
BUDGET_KEYS = "{*}*:b:*"
"""Matches every budget (`terms.py`), and perhaps something else."""
MAX_REPEATED = 10_000
"""Admissions in flight that were sent twice, of which a process knows."""
FORGET_MS = 60_000
"""How long an admission is awaited that was cancelled: no network holds a command back for longer."""


class ScriptedStore:
    """What the stores on one node and on a cluster have in common.

    `clock` replaces the server's clock (µs), for tests that replay the same moments on every store.
    """

    name = "redis"

    def __init__(self, clock: Callable[[], int] | None) -> None:
        self._clock = clock
        self._scripts = Scripts()
        self._repeated: Lru[bool] = Lru(MAX_REPEATED)

    async def recall(self, takes: Sequence[Take], cold: Sequence[int]) -> list[int | None]:
        """None of them: the scripts themselves know what this store has."""
        return [None] * len(cold)

    def _now(self) -> int:
        return 0 if self._clock is None else self._clock()

    def _copies_of(self, settlement: Settlement) -> bool:
        """Whether the admission was sent twice: then a copy may come after this, and must not find its id unknown."""
        return bool(self._repeated) and not settlement.gives_back and self._repeated.get(settlement.id, False)


class RedisLimitStore(ScriptedStore):
    """Shared buckets on a single Redis or Valkey node (6.2 to 9)."""

    def __init__(
        self,
        url: str,
        *,
        reply_timeout: float = REPLY_TIMEOUT,
        clock: Callable[[], int] | None = None,
        login: Login | None = None,
    ) -> None:
        super().__init__(clock)
        self._node = RedisNode(RedisAddress.parse(url), reply_timeout, login, self._greet)

    async def admit(self, admission: Admission) -> Decision:
        markers, head = _names(admission.tenant)
        prepared, numbers = admit_call(self._scripts.admit, admission, head, self._now())
        call = prepared.call(markers + admission.id, numbers)
        reply = await self._run(call)
        if call.repeated:
            self._repeated.put(admission.id, True)
        decision = read_decision(reply, Takes.of(admission.takes), self.name)
        decision.firm_us = FIRM_US
        return decision

    async def look(self, admission: Admission) -> Decision:
        return await self.admit(admission)

    async def settle(self, settlement: Settlement) -> bool:
        copies = self._copies_of(settlement)
        prepared, numbers = settle_call(self._scripts.settle, settlement, self._now(), copies=copies)
        return bool(await self._run(prepared.call(_names(settlement.tenant)[0] + settlement.id, numbers)))

    async def replay(self, settlements: Sequence[Settlement]) -> int:
        settled = 0
        for some in in_portions(settlements):
            markers = [_names(each.tenant)[0] + each.id for each in some]
            held = [some[i] for i in await self._run(self._scripts.unsettled.call(markers, ()))]
            settled += sum(await asyncio.gather(*(self.settle(each) for each in held)))
        return settled

    async def raise_floor(self, spent: Mapping[str, int]) -> None:
        if spent:
            await self._run(self._scripts.raise_floor.call(list(spent), [self._now(), *spent.values()]))

    async def budget_keys(self) -> AsyncIterator[Sequence[str]]:
        async for page in scanned(await self._node.connected(), BUDGET_KEYS):
            yield page

    async def known_spent(self, budgets: Sequence[str]) -> dict[str, int]:
        return await spent_of(await self._node.connected(), budgets)

    async def publish(self, *, policy: int = 0, tenants: Mapping[str, int] | None = None) -> None:
        if versions := version_keys(policy, tenants):
            await self._run(self._scripts.publish.call(list(versions), list(versions.values())))

    async def reopen(self, outage_us: int) -> None:
        """After an outage that began `outage_us` ago: have every budget loaded again before it is trusted."""
        await self._run(self._scripts.reopen.call([EPOCH, SERVERS], [outage_us, self._now()]))

    async def cancel(self, admission: Admission) -> None:
        """Undo an admission whose answer was lost. It may have been made, or be made later: what a stalled server or
        network holds back is not gone with its connection."""
        nothing = undone(admission)
        forget = self._scripts.forget.call([_names(admission.tenant)[0] + admission.id], [NOTHING_GRANTED, FORGET_MS])
        while not await self._run(forget):
            await self.settle(nothing)

    async def ping(self) -> None:
        connection = await self._node.connected()
        try:
            await connection.call("PING")
        except RedisReplyError as error:
            raise StoreUnavailable(f"Redis answered {error.code}") from error

    async def aclose(self) -> None:
        self._node.close()

    async def _greet(self, connection: RedisConnection) -> None:
        """A new connection may have found another server, with numbers that are not the newest: then a new epoch begins
        before it is asked for anything."""
        try:
            await connection.call("EVAL", self._scripts.reopen.source, 2, EPOCH, SERVERS, -1, self._now())
        except RedisReplyError as error:  # out of memory, say
            raise StoreUnavailable(f"Redis answered {error}") from error

    async def _run(self, call: ScriptCall) -> Any:
        """One script call; all are idempotent. Where the connection breaks (it does not time out), the call is repeated
        once, on a new one and with the whole script: Redis restarted, closed an idle connection, or is no master any
        more."""
        connection = self._node.connection or await self._node.connected()
        try:
            try:
                return await connection.send(call.by_digest)
            except RedisReplyError as error:
                if error.code != "NOSCRIPT":
                    raise
            return await connection.send(call.whole())
        except RedisReplyError as error:
            raise refused(error) from error
        except ConnectionLost:
            connection, call.repeated = await self._node.connected(), True
        try:
            return await connection.send(call.whole())
        except RedisReplyError as error:
            raise refused(error) from error


@lru_cache(maxsize=16_384)
def _names(tenant: str) -> tuple[str, tuple[str, str, str]]:
    """What the markers of a tenant's requests begin with, and the head of its admissions (`admit_call`)."""
    subject = keys.tenant_subject(tenant)
    return f"{subject}m:", (POLICY_VERSION, f"{subject}version", EPOCH)


async def scanned(connection: RedisConnection, pattern: str) -> AsyncIterator[Sequence[str]]:
    """The keys of one node that match, some perhaps twice. Raises `StoreUnavailable`."""
    cursor = b"0"
    while True:
        try:
            cursor, page = await connection.call("SCAN", cursor, "MATCH", pattern, "COUNT", PORTION)
        except RedisReplyError as error:
            raise refused(error) from error
        if page:
            yield [name.decode("utf-8", "replace") for name in page]
        if cursor == b"0":
            return


async def spent_of(connection: RedisConnection, budgets: Sequence[str]) -> dict[str, int]:
    """What those of them that this node has know to be spent. Raises `StoreUnavailable`."""
    replies = [connection.call("GET", name) for name in budgets]  # in one write: they may be in any slots
    found: dict[str, int] = {}
    for name, reply in zip(budgets, await asyncio.gather(*replies, return_exceptions=True), strict=True):
        if isinstance(reply, RedisReplyError) and reply.code != "WRONGTYPE":
            raise refused(reply)
        if isinstance(reply, StoreUnavailable):
            raise reply
        if isinstance(reply, bytes) and len(reply) >= _SPENT.size:
            spent = _SPENT.unpack_from(reply)[0]
            if 0 <= spent <= FOREVER_US:
                found[name] = int(spent)
    return found


def in_portions(settlements: Sequence[Settlement]) -> Iterator[Sequence[Settlement]]:
    for at in range(0, len(settlements), PORTION):
        yield settlements[at : at + PORTION]


def version_keys(policy: int, tenants: Mapping[str, int] | None) -> dict[str, int]:
    """Under which keys versions are published; 0 for the policy: none."""
    versions = {f"{keys.tenant_subject(name)}version": version for name, version in (tenants or {}).items()}
    return versions | ({POLICY_VERSION: policy} if policy else {})


# -- the scripts' arguments and results ------------------------------------------------------------------------------


def admit_call(
    script: Script, admission: Admission, head: tuple[str, str, str], now_us: int, epoch_us: int = 0
) -> tuple[Prepared, bytes]:
    """The call of `lua/admit.lua`, which lacks the key of the request's marker, and the numbers of this one. `head`:
    the keys of the policy's version, the tenant's version, and the epoch; `epoch_us`: the epoch of rates, where that is
    not the one in the last of these keys."""
    takes, ask = Takes.of(admission.takes), admission.ask
    memo = takes.footprint.memo
    prepared: Prepared | None = memo.get(("admit", head, ask))
    if prepared is None:
        names = memo.get(("names", head)) or Bulks.of(*head, *takes.footprint.keys)
        plan = _as_argument(plan_numbers(takes.footprint))
        prepared = Prepared(script, names, Bulks.of(ask) if ask else NO_PARTS, plan)
        memo["names", head], memo["admit", head, ask] = names, prepared
    life, policy, tenant = admission.expires_us, admission.policy_version, admission.tenant_version
    numbers = [now_us, life, hold_grid_us(life), policy, tenant, epoch_us, *takes.costs]
    if takes.seeds is not None:
        numbers += takes.floors
        numbers += [-1 if seed is None else seed for seed in takes.seeds]
    elif takes.floors is not takes.costs:
        numbers += takes.floors
    return prepared, packed(numbers)


def plan_numbers(footprint: Footprint) -> tuple[int, ...]:
    """What a plan says, which is the same for many calls, and for all callers of a plan."""
    counts = footprint.rates, footprint.budgets, footprint.slots
    settled = [int(rate.refundable) for rate in footprint.buckets]
    windows = [moment for _, start, end in footprint.spans for moment in (start, end)]
    longest = max([rate.burst_us for rate in footprint.buckets], default=0)
    return (*counts, longest, *footprint.maxima, *settled, *windows)


@lru_cache(maxsize=4096)
def _as_argument(numbers: tuple[int, ...]) -> Bulks:
    return Bulks.of(packed(numbers))


def settle_call(script: Script, settlement: Settlement, now_us: int, *, copies: bool = False) -> tuple[Prepared, bytes]:
    """The call of `lua/settle.lua`, in the same way; rates that do not move are left out. `copies`: the admission was
    sent twice."""
    takes, used, sample = Takes.of(settlement.takes), settlement.used, settlement.sample
    footprint = takes.footprint
    rates, budgets = footprint.rates, footprint.budgets
    moved = tuple([place for place in range(rates) if used[place] is not None])
    learn = settlement.learn if sample is not None else ""
    memo = footprint.memo
    known: tuple[Prepared, tuple[int, ...]] | None = memo.get(("settle", moved, learn))
    if known is None:
        positions = _settled(moved, rates, len(takes.costs))
        names = memo.get(("moved", moved)) or Bulks.of(*[footprint.keys[place - 1] for place in positions])
        known = Prepared(script, names, Bulks.of(learn) if learn else NO_PARTS, NO_PARTS), positions
        memo["moved", moved], memo["settle", moved, learn] = names, known
    prepared, positions = known
    numbers = [now_us, len(moved), sample is not None, settlement.late, copies, *positions]
    numbers += settlement.rates_us or takes.settled_us(used)
    numbers += [amount or 0 for amount in used[rates : rates + budgets]]
    numbers += [0] * footprint.slots
    if sample is not None:
        numbers += (sample.prompt_bytes, sample.prompt_tokens, sample.answer_tokens)
    return prepared, packed(numbers)


@lru_cache(maxsize=1024)
def _settled(moved: tuple[int, ...], rates: int, takes: int) -> tuple[int, ...]:
    """The positions of what a settlement moves, from 1."""
    return tuple(place + 1 for place in (*moved, *range(rates, takes)))


def packed(numbers: Sequence[int]) -> bytes:
    """As the scripts read them: little-endian doubles, exact below 2^53."""
    return _doubles(len(numbers)).pack(*numbers)


@lru_cache(maxsize=512)
def _doubles(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}d")


@lru_cache(maxsize=512)
def _integers(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}q")


NOTHING_GRANTED = packed([0, FOREVER_US])
"""A request's marker, as `lua/admit.lua` writes it, of a request that was granted nothing."""
_STATUSES = {int(status): status for status in Status}
_IN_PART = 5
"""Admitted, and the answer tells what each take was granted: it is not what was asked."""
_COLD = struct.pack("<q", Status.COLD)
_SPENT = struct.Struct("<d")
"""How what a budget or a concurrency limit counts begins."""


def read_decision(reply: bytes, takes: Takes, store: str) -> Decision:
    """The answer of `lua/admit.lua` to an admission of these takes."""
    count = len(takes.costs)
    decided = _integers(4 + count)
    at = decided.size
    if len(reply) < at or reply.startswith(_COLD):
        status, now, policy, tenant, *places = _integers(len(reply) // 8).unpack(reply)
        return Decision(_STATUSES[status], now, (), (), tuple(places), policy, tenant, store)
    status, now, policy, tenant, *values = decided.unpack_from(reply)
    granted: Sequence[int] = takes.costs if status else [0] * count
    if status == _IN_PART:
        status = int(Status.ADMITTED)
        each = _doubles(count)
        granted = list(map(int, each.unpack_from(reply, at)))
        at += each.size
    told = Learned.unpacked(reply[at:]) if len(reply) > at else None
    return Decision(_STATUSES[status], now, values, granted, (), policy, tenant, store, told)
