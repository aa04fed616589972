"""Which rows answer a report: the fewest that tell what is asked."""

from __future__ import annotations

import pytest

from tollgate.domain.bookkeeping import DAYS, MONTHS, Row
from tollgate.domain.reports import ALL_KEYS, OVERVIEW, TENANT_OVERVIEW, Span, spans


@pytest.mark.parametrize(
    ("by", "rollup"),
    [("tenant", "uses"), ("model", "uses"), ("provider", "uses"), ("use_case", "uses"), ("use_case,model", "uses"),
     ("user", "people"), ("team", "people"), ("key", "people"), ("tenant,team,user", "people"),
     ("user,model", "month"), ("team,use_case", "month")],
)  # fmt: skip
def test_a_month_is_read_from_its_smallest_rollup(by: str, rollup: str) -> None:
    november = [Span(rollup, "2026-11", "2026-11")]
    assert spans(by.split(","), "2026-11-01", "2026-11-30") == november
    assert spans(by.split(","), None, None) == [Span(rollup, None, None)]


@pytest.mark.parametrize(
    ("by", "rollup"),
    [("day", "day"), ("tenant,model,day", "day"), ("user,day", ""), ("use_case,day", ""), (",".join(ALL_KEYS), "")],
)
def test_days_are_read_where_somebody_asks_for_them(by: str, rollup: str) -> None:
    assert spans(by.split(","), "2026-11-01", "2026-11-30") == [Span(rollup, "2026-11-01", "2026-11-30")]


@pytest.mark.parametrize("narrowed", [(), ("model",), ("provider", "model")])
def test_what_people_are_shown_first_is_read_from_few_rows(narrowed: tuple[str, ...]) -> None:
    """A tenant and a day (or month) have a row for each model at most, and one for each use case, however many call."""
    for since in ("2026-11-01", "2026-11-14", None):
        of_all = {span.rollup for span in spans({*OVERVIEW, *narrowed}, since, "2026-11-30")}
        of_one = {span.rollup for span in spans({*TENANT_OVERVIEW, *narrowed}, since, "2026-11-30")}
        assert of_all <= {"uses", "day"}
        assert of_one == {"day"}


def test_the_ends_of_a_range_are_days() -> None:
    loose = [Span("", "2026-09-30", "2026-09-30"), Span("", "2026-12-01", "2026-12-01")]
    assert spans(("user",), "2026-09-30", "2026-12-01") == [Span("people", "2026-10", "2026-11"), *loose]
    rest = Span("day", "2026-11-21", "2026-11-30")
    assert spans(("model",), "2026-11-21", None) == [Span("uses", "2026-12", None), rest]
    assert spans(("key",), "2026-11-02", "2026-12-30") == [Span("", "2026-11-02", "2026-12-30")]


def test_a_rollup_tells_what_it_is_said_to() -> None:
    whole = Row("acme", "2026-11-21", "ann", "small", "openai", "red", "k1", "search")
    for row in whole.rolled():
        told = {name for name in ALL_KEYS if name not in ("tenant", "day") and getattr(row, name)}
        assert row.tenant == "acme"
        assert row.day == ("2026-11-21" if row.rollup in DAYS else "2026-11")
        assert told == ((MONTHS | DAYS)[row.rollup] - {"day"})
    assert [row.rollup for row in whole.rolled()] == ["uses", "people", "day", "month"]
