"""Metering: what becomes of a batch of log lines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.records import NOON, a_close, an_open
from tollgate.adapters.dead_letters import LoggedDeadLetters
from tollgate.adapters.memory_ledger import MemoryLedger
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.domain import keys
from tollgate.domain.bookkeeping import Counter, Moves, Row, add, moves, questions, summed
from tollgate.domain.limits import DAY_US, Admission, Budget, BudgetTake, Scope, Unit, Window
from tollgate.domain.records import MINOR, SCHEMA, BadRecord, UsageClose, UsageOpen, UsageRecord
from tollgate.ports import StoreUnavailable
from tollgate.services.meter import DeadLetter, MeterReport, meter, read

MINUTE = 60_000_000
TENANT = keys.tenant_subject("acme")
LABEL, START, END = Window.DAY.bounds(NOON)
BUDGET = BudgetTake(
    TENANT, f"{TENANT}:b:tokens.day:{LABEL}", Budget(Scope.TENANT, Unit.TOKENS, 100, Window.DAY, "tenant.tokens.day"),
    10, 10, LABEL, START, END, 0,
)  # fmt: skip


class Letters:
    def __init__(self) -> None:
        self.sent: list[DeadLetter] = []
        self.down = False

    async def send(self, letters: Sequence[DeadLetter]) -> None:
        if self.down:
            raise StoreUnavailable("no queue")
        self.sent += letters


class Floors(MemoryLimitStore):
    def __init__(self, clock: Callable[[], int] = lambda: NOON) -> None:
        super().__init__(clock)
        self.raised: dict[str, int] = {}
        self.down = False

    async def raise_floor(self, spent: Mapping[str, int]) -> None:
        if self.down:
            raise StoreUnavailable("no Redis")
        self.raised.update(spent)
        await super().raise_floor(spent)


class Bench:
    def __init__(self) -> None:
        self.ledger, self.store, self.letters = MemoryLedger(), Floors(), Letters()
        self.now = NOON + MINUTE

    def meter(self, *records: Any, unreadable: Sequence[DeadLetter] = (), died: Sequence[str] = ()) -> MeterReport:
        lines = [r if isinstance(r, str) else json.dumps(r if isinstance(r, dict) else r.as_dict()) for r in records]
        return asyncio.run(meter(lines, self.ledger, self.store, self.letters, self.now, unreadable, None, died))

    def spent(self) -> int:
        return asyncio.run(self.ledger.spent([BUDGET]))[0]


@pytest.fixture
def bench() -> Bench:
    return Bench()


class TestBatches:
    def test_closes_are_entered_once(self, bench: Bench) -> None:
        batch = [a_close("a", input_tokens=5), a_close("b", input_tokens=6), a_close("a", input_tokens=5)]
        report = bench.meter(*batch)
        assert (report.entered, report.repeated, report.poison) == (2, 1, 0)
        assert bench.meter(*batch).entered == 0
        assert bench.spent() == 11

    def test_a_repetition_with_another_bill_is_refused_and_told(self, bench: Bench) -> None:
        bench.meter(a_close("a", input_tokens=5))
        report = bench.meter(an_open("b"), a_close("c", input_tokens=1), a_close("a", input_tokens=1))
        assert (report.entered, report.tampered, report.poison, bench.spent()) == (1, 1, 1, 6)
        (letter,) = bench.letters.sent
        assert letter.reason == "id: it has been entered with another bill"
        assert json.loads(letter.line)["input_tokens"] == 1

    def test_lost_settlements_are_made_before_the_ledger_counts_them(self, bench: Bench) -> None:
        settled = replace(BUDGET, seed=0)
        bench.store = Floors(clock=lambda: bench.now)
        assert asyncio.run(bench.store.admit(Admission("a", [settled], 60 * MINUTE))).admitted
        report = bench.meter(a_close("a", input_tokens=4, settle=(("b", BUDGET.key, 4),)))
        assert (report.settled, report.floors) == (1, 1)
        look = asyncio.run(bench.store.admit(Admission("b", [settled], 60 * MINUTE)))
        assert look.values[0] == 4 + BUDGET.cost

    def test_an_empty_batch_is_fine(self, bench: Bench) -> None:
        assert bench.meter() == MeterReport()

    def test_totals_are_pushed_as_floors(self, bench: Bench) -> None:
        settle = (("b", BUDGET.key, 5), ("c", f"{TENANT}:slots", None))
        bench.meter(a_close("a", input_tokens=5), a_close("b", input_tokens=2, settle=settle))
        assert bench.store.raised == {BUDGET.key: 7}

    def test_a_store_that_is_down_does_not_stop_the_ledger(self, bench: Bench) -> None:
        bench.store.down = True
        report = bench.meter(a_close("a", settle=(("b", BUDGET.key, 5),)))
        assert (report.entered, report.floors, report.store_failure) == (1, 0, "no Redis")

    def test_lag_is_that_of_the_oldest_call_from_its_end(self, bench: Bench) -> None:
        report = bench.meter(a_close("a", latency_ms=10_000), a_close("b", ts_us=bench.now))
        assert report.lag_ms == 50_000


class TestPoison:
    GOOD = a_close("good", input_tokens=1).as_dict()

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("", "not a line of JSON"),
            ("{", "not a line of JSON"),
            ("[" * 100_000, "not a line of JSON"),
            ('{"v": ' + "9" * 5000 + "}", "not a line of JSON"),
            ("17", "not a JSON object"),
            ({}, "event: expected usage.close"),
            ({"event": "usage.closed", "v": 1}, "event: expected usage.close"),
            ({**GOOD, "v": 2}, "v: this version reads schema 1"),
            ({**GOOD, "id": ""}, "id: expected text"),
            ({**GOOD, "tenant": None}, "tenant: expected text"),
            ({**GOOD, "model": "x" * 257}, "model: expected text"),
            ({**GOOD, "input_tokens": -1}, "input_tokens: expected a whole number"),
            ({**GOOD, "input_tokens": True}, "input_tokens: expected a whole number"),
            ({**GOOD, "output_tokens": 1.5}, "output_tokens: expected a whole number"),
            ({**GOOD, "cost_microusd": 2**60}, "cost_microusd: expected a whole number"),
            ({**GOOD, "outcome": "fine"}, "outcome: found"),
            ({**GOOD, "estimated": 1}, "estimated: expected true or false"),
            ({**GOOD, "settle": [["x", "k", 1]]}, "settle: found"),
            ({**GOOD, "budget_models": [["k", "small"]]}, "budget_models: found"),
            ({**GOOD, "ts_us": NOON - 100 * DAY_US}, "ts_us: "),
            ({**GOOD, "ts_us": NOON + 2 * DAY_US}, "ts_us: "),
            ({**GOOD, "user": "\ud800"}, "not a line of JSON in UTF-8"),
            ({**an_open().as_dict(), "expires_us": "soon"}, "expires_us: expected a whole number"),
        ],
    )
    def test_poison_is_set_aside_and_holds_up_nothing(self, bench: Bench, line: Any, reason: str) -> None:
        report = bench.meter(a_close("a"), line, a_close("b"))
        assert (report.entered, report.poison) == (2, 1)
        (letter,) = bench.letters.sent
        assert letter.reason.startswith(reason)
        assert letter.line == (line if isinstance(line, str) else json.dumps(line))

    def test_what_could_not_be_unpacked_is_poison_too(self, bench: Bench) -> None:
        letter = DeadLetter("###", "not base64")
        assert bench.meter(a_close("a"), unreadable=[letter]).poison == 1
        assert bench.letters.sent == [letter]

    def test_no_letter_is_lost_and_nothing_is_counted_twice_when_the_queue_is_down(self, bench: Bench) -> None:
        bench.letters.down = True
        with pytest.raises(StoreUnavailable):
            bench.meter(a_close("a", input_tokens=3), "poison")
        bench.letters.down = False
        report = bench.meter(a_close("a", input_tokens=3), "poison")
        assert (report.repeated, bench.spent(), len(bench.letters.sent)) == (1, 3, 1)

    def test_a_batch_with_everything_wrong_in_it_goes_on(self, bench: Bench) -> None:
        wrong: list[Any] = [
            "x" * 1_000_000,
            {**self.GOOD, "id": "long", "user": "x" * 1_000_000},
            {"level": "INFO", "message": "somebody else's JSON"},
            {**self.GOOD, "id": "future", "v": 99},
        ]
        unreadable = [DeadLetter("%%%", "not base64 of gzip of JSON: Error")]
        report = bench.meter(a_close("a"), *wrong, a_close("b"), unreadable=unreadable)
        assert (report.entered, report.poison) == (2, 5)
        assert [letter.told for letter in bench.letters.sent] == [
            "not base64 of gzip of JSON: Error",
            "not a line of JSON in UTF-8",
            "user: expected text of at most 256 characters",
            "event: expected usage.close",
            "v: this version reads schema 1",
        ]

    def test_the_log_names_the_field_but_shows_nothing_of_the_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        letter = DeadLetter("secret words", "outcome: expected one of some, found 'secret words'")
        asyncio.run(LoggedDeadLetters().send([letter]))
        (line,) = capsys.readouterr().out.splitlines()
        assert json.loads(line)["level"] == "ERROR"
        assert "outcome" in line
        assert "secret" not in line

    @given(st.text() | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps))
    def test_no_line_can_stop_a_batch(self, line: str) -> None:
        bench = Bench()
        assert bench.meter(line, a_close("a")).entered == 1

    @given(st.sampled_from(sorted(GOOD)), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()))
    def test_no_field_can_stop_a_batch(self, field: str, value: Any) -> None:
        bench = Bench()
        report = bench.meter({**self.GOOD, field: value}, a_close("a"))
        assert report.entered + report.poison == 2


class TestOpens:
    def test_an_open_with_its_close_in_the_batch_is_not_remembered(self, bench: Bench) -> None:
        assert bench.meter(an_open("a"), a_close("a")).opened == 0
        assert bench.meter(an_open("b")).opened == 1

    def test_a_call_that_nobody_closed_is_billed_at_its_estimate_once(self, bench: Bench) -> None:
        opened = an_open("a", input_tokens=10, output_tokens=90, expires_us=NOON + 5 * MINUTE)
        bench.meter(opened)
        bench.now = NOON + 6 * MINUTE
        assert bench.meter().resolved == 0
        bench.now += 1
        assert bench.meter().resolved == 1
        assert bench.meter().resolved == 0
        assert bench.spent() == 100

    def test_a_late_close_replaces_the_estimate(self, bench: Bench) -> None:
        bench.meter(an_open("a", input_tokens=10, output_tokens=90))
        bench.now = NOON + 60 * MINUTE
        bench.meter()
        report = bench.meter(a_close("a", input_tokens=10, output_tokens=1))
        assert (report.entered, report.replaced, bench.spent()) == (1, 1, 11)

    def test_a_closed_call_is_not_billed_again(self, bench: Bench) -> None:
        bench.meter(an_open("a", input_tokens=10, output_tokens=90))
        bench.meter(a_close("a", input_tokens=10))
        bench.now = NOON + 60 * MINUTE
        assert (bench.meter().resolved, bench.spent()) == (0, 10)

    def test_a_call_whose_process_died_is_billed_at_once(self, bench: Bench) -> None:
        bench.meter(an_open("a", input_tokens=10, output_tokens=90), an_open("b", input_tokens=1))
        report = bench.meter(an_open("c", input_tokens=5), died=["a", "c", "never heard of"])
        assert (report.resolved, bench.spent()) == (2, 105), "b is still on its way"
        assert bench.meter(died=["a", "c"]).resolved == 0
        report = bench.meter(a_close("a", input_tokens=10, output_tokens=1))
        assert (report.replaced, bench.spent()) == (1, 16), "it had been closed in its last moment"

    def test_a_call_that_was_closed_before_its_process_died_is_not_billed_again(self, bench: Bench) -> None:
        bench.meter(an_open("a", input_tokens=10, output_tokens=90))
        bench.meter(a_close("a", input_tokens=10))
        assert (bench.meter(died=["a"]).resolved, bench.spent()) == (0, 10)

    def test_hundreds_of_them(self, bench: Bench) -> None:
        bench.meter(*[an_open(f"{i}", input_tokens=1) for i in range(450)])
        bench.now = NOON + 60 * MINUTE
        assert (bench.meter().resolved, bench.spent()) == (450, 450)


class TestReading:
    def test_records_survive_the_pipe(self) -> None:
        close = a_close("a", settle=(("b", "k", 1), ("r", "r", None)), budget_models=(("k", ("large", "small")),))
        opened = an_open("b")
        assert read(json.dumps(close.as_dict()), NOON) == close
        assert read(json.dumps(opened.as_dict()), NOON) == opened

    def test_fields_of_a_newer_proxy_are_ignored(self) -> None:
        assert read(json.dumps(a_close().as_dict() | {"minor": MINOR + 1, "new": 1}), NOON) == a_close()

    @pytest.mark.parametrize("record", [a_close(), an_open()])
    def test_fields_that_an_older_proxy_did_not_know_take_their_defaults(self, record: UsageRecord) -> None:
        new = {
            "minor", "price", "priced", "degraded_from", "cache_write_long_tokens", "audio_input_tokens",
            "audio_output_tokens",
        }  # fmt: skip
        old = {name: value for name, value in record.as_dict().items() if name not in new}
        assert read(json.dumps(old), NOON) == record

    @given(st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.none())
    def test_another_version_is_never_guessed_at(self, v: Any) -> None:
        assume(type(v) is not int or v != SCHEMA)
        with pytest.raises(BadRecord, match="v: this version reads schema 1"):
            read(json.dumps(a_close().as_dict() | {"v": v}), NOON)

    def test_an_estimate_says_that_it_is_one(self) -> None:
        known: dict[str, Any] = {"team": "t", "price": "row", "priced": "table", "degraded_from": "large"}
        billed = an_open("a", input_tokens=3, output_tokens=4, cost_microusd=5, **known).close()
        assert isinstance(billed, UsageClose)
        assert {name: getattr(billed, name) for name in known} == known
        assert (billed.estimated, billed.total_tokens, billed.cost_microusd) == (True, 7, 5)
        assert read(json.dumps(billed.as_dict()), NOON) == billed
        assert isinstance(an_open(), UsageOpen)


class TestBookkeeping:
    def test_adding_and_taking_off_leaves_nothing(self) -> None:
        total: Moves = {}
        add(total, moves(a_close("a")))
        add(total, moves(a_close("b", model="large")))
        add(total, moves(a_close("b", model="large")), -1)
        assert total == moves(a_close("a"))
        add(total, moves(a_close("a")), -1)
        assert total == {}

    @given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["", "k"]), st.integers(0, 2)), max_size=8))
    def test_entries_in_one_are_their_sum(self, used: list[tuple[str, str, int]]) -> None:
        each = [moves(a_close("id", user=user, key=key, input_tokens=tokens)) for user, key, tokens in used]
        total: Moves = {}
        for move in each:
            add(total, move)
        assert summed(each) == total
        for move in each[:2]:  # as an estimate that is replaced
            back: Moves = {}
            add(back, move, -1)
            each.append(back)
            add(total, back)
        assert summed(each) == total

    def test_who_has_no_user_key_or_team_moves_the_tenant_only(self) -> None:
        places = moves(a_close("a", user=""))
        assert {place.subject for place in places if isinstance(place, Counter)} == {TENANT}
        assert Row("acme", "2026-11-21", "", "small", "openai") in places

    def test_the_models_of_a_key_must_be_those_it_was_made_from(self) -> None:
        key = f"{TENANT}:b:tokens.day.{keys.digest('tokens.day.large+small')}:{LABEL}"
        entry = a_close("a", settle=(("b", key, 1),), budget_models=((key, ("small", "large")),))
        assert questions([entry])[key].names == ("tokens:large", "tokens:small")
        wrong = a_close("a", settle=(("b", key, 1),), budget_models=((key, ("small",)),))
        assert questions([wrong]) == {}
