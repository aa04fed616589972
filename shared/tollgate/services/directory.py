"""The running policy and the tenants' records, as this container knows them.

Nothing here polls while Redis decides: every admission carries the versions that it was made from, and the store
answers STALE when it knows newer ones; only then are they read again. Records that cannot be versioned (a tenant
without one), and everything while another store decides, are read again after a few seconds.

This container's own clock says how old such a reading is, and nothing else. What a date in the policy or in a record
says is told by the store's clock, as far as it is known (`Admitter.now_us`): the moment is the caller's to give.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from tollgate.domain.data_rules import permitted, retains_nothing
from tollgate.domain.dataclass import dataclass
from tollgate.domain.identity import Identity
from tollgate.domain.limits import FOREVER_US, FailureMode
from tollgate.domain.policy import SPEAKS, Policy, RouteSpec, TenantRecord, changes_us
from tollgate.domain.terms import Bound, Claim, Terms, compile_terms, ip_bounds, upstream_bounds
from tollgate.ports import PolicySource, PolicyUnavailable
from tollgate.wire.errors import Api
from tollgate.wire.headers import RateHeaders

MAX_RECORDS = 10_000
MAX_ENTITLEMENTS = 5_000
MAX_ADDRESSES = 20_000
RECHECK_US = 5_000_000
"""How long an unversioned answer is believed: with the store's own second, well within the promised 10 s."""


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What one caller, from one address, may do with one model."""

    policy: Policy
    record: TenantRecord
    terms: Terms
    routes: tuple[RouteSpec, ...]
    """The model's upstreams that speak the caller's API and break none of the caller's data rules; at least one."""
    retains_nothing: bool
    """Whether the caller's data rules forbid that the provider keeps content."""
    longest_us: int
    """How long a call can take: the total timeouts of its routes, one after the other."""
    claim: Claim
    """Every limit of the caller, of the address, of the model, of its first upstream, and of everybody."""
    told: RateHeaders
    """What answers say of its rates."""
    failure_mode: FailureMode | None
    """Who decides while Redis does not, where the tenant or the plan says so."""
    since_us: int
    until_us: int
    """Between which moments it is so, on the store's clock: when something dated in it has changed last, and when
    something changes next."""


@dataclass(slots=True)
class _Known:
    """What was read of a tenant, and when."""

    own: TenantRecord | None
    """The tenant's record, None if there is none (then the token's plan counts)."""
    read_us: int


