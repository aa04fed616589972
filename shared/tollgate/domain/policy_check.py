"""Checking a policy, wherever it came from: all mistakes at once, each with its path, its place and a hint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from tollgate.domain import degradation
from tollgate.domain.policy import BudgetSpec, LimitSpec, Policy, TenantSpec
from tollgate.domain.policy_document import Document, PolicyErrors, Problem
from tollgate.domain.policy_paths import Path, nearest
from tollgate.domain.schema import S, read

MAX_PROBLEMS = 100
"""More are not reported: nobody reads them, and they have few causes."""


def check(document: Document) -> Policy:
    """The policy that the document says. Raises `PolicyErrors` with every problem that it has."""
    problems = list(_misplaced(document))
    policy, found = read(Policy, document)
    problems += found
    if policy is not None:
        problems += _relations(document, policy)
    else:
        problems += _relations_of_the_rest(document, {problem.path for problem in problems})
    if problems or policy is None:
        raise PolicyErrors(_in_order(document, problems))
    return policy


def check_record(kind: type[S], document: Document) -> S:
    """One record (a tenant, say) that stands alone. Raises `PolicyErrors`."""
    record, problems = read(kind, document)
    if record is None:
        raise PolicyErrors(_in_order(document, problems))
    return record


# -- across the document -----------------------------------------------------------------------------------------


def _misplaced(document: Document) -> Iterable[Problem]:
    if isinstance(document.value, dict) and "revision" in document.value:
        yield document.problem(("revision",), "is set where a policy is published; leave it out")


def _relations(document: Document, policy: Policy) -> Iterable[Problem]:
    """What is wrong between parts that are right by themselves."""
    for path, message in policy.dangling():
        yield document.problem(path, message, _alternative(policy, message))
    for path, message in degradation.mistakes(policy):
        yield document.problem(path, message)
    shared: list[tuple[Path, Sequence[LimitSpec]]] = [(("global", "limits"), policy.everyone.limits)]
    shared += [(("models", name, "limits"), model.limits) for name, model in policy.models.items()]
    shared += [(("upstreams", name, "limits"), upstream.limits) for name, upstream in policy.upstreams.items()]
    for path, limits in shared:
        ids = [limit.id for limit in limits]
        for i, name in enumerate(ids):
            if name in ids[:i]:
                yield document.problem((*path, i), f"a second {name}: keep the stricter one")
    for name, model in policy.models.items():
        for i, route in enumerate(model.route):
            if route in model.route[:i]:
                yield document.problem(("models", name, "route", i), "the same route again")
    for name, tenant in policy.tenants.items():
        yield from tenant_problems(policy, name, tenant, document)


def tenant_problems(policy: Policy, name: str, tenant: TenantSpec, document: Document) -> Iterable[Problem]:
    """What is wrong between a tenant and the policy."""
    plan = policy.plans.get(tenant.plan)
    if plan is None:
        message = f"there is no plan {tenant.plan!r}"
        yield document.problem(("tenants", name, "plan"), message, _alternative(policy, message))
    groups: tuple[tuple[str, Sequence[LimitSpec | BudgetSpec]], ...] = (
        ("limits", tenant.limits),
        ("budgets", tenant.budgets),
    )
    for group, overrides in groups:
        for i, override in enumerate(overrides):
            if override in overrides[:i]:
                yield document.problem(("tenants", name, group, i), "the same override again")
    for i, budget in enumerate(tenant.budgets):
        path = ("tenants", name, "budgets", i)
        for j, model_name in enumerate(budget.models or ()):
            if model_name not in policy.models:
                message = f"there is no model {model_name!r}"
                yield document.problem((*path, "models", j), message, _alternative(policy, message))


def _alternative(policy: Policy, message: str) -> str:
    """The existing name that a dangling reference may have meant."""
    for noun, known in (("upstream", policy.upstreams), ("model", policy.models), ("plan", policy.plans)):
        if message.startswith(f"there is no {noun} "):
            return nearest(message.partition("'")[2].rstrip("'"), tuple(known)) or f"there are no {noun}s at all"
    return ""


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_PLACEHOLDERS: dict[str, dict[str, Any]] = {
    "upstreams": {"api": "bedrock", "region": "eu-central-1"},
    "models": {"route": [{"upstream": "-", "model": "-"}]},
    "plans": {"models": []},
}


def _relations_of_the_rest(document: Document, wrong: set[Path]) -> Iterable[Problem]:
    """The relations between those parts that are right: what is wrong already counts as being there, so that one
    mistake is not reported as several."""
    broken: set[Path] = {path[:2] for path in wrong}
    rest: dict[str, Any] = {"version": 1}
    for group in ("upstreams", "models", "plans", "tenants"):
        rest[group] = {}
        for name, entry in _entries(document, group).items():
            if (group, name) not in broken:
                rest[group][name] = entry
            elif group in _PLACEHOLDERS and _NAME.fullmatch(name):
                rest[group][name] = _PLACEHOLDERS[group]
    common = _entries(document, "global")
    if common and not any(path[0] == "global" for path in broken if path):
        rest["global"] = common
    policy, _ = read(Policy, Document(rest, document.source, document.places))
    if policy is None:
        return
    unreadable = tuple(f"no {group[:-1]} " for group in _PLACEHOLDERS if (group,) in broken)
    for problem in _relations(document, policy):
        if problem.path[:2] not in broken and not any(about in problem.message for about in unreadable):
            yield problem


def _entries(document: Document, group: str) -> dict[str, Any]:
    found = document.value.get(group) if isinstance(document.value, dict) else None
    return found if isinstance(found, dict) else {}


def _in_order(document: Document, problems: Iterable[Problem]) -> list[Problem]:
    """By place in the file, each once, and not too many."""
    unique = list(dict.fromkeys(problems))
    unique.sort(key=lambda problem: problem.place.line)
    if len(unique) > MAX_PROBLEMS:
        more = len(unique) - MAX_PROBLEMS
        unique = [*unique[:MAX_PROBLEMS], document.problem((), f"and {more} more problems")]
    return unique
