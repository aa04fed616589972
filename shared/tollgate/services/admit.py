"""Admission: may this caller make this call now, and what does it take from whom?

The story, in order: the caller's terms; the local cache (no IO); one call to the store. The store may answer that
something must be looked up first (a newer policy, a budget it has not loaded, the right day): then it has taken
nothing, and is asked again with what was missing. What is dated (windows, boosts, prices) is decided by the store's
clock: this container's own is corrected by the last answer, and what was asked for another moment is asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tollgate.domain import data_rules
from tollgate.domain.bucket_cache import BucketCache
from tollgate.domain.dataclass import dataclass
from tollgate.domain.degradation import Degraded, Levels
from tollgate.domain.identity import Identity
from tollgate.domain.limits import (
    Admission,
    BudgetTake,
    Decision,
    Limit,
    Settlement,
    Status,
    Take,
    Unit,
    undone,
)
from tollgate.domain.policy import DegradeSpec, Policy, TenantRecord
from tollgate.domain.restrictions import restrictions
from tollgate.domain.takes import Cost, Takes
from tollgate.domain.terms import Claim, Terms
from tollgate.ports import LimitStore, Overloaded, PolicyUnavailable, Spending, StoreClosed, StoreUnavailable
from tollgate.services.cold import known_elsewhere
from tollgate.services.directory import Directory, Entitlement, speaking
from tollgate.services.standing import RETRY_AFTER_US, check_standing
from tollgate.wire import errors
from tollgate.wire.capabilities import can_serve
from tollgate.wire.errors import Api
from tollgate.wire.refusals import refusal_error
from tollgate.wire.routes import Call

MAX_ROUNDS = 6
"""Admission, and at most a reload of the policy and of the moment, and a lesser model; then once more."""
HOLD_MARGIN_US = 30_000_000
"""A hold outlives its call by this, so that a slow settlement still finds it."""


@dataclass(slots=True)
class Request:
    """What one call asks for, as far as admission cares. `output_tokens` is the answer's maximum, or None."""

    id: str
    api: Api
    """Whose shapes the caller speaks: the model's upstream has to speak them, too."""
    model: str
    input_tokens: int
    output_tokens: int | None
    longest_us: int
    """How long the call may take, from now: until the process's deadline."""
    answers: int = 1
    """How many answers share the maximum."""
    limit_field: str = "max_tokens"
    """The field that limits each answer, for errors; empty where answers have no length."""
    retained: str = ""
    """The field that asks the provider to keep content; empty: none does."""
    ask: str = ""
    """The key of estimates to hear of with the answer; empty: none."""
    call: Call | None = None
    fields: Mapping[str, Any] | None = None
    """The call and its body, which say what else could serve it; without them nothing else does."""
    degraded: Degraded | None = None
    """What was done to it, because a budget is used beyond the plan's soft threshold."""


@dataclass(slots=True)
class Grant:
    """An admitted call: what was taken, and from whom."""

    request: Request
    entitlement: Entitlement
    claim: Claim
    admission: Admission
    decision: Decision
    cost: Cost

    @property
    def takes(self) -> Takes:
        """What was taken, as columns."""
        return Takes.of(self.admission.takes)

    def settlement(self, tokens: int, microusd: int, *, counts: bool, served: str = "") -> Settlement:
        """What was really used; `counts`: also as a request (see `counts_as_request`); `served`: by which upstream,
        where that may be another one than the first."""
        amounts, taken = self.claim.used(tokens, microusd, sent=counts, served=served), self.admission
        rates_us = self.takes.settled_us(amounts)
        return Settlement(taken.id, taken.takes, amounts, taken.tenant, self.decision.store, rates_us)


