"""Splitting a byte stream into events: no byte is lost or changed, wherever the chunks end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.wire.sse import Splitter, data_of, is_event_stream

LINES = st.lists(st.sampled_from([b"data: x", b"data:", b"event: e", b": c", b"a", b"\n", b"\r", b"\r\n", b"\n\n"]))


def split(chunks: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = Splitter()
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    return events, splitter.rest()


@given(LINES.map(b"".join), st.data())
def test_chunking_does_not_matter(stream: bytes, data: st.DataObject) -> None:
    whole = split([stream])
    assert b"".join(whole[0]) + whole[1] == stream
    assert split([stream[i : i + 1] for i in range(len(stream))]) == whole
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert split(pieces) == whole


@pytest.mark.parametrize("eol", [b"\n", b"\r\n", b"\r"])
def test_line_ends(eol: bytes) -> None:
    first, second = b"data: 1" + eol + eol, b"event: e" + eol + b"data: 2" + eol + eol
    events, rest = split([first + second + b"data: 3"])
    if eol == b"\r":
        assert b"".join(events) + rest == first + second + b"data: 3"
    assert events == [first, second]
    assert rest == b"data: 3"


def test_a_whole_event_comes_out_at_once() -> None:
    splitter = Splitter()
    event = b"data: {}\n\n"
    assert splitter.feed(event) == [event]
    assert splitter.pending == 0


def test_an_endless_event_is_not_kept() -> None:
    splitter = Splitter(max_event=100)
    out = b"".join(event for _ in range(100) for event in splitter.feed(b"data: 789 "))
    assert splitter.pending <= 100
    assert out + splitter.rest() == b"data: 789 " * 100


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\n\n", b"{}"),
        (b"data: {}\r\n\r\n", b"{}"),
        (b"event: e\ndata: a\ndata:  b\nid: 7\n\n", b"a\n b"),
        (b"\n\ndata: a\n\n", b"a"),
        (b"\xef\xbb\xbfdata: a\n\n", b"a"),
        (b"data\n\n", b""),
        (b": comment\n\n", b""),
        (b"database: a\n\n", b""),
        (b"", b""),
    ],
)
def test_data(event: bytes, data: bytes) -> None:
    assert data_of(event) == data


def test_content_type() -> None:
    assert is_event_stream(b"text/event-stream")
    assert is_event_stream(b"Text/Event-Stream; charset=utf-8")
    assert not is_event_stream(b"application/json")
    assert not is_event_stream(b"")
