"""How many usage records metering enters a second, and what a record costs of our own CPU (bench/README.md).

    python -m bench.metering [--records 20000] [--batch 1000] [--users 100] [--http] [--moto] [--dynamodb-local]
                             [--at-once 4]

Without an option the ledger writes to a DynamoDB that answers at once and keeps nothing, so what is left is our own
code: unpacking the log batch, reading, looking for lost settlements, bookkeeping, encoding. With --http that DynamoDB
is another process, so signing and the HTTP client count, too. With --moto or --dynamodb-local it writes to those; what
limits it then is their speed, and it is told beside ours.
--at-once: so many invocations at the same time, on the same counters.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gzip
import json
import multiprocessing
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import orjson

from tests.aws_fixture import ENVIRON, PATIENT, make_table
from tests.records import NOON, a_close
from tests.servers import dynamodb_local, wait_for_port
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.dynamodb import Client
from tollgate.adapters.dynamodb_ledger import DynamoLedger
from tollgate.adapters.http import HttpClient
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.domain import keys
from tollgate.domain.limits import Window
from tollgate.local.children import free_port
from tollgate.services.meter import DeadLetter, meter
from tollgate.services.subscription import unpack


class Nothing:
    """A DynamoDB that does what it is told at once."""

    clock_offset_us = 0
    clock_known = True

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        json_bytes(payload)
        return {}


json_bytes = orjson.dumps


class Letters:
    async def send(self, letters: Sequence[DeadLetter]) -> None:
        raise AssertionError(letters[0].reason)


@dataclass(slots=True)
class Measured:
    records: int
    seconds: float
    cpu: float
    conflicts: int

    def line(self, where: str) -> str:
        own = self.cpu / self.records
        return (
            f"{where:<16} {self.records / self.seconds:>8,.0f} records/s   {own * 1e6:>6.1f} us of our CPU per record"
            f" ({1 / own:,.0f} records/s per core)   {self.conflicts} transactions tried again"
        )


def event(batch: int, size: int, users: int) -> dict[str, Any]:
    """One subscription event: closes of four tenants' users, each counted against a rate, two budgets and a slot."""
    lines = []
    for i in range(size):
        number = batch * size + i
        tenant, user = f"tenant{number % 4}", f"user{number % users}"
        subject, member = keys.tenant_subject(tenant), keys.member_subject(tenant, "u", user)
        settle = (
            ("r", f"{member}:tokens.minute", 120),
            ("b", f"{member}:b:tokens.day:{Window.DAY.bounds(NOON)[0]}", 120),
            ("b", f"{subject}:b:microusd.month:{Window.MONTH.bounds(NOON)[0]}", 70),
            ("c", f"{subject}:slots", 0),
        )
        close = a_close(
            f"req_{number:032x}", tenant=tenant, user=user, model=f"model{number % 3}", input_tokens=100,
            output_tokens=20, cost_microusd=70, settle=settle, rates_us=(360_000,), store="memory",
        )  # fmt: skip
        lines.append({"id": f"{number}", "timestamp": NOON // 1000, "message": json.dumps(close.as_dict())})
    packed = gzip.compress(json.dumps({"messageType": "DATA_MESSAGE", "logEvents": lines}).encode(), 1)
    return {"awslogs": {"data": base64.b64encode(packed).decode()}}


async def measure(client: Client, table: str, options: argparse.Namespace) -> Measured:
    events = [event(i, options.batch, options.users) for i in range(options.records // options.batch)]
    waiting = iter(events)
    conflicts = entered = 0

    async def invocations() -> None:
        nonlocal conflicts, entered
        ledger, store = DynamoLedger(client, table), MemoryLimitStore(clock=lambda: NOON)
        for one in waiting:
            lines, unreadable = unpack(one)
            report = await meter(lines, ledger, store, Letters(), NOON, unreadable)
            conflicts += report.conflicts
            entered += report.entered

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(invocations() for _ in range(options.at_once)))
    done = Measured(entered, time.perf_counter() - started, time.process_time() - cpu, conflicts)
    assert entered == len(events) * options.batch, (entered, len(events))
    return done


def answer_at_once(listener: socket.socket) -> None:
    """A DynamoDB over HTTP that does what it is told at once, until it is ended."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async def run() -> None:
        await (await asyncio.start_server(serve, sock=listener)).serve_forever()

    asyncio.run(run())


@contextmanager
def nothing_over_http() -> Iterator[str]:
    """In a process of its own; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = multiprocessing.get_context("fork").Process(target=answer_at_once, args=(listener,))
        process.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            process.terminate()
            process.join()


async def against(url: str, options: argparse.Namespace, *, table: str = "") -> Measured:
    """`table`: one that needs not be made."""
    http = HttpClient()
    try:
        client = AwsClient.for_service("dynamodb", http, ENVIRON | {"AWS_ENDPOINT_URL": url}, PATIENT)
        return await measure(client, table or await make_table(client, sort_key=True), options)
    finally:
        await http.aclose()


@contextmanager
def moto() -> Iterator[str]:
    """In a process of its own, as in the local stack; its URL."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tollgate.local.aws", "--port", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        wait_for_port(port, process, 30)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=1000, help="records of one log event")
    parser.add_argument("--users", type=int, default=100, help="users that share the records")
    parser.add_argument("--at-once", type=int, default=1, help="invocations at the same time")
    parser.add_argument("--http", action="store_true")
    parser.add_argument("--moto", action="store_true")
    parser.add_argument("--dynamodb-local", action="store_true")
    options = parser.parse_args()
    print(asyncio.run(measure(Nothing(), "ledger", options)).line("nothing behind"))
    with ExitStack() as servers:
        if options.http:
            url = servers.enter_context(nothing_over_http())
            print(asyncio.run(against(url, options, table="ledger")).line("nothing, by HTTP"))
        if options.moto:
            print(asyncio.run(against(servers.enter_context(moto()), options)).line("moto"))
        if options.dynamodb_local:
            print(asyncio.run(against(servers.enter_context(dynamodb_local()), options)).line("DynamoDB Local"))


if __name__ == "__main__":
    main()
