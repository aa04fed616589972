"""What is true of every command: it teaches, it has JSON, and whatever fails is one line that says what to do next."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from tests.aws_fixture import ENVIRON
from tests.functional.shell import ROOT, Shell
from tollgate import cli
from tollgate.cli import OFFLINE
from tollgate.cli.connect import leaves
from tollgate.cli.failures import EXIT_CODES, NOT_ALLOWED, UNREACHABLE, USAGE
from tollgate.cli.reference import reference

COMMANDS = {" ".join(words): command for words, command in leaves(cli.tollgate)}
ONLINE = [name for name in COMMANDS if tuple(name.split()) not in OFFLINE]
ARGUMENTS: dict[str, list[str]] = {
    "boost add": ["acme", "requests=100 per=minute", "--for", "2h"],
    "credit add": ["acme", "5"],
    "credit refund": ["acme", "5"],
    "explain": ["--tenant", "acme", "--user", "ann"],
    "key show": ["3kTz9QvB1xYpA"],
    "key rotate": ["3kTz9QvB1xYpA"],
    "key revoke": ["3kTz9QvB1xYpA"],
    "ledger replay": ["--from-queue"],
    "plan set": ["free", "limits[0].requests=5"],
    "tenant set": ["acme", "plan=free"],
    "usage export": ["--tenant", "acme", "--month", "2026-10"],
}
"""Where a name in every place that needs something would be wrong usage."""
LOCAL = ("token", "status")
"""They look at the gateway itself, and at local stacks."""


def variables() -> set[str]:
    """What the template's outputs tell `--stack` of a stack."""
    (output,) = re.findall(r"^  Environment:.*?Value: !Sub >-\n(.*?)\n  \w", TEMPLATE, re.M | re.S)
    return set(re.findall(r"(TOLLGATE_\w+)=", output))


TEMPLATE = (ROOT / "template.yaml").read_text()
STACK = {name: "http://127.0.0.1:9/q" if name.endswith("_URL") else "us-east-1_nowhere" for name in variables()}


def called(name: str) -> list[str]:
    """A sensible call of a command."""
    words = name.split()
    if name in ARGUMENTS:
        words += ARGUMENTS[name]
    else:
        for param in COMMANDS[name].params:
            if param.required:
                words += [param.opts[0], "acme"] if isinstance(param, click.Option) else ["acme"]
    if any("--yes" in param.opts for param in COMMANDS[name].params):
        words.append("--yes")
    return words


def groups(command: click.Command, words: tuple[str, ...] = ()) -> list[str]:
    """Every command that has others."""
    if not isinstance(command, click.Group):
        return []
    found = [" ".join(words)]
    for name, inner in command.commands.items():
        found += groups(inner, (*words, name))
    return found


# -- help ------------------------------------------------------------------------------------------------------------


class SecretTyped(io.StringIO):
    """Whoever reads it, reads a secret, as often as they like."""

    def read(self, size: int | None = -1) -> str:
        return "sk-provider"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """For what needs no tables: a shell in an environment that names everything that a stack has."""
    for name in [name for name in os.environ if name.startswith(("TOLLGATE_", "AWS_", "REDIS_"))]:
        monkeypatch.delenv(name)
    for name, value in (ENVIRON | STACK).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("time.sleep", lambda _: None)  # nobody waits before trying again
    monkeypatch.setattr("tollgate.adapters.aws.BACKOFF", 0)
    monkeypatch.setattr("sys.stdin", SecretTyped())
    monkeypatch.chdir(ROOT)
    return Shell(monkeypatch, capsys)


def test_help_teaches_by_example(terminal: Shell) -> None:
    for name in [*COMMANDS, *groups(cli.tollgate)]:
        text = terminal.ok(*name.split(), "--help").out
        assert re.search(rf"^    .*tollgate {name}", text, re.M), f"{name}: an example that begins with the command"
        assert [line for line in text.splitlines() if len(line) > 110] == []


def test_every_command_has_json() -> None:
    assert [name for name, command in COMMANDS.items() if all("--json" not in p.opts for p in command.params)] == []


