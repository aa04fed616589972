"""A time limit that does not count our own pauses against those who are waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
LOOK_AGAIN = 0.001
"""Seconds from the end of the time until it is over: for one more look at the sockets."""


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. Raises TimeoutError, and cancels it, where that takes more than `seconds`.

    A process that was held up (a long tick, a starved machine, a freeze) finds both that the time is over and that the
    answer has long been there. So it looks once more, for as long as its timer was late.
    """
    loop = asyncio.get_running_loop()
    due = loop.time() + seconds
    task = loop.create_task(work)
    try:
        done, _ = await asyncio.wait((task,), timeout=seconds)
        if not done:
            late = loop.time() - due
            done, _ = await asyncio.wait((task,), timeout=min(max(LOOK_AGAIN, late), seconds))
    finally:
        if task.cancel():
            await asyncio.wait((task,))
    if not done:
        raise TimeoutError
    return task.result()
