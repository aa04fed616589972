"""Waiting for what must happen, on a machine that may have other things to do."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 60.0
"""So long may it take until something happens that is certain to: only a test that fails waits for it."""


def wait(condition: Callable[[], object], *, pause_s: float = 0.05) -> None:
    """Returns as soon as `condition` holds, and fails if it never does."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(pause_s)
