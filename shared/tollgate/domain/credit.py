"""Prepaid credit: what was added to it, entry by entry, and the sums that admission compares use with.

Entries are only ever added: a payment, a refund, the reversal of an entry that was a mistake. An account is a tenant's,
or one user's of it. The sums of its entries stand in the tenant's record, where admission finds them without asking
anybody; every new entry writes them anew, so the entries are what counts. What is used is the ledger's counter for
life. It counted before there was credit, too: the first entry of an account notes how much.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Literal

from tollgate.domain import keys
from tollgate.domain.dataclass import dataclass
from tollgate.domain.limits import FOREVER_US, Budget, BudgetTake, Scope, Unit, Window

Kind = Literal["payment", "refund", "reversal"]
MICRO = 1_000_000


class BadEntry(ValueError):
    """An entry that cannot be added; the message says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One movement of an account. `user` is empty for the tenant's own; `microusd` is negative where credit is taken
    back."""

    id: str
    tenant: str
    user: str
    kind: Kind
    microusd: int
    at: str
    """When, as ``2026-11-21T12:00:00Z``."""
    by: str
    note: str = ""
    reverses: str = ""
    """The id of the entry that this one undoes."""
    used_before: int = 0
    """Of an account's first entry: micro-dollars used until then, which are not drawn from the credit."""

    def repeats(self, other: Entry) -> bool:
        """Whether it says the same as an entry of the same id: then a command is being repeated."""
        return (self.user, self.kind, self.microusd, self.reverses) == (
            other.user, other.kind, other.microusd, other.reverses,
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id, "tenant": self.tenant, "user": self.user or None, "kind": self.kind,
            "usd": Decimal(self.microusd) / MICRO, "at": self.at, "by": self.by, "note": self.note,
            "reverses": self.reverses or None,
        }  # fmt: skip


def reversal(entries: Iterable[Entry], id: str) -> tuple[str, int]:
    """Whose entry `id` is (the user; empty: the tenant's), and what undoes it. Raises `BadEntry`."""
    for entry in entries:
        if entry.id == id:
            if entry.kind == "reversal":
                raise BadEntry(f"{id!r} is a reversal itself: add what is missing as a payment")
            return entry.user, -entry.microusd
    raise BadEntry(f"there is no entry {id!r}: see `tollgate credit list`")


def sums(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """The `credit` of the tenant's record: one mapping per account. Raises `BadEntry` where one would be negative."""
    added: dict[str, int] = {}
    before: dict[str, int] = {}
    for entry in entries:
        added[entry.user] = added.get(entry.user, 0) + entry.microusd
        before[entry.user] = before.get(entry.user, 0) + entry.used_before
    found: list[dict[str, Any]] = []
    for user in sorted(added):
        if added[user] < 0:
            raise BadEntry("that is more than was ever added to this account: see `tollgate credit show`")
        account: dict[str, Any] = {"usd": Decimal(added[user]) / MICRO}
        account |= {"user": user} if user else {}
        account |= {"used_before": Decimal(before[user]) / MICRO} if before[user] else {}
        found.append(account)
    return found


def spending_of(tenant: str, user: str, limit: Budget | None = None) -> BudgetTake:
    """What to ask a ledger for an account's use: everything for life."""
    scope = Scope.USER if user else Scope.TENANT
    subject = keys.member_subject(tenant, "u", user) if user else keys.tenant_subject(tenant)
    if limit is None:
        limit = Budget(scope, Unit.MICROUSD, 0, Window.LIFE, "")
    return BudgetTake(subject, f"{subject}:b:microusd.life:life", limit, 0, 0, "life", 0, FOREVER_US)
