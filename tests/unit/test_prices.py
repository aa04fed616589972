"""Prices: whole micro-dollars, rounded up once, exact against decimal arithmetic."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.adapters.policy_file import parse
from tollgate.adapters.policy_items import body_of, document_of, items_of, pack, unpack
from tollgate.domain.policy import CEILING, Policy, PriceSpec
from tollgate.domain.policy_check import check
from tollgate.domain.policy_document import PolicyErrors
from tollgate.domain.prices import Price, Tariffs, unpriced
from tollgate.domain.usage import Usage
from tollgate.services.unpriced import Unpriced


def price(**dollars: str) -> Price:
    return Price.of(PriceSpec(**{kind: Decimal(amount) for kind, amount in dollars.items()}))


SMALL = {"input": "0.15", "cached_input": "0.075", "output": "0.60"}


@pytest.mark.parametrize(
    ("usage", "microusd"),
    [
        (Usage(), 0),
        (Usage(input_tokens=1_000_000), 150_000),
        (Usage(output_tokens=1_000_000), 600_000),
        (Usage(input_tokens=1), 1),  # 0.15 rounds up, once
        (Usage(input_tokens=3, output_tokens=3), 3),  # 0.45 + 1.8 = 2.25, not 1 + 2
        (Usage(input_tokens=1_000_000, cached_input_tokens=1_000_000), 75_000),
        (Usage(input_tokens=1_000_000, cached_input_tokens=400_000), 90_000 + 30_000),
        (Usage(input_tokens=1_000_000, cache_write_tokens=1_000_000), 150_000),
        (Usage(output_tokens=1_000_000, reasoning_tokens=900_000), 600_000),
        # parts that are larger than their whole are cut to it
        (Usage(input_tokens=10, cached_input_tokens=1_000_000), 1),
        (Usage(output_tokens=1_000_000, reasoning_tokens=10**9), 600_000),
        (Usage(input_tokens=10, cached_input_tokens=10, audio_input_tokens=10), 1),
    ],
)
def test_what_usage_costs(usage: Usage, microusd: int) -> None:
    assert price(**SMALL).cost(usage) == microusd


def test_kinds_without_a_price_cost_what_they_are_part_of() -> None:
    three, fifteen = 3_000_000, 15_000_000
    assert price(input="3", output="15") == Price(three, three, three, fifteen, fifteen, three, three, fifteen)
    parts = {"cached_input": "0.3", "cache_write": "3.75", "reasoning": "20", "audio_input": "40", "audio_output": "80"}
    dear = price(input="3", output="15", **parts)
    assert dear == Price(three, 300_000, 3_750_000, fifteen, 20_000_000, 3_750_000, 40_000_000, 80_000_000)
    assert price(input="3", cache_write="3.75", cache_write_long="6").cache_write_long == 6_000_000


def test_a_free_model_costs_nothing() -> None:
    assert price(input="0").cost(Usage(10**9, 0, 0, 10**9)) == 0


TOKENS = st.integers(0, 10**9)
DOLLARS = st.decimals(0, 1000, places=6)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    input_tokens, output_tokens = draw(TOKENS), draw(TOKENS)
    cached = draw(st.integers(0, input_tokens))
    written = draw(st.integers(0, input_tokens - cached))
    reasoning = draw(st.integers(0, output_tokens))
    return Usage(
        input_tokens,
        cached,
        written,
        output_tokens,
        reasoning,
        cache_write_long_tokens=draw(st.integers(0, written)),
        audio_input_tokens=draw(st.integers(0, input_tokens - cached - written)),
        audio_output_tokens=draw(st.integers(0, output_tokens - reasoning)),
    )


SPECS = st.builds(
    PriceSpec,
    input=DOLLARS,
    output=DOLLARS,
    cached_input=st.none() | DOLLARS,
    cache_write=st.none() | DOLLARS,
    reasoning=st.none() | DOLLARS,
    cache_write_long=st.none() | DOLLARS,
    audio_input=st.none() | DOLLARS,
    audio_output=st.none() | DOLLARS,
)


def _or(first: Decimal | None, other: Decimal) -> Decimal:
    return other if first is None else first


@given(SPECS, usages())
def test_costs_are_exact_and_rounded_up_once(spec: PriceSpec, usage: Usage) -> None:
    """A dollar per million tokens is a micro-dollar per token."""
    parts = usage.cached_input_tokens + usage.cache_write_tokens + usage.audio_input_tokens
    long, cache_write = usage.cache_write_long_tokens, _or(spec.cache_write, spec.input)
    exact = (
        (usage.input_tokens - parts) * spec.input
        + usage.cached_input_tokens * _or(spec.cached_input, spec.input)
        + (usage.cache_write_tokens - long) * cache_write
        + long * _or(spec.cache_write_long, cache_write)
        + usage.audio_input_tokens * _or(spec.audio_input, spec.input)
        + (usage.output_tokens - usage.reasoning_tokens - usage.audio_output_tokens) * spec.output
        + usage.reasoning_tokens * _or(spec.reasoning, spec.output)
        + usage.audio_output_tokens * _or(spec.audio_output, spec.output)
    )
    assert Price.of(spec).cost(usage) == int(exact.to_integral_value(rounding=ROUND_CEILING))


@given(SPECS, usages())
def test_a_hold_covers_every_bill_of_its_size(spec: PriceSpec, usage: Usage) -> None:
    held = Price.of(spec).estimate(usage.input_tokens, usage.output_tokens)
    assert Price.of(spec).cost(usage) <= held


@given(SPECS, usages(), st.integers(0, 10**6))
def test_more_output_never_costs_less(spec: PriceSpec, usage: Usage, more: int) -> None:
    grown: dict[str, Any] = {name: getattr(usage, name) for name in usage.__slots__}
    grown["output_tokens"] += more
    assert Price.of(spec).cost(Usage(**grown)) >= Price.of(spec).cost(usage)


# -- which price ---------------------------------------------------------------------------------------------------

JULY, NOVEMBER = 1_783_000_000_000_000, 1_795_262_400_000_000  # 2026-07-02, 2026-11-21
POLICY = """
version: 1
upstreams:
  first:  {api: openai, base_url: "http://127.0.0.1:1/v1"}
  second: {api: openai, base_url: "http://127.0.0.1:2/v1"}
