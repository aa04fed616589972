"""What a usage record moves in the account: counters per subject and window, and rows of the usage report.

Counters have the subjects and window labels of budgets, so that a budget which is added in mid-window counts what
its window has already used. They count in total and per model, because a budget may be for some models only.
Moves are sums, so batches merge and an estimate is replaced by adding the difference. Pure: no clock, no IO.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import field
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple, TypeVar

from tollgate.domain import keys
from tollgate.domain.dataclass import dataclass
from tollgate.domain.limits import BudgetTake, Unit, Window
from tollgate.domain.records import UsageClose, counts_as_request


class Counter(NamedTuple):
    """What one subject has used in one window. Its figures are named by `figure`."""

    subject: str
    label: str
    """The window's label: ``2026-11-21``, ``2026-11`` or ``life``."""


class Row(NamedTuple):
    """One row of the usage report; those of one rollup partition the usage. `day` is a UTC day (``2026-11-21``), or the
    month of a rollup by month. What a rollup does not tell apart is empty."""

    tenant: str
    day: str
    user: str
    model: str
    provider: str
    team: str = ""
    key: str = ""
    use_case: str = ""
    rollup: str = ""
    """Which of `MONTHS` or `DAYS` it belongs to; empty for a single row."""

    def rolled(self) -> Iterator[Row]:
        """The rollups that it is part of, which answer what would take too many rows."""
        tenant, day, user, model, provider, team, key, use_case, _ = self
        month = day[:7]
        yield Row(tenant, month, "", model, provider, use_case=use_case, rollup="uses")
        yield Row(tenant, month, user, "", "", team, key, rollup="people")
        yield Row(tenant, day, "", model, provider, rollup="day")
        yield Row(tenant, month, user, model, provider, team, key, use_case, "month")


MONTHS = {
    "uses": frozenset({"use_case", "model", "provider"}),
    "people": frozenset({"user", "team", "key"}),
    "month": frozenset({"user", "team", "key", "use_case", "model", "provider"}),
}
DAYS = {"day": frozenset({"day", "model", "provider"}), "": MONTHS["month"] | {"day"}}
"""Which columns of a tenant's rows the rollups tell apart, by months and by days; those with the fewest rows first."""


KINDS = (
    "cached_input_tokens",
    "cache_write_tokens",
    "cache_write_long_tokens",
    "audio_input_tokens",
    "reasoning_tokens",
    "audio_output_tokens",
)
FIGURES = ("requests", "input_tokens", "output_tokens", "cost_microusd", *KINDS, "estimated", "ceiling")
"""What a row counts. The kinds of tokens are parts of the input or the output; `estimated` are the requests whose usage
is an estimate, `ceiling` those that were reckoned at the ceiling price."""

USE_CASES = 100
"""Labels that a tenant's rows tell apart in one UTC day. Callers choose them freely, and each makes rows of its own:
those beyond are counted as `OTHER`, so that a flood of labels is no flood of rows."""
OTHER = "other"


Moves = dict[Counter | Row, dict[str, int]]
"""By how much each figure of each counter and row moves."""
Move = Mapping[Counter | Row, Mapping[str, int]]
"""The same of one entry, not to be changed: places that move alike share their figures."""


def figure(unit: Unit, model: str = "") -> str:
    """The name of a counter's figure: ``tokens`` in total, ``tokens:small`` for one model."""
    return f"{unit}:{model}" if model else str(unit)


def figures(unit: Unit, models: Iterable[str] | None) -> list[str]:
    """The figures whose sum a budget counts; of all models where it names none."""
    return [figure(unit)] if models is None else [figure(unit, model) for model in sorted(models)]


