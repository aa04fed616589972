"""From the proxy's standard output to the metering function, as CloudWatch Logs does it.

A log group's subscription filters lines by its pattern, gathers them for about a second, and invokes the function
with one gzipped, base64-encoded batch. It delivers at least once: a batch whose invocation fails is tried again.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

from tollgate.local.aws import ACCOUNT
from tollgate.local.children import say

USAGE_PATTERN = '{ ($.event = "usage.open") || ($.event = "usage.close") || ($.event = "refusals") }'
REPORT_PATTERN = '"REPORT RequestId:" "Status:"'
"""The subscriptions' filter patterns, the same as in the template. Lambda's report of an invocation is no JSON, so it
takes a subscription of its own; it has a status where the invocation failed."""

BATCH_S = 1.0
MAX_BATCH_BYTES = 256 * 1024
"""Of messages, before compression: well below what a Lambda event may hold."""
MAX_BATCH_EVENTS = 1_000
MAX_LINE_BYTES = 256 * 1024
"""CloudWatch Logs cuts longer events in two; a line beyond it is no usage record."""
ATTEMPTS = 8
LAST_ATTEMPTS = 3
"""How often while the stack is stopping: whoever pressed Ctrl-C is waiting."""
RETRY_S = 0.2
MAX_RETRY_S = 5.0

_TERM = re.compile(r'\(?\s*\$\.([A-Za-z0-9_.]+)\s*=\s*"([^"]*)"\s*\)?')

_WORDS = re.compile(r'"([^"?\\]+)"')

Invoke = Callable[[Mapping[str, Any]], Awaitable[Any]]


def json_filter(pattern: str) -> Callable[[str], bool]:
    """A CloudWatch Logs filter like ``{ ($.event = "a*") || ($.event = "b") }``: it matches JSON lines only."""
    terms: list[tuple[list[str], str]] = []
    for text in pattern.strip().removeprefix("{").removesuffix("}").split("||"):
        parsed = _TERM.fullmatch(text.strip())
        if parsed is None or not pattern.strip().startswith("{"):
            raise ValueError(f"this stand-in for CloudWatch Logs does not know the filter pattern {pattern!r}")
        # the only wildcard there is the asterisk
        terms.append((parsed[1].split("."), parsed[2].replace("[", "[[]").replace("?", "[?]")))

    def matches(line: str) -> bool:
        if not line.startswith("{"):
            return False
        try:
            record: Any = json.loads(line)
        except (ValueError, RecursionError):
            return False
        return any(_matches(record, path, value) for path, value in terms)

    return matches


def text_filter(pattern: str) -> Callable[[str], bool]:
    """A CloudWatch Logs filter like ``"some words" "and others"``: it matches lines that hold all of them."""
    words = _WORDS.findall(pattern)
    if " ".join(f'"{word}"' for word in words) != pattern or not words:
        raise ValueError(f"this stand-in for CloudWatch Logs does not know the filter pattern {pattern!r}")
    return lambda line: all(word in line for word in words)


def _matches(found: Any, path: list[str], value: str) -> bool:
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return isinstance(found, str) and fnmatchcase(found, value)


class Lines:
    """Whole lines from pieces of a stream, split at any byte."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        return [line.decode("utf-8", "replace").rstrip("\r") for line in lines]

    def end(self) -> list[str]:
        """What came after the last newline."""
        rest, self._rest = self._rest, b""
        return [rest.decode("utf-8", "replace")] if rest else []


def subscription_event(log_group: str, events: list[tuple[int, str]]) -> dict[str, Any]:
    """The event of a subscription's function, from messages and their times in epoch milliseconds."""
    record = {
        "messageType": "DATA_MESSAGE",
        "owner": ACCOUNT,
        "logGroup": log_group,
        "logStream": time.strftime("%Y/%m/%d/[$LATEST]local", time.gmtime()),
        "subscriptionFilters": ["usage"],
        "logEvents": [
            # real ids are 56 digits
            {"id": f"{uuid.uuid4().int:056d}"[-56:], "timestamp": at_ms, "message": message}
            for at_ms, message in events
        ],
    }
    packed = gzip.compress(json.dumps(record).encode(), compresslevel=1)
    return {"awslogs": {"data": base64.b64encode(packed).decode()}}


class LogPipe:
    """One log group with its subscriptions, which share their batches here.

    `other` is given every line that no subscription wants. `dead` is given the event of a batch that failed
    `ATTEMPTS` times, with the last error, as a function's failure destination would be.
    """

    def __init__(
        self,
        invoke: Invoke,
        *,
        log_group: str,
        other: Callable[[str], None] = lambda _: None,
        dead: Callable[[Mapping[str, Any], Exception], Awaitable[None]] | None = None,
        batch_s: float = BATCH_S,
    ) -> None:
        self._invoke = invoke
        self._log_group = log_group
        self._wanted = json_filter(USAGE_PATTERN), text_filter(REPORT_PATTERN)
        self._other = other
        self._dead = dead
        self._batch_s = batch_s
        self._lines = Lines()
        self._waiting: list[tuple[int, str]] = []
        self._arrived = asyncio.Event()
        self._closing = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._worker = asyncio.create_task(self._work())

    def feed(self, data: bytes) -> None:
        """A piece of the process's output."""
        self._take(self._lines.feed(data))

    def report(self, line: str) -> None:
        """A line that Lambda itself writes, between those of the process."""
        self._take([line])

    async def close(self) -> None:
        """Deliver everything that was fed, however long the last batch has waited."""
        self._take(self._lines.end())
        self._closing.set()
        self._arrived.set()
        if self._worker is not None:
            await self._worker

    def _take(self, lines: list[str]) -> None:
        now_ms = int(time.time() * 1000)
        for line in lines:
            if any(wants(line) for wants in self._wanted):
                self._waiting.append((now_ms, line))
                self._arrived.set()
            else:
                self._other(line)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            if not self._closing.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), self._batch_s)
            while batch := self._next_batch():
                await self._deliver(subscription_event(self._log_group, batch))
            if self._closing.is_set() and not self._waiting:
                return
            if not self._waiting:
                self._arrived.clear()

    def _next_batch(self) -> list[tuple[int, str]]:
        size = count = 0
        for _, message in self._waiting[:MAX_BATCH_EVENTS]:
            size += len(message)
            if count and size > MAX_BATCH_BYTES:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _deliver(self, event: Mapping[str, Any]) -> None:
        pause_s = RETRY_S
        attempt = 0
        while True:
            attempt += 1
            try:
                await self._invoke(event)
            except Exception as error:  # noqa: BLE001 - whatever a function raises is its failure, not ours
                if attempt >= (LAST_ATTEMPTS if self._closing.is_set() else ATTEMPTS):
                    say(f"metering failed {attempt} times, a batch of usage goes to the dead letters: {error!r}")
                    if self._dead is not None:
                        await self._dead(event, error)
                    return
                say(f"metering failed and is tried again: {error!r}")
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, MAX_RETRY_S)
            else:
                return
