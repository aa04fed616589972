"""What every ledger promises: each usage id counts once, whatever is repeated, and every figure can be asked for."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.books import TENANT, USER, Books, make_books, take
from tests.records import NOON, a_close, an_open
from tollgate.domain import keys
from tollgate.domain.bookkeeping import OTHER, USE_CASES
from tollgate.domain.limits import DAY_US, Unit, Window
from tollgate.domain.records import UsageClose
from tollgate.domain.reports import PARTS, grouped


@pytest.fixture(params=["memory", "dynamodb"])
def books(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Books:
    return make_books(request.param, runner, request)


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
