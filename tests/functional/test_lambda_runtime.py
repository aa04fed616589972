"""The handlers, unmodified, in Lambda's real runtime interface client, each in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.functional.cognito import Pool, user_pool
from tests.functional.runtime_api import InitFailed, LambdaFunction
from tests.functional.test_authorizer import request
from tests.unit.test_token_trigger import machine, people
from tollgate.domain.identity import Identity

AUTHORIZER = "functions.authorizer.handler.handler"
TRIGGER = "functions.token_trigger.handler.handler"
TENANTS = "tenants"


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with user_pool() as pool:
        dynamodb = pool.aws("dynamodb")
        dynamodb.create_table(
            TableName=TENANTS,
            KeySchema=[{"AttributeName": "tenant", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "tenant", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        for item in (
            {"tenant": {"S": "acme"}, "plan": {"S": "pro"}, "state": {"S": "active"}, "version": {"N": "3"}},
            {"tenant": {"S": "initech"}, "plan": {"S": "enterprise"}, "state": {"S": "suspended"}},
            {"tenant": {"S": "client#machine-1"}, "tenant_id": {"S": "acme"}},
        ):
            dynamodb.put_item(TableName=TENANTS, Item=item)
        yield pool


@pytest.fixture(scope="module")
def login(pool: Pool) -> dict[str, str]:
    return pool.login("ann", "acme")


@pytest.fixture(scope="module")
def authorizer(pool: Pool) -> Iterator[LambdaFunction]:
    with LambdaFunction(AUTHORIZER, pool.env) as function:
        yield function


@pytest.fixture(scope="module")
def trigger(pool: Pool) -> Iterator[LambdaFunction]:
    with LambdaFunction(TRIGGER, {**pool.env, "TOLLGATE_TENANTS_TABLE": TENANTS}) as function:
        yield function


def claims(answer: Any) -> dict[str, str]:
    added = answer["response"]["claimsAndScopeOverrideDetails"]["accessTokenGeneration"]["claimsToAddOrOverride"]
    assert isinstance(added, dict)
    return added


def test_a_login_becomes_a_policy(
    pool: Pool, login: dict[str, str], trigger: LambdaFunction, authorizer: LambdaFunction
) -> None:
    added = claims(trigger.invoke(people("acme")).payload)
    assert added == {"tenant": "acme", "plan": "pro"}
    token = pool.issue(login["AccessToken"], **added)
    for _ in range(3):
        answer = authorizer.invoke(request(f"Bearer {token}"))
        assert not answer.failed
        assert Identity.from_context(answer.payload["context"]).tenant == "acme"
        (resource,) = answer.payload["policyDocument"]["Statement"][0]["Resource"]
        assert resource.endswith("/prod/*/*")


def test_machines_belong_to_their_clients_tenant(trigger: LambdaFunction) -> None:
    assert claims(trigger.invoke(machine("machine-1")).payload) == {"tenant": "acme", "plan": "pro"}


@pytest.mark.parametrize("event", [people("initech"), people("nobody"), people(None), machine("other")])
def test_no_active_tenant_no_token(trigger: LambdaFunction, event: dict[str, Any]) -> None:
    answer = trigger.invoke(event)
    assert answer.failed
    assert answer.payload["errorMessage"] == "no access"


def test_a_refused_token_is_what_api_gateway_answers_with_401(
    login: dict[str, str], authorizer: LambdaFunction
) -> None:
    before = len([line for line in authorizer.lines if '"unauthorized"' in line])
    answer = authorizer.invoke(request(f"Bearer {login['AccessToken']}"))
    assert answer.failed
    assert answer.payload["errorMessage"] == "Unauthorized"
    line = authorizer.records("unauthorized", before + 1)[-1]
    assert line["reason"] == "tenant is missing"
    assert login["AccessToken"].split(".")[2] not in "\n".join(authorizer.lines)


def test_the_function_survives_what_it_refuses(authorizer: LambdaFunction) -> None:
    for authorization in ("Bearer " + "[" * 5000, "Bearer é", "Bearer ..", "Bearer \ud800", None, ["a", "b"]):
        assert authorizer.invoke(request(authorization)).payload["errorMessage"] == "Unauthorized"


def test_keys_are_fetched_before_the_first_request(pool: Pool) -> None:
    dead = {**pool.env, "TOLLGATE_JWKS_URL": "http://127.0.0.1:1/keys"}
    with LambdaFunction(AUTHORIZER, dead) as function:
        assert function.records("signing keys could not be fetched")[0]["serving"] == 0


def test_a_bad_setting_stops_the_start_and_says_which(pool: Pool) -> None:
    bad = {**pool.env, "TOLLGATE_CLIENT_IDS": ""}
    with LambdaFunction(AUTHORIZER, bad) as function, pytest.raises(InitFailed, match="TOLLGATE_CLIENT_IDS"):
        function.invoke(request("Bearer x"))


def test_errors_never_hold_the_event(authorizer: LambdaFunction) -> None:
    secret = "Bearer secret-secret-secret"
    assert authorizer.invoke(request(secret)).failed
    assert "secret-secret" not in json.dumps(authorizer.lines)
