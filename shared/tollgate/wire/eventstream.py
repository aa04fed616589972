"""Amazon's binary event streams (``application/vnd.amazon.eventstream``), cut out of a byte stream without changing it.

A message is a prelude (its length, its headers' length, a CRC-32 of those two), headers, a payload, and a CRC-32 of all
that came before; numbers are big-endian. A header is its name, a type, and a value: Bedrock's are texts.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from struct import Struct

CONTENT_TYPE = b"application/vnd.amazon.eventstream"
MAX_MESSAGE = 24 * 1024 * 1024
"""Bytes; the format itself ends at 16 MB of payload and 128 KB of headers."""

_PRELUDE = Struct(">III")
_CRC = Struct(">I")
_LENGTH = Struct(">H")
_LEAST = _PRELUDE.size + _CRC.size
_TEXT = 7


class Splitter:
    """Feed chunks, get whole messages whose sums are right. From the first wrong one on nothing is believed: `damaged`
    is set, and everything comes out as it came in."""

    __slots__ = ("_buffer", "damaged")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.damaged = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The messages that `chunk` completes."""
        buffer = self._buffer
        buffer += chunk
        messages: list[bytes] = []
        begin = 0
        while len(buffer) - begin >= _PRELUDE.size and not self.damaged:
            length, headers, sum_ = _PRELUDE.unpack_from(buffer, begin)
            if zlib.crc32(buffer[begin : begin + 8]) != sum_ or not _LEAST + headers <= length <= MAX_MESSAGE:
                self.damaged = True
            elif len(buffer) - begin < length:
                break
            else:
                message = bytes(buffer[begin : begin + length])
                self.damaged = zlib.crc32(message[:-4]) != _CRC.unpack_from(message, length - 4)[0]
                if not self.damaged:
                    messages.append(message)
                    begin += length
        del buffer[:begin]
        return messages

    def rest(self) -> bytes:
        """What is left of a message that is not complete, or not to be believed; the splitter is empty afterwards."""
        left = bytes(self._buffer)
        self._buffer.clear()
        return left


def headers_of(message: bytes) -> bytes:
    """The headers of a whole message, as they are."""
    return message[_PRELUDE.size : _PRELUDE.size + _PRELUDE.unpack_from(message)[1]]


def text_header(headers: bytes, name: bytes) -> bytes:
    """The text in the header of that name; empty if there is none."""
    sought = bytes([len(name)]) + name + bytes([_TEXT])
    at = headers.find(sought)
    if at < 0 or at + len(sought) + 2 > len(headers):
        return b""
    begin = at + len(sought) + 2
    return headers[begin : begin + _LENGTH.unpack_from(headers, begin - 2)[0]]


def payload_of(message: bytes) -> bytes:
    return message[_PRELUDE.size + _PRELUDE.unpack_from(message)[1] : -_CRC.size]


def encode(headers: Mapping[str, str], payload: bytes) -> bytes:
    """A message with these headers, all of them texts."""
    packed = b""
    for name, value in headers.items():
        key, text = name.encode(), value.encode()
        packed += bytes([len(key)]) + key + bytes([_TEXT]) + _LENGTH.pack(len(text)) + text
    lengths = Struct(">II").pack(_LEAST + len(packed) + len(payload), len(packed))
    head = lengths + _CRC.pack(zlib.crc32(lengths)) + packed + payload
    return head + _CRC.pack(zlib.crc32(head))


def event(name: str, payload: bytes) -> bytes:
    """An event as Bedrock sends it."""
    return encode({":event-type": name, ":content-type": "application/json", ":message-type": "event"}, payload)


def failure(name: str, payload: bytes) -> bytes:
    """The message that ends a stream with an error, which SDKs raise as the exception of that name."""
    kind = {":exception-type": name, ":content-type": "application/json", ":message-type": "exception"}
    return encode(kind, payload)
