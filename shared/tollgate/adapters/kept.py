"""What a function keeps between the invocations of its container."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Kept(Generic[T]):
    """An event loop, and the adapters that live on it: certificates are loaded and connections made once, not for every
    event. Lambda never says that an invocation was the last; where somebody does, `close` ends both.
    """

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._make = make
        self._runner: asyncio.Runner | None = None
        self._made: AbstractAsyncContextManager[T]
        self._parts: T

    def run(self, work: Callable[[T], Coroutine[Any, Any, R]]) -> R:
        """The result of `work`, which is given the adapters. Raises what making them raises, and then makes them anew
        next time."""
        if self._runner is None:
            runner, made = asyncio.Runner(), self._make()
            try:
                self._parts = runner.run(made.__aenter__())
            except BaseException:
                runner.close()
                raise
            self._runner, self._made = runner, made
        return self._runner.run(self._awake(work))

    def close(self) -> None:
        if self._runner is not None:
            with self._runner as runner:
                self._runner = None
                runner.run(self._made.__aexit__(None, None, None))

    async def _awake(self, work: Callable[[T], Coroutine[Any, Any, R]]) -> R:
        for _ in range(2):  # connections that were lost while nothing ran are noticed before they are used
            await asyncio.sleep(0)
        return await work(self._parts)
