"""What a caller may see of their own account: the models they can name, their limits, and what is used of budgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tollgate.domain.data_rules import objection
from tollgate.domain.identity import Identity
from tollgate.domain.limits import Budget, BudgetTake, Rate
from tollgate.domain.policy import Policy, TenantRecord
from tollgate.domain.restrictions import restrictions
from tollgate.domain.terms import Claim, Cost
from tollgate.ports import PolicyUnavailable, Spending, StoreUnavailable
from tollgate.services.admit import RETRY_AFTER_US, check_standing
from tollgate.services.directory import Directory, speaking
from tollgate.wire import errors
from tollgate.wire.errors import Api

NOTHING = Cost(0, 0, 0, 0)


class Account:
    """Reads only; nothing here takes from a limit."""

    def __init__(self, directory: Directory, spending: Spending, clock: Callable[[], int]) -> None:
        self._directory = directory
        self._spending = spending
        self._clock = clock

    async def models(self, who: Identity, api: Api = "openai") -> list[str]:
        """The models that plan, data rules and API key let the caller name, as the plan lists them; to callers of
        Anthropic's API only those that speak it. Raises `ApiError`."""
        policy, record = await self._standing(who)
        rules, upstreams = record.data_rules(who.team), policy.upstreams
        allowed = restrictions(who.restrictions).allows_model
        return [
            model
            for model in policy.plans[record.plan].models
            if model in policy.models
            and allowed(model)
            and (api == "openai" or speaking(policy, model, api))
            and not objection(rules, model, policy.models[model].route, upstreams)
        ]

    async def usage(self, who: Identity) -> dict[str, Any]:
        """The caller's limits, and what the ledger knows to be used of each budget. Raises `ApiError`."""
        policy, record = await self._standing(who)
        limits: dict[str, dict[str, Any]] = {}
        budgets: dict[str, BudgetTake] = {}
        for model in await self.models(who):
            bounds = self._directory.terms(policy, record, who, model).bounds
            for bound in bounds:
                limit = bound.limit
                if isinstance(limit, Budget) or limit.scope == "global":
                    continue
                entry: dict[str, Any] = {"scope": limit.scope, "unit": "requests in flight", "limit": limit.amount}
                if isinstance(limit, Rate):
                    period = limit.period_us // 1_000_000
                    entry = {"scope": limit.scope, "unit": limit.unit, "limit": limit.amount}
                    entry |= {"per_seconds": period, "burst": limit.burst}
                limits[limit.id] = entry
            for take in Claim(bounds).takes(NOTHING, self._clock()):
                if isinstance(take, BudgetTake):
                    budgets[take.key] = take
        try:
            spent = await self._spending.spent(list(budgets.values()))
        except StoreUnavailable as error:
            raise errors.unavailable("The ledger cannot be read at the moment.", RETRY_AFTER_US) from error
        return {
            "object": "usage",
            "tenant": who.tenant,
            "user": who.user,
            "plan": record.plan,
            "limits": list(limits.values()),
            "budgets": [_shown(take, used) for take, used in zip(budgets.values(), spent, strict=True)],
        }

    async def _standing(self, who: Identity) -> tuple[Policy, TenantRecord]:
        try:
            await self._directory.recheck(who.tenant)
            policy = await self._directory.policy()
            record = await self._directory.record(who)
        except PolicyUnavailable as error:
            raise errors.unavailable(str(error), RETRY_AFTER_US, "policy_unavailable") from error
        check_standing(policy, record)
        assert record is not None
        return policy, record


def _shown(take: BudgetTake, used: int) -> dict[str, Any]:
    limit = take.limit
    return {
        "scope": limit.scope,
        "unit": limit.unit,
        "limit": limit.amount - limit.before,
        "used": max(0, used - limit.before),
        "remaining": max(0, limit.amount - used),
        "window": take.label,
        "models": sorted(limit.models) if limit.models is not None else None,
    }
