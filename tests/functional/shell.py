"""A terminal for tests of the `tollgate` command, against AWS alone (moto's server)."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.aws_fixture import ENVIRON, aws_endpoint, dynamodb, make_table
from tollgate import cli

ROOT = Path(__file__).parents[2]


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """A terminal in which the environment names a deployed stack."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *words: str) -> Done:
        """Run a command in this process; whatever happens, it must end by SystemExit and show no stack trace."""
        self._monkeypatch.setattr(sys, "argv", ["tollgate", *words])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self._capsys.readouterr()
        assert "Traceback" not in out + err
        code = ended.value.code
        assert isinstance(code, int)
        return Done(code, out, err)

    def ok(self, *words: str) -> Done:
        done = self(*words)
        assert (done.code, done.err) == (0, ""), done
        return done

    def fails(self, code: int, *words: str) -> str:
        """The one line that a failing command says."""
        done = self(*words)
        assert (done.code, done.out) == (code, "")
        assert done.err.count("\n") == 1
        return done.err.strip()


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    with aws_endpoint() as url:
        yield url


@pytest.fixture
def environ(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """New tables, named by the environment."""
    names = {name: f"{name.lower()}-{uuid.uuid4().hex}" for name in ("TOLLGATE_POLICY_TABLE", "TOLLGATE_TENANTS_TABLE")}
    with asyncio.Runner() as runner, dynamodb(endpoint, runner) as client:
        for name, key in (("TOLLGATE_POLICY_TABLE", "id"), ("TOLLGATE_TENANTS_TABLE", "tenant")):
            definition = {
                "TableName": names[name],
                "BillingMode": "PAY_PER_REQUEST",
                "AttributeDefinitions": [{"AttributeName": key, "AttributeType": "S"}],
                "KeySchema": [{"AttributeName": key, "KeyType": "HASH"}],
            }
            runner.run(client.call("CreateTable", definition))
        names["TOLLGATE_LEDGER_TABLE"] = runner.run(make_table(client, sort_key=True))
    for name in [name for name in os.environ if name.startswith(("TOLLGATE_", "AWS_", "REDIS_"))]:
        monkeypatch.delenv(name)
    found = {**ENVIRON, **names, "AWS_ENDPOINT_URL": endpoint}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    return found


@pytest.fixture
def shell(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


@pytest.fixture
def applied(shell: Shell) -> Shell:
    shell.ok("policy", "apply")
    return shell
