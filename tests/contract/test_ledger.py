"""What every ledger promises: each usage id counts once, whatever is repeated, and every figure can be asked for."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import random
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.aws_fixture import Recorder, aws_endpoint, dynamodb, make_table
from tests.records import NOON, a_close, an_open
from tollgate.adapters.aws import AwsError
from tollgate.adapters.dynamodb_counters import SPREAD
from tollgate.adapters.dynamodb_ledger import DynamoLedger
from tollgate.adapters.memory_ledger import MemoryLedger
from tollgate.domain import keys
from tollgate.domain.bookkeeping import OTHER, USE_CASES, Counter
from tollgate.domain.limits import DAY_US, Budget, BudgetTake, Scope, Unit, Window
from tollgate.domain.records import UsageClose
from tollgate.domain.reports import ALL_KEYS, PARTS, Line, grouped
from tollgate.ports import StoreUnavailable
from tollgate.services.billing import Bill, export

T = TypeVar("T")
USER = keys.member_subject("acme", "u", "alice")
TENANT = keys.tenant_subject("acme")


class Books:
    """A ledger, driven synchronously."""

    def __init__(self, ledger: DynamoLedger | MemoryLedger, runner: asyncio.Runner) -> None:
        self.ledger = ledger
        self._runner = runner

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    def enter(self, *entries: UsageClose, provisional: bool = False) -> tuple[int, int]:
        report = self.run(self.ledger.enter(entries, provisional=provisional))
        return report.entered, report.repeated

    def spent(self, *takes: BudgetTake) -> list[int]:
        return self.run(self.ledger.spent(takes))

    def rows(self, *by: str, **where: str) -> list[Line]:
        """By all keys, unless some are named: then with every kind of token."""
        days = {name: where.pop(name) for name in ("tenant", "since", "until") if name in where}
        return grouped(self.run(self.ledger.report(**days, where=where)), by or ALL_KEYS, kinds=bool(by))

    def told(self, by: Sequence[str], since: str | None, until: str | None) -> list[Line]:
        return grouped(self.run(self.ledger.report(since=since, until=until, by=by)), by, kinds=True)

    def added_up(self, by: Sequence[str], since: str | None, until: str | None) -> list[Line]:
        """The same from single rows."""
        return grouped(self.run(self.ledger.report(since=since, until=until)), by, kinds=True)

    def entries(self, tenant: str, day: str) -> list[UsageClose]:
        async def read() -> list[UsageClose]:
            return [entry async for entry in self.ledger.entries(tenant, day)]

        return self.run(read())

    def bill(self, **how: Any) -> tuple[Bill, bytes]:
        """Of acme, in November 2026, and what was written."""
        out = io.BytesIO()
        days = [f"2026-11-{day:02}" for day in range(1, 31)]
        return self.run(export(self.ledger, "acme", days, out.write, **how)), out.getvalue()


@pytest.fixture(scope="module")
def dynamo(runner: asyncio.Runner) -> Iterator[Recorder]:
    with aws_endpoint() as url, dynamodb(url, runner) as client:
        yield Recorder(client)


def make_books(kind: str, runner: asyncio.Runner, request: pytest.FixtureRequest) -> Books:
    if kind == "memory":
        return Books(MemoryLedger(), runner)
    client: Recorder = request.getfixturevalue("dynamo")
    client.fault = None
    return Books(DynamoLedger(client, runner.run(make_table(client, sort_key=True))), runner)


@pytest.fixture(params=["memory", "dynamodb"])
def books(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Books:
    return make_books(request.param, runner, request)


def take(
    unit: Unit, window: Window, *, subject: str = USER, models: frozenset[str] | None = None, at: int = NOON
) -> BudgetTake:
    what = f"{unit}.{window}" + (f".{'+'.join(sorted(models))}" if models else "")
    key = f"{subject}:b:{unit}.{window}" + (f".{keys.digest(what)}" if models else "")
    label, start, end = window.bounds(at)
    limit = Budget(Scope.USER, unit, 10**9, window, f"user.{what}", models)
    return BudgetTake(subject, f"{key}:{label}", limit, 1, 1, label, start, end)


class TestEntering:
    def test_every_figure_of_every_window_and_subject(self, books: Books) -> None:
        entry = a_close("a", input_tokens=100, output_tokens=20, cost_microusd=7, key="k1", team="red")
        assert books.enter(entry) == (1, 0)
        subjects = [TENANT, USER, keys.member_subject("acme", "k", "k1"), keys.member_subject("acme", "t", "red")]
        for subject in subjects:
            for window in Window:
                takes = [take(unit, window, subject=subject) for unit in (Unit.REQUESTS, Unit.TOKENS, Unit.MICROUSD)]
                assert books.spent(*takes) == [1, 120, 7]

    def test_budgets_of_some_models_count_those_only(self, books: Books) -> None:
        books.enter(a_close("a", model="small", input_tokens=10), a_close("b", model="large", input_tokens=1))
        books.enter(a_close("c", model="tiny", input_tokens=500))
        some = take(Unit.TOKENS, Window.MONTH, models=frozenset({"small", "large"}))
        assert books.spent(some, take(Unit.TOKENS, Window.MONTH)) == [11, 511]

    def test_windows_are_utc_calendar_days_and_months(self, books: Books) -> None:
        books.enter(a_close("a", input_tokens=1), a_close("b", input_tokens=2, ts_us=NOON - DAY_US))
        books.enter(a_close("c", input_tokens=4, ts_us=NOON - 31 * DAY_US))
        asked = [take(Unit.TOKENS, window) for window in Window]
        assert books.spent(*asked) == [1, 3, 7]

    def test_an_id_counts_once(self, books: Books) -> None:
        first, second = a_close("a", input_tokens=5), a_close("b", input_tokens=7)
        assert books.enter(first, first) == (1, 1)
        assert books.enter(second, first, second) == (1, 2)
        assert books.enter(first, second) == (0, 2)
        assert books.spent(take(Unit.TOKENS, Window.DAY)) == [12]
        assert [row["requests"] for row in books.rows()] == [2]

    def test_a_call_that_never_left_uses_nothing(self, books: Books) -> None:
        assert books.enter(a_close("a", outcome="not_sent")) == (1, 0)
        assert books.enter(a_close("a", outcome="not_sent")) == (0, 1)
        assert books.spent(take(Unit.REQUESTS, Window.DAY)) == [0]
        assert books.rows() == []

    def test_nothing_known_is_nothing_spent(self, books: Books) -> None:
        assert books.spent() == []
        assert books.spent(take(Unit.TOKENS, Window.LIFE)) == [0]
        assert books.enter() == (0, 0)

    def test_a_large_batch_is_entered_whole(self, books: Books) -> None:
        entries = [a_close(f"id{i}", user=f"user{i % 10}", input_tokens=i) for i in range(200)]
        assert books.enter(*entries) == (200, 0)
        assert books.enter(*entries[50:150], a_close("new", user="user1", input_tokens=1)) == (1, 100)
        assert books.spent(take(Unit.TOKENS, Window.DAY, subject=TENANT)) == [sum(range(200)) + 1]
        assert sum(int(row["requests"]) for row in books.rows()) == 201

    def test_ids_and_names_of_any_shape(self, books: Books) -> None:
        names = ["a#b", "тест", "{x}", ":", "x" * 256, "pk", "ttl", "\U0001f600" * 256]
        entries = [a_close(name, tenant=name, user=name, model=name, upstream=name) for name in names]
        assert books.enter(*entries) == (len(names), 0)
        assert books.enter(*entries) == (0, len(names))
        assert sorted(str(row["model"]) for row in books.rows()) == sorted(names)


class TestTampering:
    @pytest.mark.parametrize(
        "changed",
        [{"input_tokens": 6}, {"cost_microusd": 0}, {"tenant": "globex"}, {"user": "bob"}, {"model": "tiny"},
         {"ts_us": NOON + DAY_US}, {"outcome": "not_sent"}, {"estimated": True}, {"use_case": "x"}],
    )  # fmt: skip
    def test_the_same_id_with_another_bill_is_refused(self, books: Books, changed: dict[str, Any]) -> None:
        first = a_close("a", input_tokens=5)
        forged = replace(first, **changed)
        books.enter(first)
        report = books.run(books.ledger.enter([a_close("b", input_tokens=1), forged]))
        assert (report.entered, report.repeated, report.tampered) == (1, 0, [1])
        assert books.spent(take(Unit.TOKENS, Window.LIFE)) == [6]

    def test_in_one_batch_the_first_counts(self, books: Books) -> None:
        first = a_close("a", input_tokens=5)
        report = books.run(books.ledger.enter([first, replace(first, input_tokens=9), first]))
        assert (report.entered, report.repeated, report.tampered) == (1, 1, [1])
        assert books.spent(take(Unit.TOKENS, Window.DAY)) == [5]

    def test_an_estimate_may_be_replaced_by_any_bill(self, books: Books) -> None:
        books.enter(a_close("a", input_tokens=5, estimated=True), provisional=True)
        report = books.run(books.ledger.enter([a_close("a", input_tokens=9)]))
        assert (report.replaced, report.tampered) == (1, [])
        report = books.run(books.ledger.enter([a_close("a", input_tokens=5, estimated=True)]))
        assert (report.repeated, report.tampered) == (0, [0])

    def test_what_does_not_belong_to_the_bill_may_differ(self, books: Books) -> None:
        books.enter(a_close("a", latency_ms=1, settle=(("b", "x", 1),)))
        assert books.enter(a_close("a", latency_ms=2)) == (0, 1)


class TestEstimates:
    def test_a_real_record_replaces_an_estimate_once(self, books: Books) -> None:
        estimate = a_close("a", input_tokens=10, output_tokens=990, cost_microusd=50, upstream="openai")
        real = replace(estimate, output_tokens=5, cost_microusd=1, upstream="azure")
        assert books.enter(estimate, provisional=True) == (1, 0)
        assert books.enter(estimate, provisional=True) == (0, 1)
        assert books.spent(take(Unit.TOKENS, Window.DAY), take(Unit.MICROUSD, Window.DAY)) == [1000, 50]
        assert books.run(books.ledger.enter([real, a_close("b")])).replaced == 1
        assert books.enter(real) == (0, 1)
        assert books.enter(estimate, provisional=True) == (0, 1)
        assert books.spent(take(Unit.TOKENS, Window.DAY)) == [15 + 12]
        assert {row["provider"]: row["requests"] for row in books.rows()} == {"azure": 1, "openai": 1}

    def test_a_real_record_is_not_replaced_by_an_estimate(self, books: Books) -> None:
        books.enter(a_close("a", input_tokens=1))
        assert books.enter(a_close("a", input_tokens=999), provisional=True) == (0, 1)
        assert books.spent(take(Unit.TOKENS, Window.DAY)) == [1]

    def test_open_calls_are_found_when_they_are_overdue(self, books: Books) -> None:
        ledger = books.ledger
        opens = [an_open(f"o{i}", expires_us=NOON + i) for i in range(10)]
        books.run(ledger.opened(opens))
        books.run(ledger.opened(opens[:3]))
        due = books.run(ledger.overdue(NOON + 5, 100))
        assert sorted(due, key=lambda o: o.id) == opens[:5]
        assert len(books.run(ledger.overdue(NOON + 5, 2))) == 2
        books.run(ledger.forget(due))
        assert books.run(ledger.overdue(NOON + 5, 100)) == []
        assert len(books.run(ledger.overdue(NOON + 100, 100))) == 5

    def test_open_calls_are_found_by_their_ids(self, books: Books) -> None:
        ledger = books.ledger
        opens = [an_open(f"named{i}", expires_us=NOON + 1000 + i) for i in range(10)]
        books.run(ledger.opened(opens))
        wanted = [opens[7].id, "nobody", opens[2].id, opens[7].id]
        assert sorted(one.id for one in books.run(ledger.open_calls(wanted))) == [opens[2].id, opens[7].id]
        books.run(ledger.forget(opens))
        assert books.run(ledger.open_calls(wanted)) == []


class TestFloors:
    def test_floors_of_what_the_records_were_counted_against(self, books: Books) -> None:
        day, some = take(Unit.TOKENS, Window.DAY), take(Unit.TOKENS, Window.DAY, models=frozenset({"small", "large"}))
        credit = take(Unit.MICROUSD, Window.LIFE, subject=TENANT)
        settle = (*(("b", t.key, 1) for t in (day, some, credit)), ("r", f"{USER}:tokens.minute", 1))
        told = ((some.key, ("small", "large")),)
        books.enter(a_close("old", model="tiny", input_tokens=30, cost_microusd=4))
        entry = a_close("a", input_tokens=10, output_tokens=2, cost_microusd=6, settle=settle, budget_models=told)
        report = books.run(books.ledger.enter([entry]))
        assert report.floors == {day.key: 42, some.key: 12, credit.key: 10}
        assert report.moved == {day.key: 12, some.key: 12, credit.key: 6}
        again = books.run(books.ledger.enter([entry]))
        assert again.floors == report.floors
        assert set(again.moved.values()) == {0}

    def test_keys_that_cannot_be_read_get_no_floor(self, books: Books) -> None:
        some = take(Unit.TOKENS, Window.DAY, models=frozenset({"small"}))
        strange = ("b", "{x}:b:cows.day:2026-11-21", 1), ("b", "", None), ("b", some.key, 1)
        lie = ((some.key, ("large",)),)
        assert books.run(books.ledger.enter([a_close("a", settle=strange, budget_models=lie)])).floors == {}


class TestReport:
    def test_rows_partition_the_usage(self, books: Books) -> None:
        books.enter(
            a_close("a", input_tokens=10, output_tokens=1, cost_microusd=3),
            a_close("b", input_tokens=20, output_tokens=2, cost_microusd=4),
            a_close("c", user="bob", input_tokens=5, output_tokens=0, cost_microusd=0),
            a_close("d", ts_us=NOON - DAY_US, input_tokens=1, output_tokens=1, cost_microusd=1),
        )
        row = {"tenant": "acme", "user": "alice", "model": "small", "provider": "openai", "day": "2026-11-21"}
        sums = {"requests": 2, "input_tokens": 30, "output_tokens": 3, "total_tokens": 33, "cost_microusd": 7}
        (_, told, _) = lines = grouped(books.run(books.ledger.report()))
        assert told == row | sums
        assert list(told) == [*row, *sums]
        assert [(r["user"], r["day"][-2:]) for r in lines] == [("alice", "20"), ("alice", "21"), ("bob", "21")]

    def test_by_any_combination_of_keys(self, books: Books) -> None:
        books.enter(
            a_close("a", team="red", key="k1", use_case="search", input_tokens=10, cached_input_tokens=4),
            a_close("b", team="red", key="k2", use_case="chat", input_tokens=20, output_tokens=9, reasoning_tokens=5),
            a_close("c", team="blue", use_case="chat", input_tokens=40, cache_write_tokens=30, estimated=True),
            a_close("e", team="blue", audio_input_tokens=5, cache_write_long_tokens=6, priced="ceiling"),
            a_close("d", use_case="", input_tokens=80),
        )
        shown = {row["team"]: {n: row[n] for n in ("requests", *PARTS) if row[n]} for row in books.rows("team")}
        assert shown == {
            "red": {"requests": 2, "cached_input_tokens": 4, "reasoning_tokens": 5},
            "blue": {
                "requests": 2, "cache_write_tokens": 30, "cache_write_long_tokens": 6, "audio_input_tokens": 5,
                "estimated": 1, "ceiling": 1,
            },
            "": {"requests": 1},
        }  # fmt: skip
        pairs = {(row["use_case"], row["key"]): row["input_tokens"] for row in books.rows("use_case", "key")}
        assert pairs == {("search", "k1"): 10, ("chat", "k2"): 20, ("chat", ""): 40, ("", ""): 92}
        assert [row["input_tokens"] for row in books.rows("tenant", use_case="chat", team="red")] == [20]

    def test_a_flood_of_use_cases_is_not_a_flood_of_rows(self, books: Books) -> None:
        flood = [a_close(f"{i}", use_case=f"case{i:03}", input_tokens=1) for i in range(USE_CASES + 30)]
        books.enter(*flood[:60])
        books.enter(a_close("early", use_case="case007", input_tokens=50), provisional=True)
        books.enter(*flood[60:])
        books.enter(a_close("again", use_case="case000"), a_close("more", use_case="more"), a_close("none"))
        books.enter(a_close("tomorrow", use_case="more", ts_us=NOON + DAY_US))
        rows = {row["use_case"]: row["requests"] for row in books.rows("use_case", until="2026-11-21")}
        assert (len(rows), rows["other"], rows["case000"], rows[""]) == (USE_CASES + 2, 31, 2, 1)
        assert [row["use_case"] for row in books.rows(since="2026-11-22")] == ["more"]
        books.enter(a_close("early", use_case="case007", input_tokens=3))
        assert [r["input_tokens"] for r in books.rows("use_case") if r["use_case"] == "case007"] == [4]
        late = a_close("late", use_case="never", input_tokens=7)
        books.enter(late, provisional=True)
        books.enter(replace(late, input_tokens=1))
        assert [r["input_tokens"] for r in books.rows("use_case") if r["use_case"] == OTHER] == [30 + 12 + 1]

    def test_by_tenant_user_and_day(self, books: Books) -> None:
        for day in range(5):
            for tenant in ("acme", "globex"):
                for user in ("alice", "bob"):
                    books.enter(a_close(f"{day}{tenant}{user}", tenant=tenant, user=user, ts_us=NOON + day * DAY_US))
        assert len(books.rows()) == 20
        assert {r["tenant"] for r in books.rows(tenant="acme")} == {"acme"}
        assert len(books.rows(tenant="acme", user="bob")) == 5
        assert {r["day"] for r in books.rows(since="2026-11-22", until="2026-11-23")} == {"2026-11-22", "2026-11-23"}
        assert len(books.rows(tenant="globex", since="2026-11-25")) == 2
        assert len(books.rows(until="2026-11-21")) == 4
        assert books.rows(since="2026-11-23", until="2026-11-22") == []
        assert books.rows(tenant="nobody") == []


class TestEntries:
    def test_of_a_tenants_day(self, books: Books) -> None:
        books.enter(*[a_close(f"a{i}") for i in range(30)], a_close("late", ts_us=NOON + DAY_US))
        books.enter(a_close("theirs", tenant="acme#2026-11-21"), a_close("gone", outcome="not_sent"))
        books.enter(a_close("guess", input_tokens=900, estimated=True), provisional=True)
        books.enter(a_close("guess", input_tokens=7))
        found = books.entries("acme", "2026-11-21")
        assert {e.id for e in found} == {f"a{i}" for i in range(30)} | {"gone", "guess"}
        assert [e.input_tokens for e in found if e.id == "guess"] == [7]
        assert [e.id for e in books.entries("acme", "2026-11-22")] == ["late"]
        assert books.entries("nobody", "2026-11-21") == []

    def test_a_bill_is_the_sum_of_its_entries(self, books: Books) -> None:
        books.enter(*[a_close(f"{i}", use_case=f"case{i}", cost_microusd=i, team=f"t{i % 3}") for i in range(120)])
        books.enter(a_close("open", priced="ceiling", cost_microusd=9, estimated=True, user="=1+1"), provisional=True)
        bill, lines = books.bill(verify=True)
        assert (bill.differences, bill.manifest["verified_entries"]) == ([], 121)
        assert bill.manifest["sha256"] == hashlib.sha256(lines).hexdigest()
        rows = [json.loads(line) for line in lines.splitlines()]
        assert len(rows) == bill.manifest["lines"] == 104  # the labels beyond a hundred are one, by team
        sums = {name: sum(row[name] for row in rows) for name in ("requests", "cost_microusd", "estimated", "ceiling")}
        assert sums == {"requests": 121, "cost_microusd": sum(range(120)) + 9, "estimated": 1, "ceiling": 1}
        assert sums.items() <= bill.manifest["totals"].items()
        detailed, each = books.bill(entries=True, kind="csv")
        told = list(csv.DictReader(io.StringIO(each.decode())))
        assert sum(int(line["cost_microusd"]) for line in told) == sums["cost_microusd"]
        assert [(e["estimated"], e["priced"], e["user"]) for e in told if e["id"] == "open"] == [
            ("true", "ceiling", "'=1+1")
        ]
        assert detailed.manifest["totals"] == bill.manifest["totals"]
        assert (books.bill(verify=True)[1], books.bill(entries=True, kind="csv")[1]) == (lines, each)


entries = st.builds(
    a_close,
    st.integers(0, 12).map("id{}".format),
    tenant=st.sampled_from(["acme", "globex"]),
    user=st.sampled_from(["alice", "bob", ""]),
    team=st.sampled_from(["", "red"]),
    key=st.sampled_from(["", "k1"]),
    use_case=st.sampled_from(["", "search", "chat"]),
    model=st.sampled_from(["small", "large"]),
    outcome=st.sampled_from(["ok", "upstream_closed", "not_sent"]),
    ts_us=st.sampled_from([NOON, NOON + DAY_US, NOON - 21 * DAY_US, NOON + 10 * DAY_US]),
    input_tokens=st.integers(0, 100),
    cost_microusd=st.integers(0, 9),
)
QUESTIONS = [
    (("tenant",), None, None),
    (("user", "team"), "2026-10-01", "2026-11-30"),
    (("model",), "2026-10-31", "2026-11-22"),
    (("tenant", "day", "model"), "2026-11-01", None),
    (("user",), None, "2026-12-01"),
    (("key", "team"), "2026-11-01", None),
    (("use_case",), "2026-10-31", "2026-12-31"),
    (("user", "use_case"), "2026-11-02", None),
    (("day",), None, None),
]
batches = st.lists(st.tuples(st.lists(entries, max_size=5), st.booleans()), max_size=8)


def test_same_batches_same_books(runner: asyncio.Runner, request: pytest.FixtureRequest) -> None:
    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(batches)
    def replay(sequence: list[tuple[list[UsageClose], bool]]) -> None:
        mine, theirs = make_books("dynamodb", runner, request), make_books("memory", runner, request)
        for batch, provisional in sequence:
            once = list({entry.id: entry for entry in batch}.values())
            assert mine.enter(*once, provisional=provisional) == theirs.enter(*once, provisional=provisional)
        assert mine.rows() == theirs.rows()
        assert [books.bill(verify=True)[0].differences for books in (mine, theirs)] == [[], []]
        for by, since, until in QUESTIONS:
            assert mine.told(by, since, until) == theirs.told(by, since, until) == theirs.added_up(by, since, until)
        asked = [take(unit, window, subject=s) for s in (USER, TENANT) for window in Window for unit in list(Unit)[:3]]
        assert mine.spent(*asked) == theirs.spent(*asked)

    replay()


class TestDynamoDB:
    """What only the ledger in DynamoDB has to prove."""

    @pytest.fixture
    def books(self, runner: asyncio.Runner, request: pytest.FixtureRequest) -> Books:
        return make_books("dynamodb", runner, request)

    def test_a_batch_is_one_transaction(self, books: Books, dynamo: Recorder) -> None:
        books.enter(a_close("first"))
        dynamo.calls.clear()
        books.enter(*[a_close(f"{i}") for i in range(80)])
        assert dynamo.calls == ["TransactWriteItems"]

    def test_tenants_are_entered_beside_each_other_and_share_no_item(self, books: Books, dynamo: Recorder) -> None:
        touched: list[set[str]] = []
        met = asyncio.Event()

        async def overlap(operation: str, payload: dict[str, Any]) -> None:
            if operation == "TransactWriteItems" and not met.is_set():  # until four wait, nobody goes on
                actions = [next(iter(action.values())) for action in payload["TransactItems"]]
                touched.append({str(action.get("Key") or action["Item"]["pk"]) for action in actions})
                if len(touched) == 4:
                    met.set()
                await asyncio.wait_for(met.wait(), 10)

        entries = [a_close(f"{t}/{i}", tenant=f"tenant{t}", user=f"u{i}") for t in range(8) for i in range(12)]
        dynamo.fault = overlap
        assert books.enter(*entries) == (96, 0)
        dynamo.fault = None
        assert len(set[str]().union(*touched)) == sum(len(items) for items in touched)
        assert {row["tenant"]: row["requests"] for row in books.rows("tenant")} == {f"tenant{t}": 12 for t in range(8)}
        assert books.enter(*entries) == (0, 96)

    def test_one_tenant_that_fails_leaves_the_others_entered(self, books: Books, dynamo: Recorder) -> None:
        entries = [a_close(f"{t}/{i}", tenant=f"tenant{t}", user=f"u{i}") for t in range(4) for i in range(25)]

        begun = asyncio.Event()

        async def fail(operation: str, payload: dict[str, Any]) -> None:
            if operation == "TransactWriteItems" and "tenant3" in str(payload):
                begun.set()
            if operation == "TransactWriteItems" and "tenant2" in str(payload):
                await asyncio.wait_for(begun.wait(), 10)
                raise dynamo.outage()

        dynamo.fault = fail
        with pytest.raises(StoreUnavailable):
            books.enter(*entries)
        dynamo.fault = None
        others = {f"tenant{t}": 25 for t in (0, 1, 3)}
        assert {row["tenant"]: row["requests"] for row in books.rows("tenant")} == others
        assert books.enter(*entries) == (25, 75)
        assert {row["tenant"]: row["requests"] for row in books.rows("tenant")} == others | {"tenant2": 25}

    def test_concurrent_batches_lose_nothing(self, books: Books, dynamo: Recorder) -> None:
        async def at_once() -> None:
            batches = [
                [a_close(f"{(i * 7 + j) % 40}", input_tokens=1, output_tokens=0) for j in range(10)] for i in range(8)
            ]
            await asyncio.gather(*(books.ledger.enter(batch) for batch in batches))

        books.run(at_once())
        known = len({(i * 7 + j) % 40 for i in range(8) for j in range(10)})
        assert books.spent(take(Unit.TOKENS, Window.DAY)) == [known]
        assert sum(int(row["requests"]) for row in books.rows()) == known

    def test_repetitions_are_looked_up_rather_than_tried(self, books: Books, dynamo: Recorder) -> None:
        entries = [a_close(f"{i}", user=f"u{i}") for i in range(120)]
        books.enter(*entries)
        dynamo.calls.clear()
        assert books.enter(*entries, a_close("new")) == (1, 120)
        assert dynamo.calls.count("TransactWriteItems") <= 4
        assert dynamo.calls.count("BatchGetItem") <= 3

    def test_counters_that_everybody_wants_are_spread(self, books: Books, dynamo: Recorder) -> None:
        """Two conflicts in a row: from then on they are in several items, and whoever reads adds them up."""
        books.enter(a_close("first", input_tokens=1, output_tokens=0))
        left = 2

        async def conflict(operation: str, payload: dict[str, Any]) -> None:
            nonlocal left
            if operation == "TransactWriteItems" and left:
                left -= 1
                codes = ["TransactionConflict" if "Update" in action else "None" for action in payload["TransactItems"]]
                reasons = {"CancellationReasons": [{"Code": code} for code in codes]}
                raise AwsError("TransactionCanceledException", "conflict", 400, reasons)

        dynamo.fault = conflict
        second = books.run(books.ledger.enter([a_close("second", input_tokens=2, output_tokens=0)]))
        dynamo.fault = None
        assert (second.entered, second.conflicts) == (1, 2)
        with pytest.MonkeyPatch.context() as patch:
            for slot in range(SPREAD):
                patch.setattr("random.randrange", lambda _, slot=slot: slot)
                books.enter(a_close(f"slot {slot}", input_tokens=4, output_tokens=0))
        total = 3 + 4 * SPREAD
        asked = [take(Unit.TOKENS, window, subject=s) for s in (USER, TENANT) for window in Window]
        assert books.spent(*asked) == [total] * 6
        elsewhere = Books(DynamoLedger(dynamo, books.ledger._table.name), books._runner)  # knows nothing of it yet
        assert elsewhere.spent(*asked) == [total] * 6
        elsewhere.enter(a_close("other", input_tokens=8, output_tokens=0))
        assert books.spent(*asked) == [total + 8] * 6
        assert [row["input_tokens"] for row in elsewhere.rows()] == [total + 8]

    def test_floors_of_spread_counters_are_read_now_and_then(
        self, books: Books, dynamo: Recorder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("random.randrange", random.Random(1).randrange)
        day = take(Unit.TOKENS, Window.DAY)
        books.enter(a_close("first"))
        books.run(books.ledger._counters.spread([Counter(USER, day.label)]))
        told = 0
        for i in range(4 * SPREAD):
            report = books.run(books.ledger.enter([a_close(f"{i}", settle=(("b", day.key, 1),))]))
            told += day.key in report.floors
        assert 0 < told < 2 * SPREAD
        assert books.spent(day) == [12 * (4 * SPREAD + 1)]

    def test_an_outage_is_raised_and_the_batch_can_be_repeated(self, books: Books, dynamo: Recorder) -> None:
        entries = [a_close(f"{i}", user=f"u{i}", input_tokens=1, output_tokens=0) for i in range(40)]
        left = 2

        async def fail(operation: str, payload: dict[str, Any]) -> None:
            nonlocal left
            left -= operation == "TransactWriteItems"
            if left < 0:
                raise dynamo.outage()

        dynamo.fault = fail
        with pytest.raises(StoreUnavailable):
            books.enter(*entries)
        dynamo.fault = None
        entered, repeated = books.enter(*entries)
        assert (entered + repeated, repeated > 0) == (40, True)
        assert books.spent(take(Unit.TOKENS, Window.DAY, subject=TENANT)) == [40]
