"""API keys: their form, what proves them, and what a verifier does while nobody can look them up."""

from __future__ import annotations

import asyncio
import hmac
import re
import string
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.authorizer.handler import allow
from tollgate.authentication import ANSWERED_WITHIN_S, CACHE_VARIABLE, MAX_CACHE_S, REVOKED_WITHIN_S, bridged_s
from tollgate.bootstrap import KEYS_CACHED_S
from tollgate.domain import api_keys
from tollgate.domain.api_keys import NEVER, KeyRecord, Secret
from tollgate.domain.identity import Forged, Identity, KeysUnavailable, TooManyFailures, Unauthorized
from tollgate.local import gateway_auth
from tollgate.services.api_keys import FAILED_S, PEPPERS_AGAIN_S, REFUSED_S, KeyVerifier
from tollgate.services.authorize import Authenticator

PEPPER = b"p" * 64
NOW = 1_800_000_000
KEY = api_keys.make(b"\x01" * 9, b"\x02" * 24)
ID = api_keys.parse(KEY) or ""


def record(
    key: str = KEY, pepper: str = "1", secret: bytes = PEPPER, until: int = NEVER, **fields: object
) -> KeyRecord:
    made = KeyRecord(ID, "acme", "ann", "", (Secret(api_keys.hash_of(secret, key), pepper, until),))
    return made._replace(**fields)


def key_with(number: int) -> str:
    """Another key; with the same id for the same high half."""
    return api_keys.make(b"\x01" * 9, number.to_bytes(24, "big"))


# -- form ------------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.binary(min_size=9, max_size=9), st.binary(min_size=24, max_size=24))
def test_every_key_has_one_form_and_names_its_id(id_bytes: bytes, secret_bytes: bytes) -> None:
    key = api_keys.make(id_bytes, secret_bytes)
    assert re.fullmatch(api_keys.PATTERN, key)
    id = api_keys.parse(key)
    assert id is not None
    assert key.startswith(f"tg_{id}_")
    assert api_keys.id_of(key) == api_keys.id_of(id) == api_keys.id_of(f"tg_{id}") == id
    assert api_keys.with_secret(id, secret_bytes) == key


@settings(max_examples=50)
@given(st.integers(0, len(KEY) - 1), st.sampled_from(string.ascii_letters + string.digits + "_.-é\n "))
def test_a_typo_is_no_key(at: int, instead: str) -> None:
    typo = KEY[:at] + instead + KEY[at + 1 :]
    assert (api_keys.parse(typo) is None) == (typo != KEY)


@pytest.mark.parametrize("text", ["", "tg_", KEY[:-1], KEY + "0", KEY + "\n", " " + KEY, KEY.lower(), "tg_" + KEY])
def test_what_is_nearly_a_key_is_none(text: str) -> None:
    assert api_keys.parse(text) is None


def test_a_key_has_enough_random_bits_and_they_all_count() -> None:
    assert api_keys.SECRET_BYTES * 8 >= 128
    assert len({key_with(1 << bit) for bit in range(192)}) == 192
    with pytest.raises(ValueError, match="24 random bytes"):
        api_keys.with_secret(ID, b"short")


# -- proof -----------------------------------------------------------------------------------------------------------


def test_the_record_says_who_holds_the_key() -> None:
    kept = record(team="red", expires_at=NOW + 10, restrictions='{"models":["small"]}')
    who = api_keys.holder(kept, KEY, {"1": PEPPER}, NOW)
    assert who == Identity(
        "acme",
        "ann",
        team="red",
        key=ID,
        scopes=api_keys.SCOPES,
        expires_at=NOW + 10,
        restrictions='{"models":["small"]}',
    )
    assert KEY not in repr(kept)
    assert KEY.rpartition("_")[2] not in repr(kept)


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (record(key_with(7)), "not this API key's secret"),
        (record(pepper="2"), "not this API key's secret"),
        (record(secret=b"q" * 64), "not this API key's secret"),
        (record(secrets=()), "not this API key's secret"),
        (record(revoked=True), "revoked API key"),
        (record(expires_at=NOW), "expired API key"),
        (record(until=NOW), "an API key's old secret"),
    ],
)
def test_nobody_else_holds_it(kept: KeyRecord, reason: str) -> None:
    with pytest.raises(Unauthorized) as refused:
        api_keys.holder(kept, KEY, {"1": PEPPER}, NOW)
    assert refused.value.reason == reason
    # only what no honest client can send counts against its address
    assert isinstance(refused.value, Forged) == (reason == "not this API key's secret")


