"""Replies that are lost on the wire, after DynamoDB has done what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from tests.aws_fixture import ENVIRON, PATIENT
from tests.dynamodb_local.takes import budget, requests, slot, tokens
from tests.faults.rig import say
from tollgate.adapters import dynamodb, dynamodb_limit_subjects
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.dynamodb_limit_items import counter
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.adapters.http import HttpClient
from tollgate.domain.limits import Admission, Settlement, Take
from tollgate.ports import StoreUnavailable

MINUTE = 60_000_000


class Dropping:
    """A wire to a server: passes requests on, and hangs up instead of passing some of the answers back."""

    def __init__(self, url: str, drops: Callable[[bytes], bool]) -> None:
        self._target = int(url.rpartition(":")[2])
        self._drops = drops
        self.dropped = 0
        self.url = ""

    async def __aenter__(self) -> Dropping:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await _message(reader)
                back.write(request)
                answer = await _message(there)
                if self._drops(request):
                    self.dropped += 1
                    break
                writer.write(answer)
        writer.close()
        back.close()


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return head + await reader.readexactly(int(length.partition(b":")[2]))


def every_second(*what: bytes) -> Callable[[bytes], bool]:
    """Every other request of these kinds: the one that is repeated comes through."""
    seen = 0

    def drops(request: bytes) -> bool:
        nonlocal seen
        if not any(word in request for word in what):
            return False
        seen += 1
        return seen % 2 == 1

    return drops


@asynccontextmanager
async def container(wire: Dropping, table: str) -> AsyncIterator[DynamoLimitStore]:
    http = HttpClient()
    client = AwsClient.for_service("dynamodb", http, ENVIRON | {"AWS_ENDPOINT_URL": wire.url}, PATIENT)
    yield DynamoLimitStore(client, table)
    await http.aclose()


async def ask(
    store: DynamoLimitStore, takes: list[Take], count: int, *, settle: bool, name: str = ""
) -> tuple[int, int]:
    """One after the other; how many were admitted, and how many could not be told."""
    admitted = unknown = 0
    for i in range(count):
        try:
            admitted += (await store.admit(Admission(f"{name}{i}", takes, 10 * MINUTE, "acme"))).admitted
        except StoreUnavailable as error:
            if settle:
                say(f"request {i} could not be told: {error}")
            unknown += 1
            continue
        if settle:
            used = [None, 3, 4, 0]
            assert await store.settle(Settlement(f"{i}", takes, used, "acme"))
    return admitted, unknown


@pytest.fixture(autouse=True)
def again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost is asked for again even where a busy machine took a second to lose it."""
    monkeypatch.setattr(dynamodb, "AGAIN_WITHIN_S", 60)
    monkeypatch.setattr(dynamodb_limit_subjects, "AGAIN_WITHIN_S", 60)


@pytest.fixture
def numbers(client: AwsClient, runner: asyncio.Runner, table: str) -> Callable[[list[Take]], list[int]]:
    def read(takes: list[Take]) -> list[int]:
        key = {"pk": {"S": f"s#{takes[0].subject}"}}
        item = runner.run(client.call("GetItem", {"TableName": table, "Key": key, "ConsistentRead": True}))["Item"]
        return [int(item[counter(take)]["N"]) for take in takes]

    return read


def test_a_thousand_replies_dropped_are_a_thousand_charges(
    url: str, table: str, client: AwsClient, runner: asyncio.Runner, numbers: Callable[[list[Take]], list[int]]
) -> None:
    """Few of the requests in flight have a hold of their own by which they are found."""
    takes: list[Take] = [budget(7, 10**6), slot(2000)]
    store = DynamoLimitStore(client, table)
    runner.run(store.admit(Admission("first", [budget(0, seed=0)], MINUTE, "acme")))

    async def run() -> tuple[int, int, int]:
        async with Dropping(url, every_second(b".UpdateItem")) as wire, container(wire, table) as store:
            return *await ask(store, takes, 1000, settle=False), wire.dropped

    admitted, unknown, dropped = runner.run(run())
    assert dropped >= 1000
    assert (admitted, unknown) == (1000, 0)
    assert numbers(takes) == [7000, 1000]


def test_whatever_is_dropped_is_settled_once(
    url: str, table: str, client: AwsClient, runner: asyncio.Runner, numbers: Callable[[list[Take]], list[int]]
) -> None:
    takes: list[Take] = [requests(2000), tokens(7, 10**6), budget(7, 10**6), slot(2000)]
    store = DynamoLimitStore(client, table)
    runner.run(store.admit(Admission("first", [budget(0, seed=0)], MINUTE, "acme")))

    async def run() -> tuple[int, int]:
        drops = every_second(b".UpdateItem", b".PutItem")
        async with Dropping(url, drops) as wire, container(wire, table) as store:
            return await ask(store, takes, 200, settle=True)

    assert runner.run(run()) == (200, 0)
    assert numbers(takes)[2:] == [4 * 200, 0]


@pytest.mark.parametrize("containers", [1, 40])
def test_at_once_each_is_charged_once_whether_it_can_be_told_or_not(
    containers: int,
    url: str,
    table: str,
    client: AwsClient,
    runner: asyncio.Runner,
    numbers: Callable[[list[Take]], list[int]],
) -> None:
    """Among many at once an item may not remember the first loss of a container: that request fails, and is not charged
    again. From then on nearly every loss is told."""
    take = requests(2000)

    async def run() -> list[tuple[int, int]]:
        async with Dropping(url, every_second(b".UpdateItem")) as wire, AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(container(wire, table)) for _ in range(containers)]
            callers = (ask(stores[n % containers], [take], 10, settle=False, name=f"{n}.") for n in range(40))
            return await asyncio.gather(*callers)

    first = runner.run(DynamoLimitStore(client, table).admit(Admission("first", [take], MINUTE, "acme")))
    told = runner.run(run())
    admitted, unknown = (sum(numbers) for numbers in zip(*told, strict=True))
    say(f"of {admitted + unknown} requests of {containers} containers {unknown} could not be told")
    charged = (numbers([take])[0] - first.values[0]) // take.inc_us
    assert admitted <= charged <= admitted + unknown == 400
    assert unknown <= containers + 10  # who loses eight replies of one write gives up
