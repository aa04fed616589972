"""Usage, read from answers while they pass through.

A reader is fed the upstream's bytes and returns the bytes to forward: the same, except for the usage chunk that only
we asked for. Most chunks are looked at with a substring test alone; an event is parsed only where a key that matters
occurs in it. (No answer's text can fake one: inside a JSON string its quotes are escaped.) Only usage in its proper
place is believed, never a nested key of that name.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from tollgate.domain.usage import Usage
from tollgate.wire import eventstream
from tollgate.wire.routes import Call, Shape
from tollgate.wire.sse import Splitter, data_of
from tollgate.wire.usage_counts import AnthropicCounts, converse, openai

Loads = Callable[[bytes], Any]
"""A JSON parser; raises ValueError for what is not JSON."""

_USAGE = b'"usage"'
_NULL = re.compile(rb"\s*:\s*null")
_DONE = b"[DONE]"

_MARKS: dict[Shape, tuple[bytes, ...]] = {
    "chat": (b'"error"', _DONE),
    "completions": (b'"error"', _DONE),
    "embeddings": (b'"error"', _DONE),
    "responses": (
        b'"error"', b'"response.completed"', b'"response.incomplete"', b'"response.failed"', b'"response.cancelled"',
    ),
    "messages": (b'"error"', b'"message_stop"'),
}  # fmt: skip
"""What else, besides usage, makes an event worth parsing."""

_FINAL_RESPONSE = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})

_TEXT_KEYS = {
    "chat": b"content|reasoning_content|reasoning|refusal|arguments",
    "completions": b"text",
    "responses": b"delta",
    "messages": b"text|thinking|partial_json",
    "converse": b"text|input",
}
_TALLY_BYTES = 64 * 1024


class UsageReader(ABC):
    """Follows one answer. Call `feed` for each chunk, `rest` when the upstream ended, then `finish`."""

    def __init__(self, shape: Shape, loads: Loads) -> None:
        self.error = False
        """The answer, though begun with success, carries an error."""
        self.malformed = False
        """Some usage was not what usage may be (a wrong type, negative, absurd) and was not believed."""
        self._shape = shape
        self._loads = loads
        self._usage: Usage | None = None

    @abstractmethod
    def feed(self, chunk: bytes) -> bytes:
        """Take in what the upstream sent; returns what to forward now (may be empty)."""

    def rest(self) -> bytes:
        """What is still to be forwarded when the upstream ended regularly."""
        return b""

    @abstractmethod
    def finish(self) -> Usage | None:
        """The provider's usage; None if none was (credibly) given; `estimated` if only its beginning was."""

    @property
    @abstractmethod
    def produced_bytes(self) -> int:
        """About how many bytes of text the model has produced so far: the JSON-escaped contents of the deltas."""

    @property
    @abstractmethod
    def saw_done(self) -> bool:
        """Whether the answer is complete by its own account."""

    @property
    def mid_event(self) -> bool:
        """Whether an event has been forwarded in part: what follows has to begin with a blank line."""
        return False

    def _believe(self, value: Any) -> None:
        usage = converse(value) if self._shape == "converse" else openai(value)
        if usage is None:
            self.malformed = True
        else:
            self._usage = usage[0]
            self.malformed |= usage[1]


class JsonReader(UsageReader):
    """An answer in one piece."""

    def __init__(self, shape: Shape, loads: Loads = json.loads) -> None:
        super().__init__(shape, loads)
        self._parts: list[bytes] = []
        self._produced = 0
        self._complete = False

    def feed(self, chunk: bytes) -> bytes:
        self._parts.append(chunk)
        return chunk

    @property
    def produced_bytes(self) -> int:
        return self._produced

    @property
    def saw_done(self) -> bool:
        return self._complete

    def finish(self) -> Usage | None:
        raw = b"".join(self._parts)
        self._parts.clear()
        try:
            answer = self._loads(raw)
        except (ValueError, RecursionError):
            self._produced = _text_bytes(self._shape, raw)
            return None
        if type(answer) is not dict:
            return None
        self._complete = True
        self.error = answer.get("error") is not None or answer.get("type") == "error"
        value = answer.get("usage")
        if value is None:
            self._produced = _text_bytes(self._shape, raw)
        elif self._shape == "messages":
            counts = AnthropicCounts()
            self.malformed = not counts.add(value)
            self._usage = counts.usage(complete=True)
        else:
            self._believe(value)
        return self._usage


