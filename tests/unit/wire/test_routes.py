"""What requests ask for: sizes, changes, and everything that is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.domain.usage import MAX_TOKENS
from tollgate.wire.body import Body, BodyError
from tollgate.wire.errors import ApiError, shown
from tollgate.wire.guards import WORDS, Feature
from tollgate.wire.prompt import IMAGE_TOKENS, Prompt
from tollgate.wire.routes import MAX_CHOICES, ROUTES, Call

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
MINIMAL: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"model": "m", "prompt": "hi"},
    EMBEDDINGS: {"model": "m", "input": "hi"},
    RESPONSES: {"model": "m", "input": "hi"},
    MESSAGES: {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]},
}


def read(path: str, **fields: Any) -> Call:
    return ROUTES[path].read(Body(json.dumps({**MINIMAL[path], **fields}).encode()))


def refused(path: str, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(path, **fields)
    assert caught.value.status == 400
    return caught.value


def attempt(path: str, raw: bytes) -> Call | ApiError:
    try:
        return ROUTES[path].read(Body(raw))
    except ApiError as error:
        return error


@pytest.mark.parametrize("path", ROUTES)
def test_minimal(path: str) -> None:
    call = read(path)
    assert call.model == "m"
    assert not call.stream
    assert call.answers == 1
    assert call.max_output == {EMBEDDINGS: 0, MESSAGES: 5}.get(path)
    assert call.changes == ({"store": "false"} if path == RESPONSES else {})
    assert 2 <= call.prompt_bytes <= 30
    assert not call.withhold_usage


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("model", [None, "", 5, True, ["m"], {"m": 1}])
def test_model(path: str, model: Any) -> None:
    assert refused(path, model=model).param == "model"


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("value", [None, 5, True, {}, []])
def test_prompt(path: str, value: Any) -> None:
    name = ROUTES[path].prompt
    if path == RESPONSES and value == []:
        return
    assert (refused(path, **{name: value}).param or "").startswith(name)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (CHAT, "max_tokens"), (CHAT, "max_completion_tokens"), (CHAT, "n"), (COMPLETIONS, "max_tokens"),
        (COMPLETIONS, "best_of"), (COMPLETIONS, "n"), (RESPONSES, "max_output_tokens"), (MESSAGES, "max_tokens"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [0, -1, 1.5, 1e3, "5", True, False, [], {}, 2**31, 10**300])
def test_counts(path: str, name: str, value: Any) -> None:
    error = refused(path, **{name: value})
    assert error.param == name
    assert len(error.message) < 200


@pytest.mark.parametrize(
    ("path", "fields", "answers", "most", "name"),
    [
        (CHAT, {"max_tokens": 7}, 1, 7, "max_tokens"),
        (CHAT, {"max_completion_tokens": 7}, 1, 7, "max_completion_tokens"),
        (CHAT, {"max_tokens": 7, "max_completion_tokens": 9}, 1, 9, "max_tokens"),
        (CHAT, {"max_tokens": 7, "n": MAX_CHOICES}, 128, 896, "max_tokens"),
        (CHAT, {"max_tokens": None, "n": None}, 1, None, "max_completion_tokens"),
        (CHAT, {"n": 3}, 3, None, "max_completion_tokens"),
        (COMPLETIONS, {"max_tokens": 7, "n": 2, "best_of": 5}, 5, 35, "max_tokens"),
        (COMPLETIONS, {"max_tokens": 7, "n": 2, "prompt": ["a", "b", "c"]}, 6, 42, "max_tokens"),
        (COMPLETIONS, {"max_tokens": 7, "prompt": [1, 2, 3]}, 1, 7, "max_tokens"),
        (COMPLETIONS, {"max_tokens": 7, "prompt": [[1, 2], [3]]}, 2, 14, "max_tokens"),
        (RESPONSES, {"max_output_tokens": 7, "n": 5}, 1, 7, "max_output_tokens"),
        (MESSAGES, {"max_tokens": 7}, 1, 7, "max_tokens"),
        (EMBEDDINGS, {"input": ["a", "b"]}, 2, 0, ""),
    ],
)
def test_maximum(path: str, fields: dict[str, Any], answers: int, most: int | None, name: str) -> None:
    call = read(path, **fields)
    assert (call.answers, call.max_output, call.max_output_field) == (answers, most, name)


def test_no_product_is_absurd() -> None:
    assert refused(CHAT, max_tokens=MAX_TOKENS, n=2).param == "max_tokens"
    assert refused(COMPLETIONS, max_tokens=MAX_TOKENS // 100, n=2, prompt=["a"] * 100).param == "max_tokens"
    assert read(CHAT, max_tokens=MAX_TOKENS).max_output == MAX_TOKENS


@pytest.mark.parametrize(("path", "name"), [(CHAT, "n"), (COMPLETIONS, "n"), (COMPLETIONS, "best_of")])
def test_more_answers_than_openai_gives(path: str, name: str) -> None:
    error = refused(path, **{name: MAX_CHOICES + 1})
    assert (error.status, error.code, error.param) == (400, "integer_above_max_value", name)
    assert error.message == f"'{name}' must be at most 128."


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (True, "true"), (None, "null"), (1.5, "1.5"), ("5", "'5'"), ([], "an array"), ({}, "an object"),
        ("x" * 5000, "'" + "x" * 99 + "…"), ("\u202e\ud800", r"'\u202e\ud800'"), (10**300, "1" + "0" * 99 + "…"),
    ],
)  # fmt: skip
def test_errors_repeat_little(value: Any, said: str) -> None:
    assert shown(value) == said


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize("name", ["messages", "model", "max_tokens", "stream", "stream_options", "tools", "user"])
def test_what_can_just_be_parsed_can_be_refused(name: str, opening: str, closing: str) -> None:
    """However deep Python's parser goes, nothing after it goes deeper."""

    def raw(depth: int) -> bytes:
        fields = {key: json.dumps(value) for key, value in {**MINIMAL[CHAT], "stream": True}.items()}
        fields[name] = opening * depth + "1" + closing * depth
        return ("{" + ",".join(f'"{key}":{text}' for key, text in fields.items()) + "}").encode()

    def is_parsed(depth: int) -> bool:
        try:
            return Body(raw(depth)).fields != {}
        except BodyError:
            return False

    low, high = 1, 100_000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_parsed(middle) else (low, middle)
    for depth in range(low - 8, low + 2):
        answer = attempt(CHAT, raw(depth))
        assert answer.status == 400 if isinstance(answer, ApiError) else answer.model == "m"


