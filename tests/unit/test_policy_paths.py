"""Paths: what errors print is what commands read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.domain.policy import Policy
from tollgate.domain.policy_diff import changes
from tollgate.domain.policy_paths import nearest, parse, render
from tollgate.domain.schema import kind_at

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PATHS = st.lists(NAMES | st.integers(0, 99_999), min_size=1, max_size=6).map(tuple)


@given(PATHS)
def test_what_is_rendered_can_be_read(path: tuple[str | int, ...]) -> None:
    assert parse(render(path)) == path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("plans.free.limits[0].requests", ("plans", "free", "limits", 0, "requests")),
        ('models["gpt-4.1"].price', ("models", "gpt-4.1", "price")),
        ("limits[user.requests.minute].burst", ("limits", "user.requests.minute", "burst")),
        ("when_stores_fail", ("when_stores_fail",)),
    ],
)
def test_paths_as_people_write_them(text: str, path: tuple[str | int, ...]) -> None:
    assert parse(text) == path


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", "a[", "a[]", "a b", 'a["b', "a[[0]]", "[0]x"])
def test_what_is_no_path(text: str) -> None:
    with pytest.raises(ValueError, match="path"):
        parse(text)


def test_the_schema_says_what_may_stand_where() -> None:
    assert kind_at(Policy, ("plans", "anything", "limits", 7, "scope")) is not None
    assert kind_at(Policy, ("global", "limits", 0, "per")) is not None
    assert kind_at(Policy, ("plans", "x", "limts")) is None
    assert kind_at(Policy, ("plans", 0)) is None


def test_hints_name_what_was_meant_or_what_there_is() -> None:
    assert nearest("LIMTS", ("limits", "budgets")) == "did you mean limits?"
    assert nearest("x", ("limits", "budgets")) == "known here: limits, budgets"
    assert nearest("x", ()) == ""


PLAIN = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
def test_nothing_differs_from_itself(value: object) -> None:
    assert changes(value, value) == []


def test_differences_are_named_as_deep_as_they_are() -> None:
    before = {"a": {"b": [1, 2], "c": 3}, "gone": 1}
    after = {"a": {"b": [1, 5], "c": 3}, "new": [1]}
    assert [str(change) for change in changes(before, after)] == ["~ a.b[1]: 2 -> 5", "- gone: 1", "+ new: [1]"]
    assert [str(change) for change in changes({"a": [1]}, {"a": [1, 2]})] == ["~ a: [1] -> [1,2]"]
