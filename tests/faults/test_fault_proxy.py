"""The fault proxy does to traffic what it says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests.aws_fixture import ENVIRON
from tests.fault_proxy import AwsFaultProxy, FaultProxy
from tests.faults.rig import run
from tollgate.adapters.aws import AwsClient, AwsError
from tollgate.adapters.http import HttpClient


class Echo:
    """A server that answers each line with the same line, and remembers it."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.port = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.heard.append(line)
                writer.write(line)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Echo]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()


class Line:
    """A client of `Echo`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, text: bytes = b"hello\n", seconds: float = 2.0) -> bytes:
        self._writer.write(text)
        return await self.hear(seconds)

    async def hear(self, seconds: float = 2.0) -> bytes:
        async with asyncio.timeout(seconds):
            return await self._reader.readline()

    def close(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[FaultProxy, Echo, Callable[[], Awaitable[Line]]]]:
    lines: list[Line] = []
    async with Echo().running() as echo, FaultProxy(echo.port) as proxy:

        async def connect() -> Line:
            line = Line(*await asyncio.open_connection("127.0.0.1", proxy.port))
            lines.append(line)
            return line

        try:
            yield proxy, echo, connect
        finally:
            for line in lines:
                line.close()


def test_without_a_fault_bytes_pass_both_ways() -> None:
    async def scenario() -> None:
        async with proxied() as (proxy, echo, connect):
            line = await connect()
            assert [await line.ask(b"%d\n" % i) for i in range(3)] == [b"0\n", b"1\n", b"2\n"]
            large = b"x" * 50_000 + b"\n"
            assert await line.ask(large) == large
            assert proxy.accepted == 1
            assert len(echo.heard) == 4

    run(scenario)


def test_latency_is_added_each_way_and_not_once_more_per_chunk() -> None:
    async def scenario() -> None:
        async with proxied() as (proxy, _, connect):
            line = await connect()
            proxy.latency_s, proxy.jitter_s = 0.05, 0.01
            began = time.monotonic()
            assert await line.ask() == b"hello\n"
            assert time.monotonic() - began >= 0.1
            for i in range(50):
                line._writer.write(b"%d\n" % i)
                await asyncio.sleep(0.001)
            assert [await line.hear() for _ in range(50)] == [b"%d\n" % i for i in range(50)]
            assert time.monotonic() - began < 5  # what 50 chunks one after the other would take

    run(scenario)


def test_bandwidth_is_a_ceiling() -> None:
    async def scenario() -> None:
        async with proxied() as (proxy, _, connect):
            line = await connect()
            proxy.bytes_per_s = 100_000
            began = time.monotonic()
            assert len(await line.ask(b"x" * 10_000 + b"\n")) == 10_001
            assert time.monotonic() - began >= 0.2

    run(scenario)


def test_a_stall_holds_bytes_and_delivers_them_afterwards() -> None:
    async def scenario() -> None:
        async with proxied() as (proxy, echo, connect):
            line = await connect()
            with proxy.stalled():
                with pytest.raises(TimeoutError):
                    await line.ask(seconds=0.1)
                late = await connect()
                with pytest.raises(TimeoutError):
                    await late.ask(b"late\n", seconds=0.1)
                assert echo.heard == []
            assert await line.hear() == b"hello\n"
            assert await late.hear() == b"late\n"

    run(scenario)


def test_reset_ends_what_is_there_and_refuse_keeps_out_what_comes() -> None:
    async def scenario() -> None:
        async with proxied() as (proxy, _, connect):
            line = await connect()
            assert await line.ask() == b"hello\n"
            proxy.refuse()
            assert await line.ask() == b"hello\n"
            with pytest.raises(ConnectionRefusedError):
                await connect()
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                await line.hear()
            await proxy.accept()
            assert await (await connect()).ask() == b"hello\n"

    run(scenario)


def test_half_open_connections_and_new_ones_are_never_answered() -> None:
    async def scenario() -> None:
        async with proxied() as (proxy, echo, connect):
            line = await connect()
            assert await line.ask() == b"hello\n"
            proxy.half_open = True
            for each in (line, await connect()):
                with pytest.raises(TimeoutError):
                    await each.ask(b"lost\n", seconds=0.1)
            proxy.half_open = False
            assert await line.ask(b"again\n") == b"again\n"
            assert echo.heard == [b"hello\n", b"again\n"]

    run(scenario)


@pytest.mark.parametrize("close", [False, True])
def test_a_dropped_reply_is_lost_after_the_server_has_done_the_work(close: bool) -> None:
    async def scenario() -> None:
        async with proxied() as (proxy, echo, connect):
            line, other = await connect(), await connect()
            assert await line.ask() == b"hello\n"
            proxy.drop_replies(1, close=close)
            if close:
                assert await line.ask(b"done\n") == b""
            else:
                with pytest.raises(TimeoutError):
                    await line.ask(b"done\n", seconds=0.1)
            assert (echo.heard[-1], proxy.dropped) == (b"done\n", 1)
            assert await other.ask() == b"hello\n"

    run(scenario)


def test_a_reply_is_cut_in_the_middle() -> None:
    async def scenario() -> None:
        async with proxied() as (proxy, _, connect):
            line = await connect()
            proxy.cut_reply(3)
            line._writer.write(b"hello\n")
            assert await line._reader.readexactly(3) == b"hel"
            with pytest.raises(ConnectionResetError):
                await line.hear()

    run(scenario)


def test_a_server_that_is_gone_resets_its_clients() -> None:
    async def scenario() -> None:
        async with proxied() as (proxy, _, connect):
            proxy.target = 1
            with pytest.raises(ConnectionResetError):
                await (await connect()).hear()

    run(scenario)


def test_throttling_is_answered_in_the_place_of_dynamodb() -> None:
    from tests.aws_fixture import aws_endpoint, make_table

    async def scenario(port: int) -> None:
        http = HttpClient()
        async with AwsFaultProxy(port) as proxy:
            client = AwsClient.for_service(
                "dynamodb", http, ENVIRON | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}
            )
            table = await make_table(client)

            def hot(operation: str, payload: dict[str, object]) -> tuple[int, str] | None:
                return (400, "ProvisionedThroughputExceededException") if "hot" in str(payload) else None

            proxy.fault = hot
            for pk in ("hot", "cold", "hot"):
                put = client.call("PutItem", {"TableName": table, "Item": {"pk": {"S": pk}}})
                if pk == "cold":
                    await put
                    continue
                with pytest.raises(AwsError) as caught:
                    await put
                assert caught.value.code == "ProvisionedThroughputExceededException"
            assert proxy.calls == ["CreateTable", "PutItem", "PutItem", "PutItem"]
        await http.aclose()

    with aws_endpoint() as url:
        run(lambda: scenario(int(url.rpartition(":")[2])))