def moves(entry: UsageClose, use_case: str | None = None) -> Move:
    """What entering `entry` adds. A call that never left the gateway used nothing, and moves nothing; one at which the
    upstream failed is in the report, but no budget pays for it. `use_case`: what its row says, if not its own label."""
    row = row_move(entry, use_case)
    if row is None:
        return {}
    requests = int(counts_as_request(entry.outcome, entry.status, entry.total_tokens))
    amounts = requests, entry.total_tokens, entry.cost_microusd
    counted = {
        name: amount for names, amount in zip(_figures(entry.model), amounts, strict=True) if amount for name in names
    }
    counters = _counters(entry.tenant, _members(entry), row[0].day) if counted else ()
    return dict.fromkeys(counters, counted) | dict.fromkeys(_with_rollups(row[0]), row[1])


def row_move(entry: UsageClose, use_case: str | None = None) -> tuple[Row, dict[str, int]] | None:
    """The row that an entry is counted in, and by how much its figures move; None where nothing was used."""
    if entry.outcome == "not_sent":
        return None
    who = entry.tenant, day_of(entry), entry.user, entry.model, entry.upstream, entry.team, entry.key
    sums = {"requests": 1}
    sums |= {name: amount for name, amount in zip(_COUNTED, _counts(entry), strict=True) if amount}
    if entry.estimated:
        sums["estimated"] = 1
    if entry.priced == "ceiling":
        sums["ceiling"] = 1
    return Row(*who, entry.use_case if use_case is None else use_case), sums


def day_of(entry: UsageClose) -> str:
    """The UTC day that an entry is charged to."""
    return Window.DAY.bounds(entry.ts_us)[0]


P = TypeVar("P", bound=Counter | Row)


def add(total: MutableMapping[P, dict[str, int]], more: Mapping[P, Mapping[str, int]], sign: int = 1) -> None:
    """Add `more` (or take it off, with a `sign` of -1) to `total`, in place. What cancels out is left out."""
    for place, amounts in more.items():
        sums = total.get(place)
        if sums is None:
            total[place] = {name: sign * amount for name, amount in amounts.items()}
            continue
        for name, amount in amounts.items():
            if moved := sums.get(name, 0) + sign * amount:
                sums[name] = moved
            else:
                sums.pop(name, None)
        if not sums:
            del total[place]


def summed(moves: Iterable[Move]) -> Move:
    """All of them in one. Most places move with others (a user's counters of day, month and life, say), by the same
    figures of the same entries: those are added up once."""
    parts: dict[Counter | Row, list[Mapping[str, int]]] = {}
    for move in moves:
        for place, amounts in move.items():
            parts.setdefault(place, []).append(amounts)
    known: dict[tuple[int, ...], dict[str, int]] = {}
    total: Moves = {}
    for place, alike in parts.items():
        which = tuple(map(id, alike))
        if (sums := known.get(which)) is None:
            sums = known[which] = {}
            for amounts in alike:
                for name, amount in amounts.items():
                    sums[name] = sums.get(name, 0) + amount
            for name in [name for name, amount in sums.items() if not amount]:
                del sums[name]
        if sums:
            total[place] = sums
    return total


class Question(NamedTuple):
    """Which figures of a counter, added up, a budget has spent."""

    counter: Counter
    names: tuple[str, ...]

    def of(self, moved: Move) -> int:
        """The answer, where this is all that moved."""
        sums = moved.get(self.counter, {})
        return sum([sums.get(name, 0) for name in self.names])


def question(take: BudgetTake) -> Question:
    return Question(Counter(take.subject, take.label), tuple(figures(take.limit.unit, take.limit.models)))


def questions(entries: Iterable[UsageClose]) -> dict[str, Question]:
    """For each budget key that the entries were counted against, what to ask the ledger. Keys that cannot be read
    (of another version, or of a budget whose models are not told) are left out: they get no floor."""
    found: dict[str, Question] = {}
    for entry in entries:
        models = dict(entry.budget_models)
        for kind, key, _ in entry.settle:
            if kind == "b" and key not in found and (asked := question_of(key, models.get(key, ()))) is not None:
                found[key] = asked
    return found


