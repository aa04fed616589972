"""What the template creates on AWS, created in the AWS that the local stack talks to. Idempotent."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tollgate.local.gateway_auth import CACHE_S

USER_POOL = "tollgate"
CLIENT = "tollgate-people"
RESOURCE_SERVER = "tollgate"
SCOPES = {
    "invoke": "Call models, list them and read the caller's own usage",
    "models.read": "List models",
    "usage.read": "Read the caller's own limits and usage",
}
ADMINISTRATORS = "tollgate-admins"
PROXY_LOG_GROUP = "/aws/lambda/tollgate-proxy"
DEAD_LETTERS = "tollgate-dead-letters"

KEY_PEPPER = "tollgate-key-pepper"
"""The secret that API keys are hashed with."""

SERVICES = ("dynamodb", "cognito-idp", "logs", "sqs", "secretsmanager")
ACTIVE_WITHIN_S = 30.0


@dataclass(frozen=True)
class Resources:
    """Names and ids of what was created."""

    policy_table: str
    tenants_table: str
    limits_table: str
    ledger_table: str
    audit_table: str
    keys_table: str
    key_pepper: str
    user_pool_id: str
    client_id: str
    dead_letter_url: str

    def environ(self) -> dict[str, str]:
        """The variables by which every part of Tollgate finds these."""
        return {
            "TOLLGATE_POLICY_TABLE": self.policy_table,
            "TOLLGATE_TENANTS_TABLE": self.tenants_table,
            "TOLLGATE_LIMITS_TABLE": self.limits_table,
            "TOLLGATE_LEDGER_TABLE": self.ledger_table,
            "TOLLGATE_AUDIT_TABLE": self.audit_table,
            "TOLLGATE_KEYS_TABLE": self.keys_table,
            "TOLLGATE_KEY_PEPPER": self.key_pepper,
            "TOLLGATE_AUTHORIZER_CACHE_SECONDS": str(CACHE_S),
            "TOLLGATE_USER_POOL_ID": self.user_pool_id,
            "TOLLGATE_CLIENT_IDS": f"{self.client_id},*",  # the first is whose tokens `tollgate token` makes
            "TOLLGATE_DEFAULT_SCOPES": "none",
            "TOLLGATE_UNKNOWN_TENANTS": "refuse",
            "TOLLGATE_ADMIN_GROUPS": ADMINISTRATORS,
            "TOLLGATE_DEAD_LETTER_QUEUE_URL": self.dead_letter_url,
        }


def provision(environ: Mapping[str, str]) -> Resources:
    """Create whatever is missing. The endpoint, region and credentials are those of this process's environment."""
    dynamodb = _client("dynamodb")
    names = {
        part: environ.get(f"TOLLGATE_{part.upper()}_TABLE") or f"tollgate-{part}"
        for part in ("policy", "tenants", "limits", "ledger", "audit", "keys")
    }
    _table(dynamodb, names["policy"], {"id": "HASH"}, stream=True)
    _table(dynamodb, names["tenants"], {"tenant": "HASH"}, stream=True)
    _table(dynamodb, names["limits"], {"pk": "HASH"}, ttl=True)
    _table(dynamodb, names["ledger"], {"pk": "HASH", "sk": "RANGE"}, ttl=True, index=("entries", "e"))
    _table(dynamodb, names["audit"], {"pk": "HASH", "sk": "RANGE"}, ttl=True)
    _table(dynamodb, names["keys"], {"key_id": "HASH"}, stream=True, ttl=True, index=("by-tenant", "tenant"))
    pepper = environ.get("TOLLGATE_KEY_PEPPER") or KEY_PEPPER
    _new_secret(pepper, json.dumps({"1": secrets.token_urlsafe(48)}))
    pool_id, client_id = _user_pool(_client("cognito-idp"))
    _log_group(_client("logs"), PROXY_LOG_GROUP)
    queue = _client("sqs").create_queue(QueueName=DEAD_LETTERS)
    return Resources(
        policy_table=names["policy"],
        tenants_table=names["tenants"],
        limits_table=names["limits"],
        ledger_table=names["ledger"],
        audit_table=names["audit"],
        keys_table=names["keys"],
        key_pepper=pepper,
        user_pool_id=pool_id,
        client_id=client_id,
        dead_letter_url=queue["QueueUrl"],
    )


def warm() -> None:
    """Import boto3 and make its clients, which takes most of a second and needs no server yet."""
    for service in SERVICES:
        _client(service)


