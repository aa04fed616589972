"""`tollgate audit` for people: what an operator looks for comes first, and everything fits the terminal."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tollgate.cli.audit import MOST_LINES, _lines
from tollgate.domain.audit import Change, Refusals
from tollgate.domain.changes import HIDDEN

NOW = 1_795_262_400_000_000  # 2026-11-21 12:00:00 UTC, in microseconds
ANN = "arn:aws:sts::123456789012:assumed-role/Operators/ann"
LIMIT = {"scope": "user", "requests": 5, "per": "minute"}
LONG = {f"attribute_{i}": "words " * 30 for i in range(40)}


def edit(before: Any, after: Any, table: Any = "tenants", item: str = "acme") -> Change:
    action: Any = "created" if not before else "changed" if after else "deleted"
    return Change("e", NOW, ANN, table, item, action, json.dumps(before), json.dumps(after))


REFUSED = Refusals("r", NOW, 429, "user.requests.minute", 17, "req_1", tenant="acme", user="bob")
ENTRIES = [
    edit({"state": "active"}, {"state": "suspended"}),
    edit({"limits": [LIMIT]}, {"limits": [{**LIMIT, "requests": 6}]}),
    edit({}, LONG, "policy", "plan#free"),
    edit(LONG, {}),
    REFUSED,
]


@pytest.fixture(params=[80, 120])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def test_every_entry_fits_the_terminal(columns: int) -> None:
    for entry in ENTRIES:
        lines = _lines(entry).splitlines()
        assert [line for line in lines if len(line) > columns] == []
        assert len(lines) <= 1 + MOST_LINES
        assert lines[0].startswith("2026-11-21T12:00:00Z  ")


def test_what_fits_is_one_line_and_says_all(columns: int) -> None:
    assert _lines(REFUSED) == "2026-11-21T12:00:00Z  acme/bob  refused 17x: 429 user.requests.minute"
    found = " ".join(_lines(ENTRIES[1]).split())
    assert found.startswith("2026-11-21T12:00:00Z assumed-role/Operators/ann changed tenant acme")
    assert found.endswith("limits[user.requests.minute].requests: 5 -> 6"), "not two whole lists"
    assert _lines(ENTRIES[2]).endswith("... (whole: --json)")


def test_what_is_no_terminal_gets_everything_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = _lines(ENTRIES[2])
    assert "\n" not in line
    assert ANN in line
    assert all(f"{name}: {value}" in line for name, value in LONG.items())


def test_lists_are_told_by_what_came_and_went(columns: int) -> None:
    many = [{"user": f"u{i}"} for i in range(900)]
    found = _lines(edit({"disabled_users": many}, {"disabled_users": [*many[1:], {"user": "ann"}]})).splitlines()
    assert [line.strip() for line in found[1:]] == [
        "- disabled_users[u0]: {user: u0}", "+ disabled_users[ann]: {user: ann}",
    ]  # fmt: skip


def test_what_nobody_may_see_takes_no_room(columns: int) -> None:
    made = _lines(edit({}, {"tenant": "acme", "note": HIDDEN, "secrets": HIDDEN}, "keys", "3kTz9QvB1xYpA"))
    assert "created key 3kTz9QvB1xYpA" in made
    assert made.endswith("(not shown: note, secrets)")
    assert "note: " not in made


def test_names_do_not_steer_the_terminal(columns: int) -> None:
    entry = edit({}, {"plan\x1b[2J": "a\x1b[31mb"}, item="acme\r\x1b]0;x")
    assert "\x1b" not in _lines(entry)
    assert "\x1b" not in _lines(Refusals("r", NOW, 401, "x", 1, "s", network="\x1b[2J"))
