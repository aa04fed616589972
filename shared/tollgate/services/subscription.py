"""A CloudWatch Logs subscription's event, taken apart: base64, gzip, JSON, then one log line per event; and the lines,
told apart by what they are."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from tollgate.domain.audit import REFUSALS, Refusals
from tollgate.domain.invocation import died
from tollgate.domain.records import BadRecord
from tollgate.services.meter import DeadLetter

MAX_BYTES = 50 * 1024 * 1024
"""Of log lines in one event; Lambda's events hold 6 MB, gzip makes about a tenth of such lines."""
GZIP = 31
"""zlib's window bits for gzip."""


def unpack(event: Mapping[str, Any]) -> tuple[list[str], list[DeadLetter]]:
    """The log lines, and what is not one. A schedule's event holds no lines. Never raises."""
    if event.get("source") == "aws.events":
        return [], []
    logs = event.get("awslogs")
    data = logs.get("data") if isinstance(logs, dict) else None
    if not isinstance(data, str):
        return [], [DeadLetter(json.dumps(event, default=str), "not the event of a log subscription")]
    try:
        batch = orjson.loads(gunzip(base64.b64decode(data, validate=True)))
    except (binascii.Error, zlib.error, ValueError) as error:
        return [], [DeadLetter(data, f"not base64 of gzip of JSON: {type(error).__name__}: {error}")]
    if isinstance(batch, dict) and batch.get("messageType") == "CONTROL_MESSAGE":  # "can you be reached?"
        return [], []
    events = batch.get("logEvents") if isinstance(batch, dict) else None
    if not isinstance(events, list):
        return [], [DeadLetter(data, "a batch without logEvents")]
    lines: list[str] = []
    letters: list[DeadLetter] = []
    for one in events:
        message = one.get("message") if isinstance(one, dict) else None
        if isinstance(message, str):
            lines.append(message)
        else:
            letters.append(DeadLetter(json.dumps(one), "a log event without a message"))
    return lines, letters


def gunzip(packed: bytes) -> bytes:
    """At most `MAX_BYTES`, whatever `packed` claims to hold. Raises `zlib.error`."""
    unpacker = zlib.decompressobj(GZIP)
    found = unpacker.decompress(packed, MAX_BYTES)
    if not unpacker.eof:
        raise zlib.error(f"more than {MAX_BYTES} bytes" if unpacker.unconsumed_tail else "cut short")
    return found


class Lines(NamedTuple):
    """The lines of a batch, told apart."""

    usage: list[str]
    refusals: list[Refusals]
    """Counts of refusals, which are for the audit log."""
    wrong: list[DeadLetter]
    """What looks like such a count, but is none."""
    died: list[str]
    """The calls whose invocation is reported to have died."""


def split(lines: Sequence[str]) -> Lines:
    found = Lines([], [], [], [])
    for line in lines:
        if line.startswith("REPORT "):
            if (call := died(line)) is not None:
                found.died.append(call)
        elif f'"{REFUSALS}"' not in line[:24]:  # a line begins with its event
            found.usage.append(line)
        else:
            try:
                found.refusals.append(Refusals.parse(json.loads(line)))
            except BadRecord as bad:
                found.wrong.append(DeadLetter(line, str(bad)))
            except (ValueError, RecursionError):
                found.wrong.append(DeadLetter(line, "not a line of JSON in UTF-8"))
    return found
