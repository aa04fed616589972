"""What a request on Converse's routes asks for, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tollgate.wire.body import Body
from tollgate.wire.capabilities import cut_short, needs
from tollgate.wire.converse import route_of
from tollgate.wire.errors import ApiError
from tollgate.wire.routes import Call

HELLO = [{"role": "user", "content": [{"text": "Hello, world"}]}]


def read(path: str = "/model/small/converse", **fields: Any) -> Call:
    route = route_of(path)
    assert route is not None
    return route.read(Body(json.dumps({"messages": HELLO, **fields}).encode()))


@pytest.mark.parametrize(
    ("path", "model", "stream", "sent"),
    [
        ("/model/small/converse", "small", False, "/model/eu.meta.llama%3A0/converse"),
        ("/model/small/converse-stream", "small", True, "/model/eu.meta.llama%3A0/converse-stream"),
        ("/model/a%2Fb/converse", "a/b", False, "/model/eu.meta.llama%3A0/converse"),
        ("/model/a/b/converse", "a/b", False, "/model/eu.meta.llama%3A0/converse"),
    ],
)
def test_the_path_names_model_and_operation(path: str, model: str, stream: bool, sent: str) -> None:
    call = read(path)
    assert (call.model, call.stream, call.route.sent_to("eu.meta.llama:0")) == (model, stream, sent)
    assert model not in call.route.path


def test_no_model_can_leave_its_place_in_the_path() -> None:
    assert read().route.sent_to("../../x?y#z") == "/model/..%2F..%2Fx%3Fy%23z/converse"


@pytest.mark.parametrize("path", ["/model//converse", "/model/converse", "/model/a/invoke", "/v1/model/a/converse"])
def test_other_paths_are_no_routes(path: str) -> None:
    assert route_of(path) is None


def test_the_maximum_stands_in_the_inference_config() -> None:
    assert read().max_output is None
    assert read(inferenceConfig={}).max_output is None
    call = read(inferenceConfig={"maxTokens": 50, "temperature": 0.5}, maxTokens=7, stream=True)
    assert (call.max_output, call.max_output_field, call.stream, call.changes) == (50, "maxTokens", False, {})


def test_media_are_not_text() -> None:
    plain = read()
    image = {"image": {"format": "png", "source": {"bytes": "A" * 100_000}}}
    seen = read(messages=[{"role": "user", "content": [image, {"text": "Hello, world"}]}])
    assert seen.prompt_tokens == 1000
    assert seen.prompt_bytes < plain.prompt_bytes + 100
    assert seen.media
    document = {"document": {"format": "pdf", "name": "d", "source": {"bytes": "A" * 80_000}}}
    assert read(messages=[{"role": "user", "content": [document]}]).prompt_tokens == 2000


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"inferenceConfig": 5}, "inferenceConfig"),
        ({"inferenceConfig": {"maxTokens": "5"}}, "maxTokens"),
        ({"inferenceConfig": {"maxTokens": 0}}, "maxTokens"),
        ({"toolConfig": {"tools": [{"systemTool": {"name": "nova_grounding"}}]}}, "toolConfig"),
        ({"toolConfig": {"tools": ["x"]}}, "toolConfig"),
        ({"toolConfig": []}, "toolConfig"),
        ({"guardrailConfig": {"guardrailIdentifier": "g"}}, "guardrailConfig"),
        ({"promptVariables": {"a": {"text": "b"}}}, "promptVariables"),
        ({"performanceConfig": {"latency": "optimized"}}, "performanceConfig"),
        ({"serviceTier": {"type": "priority"}}, "serviceTier"),
        ({"additionalModelRequestFields": {"max_tokens": 100000}}, "additionalModelRequestFields"),
        ({"additionalModelRequestFields": {"thinking": {}, "tools": []}}, "additionalModelRequestFields"),
        (
            {"messages": [{"role": "user", "content": [{"image": {"source": {"s3Location": {"uri": "s3://b/k"}}}}]}]},
            "messages",
        ),
    ],
)
def test_what_is_malformed_or_not_metered_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_what_is_harmless_passes() -> None:
    tools = [{"toolSpec": {"name": "look", "inputSchema": {"json": {"type": "object"}}}}, {"cachePoint": {}}]
    call = read(
        system=[{"text": "Be brief."}],
        toolConfig={"tools": tools},
        additionalModelRequestFields={"thinking": {"type": "enabled", "budget_tokens": 10}, "top_k": 5},
        performanceConfig={"latency": "standard"},
        serviceTier={"type": "default"},
        requestMetadata={"a": "b"},
    )
    assert call.changes == {}


def test_answers_can_be_cut_short() -> None:
    for config, most, expected in (
        (None, 9, {"maxTokens": 9}),
        ({"temperature": 1}, 9, {"temperature": 1, "maxTokens": 9}),
        ({"maxTokens": 50}, 9, {"maxTokens": 9}),
        ({"maxTokens": 5}, 9, None),
    ):
        fields = {"messages": HELLO, "inferenceConfig": config}
        changed = cut_short(read(**fields), fields, most)
        assert changed == ({} if expected is None else {"inferenceConfig": json.dumps(expected)})
    assert needs(read(), {"messages": HELLO, "inferenceConfig": {"maxTokens": 5}}) == set()
    assert needs(read(), {"messages": [{"role": "user", "content": [{"toolResult": {}}]}]}) == {"tools"}


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize("value", [float("inf"), nested(100_000)], ids=["1e999", "deep"])
def test_what_cannot_be_written_again_is_refused(value: Any) -> None:
    """The parser takes 1e999, and may go deeper than the writer: no provider gets it, and nothing fails."""
    with pytest.raises(ApiError) as caught:
        cut_short(read(), {"messages": HELLO, "inferenceConfig": {"x": value}}, 5)
    assert (caught.value.status, caught.value.param) == (400, "inferenceConfig")
