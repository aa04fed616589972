"""Prices: whole micro-dollars, rounded up once, exact against decimal arithmetic."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.domain.policy import PriceSpec
from tollgate.domain.prices import Price
from tollgate.domain.usage import Usage


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
    ],
)
def test_what_usage_costs(usage: Usage, microusd: int) -> None:
    assert price(**SMALL).cost(usage) == microusd


def test_kinds_without_a_price_cost_what_they_are_part_of() -> None:
    assert price(input="3", output="15") == Price(3_000_000, 3_000_000, 3_000_000, 15_000_000, 15_000_000)
    dear = price(input="3", output="15", cached_input="0.3", cache_write="3.75", reasoning="20")
    assert dear == Price(3_000_000, 300_000, 3_750_000, 15_000_000, 20_000_000)


def test_a_free_model_costs_nothing() -> None:
    assert price(input="0").cost(Usage(10**9, 0, 0, 10**9)) == 0


TOKENS = st.integers(0, 10**9)
DOLLARS = st.decimals(0, 1000, places=6)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    input_tokens, output_tokens = draw(TOKENS), draw(TOKENS)
    cached = draw(st.integers(0, input_tokens))
    written = draw(st.integers(0, input_tokens - cached))
    return Usage(input_tokens, cached, written, output_tokens, draw(st.integers(0, output_tokens)))


SPECS = st.builds(
    PriceSpec,
    input=DOLLARS,
    output=DOLLARS,
    cached_input=st.none() | DOLLARS,
    cache_write=st.none() | DOLLARS,
    reasoning=st.none() | DOLLARS,
)


def _or(first: Decimal | None, other: Decimal) -> Decimal:
    return other if first is None else first


@given(SPECS, usages())
def test_costs_are_exact_and_rounded_up_once(spec: PriceSpec, usage: Usage) -> None:
    """A dollar per million tokens is a micro-dollar per token."""
    exact = (
        (usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens) * spec.input
        + usage.cached_input_tokens * _or(spec.cached_input, spec.input)
        + usage.cache_write_tokens * _or(spec.cache_write, spec.input)
        + (usage.output_tokens - usage.reasoning_tokens) * spec.output
        + usage.reasoning_tokens * _or(spec.reasoning, spec.output)
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
