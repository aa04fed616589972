"""What narrows an API key down: as text, and in the terms that admission is made from."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollgate.domain.identity import MAX_RESTRICTIONS, Identity
from tollgate.domain.limits import Budget, Limit, Rate, Scope, Unit, Window
from tollgate.domain.policy import BudgetSpec, LimitSpec, Policy, TenantRecord
from tollgate.domain.policy_check import check
from tollgate.domain.policy_document import Document, PolicyErrors
from tollgate.domain.restrictions import NONE, Restrictions, restrictions
from tollgate.domain.terms import compile_terms

names = st.lists(st.from_regex(r"[a-z][a-z0-9]{0,9}", fullmatch=True), min_size=1, max_size=5, unique=True)
amounts = st.integers(1, 10**5)


@settings(max_examples=50)
@given(
    st.none() | names.map(tuple),
    st.none() | st.sampled_from([("/v1/messages",), ("/v1/models", "/v1/usage")]),
    st.none() | amounts,
    st.none() | amounts,
)
def test_they_survive_their_way_as_text(models: Any, routes: Any, requests: int | None, tokens: int | None) -> None:
    given_: dict[str, Any] = {}
    if models:
        given_["models"] = models
    if routes:
        given_["routes"] = routes
    if requests:
        given_["limits"] = (LimitSpec(scope=Scope.KEY, requests=requests, per="minute"),)
    if tokens:
        given_["budgets"] = (BudgetSpec(scope=Scope.KEY, tokens=tokens, per=Window.DAY),)
    made = Restrictions(**given_)
    text = made.text()
    assert text.isascii()
    assert (text == "") == (not given_)
    assert restrictions(text) == made
    assert restrictions(text).text() == text
    who = Identity("acme", "ann", restrictions=text, expires_at=1)
    assert Identity.from_context(who.to_context()) == who


@pytest.mark.parametrize(
    "text",
    ["x", "[]", "5", '{"model": ["m"]}', '{"models": []}', '{"models": "m"}', '{"routes": ["/admin/v1"]}',
     '{"limits": [{"requests": 5, "per": "minute"}]}',
     '{"limits": [{"scope": "user", "requests": 5, "per": "minute"}]}',
     '{"budgets": [{"scope": "tenant", "tokens": 5, "per": "day"}]}',
     '{"budgets": [{"scope": "key", "tokens": 5, "per": "day", "models": []}]}',
     '{"limits": [{"scope": "key", "requests": 5, "per": "day"}, {"scope": "key", "requests": 9, "per": "day"}]}'],
)  # fmt: skip
def test_what_cannot_be_read_is_not_taken_for_nothing(text: str) -> None:
    with pytest.raises(PolicyErrors):
        restrictions(text)


def test_they_have_to_fit_into_a_header() -> None:
    long = Restrictions(models=tuple(f"model-{n:050}" for n in range(64)))
    with pytest.raises(ValueError, match=f"at most {MAX_RESTRICTIONS} characters"):
        long.text()


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/models", True),
        ("/v1/models/small", True),
        ("/model/small/converse", True),
        ("/v1/modelsx", False),
        ("/v1", False),
        ("/v1/chat/completions", False),
        ("/healthz", False),
    ],
)
def test_a_route_is_its_path_and_what_is_below(path: str, allowed: bool) -> None:
    assert Restrictions(routes=("/v1/models", "/model")).allows_route(path) == allowed
    assert NONE.allows_route(path)


# -- terms -----------------------------------------------------------------------------------------------------------

POLICY: Policy = check(
    Document(
        {
            "version": 1,
            "upstreams": {"here": {"api": "openai", "base_url": "http://127.0.0.1:1/v1"}},
            "models": {"small": {"route": [{"upstream": "here", "model": "m"}], "price": {"input": 1}}},
            "plans": {
                "pro": {
                    "models": ["small"],
                    "limits": [
                        {"scope": "user", "requests": 50, "per": "minute"},
                        {"scope": "key", "requests": 40, "per": "minute"},
                        {"scope": "key", "tokens": 1000, "per": "minute"},
                    ],
                    "budgets": [{"scope": "key", "tokens": 100, "per": "day"}],
                }
            },
        }
    )
)


def bound(key: str, own: str = "") -> dict[str, int]:
    """The amounts of the limits that a caller meets, by their ids."""
    who = Identity("acme", "ann", key=key, restrictions=own)
    terms = compile_terms(POLICY, TenantRecord(tenant="acme", plan="pro"), who, "small", 0)
    return {it.limit.id: amount(it.limit) for it in terms.bounds}


def amount(limit: Limit) -> int:
    return limit.amount


def test_a_keys_own_limits_replace_the_plans_for_keys_and_no_others() -> None:
    plans = bound("k1")
    assert plans == {
        "user.requests.minute": 50,
        "key.requests.minute": 40,
        "key.tokens.minute": 1000,
        "key.tokens.day": 100,
    }
    own = Restrictions(
        limits=(
            LimitSpec(scope=Scope.KEY, requests=5, per="minute"),
            LimitSpec(scope=Scope.KEY, concurrent=2),
        ),
        budgets=(BudgetSpec(scope=Scope.KEY, tokens=7, per=Window.DAY),),
    )
    changed = {"key.requests.minute": 5, "key.slots": 2, "key.tokens.day": 7}
    assert bound("k1", own.text()) == plans | changed


def test_each_key_has_buckets_of_its_own_and_one_limit_is_one_bucket() -> None:
    own = json.dumps({"limits": [{"scope": "key", "requests": 5, "per": "minute"}]})

    def keys(key: str) -> list[str]:
        who = Identity("acme", "ann", key=key, restrictions=own)
        bounds = compile_terms(POLICY, TenantRecord(tenant="acme", plan="pro"), who, "small", 0).bounds
        return [it.key for it in bounds if it.limit.scope is Scope.KEY]

    assert len(set(keys("k1"))) == len(keys("k1")) == 3
    assert not set(keys("k1")) & set(keys("k2"))


def test_kinds_are_kept() -> None:
    own = '{"budgets":[{"per":"month","scope":"key","usd":5}]}'
    (budget,) = [b.limit for b in _bounds(own) if b.limit.id == "key.microusd.month"]
    assert isinstance(budget, Budget)
    assert (budget.amount, budget.unit, budget.window) == (5_000_000, Unit.MICROUSD, Window.MONTH)
    assert any(isinstance(b.limit, Rate) for b in _bounds(own))


def _bounds(own: str) -> Any:
    who = Identity("acme", "ann", key="k", restrictions=own)
    return compile_terms(POLICY, TenantRecord(tenant="acme", plan="pro"), who, "small", 0).bounds