@cache
def _client(service: str) -> Any:
    import boto3

    return boto3.client(service)


def dead_letter(queue_url: str, message: str) -> None:
    """Keep what a function could not process."""
    _client("sqs").send_message(QueueUrl=queue_url, MessageBody=message)


def put_secret(name: str, value: str) -> None:
    """Create the secret, or change its value."""
    client = _client("secretsmanager")
    try:
        client.create_secret(Name=name, SecretString=value)
    except client.exceptions.ResourceExistsException:
        client.put_secret_value(SecretId=name, SecretString=value)


def _new_secret(name: str, value: str) -> None:
    """Create the secret, unless it is there: everything hashed with it would be worthless."""
    client = _client("secretsmanager")
    try:
        client.create_secret(Name=name, SecretString=value)
    except client.exceptions.ResourceExistsException:
        return


def _table(
    dynamodb: Any,
    name: str,
    keys: Mapping[str, str],
    *,
    stream: bool = False,
    ttl: bool = False,
    index: tuple[str, str] | None = None,
) -> None:
    """`index`: the name and hash key of a global index of whole items."""
    options: dict[str, Any] = {}
    attributes = dict.fromkeys([*keys, *(index or ())[1:]])
    if stream:
        options["StreamSpecification"] = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
    if index is not None:
        schema = [{"AttributeName": index[1], "KeyType": "HASH"}]
        projection = {"ProjectionType": "ALL"}
        options["GlobalSecondaryIndexes"] = [{"IndexName": index[0], "KeySchema": schema, "Projection": projection}]
    try:
        dynamodb.create_table(
            TableName=name,
            KeySchema=[{"AttributeName": key, "KeyType": kind} for key, kind in keys.items()],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in attributes],
            BillingMode="PAY_PER_REQUEST",
            **options,
        )
    except dynamodb.exceptions.ResourceInUseException:
        return
    until = time.monotonic() + ACTIVE_WITHIN_S
    while dynamodb.describe_table(TableName=name)["Table"]["TableStatus"] != "ACTIVE":
        if time.monotonic() > until:
            raise TimeoutError(f"the table {name} did not become active within {ACTIVE_WITHIN_S:g} s")
        time.sleep(0.1)
    if ttl:
        dynamodb.update_time_to_live(TableName=name, TimeToLiveSpecification={"Enabled": True, "AttributeName": "ttl"})


def _user_pool(cognito: Any) -> tuple[str, str]:
    """The ids of the pool and of the client that people's tokens are for."""
    pools = cognito.list_user_pools(MaxResults=60)["UserPools"]
    pool_id = next((pool["Id"] for pool in pools if pool["Name"] == USER_POOL), None)
    if pool_id is None:
        # no app client may write these: they say whose tenant a user belongs to
        attributes = [
            {"Name": name, "AttributeDataType": "String", "Mutable": True, "DeveloperOnlyAttribute": False}
            for name in ("tenant", "team")
        ]
        pool_id = cognito.create_user_pool(PoolName=USER_POOL, Schema=attributes)["UserPool"]["Id"]
        cognito.create_resource_server(
            UserPoolId=pool_id,
            Identifier=RESOURCE_SERVER,
            Name=RESOURCE_SERVER,
            Scopes=[{"ScopeName": name, "ScopeDescription": what} for name, what in SCOPES.items()],
        )
        cognito.create_group(UserPoolId=pool_id, GroupName=ADMINISTRATORS)
    clients = cognito.list_user_pool_clients(UserPoolId=pool_id, MaxResults=60)["UserPoolClients"]
    client_id = next((client["ClientId"] for client in clients if client["ClientName"] == CLIENT), None)
    if client_id is None:
        client = cognito.create_user_pool_client(
            UserPoolId=pool_id,
            ClientName=CLIENT,
            AllowedOAuthFlows=["code"],
            AllowedOAuthScopes=["openid", *(f"{RESOURCE_SERVER}/{name}" for name in SCOPES)],
            AllowedOAuthFlowsUserPoolClient=True,
            CallbackURLs=["http://localhost:8400/callback"],
            WriteAttributes=["email"],
        )
        client_id = client["UserPoolClient"]["ClientId"]
    return pool_id, client_id


def _log_group(logs: Any, name: str) -> None:
    try:
        logs.create_log_group(logGroupName=name)
    except logs.exceptions.ResourceAlreadyExistsException:
        return
    logs.put_retention_policy(logGroupName=name, retentionInDays=7)