def test_a_wrong_secret_does_not_learn_that_the_key_is_revoked() -> None:
    with pytest.raises(Forged):
        api_keys.holder(record(key_with(7), revoked=True), KEY, {"1": PEPPER}, NOW)


def test_while_a_key_is_rotated_both_secrets_are_good_each_for_its_time() -> None:
    new, other_pepper = key_with(7), b"r" * 64
    secrets = (Secret(api_keys.hash_of(other_pepper, new), "2"), Secret(api_keys.hash_of(PEPPER, KEY), "1", NOW + 60))
    kept, peppers = record(secrets=secrets), {"1": PEPPER, "2": other_pepper}
    assert api_keys.holder(kept, new, peppers, NOW).expires_at == NEVER
    assert api_keys.holder(kept, KEY, peppers, NOW).expires_at == NOW + 60
    with pytest.raises(Unauthorized):
        api_keys.holder(kept, KEY, peppers, NOW + 60)
    assert api_keys.holder(kept, new, peppers, NOW + 60).key == ID


def test_every_secret_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    hashed = api_keys.hash_of(PEPPER, KEY)
    api_keys.holder(record(secrets=(Secret(hashed, "1"), Secret("0" * 64, "1"))), KEY, {"1": PEPPER}, NOW)
    # also after one has fitted
    assert compared == [(hashed, hashed), (hashed, "0" * 64)]


# -- verifying -------------------------------------------------------------------------------------------------------


class Records:
    """A table of keys that can break."""

    def __init__(self, *kept: KeyRecord) -> None:
        self.kept = {one.id: one for one in kept}
        self.known_peppers: Mapping[str, bytes] = {"1": PEPPER}
        self.broken = False
        self.finds = 0
        self.reads = 0

    def find(self, id: str) -> KeyRecord | None:
        self.finds += 1
        if self.broken:
            raise KeysUnavailable("the table is away")
        return self.kept.get(id)

    def peppers(self) -> Mapping[str, bytes]:
        self.reads += 1
        if self.broken:
            raise KeysUnavailable("no peppers")
        return self.known_peppers


def verifier(records: Records) -> KeyVerifier:
    made = KeyVerifier(records, remember_s=0, outage_s=60)
    made.warm()
    return made


def test_it_recognises_keys_and_leaves_tokens_to_others() -> None:
    known = verifier(Records())
    assert known.recognises(KEY)
    assert not known.recognises("eyJhbGciOiJSUzI1NiJ9.e30.c2ln")


def test_a_mistyped_key_costs_nothing() -> None:
    records = Records(record())
    for at in range(3, len(KEY)):
        typo = KEY[:at] + ("x" if KEY[at] != "x" else "y") + KEY[at + 1 :]
        with pytest.raises(Unauthorized) as refused:
            verifier(records).verify(typo, NOW)
        assert not isinstance(refused.value, Forged)
    assert records.finds == 0


def test_a_revocation_is_felt_with_the_next_look() -> None:
    records = Records(record())
    known = verifier(records)
    assert known.verify(KEY, NOW).tenant == "acme"
    records.kept[ID] = record(revoked=True)
    with pytest.raises(Unauthorized, match="Unauthorized"):
        known.verify(KEY, NOW)


def test_a_revocation_is_felt_within_a_minute_behind_api_gateway_and_in_a_container() -> None:
    """API Gateway remembers and the function does not; `tollgate serve` remembers for as long."""
    now = float(NOW)

    def authenticator(remember_s: int) -> tuple[Authenticator, Records]:
        records = Records(record())
        known = KeyVerifier(records, remember_s=remember_s, outage_s=REVOKED_WITHIN_S - remember_s)
        return Authenticator([known], clock=lambda: now), records

    async def behind_api_gateway() -> None:
        nonlocal now
        function, records = authenticator(0)

        async def invoke(event: Mapping[str, Any]) -> Any:
            try:
                return allow(function.verify(KEY.encode(), ""), event["methodArn"])
            except Unauthorized:
                raise Exception("Unauthorized") from None

        gateway = gateway_auth.Authorizer(invoke, clock=lambda: now)
        event = {"methodArn": "arn:aws:execute-api:us-east-1:1:api/live/POST/anthropic/v1/messages"}
        await gateway.check(KEY, event)
        records.kept[ID] = record(revoked=True)
        now += gateway_auth.CACHE_S - 1
        assert (await gateway.check(KEY, event))["key"] == ID
        now += 1
        with pytest.raises(gateway_auth.NotAuthenticated):
            await gateway.check(KEY, event)

    asyncio.run(behind_api_gateway())
    serving, records = authenticator(KEYS_CACHED_S)
    serving.verify(KEY.encode(), "")
    records.kept[ID] = record(revoked=True)
    now += KEYS_CACHED_S - 1
    assert serving.recall(KEY.encode()) is not None
    now += 1
    assert serving.recall(KEY.encode()) is None
    with pytest.raises(Unauthorized):
        serving.verify(KEY.encode(), "")


