"""Binary event streams: as botocore reads and writes them, however they are cut or damaged."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from tollgate.wire import eventstream
from tollgate.wire.errors import ApiError, upstream_timeout
from tollgate.wire.eventstream import Splitter
from tollgate.wire.usage import ConverseReader

STREAM = (Path(__file__).parents[2] / "vectors" / "bedrock-converse.eventstream").read_bytes()
TEXT = st.text(min_size=1, max_size=20)


def parsed(raw: bytes) -> list[tuple[dict[str, str], bytes]]:
    """By botocore, which checks every sum."""
    buffer = EventStreamBuffer()
    buffer.add_data(raw)
    return [(message.headers, message.payload) for message in buffer]


@given(st.dictionaries(st.text(min_size=1, max_size=20), TEXT, max_size=4), st.binary(max_size=300))
def test_messages_are_as_botocore_reads_them(headers: dict[str, str], payload: bytes) -> None:
    message = eventstream.encode(headers, payload)
    assert parsed(message) == [(headers, payload)]
    assert Splitter().feed(message) == [message]
    assert eventstream.payload_of(message) == payload


def test_headers_are_found() -> None:
    for message, (headers, _) in zip(Splitter().feed(STREAM), parsed(STREAM), strict=True):
        raw = eventstream.headers_of(message)
        for name in (":event-type", ":message-type", ":content-type"):
            assert eventstream.text_header(raw, name.encode()).decode() == headers[name]
        assert eventstream.text_header(raw, b":exception-type") == b""


@given(st.lists(st.integers(0, len(STREAM)), max_size=10))
def test_whole_messages_come_out_however_they_are_cut(at: list[int]) -> None:
    cuts = sorted({0, len(STREAM), *at})
    splitter = Splitter()
    messages = [m for a, b in pairwise(cuts) for m in splitter.feed(STREAM[a:b])]
    assert messages == Splitter().feed(STREAM)
    assert (splitter.rest(), splitter.damaged) == (b"", False)


@given(st.integers(0, len(STREAM) - 1), st.integers(1, 255), st.integers(1, 40))
def test_what_is_damaged_passes_unbelieved(at: int, flip: int, size: int) -> None:
    """Whatever byte is wrong, all bytes are forwarded, and no usage is read from that message on."""
    damaged = bytearray(STREAM)
    damaged[at] ^= flip
    reader = ConverseReader("converse")
    out = b"".join([reader.feed(bytes(damaged[i : i + size])) for i in range(0, len(damaged), size)]) + reader.rest()
    assert out == damaged
    assert reader.finish() is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [(upstream_timeout(), "modelStreamErrorException"), (ApiError(500, "no"), "internalServerException")],
)
def test_an_error_can_follow_half_a_message(error: ApiError, kind: str) -> None:
    reader = ConverseReader("converse")
    out = reader.feed(STREAM[: len(STREAM) // 2]) + error.event("converse", "req_1")
    headers, payload = parsed(out)[-1]
    assert (headers[":message-type"], headers[":exception-type"]) == ("exception", kind)
    assert payload == error.body("converse")
    assert not reader.mid_event
