"""The `tollgate` command against AWS alone (moto's server): output, errors, exit codes; no gateway runs here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.functional.shell import Shell
from tollgate import cli

# -- the command itself ----------------------------------------------------------------------------------------------


def all_commands() -> list[list[str]]:
    found: list[list[str]] = []

    def walk(command: Any, words: list[str]) -> None:
        found.append(words)
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, [*words, name])

    walk(cli.tollgate, [])
    return found


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_every_command_explains_itself_and_has_json(words: list[str], shell: Shell) -> None:
    help_text = shell.ok(*words, "--help").out
    assert len(help_text.splitlines()) > 5
    if "Commands:" not in help_text:
        assert "--json" in help_text


def test_help_imports_nothing_heavy() -> None:
    heavy = "boto3 botocore pydantic yaml asyncio httptools uvloop moto jwt orjson"
    code = f"import sys, tollgate.cli; print([m for m in {heavy.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_runs_as_a_module_and_completes_words() -> None:
    env = {**os.environ, "_TOLLGATE_COMPLETE": "bash_complete", "COMP_WORDS": "tollgate ten", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-m", "tollgate.cli"], capture_output=True, text=True, env=env, check=False)
    assert done.stdout.strip() == "plain,tenant"


def test_wrong_usage_is_one_line(shell: Shell) -> None:
    assert shell.fails(2, "tenant", "create") == (
        "tollgate: Missing argument 'NAME'. (tollgate tenant create --help shows how)"
    )
    assert "No such command 'tennant'" in shell.fails(2, "tennant")
    assert "No such option" in shell.fails(2, "status", "--jsn")


def test_nothing_to_talk_to(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TOLLGATE_POLICY_TABLE")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert "no local stack is running and TOLLGATE_POLICY_TABLE is not set" in shell.fails(6, "tenant", "list")
    monkeypatch.setenv("TOLLGATE_URL", "http://127.0.0.1:9")
    assert "no local stack runs at http://127.0.0.1:9" in shell.fails(6, "plan", "list")


def test_aws_that_does_not_answer(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "DynamoDB cannot be reached" in shell.fails(6, "tenant", "list")
    monkeypatch.undo()


def test_a_table_that_is_not_there(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_POLICY_TABLE", "nowhere")
    assert "there is no table 'nowhere': deploy the stack first" in shell.fails(6, "policy", "show")


# -- policy ----------------------------------------------------------------------------------------------------------


def test_policy_check(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell.ok("policy", "check").out == "policy.yaml is right: 1 upstream, 3 models, 3 plans, 0 tenants\n"
    assert shell.ok("policy", "check", "--json").json["ok"] is True
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("version: 1\nplans:\n  free:\n    models: [smal]\n    limits: [{scope: user, requests: ten}]\n")
    done = shell("policy", "check", str(wrong))
    assert done.code == 5
    assert done.err.splitlines() == [
        f"{wrong}:5: plans.free.limits[0].requests: expected a whole number of at least 1, found 'ten'",
    ]
    done = shell("policy", "check", str(wrong), "--json")
    assert (done.code, done.json["ok"]) == (5, False)
    assert done.json["problems"][0]["path"] == "plans.free.limits[0].requests"
    assert "cannot be read: No such file" in shell.fails(5, "policy", "check", "nowhere.yaml")
    monkeypatch.setenv("TOLLGATE_PLANS__FREE__LIMITS__0__REQUESTS", "many")
    assert shell.fails(5, "policy", "check").startswith("TOLLGATE_PLANS__FREE__LIMITS__0__REQUESTS: plans.free")


def test_policy_diff_apply_and_show(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "+ plan free (0 tenants on it)\n    models: [small]\n    limits:\n" in shell.ok("policy", "diff").out
    assert shell.ok("policy", "apply", "--dry-run").out == shell.ok("policy", "diff").out
    monkeypatch.setenv("TOLLGATE_PLANS__FREE__LIMITS__0__REQUESTS", "1")  # this terminal's own: not written
    first = shell.ok("policy", "apply", "--json").json
    paths = {change["path"] for change in first["changes"]}
    assert paths >= {"plans.free", "models.small", "upstreams.openai", "global"}
    assert shell.ok("policy", "diff").out == "no difference\n"
    assert shell.ok("policy", "apply").out == f"no difference; revision {first['revision']}\n"

    shown = shell.ok("policy", "show").out
    assert yaml.safe_load(shown)["plans"]["free"]["limits"][0]["requests"] == 10
    copy = tmp_path / "copy.yaml"
    copy.write_text(shown)
    assert shell.ok("policy", "diff", str(copy)).out == "no difference\n"  # what it shows can be applied
    assert shell.ok("policy", "show", "--json").json["revision"] == first["revision"]

    copy.write_text(shown.replace("requests: 10,", "requests: 12,"))
    assert shell.ok("policy", "apply", str(copy)).out.startswith(
        "plan free\n  ~ limits[user.requests.minute].requests: 10 -> 12\n"
    )
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("version: 2")
    assert "version: expected 1, found 2" in shell.fails(5, "policy", "apply", str(wrong))


# -- plans -----------------------------------------------------------------------------------------------------------


def test_plans(applied: Shell) -> None:
    assert [line.split()[0] for line in applied.ok("plan", "list").out.splitlines()] == [
        "plan", "enterprise", "free", "pro",
    ]  # fmt: skip
    assert {plan["plan"] for plan in applied.ok("plan", "list", "--json").json["plans"]} == {
        "enterprise",
        "free",
        "pro",
    }
    assert re.search(r"\[user\.requests\.minute\] +\{scope: user, requests: 10", applied.ok("plan", "show", "free").out)
    assert applied.ok("plan", "show", "free", "--json").json["budgets"][1]["models"] == ["small"]
    assert applied.fails(3, "plan", "show", "fre") == "tollgate: there is no plan 'fre' (did you mean free?)"


def test_plan_set(applied: Shell) -> None:
    done = applied.ok(
        "plan", "set", "free",
        "limits[user.requests.minute].requests=20", "limits[0].burst=30", "models+=large",
        "budgets+={scope: team, tokens: 5, per: month}", "--unset", "budgets[user.tokens.day.small]",
        "--unset", "budgets[0]", "when_stores_fail=open", "--json",
    )  # fmt: skip
    plan = done.json
    assert plan["limits"][0] == {"scope": "user", "requests": 20, "per": "minute", "burst": 30}
    assert plan["models"] == ["small", "large"]
    assert [budget["scope"] for budget in plan["budgets"]] == ["tenant", "team"]
    assert plan["when_stores_fail"] == "open"
    assert applied.ok("plan", "show", "free", "--json").json == plan
    again = applied.ok("plan", "set", "free", "limits[0].burst=30")
    assert again.out == "nothing changed\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            ["free", "limits[0].requests=ten"],
            5,
            "limits[0].requests: expected a whole number of at least 1, found 'ten'",
        ),
        (["free", "models+=smal"], 5, "there is no model 'smal' (did you mean small?)"),
        (["free", "limts=[]"], 5, "plans.free.limts: is not known (did you mean limits?)"),
        (["free", "limits[9].requests=5"], 2, "limits has 3 entries, counted from 0: there is no [9]"),
        (["free", "limits[user.requests.day].requests=5"], 2, "limits has no user.requests.day: it has user.requests."),
        (["free", "limits[0].requests+=5"], 2, "only a list can be added to"),
        (["free", "limits[0]+=5"], 2, "only a list can be added to"),
        (["free", "models.x=5"], 2, "models"),
        (["free", "limits"], 2, "'limits' is no change: write path=value"),
        (["free", "limits=[1"], 2, "is not YAML"),
        (["free", "=5"], 2, "the path is empty"),
        (["free", "a..b=5"], 2, "cannot read '..b'"),
        (["free", "--unset", "when_stores_fail"], 2, "when_stores_fail is not set"),
        (["free", "--unset", "limits[0].requests"], 5, "exactly one of requests, tokens, concurrent"),
        (["free"], 2, "nothing to change"),
        (["fre", "models=[]"], 3, "there is no plan 'fre' (--create makes it)"),
        (["new", "--create", "limits=[]"], 5, "plans.new.models: is missing"),
        (["bad name", "--create", "models=[]"], 5, "cannot be a name"),
    ],
)
def test_plan_set_refuses(applied: Shell, words: list[str], code: int, said: str) -> None:
    assert said in applied.fails(code, "plan", "set", *words)
    assert applied.ok("policy", "diff").out == "no difference\n"


def test_a_new_plan(applied: Shell) -> None:
    applied.ok("plan", "set", "trial", "--create", "models=[small]", "budgets+={scope: tenant, usd: 1.5, per: life}")
    applied.ok("tenant", "create", "umbra", "--plan", "trial")
    line = applied.fails(4, "policy", "apply")
    assert line == "tollgate: these tenants are on a plan that would go: umbra (trial); give them another plan first"


# -- tenants ---------------------------------------------------------------------------------------------------------


def test_the_life_of_a_tenant(applied: Shell) -> None:
    made = applied.ok("tenant", "create", "acme", "--plan", "pro", "--json").json
    assert (made["tenant"], made["plan"], made["state"], made["limits"]) == ("acme", "pro", "active", [])
    assert applied.fails(4, "tenant", "create", "acme", "--plan", "pro") == (
        "tollgate: there is a tenant 'acme' already: `tollgate tenant set` changes it"
    )
    assert applied.ok("tenant", "show", "acme", "--json").json == made

    boosted = applied.ok(
        "tenant", "set", "acme", "plan=free",
        "limits+={scope: user, requests: 500, per: minute, until: 2026-12-01}", "--json",
    ).json  # fmt: skip
    assert boosted["limits"] == [{"scope": "user", "requests": 500, "per": "minute", "until": "2026-12-01T00:00:00Z"}]
    assert (boosted["plan"], boosted["version"]) == ("free", made["version"] + 1)
    assert "limit    [user.requests.minute]  {scope: user, requests: 500" in applied.ok("tenant", "show", "acme").out
    applied.ok("tenant", "set", "acme", "redis_failure_mode=closed")
    assert "redis failure mode: closed" in applied.ok("tenant", "show", "acme").out

    assert applied.ok("tenant", "suspend", "acme").out.startswith("acme is suspended\n")
    assert applied.ok("tenant", "suspend", "acme", "--json").json["state"] == "suspended"
    applied.ok("policy", "apply")
    assert applied.ok("tenant", "show", "acme", "--json").json["state"] == "suspended"
    assert applied.ok("tenant", "resume", "acme", "--json").json["state"] == "active"
    changed = applied.ok("tenant", "set", "acme", "--plan", "pro", "--unset", "limits[0]", "--json").json
    assert (changed["plan"], changed["limits"]) == ("pro", [])


def test_a_tenant_with_limits_of_its_own_from_the_start(applied: Shell) -> None:
    made = applied.ok(
        "tenant", "create", "acme", "--plan", "free", "budgets+={scope: tenant, usd: 5, per: life}", "--json"
    ).json
    assert made["budgets"] == [{"scope": "tenant", "usd": 5, "per": "life"}]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stat=suspended", "stat: is not known (did you mean state?)"),
        ("note=mine", "note: is not known"),
        ("version=7", "version: cannot be set"),
        ("tenant=other", "tenant: cannot be set"),
    ],
)
def test_a_slip_does_not_look_like_success(applied: Shell, change: str, said: str) -> None:
    before = applied.ok("tenant", "create", "acme", "--plan", "pro", "--json").json
    assert said in applied.fails(5, "tenant", "set", "acme", change)
    assert applied.ok("tenant", "show", "acme", "--json").json == before


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["create", "x", "--plan", "fre"], 5, "there is no plan 'fre' (did you mean free?)"),
        (["create", "client#1", "--plan", "free"], 5, "expected a name of letters"),
        (
            ["create", "x", "--plan", "free", "budgets+={scope: user, usd: 5, per: week}"],
            5,
            "expected day, month or life",
        ),
        (["create", "x"], 2, "Missing option '--plan'"),
        (["show", "nobody"], 3, "there is no tenant 'nobody'"),
        (["set", "nobody", "plan=free"], 3, "there is no tenant 'nobody'"),
        (["set", "nobody"], 2, "nothing to change"),
        (["suspend", "nobody"], 3, "there is no tenant 'nobody'"),
        (["list", "--limit", "0"], 2, "0 is not in the range"),
    ],
)
def test_tenant_refuses(applied: Shell, words: list[str], code: int, said: str) -> None:
    assert said in applied.fails(code, "tenant", *words)


def test_a_tenant_needs_a_policy_first(shell: Shell) -> None:
    assert "no policy was published yet" in shell.fails(3, "tenant", "create", "acme", "--plan", "pro")


def test_tenants_are_listed(applied: Shell) -> None:
    for name in ("acme", "globex", "initech"):
        applied.ok("tenant", "create", name, "--plan", "pro")
    rows = applied.ok("tenant", "list", "--json").json
    assert sorted(row["tenant"] for row in rows["tenants"]) == ["acme", "globex", "initech"]
    assert rows["next"] is None
    page = applied.ok("tenant", "list", "--limit", "2", "--json").json
    rest = applied.ok("tenant", "list", "--limit", "2", "--after", page["next"], "--json").json
    assert len(page["tenants"]) + len(rest["tenants"]) == 3
    assert "more: tollgate tenant list --limit 2 --after" in applied.ok("tenant", "list", "--limit", "2").out


# -- prices ------------------------------------------------------------------------------------------------------------

PRICED = """
version: 1
upstreams: {openai: {api: openai, base_url: "https://api.openai.com/v1", secret: s}}
models:
  small: {route: [{upstream: openai, model: gpt-4o-mini}]}
  odd: {route: [{upstream: openai, model: gpt-4o-mini-of-our-own}]}