models:
  own:     {route: [{upstream: first, model: m}], price: {input: 7}}
  dated:   {route: [{upstream: first, model: m}, {upstream: second, model: n}]}
  unknown: {route: [{upstream: second, model: x}]}
  soon:    {route: [{upstream: second, model: "later:0"}]}
prices:
  first:
    m: [{from: 2026-11-01, input: 3, output: 4}, {input: 1, output: 9}]
  second:
    n: [{input: 2, output: 5}]
    "later:0": [{from: 2026-12-01T06:00:00+01:00, input: 1}]
"""


@pytest.fixture(scope="module")
def policy() -> Policy:
    return parse(POLICY, {})


def test_the_row_that_counted_when_the_call_was_admitted(policy: Policy) -> None:
    tariffs = Tariffs(policy, "dated")
    before, after = tariffs.of("first", "m", JULY), tariffs.of("first", "m", NOVEMBER)
    assert (before.price.input, after.price.input) == (1_000_000, 3_000_000)
    assert before.id.startswith("first/m ")
    assert after.id.startswith("first/m@2026-11-01 ")
    (change,) = [moment for moment in tariffs.changes_us() if moment > JULY]
    assert change == after.since_us
    assert datetime.fromtimestamp(change / 1e6, UTC) == datetime(2026, 11, 1, tzinfo=UTC)
    assert tariffs.of("first", "m", change) == after
    assert tariffs.of("first", "m", change - 1) == before
    assert not [moment for moment in tariffs.changes_us() if moment > NOVEMBER]


def test_each_upstream_has_its_own_price_and_holds_cover_all(policy: Policy) -> None:
    tariffs = Tariffs(policy, "dated")
    assert tariffs.of("second", "n", JULY).price == price(input="2", output="5")
    assert tariffs.dearest(JULY) == price(input="2", output="9")
    assert tariffs.dearest(NOVEMBER) == price(input="3", output="5")


def test_a_models_own_price_comes_first_and_the_ceiling_last(policy: Policy) -> None:
    assert Tariffs(policy, "own").of("first", "m", NOVEMBER).price.input == 7_000_000
    unknown = Tariffs(policy, "unknown").of("second", "x", NOVEMBER)
    assert (unknown.priced, unknown.price) == ("ceiling", Price.of(CEILING))
    assert Tariffs(policy, "soon").of("second", "later:0", NOVEMBER).priced == "ceiling"
    assert Tariffs(policy, "soon").of("second", "later:0", 2 * NOVEMBER).id.startswith("second/later:0@2026-12-01T06")
    assert [place.model for place in unpriced(policy, NOVEMBER)] == ["unknown", "soon"]
    cheaper = parse(POLICY + "ceiling_price: {input: 10, output: 20}", {})
    assert Tariffs(cheaper, "unknown").dearest(NOVEMBER) == price(input="10", output="20")


def test_a_row_that_was_edited_is_another(policy: Policy) -> None:
    edited = parse(POLICY.replace("input: 2, output: 5", "input: 2, output: 6"), {})
    one, other = (Tariffs(p, "dated").of("second", "n", JULY).id for p in (policy, edited))
    assert one != other
    assert one.partition(" ")[0] == other.partition(" ")[0] == "second/n"


@pytest.mark.parametrize(
    ("rows", "path", "message"),
    [
        ("m: [{input: 1}, {input: 2}]", "prices.first.m", "two rows begin at the same moment"),
        ("m: []", "prices.first.m", "at least 1"),
        ("m: [{from: soon, input: 1}]", "prices.first.m[0].from", "expected a moment"),
        ("m: [{output: 1}]", "prices.first.m[0].input", "missing"),
        ("m: [{input: 1, audio: 3}]", "prices.first.m[0].audio", "is not known"),
    ],
)
def test_bad_rows_are_named(rows: str, path: str, message: str) -> None:
    with pytest.raises(PolicyErrors) as refused:
        parse("version: 1\nupstreams: {first: {api: bedrock, region: us-east-1}}\nprices: {first: {" + rows + "}}", {})
    assert [path in str(problem) and message in str(problem) for problem in refused.value.problems] == [True]


def test_prices_of_an_upstream_that_is_not_there() -> None:
    with pytest.raises(PolicyErrors, match="there is no upstream 'nobody'"):
        parse("version: 1\nprices: {nobody: {m: [{input: 1}]}}", {})


def test_the_table_survives_the_tables(policy: Policy) -> None:
    """Operators edit items; gateways read what they say together."""
    items = [{"id": key, **item} for key, item in items_of(policy.replace(ceiling_price=CEILING)).items()]
    again = check(document_of(items))
    assert (again.prices, again.ceiling_price) == (policy.prices, CEILING)
    published = check(unpack(pack(body_of(policy))))
    assert Tariffs(published, "dated").dearest(JULY) == Tariffs(policy, "dated").dearest(JULY)


def test_operators_hear_of_a_missing_price_once_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    telling = Unpriced()
    for second in (0, 1, 59, 61, 62):
        telling.tell(f"m{second % 2}", "first", "x", second * 1_000_000)
    first, second_line = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["UnpricedCalls"], first["models"]) == (1, ["m0 (first/x)"])
    assert (second_line["UnpricedCalls"], second_line["models"]) == (3, ["m1 (first/x)"])
    assert first["level"] == "WARNING"
