"""Terms: which limits apply to a caller and a model, with the overrides that are in force."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.adapters.policy_file import parse
from tollgate.domain.identity import Identity
from tollgate.domain.limits import Budget, BudgetTake, Concurrency, Rate, RateTake, SlotTake, Unit
from tollgate.domain.policy import CEILING, Policy, TenantRecord
from tollgate.domain.policy_check import check_record
from tollgate.domain.policy_document import Document
from tollgate.domain.prices import Price
from tollgate.domain.takes import Cost
from tollgate.domain.terms import (
    Claim,
    Terms,
    compile_terms,
    ip_bounds,
    upstream_bounds,
)

NOON_US = 1_795_262_400_000_000  # 2026-11-21 12:00:00 UTC
HOUR_US = 3_600_000_000

POLICY = parse(
    """
version: 1
upstreams:
  here: {api: openai, base_url: "http://127.0.0.1:9/v1", limits: [{tokens: 1000, per: minute}]}
models:
  small: {route: [{upstream: here, model: s}], price: {input: 1, output: 2}, limits: [{requests: 50, per: second}]}
  large: {route: [{upstream: here, model: l}]}
plans:
  free:
    models: [small, large]
    limits:
      - {scope: user, requests: 10, per: minute, burst: 20}
      - {scope: key, tokens: 100, per: hour}
      - {scope: team, requests: 5, per: day}
      - {scope: tenant, concurrent: 5}
    budgets:
      - {scope: user, requests: 100, per: day}
      - {scope: user, tokens: 1000, per: day, models: [small]}
  bare: {models: [small]}
global:
  limits:
    - {scope: ip, requests: 100, per: minute}
    - {requests: 1000, per: second}
