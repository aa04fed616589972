"""Issuers as the environment names them, and what keeps one from speaking for another."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.tokens import CLIENT, ENVIRONMENT, ISSUER, KeySet, claims, ec_jwk, key_set, refused, rsa_jwk, rsa_key, token
from tollgate.adapters.jwks import Jwks
from tollgate.authentication import authenticator
from tollgate.domain.issuer_settings import issuers
from tollgate.domain.issuers import Issuer
from tollgate.services.authorize import Authenticator
from tollgate.services.tokens import TokenVerifier

PARTNER = "https://partner.example"


def one(environ: dict[str, str]) -> Issuer:
    (issuer,) = issuers(environ)
    return issuer


def partner(**settings: Any) -> dict[str, str]:
    """The environment with a second issuer."""
    base = {"issuer": PARTNER, "audiences": ["tollgate"], "tenants": ["globex"], "default_scopes": ["invoke"]}
    entry = {name: value for name, value in (base | settings).items() if value is not None}
    return ENVIRONMENT | {"TOLLGATE_ISSUERS": json.dumps([entry])}


# -- plain variables -----------------------------------------------------------------------------------------------


def test_a_user_pool_says_it_all() -> None:
    env = {"TOLLGATE_USER_POOL_ID": "eu-central-1_AbC123", "TOLLGATE_CLIENT_IDS": "a, b,"}
    found = one(env)
    assert found.issuer == "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbC123"
    assert found.jwks_url == found.issuer + "/.well-known/jwks.json"
    assert found.clients == {"a", "b"}
    assert (found.algorithms, found.types, found.token_use) == ({"RS256"}, frozenset(), "access")
    emulated = one({**env, "AWS_ENDPOINT_URL": "http://127.0.0.1:5000/"})
    assert emulated.issuer == found.issuer
    assert emulated.jwks_url == "http://127.0.0.1:5000/eu-central-1_AbC123/.well-known/jwks.json"


def test_any_issuer_can_be_named() -> None:
    env = {"TOLLGATE_ISSUER": "https://id.example/", "TOLLGATE_CLIENT_IDS": "api"}
    found = one(env)
    assert (found.issuer, found.types, found.token_use) == ("https://id.example/", {"at+jwt"}, "access")
    assert found.jwks_url == "https://id.example/.well-known/jwks.json"
    other = one(
        {
            **env,
            "TOLLGATE_JWKS_URL": "https://id.example/keys",
            "TOLLGATE_LEEWAY_SECONDS": "0",
            "TOLLGATE_CLAIM_TENANT": "https://x.example/org, /org/id",
            "TOLLGATE_CLAIM_PLAN": "",
            "TOLLGATE_DEFAULT_SCOPES": "none",
            "TOLLGATE_ADMIN_GROUPS": "admins",
        }
    )
    assert (other.jwks_url, other.leeway_s, other.default_scopes) == ("https://id.example/keys", 0, frozenset())
    assert other.claims.tenant == (("https://x.example/org",), ("org", "id"))
    assert (other.claims.plan, other.admin_groups) == ((), {"admins"})


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({}, "TOLLGATE_ISSUERS"),
        ({"TOLLGATE_ISSUER": ISSUER}, "TOLLGATE_CLIENT_IDS"),
        ({"TOLLGATE_ISSUER": ISSUER, "TOLLGATE_CLIENT_IDS": " ,"}, "TOLLGATE_CLIENT_IDS"),
        ({"TOLLGATE_CLIENT_IDS": "a"}, "TOLLGATE_USER_POOL_ID"),
        ({"TOLLGATE_USER_POOL_ID": "pool"}, "TOLLGATE_USER_POOL_ID"),
        ({**ENVIRONMENT, "TOLLGATE_LEEWAY_SECONDS": "61"}, "TOLLGATE_LEEWAY_SECONDS"),
        ({**ENVIRONMENT, "TOLLGATE_LEEWAY_SECONDS": "1.5"}, "TOLLGATE_LEEWAY_SECONDS"),
        ({**ENVIRONMENT, "TOLLGATE_FORGED_TOKENS_PER_MINUTE": "0"}, "TOLLGATE_FORGED_TOKENS_PER_MINUTE"),
        ({**ENVIRONMENT, "TOLLGATE_CLAIM_USER": " , "}, "claims: tenant and user"),
        ({**ENVIRONMENT, "TOLLGATE_CLAIM_TEAM": "/a//b"}, "TOLLGATE_CLAIM_...: team"),
        ({**ENVIRONMENT, "TOLLGATE_DEFAULT_SCOPES": "admin"}, "default_scopes"),
        ({**ENVIRONMENT, "TOLLGATE_JWKS_URL": "http://id.example/keys"}, "must be https"),
    ],
)
def test_a_bad_setting_is_named(env: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        authenticator(env)


# -- several issuers -----------------------------------------------------------------------------------------------


def test_a_foreign_issuers_rules_are_its_own() -> None:
    _, found = issuers(
        partner(
            jwks_url="https://partner.example/keys",
            algorithms=["EdDSA"],
            types=["application/at+JWT", "jwt"],
            tenants=["globex", "partner-*"],
            claims={"tenant": "/org/id", "scopes": ["/perms", "scp"]},
            user_prefix="partner:",
            leeway_s=5,
        )
    )
    assert (found.algorithms, found.types, found.leeway_s) == ({"EdDSA"}, {"at+jwt", "jwt"}, 5)
    assert found.claims.tenant == (("org", "id"),)
    assert found.claims.scopes == (("perms",), ("scp",))
    assert found.claims.plan == found.claims.key == (), "a foreign issuer sells no plans"
    assert found.jwks_url == "https://partner.example/keys"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"issuer": None}, r"\[0\].issuer: missing"),
        ({"issuer": 7}, r"\[0\].issuer: expected text"),
        ({"issuer": ISSUER}, "named twice"),
        ({"audiences": None}, r"\[0\].audiences: name at least one"),
        ({"audiences": ["a", 7]}, r"\[0\].audiences: expected text"),
        ({"algorithms": ["HS256"]}, r"\[0\].algorithms: expected some of ES256, EdDSA, RS256"),
        ({"algorithms": []}, r"\[0\].algorithms"),
        ({"algorithms": ["none"]}, r"\[0\].algorithms"),
        ({"types": []}, r"\[0\].types"),
        ({"tenants": None}, r"\[0\]: name either tenant or tenants"),
        ({"tenant": "globex"}, r"\[0\]: name either tenant or tenants"),
        ({"tenants": []}, r"\[0\].tenants"),
        ({"tenants": ["a*b"]}, r"\[0\].tenants"),
        ({"claims": {"tenant": []}}, r"\[0\].claims: tenant and user"),
        ({"claims": {"email": "x"}}, r"\[0\].claims: email: expected one of"),
        ({"claims": ["x"]}, r"\[0\].claims: expected an object"),
        ({"default_scopes": ["admin"]}, r"\[0\].default_scopes"),
        ({"admin_groups": ["ops"]}, r"\[0\].admin_groups: administrators see all tenants"),
        ({"leeway_s": 61}, r"\[0\].leeway_s: expected 0 to 60"),
        ({"leeway_s": True}, r"\[0\].leeway_s: expected a whole number"),
        ({"audience": ["x"]}, r"\[0\].audience: expected one of admin_groups, .*audiences"),
        ({"jwks_url": "http://partner.example/keys"}, "must be https"),
    ],
)
def test_a_bad_issuer_is_named_with_its_field(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        authenticator(partner(**settings))


@pytest.mark.parametrize("text", ["{", "{}", "7", '["x"]', '[{"issuer": "a", "issuer": "b"}]', "[" * 5000])
def test_what_is_no_list_of_issuers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="TOLLGATE_ISSUERS"):
        authenticator({"TOLLGATE_ISSUERS": text})


class TwoIssuers:
    """Ours and a partner's, each with keys of its own; both key sets have the same key ids."""

    def __init__(self, **settings: Any) -> None:
        self.ours, self.theirs = KeySet(), KeySet(key_set(rsa_jwk("rsa", rsa_key("partner")), ec_jwk("only-theirs")))
        first, second = issuers(partner(**settings))
        pairs = [(first, Jwks(first.jwks_url, fetch=self.ours)), (second, Jwks(second.jwks_url, fetch=self.theirs))]
        self.known = Authenticator([TokenVerifier(pairs)])

    def verify(self, text: str) -> Any:
        return self.known.verify(text.encode())


