"""A change of the policy or of a tenant, by command or by hand, is felt by a warm gateway within 10 s."""

from __future__ import annotations

import getpass
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import boto3
import pytest
import yaml

from tests.functional.callers import Callers
from tests.functional.stack import ROOT, DevStack
from tollgate.local.discovery import find

WITHIN_S = 60.0
FREE = {"scope": "user", "requests": 500, "per": "minute"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevStack]:
    """A stack of one's own, with a policy that may be replaced, and a plan for each test."""
    policy = demo_policy()
    policy["plans"] |= plans()
    path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    with DevStack("--policy", str(path)) as running:
        yield running


def plans() -> dict[str, Any]:
    """One for each test."""
    return {f"plan-{number}": {"models": ["small"], "limits": [FREE]} for number in range(1, 20)}


def demo_policy() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "policy.yaml").read_text()))


def limit_is(amount: int) -> Callable[[int, Mapping[str, str]], bool]:
    return lambda status, headers: headers.get("x-ratelimit-limit-requests") == str(amount)


class User:
    """A user of a new tenant on a plan of its own, who has called once: the gateway knows them."""

    _numbers = count(1)

    def __init__(self, stack: DevStack, callers: Callers) -> None:
        self.stack = stack
        number = next(self._numbers)
        self.plan, self.tenant = f"plan-{number}", f"tenant-{number}"
        stack.run("tenant", "create", self.tenant, "--plan", self.plan)
        self.token = callers.token(self.tenant, "demo")
        status, headers = self.call()  # a new tenant works at once
        assert (status, headers["x-ratelimit-limit-requests"]) == (200, "500")

    def call(self) -> tuple[int, Mapping[str, str]]:
        body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        request = urllib.request.Request(
            f"{self.stack.base_url}/chat/completions",
            json.dumps(body).encode(),
            {"authorization": f"Bearer {self.token}", "content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers

    def feels(self, wanted: Callable[[int, Mapping[str, str]], bool]) -> None:
        """Calls until it is so, for as long as a change may take. Nothing fails meanwhile."""
        until = time.monotonic() + WITHIN_S
        while time.monotonic() < until:
            status, headers = self.call()
            assert status in (200, 403, 429)
            if wanted(status, headers):
                return
            time.sleep(0.2)
        raise AssertionError(f"not felt within {WITHIN_S:g} s: {status} {dict(headers)}\n{self.stack.log()[-2000:]}")


@pytest.fixture(scope="module")
def callers(stack: DevStack) -> Callers:
    return Callers(stack)


@pytest.fixture
def user(stack: DevStack, callers: Callers) -> User:
    return User(stack, callers)


class Console:
    """The tables, as somebody edits them by hand."""

    def __init__(self, stack: DevStack) -> None:
        environ = find({"TOLLGATE_URL": stack.url})
        assert environ is not None
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        dynamodb = boto3.resource(
            "dynamodb", endpoint_url=environ["AWS_ENDPOINT_URL"], region_name=environ["AWS_REGION"], **keys
        )
        self.policy = dynamodb.Table(environ["TOLLGATE_POLICY_TABLE"])
        self.tenants = dynamodb.Table(environ["TOLLGATE_TENANTS_TABLE"])

    def edit_plan(self, name: str, **changes: Any) -> None:
        item = self.policy.get_item(Key={"id": f"plan#{name}"})["Item"]
        self.policy.put_item(Item={**item, **changes})

    def edit_tenant(self, name: str, **changes: Any) -> None:
        item = self.tenants.get_item(Key={"tenant": name})["Item"]
        self.tenants.put_item(Item={**item, **changes})


@pytest.fixture(scope="module")
def console(stack: DevStack) -> Console:
    return Console(stack)


def test_a_plan_that_was_set(stack: DevStack, user: User) -> None:
    stack.run("plan", "set", user.plan, "limits[0].requests=400")
    user.feels(limit_is(400))


def test_a_plan_that_was_edited_by_hand(user: User, console: Console) -> None:
    console.edit_plan(user.plan, limits=[{**FREE, "requests": 300}])
    user.feels(limit_is(300))


def test_a_tenant_that_was_set(stack: DevStack, user: User) -> None:
    stack.run("tenant", "set", user.tenant, f"limits+={json.dumps({**FREE, 'requests': 200})}")
    user.feels(limit_is(200))
    stack.run("tenant", "set", user.tenant, "--unset", "limits[user.requests.minute]")
    user.feels(limit_is(500))


def test_a_tenant_that_was_suspended_and_resumed(stack: DevStack, user: User) -> None:
    stack.run("tenant", "suspend", user.tenant)
    user.feels(lambda status, _: status == 403)
    stack.run("tenant", "resume", user.tenant)
    user.feels(lambda status, _: status == 200)


def test_a_user_who_was_disabled_and_enabled(stack: DevStack, user: User, callers: Callers) -> None:
    """With a token, and with an API key; a colleague does not notice."""
    colleague = callers.colleague(user.tenant, "carol")
    key = stack.run("key", "create", user.tenant, "--user", "demo", "--quiet").stdout.strip()
    keyed = replace(colleague, token=key)
    assert keyed.chat(max_tokens=1).status == 200
    stack.run("user", "disable", "demo", "--tenant", user.tenant)
    user.feels(lambda status, _: status == 403)
    for answer in (keyed.chat(max_tokens=1), keyed.get("/v1/models"), keyed.get("/v1/usage")):
        assert (answer.status, answer.error["code"]) == (403, "user_disabled")
    assert colleague.chat(max_tokens=1).status == 200
    stack.run("user", "enable", "demo", "--tenant", user.tenant)
    user.feels(lambda status, _: status == 200)


def test_a_user_who_was_disabled_by_hand(user: User, console: Console) -> None:
    console.edit_tenant(user.tenant, disabled_users=[{"user": "demo"}])
    user.feels(lambda status, _: status == 403)
    console.edit_tenant(user.tenant, disabled_users=[])
    user.feels(lambda status, _: status == 200)


def test_a_user_of_the_pool(stack: DevStack, user: User) -> None:
    """Their token, and all that they could have got."""
    user.token = stack.run("token", "--tenant", user.tenant, "--user", "dora").stdout.strip()
    user.feels(lambda status, _: status == 200)
    stack.run("user", "disable", "dora", "--tenant", user.tenant)
    user.feels(lambda status, _: status == 403)
    stack.run("user", "delete", f"{user.tenant}/dora", "--yes")
    assert user.call()[0] == 403


def test_a_tenant_that_was_deleted(user: User, callers: Callers, console: Console) -> None:
    """Whatever plan its users' tokens remember, as Cognito's do."""
    user.token = callers.token(user.tenant, "demo", plan=user.plan)
    user.feels(lambda status, _: status == 200)
    console.tenants.delete_item(Key={"tenant": user.tenant})
    user.feels(lambda status, _: status == 403)


def test_a_tenant_that_was_edited_by_hand(user: User, console: Console) -> None:
    """Whoever edits by hand does not think of versions."""
    console.edit_tenant(user.tenant, state="suspended")
    user.feels(lambda status, _: status == 403)
    console.edit_tenant(user.tenant, state="active")
    user.feels(lambda status, _: status == 200)


def test_a_wrong_edit_changes_nothing_and_is_reported(stack: DevStack, user: User, console: Console) -> None:
    console.edit_plan(user.plan, limits=[{**FREE, "requests": "many"}])
    console.edit_tenant(user.tenant, plan="gold")
    until = time.monotonic() + WITHIN_S
    while not ("PolicyRejected" in stack.log() and "TenantRejected" in stack.log()):
        assert time.monotonic() < until, stack.log()[-2000:]
        time.sleep(0.2)
    assert f"plans.{user.plan}.limits[0].requests" in stack.log()
    status, headers = user.call()
    assert (status, headers["x-ratelimit-limit-requests"]) == (200, "500")

    console.edit_tenant(user.tenant, plan=user.plan)
    console.edit_plan(user.plan, limits=[{**FREE, "requests": 100}])
    user.feels(limit_is(100))


def test_a_file_that_was_applied(stack: DevStack, callers: Callers, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its upstreams go where this stack sends them, so that the demo model goes on answering."""
    user = User(stack, callers)
    policy = demo_policy()
    policy["plans"] |= plans()
    policy["plans"]["free"]["limits"] = [{**FREE, "requests": 50}]
    policy["tenants"] = {user.tenant: {"plan": "free"}}
    path = tmp_path_factory.mktemp("applied") / "policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    done = stack.run("policy", "apply", str(path))
    assert "api.openai.com" not in done.stdout
    user.feels(lambda status, headers: status == 200 and headers["x-ratelimit-limit-requests"] == "50")


def test_who_changed_what_is_in_the_audit_log(stack: DevStack, console: Console) -> None:
    tenant = stack.new_tenant("audited", "free")
    stack.run("tenant", "suspend", tenant)
    console.edit_tenant(tenant, state="active", api_key="sk-c0ffeec0ffee")
    until = time.monotonic() + WITHIN_S
    entries: list[dict[str, Any]] = []
    while len(entries) < 3:
        assert time.monotonic() < until, entries
        entries = json.loads(stack.run("audit", "--tenant", tenant, "--json").stdout)["entries"]
    me = getpass.getuser()
    assert [(entry["action"], entry["actor"]) for entry in entries] == [
        ("created", me), ("changed", me), ("changed", "by hand"),
    ]  # fmt: skip
    assert entries[1]["before"] | entries[1]["after"] == {"state": "suspended"}
    assert entries[2]["after"] == {"state": "active", "api_key": "(not shown)"}
    assert [entry["ts_us"] for entry in entries] == sorted(entry["ts_us"] for entry in entries)
    assert "suspended" in stack.run("audit", "--actor", me, "--only", "changes").stdout
