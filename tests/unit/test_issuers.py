"""Issuers as the environment names them."""

from __future__ import annotations

import pytest

from tests.tokens import ISSUER
from tollgate.authentication import authenticator
from tollgate.services.tokens import TokenRules


def test_a_user_pool_says_it_all() -> None:
    env = {"TOLLGATE_USER_POOL_ID": "eu-central-1_AbC123", "TOLLGATE_CLIENT_IDS": "a, b,"}
    found = TokenRules.from_env(env)
    assert found.issuer == "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbC123"
    assert found.jwks_url == found.issuer + "/.well-known/jwks.json"
    assert found.clients == {"a", "b"}
    assert found.token_use_required
    emulated = TokenRules.from_env({**env, "AWS_ENDPOINT_URL": "http://127.0.0.1:5000/"})
    assert emulated.issuer == found.issuer
    assert emulated.jwks_url == "http://127.0.0.1:5000/eu-central-1_AbC123/.well-known/jwks.json"


def test_any_issuer_can_be_named() -> None:
    env = {"TOLLGATE_ISSUER": "https://id.example/", "TOLLGATE_CLIENT_IDS": "api"}
    found = TokenRules.from_env(env)
    assert (found.issuer, found.token_use_required) == ("https://id.example/", False)
    assert found.jwks_url == "https://id.example/.well-known/jwks.json"
    other = TokenRules.from_env({**env, "TOLLGATE_JWKS_URL": "https://id.example/keys", "TOLLGATE_LEEWAY_SECONDS": "0"})
    assert (other.jwks_url, other.leeway_s) == ("https://id.example/keys", 0)


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({}, "TOLLGATE_ISSUER"),
        ({"TOLLGATE_ISSUER": ISSUER}, "TOLLGATE_CLIENT_IDS"),
        ({"TOLLGATE_ISSUER": ISSUER, "TOLLGATE_CLIENT_IDS": " ,"}, "TOLLGATE_CLIENT_IDS"),
        ({"TOLLGATE_USER_POOL_ID": "pool"}, "TOLLGATE_USER_POOL_ID"),
        ({"TOLLGATE_ISSUER": ISSUER, "TOLLGATE_CLIENT_IDS": "a", "TOLLGATE_LEEWAY_SECONDS": "61"}, "LEEWAY"),
        ({"TOLLGATE_ISSUER": ISSUER, "TOLLGATE_CLIENT_IDS": "a", "TOLLGATE_LEEWAY_SECONDS": "1.5"}, "LEEWAY"),
        ({"TOLLGATE_ISSUER": ISSUER, "TOLLGATE_CLIENT_IDS": "a", "TOLLGATE_FORGED_TOKENS_PER_MINUTE": "0"}, "FORGED"),
    ],
)
def test_a_bad_setting_is_named(env: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        authenticator(env)
