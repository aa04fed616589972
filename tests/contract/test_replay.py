"""A settlement that is made again from its usage record is the one that the proxy would have made."""

from __future__ import annotations

import json
from itertools import permutations

import pytest

from tests.contract.conftest import Driver
from tests.contract.test_limit_store import MINUTE, NOON, TENANT, USER, budget, requests, slot, tokens
from tests.records import a_close
from tollgate.domain import keys
from tollgate.domain.limits import Rate, RateTake, Scope, Settlement, Take, Unit, hold_expiry_us
from tollgate.domain.records import BadRecord, UsageClose
from tollgate.domain.replay import settlement_of
from tollgate.domain.takes import Takes

USED: list[int | None] = [None, 300, 300, 300, 40, 0]


def takes() -> list[Take]:
    """In the order of an admission; of every scope that a hash tag tells."""
    address, everyone = keys.ip_subject("2001:db8:1234:5678::1"), keys.global_subject("model:small")
    shared = Rate(Scope.GLOBAL, Unit.TOKENS, 1000, MINUTE, 1000, "global.tokens.minute")
    by_address = Rate(Scope.IP, Unit.TOKENS, 1000, MINUTE, 1000, "ip.tokens.minute")
    return [
        requests(10),
        tokens(1000),
        RateTake(address, f"{address}:tokens.minute", by_address, 1000, 1000),
        RateTake(everyone, f"{everyone}:tokens.minute", shared, 1000, 1000),
        budget(100),
        slot(1),
    ]


def record(id: str, taken: list[Take], used: list[int | None], store: str = "") -> UsageClose:
    """As the proxy writes it, and metering reads it."""
    settlement = Settlement(id, taken, used, "acme")
    told = tuple((take.kind, take.key, amount) for take, amount in zip(taken, used, strict=True))
    close = a_close(
        id, settle=told, rates_us=tuple(Takes.of(settlement.takes).settled_us(settlement.used)), store=store
    )
    return UsageClose.parse(json.loads(json.dumps(close.as_dict())))


def replay(driver: Driver, *closes: UsageClose) -> int:
    settlements = [settlement for close in closes if (settlement := settlement_of(close)) is not None]
    assert all(settlement.late for settlement in settlements), "the ledger may know them: their batch may come again"
    return driver.run(driver.store.replay(settlements))


def test_what_was_lost_is_settled_once(driver: Driver) -> None:
    taken = takes()
    assert driver.admit(*taken, id="lost").admitted
    close = record("lost", taken, USED)
    assert not driver.admit(slot(1)).admitted
    assert replay(driver, close) == 1
    assert replay(driver, close, close) == 0
    assert not driver.settle("lost", taken, USED)
    assert driver.admit(slot(1)).admitted
    for rate in taken[1:4]:
        assert isinstance(rate, RateTake)
        fits = RateTake(rate.subject, rate.key, rate.limit, 700, 700)
        assert driver.admit(fits).admitted, rate.key
        assert not driver.admit(RateTake(rate.subject, rate.key, rate.limit, 10, 10)).admitted, rate.key
    assert driver.admit(budget(60)).admitted
    assert not driver.admit(budget(1)).admitted


def test_what_the_proxy_has_settled_is_left_alone(driver: Driver) -> None:
    taken = takes()
    driver.admit(*taken, id="done")
    assert driver.settle("done", taken, USED)
    assert replay(driver, record("done", taken, USED), record("unheard-of", taken, USED)) == 0
    assert driver.admit(budget(60)).admitted
    assert not driver.admit(budget(1)).admitted


def test_a_hold_that_has_expired_is_left_to_the_floor(driver: Driver) -> None:
    taken: list[Take] = [tokens(100), budget(100)]
    driver.admit(*taken, id="late", expires_us=MINUTE)
    driver.now = hold_expiry_us(driver.now, MINUTE)
    assert replay(driver, record("late", taken, [100, 40])) == 0
    assert driver.admit(budget(100)).admitted


def test_many_are_looked_at_and_the_few_that_are_held_settled(driver: Driver) -> None:
    closes: list[UsageClose] = []
    for i in range(1200):
        taken: list[Take] = [budget(1), slot(5)]
        if i % 400 == 0:
            assert driver.admit(*taken, id=f"{i}").admitted
        closes.append(record(f"{i}", taken, [2, 0]))
    assert replay(driver, *closes) == 3
    assert driver.admit(budget(94)).admitted
    assert not driver.admit(budget(1)).admitted


def test_a_record_that_lies_about_its_takes_moves_nothing_else(driver: Driver) -> None:
    taken: list[Take] = [tokens(100), budget(10)]
    driver.admit(*taken, id="a")
    assert replay(driver, record("b", taken, [1, 1])) == 0
    assert driver.admit(budget(90)).admitted


class TestReading:
    def test_a_record_without_what_rates_were_settled_with_is_not_replayed(self) -> None:
        old = a_close("a", settle=(("r", f"{USER}:tokens.minute", 7), ("b", f"{TENANT}:b:tokens.day:2026-11-21", 7)))
        assert settlement_of(old) is None
        assert settlement_of(a_close("a")) is None
        assert settlement_of(a_close("a", settle=(("b", "no braces", 7),))) is None

    def test_a_record_of_what_no_store_can_count_is_not_read(self) -> None:
        told = a_close("a", settle=(("r", f"{USER}:tokens.minute", 7),), rates_us=(2**53 - 1,))
        line = json.loads(json.dumps(told.as_dict()))
        assert settlement_of(UsageClose.parse(line)) is not None
        for wrong in (2**53, -1):
            with pytest.raises(BadRecord, match="rates_us"):
                UsageClose.parse(line | {"rates_us": [wrong]})

    def test_a_record_in_no_stores_order_is_not_replayed(self) -> None:
        told = (
            ("r", f"{USER}:requests", None),
            ("b", f"{TENANT}:b:tokens.day:2026-11-21", 7),
            ("c", f"{TENANT}:slots", 0),
        )
        assert settlement_of(a_close("a", settle=told)) is not None
        for wrong in permutations(told):
            assert wrong == told or settlement_of(a_close("a", settle=wrong)) is None

    def test_whose_a_take_is_stands_in_its_key(self) -> None:
        subjects = {
            keys.ip_subject("192.0.2.1"): Scope.IP,
            keys.ip_subject("2001:db8:1234:5678::1"): Scope.IP,
            keys.ip_subject("nonsense"): Scope.IP,
            keys.global_subject(): Scope.GLOBAL,
            keys.global_subject("model:small"): Scope.GLOBAL,
            TENANT: Scope.TENANT,
            keys.member_subject("acme", "u", "ann"): Scope.USER,
            keys.member_subject("acme", "k", "k1"): Scope.KEY,
            keys.member_subject("acme", "t", "red"): Scope.TEAM,
        }
        for subject, scope in subjects.items():
            settlement = settlement_of(a_close(settle=(("c", f"{subject}:slots", 0),), ts_us=NOON))
            assert settlement is not None
            (take,) = settlement.takes
            assert (take.subject, take.limit.scope) == (subject, scope)
