"""API keys as their holders use them: the unmodified SDKs of OpenAI and Anthropic, before API Gateway's stand-in and
before `tollgate serve`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.functional.callers import HELLO, Caller, Callers
from tests.functional.scripted import ScriptedUpstream
from tests.functional.stack import DevStack
from tests.functional.test_serve import Served, policy
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.http import HttpClient
from tollgate.adapters.keys_table import KeysTable, Made, Owner
from tollgate.adapters.peppers import Peppers
from tollgate.domain import api_keys

if TYPE_CHECKING:
    from anthropic import Anthropic

CLAUDE: dict[str, Any] = {"model": "claude", "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}

NewKey = Callable[..., str]


@pytest.fixture(scope="module")
def tenant(callers: Callers) -> Caller:
    """A tenant that may use every model."""
    return callers()


@pytest.fixture(scope="module")
def new_key(callers: Callers, tenant: Caller) -> NewKey:
    """`new_key(models=..., limits=...)`: a key of the tenant with these restrictions."""

    def make(expires_at: int | None = None, **restrictions: Any) -> str:
        text = json.dumps(restrictions) if restrictions else ""
        return on_table(
            callers, lambda table: table.create(Owner(tenant.tenant), "op", expires_at=expires_at, restrictions=text)
        ).key

    return make


def on_table(callers: Callers, operation: Callable[[KeysTable], Coroutine[Any, Any, Made]]) -> Made:
    """What `tollgate key` does, without a process for each time."""

    async def run() -> Made:
        http, environ = HttpClient(), callers.environ
        dynamodb, manager = (AwsClient.for_service(name, http, environ) for name in ("dynamodb", "secretsmanager"))
        names = environ["TOLLGATE_KEYS_TABLE"], environ["TOLLGATE_KEY_PEPPER"]
        made = await operation(KeysTable(dynamodb, names[0], Peppers(manager, names[1]), time.time))
        await http.aclose()
        return made

    return asyncio.run(run())


@pytest.fixture(scope="module")
def key(stack: DevStack, tenant: Caller) -> str:
    """A key that may do everything, made by the command."""
    options = ("--user", "robot", "--team", "red", "--quiet")
    return stack.run("key", "create", tenant.tenant, *options).stdout.strip()


def sdk(stack: DevStack, version: int, credential: str) -> Anthropic:
    """Anthropic's SDK, to be used in a `with`. Version 2 sends its `api_key` as a bearer token; those before sent it as
    `x-api-key`, for which there are routes of their own."""
    from anthropic import Anthropic  # takes two seconds, which no other test needs

    if version >= 2:
        return Anthropic(base_url=stack.url, api_key=credential, max_retries=0)
    headers = {"x-api-key": credential}
    return Anthropic(base_url=f"{stack.url}/anthropic", api_key=None, default_headers=headers, max_retries=0)


@pytest.fixture(scope="module", params=[2, 1], ids=["sdk 2", "sdk 1"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def keyed(stack: DevStack, version: int, key: str) -> Iterator[Anthropic]:
    with sdk(stack, version, key) as client:
        yield client


def holding(tenant: Caller, key: str) -> Caller:
    return replace(tenant, token=key)


# -- OpenAI's SDK ------------------------------------------------------------------------------------------------------


def test_a_key_is_as_good_as_a_token_and_is_named_in_the_ledger(callers: Callers, tenant: Caller, key: str) -> None:
    with holding(tenant, key).sdk() as client:
        assert client.chat.completions.create(**HELLO, max_tokens=5).choices[0].message.content
        chunks = list(client.chat.completions.create(**HELLO, max_tokens=5, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert "small" in [model.id for model in client.models.list()]
    entries = [entry for entry in callers.entries(tenant, 2) if entry["key"] == api_keys.parse(key)]
    assert {(entry["user"], entry["team"]) for entry in entries} == {("robot", "red")}


def test_what_is_nearly_a_key_is_refused(tenant: Caller, key: str) -> None:
    wrong = api_keys.with_secret(api_keys.parse(key) or "", b"\x01" * api_keys.SECRET_BYTES)
    never = api_keys.make(b"\x01" * api_keys.ID_BYTES, b"\x01" * api_keys.SECRET_BYTES)
    for bad in (wrong, never, key[:-1], key + "x", key.swapcase(), "tg_"):
        with holding(tenant, bad).sdk(max_retries=0) as client, pytest.raises(openai.AuthenticationError):
            client.models.list()


# -- Anthropic's SDK ---------------------------------------------------------------------------------------------------


def test_anthropics_sdk_needs_no_more_than_another_base_url(keyed: Anthropic) -> None:
    message = keyed.messages.create(**CLAUDE)
    assert message.content[0].type == "text"
    assert (message.usage.output_tokens, message.stop_reason) == (5, "max_tokens")
    with keyed.messages.stream(**CLAUDE) as stream:
        assert "".join(stream.text_stream).strip() == message.content[0].text
        assert stream.get_final_message().usage.output_tokens == 5


def test_it_lists_the_models_that_it_can_call(keyed: Anthropic) -> None:
    page = keyed.models.list()
    assert [model.id for model in page] == ["claude"]
    assert page.has_more is False
    assert keyed.models.retrieve("claude").display_name == "claude"


def test_its_errors_are_its_own(stack: DevStack, version: int, keyed: Anthropic, key: str, new_key: NewKey) -> None:
    import anthropic

    with pytest.raises(anthropic.NotFoundError) as unknown:
        keyed.messages.create(**{**CLAUDE, "model": "nothing"})
    assert unknown.value.type == "not_found_error"
    with pytest.raises(anthropic.NotFoundError):
        keyed.models.retrieve("small")  # which speaks another API
    with pytest.raises(anthropic.BadRequestError):
        keyed.messages.create(**{**CLAUDE, "messages": []})
    with pytest.raises(anthropic.NotFoundError):
        keyed.post("/v1/nothing", cast_to=object)
    with sdk(stack, version, new_key(limits=[{"scope": "key", "requests": 1, "per": "day"}])) as client:
        client.messages.create(**CLAUDE)
        with pytest.raises(anthropic.RateLimitError) as refused:
            client.messages.create(**CLAUDE)
        assert refused.value.response.headers["x-ratelimit-type"] in ("Key", "Local-Key")
    with sdk(stack, version, key[:-1]) as client, pytest.raises(anthropic.AuthenticationError):
        client.messages.create(**CLAUDE)


def test_an_ordinary_token_is_a_key_too(stack: DevStack, version: int, tenant: Caller) -> None:
    with sdk(stack, version, tenant.token) as client:
        assert [model.id for model in client.models.list()] == ["claude"]


@pytest.mark.parametrize("path", ["/v1/models", "/anthropic/v1/models"])
def test_two_credentials_that_differ_are_refused_wherever_they_come(tenant: Caller, key: str, path: str) -> None:
    """Also once API Gateway has remembered what one of them is good for."""
    same = {"authorization": f"Bearer {key}", "x-api-key": key}
    other = {"authorization": f"Bearer {tenant.token}", "x-api-key": key}
    for headers, status in ((other, 401), (same, 200), (other, 401)):
        assert tenant.get(path, headers).status == status
    assert tenant.get(path, {"authorization": f"Bearer {tenant.token}", "x-api-key": tenant.token}).status == 200
    assert "Two different credentials" in tenant.get(path, other).error["message"]


# -- what a key may do -------------------------------------------------------------------------------------------------


def test_a_key_is_no_more_than_it_was_made_for(tenant: Caller, new_key: NewKey) -> None:
    caller = holding(tenant, new_key(models=["small"], routes=["/v1/chat/completions", "/v1/models"]))
    assert caller.chat().status == 200
    assert [model["id"] for model in caller.get("/v1/models").json["data"]] == ["small"]
    assert caller.get("/v1/models/small").status == 200
    refused = caller.chat(model="large")
    assert (refused.status, refused.error["code"], refused.error["param"]) == (403, "model_not_allowed", "model")
    assert refused.error["message"] == "This API key may not use the model 'large'."
    for answer in (caller.post("/v1/embeddings", {"model": "small", "input": "x"}), caller.get("/v1/usage")):
        assert (answer.status, answer.error["code"]) == (403, "route_not_allowed")


def test_a_key_has_limits_and_budgets_of_its_own(tenant: Caller, new_key: NewKey) -> None:
    own = {"limits": [{"scope": "key", "requests": 9, "per": "hour"}]}
    own |= {"budgets": [{"scope": "key", "requests": 1, "per": "day"}]}
    caller = holding(tenant, new_key(**own))
    assert caller.chat().status == 200
    spent = caller.chat()
    assert (spent.status, spent.headers["x-ratelimit-type"]) == (402, "Key")
    shown = caller.get("/v1/usage").json
    assert [limit["limit"] for limit in shown["limits"] if limit["scope"] == "key"] == [9]
    assert [budget["limit"] for budget in shown["budgets"] if budget["scope"] == "key"] == [1]
    assert holding(tenant, new_key()).chat().status == 200  # nobody else's


def test_restrictions_that_were_spoilt_by_hand_let_nobody_in(callers: Callers, tenant: Caller, new_key: NewKey) -> None:
    key = new_key(models=["small"])
    callers._table("KEYS").update_item(
        Key={"key_id": api_keys.parse(key)},
        UpdateExpression="SET restrictions = :r",
        ExpressionAttributeValues={":r": '{"models": "every"}'},
    )
    for answer in (holding(tenant, key).chat(), holding(tenant, key).get("/v1/models")):
        assert (answer.status, answer.error["code"]) == (403, "invalid_key_setup")


# -- its life ----------------------------------------------------------------------------------------------------------


def test_rotation_is_without_an_error_and_ends_the_old_secret(
    stack: DevStack, callers: Callers, tenant: Caller, new_key: NewKey
) -> None:
    key = new_key()
    id = api_keys.parse(key) or ""

    def ended_now() -> str:
        return on_table(callers, lambda table: table.rotate(id, "op", overlap_s=0)).key

    new = stack.run("key", "rotate", id, "--overlap", "1h", "--quiet").stdout.strip()
    for either in (key, new, key):
        assert holding(tenant, either).get("/v1/models").status == 200
    shown = json.loads(stack.run("key", "show", id, "--json").stdout)
    assert (shown["state"], shown["id"]) == ("rotating", id)
    # nobody remembers a secret that was never used: it ends at once
    last, newer = ended_now(), ended_now()
    assert holding(tenant, last).get("/v1/models").status == 401
    assert holding(tenant, newer).get("/v1/models").status == 200


def test_a_revoked_or_expired_key_is_refused(stack: DevStack, tenant: Caller, new_key: NewKey) -> None:
    revoked, short = new_key(), new_key(int(time.time()) + 2)
    stack.run("key", "revoke", revoked, "--yes")
    assert holding(tenant, revoked).get("/v1/models").status == 401
    caller = holding(tenant, short)
    while caller.get("/v1/models").status == 200:
        pass  # for a second: also what API Gateway has remembered ends with the key
    assert caller.get("/v1/models").status == 401


def test_no_secret_is_written_anywhere(stack: DevStack, callers: Callers, tenant: Caller, key: str) -> None:
    assert holding(tenant, key).chat().status == 200
    secret = key.rpartition("_")[2]
    places = {
        "keys": str(callers._table("KEYS").scan()["Items"]),
        "ledger": str(callers._table("LEDGER").scan()["Items"]),
        "log": stack.log(),
        "list": stack.run("key", "list", "--all", "--json").stdout,
    }
    assert secret not in "".join(places.values())
    assert api_keys.parse(key) in places["keys"]
    assert "hash" not in places["list"]


# -- tollgate serve ----------------------------------------------------------------------------------------------------


@pytest.fixture
def served(
    callers: Callers, tenant: Caller, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """`tollgate serve` with a policy file, and the stack's table of keys."""
    aws = {name: value for name, value in callers.environ.items() if name.startswith(("AWS_", "TOLLGATE_KEY"))}
    file = Path(policy(upstream, tmp_path_factory.mktemp("served")))
    file.write_text(file.read_text().replace("globex", tenant.tenant))
    with Served(str(file), upstream, **aws) as running:
        yield running


