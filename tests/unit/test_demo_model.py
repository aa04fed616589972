"""The demo model counts what it says, keeps to its limits, and breaks when it is told to."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tollgate.local import demo_text
from tollgate.local.demo_answers import APIS
from tollgate.local.demo_model import DemoModel, Pace

FAST = Pace(first_s=0, between_s=0, answer_tokens=12)


class Answered:
    """What an ASGI application sent."""

    def __init__(self, sent: list[dict[str, Any]]) -> None:
        self.sent = sent
        start = sent[0] if sent else {}
        self.status = start.get("status")
        self.headers = dict(start.get("headers", []))
        self.body = b"".join(message.get("body", b"") for message in sent[1:])
        self.complete = bool(sent) and sent[-1]["type"] == "http.response.body" and not sent[-1].get("more_body")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of each event; JSON where it is."""
        blocks = [block for block in self.body.decode().split("\n\n") if block]
        data = [next(line[6:] for line in block.split("\n") if line.startswith("data: ")) for block in blocks]
        return [json.loads(item) if item.startswith("{") else item for item in data]


def ask(
    model: DemoModel, path: str, fields: Any = None, *, headers: list[tuple[bytes, bytes]] | None = None
) -> Answered:
    """One request; a POST if there are fields (bytes are sent as they are)."""
    sent: list[dict[str, Any]] = []
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()

    async def run() -> None:
        inbox = [{"type": "http.request", "body": body}]

        async def receive() -> dict[str, Any]:
            if inbox:
                return inbox.pop()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "GET" if fields is None else "POST",
            "path": f"/v1{path}",
            "headers": headers or [],
        }
        await model(scope, receive, send)

    asyncio.run(run())
    return Answered(sent)


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": "Hello, world"}], **more}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("Hello, world", 5), ("a b  c\n", 3), ("abcdefgh", 2), ("été", 1), ("日本語です!", 3), ("snake_case", 4)],
)
def test_tokens_can_be_counted_by_hand(text: str, tokens: int) -> None:
    assert demo_text.count(text) == tokens


def test_every_word_of_an_answer_is_one_token() -> None:
    assert [demo_text.count(word) for word in demo_text.words(50)] == [1] * 50


def test_an_answer_counts_what_it_says() -> None:
    answer = ask(DemoModel(FAST), "/chat/completions", chat()).json
    assert answer["usage"]["prompt_tokens"] == 5 + demo_text.MESSAGE_OVERHEAD
    assert answer["usage"]["completion_tokens"] == demo_text.count(answer["choices"][0]["message"]["content"]) == 12
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_maximum_is_honoured(name: str) -> None:
    answer = ask(DemoModel(FAST), "/chat/completions", chat(**{name: 3})).json
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["choices"][0]["finish_reason"] == "length"


def test_n_answers_count_n_times() -> None:
    model = DemoModel(FAST)
    answer = ask(model, "/chat/completions", chat(n=3, max_tokens=4)).json
    assert len(answer["choices"]) == 3
    assert answer["usage"]["completion_tokens"] == 12
    assert ask(model, "/_counts").json == {"requests": 1, "input_tokens": 8, "output_tokens": 12}


def test_stream_ends_with_done_and_has_usage_only_if_asked() -> None:
    plain = ask(DemoModel(FAST), "/chat/completions", chat(stream=True)).events
    assert plain[-1] == "[DONE]"
    assert all("usage" not in event for event in plain[:-1])
    asked = ask(DemoModel(FAST), "/chat/completions", chat(stream=True, stream_options={"include_usage": True})).events
    assert [event["usage"] for event in asked[:-2]] == [None] * (len(asked) - 2)
    assert asked[-2]["choices"] == []
    assert asked[-2]["usage"]["completion_tokens"] == 12
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in asked[:-2])
    assert demo_text.count(text) == 12


def test_stream_of_responses_ends_with_its_usage() -> None:
    events = ask(DemoModel(FAST), "/responses", {"model": "demo", "input": "Hello, world", "stream": True}).events
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["usage"]["output_tokens"] == 12
    cut = ask(DemoModel(FAST), "/responses", {"input": "Hi", "stream": True, "max_output_tokens": 2}).events[-1]
    assert (cut["type"], cut["response"]["usage"]["output_tokens"]) == ("response.incomplete", 2)


