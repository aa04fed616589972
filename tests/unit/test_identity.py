"""Who calls: claims, tokens, keys. Real signatures; only the clock and the network are stand-ins."""

from __future__ import annotations

import base64
import hmac
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tokens
from tests.tokens import CLIENT, ISSUER, b64, claims, ec_jwk, key_set, rsa_jwk, rsa_key, sign, token
from tollgate.adapters.jwks import FetchFailed, Jwks, check_url, emulator_hosts, parse
from tollgate.domain.identity import (
    ClaimNames,
    Identity,
    KeysUnavailable,
    TooManyFailures,
    Unauthorized,
    claims_to_identity,
    epoch,
)
from tollgate.services.authorize import MAX_REMEMBERED, TokenRules, TokenVerifier

JWKS_URL = "https://issuer.example/.well-known/jwks.json"


class Clock:
    """Real time, moved by hand."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


class Issuer:
    """Serves a key set, counts who asks, and can be down."""

    def __init__(self, body: bytes | None = None) -> None:
        self.body = body or key_set()
        self.fetches = 0
        self.down = False

    def __call__(self, url: str) -> bytes:
        self.fetches += 1
        if self.down:
            raise FetchFailed("down")
        return self.body


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def jwks(issuer: Issuer, clock: Clock) -> Jwks:
    return Jwks(JWKS_URL, clock=clock, fetch=issuer)


def rules(**changes: Any) -> TokenRules:
    return TokenRules(**{"issuer": ISSUER, "jwks_url": JWKS_URL, "clients": frozenset({CLIENT}), **changes})


@pytest.fixture
def verifier(jwks: Jwks, clock: Clock) -> TokenVerifier:
    return TokenVerifier(rules(), jwks, clock=clock)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(Unauthorized) as caught:
        call()
    assert str(caught.value) == "Unauthorized"
    return caught.value.reason


# -- identities ----------------------------------------------------------------------------------------------------

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


# -- tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ["RS256", "ES256"])
@pytest.mark.parametrize("typ", [None, "JWT", "jwt", "at+jwt", "application/at+jwt"])
def test_a_good_token_is_its_callers_identity(verifier: TokenVerifier, alg: str, typ: str | None) -> None:
    found = verifier.verify(f"Bearer {token(alg=alg, headers={'typ': typ})}")
    assert (found.tenant, found.user, found.plan) == ("acme", "user-1", "pro")


def good() -> dict[str, Any]:
    return claims()


def at(offset_s: float) -> float:
    return time.time() + offset_s


def parts(altered: Callable[[str, str, str], str]) -> str:
    return altered(*token().split("."))


HOSTILE: dict[str, Callable[[], str]] = {
    "alg none": lambda: parts(lambda h, p, s: f"{b64(json.dumps({'alg': 'none', 'kid': 'rsa'}))}.{p}.{s}"),
    "alg none, no signature": lambda: parts(lambda h, p, s: f"{b64(json.dumps({'alg': 'none', 'kid': 'rsa'}))}.{p}."),
    "alg NONE": lambda: sign({"alg": "NoNe", "kid": "rsa"}, good(), rsa_key()),
    "alg list": lambda: sign({"alg": ["RS256"], "kid": "rsa"}, good(), rsa_key()),
    "alg RS512": lambda: sign({"alg": "RS512", "kid": "rsa"}, good(), rsa_key()),
    "alg missing": lambda: sign({"kid": "rsa"}, good(), rsa_key()),
    "HS256 with the public key": lambda: hs256(tokens.public_pem(rsa_key())),
    "HS256 with an empty key": lambda: hs256(b""),
    "ES256 header, RSA signature": lambda: sign({"alg": "ES256", "kid": "rsa"}, good(), tokens.ec_key()),
    "RSA key id, EC signature": lambda: token(alg="ES256", headers={"kid": "rsa"}),
    "another's key": lambda: token(key=rsa_key("another")),
    "own key in jwk": lambda: token(key=rsa_key("mine"), headers={"jwk": rsa_jwk("rsa", rsa_key("mine"))}),
    "jwk of the real key": lambda: token(headers={"jwk": rsa_jwk()}),
    "jku": lambda: token(headers={"jku": "https://evil.example/jwks.json"}),
    "x5u": lambda: token(headers={"x5u": "https://evil.example/cert.pem"}),
    "x5c": lambda: token(headers={"x5c": ["MIIB"]}),
    "crit": lambda: token(headers={"crit": ["exp"]}),
    "b64 false": lambda: token(headers={"b64": False}),
    "zip": lambda: token(headers={"zip": "DEF"}),
    "nested": lambda: token(headers={"cty": "JWT"}),
    "nested without saying so": lambda: sign({"alg": "RS256", "kid": "rsa"}, token(), rsa_key()),
    "logout token": lambda: token(headers={"typ": "logout+jwt"}),
    "typ is a number": lambda: token(headers={"typ": 1}),
    "no kid": lambda: token(headers={"kid": None}),
    "kid is a number": lambda: token(headers={"kid": 1}),
    "kid is empty": lambda: token(headers={"kid": ""}),
    "kid is long": lambda: token(headers={"kid": "k" * 257}),
    "kid is unknown": lambda: token(headers={"kid": "nobody"}),
    "kid is a path": lambda: token(headers={"kid": "../../dev/null"}),
    "padded": lambda: token() + "==",
    "padded head": lambda: parts(lambda h, p, s: f"{h}=.{p}.{s}"),
    "not canonical": lambda: parts(lambda h, p, s: f"{h}.{p}.{uncanonical(s)}"),
    "standard alphabet": lambda: parts(lambda h, p, s: f"{h}.{p}.+/{s[2:]}"),
    "newline within": lambda: parts(lambda h, p, s: f"{h}.{p}.{s[:9]}\n{s[9:]}"),
    "four parts": lambda: token() + ".e30",
    "two parts": lambda: token().rpartition(".")[0],
    "five parts (JWE)": lambda: "e30.e30.e30.e30.e30",
    "duplicated": lambda: f"{token()}.{token()}",
    "no signature": lambda: parts(lambda h, p, s: f"{h}.{p}."),
    "short signature": lambda: parts(lambda h, p, s: f"{h}.{p}.AA"),
    "other payload": lambda: parts(lambda h, p, s: f"{h}.{b64(json.dumps(claims(tenant='globex')))}.{s}"),
    "other payload, valid header swap": lambda: parts(lambda h, p, s: f"{token(alg='ES256').split('.')[0]}.{p}.{s}"),
    "huge": lambda: token(claims(padding="x" * 9000)),
    "not ASCII": lambda: token() + "é",
    "empty": lambda: "",
    "only dots": lambda: "..",
    "payload is a list": lambda: sign({"alg": "RS256", "kid": "rsa"}, "[]", rsa_key()),
    "payload is not JSON": lambda: sign({"alg": "RS256", "kid": "rsa"}, "{", rsa_key()),
    "payload is not UTF-8": lambda: sign({"alg": "RS256", "kid": "rsa"}, b'{"iss":"\xff"}', rsa_key()),
    "payload is deep": lambda: sign({"alg": "RS256", "kid": "rsa"}, "[" * 5000, rsa_key()),
    "payload has a huge number": lambda: sign({"alg": "RS256", "kid": "rsa"}, '{"exp":' + "9" * 5000 + "}", rsa_key()),
    "duplicate claim": lambda: sign(
        {"alg": "RS256", "kid": "rsa"}, json.dumps(good())[:-1] + ',"tenant":"globex"}', rsa_key()
    ),
    "NaN expiry": lambda: token(claims(exp=float("nan"))),
    "wrong issuer": lambda: token(claims(iss="https://evil.example")),
    "issuer with a slash": lambda: token(claims(iss=ISSUER + "/")),
    "no issuer": lambda: token(claims(iss=None)),
    "issuer list": lambda: token(claims(iss=[ISSUER])),
    "wrong client": lambda: token(claims(client_id="other")),
    "no client": lambda: token(claims(client_id=None)),
    "wrong audience, right client": lambda: token(claims(aud="other")),
    "wrong audiences": lambda: token(claims(aud=["a", "b"])),
    "audience is null": lambda: sign({"alg": "RS256", "kid": "rsa"}, {**good(), "aud": None}, rsa_key()),
    "ID token": lambda: token(claims(token_use="id", aud=CLIENT)),
    "token_use is null": lambda: sign({"alg": "RS256", "kid": "rsa"}, {**good(), "token_use": None}, rsa_key()),
    "ID token of a foreign issuer": lambda: token(claims(token_use=None, aud=CLIENT, nonce="n")),
    "expired": lambda: token(claims(exp=at(-1))),
    "expired long ago": lambda: token(claims(exp=1)),
    "no expiry": lambda: token(claims(exp=None)),
    "expiry is text": lambda: token(claims(exp="9999999999")),
    "expiry is true": lambda: token(claims(exp=True)),
    "not yet valid": lambda: token(claims(nbf=at(90))),
    "nbf is text": lambda: token(claims(nbf="1")),
    "issued in the future": lambda: token(claims(iat=at(90))),
    "no tenant": lambda: token(claims(tenant=None)),
    "tenant is empty": lambda: token(claims(tenant="")),
    "no user": lambda: token(claims(sub="", client_id=CLIENT)),
}


def hs256(key: bytes) -> str:
    message = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'rsa'}))}.{b64(json.dumps(good()))}"
    return f"{message}.{b64(hmac.digest(key, message.encode(), 'sha256'))}"


def uncanonical(part: str) -> str:
    """The same bytes in another spelling: a 256-byte signature's last character has four bits to spare."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return part[:-1] + alphabet[alphabet.index(part[-1]) + 1]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tokens_are_refused(verifier: TokenVerifier, name: str) -> None:
    reason = refused(lambda: verifier.verify(f"Bearer {HOSTILE[name]()}"))
    assert len(reason) < 100


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "Token x", "Bearer\tx.y.z"])
def test_other_headers_are_refused(verifier: TokenVerifier, header: str) -> None:
    refused(lambda: verifier.verify(header))
    refused(lambda: verifier.verify(token()))


