"""The pre-token-generation trigger, on events as Cognito sends them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

import pytest

from functions.token_trigger import handler as trigger
from functions.token_trigger.handler import NoToken
from tollgate.domain.policy import TenantRecord
from tollgate.domain.policy_check import check_record
from tollgate.domain.policy_document import Document

UNTIL = datetime(2026, 11, 21, 13, tzinfo=UTC)
UNTIL_US = 1_795_266_000_000_000
TABLE: dict[str, dict[str, Any]] = {
    "acme": {"tenant": "acme", "plan": "pro", "state": "active"},
    "globex": {"tenant": "globex", "plan": "free"},
    "initech": {"tenant": "initech", "plan": "enterprise", "state": "suspended"},
    "odd": {"tenant": "odd", "plan": "pro", "state": "archived"},
    "strict": {"tenant": "strict", "plan": "pro", "disabled_users": [("ann", None), ("machine-2", None)]},
    "lenient": {"tenant": "lenient", "plan": "pro", "disabled_users": [("ann", UNTIL), ("bob", None)]},
    "client#machine-2": {"tenant": "client#machine-2", "tenant_id": "strict"},
    "client#machine-1": {"tenant": "client#machine-1", "tenant_id": "acme", "team": "batch"},
    "client#orphan": {"tenant": "client#orphan"},
    "client#lost": {"tenant": "client#lost", "tenant_id": "gone"},
    "client#stopped": {"tenant": "client#stopped", "tenant_id": "initech"},
    "client#confused": {"tenant": "client#confused", "tenant_id": "client#machine-1"},
}


def claims_for(event: Mapping[str, Any], lookup: trigger.Lookup, now_us: int = UNTIL_US) -> dict[str, str]:
    return trigger.claims_for(event, lookup, now_us)


def people(tenant: str | None = "acme", **changes: Any) -> dict[str, Any]:
    attributes = {
        "sub": "0c1d2e3f-0000-4000-8000-000000000001",
        "email": "ann@acme.example",
        "email_verified": "true",
        "cognito:user_status": "CONFIRMED",
    }
    return {
        "version": "2",
        "triggerSource": "TokenGeneration_HostedAuth",
        "region": "us-east-1",
        "userPoolId": "us-east-1_EXAMPLE",
        "userName": "ann",
        "callerContext": {"awsSdkVersion": "aws-sdk-unknown-unknown", "clientId": "1example23456789"},
        "request": {
            "userAttributes": {**attributes, **({"custom:tenant": tenant} if tenant is not None else {})},
            "groupConfiguration": {"groupsToOverride": ["g"], "iamRolesToOverride": [], "preferredRole": None},
            "scopes": ["openid", "email"],
        },
        "response": {"claimsAndScopeOverrideDetails": None},
        **changes,
    }


def machine(client: str) -> dict[str, Any]:
    return {
        "version": "3",
        "triggerSource": "TokenGeneration_ClientCredentials",
        "region": "us-east-1",
        "userPoolId": "us-east-1_EXAMPLE",
        "userName": "ClientCredentials",
        "callerContext": {"awsSdkVersion": "aws-sdk-unknown-unknown", "clientId": client},
        "request": {
            "userAttributes": {},
            "groupConfiguration": None,
            "scopes": ["models/invoke"],
            "clientMetadata": {"tenant": "globex"},
        },
        "response": {"claimsAndScopeOverrideDetails": None},
    }


# Version 1, which a pool sends whose trigger was attached the old way: no scopes, and another response
FIRST_VERSION = {
    **people(),
    "version": "1",
    "request": {name: value for name, value in people()["request"].items() if name != "scopes"},
    "response": {"claimsOverrideDetails": None},
}


def test_people_get_their_tenant_and_its_plan() -> None:
    assert claims_for(people(), TABLE.get) == {"tenant": "acme", "plan": "pro"}
    refreshed = people("globex", version="3", triggerSource="TokenGeneration_RefreshTokens")
    refreshed["request"]["userAttributes"]["custom:team"] = "red"
    assert claims_for(refreshed, TABLE.get) == {"tenant": "globex", "plan": "free", "team": "red"}


def test_a_machine_belongs_to_its_clients_tenant_whatever_it_says() -> None:
    assert claims_for(machine("machine-1"), TABLE.get) == {"tenant": "acme", "plan": "pro", "team": "batch"}


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (people(None), "no tenant is named"),
        (people(""), "no tenant is named"),
        (people("nobody"), "there is no such tenant"),
        (people("initech"), "the tenant is suspended"),
        (people("odd"), "the tenant is suspended"),
        (people("strict"), "the user is disabled"),
        (people("strict", userName="strict/ann"), "the user is disabled"),
        (machine("machine-2"), "the user is disabled"),
        (people("client#machine-1"), "no tenant is named"),
        (FIRST_VERSION, "event version '1'"),
        (people(version=None), "event version None"),
        (people(request={"userAttributes": None}), "no tenant is named"),
        (machine("unknown"), "the app client belongs to no tenant"),
        (machine("orphan"), "no tenant is named"),
        (machine("lost"), "there is no such tenant"),
        (machine("stopped"), "the tenant is suspended"),
        (machine("confused"), "no tenant is named"),
    ],
)
def test_others_get_no_token(event: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(NoToken) as caught:
        claims_for(event, TABLE.get)
    assert caught.value.reason.startswith(reason)
    assert str(caught.value) == "no access", "Cognito shows the message to whoever asked"


def test_whoever_is_disabled_until_a_moment_gets_tokens_from_then_on() -> None:
    with pytest.raises(NoToken, match="no access"):
        claims_for(people("lenient"), TABLE.get, UNTIL_US - 1)
    assert claims_for(people("lenient"), TABLE.get, UNTIL_US)["tenant"] == "lenient"


@pytest.mark.parametrize("now_us", [UNTIL_US - 1, UNTIL_US])
@pytest.mark.parametrize("until", [None, "2026-11-21T13:00:00Z", "2026-11-21t14:00+01:00", "2026-11-21 13:00:00"])
def test_an_entry_in_the_table_says_the_same_to_the_trigger_as_to_the_gateway(until: str | None, now_us: int) -> None:
    entry = {"user": "ann", **({"until": until} if until else {})}
    record = check_record(TenantRecord, Document({"tenant": "acme", "plan": "pro", "disabled_users": [entry]}))
    coded = {name: {"S": value} for name, value in entry.items()}
    table = {"acme": {"tenant": "acme", "plan": "pro", "disabled_users": [trigger._disabled(coded)]}}
    refused = record.disables("ann", now_us)
    assert refused == (until is None or now_us < UNTIL_US)
    with pytest.raises(NoToken) if refused else nullcontext():
        assert claims_for(people(), table.get, now_us)["plan"] == "pro"


@pytest.mark.parametrize("until", [{"NULL": True}, {"S": "next week"}, {"S": ""}, {"N": "1795266000"}])
def test_an_end_that_cannot_be_read_has_not_come(until: dict[str, Any]) -> None:
    """Only who is named suffers from it, and not the others of the tenant."""
    assert trigger._disabled({"user": {"S": "ann"}, "until": until}) == ("ann", None)


@pytest.mark.parametrize("request_", [{"scopes": ["tollgate/invoke"]}, {}, {"userAttributes": None, "scopes": None}])
def test_a_machines_event_may_hold_next_to_nothing(request_: dict[str, Any]) -> None:
    event = machine("machine-1") | {"request": request_}
    assert claims_for(event, TABLE.get)["tenant"] == "acme"


@pytest.mark.parametrize("source", ["Authentication", "HostedAuth", "NewPasswordChallenge", "AuthenticateDevice"])
@pytest.mark.parametrize("version", ["2", "3"])
def test_every_way_to_sign_in_gets_the_same_claims(source: str, version: str) -> None:
    event = people(version=version, triggerSource=f"TokenGeneration_{source}")
    assert claims_for(event, TABLE.get) == {"tenant": "acme", "plan": "pro"}


def test_what_a_client_sends_along_counts_for_nothing() -> None:
    event = people("globex")
    event["request"]["clientMetadata"] = {"tenant": "acme", "custom:tenant": "acme", "plan": "enterprise"}
    assert claims_for(event, TABLE.get) == {"tenant": "globex", "plan": "free"}


def test_a_machine_gets_an_access_token_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigger, "_lookup", TABLE.get)
    details = trigger.handler(machine("machine-1"), None)["response"]["claimsAndScopeOverrideDetails"]
    claims = {"tenant": "acme", "plan": "pro", "team": "batch"}
    assert details == {"accessTokenGeneration": {"claimsToAddOrOverride": claims}}


def test_the_handler_answers_in_cognitos_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigger, "_lookup", TABLE.get)
    event = people()
    answer = trigger.handler(json.loads(json.dumps(event)), None)
    details = answer["response"]["claimsAndScopeOverrideDetails"]
    claims = {"claimsToAddOrOverride": {"tenant": "acme", "plan": "pro"}}
    assert details == {"accessTokenGeneration": claims, "idTokenGeneration": claims}
    assert {key: value for key, value in answer.items() if key != "response"} == {
        key: value for key, value in event.items() if key != "response"
    }


def test_a_refusal_is_logged_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trigger, "_lookup", TABLE.get)
    with pytest.raises(NoToken):
        trigger.handler(people("initech"), None)
    line = json.loads(capsys.readouterr().out)
    assert (line["message"], line["reason"]) == ("no token", "the tenant is suspended")
    assert "ann" not in json.dumps(line)