plans: {pro: {models: [small, odd], budgets: [{scope: tenant, usd: 5, per: day}]}}
prices:
  openai:
    gpt-4o-mini:
      - {input: 0.15, output: 0.60}
      - {from: 2999-01-01, input: 0.2, output: 0.60}
"""


def test_prices_are_checked_before_they_count(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "priced.yaml"
    path.write_text(PRICED)
    assert shell.ok("policy", "check", str(path), "--json").json["unpriced"] == ["odd"]
    shell.ok("policy", "apply", str(path))
    assert shell.ok("status", "--json").json["unpriced"] == ["odd"]
    found = shell("price", "check", "--ahead", "900000d", "--json")
    assert found.code == 1
    assert not found.json["ok"]
    findings = {(f["model"], f["finding"]): f["detail"] for f in found.json["findings"]}
    assert set(findings) == {("odd", "no price"), ("small", "differs"), ("small", "changes")}
    assert findings["small", "differs"] == "cached_input 0.15 here, 0.075 there"
    assert findings["small", "changes"].startswith("from 2999-01-01 on: {input: 0.20")
    assert "no price" in shell("price", "check", "--offline").out
    listed = shell.ok("price", "list", "--json").json["prices"]
    assert [(p["model"], p["from"], p["in_force"], p["input"]) for p in listed] == [
        ("odd", "", True, "150.00"), ("small", "", True, "0.15"), ("small", "2999-01-01", False, "0.20"),
    ]  # fmt: skip
    assert shell.ok("price", "show", "small").out.count("openai/gpt-4o-mini") == 2
    assert "there is no model 'large'" in shell.fails(3, "price", "show", "large")


# -- status -----------------------------------------------------------------------------------------------------------


def test_status_of_a_deployed_stack(applied: Shell) -> None:
    applied.ok("tenant", "create", "acme", "--plan", "pro")
    found = applied.ok("status", "--json").json
    assert (found["url"], found["health"], found["tenants"], found["local"]) == (None, None, 1, False)
    assert found["policy"] == applied.ok("policy", "show", "--json").json["revision"]


def test_status_of_a_gateway_that_is_not_there(applied: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("TOLLGATE_STORE_URL", "rediss://tollgate:secret@cache.example.com:6379/0")
    done = applied("status")
    assert done.code == 1
    assert "health    does not answer" in done.out
    assert "store     rediss://cache.example.com:6379/0" in done.out
    assert "secret" not in done.out


def test_serve_refuses_a_bad_setting_in_one_line(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_STORE_URL", "memcached://x")
    assert "TOLLGATE_STORE_URL: expected memory://" in shell.fails(2, "serve")


def test_serve_refuses_a_bad_policy_with_its_lines(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nplans: {free: {models: [x]}}\n")
    monkeypatch.delenv("TOLLGATE_POLICY_TABLE")
    monkeypatch.setenv("TOLLGATE_POLICY", str(policy))
    monkeypatch.setenv("TOLLGATE_STORE_URL", "memory://")
    assert shell.fails(5, "serve").startswith(f"{policy}:2: plans.free.models[0]: there is no model 'x'")


def test_token_needs_a_local_stack(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert "TOLLGATE_USER_POOL_ID is not set" in shell.fails(6, "token", "--tenant", "acme", "--user", "ann")


def test_what_should_not_happen_is_one_line_too(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from tollgate.adapters.policy_tables import PolicyTables

    def broken(*_: object) -> None:
        raise RuntimeError("a bug,\nover two lines")

    monkeypatch.setattr(PolicyTables, "__init__", broken)
    assert shell.fails(1, "tenant", "list") == "tollgate: this should not happen: RuntimeError: a bug, over two lines"


# -- prepaid credit --------------------------------------------------------------------------------------------------


def test_credit_has_a_history_and_repeats_nothing(applied: Shell) -> None:
    applied.ok("tenant", "create", "acme", "--plan", "pro")
    assert applied.ok("credit", "show", "acme").out == "acme has no prepaid credit\n"
    made = applied.ok("credit", "add", "acme", "$25.00", "--id", "inv-1", "--note", "card", "--json").json
    assert made == {
        "tenant": "acme",
        "entry": "inv-1",
        "added": True,
        "accounts": [{"user": None, "limit_microusd": 25_000_000, "used_microusd": 0, "left_microusd": 25_000_000}],
    }
    assert "was entered before" in applied.ok("credit", "add", "acme", "25", "--id", "inv-1").out
    applied.ok("credit", "add", "acme", "0.5", "--user", "ann")
    applied.ok("credit", "refund", "acme", "5", "--id", "back")
    applied.ok("credit", "add", "acme", "100", "--id", "slip")
    shown = applied.ok("credit", "reverse", "acme", "slip", "--note", "wrong tenant").out.splitlines()
    assert [line.split() for line in shown] == [
        ["reversal", "reversal:slip:", "-$100.00"],
        ["account", "in", "all", "used", "left"],
        ["(tenant)", "$20.00", "$0.00", "$20.00"],
        ["ann", "$0.50", "$0.00", "$0.50"],
    ]
    entries = applied.ok("credit", "list", "acme", "--json").json["entries"]
    assert sorted((e["kind"], float(e["usd"])) for e in entries) == [
        ("payment", 0.5), ("payment", 25), ("payment", 100), ("refund", -5), ("reversal", -100),
    ]  # fmt: skip
    assert "card" in applied.ok("credit", "list", "acme").out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["add", "nobody", "5"], 3, "there is no tenant 'nobody'"),
        (["show", "nobody"], 3, "there is no tenant 'nobody'"),
        (["list", "nobody"], 3, "there is no tenant 'nobody'"),
        (["repair", "nobody"], 3, "there is no tenant 'nobody'"),
        (["add", "acme", "0"], 2, "expected US dollars such as 25.00"),
        (["add", "acme", "1e9"], 2, "at most 1,000,000"),
        (["add", "acme", "nan"], 2, "expected US dollars"),
        (["add", "acme", "0.0000001"], 2, "expected US dollars"),
        (["add", "acme", "5", "--id", "a b"], 2, "such as an invoice's number"),
        (["add", "acme", "5", "--note", "a\nb"], 2, "printable"),
        (["refund", "acme", "5"], 1, "there is no credit in this account yet"),
        (["reverse", "acme", "x"], 3, "there is no entry 'x'"),
    ],
)
def test_credit_refuses(applied: Shell, words: list[str], code: int, said: str) -> None:
    applied.ok("tenant", "create", "acme", "--plan", "pro")
    assert said in applied.fails(code, "credit", *words)


def test_no_alerts_is_an_answer_too(shell: Shell) -> None:
    assert shell.ok("alert", "list").out == "no alerts\n"
    assert shell.ok("alert", "list", "--json").json == {"alerts": []}
    assert "0 is not in the range" in shell.fails(2, "alert", "list", "--days", "0")
