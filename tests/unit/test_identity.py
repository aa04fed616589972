"""Identities, and the claims that they are made of."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tokens import CLIENT, claims, refused
from tollgate.domain.identity import ClaimNames, Identity, claims_to_identity, epoch

printable = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=256)


@given(
    st.builds(
        Identity,
        tenant=printable,
        user=printable,
        plan=printable | st.just(""),
        team=printable | st.just(""),
        key=printable | st.just(""),
        scopes=st.frozensets(printable, max_size=5),
        expires_at=st.integers(1, 2**53),
    )
)
def test_an_identity_survives_the_authorizers_context(identity: Identity) -> None:
    context = identity.to_context()
    assert all(isinstance(value, str) and value for value in context.values())
    assert Identity.from_context(json.loads(json.dumps(context))) == identity


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"tenant": "a", "user": "u"},
        {"tenant": "a", "user": "u", "exp": 12},
        {"tenant": "a", "user": "u", "exp": "-1"},
        {"tenant": "a", "user": "u", "exp": "1e3"},
        {"tenant": "a", "user": "u", "exp": "\u0661"},
        {"tenant": "a", "user": "u", "exp": "9" * 17},
        {"user": "u", "exp": "1"},
        {"tenant": "", "user": "u", "exp": "1"},
        {"tenant": "a", "exp": "1"},
        {"tenant": ["a"], "user": "u", "exp": "1"},
        {"tenant": "a", "user": "u", "exp": "1", "plan": None},
        {"tenant": "a", "user": "u", "exp": "1", "scopes": 7},
    ],
)
def test_a_context_that_no_authorizer_wrote_is_refused(context: dict[str, Any]) -> None:
    refused(lambda: Identity.from_context(context))


def test_gateway_entries_beside_ours_are_ignored() -> None:
    context = {"principalId": "x", "integrationLatency": 3, "tenant": "a", "user": "u", "exp": "9"}
    assert Identity.from_context(context) == Identity("a", "u", expires_at=9)


@pytest.mark.parametrize(
    "value", ["", " ", "a\nb", "a\x00", "\x7f", "\ud800", "a\u202eb", "a\u200bb", "x" * 257, 7, None, True, ["a"], {}]
)
def test_a_tenant_is_bounded_printable_text_or_the_token_is_nobodys(value: Any) -> None:
    refused(lambda: claims_to_identity(claims() | {"tenant": value}, ClaimNames()))


def test_claims_map_to_an_identity() -> None:
    found = claims_to_identity(claims(exp=1234.9, team="red"), ClaimNames())
    scopes = frozenset({"models/invoke", "models/list"})
    assert found == Identity("acme", "user-1", plan="pro", team="red", scopes=scopes, expires_at=1234)
    assert not found.expired(1233.9)
    assert found.expired(1234)


def test_the_first_claim_that_is_there_counts_even_if_it_is_bad() -> None:
    custom = claims(tenant=None, plan=None) | {"custom:tenant": "globex", "custom:plan": "free"}
    found = claims_to_identity(custom, ClaimNames())
    assert (found.tenant, found.plan) == ("globex", "free")
    refused(lambda: claims_to_identity(custom | {"tenant": 7}, ClaimNames()))


def test_a_machine_without_a_subject_is_its_client() -> None:
    assert claims_to_identity(claims(sub=None), ClaimNames()).user == CLIENT


def test_scopes_may_be_a_list_but_not_without_end() -> None:
    assert claims_to_identity(claims(scope=None, scp=["a", "b"]), ClaimNames()).scopes == {"a", "b"}
    refused(lambda: claims_to_identity(claims(scope=[f"s{i}" for i in range(65)]), ClaimNames()))
    refused(lambda: claims_to_identity(claims(scope=["a b"]), ClaimNames()))
    refused(lambda: claims_to_identity(claims(scope=[1]), ClaimNames()))


def test_claim_names_come_from_the_environment() -> None:
    names = ClaimNames.from_env({"TOLLGATE_CLAIM_TENANT": "https://x.example/org, org", "TOLLGATE_CLAIM_KEY": "kid"})
    found = claims_to_identity(claims(org="initech", kid="k1"), names)
    assert (found.tenant, found.key, found.user) == ("initech", "k1", "user-1")
    with pytest.raises(ValueError, match="TOLLGATE_CLAIM_USER"):
        ClaimNames.from_env({"TOLLGATE_CLAIM_USER": " , "})


@pytest.mark.parametrize("value", ["1", None, True, float("nan"), float("inf"), -1, 2**60, 10**400, [1]])
def test_a_date_is_a_sane_number(value: Any) -> None:
    refused(lambda: epoch("exp", value))
