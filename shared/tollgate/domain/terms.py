"""A tenant's terms: the plan with the tenant's overrides, compiled into the limits that apply to one model.

Compiled once per tenant record, policy revision and user; per request only costs are filled in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

from tollgate.domain import keys
from tollgate.domain.dataclass import dataclass
from tollgate.domain.identity import Identity
from tollgate.domain.limits import (
    FOREVER_US,
    PERIOD_US,
    Budget,
    Concurrency,
    Limit,
    Rate,
    Scope,
    Unit,
    Window,
)
from tollgate.domain.policy import (
    BudgetOverride,
    BudgetSpec,
    LimitOverride,
    LimitSpec,
    ModelSpec,
    PlanSpec,
    Policy,
    TenantRecord,
    in_force,
)
from tollgate.domain.prices import Price, Tariffs
from tollgate.domain.restrictions import restrictions
from tollgate.domain.takes import Cost, Footprint, Span, Takes


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit together with the subject and key of the bucket that counts it (budgets: without their window)."""

    limit: Limit
    subject: str
    key: str


_COUNTED = (Unit.TOKENS, Unit.MICROUSD, Unit.REQUESTS)
"""What budgets count, in the order in which a call's amounts are told."""


class Claim:
    """Every limit that calls of one kind meet. They are laid out once, and again when a budget's window ends; then only
    a call's cost is filled in."""

    __slots__ = (
        "_bounds", "_counted", "_footprint", "_from_us", "_own", "_requests", "_slots", "_tokens", "_until_us",
        "upstream",
    )  # fmt: skip

    def __init__(self, bounds: Iterable[Bound], upstream: str = "", own: Sequence[Bound] = ()) -> None:
        """`upstream`: the one that the call is sent to first, if it is known, with its `own` limits."""
        self.upstream = upstream
        requests, tokens, budgets, slots = list[Bound](), list[Bound](), list[Bound](), list[Bound]()
        for bound in (*bounds, *own):
            limit = bound.limit
            if isinstance(limit, Concurrency):
                slots.append(bound)
            elif isinstance(limit, Budget):
                budgets.append(bound)
            else:
                (requests if limit.unit is Unit.REQUESTS else tokens).append(bound)
        self._bounds = [*requests, *tokens, *budgets, *slots]
        self._requests = [rate.inc_us(1) for rate in _rates(requests)]
        self._tokens = _rates(tokens)
        self._own = len([rate for rate in _rates(own) if rate.unit is Unit.TOKENS])
        """How many of them are the upstream's: the last ones."""
        self._counted = [_COUNTED.index(bound.limit.unit) for bound in budgets]
        self._slots = [1] * len(slots)
        self._footprint: Footprint | None = None
        self._from_us = self._until_us = 0

    @property
    def rates(self) -> list[Rate]:
        """Those of the takes, in their order."""
        return _rates(self._bounds)

    def takes(self, cost: Cost, now_us: int) -> Takes:
        """What one call takes from each limit; from budgets in the windows that contain `now_us`."""
        footprint = self._footprint
        if footprint is None or not self._from_us <= now_us < self._until_us:
            footprint = self._laid_out(now_us)
        costs = self._amounts(cost.tokens, cost.microusd)
        if cost.tokens == cost.least_tokens and cost.microusd == cost.least_microusd:
            return Takes(footprint, costs, costs, cost=cost)
        return Takes(footprint, costs, self._amounts(cost.least_tokens, cost.least_microusd), cost=cost)

    def used(self, tokens: int, microusd: int, *, sent: bool, served: str = "") -> list[int | None]:
        """What to settle for each take, in its unit: real usage; nothing moves for request rates; a request that never
        left the gateway (`sent` is False) does not count against a budget of requests. `served`: the upstream that
        served, where that may be another one than the first, which then has used no tokens."""
        own = tokens if served in ("", self.upstream) else 0
        amounts: list[int | None] = [None] * len(self._requests)
        amounts += [tokens] * (len(self._tokens) - self._own) + [own] * self._own
        used = (tokens, microusd, int(sent))
        amounts += [used[kind] for kind in self._counted]
        amounts += [0] * len(self._slots)
        return amounts

    def _amounts(self, tokens: int, microusd: int) -> list[int]:
        """Of a call that uses so much: µs of each rate's TAT, units of each budget, a slot of each other limit."""
        counts = (tokens, microusd, 1)
        rates = [-(-tokens * rate.period_us // rate.amount) for rate in self._tokens]  # `Rate.inc_us`, without its call
        return [*self._requests, *rates, *[counts[kind] for kind in self._counted], *self._slots]

    def _laid_out(self, now_us: int) -> Footprint:
        keys, spans = list[str](), list[Span]()
        self._from_us, self._until_us = 0, FOREVER_US
        for bound in self._bounds:
            key = bound.key
            if isinstance(bound.limit, Budget):
                span = label, start, end = bound.limit.window.bounds(now_us)
                spans.append(span)
                key = f"{key}:{label}"
                self._from_us, self._until_us = max(self._from_us, start), min(self._until_us, end)
            keys.append(key)
        made = Footprint([b.subject for b in self._bounds], keys, [b.limit for b in self._bounds], spans)
        self._footprint = made
        return made


def _rates(bounds: Iterable[Bound]) -> list[Rate]:
    return [bound.limit for bound in bounds if isinstance(bound.limit, Rate)]


@dataclass(frozen=True, slots=True)
class Terms:
    """What one user of a tenant may do with one model, ready to be taken from."""

    plan: PlanSpec
    model: ModelSpec
    price: Price
    """What to hold for a call."""
    tariffs: Tariffs
    bounds: tuple[Bound, ...]

    @property
    def counts_money(self) -> bool:
        return any(b.limit.unit is Unit.MICROUSD for b in self.bounds if isinstance(b.limit, Budget))


# One object for equal limits: the callers of a plan share theirs.
_rate = lru_cache(maxsize=4096)(Rate)
_slots = lru_cache(maxsize=4096)(Concurrency)
_budget = lru_cache(maxsize=4096)(Budget)


def rate_or_slots(spec: LimitSpec) -> Rate | Concurrency:
    if spec.concurrent is not None:
        return _slots(spec.scope, spec.concurrent, spec.id)
    period_us = PERIOD_US[spec.per or "second"]
    return _rate(spec.scope, spec.unit, spec.amount, period_us, spec.burst or spec.amount, spec.id)


def budget(spec: BudgetSpec) -> Budget:
    models = frozenset(spec.models) if spec.models is not None else None
    return _budget(spec.scope, spec.unit, spec.amount, spec.per, spec.id, models, spec.alert_at)


def compile_terms(policy: Policy, record: TenantRecord, who: Identity, model: str, now_us: int) -> Terms:
    """The terms of `who` for `model`, with the overrides that are in force at `now_us`.

    Raises KeyError where the plan or model does not exist: the caller has checked both.
    """
    plan = policy.plans[record.plan]
    spec = policy.models[model]
    bounds: list[Bound] = []
    own = restrictions(who.restrictions)
    overrides: list[LimitSpec] = [o for o in record.limits if in_force(o, who.user, now_us)]
    for limit_spec in overridden(plan.limits, [*overrides, *own.limits]):
        bounds += _bind(rate_or_slots(limit_spec), who)
    for owned in budgets(plan, record, who.user, now_us, own.budgets):
        if owned.models is None or model in owned.models:
            bounds += _bind(owned, who)
    for limit_spec in spec.limits:
        bounds += _bind(rate_or_slots(limit_spec), who, f"model:{model}")
    for limit_spec in policy.everyone.limits:
        if limit_spec.scope is Scope.GLOBAL:
            bounds += _bind(rate_or_slots(limit_spec), who)
    tariffs = Tariffs(policy, model)
    return Terms(plan, spec, tariffs.dearest(now_us), tariffs, tuple(bounds))


def budgets(
    plan: PlanSpec, record: TenantRecord, user: str, now_us: int, own: Iterable[BudgetSpec] = ()
) -> list[Budget]:
    """The budgets of a user at a moment: the plan's, the tenant's overrides, an API key's `own`, and prepaid credit.

    Credit is a budget for life. Where there is one already it grows by the credit; else it begins with what had been
    used before the first credit was added.
    """
    overrides: list[BudgetSpec] = [override for override in record.budgets if in_force(override, user, now_us)]
    found = {spec.id: budget(spec) for spec in overridden(plan.budgets, [*overrides, *own])}
    for credit in record.credit:
        if credit.user is not None and credit.user != user:
            continue
        scope = Scope.TENANT if credit.user is None else Scope.USER
        id = credit_budget(scope)
        added, before = int(credit.usd * 1_000_000), int(credit.used_before * 1_000_000)
        plans_own = found.get(id)
        if plans_own is None:
            found[id] = Budget(scope, Unit.MICROUSD, before + added, Window.LIFE, id, before=before)
        else:
            found[id] = replace(plans_own, amount=plans_own.amount + added)
    return list(found.values())


def bind_budgets(found: Iterable[Budget], who: Identity) -> list[Bound]:
    """Budgets with the subjects and keys that count them for this caller."""
    return [bound for owned in found for bound in _bind(owned, who)]


def all_alike(record: TenantRecord) -> bool:
    """Whether `budgets` gives the same for all users, at any time."""
    own = any(override.user is not None or override.until is not None for override in record.budgets)
    return not own and all(account.user is None for account in record.credit)


def credit_budget(scope: Scope) -> str:
    """The id of the budget that prepaid credit is."""
    return f"{scope}.{Unit.MICROUSD}.{Window.LIFE}"


def upstream_bounds(policy: Policy, upstream: str) -> tuple[Bound, ...]:
    """The limits of one upstream; they join an admission once the route is chosen."""
    name = f"upstream:{upstream}"
    subject = keys.global_subject(name)
    limits = [rate_or_slots(spec) for spec in policy.upstreams[upstream].limits]
    return tuple(Bound(limit, subject, _key(subject, limit)) for limit in limits)


def ip_bounds(policy: Policy, ip: str) -> tuple[Bound, ...]:
    """The limits of one client address."""
    subject = keys.ip_subject(ip)
    limits = [rate_or_slots(spec) for spec in policy.everyone.limits if spec.scope is Scope.IP]
    return tuple(Bound(limit, subject, _key(subject, limit)) for limit in limits)


S = TypeVar("S", bound="LimitSpec | BudgetSpec")


def overridden(base: Iterable[S], overrides: Iterable[S]) -> list[S]:
    """The plan's limits, each replaced by the override of the same id; overrides of no plan limit are added. A user's
    own override, or an API key's, beats the tenant's; of one owner's a boost beats what is there for good; of what is
    alike the last one wins."""
    merged: dict[str, S] = {spec.id: spec for spec in base}
    for override in sorted(overrides, key=_rank):
        merged[override.id] = override
    return list(merged.values())


def _rank(override: LimitSpec | BudgetSpec) -> tuple[bool, bool]:
    """Whose an override is (a tenant's is one of nobody's own), and whether it is a boost."""
    if isinstance(override, LimitOverride | BudgetOverride):
        return override.user is not None, override.until is not None
    return True, False  # of an API key


def _bind(limit: Limit, who: Identity, what: str = "") -> list[Bound]:
    """The limit with its subject; nothing where the caller has none (no team, no API key)."""
    if limit.scope is Scope.TENANT:
        subject = keys.tenant_subject(who.tenant)
    elif limit.scope is Scope.GLOBAL:
        subject = keys.global_subject(what)
    else:
        name = {Scope.USER: who.user, Scope.KEY: who.key, Scope.TEAM: who.team}.get(limit.scope, "")
        if not name:
            return []
        subject = keys.member_subject(who.tenant, limit.scope[0] if limit.scope is not Scope.TEAM else "t", name)
    return [Bound(limit, subject, _key(subject, limit))]


def _key(subject: str, limit: Limit) -> str:
    """Subject, then what is counted: ``{…}u…:tokens.minute``, or with a digest of the models of a budget."""
    what = limit.id.partition(".")[2]
    if isinstance(limit, Budget):
        return f"{subject}:b:{limit.unit}.{limit.window}" + (f".{keys.digest(what)}" if limit.models else "")
    return f"{subject}:{what}"
