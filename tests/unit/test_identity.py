"""Identities, and the claims that they are made of."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tokens import CLIENT, claims, refused, rules
from tollgate.domain.claims import ClaimNames, find, path
from tollgate.domain.identity import SCOPES, Identity, epoch, granted
from tollgate.domain.issuers import Issuer

printable = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=256)


def identify(found: dict[str, Any], issuer: Issuer | None = None) -> Identity:
    return (issuer or rules()).identify("at+jwt", found, time.time())


# -- the authorizer's context --------------------------------------------------------------------------------------


@given(
    st.builds(
        Identity,
        tenant=printable,
        user=printable,
        plan=printable | st.just(""),
        team=printable | st.just(""),
        key=printable | st.just(""),
        scopes=st.frozensets(st.sampled_from(sorted(SCOPES))).map(granted),
        expires_at=st.integers(1, 2**53),
        restrictions=printable | st.just(""),
        pool_user=printable | st.just(""),
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


def test_a_scope_that_nothing_knows_grants_nothing() -> None:
    context = {"tenant": "a", "user": "u", "exp": "9", "scopes": "models.read everything"}
    assert Identity.from_context(context).scopes == {"models.read"}
    assert granted(["invoke"]) == {"invoke", "models.read", "usage.read"}
    assert granted(["models.read"]) == {"models.read"}


# -- claims --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ["", " ", "a\nb", "a\x00", "\x7f", "\ud800", "a\u202eb", "a\u200bb", "x" * 257, 7, None, True, ["a"], {}, "a#b"],
)
def test_a_tenant_is_bounded_printable_text_or_the_token_is_nobodys(value: Any) -> None:
    refused(lambda: identify(claims() | {"tenant": value}))


def test_claims_map_to_an_identity() -> None:
    soon = time.time() + 60
    found = identify(claims(exp=soon + 0.9, team="red"))
    scopes = granted(["invoke"])
    assert found == Identity("acme", "user-1", plan="pro", team="red", scopes=scopes, expires_at=int(soon + 0.9))
    assert not found.expired(found.expires_at - 0.1)
    assert found.expired(found.expires_at)


def test_the_first_claim_that_is_there_counts_even_if_it_is_bad() -> None:
    custom = claims(tenant=None, plan=None) | {"custom:tenant": "globex", "custom:plan": "free"}
    found = identify(custom)
    assert (found.tenant, found.plan) == ("globex", "free")
    refused(lambda: identify(custom | {"tenant": 7}))


def test_a_machine_without_a_subject_is_its_client() -> None:
    assert identify(claims(sub=None)).user == CLIENT


def test_a_nested_claim_is_a_pointer_and_every_other_name_is_literal() -> None:
    found = {"org": {"id": "a", "x/y": {"~": "b"}}, "https://x.example/org": "c", "a.b": "d", "/": "e"}
    assert find(found, (path("/org/id"),)) == "a"
    assert find(found, (path("/org/x~1y/~0"),)) == "b"
    assert find(found, (path("https://x.example/org"),)) == "c"
    assert find(found, (path("a.b"),)) == "d"
    assert find(found, (path("/org/none"), path("/org/id/deeper"), path("a.b"))) == "d"
    assert find(found, (path("none"),)) == ""
    for bad in ("", "/", "//", "/a/", "/a~2b", "/a~"):
        with pytest.raises(ValueError):
            path(bad)


def test_other_claims_may_be_named_but_only_for_parts_that_there_are() -> None:
    names = ClaimNames().having({"tenant": ["/org/id"], "plan": []})
    assert names.tenant == (("org", "id"),)
    assert names.plan == ()
    assert names.user == ClaimNames().user
    with pytest.raises(ValueError, match="role: expected one of"):
        ClaimNames().having({"role": ["x"]})
    with pytest.raises(ValueError, match=r"team: .* JSON pointer"):
        ClaimNames().having({"team": ["/x//y"]})


@pytest.mark.parametrize("value", ["1", None, True, float("nan"), float("inf"), -1, 2**60, 10**400, [1]])
def test_a_date_is_a_sane_number(value: Any) -> None:
    refused(lambda: epoch("exp", value))


# -- scopes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claimed", "expected"),
    [
        ("tollgate/invoke openid", {"invoke", "models.read", "usage.read"}),
        ("tollgate/models.read", {"models.read"}),
        (["tollgate/usage.read", "email"], {"usage.read"}),
        ("tollgate/unknown", set()),
        ("tollgate/admin", set()),
        ("tollgate/admin tollgate/models.read", {"models.read"}),
        ("openid email", {"invoke", "models.read", "usage.read"}),
        ("", {"invoke", "models.read", "usage.read"}),
        ("TOLLGATE/models.read", {"invoke", "models.read", "usage.read"}),
    ],
)
def test_scopes_of_ours_restrict_a_token_and_none_makes_an_administrator(claimed: Any, expected: set[str]) -> None:
    assert identify(claims(scope=claimed)).scopes == expected


def test_without_default_scopes_a_token_must_name_one() -> None:
    strict = rules(default_scopes=frozenset())
    assert identify(claims(scope="openid"), strict).scopes == frozenset()
    assert identify(claims(scope="invoke"), strict._replace(scope_prefix="")).scopes == granted(["invoke"])


@pytest.mark.parametrize("claimed", [["x"] * 257, [1], ["a", None], {"a": 1}, 7, None, "a\x00"])
def test_scopes_are_names_but_not_without_end(claimed: Any) -> None:
    refused(lambda: identify(claims() | {"scope": claimed}))


def test_administrators_are_those_in_the_issuers_group() -> None:
    ours = rules(admin_groups=frozenset({"tollgate-admins"}))
    member = claims() | {"cognito:groups": ["g", "tollgate-admins"]}
    assert "admin" in identify(member, ours).scopes
    assert "admin" not in identify(member).scopes, "no group is named in the settings"
    assert "admin" not in identify(claims() | {"cognito:groups": ["g"]}, ours).scopes
    assert "admin" not in identify(claims() | {"groups": ["tollgate-admins"]}, ours).scopes
    refused(lambda: identify(claims() | {"cognito:groups": 7}, ours))
    strict = ours._replace(default_scopes=frozenset())
    assert identify(member | {"scope": "openid"}, strict).scopes == frozenset(), "a token for another application"
    assert identify(member | {"scope": "tollgate/usage.read"}, strict).scopes == {"usage.read", "admin"}
