"""Provider keys from Secrets Manager: read once per process, again when a provider refuses one. Never written anywhere.

A key is rotated by a new version of its secret; the old one stays behind it as AWSPREVIOUS. Whichever of the two a
provider refuses, the other is tried: so neither a process that still has the old key, nor one that reads the new key
before the provider knows it, meets an error.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine
from typing import Any

import orjson

from tollgate.adapters.aws import AwsClient, AwsError
from tollgate.adapters.http_message import UpstreamError
from tollgate.ports import SecretUnavailable

HOPELESS_S = 5.0
"""After all that the secret holds was refused, it is not read again for so long, however many calls are refused."""
REFUSED_S = 30.0
"""For so long a key that was refused is not offered again."""
_KEY = re.compile(r"[\x21-\x7e]{1,4096}")
"""What can stand in a header."""


def provider_key(text: object) -> str | None:
    """The key that a secret's value holds: the text itself, or of a JSON object its `api_key`; None if there is none
    that could be sent."""
    if isinstance(text, str) and text.lstrip().startswith("{"):
        try:
            text = orjson.loads(text).get("api_key")
        except ValueError:
            return None
    if not isinstance(text, str) or not _KEY.fullmatch(text.strip()):
        return None
    return text.strip()


class ProviderKeys:
    """Belongs to one event loop."""

    def __init__(self, client: AwsClient, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock_s = clock_s
        self._known: dict[str, str] = {}
        self._refused: dict[str, dict[str, float]] = {}
        """By name: keys that the provider refused, and until when they are not offered again."""
        self._hopeless: dict[str, float] = {}
        self._reading: dict[str, asyncio.Future[str | None]] = {}

    async def get(self, name: str) -> str:
        """The key. Raises `SecretUnavailable`."""
        known = self._known.get(name)
        if known is not None:
            return known
        found = await self._once(name, self._first)
        assert found is not None
        return found

    async def another(self, name: str, refused: str) -> str | None:
        """The key to try where the provider refused one; None if the secret holds no other. Raises `SecretUnavailable`.

        However many calls are refused at once, the secret is read once.
        """
        known = self._known.get(name)
        if known is not None and known != refused:
            return known  # somebody else has asked meanwhile
        now = self._clock_s()
        if now < self._hopeless.get(name, 0.0):
            return None
        earlier = self._refused.get(name, {})
        self._refused[name] = {key: until for key, until in earlier.items() if until > now} | {refused: now + REFUSED_S}
        found = await self._once(name, self._next)
        return None if found == refused else found

    async def _once(self, name: str, read: Callable[[str], Coroutine[Any, Any, str | None]]) -> str | None:
        """One read at a time of each secret; whoever comes meanwhile waits for it."""
        reading = self._reading.get(name)
        if reading is None:
            reading = self._reading[name] = asyncio.ensure_future(read(name))
            reading.add_done_callback(lambda _: self._reading.pop(name, None))
        return await asyncio.shield(reading)

    async def _first(self, name: str) -> str:
        key = self._known[name] = await self._read(name, "AWSCURRENT")
        return key

    async def _next(self, name: str) -> str | None:
        for stage in ("AWSCURRENT", "AWSPREVIOUS"):
            try:
                key = await self._read(name, stage)
            except SecretUnavailable:
                if stage == "AWSCURRENT":
                    raise
                break  # it was never rotated
            if key not in self._refused[name]:
                self._known[name] = key
                return key
        self._hopeless[name] = self._clock_s() + HOPELESS_S
        return None

    async def _read(self, name: str, stage: str) -> str:
        try:
            answer = await self._client.call("GetSecretValue", {"SecretId": name, "VersionStage": stage}, retry=True)
        except (AwsError, UpstreamError) as error:
            code = error.code if isinstance(error, AwsError) else type(error).__name__
            raise SecretUnavailable(f"the provider key {name!r} cannot be read: {code}") from error
        key = provider_key(answer.get("SecretString"))
        if key is None:
            raise SecretUnavailable(f"the provider key {name!r} is neither text nor JSON with an api_key")
        return key
