"""What `policy apply` shows before it writes, and that it asks where somebody sits."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from tests.functional.shell import ROOT, Shell
from tests.unit.test_policy_file import BROKEN, with_line

Edited = Callable[..., str]


@pytest.fixture
def edited(tmp_path: Path) -> Edited:
    """`edited(old=new, ...)`: the repository's policy with lines replaced, as a file."""

    def write(*replaced: tuple[str, str]) -> str:
        text = (ROOT / "policy.yaml").read_text()
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "edited.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`attended("y")`: somebody sits at a terminal and answers so."""

    def sit(answer: str) -> None:
        for stream in (sys.stdin, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(click.termui, "visible_prompt_func", lambda _: answer)

    return sit


def test_a_difference_says_what_changes_for_which_plan_and_tenant(applied: Shell, edited: Edited) -> None:
    for name in ("acme", "globex"):
        applied.ok("tenant", "create", name, "--plan", "free")
    file = edited(
        ("requests: 10, per: minute, burst: 10", "requests: 12, per: minute"),
        ("- {scope: tenant, concurrent: 5}", "- {scope: team, concurrent: 3}\n      - {scope: tenant, concurrent: 5}"),
        ("    when_stores_fail: closed ", "    # "),
        ("# tenants:", "tenants:\n  acme: {plan: pro}\n#"),
    )
    said = applied.ok("policy", "diff", file).out
    assert said == (
        "plan enterprise (0 tenants on it)\n"
        "  - when_stores_fail: closed\n"
        "plan free (2 tenants on it)\n"
        "  ~ limits[user.requests.minute].requests: 10 -> 12\n"
        "  - limits[user.requests.minute].burst: 10\n"
        "  + limits[team.slots]: {scope: team, concurrent: 3}\n"
        "tenant acme\n"
        "  ~ plan: free -> pro\n"
    )
    found = applied.ok("policy", "apply", "--dry-run", file, "--json").json
    assert found["tenants_on_plans"] == {"enterprise": 0, "free": 2}
    assert {"path": "tenants.acme.plan", "before": "free", "after": "pro"} in found["changes"]
    assert applied.ok("policy", "diff", file).out == said  # nothing was written


def test_what_the_difference_names_can_be_set(applied: Shell) -> None:
    applied.ok("plan", "set", "free", "limits[user.requests.minute].requests=12")
    (line,) = re.findall("~ (.*): 10 -> 12", applied.ok("plan", "set", "free", "limits[0].requests=10").out.replace(
        "12 -> 10", "10 -> 12"))  # fmt: skip
    applied.ok("plan", "set", "free", f"{line}=12")


def test_whoever_sits_at_a_terminal_is_asked(applied: Shell, edited: Edited, attended: Callable[[str], None]) -> None:
    file = edited(("requests: 10, per: minute, burst: 10", "requests: 12, per: minute"))
    attended("n")
    done = applied("policy", "apply", file)
    assert done.code == 1
    assert "~ limits[user.requests.minute].requests: 10 -> 12" in done.out
    assert done.err == "tollgate: nothing was changed\n"
    attended("y")
    assert re.search(r"10 -> 12(?s:.*)\nrevision [0-9]+\n$", applied.ok("policy", "apply", file).out)
    assert applied.ok("policy", "apply", file).out == "no difference\n"


def test_yes_and_scripts_are_not_asked(applied: Shell, edited: Edited, attended: Callable[[str], None]) -> None:
    first = edited(("requests: 10, per: minute, burst: 10", "requests: 12, per: minute"))
    assert "revision" in applied.ok("policy", "apply", first).out
    attended("n")
    assert "revision" in applied.ok("policy", "apply", "--yes").out


def test_what_was_agreed_to_is_what_is_applied(
    applied: Shell, edited: Edited, monkeypatch: pytest.MonkeyPatch, attended: Callable[[str], None]
) -> None:
    """Somebody else changes a plan while the question waits."""
    file = edited(("requests: 10, per: minute, burst: 10", "requests: 12, per: minute"))
    attended("y")

    def answer(_: str) -> str:
        from tollgate.cli.connect import with_tables
        from tollgate.cli.edits import editor

        with_tables(lambda tables: tables.edit_plan("pro", editor(["limits[0].requests=7"], ()), "somebody"))
        return "y"

    monkeypatch.setattr(click.termui, "visible_prompt_func", answer)
    done = applied("policy", "apply", file)
    assert done.code == 4
    assert "have changed since you looked" in done.err
    assert applied.ok("plan", "show", "free", "--json").json["limits"][0]["requests"] == 10


MORE_BROKEN = [
    ("requests: 10, per: minute, burst: 10", broken)
    for broken in (
        "requests: -1, per: minute", "requests: 10, per: minutes", "requests: 10, per: 60",
        "requests: [10], per: minute",
        "requests: {a: 1}, per: minute", "requests: ~, per: minute", "requests: 1e3, per: minute",
        "tokens: ten, per: day",
        "concurrent: -5", "concurrent: 5, burst: 6", "burst: 10, per: minute", "requests: 10, per: minute, Burst: 10",
        "requests: 10, per: minute, burst: 0", "requests: 10, per: minute, scope: team", "requests: 10, requests: 11",
    )
] + [
    ("usd: 25, per: month", broken)
    for broken in (
        "usd: 25, per: Month", "usd: -25, per: month", "usd: $25, per: month", "usd: 25, tokens: 5, per: month",
        "usd: 25, per: month, models: small", "usd: 25, per: month, models: [smal]", "usd: .inf, per: month",
        "usd: 1000001, per: month", "usd: 0.0000001, per: month",
    )
] + [
    ("version: 1", broken) for broken in ("version: 3", "version: one", "versions: 1", "version: 1.5", "version: [1]")
] + [
    ("api: openai", broken)
    for broken in ("api: OpenAI", "api: http", "api: [openai]", "apis: openai", "api: openai\n    x: 1")
] + [
    ("route: [{upstream: openai, model: gpt-4o-mini}]", broken)
    for broken in (
        "route: openai", "route: [openai]", "route: [{upstream: azure, model: x}]", "route: [{model: x}]",
        "route: [{upstream: openai}]", "route: [{upstream: openai, model: x, weight: 5}]", "routes: []",
    )
]  # fmt: skip


def test_no_broken_file_is_applied_in_part(applied: Shell, tmp_path: Path) -> None:
    """A hundred and more files with one mistake each: exit code 5, a path and a line for each, and nothing written."""
    variants = [with_line(number, line) for number, line, *_ in BROKEN]
    variants += [(ROOT / "policy.yaml").read_text().replace(old, new, 1) for old, new in MORE_BROKEN]
    assert len(variants) >= 100
    before = applied.ok("policy", "show").out
    file = tmp_path / "broken.yaml"
    for text in variants:
        file.write_text(text)
        done = applied("policy", "apply", str(file))
        assert (done.code, done.out) == (5, ""), (text, done)
        for line in done.err.splitlines():
            assert re.match(rf"{re.escape(str(file))}:[1-9][0-9]*: ", line), line
    assert applied.ok("policy", "show").out == before
