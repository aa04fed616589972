"""``tollgate secret``: provider keys, which live in Secrets Manager and nowhere else."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from tollgate.cli.connect import TABLES, Stack, with_stack
from tollgate.cli.failures import CONFLICT, NOT_FOUND, USAGE, Fail
from tollgate.cli.output import echo_json, json_option, table

T = TypeVar("T")

CURRENT, PREVIOUS = "AWSCURRENT", "AWSPREVIOUS"
MAX_VALUE = 65_536
"""Bytes: Secrets Manager's limit."""


@click.group()
def secret() -> None:
    """Provider keys: the secrets that the policy's upstreams name. Values are never shown.

    \b
      tollgate secret set tollgate/openai < key.txt
      tollgate secret rotate tollgate/openai         asks for the new key
      tollgate secret list
    """


@secret.command("set")
@click.argument("name")
@json_option
def set_(name: str, as_json: bool) -> None:
    """Give an upstream its key. Makes the secret, or replaces what it holds.

    The value comes from standard input, or is asked for: never as an argument, which other users of the machine can
    read. It is the key itself, or JSON with an `api_key`. Gateways that hold an earlier key take this one when the
    provider refuses theirs.

    \b
      tollgate secret set tollgate/openai < key.txt
      pass show openai | tollgate secret set tollgate/openai
    """
    value = _value(name)

    async def run(stack: Stack) -> bool:
        manager = _Manager(stack)
        made = await manager.describe(name) is None
        if made:
            await manager.call("CreateSecret", Name=name, SecretString=value, ClientRequestToken=str(uuid.uuid4()))
        else:
            await manager.put(name, value)
        return made

    made = _with(run)
    _say(name, "created" if made else "changed", as_json)


@secret.command()
@click.argument("name")
@click.option("--undo", is_flag=True, help="Go back to the key before.")
@json_option
def rotate(name: str, undo: bool, as_json: bool) -> None:
    """Replace an upstream's key, without an error on the way.

    The old key stays beside the new one: gateways try the other where the provider refuses one. So in this order: make
    the new key at the provider, rotate, and then revoke the old one there, whenever you like. Nothing is to be deployed
    or restarted. The new key is read as by `tollgate secret set`.

    \b
      tollgate secret rotate tollgate/openai < new-key.txt
      tollgate secret rotate tollgate/openai --undo
    """
    value = "" if undo else _value(name)

    async def run(stack: Stack) -> None:
        from tollgate.adapters.provider_keys import provider_key

        manager = _Manager(stack)
        known = await manager.describe(name)
        if known is None:
            raise Fail(f"there is no secret {name!r}: `tollgate secret set {name}` makes it", NOT_FOUND)
        versions = {stage: id for id, stages in known.get("VersionIdsToStages", {}).items() for stage in stages}
        if undo:
            if PREVIOUS not in versions:
                raise Fail(f"{name!r} holds no key before the present one", CONFLICT)
            move = {"MoveToVersionId": versions[PREVIOUS], "RemoveFromVersionId": versions[CURRENT]}
            await manager.call("UpdateSecretVersionStage", SecretId=name, VersionStage=CURRENT, **move)
            return
        if CURRENT in versions:
            held = await manager.call("GetSecretValue", SecretId=name, VersionStage=CURRENT)
            if provider_key(held.get("SecretString")) == provider_key(value):
                raise Fail(f"{name!r} holds this very key already: make a new one at the provider first", CONFLICT)
        await manager.put(name, value)

    _with(run)
    _say(name, "back at the key before" if undo else "rotated; the old key may be revoked at the provider", as_json)


