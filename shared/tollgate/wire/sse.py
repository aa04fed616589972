"""Server-sent events, cut out of a byte stream without changing a byte of it.

A blank line ends an event; lines end in LF, CRLF or CR (WHATWG HTML, 9.2). The concatenation of all events and what is
left over is always exactly the input, however it was split into chunks.
"""

from __future__ import annotations

import re

MAX_EVENT = 8 * 1024 * 1024
"""Bytes that one unfinished event may occupy; the largest real ones repeat a whole answer."""

# A CR counts as a line's end only once the next byte is known not to be the LF that belongs to it.
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?=[^\n]))(?:\r\n|\n|\r(?=[^\n]))")
_LONGEST_END = 4
_BOM = b"\xef\xbb\xbf"


class Splitter:
    """Feed chunks, get whole events. An event above `max_event` bytes comes out in pieces rather than being kept."""

    __slots__ = ("_buffer", "_carriage", "_max_event", "_seen")

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self._buffer = bytearray()
        self._seen = 0
        self._carriage = False
        self._max_event = max_event

    @property
    def pending(self) -> int:
        """Bytes of the event that is not complete yet."""
        return len(self._buffer)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes, each with the blank line that ends it."""
        if not self._carriage:
            if not self._buffer and chunk.find(b"\n\n") == len(chunk) - 2 and b"\r" not in chunk and len(chunk) > 2:
                return [chunk]  # what nearly every provider sends nearly always: one event
            self._carriage = b"\r" in chunk
        buffer = self._buffer
        buffer += chunk
        ends = self._ends()
        events: list[bytes] = []
        begin = 0
        for end in ends:
            events.append(bytes(buffer[begin:end]))
            begin = end
        del buffer[:begin]
        if len(buffer) > self._max_event:
            events.append(self.rest())
        self._seen = len(buffer)
        return events

    def rest(self) -> bytes:
        """What is left when the stream ends in the middle of an event; the splitter is empty afterwards."""
        left = bytes(self._buffer)
        self._buffer.clear()
        self._seen = 0
        return left

    def _ends(self) -> list[int]:
        """The positions after each blank line in the buffer, of which the first `_seen` bytes contain none."""
        buffer = self._buffer
        start = max(0, self._seen - _LONGEST_END + 1)
        if self._carriage:
            return [found.end() for found in _BLANK_LINE.finditer(buffer, start)]
        ends: list[int] = []
        at = buffer.find(b"\n\n", start)
        while at >= 0:
            ends.append(at + 2)
            at = buffer.find(b"\n\n", at + 2)
        return ends


def data_of(event: bytes) -> bytes:
    """The event's data: its `data` lines, joined by line feeds; empty if it has none."""
    if event.startswith(b"data: ") and event.endswith(b"\n\n") and event.find(b"\n") == len(event) - 2:
        return event[6:-2]
    found: list[bytes] = []
    for line in event.removeprefix(_BOM).splitlines():
        name, _, value = line.partition(b":")
        if name == b"data":
            found.append(value.removeprefix(b" "))
    return b"\n".join(found)


def is_event_stream(content_type: bytes) -> bool:
    """Whether a response's `content-type` announces server-sent events."""
    return content_type.partition(b";")[0].strip().lower() == b"text/event-stream"
