"""A crowd goes in single file, and holds up nobody else."""

from __future__ import annotations

import asyncio

import pytest

from tollgate.adapters import dynamodb_limit_lanes
from tollgate.adapters.dynamodb_limit_lanes import ABREAST, Lanes
from tollgate.ports import Overloaded


def test_few_at_once_in_the_order_in_which_they_came() -> None:
    async def crowd() -> tuple[list[int], int, int]:
        lanes, begun, here, most = Lanes(), list[int](), 0, 0

        async def one(number: int) -> None:
            nonlocal here, most
            async with lanes.turn("hot"):
                begun.append(number)
                here += 1
                most = max(most, here)
                await asyncio.sleep(0)
                here -= 1

        await asyncio.gather(*(one(i) for i in range(50)))
        return begun, most, len(lanes)

    assert asyncio.run(crowd()) == (list(range(50)), ABREAST, 0)


def test_who_waits_too_long_is_turned_away_and_others_do_not_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamodb_limit_lanes, "PATIENCE_S", 0.01)

    async def stuck() -> int:
        lanes, over = Lanes(), asyncio.Event()

        async def never_ends() -> None:
            async with lanes.turn("hot"):
                await over.wait()

        writing = [asyncio.create_task(never_ends()) for _ in range(ABREAST)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            async with lanes.turn("hot"):
                raise AssertionError("it is nobody's turn")
        async with lanes.turn("other"):
            pass
        patient = asyncio.create_task(enter(lanes))
        await asyncio.sleep(0.05)
        assert not patient.done()
        over.set()
        await asyncio.gather(patient, *writing)
        return len(lanes)

    async def enter(lanes: Lanes) -> None:
        async with lanes.turn("hot", patient=True):
            pass

    assert asyncio.run(stuck()) == 0


def test_who_gives_up_leaves_no_trace() -> None:
    async def cancelled() -> int:
        lanes = Lanes()

        async def use() -> None:
            async with lanes.turn("hot"):
                await asyncio.sleep(60)

        users = [asyncio.create_task(use()) for _ in range(2 * ABREAST)]
        await asyncio.sleep(0)
        for user in users:
            user.cancel()
        await asyncio.gather(*users, return_exceptions=True)
        return len(lanes)

    assert asyncio.run(cancelled()) == 0
