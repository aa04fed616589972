"""The entries of a plan's or tenant's lists, as plain data: what each of them is."""

from __future__ import annotations

from typing import Any

from tollgate.domain.policy import BudgetOverride, DisabledUser, LimitOverride
from tollgate.domain.policy_document import Document
from tollgate.domain.policy_paths import EntryId
from tollgate.domain.schema import read

GROUPS = ("limits", "budgets")
NAMED = (*GROUPS, "disabled_users")
"""Lists whose entries are known by what they are about, wherever they stand."""
UNREADABLE = EntryId("?")


def entry_id(entry: Any) -> EntryId:
    """What a limit or budget limits: its id, with its user; a disabled user's name; a plain entry is its own."""
    if not isinstance(entry, dict):
        return EntryId(entry)
    document = Document(entry)
    spec = read(LimitOverride, document)[0] or read(BudgetOverride, document)[0]
    if spec is None:
        disabled, problems = read(DisabledUser, document)
        return EntryId(disabled.user) if disabled is not None and not problems else UNREADABLE
    return EntryId(spec.id + (f"@{spec.user}" if spec.user else ""))
