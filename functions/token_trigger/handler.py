"""Cognito's pre-token-generation trigger (event versions V2_0 and V3_0): puts the tenant and plan into tokens.

Whose tenant a caller belongs to is ours to say, not theirs: for people it is the attribute `custom:tenant`, which no
app client may be allowed to write; for machines it is the item ``client#<client id>`` of the tenants table. Cognito
shows the message of an exception to whoever asked for the token, so it says nothing that is not theirs to know.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from tollgate.adapters.telemetry import log
from tollgate.domain.identity import names_of_pool_user
from tollgate.domain.until import disables, read_moment

CLIENT_CREDENTIALS = "TokenGeneration_ClientCredentials"
CLIENT_PREFIX = "client#"
"""Of the keys in the tenants table that name app clients; ``#`` cannot occur in a tenant's name."""

Lookup = Callable[[str], Mapping[str, Any] | None]
"""The text attributes of an item of the tenants table by its key, and its `disabled_users` with their ends, read
consistently; None if there is none."""


class NoToken(Exception):
    """This caller gets no token. `reason` is for our logs; Cognito shows the caller the message."""

    def __init__(self, reason: str) -> None:
        super().__init__("no access")
        self.reason = reason


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """The event with the claims to add; raises `NoToken`, and then Cognito issues none."""
    try:
        claims = claims_for(event, _lookup, time.time_ns() // 1000)
    except NoToken as refusal:
        caller = event.get("callerContext", {})
        log("WARNING", "no token", reason=refusal.reason, client=caller.get("clientId"), source=event["triggerSource"])
        raise
    details = {"accessTokenGeneration": {"claimsToAddOrOverride": claims}}
    if event["triggerSource"] != CLIENT_CREDENTIALS:  # a machine gets no ID token
        details["idTokenGeneration"] = {"claimsToAddOrOverride": claims}
    event["response"] = {"claimsAndScopeOverrideDetails": details}
    return event


def claims_for(event: Mapping[str, Any], lookup: Lookup, now_us: int) -> dict[str, str]:
    """The claims of the caller that `event` is about: `tenant`, and where they have one, `plan` and `team`.

    Raises `NoToken` unless the caller belongs to an active tenant.
    """
    if event.get("version") not in ("2", "3"):
        # a version 1 trigger cannot change access tokens: they would come out without a tenant
        raise NoToken(f"event version {event.get('version')!r:.20}; set LambdaVersion to V3_0")
    if event["triggerSource"] == CLIENT_CREDENTIALS:
        client = lookup(CLIENT_PREFIX + event["callerContext"]["clientId"])
        if client is None:
            raise NoToken("the app client belongs to no tenant")
        tenant, team = client.get("tenant_id", ""), client.get("team", "")
        names = frozenset({event["callerContext"]["clientId"]})
    else:
        attributes = event["request"].get("userAttributes") or {}
        tenant, team = attributes.get("custom:tenant", ""), attributes.get("custom:team", "")
        names = names_of_pool_user(event.get("userName", ""), attributes.get("sub", ""), tenant)
    if not tenant or "#" in tenant:
        raise NoToken("no tenant is named")
    record = lookup(tenant)
    if record is None:
        raise NoToken("there is no such tenant")
    if record.get("state", "active") != "active":
        raise NoToken("the tenant is suspended")
    if disables(record.get("disabled_users", ()), names, now_us):
        raise NoToken("the user is disabled")
    claims = {"tenant": tenant, "plan": record.get("plan", ""), "team": team}
    return {name: value for name, value in claims.items() if value}


def _lookup(key: str) -> Mapping[str, Any] | None:
    answer = _dynamodb().get_item(
        TableName=os.environ["TOLLGATE_TENANTS_TABLE"],
        Key={"tenant": {"S": key}},
        ConsistentRead=True,  # a tenant made a moment ago gets tokens, one suspended a moment ago gets none
    )
    item = answer.get("Item")
    if item is None:
        return None
    disabled = [_disabled(entry["M"]) for entry in item.get("disabled_users", {}).get("L", ())]
    return {name: value["S"] for name, value in item.items() if "S" in value} | {"disabled_users": disabled}


def _disabled(entry: Mapping[str, Any]) -> tuple[str, datetime | None]:
    try:
        until = read_moment(entry["until"]["S"])
    except (KeyError, ValueError):  # none, or none that can be read: then it has not come yet
        until = None
    return entry["user"]["S"], until


@cache
def _dynamodb() -> Any:
    """The client; AWS_ENDPOINT_URL is boto3's own business. Cognito waits 5 s: two short tries fit."""
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=1, read_timeout=1, retries={"total_max_attempts": 2, "mode": "standard"})
    return boto3.client("dynamodb", config=config)


if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    # 250 ms of imports belong into Lambda's init phase, not into somebody's login.
    _dynamodb()
