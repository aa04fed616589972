"""Admission: may this caller make this call now, and what does it take from whom?

The story, in order: the caller's terms; the local cache (no IO); one call to the store. The store may answer that
something must be looked up first (a newer policy, a budget it has not loaded, the right day): then it has taken
nothing, and is asked again with what was missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tollgate.domain.bucket_cache import BucketCache
from tollgate.domain.identity import Identity
from tollgate.domain.limits import (
    Admission,
    BudgetTake,
    Decision,
    Limit,
    Settlement,
    State,
    Status,
    Unit,
    fits,
)
from tollgate.domain.policy import Policy, RouteSpec, TenantRecord
from tollgate.domain.terms import Bound, Cost, Terms, takes, used
from tollgate.ports import LimitStore, PolicyUnavailable, Spending, StoreUnavailable
from tollgate.services.directory import Directory
from tollgate.wire import errors
from tollgate.wire.errors import Api
from tollgate.wire.refusals import refusal_error

MAX_ROUNDS = 5
"""Admission, and at most a reload of the policy, of a budget and of the day; then once more."""
SPEAKS: dict[str, Api] = {"openai": "openai", "bedrock": "openai", "anthropic": "anthropic"}
"""The shapes that each kind of upstream speaks. Requests are passed on, never translated."""
UNTOUCHED = State(0)
"""A bucket that nothing was taken from."""
RETRY_AFTER_US = 2_000_000
"""What a caller is told to wait when no store answers: longer than the breaker needs to notice."""


@dataclass(slots=True)
class Request:
    """What one call asks for, as far as admission cares. `output_tokens` is the answer's maximum, or None."""

    id: str
    api: Api
    """Whose shapes the caller speaks: the model's upstream has to speak them, too."""
    model: str
    input_tokens: int
    output_tokens: int | None
    expires_us: int
    """How long what it takes is held, from now, if nobody settles it."""
    answers: int = 1
    """How many answers share the maximum."""
    limit_field: str = "max_tokens"
    """The field that limits each answer, for errors."""


