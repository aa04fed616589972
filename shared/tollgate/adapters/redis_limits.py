"""`redis://` and `rediss://`: the limit store in Redis, by the scripts in `lua/`. One call per admission, one per
settlement."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

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
from tollgate.domain import keys
from tollgate.domain.estimates import Learned
from tollgate.domain.limits import (
    FOREVER_US,
    Admission,
    BudgetTake,
    Decision,
    RateTake,
    Settlement,
    SlotTake,
    Status,
    hold_grid_us,
)
from tollgate.ports import StoreUnavailable

EPOCH = keys.global_subject() + "epoch"
SERVERS = keys.global_subject() + "servers"
POLICY_VERSION = keys.global_subject() + "policy"

PORTION = 500
"""Keys that one call looks at."""
BUDGET_KEYS = "{*}*:b:*"
"""Matches every budget (`terms.py`), and perhaps something else."""
FORGET_MS = 60_000
"""How long an admission is awaited that was cancelled: no network holds a command back for longer."""


class Script:
    """One file of `lua/`, called by its digest and sent whole where Redis does not know it (after SCRIPT FLUSH)."""

    def __init__(self, name: str) -> None:
        self.source = (_lua_folder() / f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


class Scripts:
    """All of them."""

    def __init__(self) -> None:
        self.admit = Script("admit")
        self.settle = Script("settle")
        self.unsettled = Script("unsettled")
        self.raise_floor = Script("raise_floor")
        self.publish = Script("publish")
        self.reopen = Script("reopen")
        self.forget = Script("forget")


def _lua_folder() -> Path:
    """`lua/` beside the package (a deployed bundle) or beside its source root (a checkout)."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "lua", package.parent.parent / "lua"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no lua/ folder beside {package}: the installation is incomplete")


class ScriptedStore:
    """What the stores on one node and on a cluster have in common.

    `clock` replaces the server's clock (µs), for tests that replay the same moments on every store.
    """

    name = "redis"

    def __init__(self, clock: Callable[[], int] | None) -> None:
        self._clock = clock
        self._scripts = Scripts()

    async def recall(self, takes: Sequence[RateTake]) -> list[int | None]:
        """None of them: the scripts themselves know what this store has."""
        return [None] * len(takes)

    def _now(self) -> int:
        return 0 if self._clock is None else self._clock()


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
        subject = keys.tenant_subject(admission.tenant)
        head = (f"{subject}m:{admission.id}", POLICY_VERSION, f"{subject}version", EPOCH)
        names, args = admit_call(admission, head, self._now())
        return read_decision(await self._run(self._scripts.admit, names, args), len(admission.takes), self.name)

    async def look(self, admission: Admission) -> Decision:
        return await self.admit(admission)

    async def settle(self, settlement: Settlement) -> bool:
        marker = f"{keys.tenant_subject(settlement.tenant)}m:{settlement.id}"
        names, args = settle_call(settlement, marker, self._now())
        return bool(await self._run(self._scripts.settle, names, args))

    async def replay(self, settlements: Sequence[Settlement]) -> int:
        settled = 0
        for some in in_portions(settlements):
            markers = [f"{keys.tenant_subject(each.tenant)}m:{each.id}" for each in some]
            held = [some[i] for i in await self._run(self._scripts.unsettled, markers, ())]
            settled += sum(await asyncio.gather(*(self.settle(each) for each in held)))
        return settled

    async def raise_floor(self, spent: Mapping[str, int]) -> None:
        if spent:
            await self._run(self._scripts.raise_floor, list(spent), list(spent.values()))

    async def budget_keys(self) -> AsyncIterator[Sequence[str]]:
        async for page in scanned(await self._node.connected(), BUDGET_KEYS):
            yield page

    async def known_spent(self, budgets: Sequence[str]) -> dict[str, int]:
        return await spent_of(await self._node.connected(), budgets)

    async def publish(self, *, policy: int = 0, tenants: Mapping[str, int] | None = None) -> None:
        if versions := version_keys(policy, tenants):
            await self._run(self._scripts.publish, list(versions), list(versions.values()))

    async def reopen(self, outage_us: int) -> None:
        """After an outage that began `outage_us` ago: have every budget loaded again before it is trusted."""
        await self._run(self._scripts.reopen, [EPOCH, SERVERS], [outage_us, self._now()])

    async def cancel(self, admission: Admission) -> None:
        """Undo an admission whose answer was lost. It may have been made, or be made later: what a stalled server or
        network holds back is not gone with its connection."""
        marker = f"{keys.tenant_subject(admission.tenant)}m:{admission.id}"
        nothing = nothing_used(admission)
        while not await self._run(self._scripts.forget, [marker], [NOTHING_GRANTED, FORGET_MS]):
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
        except RedisReplyError as error:  # a replica, say, or a server that is loading
            raise StoreUnavailable(f"Redis answered {error}") from error

    async def _run(
        self, script: Script, names: Sequence[str], args: Sequence[bytes | str | int], *, again: bool = False
    ) -> Any:
        """One script call; all are idempotent. Where the connection breaks (it does not time out), the call is repeated
        once, on a new one and with the whole script: Redis restarted, or closed an idle connection."""
        connection = self._node.connection or await self._node.connected()
        try:
            try:
                if not again:
                    return await connection.call("EVALSHA", script.sha, len(names), *names, *args)
            except RedisReplyError as error:
                if error.code != "NOSCRIPT":
                    raise
            return await connection.call("EVAL", script.source, len(names), *names, *args)
        except RedisReplyError as error:
            raise refused(error) from error
        except ConnectionLost:
            if again:
                raise
        return await self._run(script, names, args, again=True)


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


