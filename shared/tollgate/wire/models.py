"""Lists of models, in the shapes that the two SDKs know. Nobody knows when a model was made: both are told 1970."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tollgate.wire.errors import Api


def model_entry(name: str, api: Api) -> dict[str, Any]:
    if api == "anthropic":
        return {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
    return {"id": name, "object": "model", "created": 0, "owned_by": "tollgate"}


def model_list(names: Sequence[str], api: Api) -> dict[str, Any]:
    """All of them on one page."""
    entries = [model_entry(name, api) for name in names]
    if api == "anthropic":
        ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
        return {"data": entries, "has_more": False, **ends}
    return {"object": "list", "data": entries}
