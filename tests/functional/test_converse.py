"""Bedrock's Converse, called by boto3 as its users do: an endpoint URL and a bearer token are all that they change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError

from tests.functional.callers import Caller, Callers

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": [{"text": "Hello, world"}]}]}


def bedrock(caller: Caller) -> Any:
    """boto3's client. Over HTTPS it takes the token from AWS_BEARER_TOKEN_BEDROCK; over plain HTTP it would not send
    one, so it is added here."""
    config = Config(signature_version=UNSIGNED, retries={"total_max_attempts": 1})
    client = boto3.client("bedrock-runtime", "eu-central-1", endpoint_url=caller.url, config=config)
    authorize = partial(_authorize, token=caller.token)
    client.meta.events.register("before-send.bedrock-runtime", authorize)
    _made.append(client)
    return client


_made: list[Any] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """A client keeps its connections until it is closed."""
    yield
    while _made:
        _made.pop().close()


def _authorize(request: Any, token: str, **about: Any) -> None:
    request.headers["Authorization"] = f"Bearer {token}"


def text_of(answer: dict[str, Any]) -> str:
    return "".join(part["text"] for part in answer["output"]["message"]["content"])


def test_a_whole_answer_and_a_stream_are_the_same_and_billed_so(callers: Callers) -> None:
    caller = callers()
    client = bedrock(caller)
    limited = {**HELLO, "inferenceConfig": {"maxTokens": 5}}
    whole = client.converse(modelId="nova", **limited)
    assert (whole["stopReason"], whole["usage"]["outputTokens"]) == ("max_tokens", 5)
    assert whole["ResponseMetadata"]["HTTPHeaders"]["x-request-id"].startswith("req_")
    events = list(client.converse_stream(modelId="nova", **limited)["stream"])
    deltas = [event["contentBlockDelta"]["delta"]["text"] for event in events if "contentBlockDelta" in event]
    assert "".join(deltas).rstrip() == text_of(whole)
    assert events[-1]["metadata"]["usage"] == whole["usage"]
    entries = callers.entries(caller, 2)
    assert [entry["route"] for entry in entries] == ["/model/*/converse", "/model/*/converse-stream"]
    for entry in entries:
        counted = (entry["input_tokens"], entry["output_tokens"], entry["estimated"])
        assert counted == (whole["usage"]["inputTokens"], 5, False)
        assert (entry["model"], entry["upstream_model"]) == ("nova", "eu.amazon.nova-lite-v1:0")
        assert entry["cost_microusd"] == entry["input_tokens"] + 2 * 5


@pytest.mark.parametrize(
    ("model", "more", "code", "status"),
    [
        ("nowhere-to-be-found", {}, "ResourceNotFoundException", 404),
        ("small", {}, "ValidationException", 400),
        ("nova", {"serviceTier": {"type": "flex"}}, "ValidationException", 400),
        ("nova", {"inferenceConfig": {"maxTokens": 10**9}}, "ValidationException", 400),
    ],
)
def test_refusals_are_exceptions_of_the_sdk(
    callers: Callers, model: str, more: dict[str, Any], code: str, status: int
) -> None:
    client = bedrock(callers(limits=[{"scope": "user", "tokens": 1000, "per": "day"}]))
    for call in (client.converse, client.converse_stream):
        with pytest.raises(ClientError) as caught:
            call(modelId=model, **HELLO, **more)
        assert caught.value.response["Error"]["Code"] == code
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
        assert caught.value.response["Error"]["Message"]


def test_limits_and_rules_hold_here_too(callers: Callers) -> None:
    caller = callers(limits=[{"scope": "user", "requests": 1, "per": "day"}])
    client = bedrock(caller)
    client.converse(modelId="nova", **HELLO)
    with pytest.raises(ClientError) as caught:
        client.converse_stream(modelId="nova", **HELLO)
    assert caught.value.response["Error"]["Code"] == "ThrottlingException"
    assert "retry-after" in caught.value.response["ResponseMetadata"]["HTTPHeaders"]
    for regions, allowed in ((["eu"], True), (["eu-central-1"], False), (["us"], False)):
        ruled = callers()
        callers.put(ruled.tenant, data={"regions": regions})
        if allowed:
            bedrock(ruled).converse(modelId="nova", **HELLO)
            continue
        with pytest.raises(ClientError) as caught:  # the profile spreads calls over Europe
            bedrock(ruled).converse(modelId="nova", **HELLO)
        assert caught.value.response["Error"]["Code"] == "AccessDeniedException"


@contextmanager
def broken_off() -> Iterator[None]:
    with pytest.raises(EventStreamError) as caught:
        yield
    assert caught.value.response["Error"]["Code"] == "modelStreamErrorException"


def test_a_stream_that_breaks_ends_with_an_exception_and_an_estimate(callers: Callers) -> None:
    caller = callers()
    events: list[dict[str, Any]] = []
    with broken_off(), closing(bedrock(caller).converse_stream(modelId="nova-breaks", **HELLO)["stream"]) as stream:
        for event in stream:
            events.append(event)
    assert sum("contentBlockDelta" in event for event in events) == 3
    (entry,) = callers.entries(caller, 1)
    assert (entry["outcome"], entry["estimated"]) == ("upstream_closed", True)
    assert entry["output_tokens"] > 0