class Admitter:
    """Decides admissions. `local` is the store that decides for `open` plans when no other answers."""

    def __init__(
        self,
        store: LimitStore,
        ledger: Spending,
        directory: Directory,
        local: LimitStore,
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._directory = directory
        self._local = local
        self._clock = clock
        self._cache = BucketCache()
        self._levels = Levels()

    def now_us(self) -> int:
        """The store's clock, as far as its last answer told."""
        return self._cache.now_us(self._clock())

    async def admit(self, who: Identity, ip: str, request: Request, guess: int) -> Grant:
        """Take what the call needs, or raise `ApiError`: 400, 402, 403, 404, 429 or 503.

        `guess`: tokens of the answer to expect where the caller gives no maximum.
        """
        for _ in range(MAX_ROUNDS):
            clock = self._clock()
            now = self._cache.now_us(clock)
            entitlement = self._directory.known(who, request.model, request.api, ip, now)
            if entitlement is None:
                entitlement = await self._entitlement(who, ip, request)
            if request.retained and entitlement.retains_nothing:
                raise errors.keeps_content(request.retained)
            cost = expected_cost(entitlement.terms, request, guess)
            taken: Sequence[Take] = entitlement.claim.takes(cost, now)
            rule = entitlement.terms.plan.degrade
            if rule is not None and (lower := await self._lower(who, ip, request, entitlement, rule, taken, now)):
                request, guess = lower, _cut(guess, lower)
                continue
            versions = entitlement.record.version, entitlement.policy.revision
            life, mode = _hold_us(request, entitlement), entitlement.failure_mode
            admission = Admission(request.id, taken, life, who.tenant, *versions, request.ask, mode)
            if (known := impossible(admission, now)) is not None:
                if await self._directory.recheck(who.tenant):  # no store is asked, so none can say that this is old
                    continue
                raise _refused(request, entitlement, *known)
            if (known := self._cache.refuses(admission, clock)) is not None:
                raise _refused(request, entitlement, *known)
            decision = await self._decide(admission, entitlement)
            self._cache.learn(admission, decision, clock)
            status = decision.status
            if status is Status.WINDOW or not entitlement.since_us <= decision.now_us < entitlement.until_us:
                await self._undo(admission, decision)
                self._cache.forget(admission)
                continue
            lower = None
            if rule is not None and status in (Status.ADMITTED, Status.REFUSED):
                self._levels.learn(taken, decision)
                lower = await self._lower(who, ip, request, entitlement, rule, taken, decision.now_us)
            if status is Status.ADMITTED:
                grant = Grant(request, entitlement, entitlement.claim, admission, decision, cost)
                return grant if lower is None else self._lowered(grant, who, ip, lower, guess)
            if status is Status.REFUSED:
                if lower is None:
                    raise _refused(request, entitlement, admission, decision)
                request, guess = lower, _cut(guess, lower)
            elif status is Status.STALE:
                await self._directory.refresh(who.tenant, decision.policy_version, decision.tenant_version)
        raise errors.unavailable("The limits are changing too fast to be read. Try again.", RETRY_AFTER_US)

    async def settle(self, settlement: Settlement) -> None:
        """Replace what was held by what was used. A store that does not answer is not the caller's problem: the hold
        expires by itself, and metering brings what was used."""
        try:
            await self._store_of(settlement).settle(settlement)
        except StoreUnavailable:
            return

    async def admit_upstream(self, grant: Grant, upstream: str, attempt: int) -> Grant | None:
        """Take from the limits of a further upstream, when the first could not be reached; None if it has no room, or
        if nobody can tell.

        The result holds those takes only, and is settled like the grant itself; it is empty where the upstream has no
        limits, or where the grant holds them (another model of the first upstream is to serve).
        """
        entitlement, held = grant.entitlement, grant.admission
        own = self._directory.upstream_bounds(entitlement.policy, upstream) if upstream != grant.claim.upstream else ()
        claim, now = Claim((), upstream, own), self.now_us()
        admission = Admission(f"{held.id}.{attempt}", claim.takes(grant.cost, now), held.expires_us, held.tenant)
        admission.failure_mode = held.failure_mode
        decision = Decision(Status.ADMITTED, now)
        if own:
            try:
                decision = await self._decide(admission, entitlement)
            except errors.ApiError:
                return None
        return Grant(grant.request, entitlement, claim, admission, decision, grant.cost) if decision.admitted else None

    # -- degradation

    async def _lower(
        self,
        who: Identity,
        ip: str,
        request: Request,
        entitlement: Entitlement,
        rule: DegradeSpec,
        takes: Sequence[Take],
        now_us: int,
    ) -> Request | None:
        """What the plan makes of the request, if one of its budgets is known to be used that far; None: nothing (else,
        if it was degraded before)."""
        if request.degraded is not None or (budget := self._levels.passed(rule.at, takes, now_us)) is None:
            return None
        call, fields = request.call, request.fields
        if call is None or fields is None or call.route.shape == "embeddings":
            return None
        most = rule.max_output_tokens
        output = request.output_tokens
        if output is not None and most is not None:
            output = min(output, most * request.answers)
        degraded = Degraded(request.model, request.model, most, budget.id, rule.at)
        lower = replace(request, output_tokens=output, degraded=degraded)
        model = rule.models.get(request.model)
        if model is not None:
            cheaper = replace(lower, model=model, degraded=replace(degraded, model=model))
            if await self._may_serve(who, ip, cheaper, entitlement):
                return cheaper
        return lower if most is not None else None

    async def _may_serve(self, who: Identity, ip: str, cheaper: Request, asked: Entitlement) -> bool:
        """Whether the cheaper model is able to, allowed to (by data rules, say), and really cheaper now."""
        assert cheaper.call is not None
        assert cheaper.fields is not None
        model = asked.policy.models[cheaper.model]
        longest = (cheaper.output_tokens or 0) // cheaper.answers
        if not can_serve(model, cheaper.call, cheaper.fields, cheaper.input_tokens, longest):
            return False
        try:
            found = self._directory.known(who, cheaper.model, cheaper.api, ip, self.now_us())
            other = found or await self._entitlement(who, ip, cheaper)
        except errors.ApiError:
            return False
        return not other.terms.price.exceeds(asked.terms.price)

    def _lowered(self, grant: Grant, who: Identity, ip: str, lower: Request, guess: int) -> Grant:
        """The grant of a request whose own admission told that it is to be degraded. What was taken is enough where the
        other model meets no limit that this one does not; otherwise this one call is served as it was asked."""
        entitlement = self._directory.known(who, lower.model, lower.api, ip, grant.decision.now_us)
        if entitlement is None:
            return grant
        cost = expected_cost(entitlement.terms, lower, _cut(guess, lower))
        if cost.tokens > grant.cost.tokens or cost.microusd > grant.cost.microusd:
            return grant
        held = {take.key: take for take in grant.admission.takes}
        wanted = {take.key: take for take in entitlement.claim.takes(cost, grant.decision.now_us)}
        budgets = {key for key, take in held.items() if isinstance(take, BudgetTake)}
        if not wanted.keys() <= held.keys() or not budgets <= wanted.keys():
            return grant
        mixed = replace(entitlement, claim=grant.claim, told=grant.entitlement.told)
        return replace(grant, request=lower, entitlement=mixed)

    # -- internals

    def _store_of(self, settlement: Settlement) -> LimitStore:
        return self._local if settlement.store == self._local.name else self._store

    async def _entitlement(self, who: Identity, ip: str, request: Request) -> Entitlement:
        """What the caller may do with the model, read anew. Raises `ApiError`."""
        directory = self._directory
        try:
            policy, record = await directory.policy(), await directory.record(who)
            if objection(policy, record, who, request, self.now_us()) and await directory.recheck(who.tenant):
                policy, record = await directory.policy(), await directory.record(who)
        except PolicyUnavailable as error:
            raise errors.unavailable(str(error), RETRY_AFTER_US, "policy_unavailable") from error
        now = self.now_us()
        if refused := objection(policy, record, who, request, now):
            raise refused
        assert record is not None
        return directory.entitlement(policy, record, who, request.model, request.api, ip, now)

    async def _decide(self, admission: Admission, entitlement: Entitlement) -> Decision:
        """One call to the store, and another where it lacked something, which is loaded. Where it cannot be decided or
        loaded, what the plan (or the tenant) says."""
        try:
            decision = await self._store.admit(admission)
            if decision.status is Status.COLD:
                takes = Takes.of(admission.takes)
                known = await known_elsewhere(takes, decision.cold, self._store, self._ledger)
                admission.takes = takes.seeded(known)
                decision = await self._store.admit(admission)
            return decision
        except Overloaded as error:
            raise errors.unavailable("Too many requests at once. Try again shortly.", code="overloaded") from error
        except StoreUnavailable as error:
            terms = entitlement.terms
            posture = entitlement.record.when_stores_fail or terms.plan.when_stores_fail
            if posture == "closed" or terms.counts_money or isinstance(error, StoreClosed):
                message = "The gateway cannot check your limits at the moment. Try again shortly."
                raise errors.unavailable(message, RETRY_AFTER_US, "limits_unavailable") from error
            for take in admission.takes:
                if isinstance(take, BudgetTake) and take.seed is None:
                    take.seed = 0
            decision = await self._local.admit(admission)
            decision.local = True
            return decision

    async def _undo(self, admission: Admission, decision: Decision) -> None:
        """Give back what was taken by another moment's limits. (Also from a store that says that it has another day:
        it may have taken before, while that day lasted, in an answer that was lost with its connection.)"""
        settlement = undone(admission, decision.store)
        try:
            await self._store_of(settlement).settle(settlement)
        except StoreUnavailable as error:  # the same id would be told what it holds already
            raise errors.unavailable("The limits change at this moment. Try again.", RETRY_AFTER_US) from error


def _cut(guess: int, request: Request) -> int:
    """The tokens to expect of the answers, where the plan cuts them short."""
    degraded = request.degraded
    if degraded is None or degraded.max_output is None:
        return guess
    return min(guess, degraded.max_output * request.answers)


def _hold_us(request: Request, entitlement: Entitlement) -> int:
    """How long what a call takes is held if nobody settles it: until it must have ended, and a while for a slow
    settlement. Longer would keep what a killed process held from its tenant for nothing."""
    return min(request.longest_us, entitlement.longest_us) + HOLD_MARGIN_US


def impossible(admission: Admission, now_us: int) -> tuple[Admission, Decision] | None:
    """A refusal of what is above a whole burst or budget: no store needs to be asked, and no wait can help."""
    every = Takes.of(admission.takes)
    if every.possible:
        return None
    takes = [
        take for take, needed, most in zip(every, every.floors, every.footprint.ceilings, strict=True) if needed > most
    ]
    known = Admission(admission.id, takes, admission.expires_us, admission.tenant)
    return known, Decision(Status.REFUSED, now_us, [0] * len(takes))


def objection(
    policy: Policy, record: TenantRecord | None, who: Identity, request: Request, now_us: int
) -> errors.ApiError | None:
    """Why this caller may not call this model at all; None if they may."""
    try:
        check_standing(policy, record, who, now_us)
    except errors.ApiError as error:
        return error
    assert record is not None
    model = request.model
    if model not in policy.models:
        return errors.model_not_found(model)
    if model not in policy.plans[record.plan].models:
        return errors.model_not_allowed(model)
    if not restrictions(who.restrictions).allows_model(model):
        return errors.key_not_allowed(f"the model {errors.shown(model)}", "model_not_allowed", "model")
    routes = speaking(policy, model, request.api)
    if not routes:
        return errors.model_not_on_route(model)
    reason = data_rules.objection(record.data_rules(who.team), model, routes, policy.upstreams)
    return errors.data_rule(model, reason) if reason else None


def _refused(request: Request, entitlement: Entitlement, admission: Admission, decision: Decision) -> errors.ApiError:
    """The error for a refusal; where the caller's own maximum is the problem, it says which one would fit."""
    price = entitlement.terms.price
    if request.output_tokens is None or not request.limit_field:
        return refusal_error(admission, decision)

    def largest(limit: Limit, amount: int) -> int | None:
        if limit.unit is Unit.TOKENS:
            return max(0, amount - request.input_tokens) // request.answers
        if limit.unit is Unit.MICROUSD:
            return price.affordable(amount, request.input_tokens) // request.answers
        return None

    return refusal_error(admission, decision, param=request.limit_field, largest=largest)


def expected_cost(terms: Terms, request: Request, guess: int) -> Cost:
    """What to hold: the prompt's estimate and the answer's maximum, or a guess that may shrink to nothing; but every
    further answer of one request needs room for a token, or a thousand of them would slip in as one."""
    prompt = request.input_tokens
    most = least = prompt + (request.output_tokens or 0)
    if request.output_tokens is None:
        least = prompt + request.answers - 1
        most = max(prompt + guess, least)
    price = terms.price
    dearest = price.estimate(prompt, most - prompt)
    return Cost(most, least, dearest, dearest if least == most else price.estimate(prompt, least - prompt))
