"""DynamoDB Local: serialises what is written to an item as DynamoDB does, at whatever concurrency."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.aws_fixture import dynamodb, make_table
from tests.servers import dynamodb_local
from tollgate.adapters.aws import AwsClient


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/dynamodb_local/" in str(item.path):
            item.add_marker(pytest.mark.dynamodb_local)


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    with dynamodb_local() as url:
        yield url


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def client(url: str, runner: asyncio.Runner) -> Iterator[AwsClient]:
    with dynamodb(url, runner) as client:
        yield client


@pytest.fixture
def table(client: AwsClient, runner: asyncio.Runner) -> str:
    return runner.run(make_table(client))
