"""What a process imports, and when: a cold start waits for every module, and a request should wait for none."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tokens
from tests.aws_fixture import ENVIRON, aws_endpoint, dynamodb
from tests.functional.scripted import DONE_EVENT, USAGE_EVENT, Exchange, ScriptedUpstream, completion, delta
from tests.servers import redis_server
from tollgate.adapters.policy_file import parse
from tollgate.adapters.policy_tables import PolicyTables

ROOT = Path(__file__).parents[2]
SITE_PACKAGES = sysconfig.get_paths()["purelib"]
KEYS = {"policy": ["id"], "tenants": ["tenant"], "limits": ["pk"], "ledger": ["pk", "sk"]}

GATEWAY = """
import asyncio, json, sys
import uvloop
from tollgate import bootstrap
app = bootstrap.{application}()

async def main():
    received, sent = asyncio.Queue(), asyncio.Queue()
    lifespan = asyncio.create_task(app({{"type": "lifespan"}}, received.get, sent.put))
    await received.put({{"type": "lifespan.startup"}})
    started = await sent.get()
    assert started["type"] == "lifespan.startup.complete", started
    steps = []
    known = set(sys.modules)
    for method, path, headers, body in json.load(sys.stdin):
        answer, request = [], asyncio.Queue()
        request.put_nowait({{"type": "http.request", "body": body.encode(), "more_body": False}})
        scope = {{"type": "http", "method": method, "path": path, "client": ["127.0.0.1", 1]}}
        scope["headers"] = [(name.encode(), value.encode()) for name, value in headers]
        async def send(message):
            answer.append(message)
        await app(scope, request.get, send)
        steps.append([path, answer[0]["status"], sorted(set(sys.modules) - known)])
        known |= set(sys.modules)
    await received.put({{"type": "lifespan.shutdown"}})
    await lifespan
    return steps

print("steps " + json.dumps(uvloop.run(main())))
"""
"""A server without a server: whatever is imported, the gateway imports it."""


def document(upstream: ScriptedUpstream) -> dict[str, Any]:
    return {
        "version": 1,
        "upstreams": {"scripted": {"api": "openai", "base_url": upstream.base_url}},
        "models": {"small": {"route": [{"upstream": "scripted", "model": "real-name"}], "price": {"input": 1}}},
        "plans": {
            "small": {
                "models": ["small"],
                "limits": [{"scope": "user", "requests": 3, "per": "day"}, {"scope": "tenant", "concurrent": 5}],
                "budgets": [{"scope": "tenant", "usd": 5, "per": "month"}],
            }
        },
        "global": {"limits": [{"scope": "ip", "requests": 1000, "per": "minute"}]},
        "tenants": {"acme": {"plan": "small"}},
    }


def requests(*headers: tuple[str, str]) -> str:
    """One of each kind: the third call exceeds the limit of requests, the last is none of ours."""
    call = {"model": "small", "messages": [{"role": "user", "content": "hi"}]}
    chat = ("POST", "/v1/chat/completions", headers)
    return json.dumps(
        [
            (*chat, json.dumps(call)),
            (*chat, json.dumps({**call, "stream": True})),
            ("POST", "/v1/embeddings", headers, json.dumps({"model": "small", "input": "hi"})),
            (*chat, json.dumps(call)),
            (*chat, json.dumps({**call, "model": "large"})),
            ("GET", "/v1/models", headers, ""),
            ("GET", "/v1/usage", headers, ""),
            ("GET", "/v1/nothing", headers, ""),
        ]
    )


EXPECTED = [200, 200, 200, 429, 404, 200, 200, 404]


def script(exchange: Exchange) -> None:
    if b'"stream": true' in exchange.received.body:
        exchange.begin_stream()
        for event in (delta("Hello"), USAGE_EVENT, DONE_EVENT):
            exchange.send(event)
        exchange.end_stream()
    else:
        exchange.whole(200, completion())


def steps(application: str, environ: dict[str, str], stdin: str) -> list[Any]:
    """(path, status, modules that it imported) for each request; without this environment's own start-up imports."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", GATEWAY.format(application=application)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": f"{ROOT / 'shared'}:{ROOT}:{SITE_PACKAGES}", **environ},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.rpartition("steps ")[2])
    return found


