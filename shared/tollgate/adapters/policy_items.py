"""The policy as items of its table: ``plan#free``, ``model#small``, ``upstream#openai``, ``price#openai``, ``global``;
and ``snapshot``.

All but the last are what operators edit, as natural maps. The snapshot is what gateways read: the whole policy, once it
was found to be right, as one item with a revision.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from tollgate.domain.policy import Policy
from tollgate.domain.policy_document import Document, Place, PolicyErrors, Problem, canonical
from tollgate.domain.policy_paths import Path
from tollgate.domain.schema import plain

SNAPSHOT = "snapshot"
GLOBAL = "global"
KINDS = {"upstream": "upstreams", "price": "prices", "model": "models", "plan": "plans"}
"""Of an item's id and of the policy; in the order in which they refer to each other."""
SETTINGS = ("redis_failure_mode", "ceiling_price")
"""Of the policy as a whole; they stand in the item ``global``."""
BOOKKEEPING = frozenset({"updated_at", "updated_by"})
"""Attributes that say who changed an item; not part of the policy."""
PACK_ABOVE = 8_000
MAX_PACKED = 380_000
"""Bytes; a DynamoDB item holds 400 KB."""
GZIP = 31
"""To zlib: with gzip's head and sum, as `gunzip` reads it. The gzip module would be one more import of a cold start."""


def items_of(policy: Policy) -> dict[str, dict[str, Any]]:
    """The policy's items by id, without the tenants, which have a table of their own."""
    found: dict[str, dict[str, Any]] = {}
    document = plain(policy)
    for kind, group in KINDS.items():
        for name, entry in document.get(group, {}).items():
            found[f"{kind}#{name}"] = entry
    common = dict(document.get("global", {}))
    common |= {name: document[name] for name in SETTINGS if name in document}
    if common:
        found[GLOBAL] = common
    return found


def document_of(items: Iterable[Mapping[str, Any]]) -> Document:
    """The policy that the items say, each part with the item that it came from. Raises `PolicyErrors`."""
    value: dict[str, Any] = {"version": 1, **{group: {} for group in KINDS.values()}}
    places: dict[Path, Place] = {}
    problems: list[Problem] = []
    for item in items:
        key = str(item["id"])
        entry = without_bookkeeping(item, "id")
        kind, separator, name = key.partition("#")
        if key == SNAPSHOT:
            continue
        if key == GLOBAL:
            for name in SETTINGS:
                if (setting := entry.pop(name, None)) is not None:
                    value[name] = setting
                    places[(name,)] = Place(key)
            value["global"] = entry
            places[("global",)] = Place(key)
        elif separator and kind in KINDS:
            value[KINDS[kind]][name] = entry
            places[(KINDS[kind], name)] = Place(key)
        else:
            known = ", ".join(f"{kind}#NAME" for kind in KINDS)
            problems.append(Problem((), f"is no part of a policy: expected {known} or {GLOBAL}", place=Place(key)))
    if problems:
        raise PolicyErrors(problems)
    return Document(value, "policy table", places)


def without_bookkeeping(item: Mapping[str, Any], *also: str) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in BOOKKEEPING and name not in also}


def same(one: Any, other: Any) -> bool:
    """Whether two items say the same, whatever types their numbers have."""
    return canonical(one) == canonical(other)


def body_of(policy: Policy) -> str:
    """What a snapshot holds: the policy as JSON, without tenants and revision. A part that is empty is left out: items
    cannot say whether a file had it."""
    document = plain(policy)
    return canonical(
        {name: part for name, part in document.items() if name not in ("tenants", "revision") and part != {}}
    )


def pack(body: str) -> dict[str, Any]:
    """The snapshot's attributes for a body: text, or compressed where it is long. Raises `PolicyErrors`."""
    raw = body.encode()
    if len(raw) <= PACK_ABOVE:
        return {"body": body}
    packed = base64.b64encode(zlib.compress(raw, wbits=GZIP)).decode()
    if len(packed) > MAX_PACKED:
        raise PolicyErrors([Problem((), "the policy is too large for one item of its table, even compressed")])
    return {"packed": packed}


def unpack(snapshot: Mapping[str, Any]) -> Document:
    """The policy of a snapshot. Raises `PolicyErrors` for one that nobody of us wrote."""
    try:
        return Document(json.loads(body_text(snapshot), parse_float=Decimal), SNAPSHOT)
    except ValueError as error:
        raise _unreadable(error) from None


def body_text(snapshot: Mapping[str, Any]) -> str:
    """Raises `PolicyErrors`."""
    try:
        if "packed" in snapshot:
            return zlib.decompress(base64.b64decode(snapshot["packed"]), GZIP).decode()
        return str(snapshot["body"])
    except (ValueError, zlib.error, KeyError, TypeError) as error:
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> PolicyErrors:
    return PolicyErrors([Problem((), f"cannot be read: {error}", place=Place(SNAPSHOT))])
