"""The unmodified OpenAI SDK, synchronous and asynchronous: what it gets, and which of its own errors it raises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, DefaultHttpxClient, OpenAI

from tests.functional.callers import HELLO, Caller, Callers
from tests.functional.scripted import ScriptedUpstream
from tests.tokens import b64
from tests.waiting import PATIENCE_S

ONE_A_DAY = {"scope": "user", "requests": 1, "per": "day"}


@pytest.fixture(scope="module")
def caller(callers: Callers) -> Caller:
    """Somebody without limits to speak of."""
    return callers()


@pytest.fixture(scope="module")
def client(caller: Caller) -> Iterator[OpenAI]:
    with caller.sdk() as made:
        yield made


class Sent:
    """Counts the requests that a client sends; give `client` to the SDK."""

    def __init__(self) -> None:
        self.number = 0
        self.client = DefaultHttpxClient(event_hooks={"request": [self._count]})

    def _count(self, request: object) -> None:
        self.number += 1


# -- what works ------------------------------------------------------------------------------------------------------


def test_chat_completion(client: OpenAI) -> None:
    answer = client.chat.completions.create(**HELLO, max_tokens=5)
    assert answer.choices[0].message.content == "the gate lets you in"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (8, 5)
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")


def test_several_answers(client: OpenAI) -> None:
    answer = client.chat.completions.create(**HELLO, max_completion_tokens=4, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


@pytest.mark.parametrize("options", [{}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}])
def test_a_stream_without_usage(client: OpenAI, options: dict[str, Any]) -> None:
    """The gateway asks the provider for usage all the same; who did not ask for it sees nothing of that."""
    chunks = list(client.chat.completions.create(**HELLO, max_tokens=5, stream=True, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "the gate lets you in"
    assert all(chunk.choices for chunk in chunks)
    assert not any(chunk.usage for chunk in chunks)


def test_a_stream_with_usage(client: OpenAI) -> None:
    *chunks, last = client.chat.completions.create(
        **HELLO, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "the gate lets you in"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 13


def test_the_asynchronous_client(caller: Caller) -> None:
    async def talk() -> None:
        async with AsyncOpenAI(api_key=caller.token, base_url=f"{caller.url}/v1") as client:
            whole, stream, models = await asyncio.gather(
                client.chat.completions.create(**HELLO, max_tokens=5),
                client.chat.completions.create(**HELLO, max_tokens=5, stream=True),
                client.models.list(),
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            assert text == whole.choices[0].message.content == "the gate lets you in"
            assert "small" in [model.id for model in models.data]
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(**{**HELLO, "model": "unheard-of"})

    asyncio.run(talk())


def test_models_are_those_of_the_plan(client: OpenAI, callers: Callers) -> None:
    assert [model.id for model in client.models.list()][:4] == ["small", "large", "embed", "claude"]
    assert client.models.retrieve("claude").owned_by == "tollgate"
    with callers("free").sdk() as free:
        assert [model.id for model in free.models.list()] == ["small"]
        with pytest.raises(openai.NotFoundError):
            free.models.retrieve("large")


def test_embeddings(client: OpenAI) -> None:
    found = client.embeddings.create(model="embed", input=["one text", "another"], encoding_format="float")
    assert [entry.index for entry in found.data] == [0, 1]
    assert found.usage.prompt_tokens == 4


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(model="small", prompt="Once upon a time", max_tokens=3)
    assert answer.choices[0].text == "the gate lets"
    chunks = list(client.completions.create(model="small", prompt="Once upon a time", max_tokens=3, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "the gate lets"


def test_responses(client: OpenAI) -> None:
    answer = client.responses.create(model="small", input="Hello, world", max_output_tokens=5)
    assert answer.output_text == "the gate lets you in"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 5
    # the provider keeps nothing unless the caller says so; and then the plan has to allow it
    assert answer.model_extra is not None
    assert answer.model_extra["store"] is False
    events = list(client.responses.create(model="small", input="Hello, world", max_output_tokens=5, stream=True))
    assert (events[0].type, events[-1].type) == ("response.created", "response.incomplete")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas).strip() == "the gate lets you in"


def test_messages_of_anthropic(caller: Caller) -> None:
    question = {"model": "claude", "max_tokens": 5, "messages": HELLO["messages"]}
    answer = caller.post("/v1/messages", question, {"anthropic-version": "2023-06-01"})
    assert answer.status == 200
    assert answer.json["content"] == [{"type": "text", "text": "the gate lets you in"}]
    assert answer.json["usage"]["output_tokens"] == 5
    stream = caller.post("/v1/messages", {**question, "stream": True})
    names = [line.removeprefix(b"event: ") for line in stream.body.splitlines() if line.startswith(b"event: ")]
    assert (names[0], names[-1]) == (b"message_start", b"message_stop")
    refused = caller.post("/v1/messages", {**question, "model": "unheard-of"})
    assert refused.status == 404
    assert refused.json["type"] == "error"
    assert refused.json["error"]["type"] == "not_found_error"


def test_unknown_fields_survive_both_ways(client: OpenAI) -> None:
    """The demo model echoes the request's fields that it does not know, in a field that the SDK does not know."""
    unknown = {"x_new_field": {"deep": [1, 2.5, None, "ä"]}, "another": "one"}
    answer = client.chat.completions.create(**HELLO, extra_body=unknown)
    assert answer.model_extra is not None
    assert answer.model_extra["echo"] == unknown
    for chunk in client.chat.completions.create(**HELLO, extra_body=unknown, stream=True):
        assert chunk.model_extra is not None
        assert chunk.model_extra["echo"] == unknown


