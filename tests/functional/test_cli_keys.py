"""``tollgate key`` against AWS alone: what it prints, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime

import pytest

from tests.aws_fixture import dynamodb
from tests.functional.shell import Shell
from tests.records import a_close
from tollgate.adapters.dynamodb_ledger import DynamoLedger
from tollgate.domain import api_keys
from tollgate.local import provision


@pytest.fixture
def acme(applied: Shell, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A terminal before a stack with a tenant, and with keys."""
    provision._client.cache_clear()
    monkeypatch.setenv("AWS_DEFAULT_REGION", environ["AWS_REGION"])
    table, pepper = f"keys-{time.time_ns()}", f"pepper-{time.time_ns()}"
    provision._table(provision._client("dynamodb"), table, {"key_id": "HASH"}, index=("by-tenant", "tenant"))
    provision._new_secret(pepper, json.dumps({"1": "p" * 64}))
    provision._client.cache_clear()
    monkeypatch.setenv("TOLLGATE_KEYS_TABLE", table)
    monkeypatch.setenv("TOLLGATE_KEY_PEPPER", pepper)
    applied.ok("tenant", "create", "acme", "--plan", "pro")
    return applied


def test_a_key_is_printed_once(acme: Shell) -> None:
    quiet = acme.ok("key", "create", "acme", "--quiet")
    key = quiet.out.removesuffix("\n")
    id = api_keys.parse(key)
    assert id is not None
    for words in (("list",), ("list", "--json"), ("show", id), ("show", key, "--json")):
        shown = acme.ok("key", *words).out
        assert id in shown
        assert key not in shown
        assert "hash" not in shown
    made = acme("key", "create", "acme", "--user", "ci", "--note", "nightly", "--expires", "90d", "--team", "red")
    assert (made.code, made.err) == (0, "Keep the key now: it is stored nowhere, and cannot be shown again.\n")
    assert made.out.startswith("key")
    row = acme.ok("key", "create", "acme", "--expires", "2099-01-01", "--json").json
    assert api_keys.parse(row["key"]) == row["id"]
    assert (row["expires"], row["state"], row["user"]) == ("2099-01-01T00:00:00Z", "active", f"key-{row['id']}")
    listed = acme.ok("key", "list", "--tenant", "acme", "--json").json["keys"]
    assert [one["note"] for one in listed if one["user"] == "ci"] == ["nightly"]
    assert len(listed) == 3


def test_what_it_may_do_is_checked_when_it_is_made(acme: Shell) -> None:
    options = ("--model", "small", "--route", "/v1/embeddings", "--limit", "{requests: 5, per: minute}")
    row = acme.ok("key", "create", "acme", *options, "--budget", "{usd: 5, per: month}", "--json").json
    assert row["restrictions"] == {
        "models": ["small"],
        "routes": ["/v1/embeddings"],
        "limits": [{"scope": "key", "requests": 5, "per": "minute"}],
        "budgets": [{"scope": "key", "usd": 5, "per": "month"}],
    }
    refusals = {
        (3, "there is no tenant 'nobody'"): ("nobody",),
        (3, "has no model 'smal' (did you mean small?)"): ("acme", "--model", "smal"),
        (5, "routes[0]: expected"): ("acme", "--route", "/v1/chat"),
        (5, "limits[0]"): ("acme", "--limit", "{requests: many, per: minute}"),
        (5, "the scope key, not user"): ("acme", "--limit", "{scope: user, requests: 1, per: minute}"),
        (5, "two entries of one kind"): ("acme", *(("--limit", "{requests: 1, per: day}") * 2)),
        (2, "is in the past"): ("acme", "--expires", "2020-01-01"),
        (2, "expected a UTC day or time"): ("acme", "--expires", "soon"),
        (2, "at most 256"): ("acme", "--note", "n" * 257),
    }
    for (code, message), words in refusals.items():
        assert message in acme.fails(code, "key", "create", *words)
    assert len(acme.ok("key", "list", "--json").json["keys"]) == 1


