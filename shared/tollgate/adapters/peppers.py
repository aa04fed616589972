"""The peppers that API keys are hashed with, as operators use them: a secret of Secrets Manager with numbers in it.

Several serve side by side, because a key's secret can only be hashed anew when it is made anew: new ones take the
highest number, old ones go on with theirs. `key_records` reads the same secret in the authorizer.
"""

from __future__ import annotations

import json
import secrets
import uuid
from typing import Any, NamedTuple

from tollgate.adapters.aws import AwsClient, AwsError
from tollgate.adapters.http_message import UpstreamError
from tollgate.adapters.key_records import newest, peppers_of
from tollgate.adapters.tenants_table import Conflict
from tollgate.domain import api_keys
from tollgate.domain.identity import KeysUnavailable
from tollgate.ports import PolicyUnavailable

PEPPER_BYTES = 32
_TOKENS = uuid.UUID("0f7dd1d5-5b51-4b1c-9c4c-5f4f1d9c7a40")


class _Read(NamedTuple):
    peppers: dict[str, bytes]
    version: str
    """Of the secret, as Secrets Manager names it."""


class Peppers:
    """Failures to reach AWS are raised as `PolicyUnavailable`; nothing that is raised says what the secret holds."""

    def __init__(self, secrets_manager: AwsClient, secret: str) -> None:
        self._manager = secrets_manager
        self._secret = secret

    async def numbers(self) -> list[str]:
        """The peppers that there are, oldest first; new secrets are hashed with the last."""
        return sorted((await self._read()).peppers, key=int)

    async def hashed(self, key: str) -> dict[str, str]:
        """What is kept of a key's secret: its hash, and the pepper's number."""
        peppers, _ = await self._read()
        pepper = newest(peppers)
        return {"hash": api_keys.hash_of(peppers[pepper], key), "pepper": pepper}

    async def add(self, *, beyond: int) -> str:
        """A pepper for all secrets from now on. Its number, which is higher than `beyond`. Raises `Conflict`."""
        found = await self._read()
        number = str(max(beyond, int(newest(found.peppers))) + 1)
        await self._replace(found, {**found.peppers, number: secrets.token_hex(PEPPER_BYTES).encode()})
        return number

    async def remove(self, number: str) -> None:
        """Whatever was hashed with it is good for nothing any more. Raises `Conflict`."""
        found = await self._read()
        await self._replace(found, {name: pepper for name, pepper in found.peppers.items() if name != number})

    async def _read(self) -> _Read:
        answer = await self._call("GetSecretValue")
        try:
            return _Read(peppers_of(answer.get("SecretString")), str(answer.get("VersionId")))
        except KeysUnavailable as error:
            raise PolicyUnavailable(str(error)) from error

    async def _replace(self, found: _Read, peppers: dict[str, bytes]) -> None:
        """Secrets Manager knows no conditions. But it makes a version once for each token, and refuses another value
        with the same: so of two who have read one version, one is told."""
        value = json.dumps({number: peppers[number].decode() for number in sorted(peppers, key=int)})
        token = str(uuid.uuid5(_TOKENS, found.version))
        await self._call("PutSecretValue", SecretString=value, ClientRequestToken=token)

    async def _call(self, operation: str, **payload: str) -> dict[str, Any]:
        try:
            return await self._manager.call(operation, {"SecretId": self._secret, **payload}, retry=True)
        except UpstreamError as error:
            raise PolicyUnavailable(f"Secrets Manager cannot be reached: {error}") from error
        except AwsError as error:
            if error.code == "ResourceExistsException":
                raise Conflict("somebody else has changed the peppers just now: try again") from None
            raise PolicyUnavailable(f"the API keys' pepper, secret {self._secret!r}: {error.code}") from error
