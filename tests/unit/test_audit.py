"""Entries of the audit log: made of images and lines that anybody may have written, and without their secrets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tollgate.domain.audit import Change, Refusals
from tollgate.domain.changes import BY_HAND, HIDDEN, MAX_SIDE, Image, change
from tollgate.domain.records import BadRecord

NOW = 1_795_262_400_000_000
ACME = {"tenant": "acme", "plan": "pro", "state": "active", "version": 5}


def seen(before: Image, after: Image) -> Change:
    found = change(id="e", ts_us=NOW, table="tenants", item="acme", before=before, after=after, remover="somebody")
    assert found is not None
    return found


def signed(by: str, at: str = "12:00") -> dict[str, str]:
    return {"updated_by": by, "updated_at": at}


def test_only_what_differs_is_told() -> None:
    entry = seen({**ACME, "limits": []}, {**ACME, "plan": "free", "version": 6, "budgets": [{"usd": 5}]})
    assert entry.action == "changed"
    assert json.loads(entry.before) == {"plan": "pro", "limits": []}
    assert json.loads(entry.after) == {"plan": "free", "budgets": [{"usd": 5}]}


@pytest.mark.parametrize(
    ("before", "after", "actor"),
    [
        ({}, signed("ann"), "ann"),
        (signed("ann"), signed("bob"), "bob"),
        (signed("ann"), signed("ann", "12:01"), "ann"),
        (signed("ann"), signed("ann"), BY_HAND),  # the signature is of an earlier change
        ({}, {}, BY_HAND),
        (signed("ann"), {}, BY_HAND),
        ({}, {"updated_by": 7, "updated_at": "12:00"}, BY_HAND),
        ({}, {"updated_by": "", "updated_at": "12:00"}, BY_HAND),
    ],
)
def test_a_change_is_by_whom_it_is_signed_by_now(before: Image, after: Image, actor: str) -> None:
    assert seen({**ACME, **before}, {**ACME, "plan": "free", **after}).actor == actor


def test_creation_and_removal() -> None:
    assert (seen({}, ACME).action, seen({}, ACME).before) == ("created", "{}")
    gone = seen({**ACME, **signed("ann")}, {})
    assert (gone.action, gone.actor, gone.after) == ("deleted", "somebody", "{}")


def test_new_stamps_alone_are_no_change() -> None:
    assert not change(
        id="e", ts_us=NOW, table="tenants", item="a", before=ACME, after={**ACME, "version": 9}, remover=""
    )


@pytest.mark.parametrize(
    "attributes",
    [
        {"digest": "c0ffee"},
        {"key_hash": b"c0ffee"},
        {"note": "the password is c0ffee"},
        {"secret": "sk-proj-c0ffeec0ffee"},
        {"base_url": "https://ann:c0ffee@models.example"},
        {"route": [{"upstream": "sk_live_c0ffeec0ffee"}]},
    ],
)
def test_secrets_are_in_neither_side(attributes: dict[str, Any]) -> None:
    entry = seen({**ACME, **attributes}, {})
    assert "c0ffee" not in entry.before + entry.after
    assert json.loads(entry.before).keys() == {"plan", "state", *attributes}  # that something was there is told


def test_a_hidden_value_that_changes_is_a_change() -> None:
    entry = seen({**ACME, "digest": "one"}, {**ACME, "digest": "two"})
    assert json.loads(entry.before) == json.loads(entry.after) == {"digest": HIDDEN}


def test_a_very_long_side_is_told_by_its_digest() -> None:
    entry = seen({}, {**ACME, "models": ["m" * 100] * 4000})
    assert len(entry.after) < 200 < MAX_SIDE
    assert json.loads(entry.after)["characters"] > MAX_SIDE


def test_whatever_an_item_holds_can_be_noted() -> None:
    assert "binary" in seen(ACME, {**ACME, "limits": {"a": {b"x"}, "b": None, "c": {"x", "y"}}}).after


REFUSED = Refusals("p.1", NOW, 429, "user.requests.minute", 17, "req_1", tenant="acme", user="ann")


def test_a_refusal_comes_back_from_its_line() -> None:
    assert Refusals.parse(json.loads(json.dumps(REFUSED.line()))) == REFUSED


@pytest.mark.parametrize(
    "wrong",
    [
        {"v": 2}, {"event": "usage.close"}, {"id": ""}, {"rule": ""}, {"rule": "x" * 257}, {"count": -1},
        {"user": "\ud800"}, {"count": True}, {"count": "7"}, {"ts_us": 2**53 + 1}, {"tenant": None}, {"status": 600},
    ],
)  # fmt: skip
def test_a_line_that_is_wrong_is_refused_by_its_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRecord, match=next(iter(wrong)).replace("event", "v")):
        Refusals.parse(REFUSED.line() | wrong)