def nothing_used(admission: Admission) -> Settlement:
    """Gives back everything, requests included: that restores the buckets exactly, and forgets the request's id."""
    return Settlement(admission.id, admission.takes, [0] * len(admission.takes), admission.tenant)


# -- the scripts' arguments and results ------------------------------------------------------------------------------

Args = list[bytes | str]


def admit_call(
    admission: Admission, head: tuple[str, str, str, str], now_us: int, epoch_us: int = 0
) -> tuple[list[str], Args]:
    """KEYS and ARGV for `lua/admit.lua`. `head`: the keys of the request's marker, the policy's version, the tenant's
    version, and the epoch; `epoch_us`: the epoch of rates, where that is not the one in the last of these keys."""
    names = [*head]
    life = admission.expires_us
    limits: list[int] = []
    settled: list[int] = []
    windows: list[int] = []
    costs: list[int] = []
    floors: list[int] = []
    seeds: list[int] = []
    slots = 0
    for take in admission.takes:
        names.append(take.key)
        if isinstance(take, SlotTake):
            slots += 1
            cost = floor = 1
            limit, seed = take.limit.amount, None
        elif slots or (windows and isinstance(take, RateTake)):
            raise ValueError("an admission's takes are rates, then budgets, then slots")
        elif isinstance(take, RateTake):
            cost, floor, seed, limit = take.inc_us, take.floor_us, take.seed_us, take.limit.burst_us
            settled.append(take.limit.refundable)
        else:
            cost, floor, seed, limit = take.cost, take.floor, take.seed, take.limit.amount
            windows += (take.start_us, take.end_us)
        limits.append(limit)
        costs.append(cost)
        floors.append(floor)
        seeds.append(-1 if seed is None else seed)
    if admission.ask:
        names.append(admission.ask)
    versions = (admission.policy_version, admission.tenant_version)
    return names, [
        packed((now_us, life, hold_grid_us(life), *versions, epoch_us, len(settled), len(windows) // 2, slots)),
        _packed_before((*limits, *settled, *windows)),
        packed(costs),
        b"" if floors == costs else packed(floors),
        b"" if max(seeds, default=-1) < 0 else packed(seeds),
    ]


def settle_call(settlement: Settlement, marker: str, now_us: int) -> tuple[list[str], Args]:
    """KEYS and ARGV for `lua/settle.lua`; what does not move is left out."""
    names = [marker]
    sample = settlement.sample
    numbers = [now_us, 0, int(sample is not None)]
    position = 0
    for take, used in zip(settlement.takes, settlement.used, strict=True):
        position += 1
        if isinstance(take, RateTake):
            if used is None:
                continue
            numbers[1] += 1
            numbers += (position, take.limit.inc_us(used))
        else:
            numbers += (position, (used or 0) if isinstance(take, BudgetTake) else 0)
        names.append(take.key)
    if sample is not None:
        names.append(settlement.learn)
        numbers += (sample.prompt_bytes, sample.prompt_tokens, sample.answer_tokens)
    return names, [packed(numbers)]


def packed(numbers: Sequence[int]) -> bytes:
    """As the scripts read them: little-endian doubles, exact below 2^53."""
    return _doubles(len(numbers)).pack(*numbers)


_packed_before = lru_cache(maxsize=4096)(packed)
"""For what a plan says, which is the same for many calls."""


@lru_cache(maxsize=512)
def _doubles(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}d")


NOTHING_GRANTED = packed([0, FOREVER_US])
"""A request's marker, as `lua/admit.lua` writes it, of a request that was granted nothing."""
_STATUSES = {int(status): status for status in Status}
_HEAD = struct.Struct("<4d")
"""Status, now, the policy's version and the tenant's."""
_SPENT = struct.Struct("<d")
"""How what a budget or a concurrency limit counts begins."""


def read_decision(reply: bytes, takes: int, store: str) -> Decision:
    """The answer of `lua/admit.lua` to an admission of so many takes; its states are parallel to them."""
    status, now, policy, tenant = map(int, _HEAD.unpack_from(reply))
    decision = Decision(_STATUSES[status], now, [], [], (), policy, tenant, store)
    if status <= 1:
        numbers = list(map(int, _doubles(2 * takes).unpack_from(reply, _HEAD.size)))
        decision.values, decision.granted = numbers[:takes], numbers[takes:]
        decision.told = Learned.unpacked(reply[_HEAD.size + 16 * takes :])
    elif status == 3:
        cold = reply[_HEAD.size :]
        decision.cold = tuple(map(int, _doubles(len(cold) // 8).unpack(cold)))
    return decision
