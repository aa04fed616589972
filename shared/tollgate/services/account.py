"""What a caller may see of their own account: the models they can name, their limits, and what is used of budgets."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from tollgate.domain import keys
from tollgate.domain.data_rules import objection
from tollgate.domain.identity import Identity
from tollgate.domain.limits import (
    SECOND_US,
    Budget,
    BudgetTake,
    Rate,
    RateTake,
    Scope,
    SlotTake,
    Status,
    Unit,
    Window,
    remaining,
)
from tollgate.domain.restrictions import restrictions
from tollgate.domain.takes import Cost
from tollgate.domain.terms import Claim, compile_terms
from tollgate.ports import LimitStore, Spending, StoreUnavailable
from tollgate.services.directory import Directory, speaking
from tollgate.services.look import look
from tollgate.services.standing import RETRY_AFTER_US, standing
from tollgate.wire import errors
from tollgate.wire.errors import Api

NOTHING = Cost(0, 0, 0, 0)


KEPT_US = 3 * SECOND_US
"""How long an answer about usage is given again: whoever polls asks the ledger once in that time."""
MAX_KEPT = 2_000
MEASURES = (Unit.REQUESTS, Unit.TOKENS, Unit.MICROUSD)


class Account:
    """Reads only; nothing here takes from a limit."""

    def __init__(self, directory: Directory, spending: Spending, store: LimitStore, clock: Callable[[], int]) -> None:
        self._directory = directory
        self._spending = spending
        self._store = store
        self._clock = clock
        self._known: OrderedDict[Identity, tuple[int, asyncio.Future[dict[str, Any]]]] = OrderedDict()

    async def models(self, who: Identity, api: Api = "openai") -> list[str]:
        """The models that plan, data rules and API key let the caller name, as the plan lists them; to callers of
        Anthropic's API only those that speak it. Raises `ApiError`."""
        policy, record = await standing(self._directory, who, self._clock())
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
        """The caller's limits, what is used of each budget, and their use and cost of this day and month, as the ledger
        knows it; at most some seconds old. It costs no request of anybody's rate, so it must not cost the ledger much:
        each process asks once for a caller at a time, and keeps the answer. Raises `ApiError`."""
        caller = who._replace(expires_at=0)  # another token of theirs is no other caller
        now = self._clock()
        asked_us, answer = self._known.get(caller, (0, None))
        failed = answer is not None and answer.done() and (answer.cancelled() or answer.exception() is not None)
        if answer is None or failed or not 0 <= now - asked_us < KEPT_US:
            answer = asyncio.ensure_future(self._usage(who))
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever asked may have left
            self._known[caller] = now, answer
            self._known.move_to_end(caller)
            if len(self._known) > MAX_KEPT:
                self._known.popitem(last=False)
        return await asyncio.shield(answer)

    async def _usage(self, who: Identity) -> dict[str, Any]:
        policy, record = await standing(self._directory, who, self._clock())
        now = self._clock()
        bounds = {
            bound.key: bound
            for model in await self.models(who)
            for bound in compile_terms(policy, record, who, model, now).bounds
            if bound.limit.scope is not Scope.GLOBAL
        }
        takes = Claim(bounds.values()).takes(NOTHING, now)
        budgets = [take for take in takes if isinstance(take, BudgetTake)]
        own = _own(who, policy.models, now)
        try:
            spent = await self._spending.spent([*budgets, *own])
        except StoreUnavailable as error:
            raise errors.unavailable("The ledger cannot be read at the moment.", RETRY_AFTER_US) from error
        return {
            "object": "usage",
            "tenant": who.tenant,
            "user": who.user,
            "plan": record.plan,
            "limits": await self._limits(who, [take for take in takes if not isinstance(take, BudgetTake)]),
            "budgets": [_shown(take, used) for take, used in zip(budgets, spent, strict=False)],
            "used": _used(own, spent[len(budgets) :]),
        }

    async def _limits(self, who: Identity, takes: Sequence[RateTake | SlotTake]) -> list[dict[str, Any]]:
        """Rates and slots, with what is left of each now; None where the store cannot tell."""
        values: Sequence[int | None] = [None] * len(takes)
        now = 0
        if takes:
            with contextlib.suppress(StoreUnavailable):
                decision = await look(takes, who.tenant, self._store, self._spending)
                if decision.status in (Status.ADMITTED, Status.REFUSED):
                    values, now = decision.values, decision.now_us
        return [_limit(take, value, now) for take, value in zip(takes, values, strict=True)]


def _limit(take: RateTake | SlotTake, value: int | None, now_us: int) -> dict[str, Any]:
    limit = take.limit
    shown: dict[str, Any] = {"scope": limit.scope, "unit": "requests in flight", "limit": limit.amount}
    if isinstance(limit, Rate):
        shown |= {"unit": limit.unit, "per_seconds": limit.period_us // SECOND_US, "burst": limit.burst}
    return shown | {"remaining": remaining(take, value, now_us) if value is not None else None}


def _own(who: Identity, models: Iterable[str], now_us: int) -> list[BudgetTake]:
    """What to ask the ledger for of the caller's own use, in all and of each model: the user's, and the API key's if
    they came with one. However many models there are, it reads two items for each of them."""
    members = ((Scope.USER, "u", who.user), (Scope.KEY, "k", who.key))
    return [
        BudgetTake(subject, "", Budget(scope, unit, 0, window, "", some), 0, 0, *bounds)
        for scope, kind, name in members
        if name
        for subject in (keys.member_subject(who.tenant, kind, name),)
        for window in (Window.DAY, Window.MONTH)
        for bounds in (window.bounds(now_us),)
        for some in (None, *[frozenset({model}) for model in models])
        for unit in MEASURES
    ]


def _used(own: Sequence[BudgetTake], spent: Sequence[int]) -> list[dict[str, Any]]:
    """A line for each window, with its measures and those of each model that was used; a cost is in micro-dollars."""
    names = {Unit.REQUESTS: "requests", Unit.TOKENS: "total_tokens", Unit.MICROUSD: "cost_microusd"}
    lines: dict[tuple[Scope, str], dict[str, Any]] = {}
    for take, amount in zip(own, spent, strict=True):
        scope, window, models = take.limit.scope, take.label, take.limit.models
        line = lines.setdefault((scope, window), {"scope": scope, "window": window, "models": {}})
        for model in models or ():
            line = line["models"].setdefault(model, {"model": model})
        line[names[take.limit.unit]] = amount
    for line in lines.values():
        line["models"] = [each for _, each in sorted(line["models"].items()) if any(each[n] for n in names.values())]
    return list(lines.values())


def _moment(us: int) -> str:
    return datetime.fromtimestamp(us // SECOND_US, UTC).isoformat().replace("+00:00", "Z")


def _shown(take: BudgetTake, used: int) -> dict[str, Any]:
    limit = take.limit
    return {
        "scope": limit.scope,
        "unit": limit.unit,
        "limit": limit.amount - limit.before,
        "used": max(0, used - limit.before),
        "remaining": max(0, limit.amount - used),
        "window": take.label,
        "resets_at": None if limit.window is Window.LIFE else _moment(take.end_us),
        "models": sorted(limit.models) if limit.models is not None else None,
    }