def question_of(key: str, models: Iterable[str] = ()) -> Question | None:
    """What to ask the ledger about a budget's key; None if it cannot be read, or its digest is not that of `models`."""
    parsed = _BUDGET_KEY.fullmatch(key)
    if parsed is None:
        return None
    unit, digest, some = Unit(parsed["unit"]), parsed["models"], sorted(models)
    if digest and keys.digest(f"{unit}.{parsed['window']}.{'+'.join(some)}") != digest:
        return None
    counter = Counter(parsed["subject"], parsed["label"])
    return Question(counter, tuple(figures(unit, some if digest else None)))


def models_digest(key: str) -> str:
    """The digest in the key of a budget that counts some models only; empty for others."""
    parsed = _BUDGET_KEY.fullmatch(key)
    return (parsed["models"] or "") if parsed is not None else ""


@dataclass(slots=True)
class EntryReport:
    """What `Ledger.enter` did with a batch."""

    entered: int = 0
    repeated: int = 0
    replaced: int = 0
    """Estimates that a real record has replaced; they count as entered, too."""
    tampered: list[int] = field(default_factory=list)
    """Positions in the batch of records that were refused: the ledger has their ids, with other bills."""
    conflicts: int = 0
    """Transactions that had to be tried again, because others moved the same counters."""
    floors: dict[str, int] = field(default_factory=dict)
    """Budget key -> what the ledger knows to be spent, in the budget's unit. Of counters that very many batches want at
    once only now and then."""
    moved: dict[str, int] = field(default_factory=dict)
    """For each of these keys by how much this batch has moved it. (What others entered meanwhile is in the floor, too:
    whether a threshold was crossed is not to be told from the difference alone.)"""


def first_of_each(entries: Sequence[UsageClose], report: EntryReport) -> list[tuple[int, UsageClose]]:
    """The first record of each id, with its position; the others are told in `report`."""
    first: dict[str, tuple[int, UsageClose]] = {}
    for position, entry in enumerate(entries):
        at, known = first.setdefault(entry.id, (position, entry))
        if at == position:
            continue
        if known.bill() == entry.bill():
            report.repeated += 1
        else:
            report.tampered.append(position)
    return list(first.values())


_BUDGET_KEY = re.compile(
    r"(?P<subject>\{[^{}]*\}[\w-]*):b:(?P<unit>requests|tokens|microusd)\.(?P<window>day|month|life)"
    r"(?:\.(?P<models>[\w-]{22}))?:(?P<label>life|\d{4}-\d{2}(?:-\d{2})?)",
    re.ASCII,
)


@lru_cache(maxsize=1024)
def _figures(model: str) -> tuple[tuple[str, str], ...]:
    """Of requests, tokens and micro-dollars the figure in total and the model's."""
    return tuple([(figure(unit), figure(unit, model)) for unit in (Unit.REQUESTS, Unit.TOKENS, Unit.MICROUSD)])


@lru_cache(maxsize=4096)
def _with_rollups(row: Row) -> tuple[Row, ...]:
    return row, *row.rolled()


_COUNTED = FIGURES[1:-2]
_counts = attrgetter(*_COUNTED)


def _members(entry: UsageClose) -> tuple[tuple[str, str], ...]:
    return ("u", entry.user), ("k", entry.key), ("t", entry.team)


@lru_cache(maxsize=4096)
def _counters(tenant: str, members: tuple[tuple[str, str], ...], day: str) -> tuple[Counter, ...]:
    """The counters of everyone whose budgets a usage of that day counts against; under the names that `terms` gives
    their budgets. (Neighbours in a batch have most of them in common.)"""
    subjects = [keys.tenant_subject(tenant)]
    subjects += [keys.member_subject(tenant, kind, name) for kind, name in members if name]
    return tuple([Counter(subject, label) for subject in subjects for label in (day, day[:7], "life")])
