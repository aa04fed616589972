"""The log pipe loses nothing, keeps other lines out, and tries failed batches again."""

import asyncio
import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.local import log_pipe
from tollgate.local.api_gateway import report_line
from tollgate.local.log_pipe import Lines, LogPipe, json_filter, subscription_event, text_filter


def unpack(event: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(gzip.decompress(base64.b64decode(event["awslogs"]["data"]))))


def usage(number: int, event: str = "usage.close") -> str:
    return json.dumps({"event": event, "id": number})


class Metering:
    """A metering function that remembers what it got, and fails as often as it is told."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.batches: list[list[int]] = []

    async def __call__(self, event: Mapping[str, Any]) -> None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("ledger is away")
        self.batches.append([json.loads(e["message"])["id"] for e in unpack(event)["logEvents"]])

    @property
    def ids(self) -> list[int]:
        return [number for batch in self.batches for number in batch]


def test_reports_of_failed_invocations_reach_metering_and_no_others() -> None:
    failed = report_line("5bc05270-6f3c-4ea8-85c2-a055f14a150e", 1, timed_out=True)
    batches: list[list[str]] = []
    passed_over: list[str] = []

    async def metering(event: Mapping[str, Any]) -> None:
        batches.append([each["message"] for each in unpack(event)["logEvents"]])

    async def run() -> None:
        pipe = LogPipe(metering, log_group="/aws/lambda/proxy", other=passed_over.append)
        pipe.start()
        pipe.feed(usage(1).encode()[:9])
        pipe.report(failed)
        pipe.report(failed.partition("\tStatus")[0])
        pipe.feed(usage(1).encode()[9:] + b"\n")
        await pipe.close()

    asyncio.run(run())
    assert batches == [[failed, usage(1)]]
    assert passed_over == [failed.partition("\tStatus")[0]]


@pytest.mark.parametrize("pattern", ["", "REPORT", '"a" b', '"a"  "b"', '"a" ?"b"', '"a'])
def test_a_pattern_of_words_that_is_not_known_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="does not know the filter pattern"):
        text_filter(pattern)


def deliver(pieces: list[bytes], metering: Metering, *, pause_s: float = 0.0, **options: Any) -> None:
    async def run() -> None:
        pipe = LogPipe(metering, log_group="/aws/lambda/proxy", **options)
        pipe.start()
        for piece in pieces:
            pipe.feed(piece)
        await asyncio.sleep(pause_s)
        await pipe.close()

    asyncio.run(run())


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8))
def test_lines_are_the_same_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    whole, pieces = Lines(), Lines()
    expected = whole.feed(data) + whole.end()
    found: list[str] = []
    at = 0
    for cut in [*sorted(cuts), len(data)]:
        found += pieces.feed(data[at:cut])
        at = max(at, cut)
    assert found + pieces.end() == expected


def test_a_line_without_end_is_not_kept_for_ever() -> None:
    lines = Lines()
    assert lines.feed(b"x" * (log_pipe.MAX_LINE_BYTES + 1)) != []
    assert lines.end() == []


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('{"event":"usage.close"}', True),
        ('{"event": "usage.open", "id": 1}', True),
        ('{"event":"usage.other"}', False),
        ('{"event":"Usage.close"}', False),
        ('{"event":["usage.close"]}', False),
        ('{"level":"INFO","message":"usage.close"}', False),
        ('{"nested":{"event":"usage.close"}}', False),
        (' {"event":"usage.close"}', False),
        ('"usage.close"', False),
        ("usage.close", False),
        ('{"event":"usage.close"', False),
        ("{" * 100_000, False),
    ],
)
def test_the_subscription_takes_usage_records_only(line: str, wanted: bool) -> None:
    assert json_filter(log_pipe.USAGE_PATTERN)(line) is wanted


def test_other_filter_patterns() -> None:
    assert json_filter('{ $.a.b = "x*" }')('{"a": {"b": "xyz"}}')
    assert not json_filter('{ $.a.b = "x?" }')('{"a": {"b": "xy"}}')
    with pytest.raises(ValueError, match="filter pattern"):
        json_filter("ERROR")
    with pytest.raises(ValueError, match="filter pattern"):
        json_filter("{ $.n > 3 }")


def test_an_event_looks_like_cloudwatchs() -> None:
    event = unpack(subscription_event("/aws/lambda/proxy", [(1_700_000_000_123, "one"), (1_700_000_000_124, "two")]))
    assert event["messageType"] == "DATA_MESSAGE"
    assert event["logGroup"] == "/aws/lambda/proxy"
    assert [e["message"] for e in event["logEvents"]] == ["one", "two"]
    assert event["logEvents"][0]["timestamp"] == 1_700_000_000_123
    assert len({e["id"] for e in event["logEvents"]}) == 2


def test_everything_fed_is_delivered_once_and_other_lines_are_not() -> None:
    metering = Metering()
    others: list[str] = []
    lines = "".join(usage(i) + "\nplain text\n" for i in range(50)).encode()
    deliver([lines[i : i + 7] for i in range(0, len(lines), 7)], metering, other=others.append)
    assert metering.ids == list(range(50))
    assert others == ["plain text"] * 50


def test_lines_are_gathered_in_batches() -> None:
    metering = Metering()
    deliver([usage(i).encode() + b"\n" for i in range(20)], metering, pause_s=0.1, batch_s=0.02)
    assert metering.batches == [list(range(20))]


def test_close_does_not_wait_for_the_batch_to_fill() -> None:
    metering = Metering()
    deliver([usage(1).encode()], metering, batch_s=60)  # without its newline, even
    assert metering.ids == [1]


def test_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_pipe, "MAX_BATCH_BYTES", 200)
    metering = Metering()
    deliver([usage(i).encode() + b"\n" for i in range(30)], metering)
    assert metering.ids == list(range(30))
    assert max(len(batch) for batch in metering.batches) <= 6
    monkeypatch.setattr(log_pipe, "MAX_BATCH_BYTES", 1)  # one that is too large alone still goes
    metering = Metering()
    deliver([usage(1).encode() + b"\n"], metering)
    assert metering.ids == [1]


def test_failed_batches_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_pipe, "RETRY_S", 0.001)
    metering = Metering(failures=2)
    deliver([usage(i).encode() + b"\n" for i in range(3)], metering)
    assert metering.batches == [[0, 1, 2]]


def test_a_batch_that_never_succeeds_becomes_a_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_pipe, "RETRY_S", 0.001)
    dead: list[tuple[Mapping[str, Any], Exception]] = []

    async def bury(event: Mapping[str, Any], error: Exception) -> None:
        dead.append((event, error))

    metering = Metering(failures=log_pipe.LAST_ATTEMPTS)
    deliver([usage(7).encode() + b"\n"], metering, dead=bury)
    assert metering.ids == []
    assert json.loads(unpack(dead[0][0])["logEvents"][0]["message"])["id"] == 7
    assert "ledger" in str(dead[0][1])
