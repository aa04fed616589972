"""Reconciling: what the ledger knows against what limit stores count, and the ledger against itself.

The story, in order: calls whose hold has expired without a close are billed at their estimates. Then, store by store,
every budget that it has loaded is compared with the ledger, which is read first: the store has counted all that the
ledger knows, because a call is settled before it is entered. Where it has not, a settlement was lost and so was the
floor, and the budget is raised to what the ledger knows. At last yesterday's books: what a tenant's counter says has to
be the sum of its report rows, and of their rollups, since every transaction moves them all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import field
from typing import Protocol

from tollgate.domain import keys
from tollgate.domain.bookkeeping import Counter, Question, figure, models_digest, question_of
from tollgate.domain.dataclass import dataclass
from tollgate.domain.limits import DAY_US, Unit, Window
from tollgate.domain.reports import ALL_KEYS, UsageRow
from tollgate.ports import StoreUnavailable
from tollgate.services.meter import Entries, resolve_opens

LATE_US = 2 * 3600 * 1_000_000
"""How long after its window a budget is still compared; late settlements go there."""


class BudgetStore(Protocol):
    """A limit store as it is compared. Everything raises `StoreUnavailable`."""

    name: str

    def budget_keys(self) -> AsyncIterator[Sequence[str]]:
        """The keys of all budgets that are loaded, a few hundred at a time; some perhaps twice."""
        ...

    async def known_spent(self, budgets: Sequence[str]) -> dict[str, int]:
        """What each of these knows to be spent, in its unit; without those that are not loaded."""
        ...

    async def raise_floor(self, spent: Mapping[str, int]) -> None: ...


class Books(Entries, Protocol):
    """The ledger as it is compared. Everything raises `StoreUnavailable`."""

    async def answers(self, asked: Sequence[Question]) -> list[int]:
        """What each question's figures add up to; parallel to `asked`."""
        ...

    async def tenants(self) -> list[str]:
        """All that have used anything."""
        ...

    async def budget_models(self) -> dict[str, tuple[str, ...]]:
        """What the digests in the keys of budgets stand for."""
        ...


@dataclass(slots=True)
class Reconciled:
    """What was found, and put right."""

    resolved: int = 0
    """Calls billed at their estimates."""
    compared: int = 0
    """Budgets of all stores."""
    behind: int = 0
    """Budgets that counted less than the ledger knows, and were raised."""
    ahead: int = 0
    """Budgets that count more than the ledger knows: what they have over it is on its way through the log."""
    drift: dict[str, int] = field(default_factory=dict)
    """By how much budgets were behind, added up by unit."""
    on_the_way: dict[str, int] = field(default_factory=dict)
    """By how much budgets are ahead, added up by unit."""
    unread: int = 0
    """Budgets whose key cannot be read, or whose models nobody has told the ledger yet."""
    unbalanced: list[str] = field(default_factory=list)
    """Tenants whose counter for yesterday is not the sum of their report rows, single or rolled up."""
    failures: list[str] = field(default_factory=list)
    """Stores that could not be compared, and why."""


async def reconcile(ledger: Books, stores: Sequence[BudgetStore], now_us: int) -> Reconciled:
    """Raises `StoreUnavailable` if the ledger cannot be read. A store that does not answer is passed over."""
    report = Reconciled(resolved=await resolve_opens(ledger, now_us))
    models = await ledger.budget_models()
    labels = current_labels(now_us)
    for store in stores:
        try:
            async for page in store.budget_keys():
                await _compare(ledger, store, [key for key in page if key.rpartition(":")[2] in labels], models, report)
        except StoreUnavailable as failure:
            report.failures.append(f"{store.name}: {failure}")
    report.unbalanced = await unbalanced(ledger, Window.DAY.bounds(now_us - DAY_US)[0])
    return report


def current_labels(now_us: int) -> frozenset[str]:
    """Of the windows that are open, or were until a moment ago."""
    return frozenset(window.bounds(at)[0] for window in Window for at in (now_us, now_us - LATE_US))


async def _compare(
    ledger: Books, store: BudgetStore, budgets: Sequence[str], models: Mapping[str, Sequence[str]], report: Reconciled
) -> None:
    asked: dict[str, tuple[Unit, Question]] = {}
    for key in budgets:
        question = question_of(key, models.get(models_digest(key), ()))
        if question is None:
            report.unread += 1
        else:
            asked[key] = Unit(question.names[0].partition(":")[0]), question
    known = await ledger.answers([question for _, question in asked.values()])  # before what the store counts
    counted = await store.known_spent(list(asked))
    floors: dict[str, int] = {}
    for (key, (unit, _)), entered in zip(asked.items(), known, strict=True):
        if key not in counted:
            continue
        report.compared += 1
        missing = entered - counted[key]
        if missing > 0:
            floors[key] = entered
            report.behind += 1
            report.drift[unit] = report.drift.get(unit, 0) + missing
        elif missing < 0:
            report.ahead += 1
            report.on_the_way[unit] = report.on_the_way.get(unit, 0) - missing
    if floors:
        await store.raise_floor(floors)


async def unbalanced(ledger: Books, day: str) -> list[str]:
    """Tenants whose counter for the day differs from their report's rows, single or rolled up. A difference must be
    seen twice: records that are late may be entered between two readings."""
    suspects = sorted(await ledger.tenants())
    for _ in range(2):
        told = [_totals(await ledger.report(since=day, until=day, by=by)) for by in (ALL_KEYS, ("day",))]
        counters = [Counter(keys.tenant_subject(tenant), day) for tenant in suspects]
        tokens = await ledger.answers([Question(counter, (figure(Unit.TOKENS),)) for counter in counters])
        money = await ledger.answers([Question(counter, (figure(Unit.MICROUSD),)) for counter in counters])
        suspects = [
            tenant
            for tenant, *counted in zip(suspects, tokens, money, strict=True)
            if any(rows.get(tenant, [0, 0]) != counted for rows in told)
        ]
        if not suspects:
            return []
    return suspects


def _totals(rows: Sequence[UsageRow]) -> dict[str, list[int]]:
    """Tokens and micro-dollars of each tenant."""
    found: dict[str, list[int]] = {}
    for row, sums in rows:
        total = found.setdefault(row.tenant, [0, 0])
        total[0] += sums.get("input_tokens", 0) + sums.get("output_tokens", 0)
        total[1] += sums.get("cost_microusd", 0)
    return found
