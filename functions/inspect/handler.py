"""A question about a caller in, why they would be refused now out. For operators, whose machines cannot reach Redis.

Invoked by `tollgate explain` with the fields of `Question`; it takes nothing and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tollgate import bootstrap
from tollgate.ports import PolicyUnavailable, StoreUnavailable
from tollgate.services.explain import Question, explain
from tollgate.wiring import clock_us

MAX_TOKENS = 10**9


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:
    """The explanation, or ``{"error": reason}`` where there can be none."""
    try:
        return asyncio.run(_answer(read(event)))
    except (ValueError, PolicyUnavailable, StoreUnavailable) as error:
        return {"error": str(error)}


def read(event: Mapping[str, Any]) -> Question:
    """Raises ValueError."""
    known = {field.name for field in fields(Question)}
    if unknown := sorted(event.keys() - known):
        raise ValueError(f"unknown: {', '.join(unknown)}")
    for name, value in event.items():
        if name == "tokens":
            if type(value) is not int or not 1 <= value <= MAX_TOKENS:
                raise ValueError(f"tokens: expected a whole number from 1 to {MAX_TOKENS}")
        elif not isinstance(value, str) or len(value) > 256:
            raise ValueError(f"{name}: expected text of at most 256 characters")
    if not event.get("tenant") or not event.get("user"):
        raise ValueError("tenant and user are needed")
    return Question(**event)


async def _answer(question: Question) -> dict[str, Any]:
    async with bootstrap.inspector() as (directory, store, ledger):
        return await explain(question, directory, store, ledger, clock_us)
