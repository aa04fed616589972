"""Usage out of recorded answers of every provider, however they are cut; and out of damaged ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.domain.usage import Usage, estimate, tokens_of
from tollgate.wire.body import Body
from tollgate.wire.converse import route_of as converse_route
from tollgate.wire.routes import ROUTES, Call
from tollgate.wire.sse import Splitter, data_of
from tollgate.wire.usage import StreamReader, UsageReader, reader_for

VECTORS = Path(__file__).parents[2] / "vectors"
EXPECTED: dict[str, dict[str, Any]] = json.loads((VECTORS / "expected.json").read_text())
STREAMS = [name for name in EXPECTED if not name.endswith(".json")]
EVENTS = [name for name in STREAMS if name.endswith(".sse")]


def call_of(route: str, *, asked: bool = False) -> Call:
    fields: dict[str, Any] = {"model": "m", "stream": True, "max_tokens": 9}
    fields |= {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "input": "hi"}
    if route == "/v1/responses":
        del fields["prompt"]
    if asked:
        fields["stream_options"] = {"include_usage": True}
    if route not in ROUTES:
        found = converse_route(route)
        assert found is not None
        return found.read(Body(json.dumps({"messages": fields["messages"]}).encode()))
    return ROUTES[route].read(Body(json.dumps(fields).encode()))


def run(reader: UsageReader, chunks: Iterable[bytes]) -> bytes:
    out = b"".join([reader.feed(chunk) for chunk in chunks])
    return out + reader.rest()


def found(reader: UsageReader) -> tuple[Usage | None, bool, bool, bool, int]:
    return reader.finish(), reader.saw_done, reader.error, reader.malformed, reader.produced_bytes


def events_of(raw: bytes) -> list[bytes]:
    splitter = Splitter()
    return [*splitter.feed(raw), *filter(None, [splitter.rest()])]


@pytest.mark.parametrize("name", EXPECTED)
def test_recorded_answers(name: str) -> None:
    expected, raw = EXPECTED[name], (VECTORS / name).read_bytes()
    stream = name in STREAMS
    reader = reader_for(call_of(expected["route"]), event_stream=stream)
    out = run(reader, [raw])
    usage = reader.finish()
    assert usage == (expected["usage"] and Usage(**expected["usage"]))
    assert reader.saw_done is expected["done"]
    assert reader.error is expected["error"]
    assert not reader.malformed
    if not stream:
        assert out == raw
        return
    assert reader.produced_bytes == expected["produced_bytes"]
    if name not in EVENTS:
        assert out == raw
        return
    kept, all_events = events_of(out), events_of(raw)
    assert len(all_events) - len(kept) == expected["withheld_events"]
    assert [event for event in all_events if event in kept] == kept


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("asked", [True, False])
def test_cut_byte_by_byte(name: str, asked: bool) -> None:
    raw = (VECTORS / name).read_bytes()
    call = call_of(EXPECTED[name]["route"], asked=asked)
    whole, single = reader_for(call, event_stream=True), reader_for(call, event_stream=True)
    assert run(whole, [raw]) == run(single, [raw[i : i + 1] for i in range(len(raw))])
    assert found(whole) == found(single)
    if asked:
        assert run(reader_for(call, event_stream=True), [raw]) == raw


@given(st.sampled_from(STREAMS), st.booleans(), st.lists(st.integers(0, 10_000), max_size=20))
def test_cut_anywhere(name: str, asked: bool, at: list[int]) -> None:
    raw = (VECTORS / name).read_bytes()
    cuts = sorted({min(cut, len(raw)) for cut in at})
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    call = call_of(EXPECTED[name]["route"], asked=asked)
    whole, cut = reader_for(call, event_stream=True), reader_for(call, event_stream=True)
    assert run(whole, [raw]) == run(cut, pieces)
    assert found(whole) == found(cut)


@given(st.binary(), st.sampled_from(list(ROUTES)), st.booleans())
def test_garbage_passes_and_says_nothing(raw: bytes, route: str, stream: bool) -> None:
    reader = reader_for(call_of(route), event_stream=stream)
    assert run(reader, [raw]) == raw
    assert reader.finish() is None


@pytest.mark.parametrize("name", EVENTS)
def test_no_event_waits_for_the_next(name: str) -> None:
    reader = reader_for(call_of(EXPECTED[name]["route"]), event_stream=True)
    for event in events_of((VECTORS / name).read_bytes()):
        assert reader.feed(event) == event or b'"choices":[]' in event


def test_who_asked_gets_chunks_as_they_come() -> None:
    reader = reader_for(call_of("/v1/chat/completions", asked=True), event_stream=True)
    assert reader.feed(b'data: {"choi') == b'data: {"choi'
    assert reader.mid_event
    reader.feed(b'ces":[]}\n\n')
    assert not reader.mid_event


def test_who_did_not_ask_never_sees_half_an_event() -> None:
    reader = reader_for(call_of("/v1/chat/completions"), event_stream=True)
    assert reader.feed(b'data: {"choi') == b""
    assert not reader.mid_event


def chat(usage: Any, choices: Any = ()) -> bytes:
    return b"data: " + json.dumps({"choices": list(choices), "usage": usage}).encode() + b"\n\n"


GOOD = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


@pytest.mark.parametrize(
    "usage",
    [
        "7",
        7,
        [],
        True,
        {},
        {"prompt_tokens": 3},
        {**GOOD, "prompt_tokens": -1},
        {**GOOD, "prompt_tokens": True},
        {**GOOD, "prompt_tokens": "3"},
        {**GOOD, "prompt_tokens": 3.0},
        {**GOOD, "completion_tokens": None},
        {**GOOD, "completion_tokens": 2**40},
        {**GOOD, "completion_tokens": 10**400},
    ],
)
def test_incredible_usage_is_missing(usage: Any) -> None:
    if usage == {"prompt_tokens": 3}:
        expected: Usage | None = Usage(3)  # as embeddings say it
    else:
        expected = None
    reader = StreamReader(ROUTES["/v1/chat/completions"].shape, withhold=True)
    assert run(reader, [chat(usage)]) == b""
    assert reader.finish() == expected
    assert reader.malformed is (expected is None)


def test_zero_is_zero_and_null_is_nothing() -> None:
    reader = StreamReader(ROUTES["/v1/chat/completions"].shape)
    run(reader, [chat({"prompt_tokens": 0, "completion_tokens": 0}), chat(None)])
    assert reader.finish() == Usage()
    assert not reader.malformed
    assert StreamReader(ROUTES["/v1/chat/completions"].shape).finish() is None


@pytest.mark.parametrize(
    ("details", "expected", "odd"),
    [
        ({"prompt_tokens_details": None}, Usage(3, 0, 0, 4), False),
        ({"prompt_tokens_details": {"cached_tokens": None}}, Usage(3, 0, 0, 4), False),
        ({"prompt_tokens_details": "x"}, Usage(3, 0, 0, 4), True),
        ({"prompt_tokens_details": {"cached_tokens": -1}}, Usage(3, 0, 0, 4), True),
        ({"prompt_tokens_details": {"cached_tokens": 9}}, Usage(3, 3, 0, 4), True),
        ({"prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 1}}, Usage(3, 2, 1, 4), False),
        (
            {"prompt_tokens_details": {"cache_write_tokens": 3, "cache_write_tokens_details": {"ttl_12h_tokens": 9}}},
            Usage(3, 0, 3, 4, cache_write_long_tokens=3),
            True,
        ),
        (
            {"prompt_tokens_details": {"cache_write_tokens": 3, "cache_write_tokens_details": 9}},
            Usage(3, 0, 3, 4),
            True,
        ),
        ({"prompt_tokens_details": {"audio_tokens": 9}}, Usage(3, 0, 0, 4, audio_input_tokens=3), True),
        ({"completion_tokens_details": {"audio_tokens": 4}}, Usage(3, 0, 0, 4, audio_output_tokens=4), False),
        ({"completion_tokens_details": {"audio_tokens": "4"}}, Usage(3, 0, 0, 4), True),
        ({"completion_tokens_details": {"reasoning_tokens": 4}}, Usage(3, 0, 0, 4, 4), False),
        ({"completion_tokens_details": {"reasoning_tokens": 5}}, Usage(3, 0, 0, 4, 4), True),
        ({"completion_tokens_details": {"reasoning_tokens": 5}, "total_tokens": 12}, Usage(3, 0, 0, 9, 5), False),
    ],
)
def test_details(details: dict[str, Any], expected: Usage, odd: bool) -> None:
    reader = StreamReader(ROUTES["/v1/chat/completions"].shape)
    run(reader, [chat({**GOOD, **details})])
    assert reader.finish() == expected
    assert reader.malformed is odd


def test_nested_usage_is_not_believed() -> None:
    reader = StreamReader(ROUTES["/v1/chat/completions"].shape)
    run(reader, [b'data: {"choices":[{"usage":{"prompt_tokens":1,"completion_tokens":1}}]}\n\n'])
    assert reader.finish() is None
    responses = StreamReader(ROUTES["/v1/responses"].shape)
    usage = '{"input_tokens":1,"output_tokens":1}'
    early = f'data: {{"type":"response.in_progress","response":{{"usage":{usage}}},"usage":{usage}}}\n\n'
    run(responses, [early.encode()])
    assert responses.finish() is None
    assert not responses.saw_done


def test_several_usages_the_last_counts() -> None:
    reader = StreamReader(ROUTES["/v1/chat/completions"].shape, withhold=True)
    running = [chat({"prompt_tokens": 3, "completion_tokens": n}, [{"index": 0}]) for n in (1, 2, 3)]
    assert run(reader, running) == b"".join(running)
    assert reader.finish() == Usage(3, 0, 0, 3)


def test_the_last_event_may_lack_its_blank_line() -> None:
    reader = StreamReader(ROUTES["/v1/chat/completions"].shape, withhold=True)
    assert run(reader, [b"data: 1\n\n", chat(GOOD)[:-2]]) == b"data: 1\n\n"
    assert reader.finish() == Usage(3, 0, 0, 4)


def test_an_anthropic_stream_that_breaks_is_an_estimate() -> None:
    raw = (VECTORS / "anthropic-messages.sse").read_bytes()
    reader = reader_for(call_of("/v1/messages"), event_stream=True)
    run(reader, [raw[: raw.index(b"event: message_delta")]])
    partial = reader.finish()
    assert partial == Usage(325, 200, 100, 1, estimated=True)
    assert estimate(partial, 99, reader.produced_bytes) == Usage(325, 200, 100, 2, estimated=True)
    assert estimate(None, 99, 401) == Usage(99, output_tokens=101, estimated=True)


def test_produced_bytes_of_a_long_stream() -> None:
    reader = StreamReader(ROUTES["/v1/chat/completions"].shape)
    chunk = b'data: {"choices":[{"delta":{"content":"12345"}}]}\n\n'
    for _ in range(5_000):
        reader.feed(chunk)
    assert reader.produced_bytes == 25_000
    assert reader._tally._size == 0


def test_json_answers_that_are_none() -> None:
    for raw in (b"", b"<html>", b"[1]", b'"usage"', b"[" * 100_000):
        reader = reader_for(call_of("/v1/chat/completions"), event_stream=False)
        assert run(reader, [raw]) == raw
        assert reader.finish() is None
        assert not reader.saw_done


def test_json_without_usage_is_estimated_from_its_text() -> None:
    reader = reader_for(call_of("/v1/chat/completions"), event_stream=False)
    run(reader, [b'{"choices":[{"message":{"con', b'tent":"12345678"}}]}'])
    assert reader.finish() is None
    assert reader.saw_done
    assert reader.produced_bytes == 8


def test_json_error_in_a_success() -> None:
    reader = reader_for(call_of("/v1/messages"), event_stream=False)
    run(reader, [b'{"type":"error","error":{"type":"api_error","message":"x"}}'])
    assert reader.finish() is None
    assert reader.error


def test_tokens_of_rounds_up() -> None:
    assert [tokens_of(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert tokens_of(7, 3.5) == 2


def test_the_vectors_are_well_formed() -> None:
    for name in EVENTS:
        for event in events_of((VECTORS / name).read_bytes()):
            data = data_of(event)
            assert data in (b"", b"[DONE]") or isinstance(json.loads(data), dict)
