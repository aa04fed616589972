"""Why a caller would be refused now: every limit with its state, its wait and where it comes from. Nothing is taken.

The answer is made as an admission is, from the same policy, record, terms and store, for the smallest call that there
is (or one of so many tokens), and says what such a call would be told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tollgate.domain import keys
from tollgate.domain.dataclass import dataclass
from tollgate.domain.identity import Identity
from tollgate.domain.limits import (
    SECOND_US,
    Admission,
    Budget,
    BudgetTake,
    Decision,
    Rate,
    RateTake,
    Scope,
    Status,
    Take,
    fits,
    remaining,
    reset_us,
)
from tollgate.domain.policy import (
    BudgetOverride,
    BudgetSpec,
    LimitOverride,
    LimitSpec,
    Policy,
    TenantRecord,
    in_force,
)
from tollgate.domain.takes import Cost
from tollgate.domain.terms import Bound, Claim, credit_budget, overridden
from tollgate.ports import LimitStore, Spending
from tollgate.services.admit import Request, objection
from tollgate.services.directory import Directory
from tollgate.services.look import look
from tollgate.wire.errors import Api, ApiError
from tollgate.wire.refusals import refusal_error


@dataclass(frozen=True, slots=True)
class Question:
    """Whose call, to which of the plan's models (empty: all of them), from which address (empty: none), of how many
    tokens, prompt and answer together. `plan` is the token's, for a tenant without a record."""

    tenant: str
    user: str
    team: str = ""
    key: str = ""
    plan: str = ""
    model: str = ""
    ip: str = ""
    tokens: int = 1


async def explain(
    question: Question, directory: Directory, store: LimitStore, ledger: Spending, clock: Callable[[], int]
) -> dict[str, Any]:
    """The whole answer, as JSON. Raises `PolicyUnavailable`, `StoreUnavailable`."""
    who = Identity(question.tenant, question.user, plan=question.plan, team=question.team, key=question.key)
    policy, record = await directory.policy(), await directory.record(who)
    found: dict[str, Any] = {
        "tenant": question.tenant,
        "user": question.user,
        "plan": record.plan if record is not None else None,
        "state": record.state if record is not None else None,
        "own_record": bool(record is not None and record.version),
        "data_rules": [_said(rules) for rules in record.data_rules(question.team)] if record is not None else [],
        "models": [],
        "limits": [],
    }
    bounds: dict[str, Bound] = {}
    dearest, now = 0, clock()
    for model, error in _models(question, policy, record, who, now):
        found["models"].append({"model": model, "allowed": error is None, "why": error.message if error else ""})
        if error is not None or record is None:
            found.setdefault("first", error)
            continue
        api = _api(policy, record, who, model, now)
        entitled = directory.entitlement(policy, record, who, model, api, question.ip, now)
        dearest = max(dearest, entitled.terms.price.estimate(0, question.tokens))
        upstreams = directory.upstream_bounds(policy, entitled.routes[0].upstream)
        bounds |= {bound.key: bound for bound in (*entitled.terms.bounds, *upstreams)}
    if question.ip:
        bounds |= {bound.key: bound for bound in directory.ip_bounds(policy, question.ip)}
    first: ApiError | None = found.pop("first", None)
    cost = Cost(question.tokens, question.tokens, max(dearest, 1), max(dearest, 1))
    claim = Claim(bounds.values())
    takes, decision = await _look(claim, cost, now, question.tenant, store, ledger)
    origins = _origins(policy, record, who, now) if record is not None else {}
    found["limits"] = [
        _limit(take, value, decision.now_us, origins, question, policy)
        for take, value in zip(takes, decision.values, strict=True)
    ]
    found["versions"] = _versions(policy, record, decision)
    found["store"] = decision.store
    allowed = any(entry["allowed"] for entry in found["models"])
    if not allowed and first is not None:
        found["verdict"] = _verdict(first)
    elif decision.status is Status.REFUSED:
        asked = Admission("", takes, 0, question.tenant)
        found["verdict"] = _verdict(refusal_error(asked, decision))
    else:
        found["verdict"] = {"admitted": True, "message": "Such a call would be admitted now."}
    return found


def _models(
    question: Question, policy: Policy, record: TenantRecord | None, who: Identity, now_us: int
) -> list[tuple[str, ApiError | None]]:
    """The models that are asked about, each with why the caller may not name it."""
    if question.model:
        names: Sequence[str] = [question.model]
    else:
        known = record is not None and record.plan in policy.plans
        names = policy.plans[record.plan].models if known and record is not None else [""]
    found: list[tuple[str, ApiError | None]] = []
    for name in names:
        wanted = _request(name, _api(policy, record, who, name, now_us))
        found.append((name, objection(policy, record, who, wanted, now_us)))
    return found


def _api(policy: Policy, record: TenantRecord | None, who: Identity, model: str, now_us: int) -> Api:
    """The API in whose shapes the model is served to this caller; OpenAI's where it is served in both, or none."""
    refused = objection(policy, record, who, _request(model, "openai"), now_us)
    served = refused and not objection(policy, record, who, _request(model, "anthropic"), now_us)
    return "anthropic" if served else "openai"


