"""`tollgate usage` against AWS alone (moto's server): reports for programs, people and spreadsheets, and bills."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import sys
import uuid
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.aws_fixture import dynamodb
from tests.functional.shell import Shell
from tollgate.adapters.dynamodb_ledger import DynamoLedger
from tollgate.cli.output import table
from tollgate.domain.bookkeeping import Row
from tollgate.domain.records import UsageClose
from tollgate.domain.reports import PARTS, UsageRow, grouped


def close(tenant: str, user: str, model: str, day: int, tokens: int, **more: Any) -> UsageClose:
    record = {
        "event": "usage.close", "v": 1, "id": uuid.uuid4().hex, "ts_us": (1_795_219_200 + 86_400 * day) * 1_000_000,
        "tenant": tenant, "user": user, "team": "", "key": "", "plan": "pro", "model": model, "upstream": "openai",
        "upstream_model": model, "route": "chat", "outcome": "ok", "status": 200, "input_tokens": tokens,
        "cached_input_tokens": 0, "cache_write_tokens": 0, "output_tokens": tokens // 2, "reasoning_tokens": 0,
        "estimated": False, "cost_microusd": tokens * 3, "latency_ms": 5, "first_byte_ms": 2, "settle": [],
        **more,
    }  # fmt: skip
    return UsageClose.parse(record)


@pytest.fixture
def used(environ: dict[str, str], endpoint: str, shell: Shell) -> Shell:
    entries = [
        close("acme", "ann", "small", 0, 10),
        close("acme", "ann", "small", 0, 20),
        close("acme", "bob", "large", 1, 1_000_000, team="red", use_case="search", cached_input_tokens=5),
        close("globex", "=cmd", "small", 1, 7),
    ]
    with asyncio.Runner() as runner, dynamodb(endpoint, runner) as client:
        runner.run(DynamoLedger(client, environ["TOLLGATE_LEDGER_TABLE"]).enter(entries))
    return shell


def test_usage_rows_have_exactly_their_keys(used: Shell) -> None:
    rows = used.ok("usage", "--json").json["rows"]
    assert len(rows) == 3
    assert rows[0] == {
        "tenant": "acme", "user": "ann", "model": "small", "provider": "openai", "day": "2026-11-21", "requests": 2,
        "input_tokens": 30, "output_tokens": 15, "total_tokens": 45, "cost_microusd": 90,
    }  # fmt: skip


def test_usage_is_narrowed_and_added_up(used: Shell) -> None:
    def rows(*words: str) -> list[dict[str, Any]]:
        return list(used.ok("usage", "--json", *words).json["rows"])

    assert {row["tenant"] for row in rows("--tenant", "globex")} == {"globex"}
    assert [row["user"] for row in rows("--tenant", "acme", "--user", "bob")] == ["bob"]
    assert {row["day"] for row in rows("--since", "2026-11-22")} == {"2026-11-22"}
    assert {row["day"] for row in rows("--until", "2026-11-21")} == {"2026-11-21"}
    assert rows("--since", "2026-12-01") == []
    by = rows("--by", "model,day")
    assert [(row["model"], row["day"], row["requests"]) for row in by] == [
        ("large", "2026-11-22", 1), ("small", "2026-11-21", 2), ("small", "2026-11-22", 1),
    ]  # fmt: skip
    assert set(by[0]) == {
        "model", "day", "requests", "input_tokens", "output_tokens", "total_tokens", "cost_microusd",
    }  # fmt: skip
    told = used.fails(2, "usage", "--by", "colour")
    assert "expected some of tenant, team, user, key, use_case, model, provider, day, found 'colour'" in told
    assert [(row["team"], row["use_case"], row["requests"]) for row in rows("--by", "team,use-case")] == [
        ("", "", 3), ("red", "search", 1),
    ]  # fmt: skip
    assert [row["user"] for row in rows("--team", "red", "--use-case", "search", "--month", "2026-11")] == ["bob"]
    assert rows("--month", "2026-10") == []
    (kinds,) = rows("--by", "team", "--team", "red", "--kinds")
    assert {name: kinds[name] for name in PARTS} == dict.fromkeys(PARTS, 0) | {"cached_input_tokens": 5}
    assert "expected a month such as" in used.fails(2, "usage", "--month", "2026-13")
    assert "a time of its own" in used.fails(2, "usage", "--month", "2026-11", "--since", "7d")
    assert "is before --since" in used.fails(2, "usage", "--since", "2026-11-22", "--until", "2026-11-21")
    assert "expected a day such as" in used.fails(2, "usage", "--since", "yesterday-ish")


def test_a_bill_is_a_file_with_a_manifest(
    used: Shell, environ: dict[str, str], endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tollgate.cli.usage._today", lambda: date(2026, 12, 5))
    words = ("usage", "export", "--tenant", "acme", "--month", "2026-11", "--verify")
    assert "equal to the sum of 3 entries" in used(*words).out
    file = tmp_path / "bill-acme-2026-11.jsonl"
    bill, manifest = file.read_bytes(), file.with_name(f"{file.name}.manifest.json")
    told = json.loads(manifest.read_text())
    assert (told["sha256"], told["bytes"]) == (hashlib.sha256(bill).hexdigest(), len(bill))
    assert told["totals"]["cost_microusd"] == sum(json.loads(line)["cost_microusd"] for line in bill.splitlines())
    entries = used(*words, "--entries", "--csv", "--output", "acme.csv", "--json")
    assert entries.json["manifest"]["lines"] == 3
    with (tmp_path / "acme.csv").open() as lines:
        assert sum(int(line["cost_microusd"]) for line in csv.DictReader(lines)) == told["totals"]["cost_microusd"]

    # somebody has changed a row by hand
    with asyncio.Runner() as runner, dynamodb(endpoint, runner) as client:
        table = environ["TOLLGATE_LEDGER_TABLE"]
        query = {"KeyConditionExpression": "pk = :t", "ExpressionAttributeValues": {":t": {"S": "t#acme"}}}
        item = runner.run(client.call("Query", {"TableName": table, **query}))["Items"][0]
        item["cost_microusd"] = {"N": "1"}
        runner.run(client.call("PutItem", {"TableName": table, "Item": item}))
    manifest.unlink()
    file.unlink()
    lied = used(*words)
    assert lied.code == 1
    assert "cost_microusd is 1 in the report, 90 by the entries" in lied.err
    assert [path.name for path in tmp_path.iterdir() if "jsonl" in path.name] == []
    assert "kept for 100 days" in used.fails(3, "usage", "export", "--tenant", "acme", "--month", "2026-01", "--verify")


def test_usage_for_people_and_for_spreadsheets(used: Shell) -> None:
    lines = used.ok("usage", "--by", "tenant").out.splitlines()
    assert [line.split() for line in lines] == [
        ["tenant", "calls", "input", "output", "total", "cost"],
        ["acme", "3", "1,000,030", "500,015", "1,500,045", "$3.000090"],
        ["globex", "1", "7", "3", "10", "$0.000021"],
        ["total", "4", "1,000,037", "500,018", "1,500,055", "$3.000111"],
    ]
    heads = {words: used.ok("usage", *words).out.splitlines()[0].split()[:-5] for words in [(), ("--tenant", "acme")]}
    assert list(heads.values()) == [["tenant", "model", "provider"], ["tenant", "model", "provider", "day"]]
    assert [line.split()[:4] for line in used.ok("usage", "--month", "2026-11").out.splitlines()[1:]] == [
        ["acme", "large", "openai", "1"], ["acme", "small", "openai", "2"], ["globex", "small", "openai", "1"],
        ["total", "4", "1,000,037", "500,018"],
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(used.ok("usage", "--csv").out)))
    assert rows[0]["cost_microusd"] == "90"
    assert rows[2]["user"] == "'=cmd"  # a spreadsheet would run it
    assert used.ok("usage", "--since", "2026-12-01").out == "nothing was used\n"


def test_a_report_that_takes_long_says_how_far_it_is(used: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("usage", "--by", "user,day", "--json")
    quiet = used.ok(*words).json
    monkeypatch.setattr("tollgate.cli.output.QUIET_S", 0)
    assert used.ok(*words).json == quiet, "nobody watches"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = used(*words)
    assert (shown.code, shown.json) == (0, quiet)
    assert "rows read  3" in shown.err
    assert shown.err.endswith("\r\x1b[K"), "and takes it back"
    monkeypatch.setattr("tollgate.cli.output.QUIET_S", 60)
    assert "rows read" not in used(*words).err


def test_groups_partition_what_they_count() -> None:
    rows = [UsageRow(Row(t, "2026-11-21", "u", "m", "p"), {"requests": 1, "cost_microusd": 7}) for t in "abab"]
    assert [row["requests"] for row in grouped(rows, ["tenant"])] == [2, 2]
    assert sum(row["cost_microusd"] for row in grouped(rows, [])) == 28


def test_tables_fit_their_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["a" * 80, "b" * 10, 5], ["c", "d", 1_000]]
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, table(("name", "other", "count"), rows).splitlines())) > 80  # a pipe gets everything
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    lines = table(("name", "other", "count"), rows).splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[1].endswith("     5")
    assert "…" in lines[1]
    days = table(("name", "day", "at"), [["a" * 80, "2026-11-21", "2026-11-21T10:00:00Z"], ["b", "-", "-"]])
    assert days.splitlines()[1].endswith("…  2026-11-21  2026-11-21T10:00:00Z")
    names = table(("id", "note"), [["i" * 30, "n" * 30]], whole=("id",)).splitlines()[1]
    assert names.startswith("i" * 30 + "  n")  # the note makes room for the id
    assert len(names) == 60
    monkeypatch.setenv("COLUMNS", "30")
    assert len(table(("id", "note"), [["i" * 30, "n" * 30]], whole=("id",)).splitlines()[1]) <= 30