def theirs(key: str = "partner", typ: str = "at+jwt", **changes: Any) -> str:
    payload = claims(**{"iss": PARTNER, "aud": "tollgate", "tenant": "globex", "token_use": None, **changes})
    return token(payload, key=rsa_key(key), headers={"typ": typ})


def test_each_issuers_tokens_are_judged_by_its_own_rules_and_keys() -> None:
    both = TwoIssuers()
    assert both.verify(token()).tenant == "acme"
    assert both.verify(theirs()).tenant == "globex"
    assert both.verify(theirs()).plan == "", "whatever plan the token claims"
    assert refused(lambda: both.verify(theirs(key="rsa"))) == "bad signature", "our key, their name"
    assert refused(lambda: both.verify(token(key=rsa_key("partner")))) == "bad signature", "their key, our name"
    # a key that only the other issuer has
    assert refused(lambda: both.verify(token(alg="ES256", headers={"kid": "only-theirs"}))) == "unknown signing key"
    assert refused(lambda: both.verify(theirs(typ="JWT"))) == "type is not allowed"
    assert refused(lambda: both.verify(theirs(aud=CLIENT))) == "wrong audience", "an audience of the other issuer"
    assert refused(lambda: both.verify(theirs(iss="https://third.example"))) == "unknown issuer"
    assert both.ours.fetches == both.theirs.fetches == 1