class StreamReader(UsageReader):
    """An answer as server-sent events.

    With `withhold`, the usage chunk (no choices, just usage) is kept back, and each event is forwarded when it is
    complete; without, every chunk is forwarded at once as it is.
    """

    def __init__(self, shape: Shape, *, withhold: bool = False, loads: Loads = json.loads) -> None:
        super().__init__(shape, loads)
        self._tally = _Tally(shape)
        self._withhold = withhold
        self._marks = _MARKS[shape]
        self._splitter = Splitter()
        self._partial = False
        self._done = False
        self._counts = AnthropicCounts() if shape == "messages" else None

    def feed(self, chunk: bytes) -> bytes:
        self._tally.add(chunk)
        if not self._partial and chunk.endswith(b"\n\n") and not self._matters(chunk):
            return chunk
        splitter = self._splitter
        events = splitter.feed(chunk)
        self._partial = splitter.pending > 0
        if not self._withhold:
            for event in events:
                if self._matters(event):
                    self._read(event)
            return chunk
        return b"".join([event for event in events if not (self._matters(event) and self._read(event))])

    def rest(self) -> bytes:
        last = self._splitter.rest()
        self._partial = False
        if self._matters(last) and self._read(last) and self._withhold:
            return b""
        return last if self._withhold else b""

    @property
    def produced_bytes(self) -> int:
        return self._tally.count()

    @property
    def saw_done(self) -> bool:
        return self._done

    @property
    def mid_event(self) -> bool:
        return self._partial and not self._withhold

    def finish(self) -> Usage | None:
        if self._counts is not None:
            return self._counts.usage(complete=self._done)
        return self._usage

    def _matters(self, data: bytes) -> bool:
        """Whether some event in `data` may have to be parsed. (Chunks mostly say ``"usage":null`` at the most.)"""
        at = data.find(_USAGE)
        if at >= 0 and (_NULL.match(data, at + 7) is None or data.find(_USAGE, at + 7) >= 0):
            return True
        for mark in self._marks:  # noqa: SIM110 (a generator would cost more than the search)
            if data.find(mark) >= 0:  # three times as fast as `in`, which tries its operand as a number first
                return True
        return False

    def _read(self, event: bytes) -> bool:
        """Learn from one event; True if it is the usage chunk, which nobody but us may have asked for."""
        data = data_of(event)
        if not data:
            return False
        if data.strip() == _DONE:
            self._done = True
            return False
        try:
            message = self._loads(data)
        except (ValueError, RecursionError):
            return False
        if type(message) is not dict:
            return False
        kind = message.get("type")
        if message.get("error") is not None or kind == "error":
            self.error = True
        if self._shape == "messages":
            self._read_anthropic(kind, message)
            return False
        if self._shape == "responses":
            self._read_response(kind, message)
            return False
        value = message.get("usage")
        if value is None:
            return False
        self._believe(value)
        return message.get("choices") == []

    def _read_response(self, kind: Any, message: dict[str, Any]) -> None:
        if type(kind) is not str or kind not in _FINAL_RESPONSE:
            return
        self._done = True
        response = message.get("response")
        if kind == "response.failed":
            self.error = True
        if type(response) is dict and response.get("usage") is not None:
            self._believe(response["usage"])

    def _read_anthropic(self, kind: Any, message: dict[str, Any]) -> None:
        if kind == "message_stop":
            self._done = True
            return
        if kind == "message_start":
            start = message.get("message")
            value = start.get("usage") if type(start) is dict else None
        elif kind == "message_delta":
            value = message.get("usage")
        else:
            return
        if value is not None and self._counts is not None and not self._counts.add(value):
            self.malformed = True


class ConverseReader(UsageReader):
    """An answer of Bedrock's Converse as an event stream. Events are forwarded when they are complete, so that one that
    tells of an error can always follow."""

    def __init__(self, shape: Shape, loads: Loads = json.loads) -> None:
        super().__init__(shape, loads)
        self._tally = _Tally(shape)
        self._splitter = eventstream.Splitter()
        self._stopped = False

    def feed(self, chunk: bytes) -> bytes:
        messages = self._splitter.feed(chunk)
        for message in messages:
            self._tally.add(message + b"\n")
            self._read(message)
        passed = b"".join(messages)
        return passed + self._splitter.rest() if self._splitter.damaged else passed

    def rest(self) -> bytes:
        return self._splitter.rest()

    @property
    def produced_bytes(self) -> int:
        return self._tally.count()

    @property
    def saw_done(self) -> bool:
        return self._stopped

    def finish(self) -> Usage | None:
        self.malformed |= self._splitter.damaged
        return self._usage

    def _read(self, message: bytes) -> None:
        headers = eventstream.headers_of(message)
        kind = eventstream.text_header(headers, b":event-type")
        if kind == b"metadata":
            try:
                metadata = self._loads(eventstream.payload_of(message))
            except (ValueError, RecursionError):
                metadata = None
            self._believe(metadata.get("usage") if type(metadata) is dict else None)
        elif kind == b"messageStop":
            self._stopped = True
        elif not kind:
            self.error = True


def reader_for(call: Call, *, event_stream: bool, loads: Loads = json.loads) -> UsageReader:
    """The reader for an answer to `call`; its `content-type` says whether it is a stream, whatever was asked for.

    `loads` may be a faster parser than the standard library's.
    """
    if event_stream:
        if call.route.shape == "converse":
            return ConverseReader(call.route.shape, loads)
        return StreamReader(call.route.shape, withhold=call.withhold_usage, loads=loads)
    return JsonReader(call.route.shape, loads)


# -- how much text was produced ----------------------------------------------------------------------------------


def _text_bytes(shape: Shape, data: bytes) -> int:
    """Bytes of text in an answer, or in whole lines of a stream."""
    pattern = _TALLIES.get(shape)
    return sum(map(len, pattern.findall(data))) if pattern is not None else 0


class _Tally:
    """Counts the text in deltas, for streams that break before their usage.

    It is rarely needed, so chunks are only collected, and looked into when 64 KiB are there or somebody asks.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._chunks: list[bytes] = []
        self._size = 0
        self._counted = 0

    def add(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > _TALLY_BYTES:
            self._look()

    def count(self) -> int:
        """Bytes of text so far."""
        self._look()
        return self._counted

    def _look(self) -> None:
        """Count what is whole; keep the line that is not complete (unless it is very long)."""
        if not self._chunks:
            return
        data = b"".join(self._chunks)
        cut = data.rfind(b"\n") + 1
        if len(data) - cut > _TALLY_BYTES:
            cut = len(data)
        self._counted += _text_bytes(self._shape, data[:cut])
        tail = data[cut:]
        self._chunks = [tail] if tail else []
        self._size = len(tail)


_TALLIES = {
    shape: re.compile(rb'"(?:' + keys + rb')"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)"') for shape, keys in _TEXT_KEYS.items()
}