""",
    {},
)
COST = Cost(tokens=300, least_tokens=100, microusd=70, least_microusd=30)


def record(plan: str = "free", **overrides: Any) -> TenantRecord:
    return check_record(TenantRecord, Document({"tenant": "acme", "plan": plan, **overrides}))


def terms(
    model: str = "small", now_us: int = NOON_US, policy: Policy = POLICY, user: str = "ann", **overrides: Any
) -> Terms:
    return compile_terms(policy, record(**overrides), who(user=user), model, now_us)


def who(user: str = "ann", team: str = "", key: str = "") -> Identity:
    return Identity("acme", user, team=team, key=key)


def ids(found: Terms) -> list[str]:
    return [bound.limit.id for bound in found.bounds]


def amounts(found: Terms) -> dict[str, int]:
    return {bound.limit.id: bound.limit.amount for bound in found.bounds}


def test_everything_that_applies_to_a_user() -> None:
    assert ids(terms()) == [
        "user.requests.minute",
        "tenant.slots",
        "user.requests.day",
        "user.tokens.day.small",
        "global.requests.second",  # the model's
        "global.requests.second",  # everyone's
    ]


def test_keys_and_teams_count_for_those_who_have_one() -> None:
    found = compile_terms(POLICY, record(), who(team="red", key="k1"), "small", NOON_US)
    assert {"key.tokens.hour", "team.requests.day"} <= set(ids(found))


def test_a_budget_of_some_models_counts_those_only() -> None:
    assert "user.tokens.day.small" not in ids(terms("large"))


def test_limits_that_share_a_name_have_buckets_of_their_own() -> None:
    assert len({bound.key for bound in terms().bounds}) == len(terms().bounds)


def test_all_of_a_tenants_buckets_share_a_hash_tag() -> None:
    found = compile_terms(POLICY, record(), who(team="red", key="k1"), "small", NOON_US)
    tags = {b.key.partition("}")[0] for b in found.bounds if not b.limit.id.startswith("global")}
    assert len(tags) == 1


@given(st.text(max_size=20), st.text(max_size=20))
def test_two_users_never_share_a_bucket(one: str, other: str) -> None:
    def keys(user: str) -> set[str]:
        return {b.key for b in terms(user=user).bounds if b.limit.id.startswith("user.")}

    if one and other and one != other:
        assert not keys(one) & keys(other)


def test_an_unknown_plan_or_model_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        terms(plan="gold")
    with pytest.raises(KeyError):
        terms("huge")


def test_compiled_limits() -> None:
    by_id = {bound.limit.id: bound.limit for bound in terms().bounds}
    rate = by_id["user.requests.minute"]
    assert isinstance(rate, Rate)
    assert (rate.amount, rate.burst, rate.period_us) == (10, 20, 60_000_000)
    assert isinstance(by_id["tenant.slots"], Concurrency)
    budget = by_id["user.tokens.day.small"]
    assert isinstance(budget, Budget)
    assert budget.models == frozenset({"small"})


def test_money_is_counted_where_a_budget_does() -> None:
    assert not terms().counts_money
    assert terms(budgets=[{"scope": "tenant", "usd": "1.5", "per": "life"}]).counts_money
    assert (
        amounts(terms(budgets=[{"scope": "tenant", "usd": "1.5", "per": "life"}]))["tenant.microusd.life"] == 1_500_000
    )
    assert terms("large").price == Price.of(CEILING)


# -- overrides -------------------------------------------------------------------------------------------------------

TEN = {"scope": "user", "requests": 10, "per": "minute"}


def test_a_tenants_override_replaces_the_plans_limit() -> None:
    found = terms(limits=[{**TEN, "requests": 99}])
    assert amounts(found)["user.requests.minute"] == 99
    assert len(found.bounds) == len(terms().bounds)


def test_an_override_of_nothing_is_one_limit_more() -> None:
    assert ids(terms(plan="bare", limits=[TEN]))[0] == "user.requests.minute"


def test_the_bucket_survives_a_changed_amount() -> None:
    before = {bound.limit.id: bound.key for bound in terms().bounds}
    after = {bound.limit.id: bound.key for bound in terms(limits=[{**TEN, "requests": 99}]).bounds}
    assert before == after


@pytest.mark.parametrize("reverse", [False, True])
def test_a_users_own_override_beats_the_tenants(reverse: bool) -> None:
    overrides = [{**TEN, "requests": 50}, {**TEN, "requests": 7, "user": "ann"}]
    if reverse:
        overrides.reverse()
    assert amounts(terms(limits=overrides))["user.requests.minute"] == 7
    assert amounts(terms(limits=overrides, user="bob"))["user.requests.minute"] == 50


@pytest.mark.parametrize("until", ["2026-11-21T13:00:00Z", "2026-11-21T13:00:00", "2026-11-21T15:00:00+02:00"])
def test_a_boost_ends_at_its_moment(until: str) -> None:
    boost = [{**TEN, "requests": 99, "until": until}]
    assert amounts(terms(limits=boost, now_us=NOON_US + HOUR_US - 1))["user.requests.minute"] == 99
    assert amounts(terms(limits=boost, now_us=NOON_US + HOUR_US))["user.requests.minute"] == 10


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_a_boost_beats_what_its_owner_has_for_good_whichever_was_written_later(order: tuple[int, ...]) -> None:
    until = "2026-11-21T13:00:00Z"
    overrides = [
        {**TEN, "requests": 20},
        {**TEN, "requests": 99, "until": until},
        {**TEN, "requests": 7, "user": "ann"},
        {**TEN, "requests": 8, "user": "ann", "until": until},
    ]
    found = {"limits": [overrides[i] for i in order]}
    alone = {"limits": [one for one in found["limits"] if one.get("user") is None or not one.get("until")]}
    asked = [(found, "ann", 0), (found, "ann", HOUR_US), (found, "bob", 0), (found, "bob", HOUR_US), (alone, "ann", 0)]
    told = [amounts(terms(user=user, now_us=NOON_US + us, **own))["user.requests.minute"] for own, user, us in asked]
    assert told == [8, 7, 99, 20, 7]


def test_of_two_boosts_the_later_one_wins() -> None:
    boosts = [{**TEN, "requests": n, "until": "2026-11-21T13:00:00Z"} for n in (99, 50)]
    assert amounts(terms(limits=boosts))["user.requests.minute"] == 50
    day = {"scope": "user", "per": "day"}
    budgets = [{**day, "requests": 500, "until": "2026-11-21T13:00:00Z"}, {**day, "requests": 200}]
    assert amounts(terms(budgets=budgets))["user.requests.day"] == 500


def test_an_api_keys_own_limit_is_not_loosened_by_a_boost_of_the_tenants() -> None:
    narrow = '{"limits":[{"scope":"key","tokens":5,"per":"hour"}]}'
    boosted = record(limits=[{"scope": "key", "tokens": 999, "per": "hour", "until": "2026-11-21T13:00:00Z"}])
    for restrictions, amount in (("", 999), (narrow, 5)):
        whose = who(key="k1")._replace(restrictions=restrictions)
        assert amounts(compile_terms(POLICY, boosted, whose, "small", NOON_US))["key.tokens.hour"] == amount


def test_a_model_that_is_named_twice_is_named_once() -> None:
    """Else the budget would stand beside the plan's, under a key that the ledger cannot read."""
    found = terms(budgets=[{"scope": "user", "tokens": 5, "per": "day", "models": ["small", "small"]}])
    assert amounts(found)["user.tokens.day.small"] == 5
    assert ids(found) == ids(terms())


