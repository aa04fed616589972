"""Lambda functions inside the local stack: the same handlers, called with the same events.

Each function has one thread of its own, because a Lambda environment runs one event at a time, and what it prints is
its log group, not the stack's output.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tollgate.local.aws import ACCOUNT

Handler = Callable[[Mapping[str, Any], object], Any]

CLOSE_S = 3.0
"""How long a function may take to close what it keeps; the stack's end ends it anyway."""
SHOWN_LEVELS = frozenset({"WARNING", "ERROR", "CRITICAL"})


@dataclass(frozen=True)
class Context:
    """What Lambda passes to a handler beside the event."""

    function_name: str
    invoked_function_arn: str
    timeout_s: float
    function_version: str = "$LATEST"
    memory_limit_in_mb: int = 256
    aws_request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    client_context: None = None
    identity: None = None
    _started: float = field(default_factory=time.monotonic)

    @property
    def log_group_name(self) -> str:
        return f"/aws/lambda/{self.function_name}"

    @property
    def log_stream_name(self) -> str:
        return "local"

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int((self._started + self.timeout_s - time.monotonic()) * 1000))


class Function:
    """A function by the name of its handler, as in the template: ``functions.authorizer.handler.handler``.

    The handler is imported on its own thread, so that a slow import holds up nobody, and after the environment has
    been set, which handlers read when they are imported.
    """

    def __init__(self, name: str, handler: str, *, region: str, timeout_s: float) -> None:
        self.name = name
        self.arn = f"arn:aws:lambda:{region}:{ACCOUNT}:function:{name}"
        self._path = handler
        self._timeout_s = timeout_s
        self._handler: Handler | None = None
        self._close: Callable[[], None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def load(self) -> None:
        """Import the handler now rather than at its first event."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    async def invoke(self, event: Mapping[str, Any]) -> Any:
        """The handler's result; what it raises is raised."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._call, event)

    async def aclose(self) -> None:
        """End what the handler's module keeps between events, if it keeps anything, after the event that it is at."""
        if self._close is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _load(self) -> Handler:
        if self._handler is None:
            path, _, name = self._path.rpartition(".")
            module = importlib.import_module(path)
            self._handler, self._close = getattr(module, name), getattr(module, "close", None)
        return self._handler

    def _call(self, event: Mapping[str, Any]) -> Any:
        return self._load()(event, Context(self.name, self.arn, self._timeout_s))


class LogLines(io.TextIOBase):
    """Stands in for standard output while handlers run in this process: what they print are log lines.

    Warnings and errors are shown on standard error; with `verbose`, everything is.
    """

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for line in text.splitlines():
            show_line(line, verbose=self._verbose)
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


def show_line(line: str, *, verbose: bool) -> None:
    """Show one log line of a function to people, if it is worth their attention."""
    if not line.strip() or not (verbose or _matters(line)):
        return
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _matters(line: str) -> bool:
    """Whether a line is a warning or worse, or no JSON at all (a traceback, say)."""
    try:
        record = json.loads(line)
    except ValueError:
        return True
    return isinstance(record, dict) and record.get("level") in SHOWN_LEVELS
