"""A DynamoDB of moto's, and a new table of limits for each test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.aws_fixture import aws_endpoint, dynamodb
from tests.unit.dynamodb.world import World
from tollgate.adapters import dynamodb as calls
from tollgate.adapters import dynamodb_limit_subjects as subjects
from tollgate.adapters.aws import AwsClient


@pytest.fixture(scope="package")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="package")
def client(runner: asyncio.Runner) -> Iterator[AwsClient]:
    with aws_endpoint() as url, dynamodb(url, runner) as client:
        yield client


@pytest.fixture
def again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost is asked for again even where a busy machine took a second to lose it."""
    for module in (calls, subjects):
        monkeypatch.setattr(module, "AGAIN_WITHIN_S", 60)


@pytest.fixture
def world(client: AwsClient, runner: asyncio.Runner) -> World:
    return World(client, runner)
