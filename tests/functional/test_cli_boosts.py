"""Boosts: more of a limit until a moment, from the command to the tenant's record."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.functional.shell import Shell
from tollgate.domain.policy import TenantRecord
from tollgate.domain.policy_check import check_record
from tollgate.domain.policy_document import Document
from tollgate.domain.terms import overridden

FAR = "2099-01-01T00:00:00Z"


@pytest.fixture
def acme(applied: Shell) -> Shell:
    applied.ok("tenant", "create", "acme", "--plan", "free")
    return applied


def record(shell: Shell) -> Any:
    return shell.ok("tenant", "show", "acme", "--json").json


def test_a_boost_is_an_override_with_an_end(acme: Shell) -> None:
    done = acme.ok("boost", "acme", "requests=100 per=minute", "--until", "2099-01-01", "--json").json
    row = {"tenant": "acme", "user": None, "limit": "user.requests.minute", "requests": 100, "until": FAR}
    assert done == {"boosts": [{**row, "in_force": True}]}
    assert record(acme)["limits"] == [{"scope": "user", "requests": 100, "per": "minute", "until": FAR}]
    assert acme.ok("boost", "list", "--json").json == done

    longer = acme.ok("boost", "add", "acme", "requests=200", "per=minute", "--for", "2h", "--json").json["boosts"]
    assert [row["requests"] for row in longer] == [200]
    end = datetime.fromisoformat(longer[0]["until"])
    assert timedelta(hours=1.9) < end - datetime.now(UTC) < timedelta(hours=2.1)
    assert len(record(acme)["limits"]) == 1  # in place of the first


def test_a_boost_of_one_user(acme: Shell) -> None:
    acme.ok("boost", "acme", "--user", "ann", "requests=1000 per=day", "--until", FAR)
    assert record(acme)["budgets"] == [{"scope": "user", "requests": 1000, "per": "day", "user": "ann", "until": FAR}]
    assert acme.ok("boost", "list").out.splitlines()[1].split() == ["acme", "ann", "user.requests.day", "1000", FAR]


def test_a_boost_finds_the_models_of_the_budget_that_it_is_of(acme: Shell) -> None:
    """A budget of all models beside that of one would boost nothing."""
    acme.ok("boost", "acme", "tokens=5000 per=day", "--until", FAR)
    (budget,) = record(acme)["budgets"]
    assert (budget["models"], budget["tokens"]) == (["small"], 5000)
    acme.ok("boost", "acme", "usd=99.50", "per=month", "--until", FAR)
    acme.ok("boost", "acme", "concurrent=50", "--until", FAR)
    names = {row["limit"] for row in acme.ok("boost", "list", "--tenant", "acme", "--json").json["boosts"]}
    assert names == {"user.tokens.day.small", "tenant.microusd.month", "tenant.slots"}


def test_what_a_tenant_has_for_good_counts_and_stays(acme: Shell) -> None:
    acme.ok("tenant", "set", "acme", "limits+={scope: user, requests: 50, per: minute}")
    assert "acme has requests=50 already" in acme.fails(2, "boost", "acme", "requests=20 per=minute", "--for", "2h")
    acme.ok("boost", "acme", "requests=60 per=minute", "--for", "2h")
    acme.ok("boost", "end", "acme")
    assert [limit["requests"] for limit in record(acme)["limits"]] == [50]


def test_boosts_end(acme: Shell) -> None:
    acme.ok("boost", "acme", "requests=100 per=minute", "--until", FAR)
    acme.ok("boost", "acme", "--user", "ann", "requests=300 per=minute", "--until", FAR)
    assert "which one? acme has user.requests.minute, user.requests.minute@ann" in acme.fails(2, "boost", "end", "acme")
    assert "acme has no such boost" in acme.fails(3, "boost", "end", "acme", "user.tokens.minute")
    ended = acme.ok("boost", "end", "acme", "user.requests.minute", "--user", "ann", "--json").json["ended"]
    assert [entry["user"] for entry in ended] == ["ann"]
    assert acme.ok("boost", "end", "acme").out.startswith("ended: {scope: user, requests: 100")
    assert acme.fails(3, "boost", "end", "acme") == "tollgate: acme has no boosts: see `tollgate boost list`"
    assert acme.ok("boost", "list").out == "no boosts\n"


def test_a_boost_stays_in_force_when_something_is_set_for_good(acme: Shell) -> None:
    acme.ok("boost", "acme", "requests=100 per=minute", "--until", FAR)
    acme.ok("tenant", "set", "acme", "limits+={scope: user, requests: 20, per: minute}")
    (row,) = acme.ok("boost", "list", "--json").json["boosts"]
    assert (row["requests"], row["in_force"]) == (100, True)
    told = check_record(TenantRecord, Document(record(acme)))
    assert [limit.amount for limit in overridden((), told.limits)] == [100]


def test_those_that_have_ended_are_told_apart_and_go(acme: Shell) -> None:
    acme.ok("tenant", "set", "acme", "limits+={scope: user, requests: 50, per: minute, until: 2020-01-01}")
    assert acme.ok("boost", "list", "--json").json == {"boosts": []}
    (ended,) = acme.ok("boost", "list", "--ended", "--json").json["boosts"]
    assert (ended["requests"], ended["in_force"]) == (50, False)
    acme.ok("boost", "acme", "tokens=90000 per=minute", "--until", FAR)
    assert [limit.get("tokens") for limit in record(acme)["limits"]] == [90000]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["acme", "requests=100 per=minute"], 2, "a boost ends: give --until or --for"),
        (["acme", "requests=100 per=minute", "--for", "2h", "--until", FAR], 2, "a boost ends"),
        (["acme", "requests=100 per=minute", "--for", "2x"], 2, "expected a span of time such as 30m"),
        (["acme", "requests=100 per=minute", "--until", "2020-01-01"], 2, "--until is past"),
        (["acme", "requests=100 per=minute", "--until", "soon"], 2, "expected a UTC day or time"),
        (["acme", "requests=100", "--for", "2h"], 2, "per what?"),
        (["acme", "per=minute", "--for", "2h"], 2, "exactly one of requests, tokens, concurrent, usd"),
        (["acme", "requests=1 tokens=1 per=minute", "--for", "2h"], 2, "exactly one of"),
        (["acme", "request=1 per=minute", "--for", "2h"], 2, "'request=1' is no part of a limit"),
        (["acme", "requests=many per=minute", "--for", "2h"], 2, "requests is a number: 'many'"),
        (
            ["acme", "requests=9 per=hour", "--for", "2h"],
            3,
            "acme is on plan free; of requests it has user.req",
        ),
        (["acme", "requests=5 per=minute", "--for", "2h"], 2, "that is no boost: acme has requests=10 already"),
        (["acme", "--user", "a", "scope=tenant usd=99 per=month", "--for", "2h"], 2, "for one user has scope=user"),
        (["nobody", "requests=9 per=minute", "--for", "2h"], 3, "there is no tenant 'nobody'"),
        (["end", "nobody"], 3, "there is no tenant 'nobody'"),
        (["end", "acme", "--all", "--user", "ann"], 2, "--all ends all of them"),
    ],
)
def test_what_is_no_boost(acme: Shell, words: list[str], code: int, said: str) -> None:
    assert said in acme.fails(code, "boost", *words)
    assert record(acme)["limits"] == []


def test_one_of_several_is_named_by_its_scope(applied: Shell) -> None:
    applied.ok("tenant", "create", "acme", "--plan", "pro")
    line = applied.fails(2, "boost", "acme", "requests=9999 per=minute", "--for", "2h")
    assert "which one? acme has user.requests.minute, tenant.requests.minute: add scope= or models=" in line
    applied.ok("boost", "acme", "scope=tenant requests=9999 per=minute", "--for", "2h")
    assert record(applied)["limits"][0]["scope"] == "tenant"