def test_the_schemes_case_does_not_matter(verifier: TokenVerifier) -> None:
    assert verifier.verify(f"bEARER  {token()} ").tenant == "acme"


@given(st.text(max_size=300))
def test_garbage_is_refused_and_never_an_error(garbage: str) -> None:
    verifier = TokenVerifier(rules(), Jwks(JWKS_URL, fetch=Issuer()))
    for header in (garbage, f"Bearer {garbage}", f"Bearer {b64(garbage.encode('utf-8', 'replace'))}.e30.AA"):
        refused(lambda header=header: verifier.verify(header))


def test_an_audience_counts_before_the_client(verifier: TokenVerifier) -> None:
    assert verifier.verify(f"Bearer {token(claims(aud=['x', CLIENT], client_id='whoever'))}").tenant == "acme"


def test_leeway_forgives_an_issuer_whose_clock_is_ahead_but_prolongs_nothing(
    verifier: TokenVerifier, clock: Clock
) -> None:
    fresh = f"Bearer {token(claims(iat=at(20), nbf=at(20), exp=at(100)))}"
    assert verifier.verify(fresh).tenant == "acme"
    clock.ahead_s = 101
    assert verifier.recall(fresh.encode()) is None
    assert refused(lambda: verifier.verify(fresh)) == "expired"


