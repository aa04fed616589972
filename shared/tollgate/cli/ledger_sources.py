"""Where `tollgate ledger replay` finds usage records: log files, a log group's time range, the dead-letter queue."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tollgate.services.meter import DeadLetter
from tollgate.services.subscription import unpack

BATCH = 1000
"""Lines that are entered together."""
WAIT_S = 2
"""How long the queue is waited for before it counts as empty."""
HIDDEN_S = 300
"""How long a message is kept from others while it is worked on."""
MARK = '"event"'
USAGE = ('"usage.', '"refusals"')


@dataclass(slots=True)
class Portion:
    """Some lines, what could not even be split into lines, and how the source is told that they are done with."""

    lines: list[str] = field(default_factory=list)
    unreadable: list[DeadLetter] = field(default_factory=list)
    receipt: Any = None
    passed_over: int = 0
    """Lines of other kinds."""


def from_files(paths: Sequence[str]) -> Iterator[Portion]:
    """Of log files, plain or gzipped; ``-`` is standard input. A line may begin with a time stamp, as `aws logs tail`
    writes it. Lines that are no records of ours are passed over."""
    for path in paths:
        portion = Portion()
        for raw in _lines(path):
            line = raw.decode("utf-8", "replace").strip()
            at = line.find("{")
            head = line[at : at + 60] if at >= 0 else ""
            if MARK in head and any(kind in head for kind in USAGE):
                portion.lines.append(line[at:])
            else:
                portion.passed_over += 1
            if len(portion.lines) == BATCH:
                yield portion
                portion = Portion()
        yield portion


def _lines(path: str) -> Iterator[bytes]:
    if path == "-":
        yield from sys.stdin.buffer
        return
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        yield from gzip.GzipFile(fileobj=file) if packed else file


def from_log_group(logs: Any, group: str, since_ms: int, until_ms: int, pattern: str) -> Iterator[Portion]:
    """`logs`: a boto3 client."""
    pages = logs.get_paginator("filter_log_events").paginate(
        logGroupName=group, startTime=since_ms, endTime=until_ms, filterPattern=pattern
    )
    portion = Portion()
    for page in pages:
        for event in page["events"]:
            portion.lines.append(event["message"].strip())
            if len(portion.lines) == BATCH:
                yield portion
                portion = Portion()
    yield portion


class Queue:
    """The dead letters. What was entered is deleted; what still cannot be read stays, and is visible again at once."""

    def __init__(self, sqs: Any, url: str, *, keep: bool) -> None:
        """`sqs`: a boto3 client. `keep`: delete nothing."""
        self._sqs = sqs
        self._url = url
        self._keep = keep
        self._kept: list[dict[str, str]] = []

    def portions(self) -> Iterator[Portion]:
        """One message each: whatever is wrong with it must not keep another in the queue."""
        seen: set[str] = set()
        try:
            while True:
                answer = self._sqs.receive_message(
                    QueueUrl=self._url, MaxNumberOfMessages=10, WaitTimeSeconds=WAIT_S, VisibilityTimeout=HIDDEN_S
                )
                messages = answer.get("Messages", [])
                new = [message for message in messages if message["MessageId"] not in seen]
                if not new:
                    return
                for message in new:
                    seen.add(message["MessageId"])
                    portion = letter(message["Body"])
                    portion.receipt = {"Id": f"{len(seen)}", "ReceiptHandle": message["ReceiptHandle"]}
                    yield portion
        finally:
            for at in range(0, len(self._kept), 10):
                again = [{**receipt, "VisibilityTimeout": 0} for receipt in self._kept[at : at + 10]]
                self._sqs.change_message_visibility_batch(QueueUrl=self._url, Entries=again)

    def done(self, portion: Portion, *, entered: bool) -> None:
        if entered and not self._keep:
            self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=portion.receipt["ReceiptHandle"])
        else:
            self._kept.append(portion.receipt)


def letter(body: str) -> Portion:
    """What a dead letter holds: one record that metering refused, or the whole event of an invocation that failed (as
    Lambda's failure destination tells it, or the local stack)."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        return Portion(unreadable=[DeadLetter(body, "not a dead letter: no JSON object")])
    event = parsed.get("requestPayload", parsed.get("event"))
    if isinstance(event, dict):
        lines, unreadable = unpack(event)
        return Portion(lines, unreadable)
    record = parsed.get("record")
    if not isinstance(record, str):
        return Portion(unreadable=[DeadLetter(body, "not a dead letter: neither a record nor an event")])
    if parsed.get("cut"):
        return Portion(unreadable=[DeadLetter(record, "the line was longer than a message may be, and is cut")])
    return Portion([record])
