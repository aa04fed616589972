"""The Lambda invocation that serves a call: it names the call, so that what Lambda itself says of the invocation can be
understood as said of the call.

Behind API Gateway every call is an invocation, and a process that is killed cannot say how its call ended. Lambda does,
in the log group of the function:

    REPORT RequestId: 5bc05270-6f3c-4ea8-85c2-a055f14a150e\tDuration: 31000.00 ms\t ... \tStatus: timeout
"""

from __future__ import annotations

import re

_INVOCATION = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_DIED = re.compile(
    rf"REPORT RequestId: ({_INVOCATION.pattern})\t.*\tStatus: (?:timeout|error|failure)(?:\s|$)", re.ASCII
)


def call_id(invocation: str) -> str | None:
    """The id of the call that this invocation serves; None if it is no id of an invocation."""
    return "req_" + invocation.replace("-", "") if _INVOCATION.fullmatch(invocation) else None


def died(line: str) -> str | None:
    """The id of the call whose invocation is reported, by this line of a log, to have died; None for any other line."""
    found = _DIED.match(line)
    return call_id(found[1]) if found else None