def test_the_provider_gets_the_callers_bytes(caller: Caller, upstream: ScriptedUpstream) -> None:
    """Only the model's name is changed; every other byte is as the caller wrote it, and no header of theirs passes."""
    odd = (
        b'{ "x": 1.50e+1, "model" :"scripted","\\u006dessages":[{"role":"user","content":"h\\u00e9\\/"}],'
        b' "big":12345678901234567890 }'
    )
    with upstream.play() as requests:
        headers = {"cookie": "a=b", "x-forwarded-for": "6.6.6.6", "openai-organization": "org", "idempotency-key": "1"}
        answer = caller.post("/v1/chat/completions", odd, headers)
    assert answer.status == 200
    assert answer.json["model"] == "scripted"
    (request,) = requests
    assert request.path == "/v1/chat/completions"
    assert request.body == odd.replace(b'"scripted"', b'"scripted-model"')
    assert request.headers.keys() <= {"host", "content-type", "content-length", "accept", "accept-encoding"}
    assert request.headers["accept-encoding"] == "identity"


def test_an_alias_reaches_the_provider_under_its_real_name(client: OpenAI) -> None:
    assert client.chat.completions.create(**HELLO, max_tokens=1).model == "gpt-4o-mini"


# -- errors ----------------------------------------------------------------------------------------------------------


def unsigned(token: str) -> str:
    """The same claims under `alg: none`."""
    header = b64('{"alg":"none","typ":"JWT"}')
    claims = token.split(".")[1]
    return f"{header}.{claims}."


def forged(token: str) -> str:
    """The same, with another tenant and the old signature."""
    head, body, signature = token.split(".")
    return f"{head}.{body[:-4]}AAAA.{signature}"


@pytest.mark.parametrize("spoil", [lambda token: "sk-not-a-token", unsigned, forged], ids=["garbled", "none", "forged"])
def test_bad_tokens_are_authentication_errors(caller: Caller, spoil: Callable[[str], str]) -> None:
    sent = Sent()
    spoilt = caller.sdk(api_key=spoil(caller.token), http_client=sent.client)
    with spoilt as client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(**HELLO)
    assert caught.value.code == "invalid_api_key"
    assert sent.number == 1


def test_an_expired_token_is_an_authentication_error(caller: Caller, callers: Callers) -> None:
    past = callers.token(caller.tenant, caller.user, exp=int(time.time()) - 1)
    with caller.sdk(api_key=past) as client, pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(**HELLO)


