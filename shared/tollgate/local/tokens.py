"""Access tokens for the local stack, as Cognito would issue them.

moto runs no token triggers and puts no custom claims into access tokens, so this does what Cognito does: it makes the
user if there is none, lets the same trigger handler say which claims to add, and signs the token with the pool's key.
moto's pools share one key, which is in its package; a pool of AWS or LocalStack keeps its own, and then only that
pool can issue tokens.

One thing differs: `sub` is the user's name, where Cognito makes up a UUID, so that usage reports can be read.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from tollgate.local.functions import LogLines
from tollgate.local.provision import ADMINISTRATORS, RESOURCE_SERVER

MAX_TTL_S = 365 * 86_400
MAX_NAME = 63
"""Cognito's user names have at most 128 characters, and ours hold the tenant's name and the user's."""

SIGNED_BY_POOL = (
    "this user pool keeps its private key to itself, so only the pool can issue tokens: sign a user in and use the "
    "access token, for example `aws cognito-idp initiate-auth --auth-flow USER_PASSWORD_AUTH --client-id {client} "
    "--auth-parameters USERNAME=...,PASSWORD=...`"
)


class CannotIssue(Exception):
    """No token can be made; the message is one line for the user."""


def issue(
    tenant: str,
    user: str,
    ttl_s: int = 3600,
    environ: Mapping[str, str] | None = None,
    *,
    scopes: Sequence[str] = ("invoke",),
    administrator: bool = False,
) -> str:
    """An access token for `user` of `tenant`, valid for `ttl_s` seconds. The user is created if there is none;
    `administrator` puts them into the administrators' group first.

    `environ` has what `discovery.find` returns, and becomes part of this process's environment: the trigger handler
    reads it there, as it does on Lambda. Raises `CannotIssue`.
    """
    os.environ.update(environ or {})
    if not 1 <= ttl_s <= MAX_TTL_S:
        raise CannotIssue(f"the time to live must be from 1 to {MAX_TTL_S} seconds, not {ttl_s}")
    for what, name in (("tenant", tenant), ("user", user)):
        if not 0 < len(name) <= MAX_NAME or not name.isprintable() or any(c.isspace() for c in name):
            raise CannotIssue(f"a {what} name has 1 to {MAX_NAME} printable characters and no spaces, not {name!r}")
    try:
        pool, client = os.environ["TOLLGATE_USER_POOL_ID"], os.environ["TOLLGATE_CLIENT_IDS"].split(",")[0]
    except KeyError as missing:
        raise CannotIssue(
            f"no local stack is running, and {missing.args[0]} is not set: start `tollgate dev`"
        ) from None
    key = _signing_key(pool, client)
    username, attributes = _ensure_user(pool, tenant, user)
    groups = _groups(pool, username, administrator)
    asked = [f"{RESOURCE_SERVER}/{scope}" for scope in scopes]
    claims = _trigger(pool, client, username, attributes, groups, asked)
    if groups:
        claims["cognito:groups"] = groups
    now = int(time.time())
    region = pool.partition("_")[0]
    payload = {
        "sub": user,
        "iss": os.environ.get("TOLLGATE_ISSUER") or f"https://cognito-idp.{region}.amazonaws.com/{pool}",
        "client_id": client,
        "origin_jti": str(uuid.uuid4()),
        "event_id": str(uuid.uuid4()),
        "token_use": "access",
        "scope": " ".join(asked),
        "auth_time": now,
        "iat": now,
        "exp": now + ttl_s,
        "jti": str(uuid.uuid4()),
        "username": username,
        **claims,
    }
    import jwt

    return jwt.encode(payload, jwt.PyJWK(key).key, algorithm="RS256", headers={"kid": key["kid"]})


