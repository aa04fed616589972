"""Administrators: the user pool is asked whether they still are, seldom, and who cannot be confirmed sees nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from tests.tokens import claims, rules
from tests.unit.test_standing import BOB, Source, told
from tollgate.adapters.aws import AwsClient, AwsError
from tollgate.adapters.http import UpstreamError
from tollgate.adapters.pool_administrators import KEPT_S, PoolAdministrators
from tollgate.domain.identity import Unauthorized
from tollgate.ports import AdministratorsUnavailable
from tollgate.services.administration import STATUS, Administration
from tollgate.services.directory import Directory

NOW = 1_795_262_400
GROUP = "tollgate-admins"


class Cognito:
    """As much of a user pool as is asked for."""

    def __init__(self) -> None:
        self.users = {"ann": True, "bob": True}
        self.groups = {"ann": [f"g{i}" for i in range(70)] + [GROUP], "bob": ["g1"]}
        self.calls: list[str] = []
        self.failure: Exception | None = None

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        self.calls.append(operation)
        if self.failure is not None:
            raise self.failure
        name = payload["Username"]
        if name not in self.users:
            raise AwsError("UserNotFoundException", "User does not exist.", 400, {})
        if operation == "AdminGetUser":
            return {"Username": name, "Enabled": self.users[name]}
        begin = int(payload.get("NextToken", 0))
        end = begin + payload["Limit"]
        page = {"Groups": [{"GroupName": group} for group in self.groups[name][begin:end]]}
        return page | ({"NextToken": str(end)} if end < len(self.groups[name]) else {})


class Pool:
    """The adapter, with a clock that tests set."""

    def __init__(self) -> None:
        self.cognito, self.now = Cognito(), 0.0
        self.administrators = PoolAdministrators(
            cast("AwsClient", self.cognito), "eu-central-1_AbC123", [GROUP], lambda: self.now
        )

    def includes(self, name: str) -> bool:
        return asyncio.run(self.administrators.include(name))


def test_who_is_in_the_group_and_not_disabled_is_one() -> None:
    pool = Pool()
    assert [pool.includes(name) for name in ("ann", "bob", "nobody")] == [True, False, False]
    assert pool.cognito.calls.count("AdminListGroupsForUser") == 3, "the second page has it"
    pool = Pool()
    pool.cognito.users["ann"] = False
    assert not pool.includes("ann")


def test_the_pool_is_asked_once_in_a_while_and_then_again() -> None:
    pool = Pool()
    assert pool.includes("ann")
    asked = len(pool.cognito.calls)
    pool.cognito.groups["ann"] = []
    pool.now = KEPT_S - 0.001
    assert pool.includes("ann")
    assert len(pool.cognito.calls) == asked
    pool.now = KEPT_S
    assert not pool.includes("ann")


@pytest.mark.parametrize(
    "failure",
    [
        AwsError("AccessDeniedException", "", 400, {}),
        AwsError("InternalFailure", "", 500, {}),
        UpstreamError("gone", sent=True),
    ],
)
def test_a_pool_that_does_not_answer_confirms_nobody_and_that_is_not_kept(failure: Exception) -> None:
    pool = Pool()
    pool.cognito.failure = failure
    with pytest.raises(AdministratorsUnavailable):
        pool.includes("ann")
    pool.cognito.failure = None
    assert pool.includes("ann")


# -- who is asked about ----------------------------------------------------------------------------------------------


def test_the_token_of_a_pools_administrator_names_whom_to_ask_about() -> None:
    ours = rules(admin_groups=frozenset({GROUP}), pool="eu-central-1_AbC123")
    admin = claims() | {"cognito:groups": [GROUP], "username": "ann@example.com"}
    assert ours.identify("at+jwt", admin, time.time()).pool_user == "ann@example.com"
    assert ours.identify("at+jwt", admin | {"cognito:groups": []}, time.time()).pool_user == "", (
        "nobody asks about callers"
    )
    assert rules(admin_groups=frozenset({GROUP})).identify("at+jwt", admin, time.time()).pool_user == ""
    for nameless in ({name: value for name, value in admin.items() if name != "username"}, admin | {"username": 7}):
        with pytest.raises(Unauthorized):
            ours.identify("at+jwt", nameless, time.time())


class Confirming:
    def __init__(self, answer: bool | Exception) -> None:
        self.answer = answer

    async def include(self, pool_user: str) -> bool:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("administrators", "of_pool", "others"),
    [
        (Confirming(True), "ok", "ok"),
        (Confirming(False), "insufficient_scope", "ok"),
        (Confirming(AdministratorsUnavailable("throttled")), "unavailable", "ok"),
        (None, "unavailable", "ok"),
    ],
)
def test_who_cannot_be_confirmed_sees_nothing(administrators: Confirming | None, of_pool: str, others: str) -> None:
    directory = Directory(Source(), lambda: NOW * 10**6, versioned=lambda: True)
    administration = Administration(directory, administrators, lambda: {"status": "ok"}, lambda: NOW * 10**6)
    who = BOB._replace(pool_user="bob")
    assert told(administration.read(who, "GET", STATUS)) == of_pool
    assert told(administration.read(BOB, "GET", STATUS)) == others, "another issuer's, whom nobody can ask"