def test_a_token_expires_although_it_was_accepted_a_moment_ago(caller: Caller, callers: Callers) -> None:
    """API Gateway remembers the authorizer's answer for longer than this token lives."""
    brief = callers.token(caller.tenant, caller.user, exp=int(time.time()) + 5)
    headers = {"authorization": f"Bearer {brief}"}
    assert caller.get("/v1/models", headers).status == 200
    until = time.monotonic() + PATIENCE_S
    while (answer := caller.get("/v1/models", headers)).status == 200:
        assert time.monotonic() < until
        time.sleep(0.2)
    assert answer.status == 401
    assert answer.error["code"] == "invalid_api_key"


@pytest.mark.parametrize("headers", [{"authorization": ""}, {"authorization": "Basic YTpi"}, {"x-api-key": "x"}])
def test_no_token(caller: Caller, headers: dict[str, str]) -> None:
    nobody = Caller(caller.url, "", "", "")
    answer = nobody.request("POST", "/v1/chat/completions", b"{}", {"authorization": "", **headers})
    assert answer.status == 401
    assert answer.error["code"] == "invalid_api_key"


def test_two_tokens_are_none(caller: Caller) -> None:
    twice = [("authorization", f"Bearer {caller.token}")] * 2
    assert caller.request("GET", "/v1/models", headers=twice).status == 401


def test_a_model_outside_the_plan_is_a_permission_error(callers: Callers) -> None:
    with callers("free").sdk() as client, pytest.raises(openai.PermissionDeniedError) as caught:
        client.chat.completions.create(**{**HELLO, "model": "large"})
    assert caught.value.code == "model_not_allowed"
    assert caught.value.param == "model"


def test_a_tenant_that_nobody_knows_is_a_permission_error(callers: Callers) -> None:
    """A token may be good and its tenant gone."""
    with callers.colleague("never-made", "alice").sdk() as client, pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(**HELLO)


def test_an_unknown_model_is_a_not_found_error(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**{**HELLO, "model": "unheard-of"})
    assert caught.value.code == "model_not_found"
    assert "unheard-of" in caught.value.message


def test_a_route_that_does_not_exist_is_a_not_found_error(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.post("/chat/complaints", body={}, cast_to=object)


@pytest.mark.parametrize("fields", [{"messages": []}, {"n": 0}, {"max_tokens": -1}, {"stream": "yes"}])
def test_a_malformed_request_is_a_bad_request_error(client: OpenAI, fields: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**HELLO, **fields})
    assert caught.value.param == next(iter(fields))


def test_a_rate_limit_error_says_when_to_come_back(callers: Callers) -> None:
    sent = Sent()
    caller = callers(limits=[ONE_A_DAY])
    with caller.sdk(max_retries=0, http_client=sent.client) as client:
        client.chat.completions.create(**HELLO)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**HELLO)
    assert 86_300 < int(caught.value.response.headers["retry-after"]) <= 86_400
    assert caught.value.response.headers["x-ratelimit-type"] == "User"
    assert caught.value.code == "rate_limit_exceeded"
    assert sent.number == 2


def test_the_sdk_comes_back_when_it_was_told_to(callers: Callers) -> None:
    sent = Sent()
    caller = callers(limits=[{"scope": "user", "requests": 30, "per": "minute", "burst": 1}])
    with caller.sdk(http_client=sent.client) as client:
        began = time.monotonic()
        for _ in range(3):
            client.chat.completions.create(**HELLO, max_tokens=1)
        assert time.monotonic() - began >= 3.9
    assert 3 < sent.number <= 5, "three admitted, and mostly two told to wait two seconds"


@pytest.mark.parametrize("stream", [False, True])
def test_an_empty_budget_is_not_retried(callers: Callers, stream: bool) -> None:
    """The SDK has no class for 402, and every retry would be futile until the budget resets."""
    sent = Sent()
    caller = callers(budgets=[{"scope": "user", "requests": 0, "per": "day"}])
    with caller.sdk(http_client=sent.client, max_retries=5) as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**HELLO, stream=stream)
    assert caught.value.status_code == 402
    assert caught.value.code == "insufficient_quota"
    assert sent.number == 1


def test_an_error_has_the_requests_id(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**{**HELLO, "model": "unheard-of"})
    assert caught.value.request_id is not None
    assert caught.value.request_id.startswith("req_")