def _request(model: str, api: Api) -> Request:
    return Request("", api, model, 0, None, 0)


async def _look(
    claim: Claim, cost: Cost, now_us: int, tenant: str, store: LimitStore, ledger: Spending
) -> tuple[Sequence[Take], Decision]:
    """The store's answer; where our clock is on another day, for the day that it is there."""
    takes = claim.takes(cost, now_us)
    decision = await look(takes, tenant, store, ledger)
    if decision.status is Status.WINDOW:
        takes = claim.takes(cost, decision.now_us)
        decision = await look(takes, tenant, store, ledger)
    return takes, decision


# -- in words --------------------------------------------------------------------------------------------------------


def _origins(policy: Policy, record: TenantRecord, who: Identity, now_us: int) -> dict[str, str]:
    """Where the limits of user, key, team and tenant come from, by their ids: what `compile_terms` merges."""
    plan = policy.plans.get(record.plan)
    if plan is None:
        return {}
    limits: list[LimitSpec] = [o for o in record.limits if in_force(o, who.user, now_us)]
    budgets: list[BudgetSpec] = [o for o in record.budgets if in_force(o, who.user, now_us)]
    found: dict[str, str] = {}
    merged: list[LimitSpec | BudgetSpec] = [*overridden(plan.limits, limits), *overridden(plan.budgets, budgets)]
    for spec in merged:
        found[spec.id] = f"plan {record.plan}"
        if isinstance(spec, LimitOverride | BudgetOverride):
            whose = f"user {spec.user}" if spec.user is not None else f"tenant {record.tenant}"
            kind, end = ("override", "") if spec.until is None else ("boost", f" until {spec.until.isoformat()}")
            found[spec.id] = f"{kind} of {whose}{end}"
    for credit in record.credit:
        id = credit_budget(Scope.TENANT if credit.user is None else Scope.USER)
        found[id] = f"{found[id]}, and credit" if id in found else "credit"
    return found


def _origin(take: Take, origins: dict[str, str], question: Question, policy: Policy) -> str:
    scope = take.limit.scope
    if scope is Scope.IP:
        return "global, for each address"
    if scope is not Scope.GLOBAL:
        return origins.get(take.limit.id, "unknown")
    shared = {keys.global_subject(f"model:{name}"): f"model {name}" for name in policy.models}
    shared |= {keys.global_subject(f"upstream:{name}"): f"upstream {name}" for name in policy.upstreams}
    return shared.get(take.subject, "global")


def _limit(
    take: Take, value: int, now_us: int, origins: dict[str, str], question: Question, policy: Policy
) -> dict[str, Any]:
    limit = take.limit
    refuses = not fits(take, value, now_us)
    before = limit.before if isinstance(limit, Budget) else 0
    found: dict[str, Any] = {
        "limit": limit.id,
        "scope": str(limit.scope),
        "unit": str(limit.unit),
        "amount": limit.amount - before,
        "source": _origin(take, origins, question, policy),
        "remaining": remaining(take, value, now_us),
        "reset_s": -(-reset_us(take, value, now_us) // SECOND_US),
        "refuses": refuses,
    }
    if isinstance(limit, Rate):
        found |= {"per_s": limit.period_us / SECOND_US, "burst": limit.burst}
        # beyond the burst is debt: what earlier calls used above what they had reserved
        debt = max(0, value - now_us - limit.burst_us)
        found |= {"debt": limit.units(debt)}
    if isinstance(limit, Budget) and isinstance(take, BudgetTake):
        found |= {"window": take.label, "used_and_held": max(0, value - before)}
        found |= {"models": sorted(limit.models) if limit.models is not None else None}
    if refuses and isinstance(take, RateTake):
        never = take.floor_us > take.limit.burst_us
        wait_us = max(value, now_us) + take.floor_us - now_us - take.limit.burst_us
        found["wait_s"] = None if never else -(-wait_us // SECOND_US)
    elif refuses:
        found["wait_s"] = found["reset_s"] or None
    return found


def _versions(policy: Policy, record: TenantRecord | None, decision: Decision) -> dict[str, Any]:
    """What the tables hold, and what the store was last told; warm containers that are behind the store look again."""
    mine = record.version if record is not None else 0
    in_store = decision.policy_version, decision.tenant_version
    return {
        "policy": policy.revision,
        "policy_in_store": decision.policy_version,
        "record": mine,
        "record_in_store": decision.tenant_version,
        # 0: nothing was announced since the store began; containers read the tables then
        "in_sync": in_store[0] in (0, policy.revision) and in_store[1] in (0, mine),
    }


def _verdict(error: ApiError) -> dict[str, Any]:
    wait = error.headers.get("retry-after")
    return {
        "admitted": False,
        "status": error.status,
        "code": error.code,
        "rule": error.rule,
        "message": error.message,
        "retry_after_s": int(wait) if wait else None,
    }


def _said(rules: Any) -> dict[str, Any]:
    from tollgate.domain.schema import plain

    return dict(plain(rules))
