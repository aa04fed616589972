"""Checking a policy, wherever it came from: all mistakes at once, each with its path, its place and a hint.

A `Document` is plain data (mappings, lists, scalars) plus the places its parts came from: a line of a file, an item
of a table, an environment variable. `check` turns it into a `Policy` or raises `PolicyErrors`. Values are taken as
they are written: ``"10"`` and ``true`` are not numbers here, as they would silently become elsewhere.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from tollgate.domain.policy import BudgetSpec, LimitSpec, Policy, TenantSpec
from tollgate.domain.policy_paths import Path, choices, fields, kind_at, nearest, options, render

MAX_PROBLEMS = 100
"""More are not reported: nobody reads them, and they have few causes."""

FailureMode = Literal["fallback", "open", "closed"]


@dataclass(frozen=True, slots=True)
class Place:
    """A file (with its line, from 1), a table item or an environment variable."""

    source: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where."""

    path: Path
    message: str
    hint: str = ""
    place: Place = Place("policy")

    @property
    def line(self) -> int:
        return self.place.line

    def __str__(self) -> str:
        where = render(self.path)
        return (
            f"{self.place}: "
            + (f"{where}: " if where else "")
            + self.message
            + (f" ({self.hint})" if self.hint else "")
        )

    def as_dict(self) -> dict[str, str | int]:
        """For ``--json`` and log lines."""
        return {
            "source": self.place.source,
            "line": self.place.line,
            "path": render(self.path),
            "message": self.message,
            "hint": self.hint,
        }


class PolicyErrors(Exception):
    """A policy that cannot be used: everything that is wrong with it, in the order of the document."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(slots=True)
class Document:
    """A policy as plain data, and where its parts came from: the place of the longest known prefix of a path."""

    value: Any
    source: str = "policy"
    places: dict[Path, Place] = field(default_factory=dict)

    def place(self, path: Path) -> Place:
        for end in range(len(path), -1, -1):
            found = self.places.get(path[:end])
            if found is not None:
                return found
        return Place(self.source)

    def problem(self, path: Path, message: str, hint: str = "") -> Problem:
        return Problem(path, message, hint, self.place(path))


Schema = TypeVar("Schema", bound=BaseModel)


def check(document: Document) -> Policy:
    """The policy that the document says. Raises `PolicyErrors` with every problem that it has."""
    for tenant in _entries(document, "tenants").values():
        _midnights(tenant)
    problems = list(_misplaced(document))
    policy, found = _validate(Policy, document)
    problems += found
    if policy is not None:
        problems += _relations(document, policy)
    else:
        problems += _relations_of_the_rest(document, {problem.path for problem in problems})
    if problems or policy is None:
        raise PolicyErrors(_in_order(document, problems))
    return policy


def check_record(kind: type[Schema], document: Document) -> Schema:
    """One record (a tenant, say) that stands alone. Raises `PolicyErrors`."""
    _midnights(document.value)
    record, problems = _validate(kind, document)
    if record is None:
        raise PolicyErrors(_in_order(document, problems))
    return record


def plain(model: BaseModel) -> dict[str, Any]:
    """A part of a policy as the plain data that says it: what was set, and no more. Money stays decimal."""
    found: dict[str, Any] = _plain(model.model_dump(by_alias=True, exclude_unset=True, exclude_none=True))
    return found


def canonical(value: Any) -> str:
    """The same text for the same data, whatever types a table or a file gave it."""
    return json.dumps(value, default=_jsonable, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def jsonable(value: Any) -> Any:
    """The data with JSON's types only, in its own order."""
    return json.loads(json.dumps(value, default=_jsonable))


def failure_mode(policy: Policy) -> FailureMode:
    """What happens when Redis does not answer, unless a plan says otherwise."""
    return policy.redis_failure_mode or "fallback"


# -- against the schema ------------------------------------------------------------------------------------------


_MISSING = "is missing"
_MEANT = "did you mean "


def _validate(kind: type[Schema], document: Document) -> tuple[Schema | None, list[Problem]]:
    """JSON is validated rather than Python data because its strict mode knows lists, enumerations and decimals."""
    try:
        text = json.dumps(document.value, default=_jsonable)
    except (TypeError, ValueError, RecursionError) as error:
        return None, [document.problem((), f"cannot be read: {error or 'nested too deeply'}")]
    try:
        return kind.model_validate_json(text, strict=True), []
    except ValidationError as errors:
        details = errors.errors(include_url=False)
    paths = [tuple(detail["loc"]) for detail in details]
    problems = [
        _explain(kind, document, detail)
        for detail, path in zip(details, paths, strict=True)
        # entries that are wrong are not counted, but they are there
        if detail["type"] != "too_short" or not any(other[: len(path)] == path != other for other in paths)
    ]
    # a misspelled name is one mistake, not also a missing one
    meant = {
        (*problem.path[:-1], problem.hint.removeprefix(_MEANT)[:-1])
        for problem in problems
        if problem.hint.startswith(_MEANT)
    }
    return None, [problem for problem in problems if problem.message != _MISSING or problem.path not in meant]