def test_rotate_and_revoke(acme: Shell) -> None:
    key = acme.ok("key", "create", "acme", "-q").out.strip()
    id = api_keys.parse(key) or ""
    rotated = acme.ok("key", "rotate", id, "--overlap", "7d", "--json").json
    assert (rotated["state"], api_keys.parse(rotated["key"])) == ("rotating", id)
    week = datetime.fromisoformat(rotated["old_secret_until"]).timestamp() - time.time()
    assert 6.9 * 86_400 < week < 7.1 * 86_400
    assert "Nobody can be asked here: add --yes" in acme.fails(2, "key", "rotate", id, "--finish")
    assert (
        acme.ok("key", "rotate", id, "--finish", "-y").out
        == f"{id}: only its newest secret works, within 60 s everywhere\n"
    )
    assert [row["state"] for row in acme.ok("key", "list", "--json").json["keys"]] == ["active"]
    assert "there is nothing to finish" in acme.fails(4, "key", "rotate", id, "--finish", "--yes")
    assert "Nobody can be asked here: add --yes" in acme.fails(2, "key", "revoke", id)
    assert acme.ok("key", "revoke", key, "--yes").out == f"{id} is revoked; it is refused everywhere within 60 s\n"
    assert acme.ok("key", "list", "--json").json["keys"] == []
    assert [row["state"] for row in acme.ok("key", "list", "--all", "--json").json["keys"]] == ["revoked"]
    assert "is revoked: make a new one" in acme.fails(4, "key", "rotate", id)
    assert "there is no API key" in acme.fails(3, "key", "show", "0" * 13)


def test_what_is_no_id_is_not_repeated(acme: Shell) -> None:
    """It may be most of a key."""
    said = acme.fails(2, "key", "revoke", "tg_0123456789abc_secret", "--yes")
    assert "a key's id" in said
    assert "secret" not in said


def test_when_it_was_last_used_is_known_from_the_ledger(acme: Shell, environ: dict[str, str]) -> None:
    id = acme.ok("key", "create", "acme", "--json").json["id"]
    assert acme.ok("key", "show", id, "--json").json["used"] is None
    now = time.time_ns() // 1000
    with asyncio.Runner() as runner, dynamodb(environ["AWS_ENDPOINT_URL"], runner) as client:
        ledger = DynamoLedger(client, environ["TOLLGATE_LEDGER_TABLE"])
        closes = [a_close(f"u{days}", ts_us=now - days * 86_400_000_000, tenant="acme", key=id) for days in (9, 0, 3)]
        runner.run(ledger.enter(closes))
    today = datetime.fromtimestamp(now / 1e6, UTC).date().isoformat()
    assert [row["used"] for row in acme.ok("key", "list", "--json").json["keys"]] == [today]
    assert today in acme.ok("key", "list").out


def test_a_stack_without_keys_says_so(applied: Shell) -> None:
    assert "TOLLGATE_KEYS_TABLE is not set" in applied.fails(6, "key", "list")


def test_a_pepper_is_renewed_beside_the_old_one(acme: Shell) -> None:
    id = acme.ok("key", "create", "acme", "--json").json["id"]
    assert acme.ok("key", "pepper", "list", "--json").json == {
        "peppers": [{"pepper": "1", "keys": [id], "newest": True, "missing": False}]
    }
    assert "make another first" in acme.fails(4, "key", "pepper", "retire", "1", "--yes")
    assert acme.ok("key", "pepper", "add", "--json").json == {"pepper": "2"}
    shown = acme.ok("key", "pepper", "list").out.splitlines()
    assert [line.split() for line in shown[1:]] == [["1", "1", "old"], ["2", "0", "for", "new", "secrets"]]
    assert f"needed by 1 keys ({id}): rotate or revoke" in acme.fails(4, "key", "pepper", "retire", "1", "--yes")
    # while the old secret works, its pepper is needed
    assert acme.ok("key", "rotate", id, "--overlap", "1h", "--json").json["pepper"] == "2"
    assert [one["keys"] for one in acme.ok("key", "pepper", "list", "--json").json["peppers"]] == [[id], [id]]
    acme.ok("key", "rotate", id, "--overlap", "0", "--json")
    assert "add --yes" in acme.fails(2, "key", "pepper", "retire", "1")
    assert acme.ok("key", "pepper", "retire", "1", "--yes").out == "pepper 1 is retired\n"
    assert [one["pepper"] for one in acme.ok("key", "pepper", "list", "--json").json["peppers"]] == ["2"]
    assert "there is no pepper '1'" in acme.fails(3, "key", "pepper", "retire", "1", "--yes")