def test_in_a_container_not_even_an_outage_prolongs_a_revoked_key() -> None:
    now = float(NOW)
    records = Records(record())
    known = KeyVerifier(records, remember_s=KEYS_CACHED_S, outage_s=REVOKED_WITHIN_S - KEYS_CACHED_S)
    serving = Authenticator([known], clock=lambda: now)
    serving.verify(KEY.encode(), "")
    records.broken = True
    served_until = 0.0
    for now in range(NOW, NOW + 300):
        try:
            assert serving.recall(KEY.encode()) or serving.verify(KEY.encode(), "")
            served_until = now - NOW
        except KeysUnavailable:
            continue
    assert KEYS_CACHED_S < served_until < REVOKED_WITHIN_S


class BehindApiGateway:
    """The authorizer function before a table that can break, and API Gateway before it, in virtual time."""

    def __init__(self, cache_s: int) -> None:
        self.now = float(NOW)
        self.records = Records(record())
        known = KeyVerifier(self.records, remember_s=0, outage_s=bridged_s({CACHE_VARIABLE: str(cache_s)}))
        self._function = Authenticator([known], clock=lambda: self.now)
        self._gateway = gateway_auth.Authorizer(self._invoke, cache_s=cache_s, clock=lambda: self.now)

    async def _invoke(self, event: Mapping[str, Any]) -> Any:
        try:
            answer = allow(self._function.verify(KEY.encode(), ""), event["methodArn"])
        except Unauthorized:
            raise Exception("Unauthorized") from None
        if self.records.broken:  # as long as the function may take to find out
            self.now += ANSWERED_WITHIN_S
        return answer

    def serves(self) -> bool:
        """Whether a request now is let through; taking its time."""
        event = {"methodArn": "arn:aws:execute-api:us-east-1:1:api/live/POST/v1/messages"}
        try:
            asyncio.run(self._gateway.check(KEY, event))
        except (gateway_auth.NotAuthenticated, gateway_auth.AuthorizerFailed):
            return False
        return True


@pytest.mark.parametrize("cache_s", [0, 1, gateway_auth.CACHE_S, 30, MAX_CACHE_S])
def test_behind_api_gateway_not_even_an_outage_prolongs_a_revoked_key(cache_s: int) -> None:
    """The worst case: revoked as soon as it was read, and from some moment on the table cannot be read."""
    for broken_from in range(0, REVOKED_WITHIN_S, 11):
        gateway = BehindApiGateway(cache_s)
        assert gateway.serves()
        gateway.records.kept[ID] = record(revoked=True)
        for second in range(2 * REVOKED_WITHIN_S):
            gateway.now = max(gateway.now, NOW + second)
            gateway.records.broken = second >= broken_from
            if gateway.serves():
                assert gateway.now - NOW <= REVOKED_WITHIN_S


def test_a_short_outage_is_not_felt_by_a_key_in_use_behind_api_gateway() -> None:
    for broken_from in range(1, 2 * gateway_auth.CACHE_S, 3):
        gateway = BehindApiGateway(gateway_auth.CACHE_S)
        for second in range(2 * REVOKED_WITHIN_S):
            gateway.now = max(gateway.now, NOW + second)
            gateway.records.broken = broken_from <= second < broken_from + gateway_auth.CACHE_S
            assert gateway.serves(), (broken_from, second)


@pytest.mark.parametrize("text", ["51", "-1", "x", "1.5"])
def test_a_memory_of_api_gateways_that_is_too_long_stops_a_start(text: str) -> None:
    with pytest.raises(ValueError, match=CACHE_VARIABLE):
        bridged_s({CACHE_VARIABLE: text})


def test_where_nobody_says_how_long_api_gateway_remembers_nothing_is_bridged() -> None:
    assert bridged_s({}) == 0


def test_a_key_that_was_refused_is_refused_again_without_a_look() -> None:
    records = Records(record(revoked=True))
    known = verifier(records)
    for second in range(REFUSED_S):
        with pytest.raises(Unauthorized):
            known.verify(KEY, NOW + second)
    assert records.finds == 1
    with pytest.raises(Unauthorized):
        known.verify(KEY, NOW + REFUSED_S)
    assert records.finds == 2


