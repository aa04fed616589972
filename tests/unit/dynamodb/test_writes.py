"""How many writes an admission on DynamoDB needs, and what a container learns from wrong guesses."""

from __future__ import annotations

import asyncio

import pytest

from bench.dynamodb_writes import crowd, measure
from bench.simulator.virtual_time import run
from tollgate.adapters.dynamodb_limit_guesses import Guess
from tollgate.adapters.dynamodb_limit_items import Item

NOW = 1_000_000


@pytest.mark.parametrize(("containers", "most"), [(1, 1.1), (300, 1.8)])
@pytest.mark.parametrize("load", [0.2, 0.5, 0.86, 0.95])
def test_writes_per_subject(containers: int, most: float, load: float) -> None:
    """Of containers that have met the item. (`bench/README.md` has the whole table, first meetings included.)"""
    measured = asyncio.run(measure(load, 5, containers, count=300))
    assert measured.known <= most


def test_long_holds_do_not_make_guesses_worse() -> None:
    """Very many containers find an item that has been crowded for minutes."""
    assert asyncio.run(measure(0.86, 60, 300, count=300)).all <= 1.8


def test_many_at_once_are_few_writes() -> None:
    """In virtual time, whatever order the answers come in."""
    told = run(crowd(400), seed=1)
    assert (told.admitted, told.refused) == (200, 200)
    assert told.writes <= 3
    assert told.settling <= 30


class TestGuess:
    def test_what_is_seen_to_be_busy_is_busy_until_then(self) -> None:
        guess = Guess().after(Item({"r": NOW + 5}), NOW)
        assert guess.busy("r", NOW)
        assert not guess.busy("r", NOW + 5)
        assert not guess.busy("other", NOW)

    def test_one_surprise_changes_what_is_undecided_and_two_what_was_sure(self) -> None:
        busy, guess = Item({"r": NOW + 5}), Guess()
        for _ in range(3):
            guess.learn(["r"], None, NOW)  # idle, as guessed
        guess.learn(["r"], busy, NOW)
        assert not guess.busy("r", NOW)
        guess.learn(["r"], busy, NOW)
        assert guess.busy("r", NOW)
        for _ in range(3):
            guess.learn(["r"], None, NOW)
        guess.learn(["r"], Item({"r": NOW}), NOW)
        assert guess.busy("r", NOW)

    def test_what_could_be_told_beforehand_teaches_nothing(self) -> None:
        guess = Guess().after(Item({"r": NOW + 5}), NOW)
        guess.learn(["r"], Item({"r": NOW - 5}), NOW)  # given back meanwhile
        assert guess.trends == {}

    def test_what_is_learned_stays_when_the_item_is_seen_again(self) -> None:
        guess = Guess()
        guess.learn(["r"], Item({"r": NOW + 5}), NOW)
        assert guess.after(Item({"r": NOW}), NOW).busy("r", NOW)

    @pytest.mark.parametrize(("numbers", "crowded"), [({}, False), ({"k": 16}, True), ({"q": NOW + 1}, True)])
    def test_a_crowd_is_remembered_as_it_was_seen(self, numbers: dict[str, int], crowded: bool) -> None:
        guess = Guess().after(Item(numbers), NOW)
        assert guess.crowded is crowded
        assert Guess().crowded is None
