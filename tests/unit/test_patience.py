"""How long something is waited for, by a process that may be held up itself."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from bench.simulator.virtual_time import VirtualTimeLoop, run
from tollgate.adapters.patience import within


async def in_steps(number: int, seconds: float) -> str:
    for _ in range(number):
        await asyncio.sleep(seconds)
    return "done"


def held_up(seconds: float) -> None:
    """From now on nothing runs for so long."""
    loop = cast(VirtualTimeLoop, asyncio.get_running_loop())
    loop.call_soon(loop.freeze, seconds)


def test_what_takes_too_long_is_cancelled() -> None:
    async def main() -> None:
        ended: list[float] = []
        loop = asyncio.get_running_loop()

        async def endless() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(loop.time())

        with pytest.raises(TimeoutError):
            await within(0.5, endless())
        assert ended == [pytest.approx(0.5, abs=0.01)]

    run(main(), seed=0)


def test_who_waits_may_be_cancelled() -> None:
    async def main() -> None:
        work = asyncio.ensure_future(in_steps(1, 60))

        async def join() -> str:
            return await work

        waiting = asyncio.create_task(within(0.5, join()))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert work.cancelled()

    run(main(), seed=0)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_pause_of_our_own_does_not_count(steps: int) -> None:
    """Each step is over when the loop goes on, and so is the time; the next ones have still to be made."""

    async def main() -> str:
        held_up(2.0)
        return await within(0.5, in_steps(steps, 0.1))

    assert run(main(), seed=0) == "done"


def test_a_pause_that_is_longer_than_the_time_does_not_lengthen_it_without_end() -> None:
    async def main() -> float:
        held_up(3600)
        with pytest.raises(TimeoutError):
            await within(0.5, in_steps(1000, 0.1))
        return asyncio.get_running_loop().time() - 3600

    assert run(main(), seed=0) <= 1.1


def test_an_error_passes() -> None:
    async def main() -> None:
        async def fails() -> None:
            raise KeyError("as it is")

        with pytest.raises(KeyError):
            await within(0.5, fails())

    run(main(), seed=0)