def test_messages_needs_a_maximum() -> None:
    assert refused(MESSAGES, max_tokens=None).param == "max_tokens"


def test_largest_maximum() -> None:
    call = read(COMPLETIONS, prompt="x" * 400, max_tokens=9, n=3)
    assert call.prompt_estimate() == 100
    assert call.largest_maximum(400) == 100
    assert call.largest_maximum(50) == 0


# -- what is changed


@pytest.mark.parametrize(
    ("options", "withheld", "sent"),
    [
        (None, True, {"include_usage": True}),
        ({}, True, {"include_usage": True}),
        ({"include_usage": False, "x": [1]}, True, {"include_usage": True, "x": [1]}),
        ({"include_usage": None}, True, {"include_usage": True}),
        ({"include_usage": True, "x": 1}, False, {"include_usage": True, "x": 1}),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_streams_say_what_they_used(path: str, options: Any, withheld: bool, sent: Any) -> None:
    body = Body(json.dumps({**MINIMAL[path], "stream": True, "stream_options": options}).encode())
    call = ROUTES[path].read(body)
    assert call.stream
    assert call.withhold_usage is withheld
    assert json.loads(body.splice(call.changes))["stream_options"] == sent
    assert bool(call.changes) is withheld


def test_stream_options_of_a_wrong_type() -> None:
    for options in (5, [], "x", True):
        assert refused(CHAT, stream=True, stream_options=options).param == "stream_options"
    for asked in (1, "true", []):
        error = refused(CHAT, stream=True, stream_options={"include_usage": asked})
        assert error.param == "stream_options.include_usage"
    assert refused(CHAT, stream=1).param == "stream"
    assert read(CHAT, stream=None, stream_options={"include_usage": 1}).changes == {}


def test_deep_stream_options_do_no_harm() -> None:
    """Which of parser and writer gives up first depends on the interpreter; neither may do more than refuse."""
    for depth in (900, 2_000, 5_000, 100_000):
        raw = b'{"model":"m","messages":[{}],"stream":true,"stream_options":{"x":%b%b}}' % (b"[" * depth, b"]" * depth)
        assert isinstance(attempt(CHAT, raw), Call | ApiError)


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES, EMBEDDINGS])
def test_other_routes_need_no_stream_options(path: str) -> None:
    call = read(path, stream=True)
    assert call.stream is (path != EMBEDDINGS)
    assert "stream_options" not in call.changes


