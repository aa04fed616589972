"""What a table's stream says was changed: two images in, an entry of the audit log out, without secrets.

Edits by the command line and by hand are seen alike; the former are signed. Pure: no clock, no IO.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from tollgate.domain import policy
from tollgate.domain.audit import Action, Change
from tollgate.domain.policy_document import to_json
from tollgate.domain.schema import Spec

Image = Mapping[str, Any]
Table = Literal["policy", "tenants", "keys"]

BY_HAND = "by hand"
"""The actor of a change whose item nobody signed: made in the console, or with another tool."""
STAMPS = frozenset({"updated_at", "updated_by", "version"})
"""Attributes that say who changed an item and when; not what was changed."""
KEYS: Mapping[Table, str] = {"policy": "id", "tenants": "tenant", "keys": "key_id"}
"""The tables' own keys, which are the entry's `item`."""
HIDDEN = "(not shown)"
MAX_SIDE = 150_000
"""Characters of one side of a change; a longer one is told by its digest (an item holds 400 KB)."""

_MEANT = frozenset(
    name
    for kind in vars(policy).values()
    if isinstance(kind, type) and issubclass(kind, Spec)
    for name in (*kind.FIELDS, *kind.ALIASES.values())
) | {"tenant_id", "team", "restrictions", "expires_at", "created_at", "rotated_at", "revoked_at"}
"""Attributes whose values are shown. Anything else that an item holds (a digest, somebody's note) is told by name."""
_SECRET = re.compile(r"\b(sk|tg|xai|gsk|ghp|xox[bp])([-_])[A-Za-z0-9_-]{12,}|(?<=://)[^/@\s]+(?=@)")
"""A provider key where its name belongs, a password in a URL: mistakes that edits by hand make."""


def change(*, id: str, ts_us: int, table: Table, item: str, before: Image, after: Image, remover: str) -> Change | None:
    """What a stream record says was changed; None where nothing was but stamps. `before` is empty for a new item,
    `after` for a deleted one, which nobody can sign: that was `remover`."""
    names = sorted((before.keys() | after.keys()) - STAMPS - {KEYS[table]})
    differ = [name for name in names if _text(before, name) != _text(after, name)]
    if not differ and before and after:
        return None
    action: Action = "created" if not before else "changed" if after else "deleted"
    actor = _actor(before, after) if after else remover
    return Change(id, ts_us, actor, table, item, action, _side(before, differ), _side(after, differ))


def _actor(before: Image, after: Image) -> str:
    """Who signed this very change. Whoever may write a table can sign as anybody: CloudTrail has the proof."""
    signed, old = ([side.get("updated_at"), side.get("updated_by")] for side in (after, before))
    return signed[1] if isinstance(signed[1], str) and signed[1] and signed != old else BY_HAND


def _text(image: Image, name: str) -> str | None:
    return _json(image[name]) if name in image else None


def _json(value: object) -> str:
    """The same text for the same data, whatever somebody put into an item."""
    return json.dumps(value, default=_plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _plain(value: object) -> object:
    return f"(binary, {len(value)} bytes)" if isinstance(value, bytes) else to_json(value)


def _side(image: Image, names: list[str]) -> str:
    shown = {name: image[name] if name in _MEANT else HIDDEN for name in names if name in image}
    text = _SECRET.sub(lambda found: f"{found[1] or ''}{found[2] or ''}…", _json(shown))
    if len(text) <= MAX_SIDE:
        return text
    return _json({"sha256": hashlib.sha256(text.encode()).hexdigest(), "characters": len(text)})