@secret.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List provider keys: which upstreams use them, and how old they are. Never their values.

    \b
      tollgate secret list
      tollgate secret list --json --stack tollgate-prod
    """

    async def run(stack: Stack) -> list[dict[str, Any]]:
        users: dict[str, list[str]] = {}
        for upstream, spec in (await stack.tables().edited()).upstreams.items():
            if spec.secret is not None:
                users.setdefault(spec.secret, []).append(upstream)
        manager = _Manager(stack)
        found = {it["Name"]: it for prefix in _prefixes(users) for it in await manager.list(prefix)}
        return [_row(name, found.get(name), users.get(name, [])) for name in sorted({*found, *users})]

    rows = _with(run)
    if as_json:
        echo_json({"secrets": rows})
        return
    shown = [
        [row["name"], ", ".join(row["upstreams"]) or None, _age(row["changed_at"]) or "MISSING", row["last_used_on"],
         "yes" if row["previous"] else "no"]
        for row in rows
    ]  # fmt: skip
    click.echo(table(("name", "upstreams", "age", "last read", "old key kept"), shown) if rows else "no provider keys")


class _Manager:
    """Secrets Manager. Its refusals are raised as `Fail`, without a word of what was sent."""

    def __init__(self, stack: Stack) -> None:
        self._client = stack.service("secretsmanager")

    async def call(self, operation: str, **payload: Any) -> dict[str, Any]:
        return await self._client.call(operation, payload)

    async def describe(self, name: str) -> dict[str, Any] | None:
        from tollgate.adapters.aws import AwsError

        try:
            found = await self.call("DescribeSecret", SecretId=name)
        except AwsError as error:
            if error.code == "ResourceNotFoundException":
                return None
            raise
        if found.get("DeletedDate"):
            raise Fail(f"{name!r} is being deleted: `aws secretsmanager restore-secret` brings it back", CONFLICT)
        return found

    async def put(self, name: str, value: str) -> None:
        await self.call("PutSecretValue", SecretId=name, SecretString=value, ClientRequestToken=str(uuid.uuid4()))

    async def list(self, prefix: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        page: dict[str, Any] = {}
        while True:
            answer = await self.call("ListSecrets", Filters=[{"Key": "name", "Values": [prefix]}], **page)
            found += answer.get("SecretList", [])
            if not answer.get("NextToken"):
                return found
            page = {"NextToken": answer["NextToken"]}


def _with(operation: Callable[[Stack], Awaitable[T]]) -> T:
    from tollgate.adapters.aws import AwsError
    from tollgate.adapters.http import UpstreamError
    from tollgate.cli.failures import UNREACHABLE

    try:
        return with_stack(operation, TABLES)
    except UpstreamError as error:
        raise Fail(f"Secrets Manager cannot be reached: {error}", UNREACHABLE) from error
    except AwsError as error:
        if error.code in ("InvalidRequestException", "InvalidParameterException", "ValidationException"):
            raise Fail(f"Secrets Manager: {error.message}", USAGE) from error
        raise


def _value(name: str) -> str:
    """The new value, from standard input or a prompt that does not show it. Raises `Fail` for what is no key."""
    from tollgate.adapters.provider_keys import provider_key

    if sys.stdin.isatty():
        text = str(click.prompt(f"Key for {name}", hide_input=True, confirmation_prompt=True, err=True))
    else:
        text = sys.stdin.read(MAX_VALUE + 1)
    if len(text.encode()) > MAX_VALUE or provider_key(text) is None:
        raise Fail("that is no key: expected one line of text, or JSON with an api_key", USAGE)
    return text.strip()


def _prefixes(names: Any) -> set[str]:
    """Where provider keys lie: the first part of the names in use, and the template's own."""
    return {name.partition("/")[0] + "/" for name in names if "/" in name} | {"tollgate/"}


def _row(name: str, known: dict[str, Any] | None, upstreams: list[str]) -> dict[str, Any]:
    found = known or {}
    stages = [stage for held in found.get("SecretVersionsToStages", {}).values() for stage in held]
    changed = found.get("LastChangedDate") or found.get("CreatedDate")
    last = found.get("LastAccessedDate")
    return {
        "name": name,
        "exists": known is not None,
        "upstreams": sorted(upstreams),
        "changed_at": None if changed is None else _utc(changed).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "last_used_on": None if last is None else _utc(last).strftime("%Y-%m-%d"),
        "previous": PREVIOUS in stages,
    }


def _utc(epoch_s: float) -> datetime:
    return datetime.fromtimestamp(float(epoch_s), UTC)


def _age(at: str | None) -> str:
    if at is None:
        return ""
    hours = int(time.time() - datetime.fromisoformat(at).timestamp()) // 3600
    return f"{hours // 24} d" if hours >= 48 else f"{max(hours, 0)} h"


def _say(name: str, done: str, as_json: bool) -> None:
    if as_json:
        echo_json({"name": name, "done": done})
    else:
        click.echo(f"{name} is {done}")
