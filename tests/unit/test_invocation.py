"""A call on Lambda is named by its invocation, and Lambda's report of one that died names the call."""

from __future__ import annotations

from typing import Any

import pytest

from tollgate.domain.invocation import call_id, died
from tollgate.local.api_gateway import report_line
from tollgate.services.exchange import Exchange
from tollgate.services.identify import invocation_id, new_id
from tollgate.services.subscription import split

INVOCATION = "5bc05270-6f3c-4ea8-85c2-a055f14a150e"
CALL = "req_5bc052706f3c4ea885c2a055f14a150e"
COUNTS = "\tDuration: 31000.00 ms\tBilled Duration: 34440 ms\tMemory Size: 160 MB\tMax Memory Used: 150 MB\t"
REPORT = f"REPORT RequestId: {INVOCATION}{COUNTS}"
TRACE = "\nXRAY TraceId: 1-6ac7d556-032906e375c910cf42cb849e\tSegmentId: 90cbc97f4ee64a7f\tSampled: true\n"


@pytest.mark.parametrize(
    "line",
    [
        f"{REPORT}Status: timeout",
        f"{REPORT}Init Duration: 3439.00 ms\tStatus: timeout\n",
        f"{REPORT}Status: error\tError Type: Runtime.OutOfMemory{TRACE}",
        f"{REPORT}Status: error\tError Type: Runtime.ExitError",
        report_line(INVOCATION, 1.5, timed_out=False),
        report_line(INVOCATION, 900, timed_out=True),
    ],
)
def test_an_invocation_that_died_names_its_call(line: str) -> None:
    assert died(line) == CALL
    found = split([line])
    assert (found.died, found.usage, found.wrong) == ([CALL], [], [])


@pytest.mark.parametrize(
    "line",
    [
        f"{REPORT}\n",
        f"{REPORT}Init Duration: 154.03 ms\t\n",
        f"REPORT RequestId: {INVOCATION.upper()}{COUNTS}Status: timeout",
        f"REPORT RequestId: ../{INVOCATION}{COUNTS}Status: timeout",
        f"START RequestId: {INVOCATION} Version: $LATEST",
        f"END RequestId: {INVOCATION}",
        f"INIT_REPORT Init Duration: 19.27 ms\tPhase: invoke\tStatus: error\tError Type: Runtime.ExitError{INVOCATION}",
        f'{{"event":"usage.close","user":"{REPORT}Status: timeout"}}',
    ],
)
def test_nothing_else_does(line: str) -> None:
    assert died(line) is None
    assert split([line]).died == []


def exchange(context: str | None) -> Exchange:
    headers = [] if context is None else [(b"x-amzn-lambda-context", context.encode())]

    async def receive() -> Any:
        raise AssertionError

    async def send(_: Any) -> None:
        raise AssertionError

    return Exchange({"method": "POST", "path": "/", "headers": headers}, receive, send)


def test_a_call_on_lambda_is_named_by_its_invocation() -> None:
    assert invocation_id(exchange(f'{{"request_id":"{INVOCATION}","deadline":1}}')) == CALL == call_id(INVOCATION)


@pytest.mark.parametrize("context", [None, "{", "[]", "{}", '{"request_id":7}', '{"request_id":"x"}'])
def test_one_without_an_invocation_has_a_name_of_its_own(context: str | None) -> None:
    first, second = invocation_id(exchange(context)), invocation_id(exchange(context))
    assert first != second
    assert len(first) == len(new_id(exchange(None))) == len(CALL)