def test_stream_of_messages_has_anthropics_events() -> None:
    fields = {"model": "demo", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    events = ask(DemoModel(FAST), "/messages", fields).events
    assert events[0]["message"]["usage"]["input_tokens"] == 1 + demo_text.MESSAGE_OVERHEAD
    assert events[-2]["usage"] == {"output_tokens": 5}
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"
    assert events[-1]["type"] == "message_stop"


def test_embeddings_have_no_output_tokens() -> None:
    model = DemoModel(FAST)
    answer = ask(model, "/embeddings", {"model": "demo", "input": ["one", "two words"]}).json
    assert len(answer["data"]) == 2
    assert answer["usage"] == {"prompt_tokens": 1 + 3, "total_tokens": 4}
    assert model.counts.output_tokens == 0
    assert len(ask(model, "/embeddings", {"input": [1, 2, 3]}).json["data"]) == 1


@pytest.mark.parametrize("path", sorted(APIS))
@pytest.mark.parametrize("stream", [False, True])
def test_books_agree_with_what_was_told(path: str, stream: bool) -> None:
    model = DemoModel(FAST)
    fields = {"model": "demo", "stream": stream, "stream_options": {"include_usage": True}}
    fields |= dict.fromkeys(APIS[path].prompts, "Hello, world")
    if "messages" in fields:
        fields["messages"] = [{"role": "user", "content": [{"type": "text", "text": "Hello, world"}]}]
    answered = ask(model, path, fields)
    assert answered.complete
    usages: list[dict[str, Any]] = []
    for event in answered.events if b"data: " in answered.body else [answered.json]:
        if isinstance(event, dict):
            usages += [
                part["usage"]
                for part in (event, event.get("response", {}), event.get("message", {}))
                if part.get("usage")
            ]
    told = {name: value for usage in usages for name, value in usage.items()}
    assert model.counts.requests == 1
    assert told.get("prompt_tokens", told.get("input_tokens")) == model.counts.input_tokens
    assert told.get("completion_tokens", told.get("output_tokens", 0)) == model.counts.output_tokens


def test_unknown_fields_come_back() -> None:
    answer = ask(DemoModel(FAST), "/chat/completions", chat(x_colour="blue", logit_bias={"1": 2})).json
    assert answer["echo"] == {"x_colour": "blue", "logit_bias": {"1": 2}}


@pytest.mark.parametrize(("fault", "status"), [("fault-500", 500), ("fault-429", 429), ("fault-401", 401)])
def test_faults_with_a_status(fault: str, status: int) -> None:
    model = DemoModel(FAST)
    by_model = ask(model, "/chat/completions", chat(model=fault))
    by_header = ask(model, "/chat/completions", chat(), headers=[(b"x-demo-fault", fault.encode())])
    assert by_model.status == by_header.status == status
    assert "error" in by_model.json
    assert model.counts.requests == 0
    if status == 429:
        assert by_model.headers[b"retry-after"] == b"7"


def test_faults_that_break_an_answer() -> None:
    model = DemoModel(FAST)
    assert ask(model, "/chat/completions", chat(model="fault-close")).body == b""
    assert not ask(model, "/chat/completions", chat(model="fault-garbage")).body.startswith(b"{")
    assert "usage" not in ask(model, "/chat/completions", chat(model="fault-no-usage")).json
    broken = ask(model, "/chat/completions", chat(model="fault-close-mid-stream", stream=True))
    assert not broken.complete
    assert len(broken.events) == 3
    garbage = ask(model, "/chat/completions", chat(model="fault-garbage", stream=True))
    assert set(garbage.events) == {"this is not JSON"}


def test_what_a_broken_stream_produced_is_in_the_books() -> None:
    model = DemoModel(FAST)
    ask(model, "/chat/completions", chat(model="fault-close-mid-stream", stream=True))
    assert (model.counts.requests, model.counts.output_tokens) == (1, 3)


@pytest.mark.parametrize("body", [b"{", b"[]", b'"text"', b'{"max_tokens": "many"}', b'{"n": [1]}', b"\xff"])
def test_bad_requests_are_400(body: bytes) -> None:
    assert ask(DemoModel(FAST), "/chat/completions", body).status == 400


def test_unknown_routes_are_404() -> None:
    assert ask(DemoModel(FAST), "/nothing").status == 404


def test_the_pace_comes_from_the_environment() -> None:
    env = {
        "TOLLGATE_DEMO_TOKENS_PER_SECOND": "0",
        "TOLLGATE_DEMO_FIRST_TOKEN_MS": "5",
        "TOLLGATE_DEMO_ANSWER_TOKENS": "7",
    }
    assert Pace.from_env(env) == Pace(first_s=0.005, between_s=0.0, answer_tokens=7)
    assert Pace.from_env({}).between_s == pytest.approx(0.01)


@contextmanager
def timed() -> Iterator[list[float]]:
    """How long the block took, in seconds."""
    import time

    found: list[float] = []
    started = time.monotonic()
    yield found
    found.append(time.monotonic() - started)


def test_tokens_come_at_the_pace() -> None:
    with timed() as took:
        ask(DemoModel(Pace(first_s=0.02, between_s=0.01, answer_tokens=5)), "/chat/completions", chat(stream=True))
    assert took[0] >= 0.06
