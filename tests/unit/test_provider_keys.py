"""Provider keys: read once, and whichever of the old and the new one a provider refuses, the other is tried."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from tests.aws_fixture import ENVIRON, aws_endpoint
from tests.raw_http import client
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.provider_keys import HOPELESS_S, REFUSED_S, ProviderKeys, provider_key
from tollgate.ports import SecretUnavailable


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with aws_endpoint() as found:
        yield found


class Manager:
    """Secrets Manager, with its calls counted."""

    def __init__(self, client: AwsClient) -> None:
        self._client = client
        self.reads: list[str] = []
        self.now = 0.0
        self.keys = ProviderKeys(self, clock_s=lambda: self.now)  # type: ignore[arg-type]  # as little as it needs

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        self.reads.append(payload["SecretId"])
        return await self._client.call(operation, payload, retry=retry)

    async def put(self, name: str, value: str) -> None:
        operation, key = ("PutSecretValue", "SecretId") if name in self.reads else ("CreateSecret", "Name")
        await self._client.call(operation, {key: name, "SecretString": value})


def with_manager(url: str, use: Callable[[Manager], Awaitable[None]]) -> None:
    async def run() -> None:
        async with client() as http:
            await use(Manager(AwsClient.for_service("secretsmanager", http, ENVIRON | {"AWS_ENDPOINT_URL": url})))

    asyncio.run(run())


def test_a_key_is_read_once(url: str) -> None:
    async def use(manager: Manager) -> None:
        await manager.put("tollgate/openai", "sk-one\n")
        await manager.put("tollgate/json", '{"api_key": "sk-json"}')
        keys = manager.keys
        assert set(await asyncio.gather(*(keys.get("tollgate/openai") for _ in range(20)))) == {"sk-one"}
        assert await keys.get("tollgate/openai") == "sk-one"
        assert await keys.get("tollgate/json") == "sk-json"
        assert manager.reads == ["tollgate/openai", "tollgate/json"]

    with_manager(url, use)


def test_a_key_that_was_rotated_is_read_once_however_many_calls_were_refused(url: str) -> None:
    async def use(manager: Manager) -> None:
        await manager.put("a", "sk-one")
        keys = manager.keys
        await keys.get("a")
        await manager.put("a", "sk-two")
        assert await keys.get("a") == "sk-one"  # until it is refused
        assert await asyncio.gather(*(keys.another("a", "sk-one") for _ in range(50))) == ["sk-two"] * 50
        assert await keys.another("a", "sk-one") == "sk-two"  # a late refusal of the old one
        assert await keys.get("a") == "sk-two"
        assert len(manager.reads) == 2

    with_manager(url, use)


def test_a_new_key_that_the_provider_does_not_know_yet(url: str) -> None:
    async def use(manager: Manager) -> None:
        await manager.put("b", "sk-one")
        await manager.keys.get("b")
        await manager.put("b", "sk-two")
        fresh = manager.keys = ProviderKeys(manager, clock_s=lambda: manager.now)  # type: ignore[arg-type]  # as little as it needs
        assert await fresh.get("b") == "sk-two"
        assert await fresh.another("b", "sk-two") == "sk-one"
        manager.now += REFUSED_S  # and later the old one is revoked
        assert await fresh.another("b", "sk-one") == "sk-two"

    with_manager(url, use)


def test_when_all_keys_are_refused_they_are_not_read_all_the_time(url: str) -> None:
    async def use(manager: Manager) -> None:
        await manager.put("c", "sk-one")
        keys = manager.keys
        await keys.get("c")
        assert await keys.another("c", "sk-one") is None
        reads = len(manager.reads)
        assert await asyncio.gather(*(keys.another("c", "sk-one") for _ in range(50))) == [None] * 50
        assert len(manager.reads) == reads
        await manager.put("c", "sk-two")
        manager.now += HOPELESS_S
        assert await keys.another("c", "sk-one") == "sk-two"
        assert await keys.another("c", "sk-two") is None  # not the one that was refused a moment ago
        assert await keys.get("c") == "sk-two"

    with_manager(url, use)


def test_an_impatient_reader_does_not_fail_the_others(url: str) -> None:
    async def use(manager: Manager) -> None:
        await manager.put("d", "sk")
        first, second = (asyncio.ensure_future(manager.keys.get("d")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == "sk"

    with_manager(url, use)


def test_a_secret_that_cannot_be_read_is_tried_again_next_time(url: str) -> None:
    async def use(manager: Manager) -> None:
        keys = manager.keys
        with pytest.raises(SecretUnavailable, match="ResourceNotFoundException"):
            await keys.get("late")
        manager.reads.clear()
        await manager.put("late", "sk")
        assert await keys.get("late") == "sk"
        await manager.put("late", '{"other": "c0ffee"}')
        with pytest.raises(SecretUnavailable) as caught:
            await keys.another("late", "sk")
        assert "c0ffee" not in str(caught.value)
        assert await keys.get("late") == "sk"

    with_manager(url, use)


@pytest.mark.parametrize(
    ("held", "key"),
    [
        ("sk-1\n", "sk-1"),
        (' {"api_key": " sk-2 "}', "sk-2"),
        ('{"api_key": 7}', None),
        ("{", None),
        ("", None),
        (None, None),
        ("two\nlines", None),  # it would be a second header
        ("two words", None),
        ("schlüssel", None),
        ("x" * 5000, None),
    ],
)
def test_what_is_a_key(held: object, key: str | None) -> None:
    assert provider_key(held) == key
