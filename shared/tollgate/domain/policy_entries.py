"""The entries of a plan's or tenant's limits and budgets, as plain data: what each of them is."""

from __future__ import annotations

from typing import Any

from tollgate.domain.policy import BudgetOverride, LimitOverride
from tollgate.domain.policy_document import Document
from tollgate.domain.policy_paths import EntryId
from tollgate.domain.schema import read

GROUPS = ("limits", "budgets")
UNREADABLE = EntryId("?")


def entry_id(entry: Any) -> EntryId:
    """What a limit or budget limits: its id, with its user; a plain entry is its own."""
    if not isinstance(entry, dict):
        return EntryId(entry)
    document = Document(entry)
    spec = read(LimitOverride, document)[0] or read(BudgetOverride, document)[0]
    if spec is None:
        return UNREADABLE
    return EntryId(spec.id + (f"@{spec.user}" if spec.user else ""))