def _jsonable(value: object) -> object:
    """What DynamoDB's types and YAML's moments are in JSON."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            return float(value)
        return int(value) if value == value.to_integral_value() and abs(value) < 10**20 else float(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__} is not allowed here")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, float) and value.is_integer():
        return int(value)  # as DynamoDB gives it back
    return value


def _explain(kind: type[BaseModel], document: Document, detail: Mapping[str, Any]) -> Problem:
    """One of pydantic's errors in our words."""
    path: Path = tuple(detail["loc"])
    value, context = detail["input"], detail.get("ctx", {})
    is_key = path[-1:] == ("[key]",)
    if is_key:
        path = path[:-1]
    expected = _expected(kind_at(kind, path) if path else kind)
    match detail["type"]:
        case "missing":
            message, hint = _MISSING, f"expected {expected}" if expected else ""
        case "extra_forbidden":
            known = tuple(name for name in fields(kind_at(kind, path[:-1]) if path[:-1] else kind))
            message, hint = "is not known", nearest(str(path[-1]), known)
        case "value_error":
            message, hint = str(context.get("error", detail["msg"])), ""
        case "string_pattern_mismatch" if is_key:
            message, hint = f"{value!r:.80} cannot be a name", "letters, digits, '.', '_', '-', starting with one"
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than":
            message, hint = f"expected {_bounded(expected, context)}, found {_found(value)}", ""
        case "too_short":
            message, hint = f"expected at least {context['min_length']} entry", ""
        case "too_long":
            message, hint = f"expected at most {context['max_length']} entries", ""
        case "enum" | "literal_error":
            known = next((found for option, _ in options(kind_at(kind, path)) if (found := choices(option))), ())
            message = f"expected {_either(known)}, found {_found(value)}"
            hint = nearest(value, known) if isinstance(value, str) else ""
            hint = hint if hint.startswith(_MEANT) else ""
        case _:
            message, hint = f"expected {expected or 'something else'}, found {_found(value)}", ""
            if isinstance(value, str) and value.lstrip("-").isdecimal() and "number" in expected:
                hint = "without quotes"
    return document.problem(path, message, hint)


def _expected(kind: Any) -> str:
    """What may stand here, in words."""
    for option, constraints in options(kind):
        known = choices(option)
        if known:
            return _either(known)
        low = next((c.ge for c in constraints if getattr(c, "ge", None) is not None), None)
        if option is int:
            return "a whole number" + (f" of at least {low}" if low is not None else "")
        if option is Decimal:
            return "a number of US dollars, 0 or more, with at most six decimals"
        if option is float:
            return "a number above 0"
        if option is datetime:
            return "a moment such as 2026-12-01T00:00:00Z"
        if option is str:
            named = any(getattr(c, "pattern", None) for c in constraints)
            return "a name of letters, digits, '.', '_', '-'" if named else "text"
        if str(option).startswith("tuple"):
            return "a list"
        return "a mapping"
    return ""


def _bounded(expected: str, context: Mapping[str, Any]) -> str:
    if "le" in context or "lt" in context:
        noun = "a whole number" if expected.startswith("a whole") else "a number"
        return f"{noun} of at most {context.get('le', context.get('lt'))}"
    return expected


def _either(known: Sequence[str]) -> str:
    return known[0] if len(known) == 1 else f"{', '.join(known[:-1])} or {known[-1]}"


def _found(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _midnights(tenant: Any) -> None:
    """``until: 2026-12-01`` in a tenant's overrides is the start of that day, in UTC."""
    for group in tenant.values() if isinstance(tenant, dict) else ():
        for override in group if isinstance(group, list) else ():
            until = override.get("until") if isinstance(override, dict) else None
            if isinstance(until, str) and len(until) == 10:
                override["until"] = f"{until}T00:00:00Z"


# -- across the document -----------------------------------------------------------------------------------------


def _misplaced(document: Document) -> Iterable[Problem]:
    if isinstance(document.value, dict) and "revision" in document.value:
        yield document.problem(("revision",), "is set where a policy is published; leave it out")
    if isinstance(document.value, dict) and "everyone" in document.value:  # the field's name in Python
        yield document.problem(("everyone",), "is not known", "did you mean global?")


def _relations(document: Document, policy: Policy) -> Iterable[Problem]:
    """What is wrong between parts that are right by themselves."""
    for path, message in policy.dangling():
        yield document.problem(path, message, _alternative(policy, message))
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
        for model_name in plan.models if plan is not None and budget.usd is not None else ():
            spec = policy.models.get(model_name)
            if spec is not None and spec.price is None:
                yield document.problem((*path, "usd"), f"counts dollars, but model {model_name!r} has no price")


def _alternative(policy: Policy, message: str) -> str:
    """The existing name that a dangling reference may have meant."""
    for noun, known in (("upstream", policy.upstreams), ("model", policy.models), ("plan", policy.plans)):
        if message.startswith(f"there is no {noun} "):
            return nearest(message.partition("'")[2].rstrip("'"), tuple(known)) or f"there are no {noun}s at all"
    return ""


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_PLACEHOLDERS: dict[str, dict[str, Any]] = {
    "upstreams": {"api": "bedrock", "region": "eu-central-1"},
    "models": {"route": [{"upstream": "-", "model": "-"}], "price": {"input": 0}},
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
    policy, _ = _validate(Policy, Document(rest, document.source, document.places))
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
