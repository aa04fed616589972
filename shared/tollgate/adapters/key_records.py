"""API keys as the authorizer sees them: one item of the keys' table, and the peppers, a secret of Secrets Manager.

The secret is a JSON object, ``{"1": "<pepper>", "2": "<pepper>"}``: each record says by which it was hashed, so that a
new one can be added at any time; new secrets take the one with the highest number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tollgate.adapters.aws_blocking import BlockingAws, CallFailed, CredentialsOf
from tollgate.domain.api_keys import NEVER, KeyRecord, Secret
from tollgate.domain.identity import KeysUnavailable, Unauthorized

MIN_PEPPER = 32
"""Characters; what the template generates has 64."""


class DynamoKeyRecords:
    """Reads only. Thread safe; blocks."""

    def __init__(self, dynamodb: BlockingAws, table: str, secrets: BlockingAws, pepper_secret: str) -> None:
        self._dynamodb = dynamodb
        self._table = table
        self._secrets = secrets
        self._pepper_secret = pepper_secret

    @classmethod
    def from_env(cls, environ: Mapping[str, str], credentials: CredentialsOf | None = None) -> DynamoKeyRecords | None:
        """None where the environment names no table of keys. Raises `ValueError` that names the variable."""
        table, secret = environ.get("TOLLGATE_KEYS_TABLE", ""), environ.get("TOLLGATE_KEY_PEPPER", "")
        if not table:
            return None
        if not secret:
            raise ValueError("TOLLGATE_KEY_PEPPER: the name of the secret that holds the API keys' peppers is missing")
        dynamodb = BlockingAws("dynamodb", environ, credentials)
        return cls(dynamodb, table, BlockingAws("secretsmanager", environ, credentials), secret)

    def find(self, id: str) -> KeyRecord | None:
        # consistent: a key made a moment ago serves, one revoked a moment ago does not
        wanted = {"TableName": self._table, "Key": {"key_id": {"S": id}}, "ConsistentRead": True}
        try:
            item = self._dynamodb.call("GetItem", wanted).get("Item")
        except CallFailed as failure:
            raise KeysUnavailable(str(failure)) from failure
        if item is None:
            return None
        try:
            return record_of({name: _plain(value) for name, value in item.items()})
        except (KeyError, TypeError, ValueError) as error:
            raise Unauthorized(f"the record of API key {id} cannot be read: {type(error).__name__}") from error

    def peppers(self) -> Mapping[str, bytes]:
        try:
            text = self._secrets.call("GetSecretValue", {"SecretId": self._pepper_secret}).get("SecretString")
        except CallFailed as failure:
            raise KeysUnavailable(str(failure)) from failure
        return peppers_of(text)

    def close(self) -> None:
        """Close this thread's connections."""
        self._dynamodb.close()
        self._secrets.close()


def record_of(item: Mapping[str, Any]) -> KeyRecord:
    """What an item says. Raises KeyError, TypeError or ValueError for what cannot be one: nobody gets in by that."""
    texts = {name: item.get(name, "") for name in ("team", "restrictions")}
    texts |= {name: item[name] for name in ("key_id", "tenant", "user")}
    if not all(isinstance(text, str) for text in texts.values()) or not texts["tenant"] or not texts["user"]:
        raise ValueError("not text")
    secrets = tuple(
        Secret(str(secret["hash"]), str(secret["pepper"]), int(secret.get("until", NEVER)))
        for secret in item["secrets"]
    )
    return KeyRecord(
        texts["key_id"],
        texts["tenant"],
        texts["user"],
        texts["team"],
        secrets,
        int(item.get("expires_at", NEVER)),
        bool(item.get("revoked_at")),
        texts["restrictions"],
    )


def peppers_of(secret: object) -> dict[str, bytes]:
    """The peppers in the secret's text. Raises `KeysUnavailable`; never says what it holds."""
    try:
        found = json.loads(secret) if isinstance(secret, str) else None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found:
        raise KeysUnavailable('the secret of API key peppers is not a JSON object such as {"1": "..."}')
    for name, pepper in found.items():
        if not name.isascii() or not name.isdigit() or not isinstance(pepper, str) or len(pepper) < MIN_PEPPER:
            raise KeysUnavailable(f"API key peppers are numbered, and have at least {MIN_PEPPER} characters each")
    return {name: pepper.encode() for name, pepper in found.items()}


def newest(peppers: Mapping[str, bytes]) -> str:
    """The pepper that new secrets are hashed with."""
    return max(peppers, key=int)


def _plain(value: Mapping[str, Any]) -> Any:
    """A DynamoDB attribute, as far as keys have them."""
    ((kind, held),) = value.items()
    if kind == "N":
        return int(held)
    if kind == "L":
        return [_plain(inner) for inner in held]
    if kind == "M":
        return {name: _plain(inner) for name, inner in held.items()}
    return held
