"""Looking at limits: what the next call would be told, without taking anything."""

from __future__ import annotations

from tests.contract.conftest import Driver
from tests.contract.test_limit_store import MINUTE, budget, requests, slot, tokens
from tollgate.domain.limits import Decision, Status, Take, refusal


def look(driver: Driver, *takes: Take) -> Decision:
    return driver.run(driver.store.look(driver.admission(*takes, expires_us=0)))


def test_a_look_tells_what_the_next_call_would_be_told_and_takes_nothing(driver: Driver) -> None:
    takes = requests(2), tokens(400), budget(30), slot(2)
    driver.admit(*takes)
    seen = [look(driver, requests(2), tokens(400), budget(30, seed=None), slot(2)) for _ in range(5)]
    assert {decision.status for decision in seen} == {Status.ADMITTED}
    assert [decision.granted for decision in seen] == [[0] * 4] * 5
    assert [decision.values for decision in seen] == [seen[0].values] * 5
    assert seen[0].values[2:] == [30, 1]
    assert driver.admit(*takes).admitted
    refused = look(driver, requests(2), tokens(400), budget(30, seed=None), slot(2))
    assert refused.status is Status.REFUSED
    why = refusal(driver.admission(*takes), refused)
    assert (why.take.limit.id, why.wait_us) == ("user.requests.minute", MINUTE // 2)
    driver.now += MINUTE // 2
    assert look(driver, requests(2)).admitted


def test_what_is_not_loaded_is_told_and_stays_so(driver: Driver) -> None:
    for _ in range(2):
        decision = look(driver, requests(), budget(1, seed=None))
        assert (decision.status, decision.cold) == (Status.COLD, (1,))
    assert driver.admit(requests(), budget(1, seed=None)).status is Status.COLD


def test_a_day_that_is_over_is_told(driver: Driver) -> None:
    take = budget(1)
    driver.admit(take)
    driver.now += 24 * 60 * MINUTE
    assert look(driver, take).status is Status.WINDOW


def test_versions_are_told(driver: Driver) -> None:
    driver.run(driver.store.publish(policy=7, tenants={"acme": 5}))
    decision = look(driver, requests())
    assert (decision.status, decision.policy_version, decision.tenant_version) == (Status.ADMITTED, 7, 5)