def _signing_key(pool: str, client: str) -> dict[str, str]:
    """The private key whose public half the pool publishes."""
    endpoint = (
        os.environ.get("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER") or os.environ.get("AWS_ENDPOINT_URL") or ""
    ).rstrip("/")
    key = _moto_key()
    if not endpoint.startswith(("http://", "https://")) or key is None:
        raise CannotIssue(SIGNED_BY_POOL.format(client=client))
    url = f"{endpoint}/{pool}/.well-known/jwks.json"
    try:
        with urlopen(url, timeout=5) as answer:  # noqa: S310 - http or https only, checked above
            published = json.load(answer)["keys"]
    except (URLError, OSError, ValueError, KeyError) as error:
        raise CannotIssue(f"cannot read the user pool's keys at {url}: {error}") from None
    for public in published:
        if public.get("n") == key["n"]:
            return {**key, "kid": public["kid"]}
    raise CannotIssue(SIGNED_BY_POOL.format(client=client))


def _moto_key() -> dict[str, str] | None:
    """The key of every user pool of moto, read without importing moto, which would take most of a second."""
    spec = importlib.util.find_spec("moto")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "cognitoidp" / "resources"
    plain, packed = folder / "jwks-private.json", folder / "jwks-private.json.gz"
    if packed.exists():
        return dict(json.loads(gzip.decompress(packed.read_bytes())))
    return dict(json.loads(plain.read_bytes())) if plain.exists() else None


def _ensure_user(pool: str, tenant: str, user: str) -> tuple[str, dict[str, str]]:
    """The name and attributes of the tenant's user: one that `tollgate user create` has made, or else one of our own.

    A pool has one space of names, tenants have many: so ours is ``tenant/user``. Raises `CannotIssue` for a user who
    was disabled.
    """
    import boto3

    cognito = boto3.client("cognito-idp")
    for name in (ours := f"{tenant}/{user}", user):
        try:
            known = cognito.admin_get_user(UserPoolId=pool, Username=name)
        except cognito.exceptions.UserNotFoundException:
            continue
        attributes = _attributes(known["UserAttributes"])
        if attributes.get("custom:tenant") == tenant:
            if not known["Enabled"]:
                raise CannotIssue(f"the user {name!r} is disabled: `tollgate user enable {name}`")
            return name, attributes
    made = cognito.admin_create_user(
        UserPoolId=pool,
        Username=ours,
        UserAttributes=[{"Name": "custom:tenant", "Value": tenant}],
        MessageAction="SUPPRESS",
    )
    return ours, _attributes(made["User"]["Attributes"])


def _attributes(listed: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {attribute["Name"]: attribute["Value"] for attribute in listed}


def _groups(pool: str, username: str, administrator: bool) -> list[str]:
    """The names of the user's groups, which Cognito puts into access tokens by itself."""
    import boto3

    cognito = boto3.client("cognito-idp")
    if administrator:
        cognito.admin_add_user_to_group(UserPoolId=pool, Username=username, GroupName=ADMINISTRATORS)
    found = cognito.admin_list_groups_for_user(UserPoolId=pool, Username=username)["Groups"]
    return [group["GroupName"] for group in found]


def _trigger(
    pool: str,
    client: str,
    username: str,
    attributes: Mapping[str, str],
    groups: Sequence[str],
    scopes: Sequence[str],
) -> dict[str, Any]:
    """The claims that the pre-token-generation trigger adds to the access token."""
    from functions.token_trigger.handler import NoToken, handler

    event = {
        "version": "3",
        "triggerSource": "TokenGeneration_Authentication",
        "region": pool.partition("_")[0],
        "userPoolId": pool,
        "userName": username,
        "callerContext": {"awsSdkVersion": "local", "clientId": client},
        "request": {
            "userAttributes": dict(attributes),
            "groupConfiguration": {"groupsToOverride": list(groups), "iamRolesToOverride": [], "preferredRole": None},
            "scopes": list(scopes),
        },
        "response": {"claimsAndScopeOverrideDetails": None},
    }
    try:
        with _quietly():
            response = handler(event, None)["response"]
    except NoToken as refusal:
        tenant = attributes.get("custom:tenant", "")
        raise CannotIssue(f"no token for {tenant!r}: {refusal.reason}") from None
    generation = response["claimsAndScopeOverrideDetails"]["accessTokenGeneration"]
    return dict(generation.get("claimsToAddOrOverride") or {})


def _quietly() -> AbstractContextManager[Any]:
    """A command that prints a token prints nothing else: the handler's log lines are not its output."""
    return nullcontext() if isinstance(sys.stdout, LogLines) else redirect_stdout(io.StringIO())