class Directory:
    """Reads through a `PolicySource`, once for many waiting requests."""

    def __init__(
        self,
        source: PolicySource,
        clock: Callable[[], int],
        versioned: Callable[[], bool],
        *,
        plan_of_token: bool = True,
    ) -> None:
        """`versioned`: whether the store that decides now compares versions (else records age). `plan_of_token`:
        whether tenants without a record have the plan that their callers' tokens name (else none)."""
        self._source = source
        self._clock = clock
        self._versioned = versioned
        self._plan_of_token = plan_of_token
        self._policy: Policy | None = None
        self._policy_read_us = 0
        self._records: OrderedDict[str, _Known] = OrderedDict()
        self._entitlements: OrderedDict[tuple[str, ...], Entitlement] = OrderedDict()
        self._upstreams: dict[str, tuple[Bound, ...]] = {}
        self._addresses: OrderedDict[str, tuple[Bound, ...]] = OrderedDict()
        self._reading: dict[str, asyncio.Future[None]] = {}

    async def policy(self) -> Policy:
        """The policy in force. Raises `PolicyUnavailable` only where none was ever read."""
        if self._policy is None or (not self._versioned() and _aged(self._policy_read_us, self._clock())):
            await self._once("", self._read_policy)
        assert self._policy is not None
        return self._policy

    @property
    def known_policy(self) -> Policy | None:
        """The policy in force, if one was read; no IO."""
        return self._policy

    @property
    def revision(self) -> int | None:
        return self._policy.revision if self._policy is not None else None

    async def record(self, who: Identity) -> TenantRecord | None:
        """The tenant's record; without one, the plan that the caller's token names (None if it names none, or does not
        count).

        Raises `PolicyUnavailable` where it cannot be read and was never read before.
        """
        known = self._records.get(who.tenant)
        if known is None or ((known.own is None or not self._versioned()) and _aged(known.read_us, self._clock())):
            await self._once(who.tenant, lambda: self._read_record(who.tenant))
            known = self._records[who.tenant]
        if known.own is not None:
            return known.own
        policy = await self.policy()
        if not self._plan_of_token or who.plan not in policy.plans:
            return None
        return TenantRecord(tenant=who.tenant, plan=who.plan, version=0)

    def known(self, who: Identity, model: str, api: Api, ip: str, now_us: int) -> Entitlement | None:
        """The caller's entitlement at a moment, if it was made before and nothing it was made from has changed or is
        too old."""
        found = self._entitlements.get(_name(who, model, api, ip))
        if found is None or found.policy is not self._policy or not found.since_us <= now_us < found.until_us:
            return None
        known = self._records.get(who.tenant)
        if known is None or (known.own is not found.record and (known.own is not None or found.record.version)):
            return None
        versioned = self._versioned()
        if versioned and known.own is not None:
            return found
        now = self._clock()
        if _aged(known.read_us, now):
            return None
        return None if not versioned and _aged(self._policy_read_us, now) else found

    def entitlement(
        self, policy: Policy, record: TenantRecord, who: Identity, model: str, api: Api, ip: str, now_us: int
    ) -> Entitlement:
        """Make the caller's entitlement, at a moment, for a model that the plan includes and that some route may serve,
        and remember it."""
        terms = compile_terms(policy, record, who, model, now_us)
        rules = record.data_rules(who.team)
        routes = permitted(rules, speaking(policy, model, api), policy.upstreams)
        longest = int(sum(policy.upstreams[route.upstream].timeouts.total for route in routes) * 1_000_000)
        first = routes[0].upstream
        claim = Claim((*self.ip_bounds(policy, ip), *terms.bounds), first, self.upstream_bounds(policy, first))
        changes = [*changes_us(record, who.user), *terms.tariffs.changes_us()]
        since = max((moment for moment in changes if moment <= now_us), default=0)
        until = min((moment for moment in changes if moment > now_us), default=FOREVER_US)
        told = RateHeaders.shared(tuple(claim.rates))
        mode = record.redis_failure_mode or terms.plan.redis_failure_mode
        made = Entitlement(
            policy, record, terms, routes, retains_nothing(rules), longest, claim, told, mode, since, until
        )
        self._entitlements[_name(who, model, api, ip)] = made
        if len(self._entitlements) > MAX_ENTITLEMENTS:
            self._entitlements.popitem(last=False)
        return made

    async def refresh(self, tenant: str, policy_version: int, tenant_version: int) -> None:
        """Read again what the store knows newer versions of."""
        if self._policy is not None and self._policy.revision < policy_version:
            await self._once("", self._read_policy)
        known = self._records.get(tenant)
        if known is None or known.own is None or known.own.version < tenant_version:
            await self._once(tenant, lambda: self._read_record(tenant))

    async def recheck(self, tenant: str) -> bool:
        """Read policy and record again unless that was done within `RECHECK_US`; whether it was done now.

        For answers that are given without an admission, which would have compared the versions: refusals (suspended,
        a model that the plan has not) would otherwise stand for ever, because they stop every later admission.
        """
        known, now = self._records.get(tenant), self._clock()
        if known is None or not (_aged(known.read_us, now) or _aged(self._policy_read_us, now)):
            return False
        await self._once("", self._read_policy)
        await self._once(tenant, lambda: self._read_record(tenant))
        return True

    def upstream_bounds(self, policy: Policy, upstream: str) -> tuple[Bound, ...]:
        found = self._upstreams.get(upstream)
        if found is None:
            found = self._upstreams[upstream] = upstream_bounds(policy, upstream)
        return found

    def ip_bounds(self, policy: Policy, ip: str) -> tuple[Bound, ...]:
        found = self._addresses.get(ip)
        if found is None:
            found = self._addresses[ip] = ip_bounds(policy, ip)
            if len(self._addresses) > MAX_ADDRESSES:
                self._addresses.popitem(last=False)
        return found

    async def _once(self, what: str, read: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """One read at a time for each thing; whoever comes meanwhile waits for it."""
        waiting = self._reading.get(what)
        if waiting is None:
            waiting = self._reading[what] = asyncio.ensure_future(read())
            waiting.add_done_callback(lambda _: self._reading.pop(what, None))
        await asyncio.shield(waiting)

    async def _read_policy(self) -> None:
        try:
            policy = await self._source.policy()
        except PolicyUnavailable:
            if self._policy is None:
                raise
            policy = self._policy  # the last good one stays in force
        if policy is not self._policy:
            self._entitlements.clear()
            self._upstreams.clear()
            self._addresses.clear()
        self._policy = policy
        self._policy_read_us = self._clock()

    async def _read_record(self, tenant: str) -> None:
        known = self._records.get(tenant)
        try:
            record = await self._source.tenant(tenant)
        except PolicyUnavailable:
            if known is None:
                raise
            record = known.own
        self._records.pop(tenant, None)
        self._records[tenant] = _Known(record, self._clock())
        if len(self._records) > MAX_RECORDS:
            self._records.popitem(last=False)


def _aged(read_us: int, now_us: int) -> bool:
    return not 0 <= now_us - read_us < RECHECK_US


def speaking(policy: Policy, model: str, api: Api) -> list[RouteSpec]:
    """The model's routes whose upstream speaks that API."""
    return [r for r in policy.models[model].route if SPEAKS[policy.upstreams[r.upstream].api] == api]


def _name(who: Identity, model: str, api: Api, ip: str) -> tuple[str, ...]:
    return who.tenant, who.user, who.team, who.key, who.plan, who.restrictions, model, api, ip
