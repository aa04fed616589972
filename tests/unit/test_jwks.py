"""The issuer's keys: fetched seldom, replaced in time, and only those that may verify."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tests.tokens import (
    JWKS_URL,
    Clock,
    KeySet,
    authenticator,
    b64,
    claims,
    ec_jwk,
    key_set,
    refused,
    rsa_jwk,
    rsa_key,
    token,
)  # fmt: skip
from tollgate.adapters.jwks import MAX_WAITING, FetchFailed, Jwks, check_url, emulator_hosts, parse
from tollgate.domain.identity import KeysUnavailable, Unauthorized
from tollgate.services.authorize import Authenticator


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def issuer() -> KeySet:
    return KeySet()


@pytest.fixture
def jwks(issuer: KeySet, clock: Clock) -> Jwks:
    return Jwks(JWKS_URL, clock=clock, fetch=issuer)


@pytest.fixture
def known(issuer: KeySet, clock: Clock) -> Authenticator:
    return authenticator(issuer, clock)


def unknown_key_ids(count: int) -> Iterator[bytes]:
    """Tokens of key ids that nobody has, each with claims that pass (and a signature that nothing will look at)."""
    body, signature = token().split(".")[1:]
    for i in range(count):
        yield f"{b64(json.dumps({'alg': 'RS256', 'kid': f'k{i}'}))}.{body}.{signature}".encode()


def test_ten_thousand_unknown_key_ids_fetch_once_per_30_s_and_concern_nobody_else(
    known: Authenticator, issuer: KeySet, clock: Clock
) -> None:
    friends = [token(claims(sub=f"u{i}")).encode() for i in range(100)]
    fetched_at = []
    for i, credential in enumerate(unknown_key_ids(10_000)):
        clock.ahead_s = i * 0.03  # five minutes
        before = issuer.fetches
        with pytest.raises(Unauthorized):
            known.verify(credential, f"2001:db8:{i:x}::1")
        if issuer.fetches > before:
            fetched_at.append(clock.ahead_s)
        if i % 100 == 0:
            assert known.verify(friends[i // 100], "192.0.2.1").user == f"u{i // 100}"
    assert all(later - earlier >= 30 for earlier, later in pairwise(fetched_at))
    assert len(fetched_at) == issuer.fetches == 10


def test_a_storm_while_the_issuer_hangs_leaves_threads_for_everybody_else(jwks: Jwks, clock: Clock) -> None:
    release = threading.Event()

    def hanging(url: str) -> bytes:
        assert release.wait(30)
        return key_set()

    assert jwks.ready()
    jwks._fetch = hanging
    clock.ahead_s = 3600
    with ThreadPoolExecutor(MAX_WAITING + 1) as pool:
        waiting = [pool.submit(jwks.find, f"k{i}", "RS256") for i in range(MAX_WAITING)]
        while jwks._waiting._value:  # type: ignore[attr-defined]  # asyncio tells nobody
            assert not any(found.done() for found in waiting)
        assert jwks.find("one more", "RS256") is None, "answered at once, from what is known"
        assert jwks.find("rsa", "RS256") is not None, "and so is whoever has a good key"
        release.set()
        assert [found.result() for found in waiting] == [None] * MAX_WAITING


def test_a_rotated_key_is_found_and_a_withdrawn_one_forgotten(jwks: Jwks, issuer: KeySet, clock: Clock) -> None:
    assert jwks.find("rsa", "RS256") is not None
    issuer.body = key_set(rsa_jwk("new", rsa_key("new")))
    clock.ahead_s = 31
    assert jwks.find("new", "RS256") is not None
    assert jwks.find("rsa", "RS256") is None


def test_an_issuer_down_for_an_hour_hurts_nobody_and_its_new_key_counts_within_30_s(
    known: Authenticator, issuer: KeySet, clock: Clock
) -> None:
    assert known.verify(token().encode()).tenant == "acme"
    issuer.down = True
    for minute in range(1, 61):
        clock.ahead_s = minute * 60
        fresh = token(claims(sub=f"u{minute}", iat=clock(), exp=clock() + 60))
        assert known.verify(fresh.encode()).user == f"u{minute}"
    assert issuer.fetches <= 60, "asked, but no more than twice a minute"
    issuer.body = key_set(rsa_jwk("new", rsa_key("new")))
    issuer.down = False
    published = clock.ahead_s
    while True:
        clock.ahead_s += 1
        rotated = token(claims(exp=clock() + 60), key=rsa_key("new"), headers={"kid": "new"})
        try:
            known.verify(rotated.encode())
            break
        except Unauthorized:
            assert clock.ahead_s < published + 30
    refused(lambda: known.verify(token(claims(sub="late", exp=clock() + 60)).encode()))


def test_a_key_that_could_not_be_fetched_is_no_forgery(known: Authenticator, issuer: KeySet, clock: Clock) -> None:
    known.warm()
    issuer.down = True
    clock.ahead_s = 60
    rotated = token(claims(exp=clock() + 3600), key=rsa_key("new"), headers={"kid": "new"}).encode()
    for _ in range(30):
        assert refused(lambda: known.verify(rotated, "192.0.2.1")) == "unknown signing key"
    issuer.down, issuer.body = False, key_set(rsa_jwk("new", rsa_key("new")))
    clock.ahead_s = 91
    assert known.verify(rotated, "192.0.2.1").tenant == "acme"


def test_an_old_set_is_fetched_again_and_serves_meanwhile(jwks: Jwks, issuer: KeySet, clock: Clock) -> None:
    assert jwks.find("rsa", "RS256") is not None
    issuer.down = True
    clock.ahead_s = 24 * 3600
    for _ in range(10):
        assert jwks.find("rsa", "RS256") is not None
    assert issuer.fetches == 2
    issuer.down = False
    issuer.body = key_set(ec_jwk())
    clock.ahead_s += 31
    jwks.find("rsa", "RS256")
    assert jwks.ready()
    assert jwks.find("rsa", "RS256") is None
    assert jwks.find("ec", "ES256") is not None


def test_an_empty_or_broken_set_does_not_replace_a_good_one(jwks: Jwks, issuer: KeySet, clock: Clock) -> None:
    assert jwks.ready()
    for body in (b"", b"{}", b'{"keys": []}', b"[1]", b"[" * 100_000, b'{"keys": [{"kid": "x"}]}', b"\xff"):
        issuer.body = body
        clock.ahead_s += 601
        assert jwks.find("rsa", "RS256") is not None


def test_without_any_keys_the_issuer_is_to_blame_and_asked_again_soon(
    known: Authenticator, issuer: KeySet, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    issuer.down = True
    assert not known.warm()
    for _ in range(5):
        with pytest.raises(KeysUnavailable):
            known.verify(token().encode())
    assert issuer.fetches == 1
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (line["level"], line["message"], line["error"]) == ("WARNING", "signing keys could not be fetched", "down")
    issuer.down = False
    clock.ahead_s = 1.1
    assert known.verify(token().encode()).tenant == "acme"


def test_many_threads_fetch_once(clock: Clock) -> None:
    release = threading.Event()
    fetches = []

    def slow(url: str) -> bytes:
        fetches.append(url)
        assert release.wait(5)
        return key_set()

    known = authenticator(slow, clock)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(known.verify, token(claims(sub=f"u{i}")).encode()) for i in range(8)]
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
        {**rsa_jwk("even"), "n": b64((rsa_key().public_key().public_numbers().n - 1).to_bytes(256))},
        *({**rsa_jwk(f"exponent-{e}"), "e": b64(e.to_bytes(3))} for e in (0, 1, 2, 3, 65_535, 65_538)),
        {"kty": "OKP", "kid": "x25519", "crv": "X25519", "x": b64(bytes(31) + b"\x09")},
        {"kty": "OKP", "kid": "short", "crv": "Ed25519", "x": b64(bytes(31))},
    ]
    assert set(parse(json.dumps({"keys": [*entries, 7, None]}).encode())) == {
        ("good", "RS256"),
        ("declared", "RS256"),
        ("ec", "ES256"),
    }


def test_a_key_of_small_order_is_none() -> None:
    """Libraries take it, and a signature that needs no secret fits it."""
    p = 2**255 - 19
    order_8 = int.from_bytes(
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
    )
    taken = Ed25519PublicKey.from_public_bytes(int.to_bytes(1, 32, "little"))
    taken.verify(int.to_bytes(1, 32, "little") + bytes(32), b"whatever")
    for y in (0, 1, p - 1, order_8, p - order_8, p, p + 1, 2**255 - 1):
        for sign in (0, 1 << 255):
            entry = {"kty": "OKP", "kid": "small", "crv": "Ed25519", "x": b64((y | sign).to_bytes(32, "little"))}
            with pytest.raises(FetchFailed, match="no usable key"):
                parse(json.dumps({"keys": [entry]}).encode())


def test_an_ed25519_signature_has_one_form() -> None:
    """Not S + L, which is the same number to whoever forgets to check (RFC 8032, 5.1.7)."""
    key = Ed25519PrivateKey.generate()
    raw = key.public_key().public_bytes_raw()
    (ours,) = parse(key_set({"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": b64(raw)})).values()
    signature = key.sign(b"message")
    order = 2**252 + 27742317777372353535851937790883648493
    shifted = int.from_bytes(signature[32:], "little") + order
    assert ours.verify(b"message", signature)
    for bad in (
        signature[:32] + shifted.to_bytes(32, "little"),
        signature[:32] + bytes(32),
        bytes(64),
        int.to_bytes(1, 32, "little") + bytes(32),
        signature + b"\0",
        signature[:63],
        b"",
    ):
        assert not ours.verify(b"message", bad)


def test_of_two_keys_with_one_id_neither_is_an_error() -> None:
    """An issuer should not publish them; whatever it does, its other keys serve."""
    found = parse(key_set(rsa_jwk("twice"), rsa_jwk("twice", rsa_key("another")), ec_jwk("twice"), rsa_jwk("good")))
    assert set(found) == {("twice", "RS256"), ("twice", "ES256"), ("good", "RS256")}


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
