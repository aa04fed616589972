"""The ideal limiter: it sees every request the moment it is asked for, knows everything, and takes the same costs."""

from __future__ import annotations

from collections.abc import Callable

from bench.simulator.population import Call
from bench.simulator.virtual_time import at_once
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.domain.limits import Admission, BudgetTake, Settlement
from tollgate.domain.policy import Policy, TenantRecord
from tollgate.domain.terms import Claim, Terms, compile_terms, ip_bounds, upstream_bounds
from tollgate.services.admit import Request, expected_cost


class Ideal:
    """One store without a network, and the policy and records as they are now."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._store = MemoryLimitStore(clock)
        self._claims: dict[tuple[str, ...], tuple[TenantRecord, Terms, Claim]] = {}

    def admit(
        self, call: Call, request: Request, guess: int, policy: Policy, record: TenantRecord
    ) -> Settlement | None:
        """What to settle when the answer is over; None for a refusal."""
        now = self._clock()
        name = (call.who.tenant, call.who.user, call.model, call.ip)
        known = self._claims.get(name)
        if known is None or known[0] is not record:
            terms = compile_terms(policy, record, call.who, call.model, now)
            upstream = upstream_bounds(policy, terms.model.route[0].upstream)
            claim = Claim((*ip_bounds(policy, call.ip), *terms.bounds, *upstream))
            known = self._claims[name] = (record, terms, claim)
        _, terms, claim = known
        wanted = claim.takes(expected_cost(terms, request, guess), now)
        for take in wanted:
            if isinstance(take, BudgetTake):
                take.seed = 0  # it has seen everything that was ever spent
        if not at_once(self._store.admit(Admission(call.id, wanted, request.longest_us))).admitted:
            return None
        microusd = terms.price.cost(call.usage) if terms.price is not None else 0
        return Settlement(call.id, wanted, claim.used(call.usage.total_tokens, microusd, sent=True))

    def settle(self, settlement: Settlement) -> None:
        at_once(self._store.settle(settlement))
