"""Log lines and metrics, in the shapes that CloudWatch and Powertools' readers expect."""

from __future__ import annotations

import json
import re

import pytest

from tollgate.adapters.telemetry import emf, log, metric


def test_a_log_line_has_powertools_shape(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "authorizer")
    log("INFO", "two\nlines", tenant="ac\u00e9me", reason=ValueError("odd"))
    (text,) = capsys.readouterr().out.splitlines()
    line = json.loads(text)
    assert line["location"].startswith("test_a_log_line_has_powertools_shape:")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\+0000", line["timestamp"])
    assert {k: line[k] for k in ("level", "message", "service", "tenant", "reason")} == {
        "level": "INFO", "message": "two\nlines", "service": "authorizer", "tenant": "ac\u00e9me", "reason": "odd",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "value", "written"),
    [("POWERTOOLS_LOG_LEVEL", "error", False), ("AWS_LAMBDA_LOG_LEVEL", "DEBUG", True), ("X", "", False)],
)
def test_the_level_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, value: str, written: bool
) -> None:
    for name in ("POWERTOOLS_LOG_LEVEL", "AWS_LAMBDA_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    log("DEBUG", "detail")
    assert bool(capsys.readouterr().out) is written


def test_metrics_are_in_the_embedded_metric_format(capsys: pytest.CaptureFixture[str]) -> None:
    metric("Tollgate", {"service": "proxy", "plan": "pro"}, Admitted=2, Latency=(12.5, "Milliseconds"))
    line = json.loads(capsys.readouterr().out)
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "Tollgate"
    assert directive["Dimensions"] == [["service", "plan"]]
    assert directive["Metrics"] == [
        {"Name": "Admitted", "Unit": "Count"},
        {"Name": "Latency", "Unit": "Milliseconds"},
    ]
    assert (line["service"], line["plan"], line["Admitted"], line["Latency"]) == ("proxy", "pro", 2, 12.5)
    assert line["_aws"]["Timestamp"] > 1_700_000_000_000


def test_a_log_line_can_be_a_metric_too(capsys: pytest.CaptureFixture[str]) -> None:
    log("ERROR", "boom", **emf("Tollgate", {"service": "proxy"}, Booms=1))
    line = json.loads(capsys.readouterr().out)
    assert (line["message"], line["Booms"]) == ("boom", 1)