def test_made_up_keys_are_looked_up_only_so_often_from_one_address() -> None:
    records = Records(record())
    authenticator = Authenticator([verifier(records)], forged_per_minute=20, clock=lambda: NOW)
    outcomes: list[str] = []
    for number in range(500):
        # half of them for an id that is there
        made_up = key_with(number) if number % 2 else api_keys.make(number.to_bytes(9, "big"), b"\x03" * 24)
        try:
            authenticator.verify(made_up.encode(), "192.0.2.1")
        except Unauthorized as refused:
            outcomes.append(type(refused).__name__)
    assert outcomes == ["Forged"] * 20 + ["TooManyFailures"] * 480
    assert records.finds == 20
    # neither does another address suffer
    assert authenticator.verify(KEY.encode(), "192.0.2.2").tenant == "acme"


def test_a_key_that_was_good_is_not_locked_out_by_forgeries_from_its_address() -> None:
    now = float(NOW)
    records = Records(record())
    authenticator = Authenticator([verifier(records)], clock=lambda: now)  # which remembers no identity
    assert authenticator.verify(KEY.encode(), "192.0.2.1").tenant == "acme"
    for number in range(30):
        with pytest.raises(Unauthorized):
            authenticator.verify(key_with(number).encode(), "192.0.2.1")
    assert authenticator.verify(KEY.encode(), "192.0.2.1").tenant == "acme"
    # it is verified all the same
    records.kept[ID] = record(revoked=True)
    with pytest.raises(Unauthorized) as refused:
        authenticator.verify(KEY.encode(), "192.0.2.1")
    assert refused.value.reason == "revoked API key"


def test_an_honest_client_with_a_revoked_key_does_not_lock_out_its_neighbours() -> None:
    neighbour = api_keys.make(b"\x05" * 9, b"\x06" * 24)
    good = record(neighbour, id=api_keys.parse(neighbour))
    authenticator = Authenticator([verifier(Records(record(revoked=True), good))], clock=lambda: NOW)
    for _ in range(100):
        with pytest.raises(Unauthorized) as refused:
            authenticator.verify(KEY.encode(), "192.0.2.1")
        assert not isinstance(refused.value, TooManyFailures)
    assert authenticator.verify(neighbour.encode(), "192.0.2.1").key == good.id


def test_while_the_table_is_away_good_keys_serve_for_a_while_and_new_ones_are_nobodys_fault() -> None:
    records = Records(record())
    known = verifier(records)
    known.verify(KEY, NOW)
    records.broken = True
    assert known.verify(KEY, NOW + 59).tenant == "acme"
    with pytest.raises(KeysUnavailable):
        known.verify(api_keys.make(b"\x07" * 9, b"\x08" * 24), NOW + 59)
    with pytest.raises(KeysUnavailable):
        known.verify(KEY, NOW + 61)
    # neither a revoked key's secret nor a wrong one gets in meanwhile
    with pytest.raises(Forged):
        verifier_with_known(records).verify(key_with(7), NOW + 1)
    records.broken = False
    assert known.verify(KEY, NOW + 63).tenant == "acme"


def verifier_with_known(records: Records) -> KeyVerifier:
    """One that has seen the key, and whose table is away since."""
    records.broken = False
    made = verifier(records)
    made.verify(KEY, NOW)
    records.broken = True
    return made


def test_a_table_that_is_away_is_asked_once_a_second() -> None:
    records = Records(record())
    known = verifier_with_known(records)
    records.finds = 0
    for _ in range(50):
        known.verify(KEY, NOW + 1)
    assert records.finds == 1
    known.verify(KEY, NOW + 1 + FAILED_S)
    assert records.finds == 2


def test_a_pepper_that_was_added_since_is_read_and_not_at_every_request() -> None:
    records = Records(record(pepper="2"))
    known = verifier(records)
    for _ in range(20):
        with pytest.raises(KeysUnavailable):
            known.verify(KEY, NOW)
    assert records.reads == 2
    records.known_peppers = {"1": b"other" * 10, "2": PEPPER}
    assert known.verify(KEY, NOW + PEPPERS_AGAIN_S).tenant == "acme"


def test_without_peppers_nobody_gets_in_and_it_is_not_the_callers_fault() -> None:
    records = Records(record())
    records.broken = True
    known = KeyVerifier(records, remember_s=0, outage_s=60)
    assert not known.warm()
    with pytest.raises(KeysUnavailable):
        known.verify(KEY, NOW)
