"""Request bodies: parsed once, changed by splicing, never re-serialised.

One pass over the text gives the values, where each top-level value stands, and whether a key occurs twice. What the
policy asks to be changed replaces just that value; every other byte reaches the provider as the caller wrote it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from json import decoder
from json.decoder import JSONDecodeError, JSONDecoder
from typing import Any

from tollgate.wire.errors import ApiError, shown

MAX_MEMBERS = 1_000
"""Top-level members of a body. Real requests have some twenty."""
MAX_OBJECTS = 20_000
"""Objects in a body. Each costs a microsecond or so, and a few MB of them would hold up everyone else for seconds."""


class BodyError(ApiError):
    """400: the body is not what a JSON API can work with."""

    def __init__(self, message: str, param: str | None = None, code: str | None = "invalid_json") -> None:
        super().__init__(400, message, param=param, code=code)


class _Rejected(Exception):
    """Raised from inside the C scanner by our hooks; carries the sentence for the caller."""


def _reject_constant(name: str) -> Any:
    raise _Rejected(f"{name} is not a JSON value")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different: which of two equal keys counts is the reader's choice, and the provider's
    may differ from ours, so what we checked need not be what it does."""
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # None is false
        raise _Rejected(f"the key {shown(twice)} occurs twice in one object")
    return made


Scan = Callable[[str, int], tuple[Any, int]]


def _scanner(object_pairs_hook: Callable[[list[tuple[str, Any]]], dict[str, Any]]) -> Scan:
    """The standard library's own C scanner: the value at a position, and where it ends. Raises StopIteration where
    there is none. (Unchanged since Python 2.7, but unknown to the type stubs.)"""
    scan: Scan = vars(JSONDecoder(parse_constant=_reject_constant, object_pairs_hook=object_pairs_hook))["scan_once"]
    return scan


def _counting_scanner() -> Scan:
    """A scanner for one body, which gives up at `MAX_OBJECTS`."""
    left = MAX_OBJECTS

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal left
        left -= 1
        if left < 0:
            raise _Rejected(f"it has more than {MAX_OBJECTS} objects")
        return _unique(pairs)

    return _scanner(unique)


_scan = _scanner(_unique)
_scan_string: Callable[[str, int, bool], tuple[str, int]] = vars(decoder)["scanstring"]


class Body:
    """A parsed request body: a JSON object."""

    __slots__ = ("_spans", "_start", "_text", "fields", "raw")

    raw: bytes
    """The body as it was received."""
    fields: dict[str, Any]
    """Its top-level members."""

    def __init__(self, raw: bytes) -> None:
        """Parse; raises `BodyError`."""
        self.raw = raw
        try:
            self._text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BodyError(f"The body is not UTF-8 (byte {error.start}).") from None
        self.fields = {}
        self._spans: dict[str, tuple[int, int]] = {}
        try:
            self._start = self._parse()
        except JSONDecodeError as error:
            where = f"line {error.lineno} column {error.colno}"
            raise BodyError(f"We could not parse the JSON body: {error.msg} ({where}).") from None
        except _Rejected as error:
            raise BodyError(f"We could not parse the JSON body: {error}.") from None
        except RecursionError:
            raise BodyError("The JSON body is nested too deeply.") from None
        except ValueError:  # what int() says to thousands of digits
            raise BodyError("The JSON body contains a number with too many digits.") from None

    def _parse(self) -> int:
        """Fill `fields` and `_spans`; returns the position after the opening brace."""
        text = self._text
        fields, spans = self.fields, self._spans
        scan = _scan if text.count("{") <= MAX_OBJECTS else _counting_scanner()
        at = 0 if text.startswith("{") else _skip(text, 0)
        try:
            if text[at] != "{":
                self._finish(text, scan(text, at)[1])
                raise BodyError("The body must be a JSON object.", code="invalid_type")
            start = at = at + 1
            if text[at] <= " ":
                at = _skip(text, start)
            if text[at] == "}":
                self._finish(text, at + 1)
                return start
            while True:
                if text[at] != '"':
                    raise JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
                key, at = _scan_string(text, at + 1, True)
                if key in fields:
                    raise BodyError(f"The key {shown(key)} occurs twice.", param=key, code="duplicate_key")
                if text[at] != ":":
                    at = _skip(text, at)
                    if text[at] != ":":
                        raise JSONDecodeError("Expecting ':' delimiter", text, at)
                begin = at + 1
                if text[begin] == " ":  # as most serialisers write it
                    begin += 1
                if text[begin] <= " ":
                    begin = _skip(text, begin)
                fields[key], at = scan(text, begin)
                spans[key] = (begin, at)
                if (char := text[at]) <= " ":
                    at = _skip(text, at)
                    char = text[at]
                if char != ",":
                    break
                at += 1
                if text[at] == " ":
                    at += 1
                if text[at] != '"':
                    at = _skip(text, at)
                if len(fields) == MAX_MEMBERS:
                    raise _Rejected(f"it has more than {MAX_MEMBERS} members")
            if text[at] != "}":
                raise JSONDecodeError("Expecting ',' delimiter", text, at)
        except StopIteration as stop:
            raise JSONDecodeError("Expecting value", text, stop.value) from None
        except IndexError:
            raise JSONDecodeError("Unexpected end", text, len(text)) from None
        self._finish(text, at + 1)
        return start

    @staticmethod
    def _finish(text: str, at: int) -> None:
        if at != len(text) and (at := _skip(text, at)) != len(text):
            raise JSONDecodeError("Extra data", text, at)

    def splice(self, changes: Mapping[str, str]) -> bytes:
        """The body with the top-level members `changes` (name to JSON text) set, and every other byte as it was.

        Absent members are added after the opening brace. Without changes this is the received object itself.
        """
        if not changes:
            return self.raw
        text = self._text
        added: list[str] = []
        edits: list[tuple[int, int, str]] = []
        for name, value in changes.items():
            span = self._spans.get(name)
            if span is None:
                added.append(f"{json.dumps(name)}:{value}")
            else:
                edits.append((*span, value))
        if added:
            tail = "," if self._spans else ""
            edits.append((self._start, self._start, ",".join(added) + tail))
        edits.sort()
        parts: list[str] = []
        at = 0
        for begin, end, value in edits:
            parts += (text[at:begin], value)
            at = end
        parts.append(text[at:])
        return "".join(parts).encode("utf-8")


_blanks = re.compile(r"[ \t\n\r]*")


def _skip(text: str, at: int) -> int:
    """The position of the first character at or after `at` that is not JSON white space."""
    found = _blanks.match(text, at)
    return at if found is None else found.end()