def test_responses_are_not_stored() -> None:
    assert read(RESPONSES, store=None).changes == {"store": "false"}
    assert read(RESPONSES, store=False).changes == {}


# -- what is refused unless the plan allows it

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"file_id": {"type": "image"}}}}}
PRICED: list[tuple[str, Feature, str, Any]] = [
    (CHAT, Feature.STORE, "store", True),
    (CHAT, Feature.BACKGROUND, "background", True),
    (CHAT, Feature.SERVICE_TIER, "service_tier", "priority"),
    (CHAT, Feature.SERVICE_TIER, "service_tier", "flex"),
    (CHAT, Feature.SERVICE_TIER, "service_tier", ["default"]),
    (EMBEDDINGS, Feature.SERVICE_TIER, "service_tier", "priority"),
    (CHAT, Feature.HOSTED_TOOLS, "web_search_options", {}),
    (CHAT, Feature.HOSTED_TOOLS, "tools", [TOOL, {"type": "web_search"}]),
    (CHAT, Feature.HOSTED_TOOLS, "tools", [{}]),
    (CHAT, Feature.AUDIO, "modalities", ["text", "audio"]),
    (CHAT, Feature.ROUTING, "models", ["dear"]),
    (CHAT, Feature.ROUTING, "plugins", [{"id": "web"}]),
    (CHAT, Feature.REFERENCES, "messages", [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]),
    (CHAT, Feature.REFERENCES, "messages", [{"role": "assistant", "audio": {"id": "audio_abc"}}]),
    (RESPONSES, Feature.STORE, "store", True),
    (RESPONSES, Feature.BACKGROUND, "background", True),
    (RESPONSES, Feature.REFERENCES, "previous_response_id", "resp_1"),
    (RESPONSES, Feature.REFERENCES, "conversation", "conv_1"),
    (RESPONSES, Feature.REFERENCES, "conversation", {"id": "conv_1"}),
    (RESPONSES, Feature.REFERENCES, "prompt", {"id": "pmpt_1"}),
    (RESPONSES, Feature.REFERENCES, "input", [{"type": "item_reference", "id": "msg_1"}]),
    (RESPONSES, Feature.REFERENCES, "input", [{"id": "msg_1"}]),
    (RESPONSES, Feature.REFERENCES, "input", [{"id": "msg_1", "type": None}]),
    (RESPONSES, Feature.REFERENCES, "input", [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]),
    (RESPONSES, Feature.REFERENCES, "input", [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]),
    (RESPONSES, Feature.HOSTED_TOOLS, "input", [{"type": "additional_tools", "tools": [{"type": "web_search"}]}]),
    *(
        (RESPONSES, Feature.HOSTED_TOOLS, "tools", [{"type": kind}])
        for kind in (
            "web_search", "web_search_preview", "file_search", "code_interpreter", "computer_use_preview", "computer",
            "image_generation", "mcp", "shell", "something_new", None, 5, [],
        )
    ),
    (MESSAGES, Feature.SERVICE_TIER, "service_tier", "priority"),
    (MESSAGES, Feature.SERVICE_TIER, "speed", "fast"),
    (MESSAGES, Feature.HOSTED_TOOLS, "mcp_servers", [{"type": "url"}]),
    (MESSAGES, Feature.REFERENCES, "container", "container_1"),
    *(
        (MESSAGES, Feature.HOSTED_TOOLS, "tools", [{"type": kind, "name": "t"}])
        for kind in ("web_search_20250305", "web_fetch_20250910", "code_execution_20250825", "mcp_toolset", 5)
    ),
    (MESSAGES, Feature.REFERENCES, "messages",
     [{"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": "file_1"}}]}]),
    (MESSAGES, Feature.REFERENCES, "messages",
     [{"role": "user", "content": [{"type": "container_upload", "file_id": "file_1"}]}]),
]  # fmt: skip


