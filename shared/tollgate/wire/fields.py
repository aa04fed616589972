"""Reading single fields of a request. Whatever is not what it must be is a 400 that names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tollgate.domain.usage import MAX_TOKENS
from tollgate.wire.errors import invalid_request, shown


def wrong_type(name: str, expected: str, value: object) -> Exception:
    return invalid_request(f"'{name}' must be {expected}, not {shown(value)}.", name, "invalid_type")


def written(name: str, value: object) -> str:
    """A field as JSON again. What was just within the parser's depth may be beyond the writer's, and 1e999 is no number
    that can be written."""
    try:
        return json.dumps(value, allow_nan=False)
    except (RecursionError, ValueError):
        raise invalid_request(f"'{name}' cannot be understood.", name, "invalid_value") from None


def flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is None:
        return False
    if type(value) is not bool:
        raise wrong_type(name, "true or false", value)
    return value


def count(fields: Mapping[str, Any], name: str, largest: int = MAX_TOKENS) -> int | None:
    """A whole number from 1 to `largest`, or None where it is absent or null. (In Python True is an int; not here.)"""
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int:
        raise wrong_type(name, "an integer", value)
    if value < 1:
        raise invalid_request(f"'{name}' must be at least 1, not {shown(value)}.", name, "integer_below_min_value")
    if value > largest:
        raise invalid_request(f"'{name}' must be at most {largest}.", name, "integer_above_max_value")
    return value


def largest_of(fields: Mapping[str, Any], names: tuple[str, ...], at_most: int = MAX_TOKENS) -> tuple[int, str]:
    """The largest of these counts and the name of the first one given; 0 and nothing if none is."""
    largest, first = 0, ""
    for name in names:
        if name in fields and (value := count(fields, name, at_most)) is not None:
            first = first or name
            if value > largest:
                largest = value
    return largest, first