@pytest.fixture(scope="module")
def aws_environ(upstream: ScriptedUpstream) -> Iterator[dict[str, str]]:
    """A proxy function's environment: a published policy in tables, Redis for the limits, DynamoDB behind it."""
    with (
        redis_server() as redis_url,
        aws_endpoint() as url,
        asyncio.Runner() as runner,
        dynamodb(url, runner) as client,
    ):
        for name, keys in KEYS.items():
            table = {
                "TableName": f"imports-{name}",  # moto's tables are everybody's
                "BillingMode": "PAY_PER_REQUEST",
                "AttributeDefinitions": [{"AttributeName": key, "AttributeType": "S"} for key in keys],
                "KeySchema": [
                    {"AttributeName": key, "KeyType": kind} for key, kind in zip(keys, ("HASH", "RANGE"), strict=False)
                ],
            }
            runner.run(client.call("CreateTable", table))
        policy = parse(yaml.safe_dump(document(upstream)), {})
        runner.run(PolicyTables(client, "imports-policy", "imports-tenants").apply(policy, "tests"))
        yield {
            **ENVIRON,
            **{f"TOLLGATE_{name.upper()}_TABLE": f"imports-{name}" for name in KEYS},
            "AWS_ENDPOINT_URL": url,
            "AWS_LAMBDA_FUNCTION_NAME": "proxy",
            "TOLLGATE_STORE_URL": redis_url,
        }


@pytest.mark.parametrize("store", ["redis", "dynamodb"])
def test_a_request_to_the_proxy_function_imports_nothing(
    store: str, aws_environ: dict[str, str], upstream: ScriptedUpstream
) -> None:
    environ = dict(aws_environ)
    if store == "dynamodb":
        environ["TOLLGATE_STORE_URL"] = "dynamodb://imports-limits"
    user = {"tenant": "acme", "user": f"ann-{store}", "plan": "small", "scopes": "invoke", "exp": "9999999999"}
    context = {"authorizer": user, "identity": {"sourceIp": "192.0.2.1"}}
    with upstream.play(script):
        found = steps("lambda_application", environ, requests(("x-amzn-request-context", json.dumps(context))))
    assert [status for _, status, _ in found] == EXPECTED
    assert [modules for _, _, modules in found] == [[]] * len(found), found


def test_a_request_to_the_container_imports_nothing(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump(document(upstream)))
    environ = {
        "TOLLGATE_POLICY": str(policy),
        "TOLLGATE_STORE_URL": "memory://",
        "TOLLGATE_ISSUER": tokens.ISSUER,
        "TOLLGATE_CLIENT_IDS": tokens.CLIENT,
        "TOLLGATE_JWKS_URL": upstream.base_url + "/jwks",
    }
    token = tokens.token(tokens.claims(tenant="acme", sub="ann"))
    with upstream.play(script):
        found = steps("serve_application", environ, requests(("authorization", f"Bearer {token}")))
    assert [status for _, status, _ in found] == EXPECTED
    assert [modules for _, _, modules in found] == [[]] * len(found), found


def test_no_function_imports_the_command_line() -> None:
    """Nor an AWS SDK, nor what only reads files."""
    handlers = sorted(path.parent.name for path in (ROOT / "functions").glob("*/handler.py"))
    assert {"authorizer", "metering", "publisher", "token_trigger"} <= set(handlers)
    imports = ", ".join([f"functions.{name}.handler" for name in handlers] + ["tollgate.services.gateway"])
    program = f"import sys, {imports}; print([m for m in ('click', 'boto3', 'botocore', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
