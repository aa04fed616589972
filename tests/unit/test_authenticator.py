"""What is remembered, and who is not listened to."""

from __future__ import annotations

import pytest

from tests.hostile_tokens import HOSTILE, parts
from tests.tokens import Clock, KeySet, authenticator, claims, refused, rsa_key, token
from tollgate.domain.identity import Identity, TooManyFailures
from tollgate.services.authorize import FAILED_PER_MINUTE, GOOD_LATELY_S, MAX_REMEMBERED, Authenticator
from tollgate.wire.credentials import presented


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(clock: Clock) -> Authenticator:
    return authenticator(KeySet(), clock)


# -- what a request presents ---------------------------------------------------------------------------------------


def test_the_schemes_case_does_not_matter() -> None:
    assert presented([b"Bearer a.b.c"]) == presented([b"bEARER  a.b.c "]) == b"a.b.c"


@pytest.mark.parametrize(
    "headers", [[], [b""], [b"Basic dXNlcjpwYXNz"], [b"Token x"], [b"Bearer\tx.y.z"], [b"a.b.c"], [b"Bearer x"] * 2]
)
def test_other_headers_are_refused(headers: list[bytes]) -> None:
    refused(lambda: presented(headers))


@pytest.mark.parametrize("credential", [b"", b"x" * 8193, "é".encode(), b"\xff", b"a b", b"a"])
def test_what_is_no_credential_is_refused(known: Authenticator, credential: bytes) -> None:
    refused(lambda: known.verify(credential))


# -- what is remembered --------------------------------------------------------------------------------------------


def test_a_verified_token_is_recalled_for_five_minutes(known: Authenticator, clock: Clock) -> None:
    credential = token().encode()
    assert known.recall(credential) is None
    identity = known.verify(credential)
    assert known.recall(credential) is identity
    assert known.recall(b"x") is None
    assert known.recall(b"") is None
    clock.ahead_s = 301
    assert known.recall(credential) is None
    assert known.verify(credential) == identity


def test_a_token_that_differs_only_in_its_signature_is_not_recalled(known: Authenticator) -> None:
    known.verify(token().encode())
    refused(lambda: known.verify(parts(lambda h, p, s: f"{h}.{p}.{s[:-2]}AA").encode()))


def test_memory_is_bounded(known: Authenticator) -> None:
    memory = known._known
    identity = Identity("t", "u", expires_at=2**40)
    for i in range(MAX_REMEMBERED + 5):
        memory.put(i.to_bytes(4, "big"), (identity, 2**40))
        memory.holder((0).to_bytes(4, "big"), 0)
    assert len(memory._items) == MAX_REMEMBERED
    assert memory.holder((0).to_bytes(4, "big"), 0) is None, "first in, first out"
    assert memory.holder((5).to_bytes(4, "big"), 0) is identity


def test_tokens_that_were_replaced_are_not_remembered_until_there_is_no_room(
    known: Authenticator, clock: Clock
) -> None:
    """Everybody has a new one after some minutes: memory stays what one set of tokens takes."""
    for round in range(4):
        for number in range(20):
            credential = token(claims(jti=f"{round}.{number}")).encode()
            assert known.recall(credential) is None
            known.verify(credential)
            assert known.recall(credential) is not None
        clock.ahead_s += GOOD_LATELY_S
        assert len(known._known) == len(known._good_lately) == 20


# -- forgeries -----------------------------------------------------------------------------------------------------


def forged() -> bytes:
    return token(key=rsa_key("another")).encode()


def good(**changes: str) -> bytes:
    return token(claims(**changes)).encode()


def test_an_address_that_sends_forgeries_is_refused_without_a_look(known: Authenticator, clock: Clock) -> None:
    friend = good()
    known.verify(friend, "192.0.2.1")
    for _ in range(20):
        assert refused(lambda: known.verify(forged(), "192.0.2.1")) == "bad signature"
    with pytest.raises(TooManyFailures) as caught:
        known.verify(good(sub="fresh"), "192.0.2.1")
    assert caught.value.retry_after_s in (3, 4)
    assert known.verify(friend, "192.0.2.1").tenant == "acme", "callers known from before are not locked out"
    assert known.verify(good(sub="other"), "192.0.2.2").tenant == "acme"
    clock.ahead_s = 4
    assert known.verify(good(sub="fresh"), "192.0.2.1").tenant == "acme"


def test_one_ipv6_site_is_one_address(known: Authenticator) -> None:
    for i in range(20):
        refused(lambda i=i: known.verify(forged(), f"2001:db8:1:2::{i}"))
    with pytest.raises(TooManyFailures):
        known.verify(good(), "2001:db8:1:2:ffff::1")
    assert known.verify(good(), "2001:db8:1:3::1").tenant == "acme"


def test_an_address_that_does_nothing_but_fail_is_refused_without_a_look(known: Authenticator, clock: Clock) -> None:
    friend = good()
    known.verify(friend, "192.0.2.1")
    garbage = [b"x.y", b"x" * 9000, "é".encode(), b"", b"a.b.c"]
    for i in range(FAILED_PER_MINUTE):
        assert "too many" not in refused(lambda i=i: known.verify(garbage[i % 5], "192.0.2.1"))
    with pytest.raises(TooManyFailures):
        known.verify(good(sub="fresh"), "192.0.2.1")
    assert known.verify(friend, "192.0.2.1").tenant == "acme"
    assert known.verify(good(sub="fresh"), "192.0.2.2").tenant == "acme"
    clock.ahead_s = 1
    assert known.verify(good(sub="fresher"), "192.0.2.1").tenant == "acme"


def test_honest_mistakes_lock_nobody_out(known: Authenticator) -> None:
    for name in ("expired", "wrong client", "no tenant", "garbled", "alg none"):
        for _ in range(30):
            refused(lambda name=name: known.verify(HOSTILE.get(name, lambda: "x.y")().encode(), "192.0.2.1"))
    assert known.verify(good(), "192.0.2.1").tenant == "acme"