def test_cognito_tokens_must_name_their_use(jwks: Jwks) -> None:
    strict = TokenVerifier(rules(token_use_required=True), jwks)
    refused(lambda: strict.verify(f"Bearer {token(claims(token_use=None))}"))
    lax = TokenVerifier(rules(), jwks)
    assert lax.verify(f"Bearer {token(claims(token_use=None))}").tenant == "acme"


# -- signatures ----------------------------------------------------------------------------------------------------


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
    key = tokens.ec_key() if alg == "ES256" else rsa_key()
    try:
        expected = jwt.decode(altered, key.public_key(), algorithms=[alg], issuer=ISSUER)
    except jwt.InvalidSignatureError:
        expected = None
    ours = TokenVerifier(rules(), Jwks(JWKS_URL, fetch=Issuer()))
    if expected is None:
        assert refused(lambda: ours.verify(f"Bearer {altered}")) == "bad signature"
    else:
        assert bit == 8
        assert ours.verify(f"Bearer {altered}") == claims_to_identity(expected, ClaimNames())


@cache
def remembered_token(alg: str) -> str:
    return token(alg=alg)


# -- remembered tokens ---------------------------------------------------------------------------------------------


def test_a_verified_token_is_recalled_for_five_minutes(verifier: TokenVerifier, clock: Clock) -> None:
    header = f"Bearer {token()}"
    assert verifier.recall(header.encode()) is None
    identity = verifier.verify(header)
    assert verifier.recall(header.encode()) is identity
    assert verifier.recall(b"Bearer x") is None
    assert verifier.recall(b"") is None
    clock.ahead_s = 301
    assert verifier.recall(header.encode()) is None
    assert verifier.verify(header) == identity