def test_every_command_that_talks_to_a_stack_can_be_told_which() -> None:
    for name in ONLINE:
        assert {"--stack", "--profile", "--region"} <= {opt for param in COMMANDS[name].params for opt in param.opts}


def test_what_destroys_asks() -> None:
    destroys = [name for name in COMMANDS if name.split()[-1] in ("delete", "revoke", "apply")]
    assert [name for name in destroys if all("--yes" not in param.opts for param in COMMANDS[name].params)] == []


def test_exit_codes_are_documented(terminal: Shell) -> None:
    text = terminal.ok("--help").out
    for code, meaning in EXIT_CODES.items():
        assert f"{code}  {meaning}" in text


def test_the_reference_is_current() -> None:
    """If it is not: python -m tollgate.cli.reference > docs/cli.md"""
    assert (ROOT / "docs" / "cli.md").read_text() == reference()


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_scripts(name: str, terminal: Shell) -> None:
    script = terminal.ok("completion", name).out
    assert f"_TOLLGATE_COMPLETE={name}_complete" in script
    assert terminal.ok("completion", name, "--json").json == {"shell": name, "script": script.removesuffix("\n")}


def completions(line: str) -> list[str]:
    words = line.split(" ")
    env = {"_TOLLGATE_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    command = [sys.executable, "-m", "tollgate.cli"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, check=False)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.split()]


def test_names_are_completed(applied: Shell) -> None:
    applied.ok("tenant", "create", "acme", "--plan", "pro")
    applied.ok("tenant", "create", "globex", "--plan", "free")
    assert completions("tollgate tenant show ac") == ["acme"]
    assert completions("tollgate plan show ") == ["enterprise", "free", "pro"]
    assert completions("tollgate tenant create x --plan fr") == ["free"]


def test_nothing_is_completed_where_nothing_answers(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert completions("tollgate tenant show ac") == []
    monkeypatch.delenv("TOLLGATE_POLICY_TABLE")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert completions("tollgate tenant show ac") == []


def test_a_deployed_stack_tells_all_that_commands_ask_for() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "shared/tollgate/cli").glob("*.py"))
    asked = set(re.findall(r"TOLLGATE_[A-Z_]+_(?:TABLE|POOL_ID|QUEUE_URL|FUNCTION|LOG_GROUP|ARN)\b", sources))
    assert asked <= variables()


# -- failures --------------------------------------------------------------------------------------------------------


def fails_well(shell: Shell, name: str, *codes: int) -> str:
    """The one line of a command that must fail with one of these codes (any, if none is given)."""
    done = shell(*called(name))
    assert done.code in (codes or EXIT_CODES), done
    assert done.err.startswith("tollgate: "), done
    assert done.err.count("\n") == 1, done
    assert "should not happen" not in done.err
    assert done.out == ""
    return done.err


