"""A document against the schema: pydantic finds what is wrong, and this says it in the words of whoever wrote it.

Values are taken as they are written: ``"10"`` and ``true`` are not numbers here, as they would silently become
elsewhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tollgate.domain.policy_document import Document, Problem, to_json
from tollgate.domain.policy_paths import Path, choices, fields, kind_at, nearest, options

Schema = TypeVar("Schema", bound=BaseModel)

_MISSING = "is missing"
_MEANT = "did you mean "


def validate(kind: type[Schema], document: Document) -> tuple[Schema | None, list[Problem]]:
    """The document as `kind`, or (None and) everything that is wrong with it.

    JSON is validated rather than Python data because its strict mode knows lists, enumerations and decimals.
    """
    try:
        text = json.dumps(document.value, default=to_json)
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