def test_budgets_are_overridden_by_what_they_count() -> None:
    found = terms(budgets=[{"scope": "user", "tokens": 5, "per": "day", "models": ["small"]}])
    assert amounts(found)["user.tokens.day.small"] == 5
    assert amounts(found)["user.requests.day"] == 100


# -- what one request takes ------------------------------------------------------------------------------------------


def test_takes_name_costs_in_each_limits_unit() -> None:
    found = terms(
        budgets=[{"scope": "tenant", "usd": 1, "per": "month"}],
        limits=[{"scope": "user", "tokens": 9999, "per": "day"}],
    )
    taken = {take.limit.id: take for take in Claim(found.bounds).takes(COST, NOON_US)}
    rate = taken["user.tokens.day"]
    assert isinstance(rate, RateTake)
    assert (rate.cost, rate.floor) == (300, 100)
    requests = taken["user.requests.minute"]
    assert isinstance(requests, RateTake)
    assert (requests.cost, requests.floor) == (1, 1)
    money = taken["tenant.microusd.month"]
    assert isinstance(money, BudgetTake)
    assert (money.cost, money.floor, money.label) == (70, 30, "2026-11")
    assert money.key.endswith(":2026-11")
    assert isinstance(taken["tenant.slots"], SlotTake)


def test_what_is_settled() -> None:
    found = terms(
        budgets=[{"scope": "tenant", "usd": 1, "per": "month"}],
        limits=[{"scope": "user", "tokens": 9999, "per": "day"}],
    )
    claim = Claim(found.bounds)
    taken = claim.takes(COST, NOON_US)
    settled = {t.limit.id: n for t, n in zip(taken, claim.used(250, 60, sent=True), strict=True)}
    assert settled["user.tokens.day"] == 250
    assert settled["tenant.microusd.month"] == 60
    assert settled["user.requests.minute"] is None
    assert settled["user.requests.day"] == 1
    assert settled["tenant.slots"] == 0
    unsent = {t.limit.id: n for t, n in zip(taken, claim.used(0, 0, sent=False), strict=True)}
    assert unsent["user.requests.day"] == 0


def test_an_upstream_is_settled_with_what_it_served() -> None:
    found, own = terms(), upstream_bounds(POLICY, "here")
    claim = Claim(found.bounds, "here", own)
    taken = claim.takes(COST, NOON_US)

    def settled(served: str) -> dict[str, int | None]:
        return {take.key: used for take, used in zip(taken, claim.used(250, 60, sent=True, served=served), strict=True)}

    here, elsewhere = settled("here"), settled("there")
    assert {key: used for key, used in here.items() if used != elsewhere[key]} == {own[0].key: 250}
    assert elsewhere[own[0].key] == 0
    assert settled("") == here, "whoever does not say who served means the first"


def test_addresses_and_upstreams_have_their_own_limits() -> None:
    (ip,) = ip_bounds(POLICY, "2001:db8::1")
    assert ip.key == ip_bounds(POLICY, "2001:db8::ffff")[0].key  # one /64 is one caller
    assert ip.key != ip_bounds(POLICY, "2001:db8:0:1::1")[0].key
    (upstream,) = upstream_bounds(POLICY, "here")
    assert isinstance(upstream.limit, Rate)
    assert (upstream.limit.unit, upstream.limit.amount) == (Unit.TOKENS, 1000)


def test_prepaid_credit_is_a_budget_for_life() -> None:
    credit = [{"usd": 25, "used_before": 3}, {"usd": 2, "user": "ann"}, {"usd": 7, "user": "bob"}]
    found = {bound.limit.id: bound for bound in terms(credit=credit).bounds}
    tenants, anns = found["tenant.microusd.life"].limit, found["user.microusd.life"].limit
    assert isinstance(tenants, Budget)
    assert (tenants.amount, tenants.before) == (28_000_000, 3_000_000)
    assert anns.amount == 2_000_000
    assert amounts(terms(credit=credit, user="bob"))["user.microusd.life"] == 7_000_000
    assert "user.microusd.life" not in ids(terms(credit=credit, user="eve"))


def test_credit_adds_to_a_budget_for_life_that_is_there() -> None:
    own = [{"scope": "tenant", "usd": 5, "per": "life", "alert_at": [0.9]}]
    found = [b.limit for b in terms(credit=[{"usd": 25, "used_before": 3}], budgets=own).bounds]
    (life,) = [limit for limit in found if limit.id == "tenant.microusd.life"]
    assert isinstance(life, Budget)
    assert (life.amount, life.before, life.alert_at) == (30_000_000, 0, (0.9,))
