"""The limit store in a Redis Cluster, by the same scripts as on one node (docs/adr/0006-redis-cluster.md).

A script takes from keys of one slot only. So an admission is made in groups, one per hash tag (the tenant's, the
client address's, the global limits'), all in one round. If any group does not admit, what the others took is given
back at once: never over-admitted, at worst refused while somebody else's refusal is being given back. To keep that
rare, a group that refused lately is first only looked at, together with all the others, and nothing is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from tollgate.adapters.lru import Lru
from tollgate.adapters.redis_cluster import Call, RedisCluster, hash_tag, slot_of
from tollgate.adapters.redis_connection import (
    REPLY_TIMEOUT,
    Login,
    RedisAddress,
    RedisConnection,
    RedisReplyError,
    refused,
)
from tollgate.adapters.redis_limits import (
    BUDGET_KEYS,
    EPOCH,
    FORGET_MS,
    NOTHING_GRANTED,
    POLICY_VERSION,
    SERVERS,
    ScriptedStore,
    admit_call,
    in_portions,
    read_decision,
    scanned,
    settle_call,
    spent_of,
    version_keys,
)
from tollgate.adapters.redis_scripts import Script, ScriptCall
from tollgate.domain import keys
from tollgate.domain.dataclass import dataclass
from tollgate.domain.limits import Admission, Decision, Settlement, Status, undone
from tollgate.domain.takes import Footprint, Takes
from tollgate.ports import CannotDecide, Overloaded, StoreUnavailable

GLOBAL = hash_tag(POLICY_VERSION)
SUSPECT = 1.0
"""Seconds for which a group that refused is looked at before anything is taken. A flood of refusals renews it."""
MAX_SUSPECTS = 10_000
MAX_EPOCHS = 3
"""Rounds of one admission, if a new epoch begins each time."""
PRECEDENCE = (Status.STALE, Status.WINDOW, Status.COLD, Status.REFUSED, Status.ADMITTED)
"""Which group's answer is the admission's: what `lua/admit.lua` checks first."""


@dataclass(frozen=True, slots=True)
class _Group:
    """The part of a footprint that one slot decides."""

    tag: str
    places: Sequence[int]
    """Of its limits, among all."""
    footprint: Footprint


class RedisClusterLimitStore(ScriptedStore):
    """Shared buckets on a Redis or Valkey cluster (6.2 to 9); ElastiCache Serverless is one.

    The policy's version is kept with the global limits, a tenant's with the tenant's, so both groups are always
    asked, be it without takes. Budgets and rates trust what they loaded since the store's epoch; a script sees its own
    slot's keys only, so the epoch is part of its key's name, and its number is compared as a version by the global
    group.
    """

    def __init__(
        self,
        url: str,
        *,
        reply_timeout: float = REPLY_TIMEOUT,
        clock: Callable[[], int] | None = None,
        login: Login | None = None,
    ) -> None:
        super().__init__(clock)
        self._cluster = RedisCluster(RedisAddress.parse(url), reply_timeout, login, self._greet)
        self._epoch = 1
        """The newest that we have seen (µs); 1 is before any."""
        self._empty = False
        """Whether the cluster was found without an epoch: new, or emptied."""
        self._servers: set[bytes] = set()
        """The masters that we have greeted, by what they call themselves."""
        self._suspects: Lru[float] = Lru(MAX_SUSPECTS)

    async def admit(self, admission: Admission) -> Decision:
        takes, tenant = Takes.of(admission.takes), hash_tag(keys.tenant_subject(admission.tenant))
        versioned = admission.tenant_version or admission.ask
        groups = _groups(takes.footprint, (GLOBAL, tenant) if versioned else (GLOBAL,))
        now = asyncio.get_running_loop().time()
        for _ in range(MAX_EPOCHS):
            epoch = self._epoch
            look = any(self._suspects.get(group.tag, 0.0) > now for group in groups)
            decision = await self._decide(admission, takes, groups, tenant, look=look)
            if look and decision.admitted:
                decision = await self._decide(admission, takes, groups, tenant, look=False)
            if self._empty:
                self._empty = False
                await self.reopen(0)
            newer = 0 < admission.policy_version < decision.policy_version
            newer = newer or 0 < admission.tenant_version < decision.tenant_version
            if decision.status is not Status.STALE or newer or epoch == self._epoch:
                return decision
        raise StoreUnavailable("the Redis Cluster changes its epoch too often")

    async def look(self, admission: Admission) -> Decision:
        takes, tenant = Takes.of(admission.takes), hash_tag(keys.tenant_subject(admission.tenant))
        groups = _groups(takes.footprint, (GLOBAL, tenant))  # where the versions are
        for _ in range(MAX_EPOCHS):
            decision = await self._decide(admission, takes, groups, tenant, look=True)
            if decision.status is not Status.STALE:  # else a new epoch has begun
                return decision
        raise StoreUnavailable("the Redis Cluster changes its epoch too often")

    async def settle(self, settlement: Settlement) -> bool:
        takes, copies = Takes.of(settlement.takes), self._copies_of(settlement)
        also = (hash_tag(settlement.learn),) if settlement.sample is not None else ()  # be it without takes
        return await self._settle(settlement, takes, _groups(takes.footprint, also), copies=copies)

    async def replay(self, settlements: Sequence[Settlement]) -> int:
        settled = 0
        for some in in_portions(settlements):
            owners: dict[str, list[int]] = {}
            for position, each in enumerate(some):
                for tag in {hash_tag(take.key) for take in each.takes}:
                    owners.setdefault(tag, []).append(position)
            looks = [
                _to(tag, self._scripts.unsettled.call([_marker(tag, some[i].id) for i in positions], ()))
                for tag, positions in owners.items()
            ]
            found = await self._run(looks)
            held = {positions[i] for positions, there in zip(owners.values(), found, strict=True) for i in there}
            settled += sum(await asyncio.gather(*(self.settle(some[i]) for i in sorted(held))))
        return settled

    async def raise_floor(self, spent: Mapping[str, int]) -> None:
        await self._for_each_tag(self._scripts.raise_floor, spent, self._now())

    async def budget_keys(self) -> AsyncIterator[Sequence[str]]:
        for connection in await self._cluster.masters():
            async for page in scanned(connection, BUDGET_KEYS):
                yield page

    async def known_spent(self, budgets: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for owner, names in (await self._cluster.owned(budgets)).items():
            found |= await spent_of(owner, names)
        return found

    async def publish(self, *, policy: int = 0, tenants: Mapping[str, int] | None = None) -> None:
        await self._for_each_tag(self._scripts.publish, version_keys(policy, tenants))

    async def reopen(self, outage_us: int) -> None:
        """After an outage that began `outage_us` ago: have every budget loaded again before it is trusted."""
        call = self._scripts.reopen.call([EPOCH, SERVERS], [outage_us, self._now(), *self._servers])
        self._epoch = max(self._epoch, await self._cluster.tell(_to(GLOBAL, call)))

    async def cancel(self, admission: Admission) -> None:
        """Undo an admission whose answer was lost, as on a single node."""
        takes = Takes.of(admission.takes)
        for group in _groups(takes.footprint):
            marker = _marker(group.tag, admission.id)
            forget = _to(group.tag, self._scripts.forget.call([marker], [NOTHING_GRANTED, FORGET_MS]))
            while not (await self._run([forget]))[0]:
                await self._give_back(admission, takes, [group])

    async def ping(self) -> None:
        await self._cluster.ping()

    async def aclose(self) -> None:
        self._cluster.close()

    async def _greet(self, connection: RedisConnection) -> None:
        """As on a single node; but only the server itself knows who it is, and the epoch is in the global slot."""
        try:
            self._servers.add(await connection.call("EVAL", self._scripts.reopen.source, 0))
        except RedisReplyError as error:
            raise refused(error) from error
        await self.reopen(-1)

    # -- one round

    async def _decide(
        self, admission: Admission, takes: Takes, groups: Sequence[_Group], tenant: str, *, look: bool
    ) -> Decision:
        """Ask all groups together; unless all admit, give back what any took."""
        epoch = self._epoch
        calls: list[Call] = []
        asked: list[Takes] = []
        for group in groups:
            part, head = self._part(admission, takes, group, tenant, look=look)
            asked.append(Takes.of(part.takes))
            prepared, numbers = admit_call(self._scripts.admit, part, head, self._now(), self._epoch)
            calls.append(_to(group.tag, prepared.call(_marker(group.tag, admission.id), numbers)))
        replies = await self._cluster.run(calls, all_or_none=True)
        for call in calls:
            if call.script.repeated:
                self._repeated.put(admission.id, True)
        answers: list[Decision] = []
        failure: StoreUnavailable | None = None
        taken: list[_Group] = []
        for group, reply, own in zip(groups, replies, asked, strict=True):
            if isinstance(reply, StoreUnavailable):
                failure = _graver(reply, failure)
                continue
            answer = read_decision(reply, own, self.name)
            answers.append(answer)
            if answer.admitted and group.places and (not look or any(answer.granted)):
                taken.append(group)
        if failure is None and epoch != self._epoch:  # of a master's successor, perhaps, which answered in its place
            decision = Decision(Status.STALE, max(answer.now_us for answer in answers), store=self.name)
        elif failure is None:
            decision = self._merged(groups, answers, tenant, takes.footprint)
            if decision.admitted:
                return decision
        try:
            await self._give_back(admission, takes, taken)
        except (CannotDecide, Overloaded) as error:  # what is still taken must be cancelled
            raise StoreUnavailable(str(error)) from error
        if failure is not None:
            raise failure
        return decision

    def _part(
        self, admission: Admission, takes: Takes, group: _Group, tenant: str, *, look: bool
    ) -> tuple[Admission, tuple[str, str, str]]:
        """A group's own admission, and the head of its keys. The global group compares the policy's version, and the
        epoch in the place of a tenant's; the tenant's group compares the tenant's; others nothing."""
        tag = group.tag
        life = 0 if look else admission.expires_us
        part = Admission(admission.id, takes.at(group.footprint, group.places), life, admission.tenant)
        version = f"{{{tag}}}version"
        if tag == GLOBAL:
            part.policy_version, part.tenant_version, version = admission.policy_version, self._epoch, EPOCH
        elif tag == tenant:
            part.tenant_version, part.ask = admission.tenant_version, admission.ask
        return part, (f"{{{tag}}}policy", version, f"{{{tag}}}epoch.{self._epoch}")

    def _merged(
        self, groups: Sequence[_Group], answers: Sequence[Decision], tenant: str, footprint: Footprint
    ) -> Decision:
        """One decision of all answers. Nodes' clocks differ a little, and a TAT is a moment of its own node's: it is
        told on the clock that is ahead; but in which window a budget is, on that of its node."""
        found = {answer.status: answer for answer in reversed(answers)}
        status = next(status for status in PRECEDENCE if status in found)
        now = found[status].now_us if status is Status.WINDOW else max(answer.now_us for answer in answers)
        decision = Decision(status, now, store=self.name)
        until = asyncio.get_running_loop().time() + SUSPECT
        values, granted = [0] * len(footprint.keys), [0] * len(footprint.keys)
        for group, answer in zip(groups, answers, strict=True):
            if group.tag == GLOBAL:
                decision.policy_version = answer.policy_version
                self._empty = not answer.tenant_version
                self._epoch = max(self._epoch, answer.tenant_version)
            elif group.tag == tenant:
                decision.tenant_version, decision.told = answer.tenant_version, answer.told
            if answer.status is Status.REFUSED:
                self._suspects.put(group.tag, until)
            for place, value, amount in zip(group.places, answer.values, answer.granted, strict=False):
                if status is Status.ADMITTED:
                    values[place], granted[place] = value, amount
                else:  # given back
                    values[place] = value - amount
                if place < footprint.rates:
                    values[place] += now - answer.now_us
        if status in (Status.ADMITTED, Status.REFUSED):
            decision.values, decision.granted = values, granted
        elif status is Status.COLD:
            cold = (group.places[i] for group, answer in zip(groups, answers, strict=True) for i in answer.cold)
            decision.cold = tuple(sorted(cold))
        return decision

    async def _give_back(self, admission: Admission, takes: Takes, taken: Sequence[_Group]) -> None:
        """Settle these groups as if nothing had been used. Idempotent, as settling is."""
        if taken:
            await self._settle(undone(admission), takes, taken)

    async def _settle(
        self, settlement: Settlement, takes: Takes, groups: Sequence[_Group], *, copies: bool = False
    ) -> bool:
        calls: list[Call] = []
        for group in groups:
            used = [settlement.used[i] for i in group.places]
            part = Settlement(settlement.id, takes.at(group.footprint, group.places), used, settlement.tenant)
            part.late = settlement.late
            if settlement.sample is not None and group.tag == hash_tag(settlement.learn):
                part.sample, part.learn = settlement.sample, settlement.learn
            prepared, numbers = settle_call(self._scripts.settle, part, self._now(), copies=copies)
            calls.append(_to(group.tag, prepared.call(_marker(group.tag, settlement.id), numbers)))
        return any(await self._run(calls))

    async def _for_each_tag(self, script: Script, values: Mapping[str, int], *first: int) -> None:
        parts: dict[str, list[str]] = {}
        for name in values:
            parts.setdefault(hash_tag(name), []).append(name)
        await self._run(
            [_to(tag, script.call(part, [*first, *(values[name] for name in part)])) for tag, part in parts.items()]
        )

    async def _run(self, calls: Sequence[Call]) -> list[Any]:
        """All replies; the gravest failure is raised after all calls were made."""
        replies = await self._cluster.run(calls)
        failure: StoreUnavailable | None = None
        for reply in replies:
            if isinstance(reply, StoreUnavailable):
                failure = _graver(reply, failure)
        if failure is not None:
            raise failure
        return replies


def _graver(failure: StoreUnavailable, other: StoreUnavailable | None) -> StoreUnavailable:
    """Which of two is told: that a reply was lost, because what was asked for may have been done."""
    return failure if other is None or isinstance(other, (CannotDecide, Overloaded)) else other


def _groups(footprint: Footprint, also: Sequence[str] = ()) -> Sequence[_Group]:
    """What each slot decides; of the tags in `also`, be it nothing."""
    memo = footprint.memo
    if ("groups", also) not in memo:
        places: dict[str, list[int]] = {}
        for place, key in enumerate(footprint.keys):
            places.setdefault(hash_tag(key), []).append(place)
        for tag in also:
            places.setdefault(tag, [])
        memo["groups", also] = [_Group(tag, some, footprint.part(some)) for tag, some in places.items()]
    groups: Sequence[_Group] = memo["groups", also]
    return groups


def _to(tag: str, call: ScriptCall) -> Call:
    return Call(slot_of(tag), call)


def _marker(tag: str, id: str) -> str:
    return f"{{{tag}}}m:{id}"
