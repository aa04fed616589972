"""The error that a refused admission becomes, in words that tell the caller what to do."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from tollgate.domain.limits import (
    PERIOD_US,
    SECOND_US,
    Admission,
    Budget,
    BudgetTake,
    Decision,
    Limit,
    Rate,
    RateTake,
    Refusal,
    Scope,
    SlotTake,
    Take,
    Unit,
    Window,
    fits,
    refusal,
    remaining,
)
from tollgate.wire.errors import ApiError, exceeds_plan_limit, insufficient_quota, rate_limit_exceeded
from tollgate.wire.headers import duration, limit_type, rate_limit_headers

Largest = Callable[[Limit, int], int | None]
"""``largest(limit, amount)``: the largest maximum of an answer with which the request needs at most `amount` of
`limit`, in the limit's unit; 0 where none is small enough, None where the maximum does not matter."""


def refusal_error(
    admission: Admission, decision: Decision, *, param: str | None = None, largest: Largest | None = None
) -> ApiError:
    """The error for a refused admission (precondition: `decision` is REFUSED), with the headers that say what is left.

    `param`: the field by which the caller limited the answer, if so; with it, `largest` says what would fit.
    """
    error = _worded(admission, decision, param, largest)
    error.headers |= {name.decode(): value.decode() for name, value in rate_limit_headers(admission, decision)}
    return error


def _worded(admission: Admission, decision: Decision, param: str | None, largest: Largest | None) -> ApiError:
    why = refusal(admission, decision)
    error = _error(why, admission, decision, param, largest)
    error.rule = why.take.limit.id
    return error


def _error(
    why: Refusal, admission: Admission, decision: Decision, param: str | None, largest: Largest | None
) -> ApiError:
    take = why.take
    kind = limit_type(take.limit.scope, local=decision.local)
    who = _who(take)
    if isinstance(take, SlotTake):
        message = (
            f"Too many requests in flight for this {who}: limit {take.limit.amount}. Please try again in a moment."
        )
        return rate_limit_exceeded(message, SECOND_US, kind)
    if why.never:
        return _never(_narrowest(admission, largest) or take, decision.local, param, largest)
    fit = _fitting(admission, decision, largest) if param and largest else 0
    hint = f" A {param} of up to {fit} would fit now." if fit else ""
    left = _amount(why.remaining, take.limit.unit)
    if isinstance(take, BudgetTake):
        message = f"The budget of this {who} does not allow this request: {_described(take.limit)}, {left} left."
        return insufficient_quota(f"{message} {_reset(take)}{hint}", kind)
    wait_us = why.wait_us or 0
    message = f"Rate limit reached for this {who}: {_described(take.limit)}, {left} left."
    return rate_limit_exceeded(
        f"{message} Please try again in {duration(wait_us)}.{hint}", wait_us, kind, take.limit.unit.value
    )


def _fitting(admission: Admission, decision: Decision, largest: Largest) -> int:
    """The largest maximum of an answer with which the request would be admitted now; 0 where none is known."""
    if decision.local:  # alone, a container has not looked at the other limits
        return 0
    found: list[int] = []
    for take, value in zip(admission.takes, decision.values, strict=True):
        fit = largest(take.limit, remaining(take, value, decision.now_us))
        if fit is not None:
            found.append(fit)
        elif not fits(take, value, decision.now_us):  # a limit of requests, say: the answer's length is not the matter
            return 0
    return min(found, default=0)


def _narrowest(admission: Admission, largest: Largest | None) -> RateTake | BudgetTake | None:
    """Of the limits that can never admit this request, the one that allows least: what fits it, fits all of them."""

    def allows(take: RateTake | BudgetTake) -> int:
        fit = largest(take.limit, _whole(take)) if largest and _whole(take) else None
        return -1 if fit is None else fit

    never = [t for t in admission.takes if not isinstance(t, SlotTake) and t.floor > _whole(t)]
    return min(never, key=allows, default=None) if largest else None


def _whole(take: RateTake | BudgetTake) -> int:
    """The most that the limit ever has."""
    return take.limit.burst if isinstance(take.limit, Rate) else take.limit.amount


def _never(take: RateTake | BudgetTake, local: bool, param: str | None, largest: Largest | None) -> ApiError:
    """For a request that needs more than the whole burst or budget."""
    limit, whole = take.limit, _whole(take)
    kind = limit_type(limit.scope, local=local)
    if whole == 0:  # the plan's doing, whatever is asked
        return insufficient_quota(f"The budget of this {_who(take)} is {_described(limit)}.", kind)
    message = (
        f"This request may use {_amount(take.floor, limit.unit)}; the limit of this {_who(take)} is "
        f"{_described(limit)}, so it can never be admitted."
    )
    fit = largest(limit, whole) if param and largest else None
    if fit is not None:
        no_fit = f" No {param} is small enough: the prompt, or the number of answers, is too large."
        message += f" The largest {param} that fits is {fit}." if fit else no_fit
    error = exceeds_plan_limit(message, param)
    error.headers["x-ratelimit-type"] = kind
    return error


def _reset(take: BudgetTake) -> str:
    """What makes room, as far as anyone knows: how much of what is used calls in flight only hold, nobody can tell."""
    if take.limit.window is not Window.LIFE:
        end = f"{datetime.fromtimestamp(take.end_us // SECOND_US, UTC):%Y-%m-%dT%H:%M:%SZ}"
        return f"It resets at {end}; calls in flight may free some of it sooner. {_WHERE}"
    if take.floor > take.limit.amount - take.limit.before:
        return f"It does not reset; it has to be topped up. {_WHERE}"
    return f"It does not reset; calls in flight may free some of it, or it has to be topped up. {_WHERE}"


_WHERE = "GET /v1/usage shows your budgets."
_WHO = {Scope.IP: "address", Scope.KEY: "API key", Scope.GLOBAL: "service"}
_PERIODS = {us: name for name, us in PERIOD_US.items()}


def _who(take: Take) -> str:
    return _WHO.get(take.limit.scope, take.limit.scope.value)


def _described(limit: Rate | Budget) -> str:
    """``10 requests per minute (at most 20 at once)``, ``$25 per month``."""
    amount = _amount(limit.amount if isinstance(limit, Rate) else limit.amount - limit.before, limit.unit)
    if isinstance(limit, Rate):
        burst = "" if limit.burst == limit.amount else f" (at most {limit.burst} at once)"
        return f"{amount} per {_PERIODS.get(limit.period_us) or duration(limit.period_us)}{burst}"
    return f"{amount} in all" if limit.window is Window.LIFE else f"{amount} per {limit.window}"


def _amount(amount: int, unit: Unit) -> str:
    """``10 requests``, ``1 token``, ``$0.0005``."""
    if unit is Unit.MICROUSD:
        return f"${amount // 1_000_000}.{amount % 1_000_000:06d}".rstrip("0").rstrip(".")
    return f"{amount} {unit.value.removesuffix('s') if amount == 1 else unit.value}"
