"""Degradation: beyond a soft threshold of a budget, a plan's calls get a cheaper model or shorter answers.

What a container knows of a budget is what its last admissions told: how much others had used and held. That is
believed for some seconds. A container that knows nothing decides by the answer of the admission itself, so nobody
pays a further round trip for this. Pure: no clock, no IO.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from tollgate.domain.dataclass import dataclass
from tollgate.domain.limits import SECOND_US, Budget, BudgetTake, Decision, Take
from tollgate.domain.policy import SPEAKS, Policy
from tollgate.domain.policy_paths import Path

CAPACITY = 10_000
TRUST_US = 10 * SECOND_US


@dataclass(frozen=True, slots=True)
class Degraded:
    """What is done to one call, and because of which budget."""

    asked: str
    """The model that the caller named."""
    model: str
    """The model that serves; the same where only the answer is cut short."""
    max_output: int | None
    """The most tokens of each answer, where the plan cuts it."""
    budget: str
    at: float

    @property
    def replaced(self) -> str:
        """The model that another one serves for; empty if the caller's own does."""
        return self.asked if self.asked != self.model else ""

    @property
    def header(self) -> bytes:
        """The value of `x-tollgate-degraded`."""
        parts = [f"model={self.model}"] + ([f"from={self.asked}"] if self.model != self.asked else [])
        parts += [f"max_output_tokens={self.max_output}"] if self.max_output is not None else []
        return "; ".join([*parts, f"budget={self.budget}", f"at={self.at:g}"]).encode()


class Levels:
    """How far budgets are used, as this container last heard. Bounded; what was heard first is forgotten first."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._seen: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Key -> (used and held by others, when on the store's clock)."""

    def learn(self, takes: Iterable[Take], decision: Decision) -> None:
        for take, value, granted in zip(takes, decision.values, decision.granted, strict=True):
            if isinstance(take, BudgetTake):
                self._seen.pop(take.key, None)
                self._seen[take.key] = (value - granted, decision.now_us)
        while len(self._seen) > self._capacity:
            self._seen.popitem(last=False)

    def passed(self, at: float, takes: Iterable[Take], now_us: int) -> Budget | None:
        """The first of the budgets that is known to be used beyond the share `at` of it."""
        for take in takes:
            if isinstance(take, BudgetTake) and (seen := self._seen.get(take.key)) is not None:
                value, heard_us = seen
                limit = take.limit
                if 0 <= now_us - heard_us < TRUST_US and value - limit.before >= at * (limit.amount - limit.before):
                    return limit
        return None


def mistakes(policy: Policy) -> Iterable[tuple[Path, str]]:
    """Degradations that could not serve what they take over: (path, what is wrong)."""
    for name, plan in policy.plans.items():
        for asked, lesser in (plan.degrade.models if plan.degrade is not None else {}).items():
            path: Path = ("plans", name, "degrade", "models", asked)
            if missing := [model for model in (asked, lesser) if model not in plan.models]:
                yield path, f"the plan does not include the model {missing[0]!r}"
            elif asked in policy.models and lesser in policy.models:
                for reason in _unfit(policy, asked, lesser):
                    yield path, reason


def _unfit(policy: Policy, asked: str, lesser: str) -> Iterable[str]:
    one, other = policy.models[asked], policy.models[lesser]
    if asked == lesser:
        yield "is the same model"
        return
    if one.class_ is None or one.class_ != other.class_:
        yield f"the models {asked!r} and {lesser!r} are not of the same class"
    if other.context is None:
        yield f"model {lesser!r} has no context: how long a prompt and answer it takes"
    if not _apis(policy, asked) <= _apis(policy, lesser):
        yield f"model {lesser!r} is not served in the shapes of every API that {asked!r} is served in"
    prices = one.price, other.price
    if prices[0] is not None and prices[1] is not None:
        dearer = prices[1].input > prices[0].input or prices[1].output > prices[0].output
        if dearer:
            yield f"model {lesser!r} costs more than {asked!r}"


def _apis(policy: Policy, model: str) -> set[str]:
    upstreams = [policy.upstreams.get(route.upstream) for route in policy.models[model].route]
    return {SPEAKS[upstream.api] for upstream in upstreams if upstream is not None}