@pytest.mark.parametrize(("path", "feature", "name", "value"), PRICED)
def test_features(path: str, feature: Feature, name: str, value: Any) -> None:
    error = refused(path, **{name: value})
    assert error.code == "unsupported_parameter"
    assert error.param == name
    assert error.message.startswith(WORDS[feature].partition("{")[0].removesuffix("('"))


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"service_tier": "auto", "store": False, "modalities": ["text"], "tools": [TOOL], "unknown": {"a": 1}}),
        (CHAT, {"prediction": {"type": "content", "content": "x"}, "models": [], "web_search_options": None}),
        (CHAT, {"tools": [{"type": "custom", "custom": {"name": "c"}}], "service_tier": "default"}),
        (RESPONSES, {"tools": [{"type": "function"}, {"type": "custom"}], "background": False, "conversation": None}),
        (RESPONSES, {"input": [{"role": "user", "content": "hi"}, {"type": "reasoning", "id": "rs_1", "summary": []}]}),
        (MESSAGES, {"service_tier": "standard_only", "tools": [{"name": "f"}, {"type": "bash_20250124", "name": "b"}]}),
        (MESSAGES, {"messages": [{"role": "assistant", "content": [
            {"type": "tool_use", "id": "t", "name": "drive", "input": {"file_id": "mine", "audio": {"id": "x"}}}]}]}),
    ],
)  # fmt: skip
def test_ordinary_requests_pass(path: str, fields: dict[str, Any]) -> None:
    read(path, **fields)


def test_tools_of_a_wrong_type() -> None:
    for path in (CHAT, RESPONSES, MESSAGES):
        assert refused(path, tools={}).param == "tools"
        assert refused(path, tools=["x"]).param == "tools[0]"


# -- how large prompts are


def test_text_in_bytes_of_utf8() -> None:
    content = "ü" * 100
    asciis = ROUTES[CHAT].read(Body(json.dumps({**MINIMAL[CHAT], "messages": [{"content": content}]}).encode()))
    assert asciis.prompt_bytes == 200 + len("content")


def test_everything_that_becomes_prompt_counts() -> None:
    text = "y" * 1000
    for path, name, value in [
        (CHAT, "tools", [{"type": "function", "function": {"name": "f", "description": text}}]),
        (CHAT, "functions", [{"name": text}]),
        (CHAT, "response_format", {"type": "json_schema", "json_schema": {"schema": {text: 1}}}),
        (CHAT, "prediction", {"type": "content", "content": text}),
        (COMPLETIONS, "suffix", text),
        (RESPONSES, "instructions", text),
        (RESPONSES, "input", [{"role": "user", "content": [{"type": "input_text", "text": text}]}]),
        (MESSAGES, "system", [{"type": "text", "text": text}]),
        (MESSAGES, "tools", [{"name": "f", "input_schema": {"description": text}}]),
        (MESSAGES, "messages", [{"role": "user", "content": [{"type": "tool_use", "input": {"a": text}}]}]),
        (MESSAGES, "messages", [{"role": "user", "content": [
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text}}]}]),
    ]:  # fmt: skip
        call = read(path, **{name: value})
        assert 1000 <= call.prompt_bytes < 1150, (path, name)


