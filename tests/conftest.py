"""For all tests: no generated test has a deadline or fails because its examples are slowly made (what machine this is,
no test knows); and each tries fifty unless it says otherwise (`pytest --hypothesis-profile=thorough`: five hundred).

What a failing test says can be read: pytest shortens nothing where `CI` is set, and one body that differs would hide
every other failure.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

for profile, examples in (("tollgate", 50), ("thorough", 500)):
    patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=examples)
    settings.register_profile(profile, patient)
settings.load_profile("tollgate")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: three for two cores, since tests of timeouts and of other processes wait half of the time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, cores * 3 // 2)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports a million objects that stay: the garbage collector looks at none of them, neither now nor later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


MAX_LINE = 400
MAX_LINES = 60


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    report.sections = [(name, readable(text)) for name, text in report.sections]
    for traceback, crash, _ in getattr(report.longrepr, "chain", ()):
        for entry in traceback.reprentries:
            entry.lines = readable("\n".join(entry.lines)).split("\n")
        if crash is not None:
            crash.message = readable("\n".join(crash.message.split("\n")[:8]))  # for the summary
    return report


def readable(text: Any) -> str:
    """The first and the last lines, and the beginning of those that are too long."""
    lines = [
        line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}... ({len(line)} characters)"
        for line in str(text).split("\n")
    ]
    if len(lines) > MAX_LINES:
        half = MAX_LINES // 2
        lines[half:-half] = [f"... ({len(lines) - 2 * half} lines)"]
    return "\n".join(lines)