def test_a_token_that_differs_only_in_its_signature_is_not_recalled(verifier: TokenVerifier) -> None:
    verifier.verify(f"Bearer {token()}")
    refused(lambda: verifier.verify(f"Bearer {parts(lambda h, p, s: f'{h}.{p}.{s[:-2]}AA')}"))


def test_memory_is_bounded(verifier: TokenVerifier) -> None:
    known = verifier._known
    identity = Identity("t", "u", expires_at=2**40)
    for i in range(MAX_REMEMBERED + 5):
        known.put(i.to_bytes(4, "big"), identity, 2**40)
        known.get((0).to_bytes(4, "big"), 0)
    assert len(known._items) == MAX_REMEMBERED
    assert known.get((0).to_bytes(4, "big"), 0) is None, "first in, first out"
    assert known.get((5).to_bytes(4, "big"), 0) is identity


# -- forgeries -----------------------------------------------------------------------------------------------------


def forged() -> str:
    return f"Bearer {token(key=rsa_key('another'))}"


def test_an_address_that_sends_forgeries_is_refused_without_a_look(verifier: TokenVerifier, clock: Clock) -> None:
    known = f"Bearer {token()}"
    verifier.verify(known, "192.0.2.1")
    for _ in range(20):
        assert refused(lambda: verifier.verify(forged(), "192.0.2.1")) == "bad signature"
    with pytest.raises(TooManyFailures) as caught:
        verifier.verify(f"Bearer {token(claims(sub='fresh'))}", "192.0.2.1")
    assert caught.value.retry_after_s in (3, 4)
    assert verifier.verify(known, "192.0.2.1").tenant == "acme", "callers known from before are not locked out"
    assert verifier.verify(f"Bearer {token(claims(sub='other'))}", "192.0.2.2").tenant == "acme"
    clock.ahead_s = 4
    assert verifier.verify(f"Bearer {token(claims(sub='fresh'))}", "192.0.2.1").tenant == "acme"


def test_one_ipv6_site_is_one_address(verifier: TokenVerifier) -> None:
    for i in range(20):
        refused(lambda i=i: verifier.verify(forged(), f"2001:db8:1:2::{i}"))
    with pytest.raises(TooManyFailures):
        verifier.verify(f"Bearer {token()}", "2001:db8:1:2:ffff::1")
    assert verifier.verify(f"Bearer {token()}", "2001:db8:1:3::1").tenant == "acme"


def test_honest_mistakes_lock_nobody_out(verifier: TokenVerifier) -> None:
    for name in ("expired", "wrong client", "no tenant", "garbled", "alg none"):
        for _ in range(30):
            refused(lambda name=name: verifier.verify(f"Bearer {HOSTILE.get(name, lambda: 'x.y')()}", "192.0.2.1"))
    assert verifier.verify(f"Bearer {token()}", "192.0.2.1").tenant == "acme"


# -- keys ----------------------------------------------------------------------------------------------------------


def test_a_storm_of_unknown_keys_fetches_once_per_30_s(verifier: TokenVerifier, issuer: Issuer, clock: Clock) -> None:
    def storm() -> None:
        for i in range(50):
            refused(lambda i=i: verifier.verify(f"Bearer {token(headers={'kid': f'k{i}'})}", f"192.0.2.{i}"))

    verifier.verify(f"Bearer {token()}")
    assert issuer.fetches == 1
    storm()
    assert issuer.fetches == 1
    clock.ahead_s = 31
    storm()
    assert issuer.fetches == 2
    clock.ahead_s = 59
    storm()
    assert issuer.fetches == 2


def test_a_rotated_key_is_found_and_a_withdrawn_one_forgotten(jwks: Jwks, issuer: Issuer, clock: Clock) -> None:
    assert jwks.find("rsa", "RS256") is not None
    issuer.body = key_set(rsa_jwk("new", rsa_key("new")))
    clock.ahead_s = 31
    assert jwks.find("new", "RS256") is not None
    assert jwks.find("rsa", "RS256") is None