def test_an_issuers_algorithms_are_fixed() -> None:
    both = TwoIssuers(algorithms=["ES256"])
    assert refused(lambda: both.verify(theirs())) == "algorithm is not allowed"
    assert both.verify(token()).tenant == "acme"


@pytest.mark.parametrize(
    ("tenants", "tenant", "may"),
    [
        (["globex"], "globex", True),
        (["globex"], "acme", False),
        (["globex"], "globex2", False),
        (["globex"], "Globex", False),
        (["a", "partner-*"], "partner-", True),
        (["a", "partner-*"], "partner-7", True),
        (["a", "partner-*"], "xpartner-7", False),
        (["partner-*"], "partner-*", True),
        (["*"], "acme", True),
        (["*"], "client#x", False),
        (["*"], "key#x", False),
    ],
)
def test_a_foreign_issuer_speaks_only_for_its_tenants(tenants: list[str], tenant: str, may: bool) -> None:
    both = TwoIssuers(tenants=tenants)
    if may:
        assert both.verify(theirs(tenant=tenant)).tenant == tenant
    else:
        refused(lambda: both.verify(theirs(tenant=tenant)))


def test_an_issuer_of_one_tenant_needs_no_claim_and_believes_none() -> None:
    both = TwoIssuers(tenants=None, tenant="globex", user_prefix="partner:")
    for claimed in (None, "acme", "globex", "x#y"):
        found = both.verify(theirs(tenant=claimed))
        assert (found.tenant, found.user) == ("globex", "partner:user-1")


def test_a_foreign_issuer_makes_no_administrators_unless_it_may() -> None:
    assert "admin" not in TwoIssuers().verify(theirs(groups=["ops"], scope="tollgate/admin")).scopes
    trusted = TwoIssuers(tenants=["*"], admin_groups=["ops"])
    assert "admin" in trusted.verify(theirs(groups=["ops"])).scopes


def test_an_issuer_that_cannot_be_reached_concerns_nobody_else(capsys: pytest.CaptureFixture[str]) -> None:
    both = TwoIssuers()
    both.theirs.down = True
    assert not both.known.warm()
    assert both.verify(token()).tenant == "acme"
    assert "signing keys could not be fetched" in capsys.readouterr().out