def test_without_a_stack(terminal: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in STACK:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ONLINE:
        line = fails_well(terminal, name, UNREACHABLE)
        assert "start `tollgate dev`, or name a deployed stack with --stack" in line


def unreachable(patch: pytest.MonkeyPatch) -> tuple[int, ...]:
    patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    return (UNREACHABLE,)


def without_credentials(patch: pytest.MonkeyPatch) -> tuple[int, ...]:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.delenv(variable)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        patch.setenv(variable, "/nonexistent")
    return (NOT_ALLOWED,)


def in_another_region(patch: pytest.MonkeyPatch) -> tuple[int, ...]:
    patch.setenv("AWS_REGION", "eu-west-3")
    return ()


def with_names_of_nothing(patch: pytest.MonkeyPatch) -> tuple[int, ...]:
    return ()


@pytest.mark.parametrize(
    "broken",
    [
        unreachable,
        without_credentials,
        in_another_region,
        with_names_of_nothing,
    ],
)
def test_whatever_fails_is_one_line(
    broken: Callable[[pytest.MonkeyPatch], tuple[int, ...]],
    terminal: Shell,
    endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    codes = broken(monkeypatch)
    for name in ONLINE:
        if name in LOCAL or (name == "secret set" and not codes):  # which makes what is not there
            continue
        line = fails_well(terminal, name, *codes)
        if codes == (NOT_ALLOWED,):
            assert "--profile" in line or "list-profiles" in line


@pytest.mark.parametrize("name", ["tenant list", "user list", "audit"])
def test_a_profile_that_is_not_there(name: str, terminal: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    without_credentials(monkeypatch)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "aws configure list-profiles" in fails_well(terminal, name, NOT_ALLOWED)


def test_a_table_of_another_kind(shell: Shell, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLGATE_TENANTS_TABLE", environ["TOLLGATE_LEDGER_TABLE"])
    assert "is it the right table?" in fails_well(shell, "tenant show", UNREACHABLE)


# -- which stack -----------------------------------------------------------------------------------------------------


def test_a_profile_or_region_means_a_deployed_stack(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TOLLGATE_POLICY_TABLE")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for url in ("", "http://127.0.0.1:1"):  # not even where the environment names a local one
        monkeypatch.setenv("TOLLGATE_URL", url)
        for words in (["--region", "eu-central-1", "tenant", "list"], ["tenant", "list", "--region", "eu-central-1"]):
            assert "which stack? Add --stack NAME" in shell.fails(USAGE, *words)
    both = ["tenant", "list", "--stack", "http://127.0.0.1:1", "--profile", "prod"]
    assert "is a local stack" in shell.fails(USAGE, *both)


def test_a_stack_is_found_by_its_outputs(
    applied: Shell, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    applied.ok("tenant", "create", "acme", "--plan", "pro")
    values = " ".join(f"{name}={value}" for name, value in environ.items() if name.startswith("TOLLGATE_"))
    template = f"""
Resources: {{Topic: {{Type: "AWS::SNS::Topic"}}}}
Outputs: {{Environment: {{Value: "{values} PATH=/nowhere"}}}}
"""
    cloudformation = boto3.client(
        "cloudformation", endpoint_url=environ["AWS_ENDPOINT_URL"], region_name=environ["AWS_REGION"]
    )
    cloudformation.create_stack(StackName="prod", TemplateBody=template)
    cloudformation.create_stack(StackName="other", TemplateBody=template.partition("Outputs")[0])
    for variable in values.split():
        monkeypatch.delenv(variable.partition("=")[0])
    monkeypatch.setenv("TOLLGATE_TENANTS_TABLE", "of-another-stack")  # does not mix with the outputs
    for words in (["--stack", "prod", "tenant", "list"], ["tenant", "list", "--stack", "prod"]):
        assert [row["tenant"] for row in applied.ok(*words, "--json").json["tenants"]] == ["acme"]
    monkeypatch.setenv("TOLLGATE_STACK", "prod")
    assert "acme" in applied.ok("tenant", "list").out
    assert applied.fails(3, "tenant", "list", "--stack", "staging").startswith(
        "tollgate: there is no stack 'staging' in us-east-1"
    )
    assert "has no output Environment" in applied.fails(1, "tenant", "list", "--stack", "other")


def test_a_profile_brings_its_keys_and_region(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tollgate.cli.connect import environment

    config = tmp_path / "config"
    config.write_text("[profile ops]\nregion = eu-central-1\naws_access_key_id = A\naws_secret_access_key = B\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    for variable in ("AWS_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(variable)
    seen: list[dict[str, str]] = []
    monkeypatch.setattr("tollgate.cli.connect.with_http", lambda _: seen.append(environment()) or ([], None))
    assert shell("tenant", "list", "--profile", "ops").code == 0
    assert (seen[0]["AWS_PROFILE"], seen[0]["AWS_REGION"]) == ("ops", "eu-central-1")
    assert "AWS_ACCESS_KEY_ID" not in seen[0]  # the terminal's own, which are somebody else's
    assert "no AWS region is set" in shell.fails(USAGE, "tenant", "list")
