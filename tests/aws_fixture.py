"""DynamoDB for tests: moto's server in a thread, its requests serialised as in the local stack."""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tollgate.adapters.aws import AwsClient, AwsError
from tollgate.adapters.dynamodb import Client
from tollgate.adapters.http import HttpClient, Timeouts
from tollgate.local.aws import application


@contextmanager
def aws_endpoint() -> Iterator[str]:
    """The URL of a moto server of one's own."""
    from moto.moto_server.werkzeug_app import MotoRequestHandler
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, application(), threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


ENVIRON = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}

PATIENT = Timeouts(connect=30, first_byte=60, idle=60, total=90)
"""One small server for hundreds of callers, on a machine that has other things to do."""


@contextmanager
def dynamodb(url: str, runner: asyncio.Runner) -> Iterator[AwsClient]:
    """A client of the DynamoDB at `url`, for coroutines that `runner` runs."""

    async def start() -> HttpClient:
        return HttpClient()

    http = runner.run(start())
    yield AwsClient.for_service("dynamodb", http, ENVIRON | {"AWS_ENDPOINT_URL": url}, PATIENT)
    runner.run(http.aclose())


async def make_table(client: Client, *, sort_key: bool = False) -> str:
    """A new table with the keys of the limits table, or (`sort_key`) of the ledger; its name."""
    name = f"t-{uuid.uuid4().hex}"
    attributes = ["pk", "sk", "e"] if sort_key else ["pk"]
    index = {"IndexName": "entries", "KeySchema": _schema("e"), "Projection": {"ProjectionType": "ALL"}}
    await client.call(
        "CreateTable",
        {
            "TableName": name,
            "BillingMode": "PAY_PER_REQUEST",
            "AttributeDefinitions": [{"AttributeName": key, "AttributeType": "S"} for key in attributes],
            "KeySchema": _schema(*attributes[:2]),
            **({"GlobalSecondaryIndexes": [index]} if sort_key else {}),
        },
    )
    return name


def _schema(*keys: str) -> list[dict[str, str]]:
    return [{"AttributeName": key, "KeyType": kind} for key, kind in zip(keys, ("HASH", "RANGE"), strict=False)]


Fault = Callable[[str, dict[str, Any]], Awaitable[None]]


class Recorder:
    """A client that counts the calls that pass through it, and lets a test step in before each."""

    def __init__(self, client: Client, fault: Fault | None = None) -> None:
        self._client = client
        self.fault = fault
        self.calls: list[str] = []

    @property
    def clock_offset_us(self) -> int:
        return self._client.clock_offset_us

    @property
    def clock_known(self) -> bool:
        return self._client.clock_known

    @staticmethod
    def outage() -> AwsError:
        """For faults to raise."""
        return AwsError("InternalServerError", "as if DynamoDB were down", 500, {})

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        self.calls.append(operation)
        if self.fault is not None:
            await self.fault(operation, payload)
        return await self._client.call(operation, payload, retry=retry)