@dataclass(slots=True)
class Grant:
    """An admitted call: what was taken, and from whom."""

    request: Request
    policy: Policy
    record: TenantRecord
    terms: Terms
    routes: Sequence[RouteSpec]
    admission: Admission
    decision: Decision
    cost: Cost

    def settlement(self, tokens: int, microusd: int, *, counts: bool) -> Settlement:
        """What was really used; `counts`: also as a request (see `counts_as_request`)."""
        taken = self.admission.takes
        amounts = used(taken, tokens, microusd, sent=counts)
        return Settlement(self.admission.id, taken, amounts, self.admission.tenant, self.decision.store)


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

    async def admit(self, who: Identity, ip: str, request: Request, guess: int) -> Grant:
        """Take what the call needs, or raise `ApiError`: 400, 402, 403, 404, 429 or 503.

        `guess`: tokens of the answer to expect where the caller gives no maximum.
        """
        seeds: dict[str, int] = {}
        for _ in range(MAX_ROUNDS):
            grant = await self._plan(who, ip, request, guess)
            for take in grant.admission.takes:
                if isinstance(take, BudgetTake):
                    take.seed = seeds.get(take.key)
            known = impossible(grant.admission, self._cache.now_us(self._clock()))
            if known is None:
                known = self._cache.refuses(grant.admission, self._clock())
            if known is not None:
                raise _refused(grant, *known)
            decision = await self._decide(grant, seeds)
            self._cache.learn(grant.admission, decision, self._clock())
            if decision.status is Status.ADMITTED:
                grant.decision = decision
                return grant
            if decision.status is Status.REFUSED:
                raise _refused(grant, grant.admission, decision)
            if decision.status is Status.STALE:
                await self._directory.refresh(who.tenant, decision.policy_version, decision.tenant_version)
            elif decision.status is Status.COLD:
                await self._load(grant.admission, decision, seeds)
        raise errors.unavailable("The limits are changing too fast to be read. Try again.", RETRY_AFTER_US)

    async def settle(self, settlement: Settlement) -> None:
        """Replace what was held by what was used. A store that does not answer is not the caller's problem: the hold
        expires by itself, and metering brings what was used."""
        store = self._local if settlement.store == self._local.name else self._store
        try:
            await store.settle(settlement)
        except StoreUnavailable:
            return

    async def admit_upstream(self, grant: Grant, upstream: str, attempt: int) -> Grant | None:
        """Take from the limits of a further upstream, when the first could not be reached; None if it has no room.

        The result holds those takes only, and is settled like the grant itself.
        """
        bounds = self._directory.upstream_bounds(grant.policy, upstream)
        taken = takes(bounds, grant.cost, self._cache.now_us(self._clock()))
        admission = Admission(f"{grant.admission.id}.{attempt}", taken, grant.request.expires_us, grant.record.tenant)
        try:
            decision = await self._store.admit(admission)
        except StoreUnavailable:
            return None
        if not decision.admitted:
            return None
        return Grant(
            grant.request, grant.policy, grant.record, grant.terms, grant.routes, admission, decision, grant.cost
        )

    # -- internals

    async def _plan(self, who: Identity, ip: str, request: Request, guess: int) -> Grant:
        """Everything that can be said without the store: the terms, the cost, the takes. Raises `ApiError`."""
        try:
            policy = await self._directory.policy()
            record = await self._directory.record(who)
            if _objection(policy, record, request.model) and await self._directory.recheck(who.tenant):
                policy = await self._directory.policy()
                record = await self._directory.record(who)
        except PolicyUnavailable as error:
            raise errors.unavailable(str(error), RETRY_AFTER_US, "policy_unavailable") from error
        if objection := _objection(policy, record, request.model):
            raise objection
        assert record is not None
        terms = self._directory.terms(policy, record, who, request.model)
        cost = expected_cost(terms, request, guess)
        routes = [r for r in terms.model.route if SPEAKS[policy.upstreams[r.upstream].api] == request.api]
        if not routes:
            raise errors.model_not_on_route(request.model)
        bounds: list[Bound] = [
            *self._directory.ip_bounds(policy, ip),
            *terms.bounds,
            *self._directory.upstream_bounds(policy, routes[0].upstream),
        ]
        taken = takes(bounds, cost, self._cache.now_us(self._clock()))
        admission = Admission(request.id, taken, request.expires_us, who.tenant, record.version, policy.revision)
        undecided = Decision(Status.REFUSED, 0, [])
        return Grant(request, policy, record, terms, routes, admission, undecided, cost)

    async def _decide(self, grant: Grant, seeds: dict[str, int]) -> Decision:
        """One call to the store; where none answers, what the plan says."""
        try:
            return await self._store.admit(grant.admission)
        except StoreUnavailable as error:
            if grant.terms.plan.when_stores_fail == "closed" or grant.terms.counts_money:
                message = "The gateway cannot check your limits at the moment. Try again shortly."
                raise errors.unavailable(message, RETRY_AFTER_US, "limits_unavailable") from error
            for take in grant.admission.takes:
                if isinstance(take, BudgetTake):
                    take.seed = seeds.setdefault(take.key, 0)
            decision = await self._local.admit(grant.admission)
            decision.local = True
            return decision

    async def _load(self, admission: Admission, decision: Decision, seeds: dict[str, int]) -> None:
        """Ask the ledger what the cold budgets have spent."""
        cold: list[BudgetTake] = []
        for i in decision.cold:
            take = admission.takes[i]
            if isinstance(take, BudgetTake):
                cold.append(take)
        try:
            spent = await self._ledger.spent(cold)
        except StoreUnavailable as error:
            message = "The gateway cannot read your budgets at the moment. Try again shortly."
            raise errors.unavailable(message, RETRY_AFTER_US, "limits_unavailable") from error
        seeds.update((take.key, amount) for take, amount in zip(cold, spent, strict=True))


def impossible(admission: Admission, now_us: int) -> tuple[Admission, Decision] | None:
    """A refusal of what is above a whole burst or budget: no store needs to be asked, and no wait can help."""
    takes = [take for take in admission.takes if not fits(take, UNTOUCHED, now_us)]
    if not takes:
        return None
    known = Admission(admission.id, takes, admission.expires_us, admission.tenant)
    return known, Decision(Status.REFUSED, now_us, [UNTOUCHED for _ in takes])


def check_standing(policy: Policy, record: TenantRecord | None) -> None:
    """403 unless the caller's tenant is known, active and on a plan that exists."""
    if record is None or record.plan not in policy.plans:
        raise errors.forbidden("No plan is assigned to this account.", "no_plan")
    if record.state != "active":
        raise errors.tenant_suspended()


def _objection(policy: Policy, record: TenantRecord | None, model: str) -> errors.ApiError | None:
    """Why this caller may not call this model at all; None if they may."""
    try:
        check_standing(policy, record)
    except errors.ApiError as error:
        return error
    assert record is not None
    if model not in policy.models:
        return errors.model_not_found(model)
    if model not in policy.plans[record.plan].models:
        return errors.model_not_allowed(model)
    return None


def _refused(grant: Grant, admission: Admission, decision: Decision) -> errors.ApiError:
    """The error for a refusal; where the caller's own maximum is the problem, it says which one would fit."""
    request, price = grant.request, grant.terms.price
    if request.output_tokens is None:
        return refusal_error(admission, decision)

    def largest(limit: Limit, amount: int) -> int | None:
        if limit.unit is Unit.TOKENS:
            return max(0, amount - request.input_tokens) // request.answers
        if limit.unit is Unit.MICROUSD and price is not None:
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
    if price is None:
        return Cost(most, least, 0, 0)
    return Cost(most, least, price.estimate(prompt, most - prompt), price.estimate(prompt, least - prompt))
