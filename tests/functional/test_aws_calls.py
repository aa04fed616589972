"""docs/aws-calls.md names every AWS operation that the code calls."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import botocore.session
from botocore import xform_name

ROOT = Path(__file__).parents[2]
SERVICES = ("cognito-idp", "dynamodb", "dynamodbstreams", "logs", "secretsmanager", "sqs")


def called() -> Iterator[tuple[str, str]]:
    """(operation, where): texts given to our own client's `call` and methods of boto3's clients."""
    session = botocore.session.get_session()
    methods = {
        xform_name(operation): operation
        for service in SERVICES
        for operation in session.get_service_model(service).operation_names
    }
    for folder in ("functions", "shared/tollgate"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_bytes())):
                match node:
                    case ast.Call(
                        func=ast.Attribute(attr="call" | "_call"), args=[ast.Constant(value=str(name)), *_]
                    ) if re.fullmatch(r"(?:[A-Z][a-z]+){2,}", name):
                        yield name, f"{path}:{node.lineno}"
                    case ast.Call(func=ast.Attribute(attr=name)) if name in methods:
                        yield methods[name], f"{path}:{node.lineno}"


def test_every_call_is_listed() -> None:
    page = (ROOT / "docs" / "aws-calls.md").read_text()
    listed = set(re.findall(r"`(?:[a-z]+:)?([A-Z]\w+)`", page))
    found = dict(called())
    assert {"GetItem", "TransactWriteItems", "GetSecretValue", "SendMessage", "CreateUserPool"} <= found.keys()
    assert {name: where for name, where in found.items() if name not in listed} == {}