@pytest.mark.parametrize("prefix", ["", "/anthropic"])
def test_serve_takes_a_key_in_either_header_on_every_route(
    served: Served, tenant: Caller, new_key: NewKey, prefix: str
) -> None:
    caller = replace(tenant, url=served.url)
    key = new_key()
    for headers in ({"authorization": f"Bearer {key}"}, {"authorization": "", "x-api-key": key}):
        assert caller.get(f"{prefix}/v1/models", headers).status == 200
        assert caller.post(f"{prefix}/v1/chat/completions", HELLO, headers).status == 200
    assert caller.get(f"{prefix}/v1/models", {"authorization": "", "x-api-key": ""}).status == 401
    differ = caller.get(f"{prefix}/v1/models", {"authorization": f"Bearer {key}", "x-api-key": served.caller().token})
    assert differ.status == 401
    two = [("x-api-key", key), ("x-api-key", key), ("authorization", "")]
    assert caller.get(f"{prefix}/v1/models", two).status == 401
    assert key.rpartition("_")[2] not in served.output()


def test_made_up_keys_are_refused_without_a_look_after_a_while(served: Served, tenant: Caller, new_key: NewKey) -> None:
    caller, good = replace(tenant, url=served.url), new_key()
    assert caller.get("/v1/models", {"authorization": f"Bearer {good}"}).status == 200
    made_up = [api_keys.make(n.to_bytes(9, "big"), n.to_bytes(24, "big")) for n in range(25)]
    answers = [caller.get("/v1/models", {"authorization": "", "x-api-key": it}) for it in made_up]
    assert [answer.status for answer in answers][:15] == [401] * 15
    assert (answers[-1].status, answers[-1].headers["x-ratelimit-type"]) == (429, "Local-IP")
    assert caller.get("/v1/models", {"authorization": f"Bearer {good}"}).status == 200