B64 = "A" * 80_000


@pytest.mark.parametrize(
    ("path", "part", "tokens"),
    [
        (
            CHAT,
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{B64}", "detail": "low"}},
            IMAGE_TOKENS,
        ),
        (CHAT, {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, IMAGE_TOKENS),
        (CHAT, {"type": "input_audio", "input_audio": {"data": B64 * 10, "format": "mp3"}}, 1510),
        (CHAT, {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{B64}", "filename": "a"}}, 2001),
        (RESPONSES, {"type": "input_image", "image_url": f"data:image/png;base64,{B64}"}, IMAGE_TOKENS),
        (RESPONSES, {"type": "input_file", "file_data": B64}, 2000),
        (
            MESSAGES,
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}},
            IMAGE_TOKENS,
        ),
        (MESSAGES, {"type": "document", "source": {"type": "base64", "data": B64}}, 2000),
    ],
)
def test_media_is_not_text(path: str, part: dict[str, Any], tokens: int) -> None:
    name = ROUTES[path].prompt
    call = read(path, **{name: [{"role": "user", "content": [part, {"type": "text", "text": "what is it?"}]}]})
    assert call.prompt_tokens == tokens
    assert call.prompt_bytes < 200


def test_images_cost_what_the_policy_says() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:,"}}
    body = Body(json.dumps({"model": "m", "messages": [{"role": "user", "content": [part] * 3}]}).encode())
    assert ROUTES[CHAT].read(body, image_tokens=7).prompt_tokens == 21


def test_tokens_count_exactly() -> None:
    assert read(EMBEDDINGS, input=[1, 2, 3]).prompt_tokens == 3
    call = read(EMBEDDINGS, input=[[1, 2, 3], [4]])
    assert (call.prompt_tokens, call.prompt_bytes) == (4, 0)
    assert read(EMBEDDINGS, input=["ab", "c"]).prompt_bytes == 3
    for mixed in ([1, "a"], ["a", 1], [[1], "a"], [["a"]], [1, True], [None], [[1], [2.0]]):
        assert (refused(EMBEDDINGS, input=mixed).param or "").startswith("input[")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["type", "file_id", "source", "data", "image_url", "audio", "id", "tools", "role"]) | st.text(),
        inner | st.sampled_from(["image", "file", "tool_use", "document", "text"]), max_size=4),
    max_leaves=15,
)  # fmt: skip


@given(
    st.sampled_from(list(ROUTES)),
    st.dictionaries(
        st.sampled_from(
            [
                "messages",
                "input",
                "prompt",
                "tools",
                "store",
                "n",
                "stream",
                "max_tokens",
                "stream_options",
                "service_tier",
                "modalities",
                "conversation",
                "system",
                "models",
                "background",
            ]
        ),
        JSON,
    ),
)
def test_whatever_comes_it_is_read_or_refused(path: str, fields: dict[str, Any]) -> None:
    call = attempt(path, json.dumps({**MINIMAL[path], **fields}).encode())
    if isinstance(call, ApiError):
        assert call.status == 400
        assert isinstance(call.body(), bytes)
        return
    assert call.prompt_bytes >= 0
    assert call.prompt_tokens >= 0


@given(JSON)
def test_no_media_part_hides_more_than_it_holds(value: Any) -> None:
    prompt, plain = Prompt(), Prompt()
    prompt.add(value)
    plain.add(value, content=False)
    assert 0 <= prompt.text_bytes <= plain.text_bytes
