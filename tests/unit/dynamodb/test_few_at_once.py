"""Work with a bound: so many at a time, and nothing more after a failure."""

from __future__ import annotations

import asyncio

import pytest

from tollgate.adapters.dynamodb import few_at_once


class Work:
    """Pieces that go on when they are let, and what became of each."""

    def __init__(self, fails: int = -1) -> None:
        self.begun: list[int] = []
        self.done: list[int] = []
        self.most = 0
        self._fails = fails

    async def piece(self, number: int) -> None:
        self.begun.append(number)
        self.most = max(self.most, len(self.begun) - len(self.done))
        await asyncio.sleep(0)
        if number == self._fails:
            raise OSError(number)
        await asyncio.sleep(0)
        self.done.append(number)


def test_everything_is_done_and_never_more_at_once_than_allowed() -> None:
    work = Work()
    asyncio.run(few_at_once(3, (work.piece(i) for i in range(10))))
    assert sorted(work.done) == list(range(10))
    assert work.most == 3


def test_after_a_failure_nothing_begins_and_what_runs_is_finished() -> None:
    work = Work(fails=1)
    with pytest.raises(OSError, match="1"):
        asyncio.run(few_at_once(3, (work.piece(i) for i in range(10))))
    assert work.begun == [0, 1, 2]
    assert work.done == [0, 2]


def test_nothing_to_do_is_done_at_once() -> None:
    asyncio.run(few_at_once(3, iter(())))
    work = Work()
    asyncio.run(few_at_once(3, (work.piece(i) for i in range(1))))
    assert work.done == [0]
