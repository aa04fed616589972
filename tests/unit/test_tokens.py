"""Access tokens: which are good, and which are refused. Real signatures; only clock and network are stand-ins."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from functools import cache

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile_tokens import HOSTILE, at
from tests.tokens import (
    CLIENT,
    ISSUER,
    Clock,
    KeySet,
    authenticator,
    b64,
    claims,
    ec_key,
    key_set,
    refused,
    rsa_key,
    rules,
    token,
)  # fmt: skip
from tollgate.adapters.jwks import parse
from tollgate.domain.claims import ClaimNames
from tollgate.domain.identity import Identity, Unauthorized

Verify = Callable[[str], Identity]


@pytest.fixture(scope="module")
def verify() -> Verify:
    known = authenticator(KeySet())
    return lambda credential: known.verify(credential.encode())


@pytest.mark.parametrize("alg", ["RS256", "ES256"])
@pytest.mark.parametrize("typ", [None, "JWT", "jwt", "at+jwt", "application/at+jwt"])
def test_a_good_token_is_its_callers_identity(verify: Verify, alg: str, typ: str | None) -> None:
    found = verify(token(alg=alg, headers={"typ": typ}))
    assert (found.tenant, found.user, found.plan) == ("acme", "user-1", "pro")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tokens_are_refused(name: str) -> None:
    known = authenticator(KeySet())  # one for each: none is refused for the others' sake
    reason = refused(lambda: known.verify(HOSTILE[name]().encode()))
    assert "too many" not in reason
    assert len(reason) < 100


@given(st.text(max_size=300))
def test_garbage_is_refused_and_never_an_error(garbage: str) -> None:
    known = authenticator(KeySet())
    raw = garbage.encode("utf-8", "surrogatepass")
    for credential in (raw, f"{b64(raw)}.e30.AA".encode(), f"{token().rpartition('.')[0]}.{b64(raw)}".encode()):
        refused(lambda credential=credential: known.verify(credential))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("acme"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*claims(), "aud", "nbf", "team", "cognito:groups", "scp"]), json_values))
def test_claims_of_any_kind_are_judged_and_never_an_error(strange: dict[str, object]) -> None:
    payload = claims() | strange
    issuer = rules(admin_groups=frozenset({"acme"}), user_prefix="x:")
    for subject in (issuer, issuer._replace(claims=ClaimNames().having({"tenant": ["/tenant/id", "/team"]}))):
        try:
            who = subject.identify("at+jwt", payload, time.time())
        except Unauthorized:
            continue
        assert who == Identity.from_context(who.to_context())
        assert not who.expired(time.time())


def test_an_audience_counts_before_the_client(verify: Verify) -> None:
    assert verify(token(claims(aud=["x", CLIENT], client_id="whoever"))).tenant == "acme"


def test_leeway_forgives_an_issuer_whose_clock_is_ahead_but_prolongs_nothing() -> None:
    clock = Clock()
    known = authenticator(KeySet(), clock)
    fresh = token(claims(iat=at(20), nbf=at(20), exp=at(100))).encode()
    assert known.verify(fresh).tenant == "acme"
    clock.ahead_s = 101
    assert known.recall(fresh) is None
    assert refused(lambda: known.verify(fresh)) == "expired"


def test_a_token_must_say_that_it_is_an_access_token(verify: Verify) -> None:
    refused(lambda: verify(token(claims(token_use=None))))
    refused(lambda: verify(token(claims(token_use=None), headers={"typ": None})))
    assert verify(token(claims(token_use=None), headers={"typ": "at+jwt"})).tenant == "acme"
    refused(lambda: verify(token(claims(token_use="id"), headers={"typ": "at+jwt"})))


def test_rfc_7515s_es256_example_fits_its_key() -> None:
    jwk = {
        "kty": "EC",
        "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        "kid": "a3",
    }
    message = (
        "eyJhbGciOiJFUzI1NiJ9."
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
    )
    signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
    raw = base64.urlsafe_b64decode(signature + "==")
    key = parse(key_set(jwk))[("a3", "ES256")]
    assert key.verify(message.encode(), raw)
    assert not key.verify(message.encode() + b"x", raw)
    for bad in (b"", raw[:63], raw + b"\0", bytes(64), b"\xff" * 64, raw[32:] + raw[:32]):
        assert not key.verify(message.encode(), bad)


@pytest.mark.parametrize("alg", ["RS256", "ES256"])
@given(at=st.integers(0, 2**16), bit=st.integers(0, 8))
def test_pyjwt_agrees_about_every_signature(alg: str, at: int, bit: int) -> None:
    text = remembered_token(alg)
    message, _, part = text.rpartition(".")
    signature = bytearray(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    if bit < 8:
        signature[at % len(signature)] ^= 1 << bit
    altered = f"{message}.{b64(bytes(signature))}"
    key = ec_key() if alg == "ES256" else rsa_key()
    try:
        expected = jwt.decode(altered, key.public_key(), algorithms=[alg], issuer=ISSUER)
    except jwt.InvalidSignatureError:
        expected = None
    ours = authenticator(KeySet())
    if expected is None:
        assert refused(lambda: ours.verify(altered.encode())) == "bad signature"
    else:
        assert bit == 8
        assert ours.verify(altered.encode()).user == expected["sub"]


@cache
def remembered_token(alg: str) -> str:
    return token(alg=alg)