def test_an_old_set_is_fetched_again_and_serves_meanwhile(jwks: Jwks, issuer: Issuer, clock: Clock) -> None:
    assert jwks.find("rsa", "RS256") is not None
    issuer.down = True
    clock.ahead_s = 24 * 3600
    for _ in range(10):
        assert jwks.find("rsa", "RS256") is not None
    assert issuer.fetches == 2
    issuer.down = False
    issuer.body = key_set(ec_jwk())
    clock.ahead_s += 31
    assert jwks.find("rsa", "RS256") is None
    assert jwks.find("ec", "ES256") is not None


def test_an_empty_or_broken_set_does_not_replace_a_good_one(jwks: Jwks, issuer: Issuer, clock: Clock) -> None:
    assert jwks.warm()
    for body in (b"", b"{}", b'{"keys": []}', b"[1]", b"[" * 100_000, b'{"keys": [{"kid": "x"}]}', b"\xff"):
        issuer.body = body
        clock.ahead_s += 601
        assert jwks.find("rsa", "RS256") is not None


def test_without_any_keys_the_issuer_is_to_blame_and_asked_again_soon(
    verifier: TokenVerifier, issuer: Issuer, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    issuer.down = True
    assert not verifier.warm()
    for _ in range(5):
        with pytest.raises(KeysUnavailable):
            verifier.verify(f"Bearer {token()}")
    assert issuer.fetches == 1
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (line["level"], line["message"], line["error"]) == ("WARNING", "signing keys could not be fetched", "down")
    issuer.down = False
    clock.ahead_s = 1.1
    assert verifier.verify(f"Bearer {token()}").tenant == "acme"


def test_many_threads_fetch_once(clock: Clock) -> None:
    release = threading.Event()
    fetches = []

    def slow(url: str) -> bytes:
        fetches.append(url)
        assert release.wait(5)
        return key_set()

    verifier = TokenVerifier(rules(), Jwks(JWKS_URL, clock=clock, fetch=slow), clock=clock)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(verifier.verify, f"Bearer {token(claims(sub=f'u{i}'))}") for i in range(8)]
        release.set()
        assert {answer.result().user for answer in answers} == {f"u{i}" for i in range(8)}
    assert fetches == [JWKS_URL]


def test_only_keys_that_may_verify_are_taken() -> None:
    private = {**rsa_jwk("private"), "d": "AQ"}
    entries = [
        rsa_jwk("good"),
        rsa_jwk("declared", alg="RS256", use="sig", key_ops=["verify"]),
        ec_jwk("ec"),
        rsa_jwk("encryption", use="enc"),
        rsa_jwk("signing-only", key_ops=["sign"]),
        rsa_jwk("other-alg", alg="RS512"),
        rsa_jwk("confused", alg="ES256"),
        rsa_jwk("symmetric", alg="HS256"),
        rsa_jwk("small", rsa_key("small", 1024)),
        {"kty": "oct", "kid": "oct", "k": "AAAA", "alg": "HS256"},
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        {"kty": "EC", "kid": "off-curve", "crv": "P-256", "x": "AQ", "y": "AQ"},
        {**ec_jwk("curve"), "crv": "P-384", "alg": "ES256"},
        {**rsa_jwk("x"), "kid": None},
        private,
    ]
    assert set(parse(json.dumps({"keys": [*entries, 7, None]}).encode())) == {
        ("good", "RS256"),
        ("declared", "RS256"),
        ("ec", "ES256"),
    }


# -- settings ------------------------------------------------------------------------------------------------------


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
        TokenRules.from_env(env)


def test_keys_come_over_https_or_from_this_machine() -> None:
    for url in ("https://id.example/keys?x=1", "http://127.0.0.1:5000/k", "http://[::1]/k", "http://localhost:1/k"):
        assert check_url(url) == url
    for url in (
        "http://id.example/k",
        "file:///etc/passwd",
        "https://",
        "https://u:p@id.example/k",
        "ftp://localhost/k",
    ):
        with pytest.raises(ValueError, match="JWKS URL"):
            check_url(url)
    hosts = emulator_hosts({"AWS_ENDPOINT_URL": "http://172.17.0.2:4566", "LOCALSTACK_HOST": "localstack:4566"})
    assert hosts == {"172.17.0.2", "localstack"}
    assert check_url("http://172.17.0.2:4566/p/.well-known/jwks.json", hosts)
