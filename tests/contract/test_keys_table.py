"""API keys in DynamoDB: what operators write is what the authorizer reads."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.aws_fixture import ENVIRON, Recorder, aws_endpoint
from tollgate.adapters.aws import AwsClient, AwsError
from tollgate.adapters.aws_blocking import BlockingAws, CallFailed
from tollgate.adapters.http import HttpClient
from tollgate.adapters.key_records import DynamoKeyRecords, peppers_of
from tollgate.adapters.keys_table import MAX_SECRETS, KeysTable, Owner, state_of
from tollgate.adapters.peppers import Peppers
from tollgate.adapters.tenants_table import Conflict, NotFound
from tollgate.domain import api_keys
from tollgate.domain.identity import Identity, KeysUnavailable, Unauthorized
from tollgate.local import provision
from tollgate.ports import PolicyUnavailable
from tollgate.services.api_keys import KeyVerifier

PEPPER = "first pepper, which is long enough for anybody"


class Keys:
    """A table of keys, from both sides."""

    def __init__(self, environ: dict[str, str], runner: asyncio.Runner, http: HttpClient) -> None:
        self.environ = environ
        self.runner = runner
        self.now = time.time()
        self.dynamodb = Recorder(AwsClient.for_service("dynamodb", http, environ))
        self.manager = AwsClient.for_service("secretsmanager", http, environ)
        self.table = KeysTable(
            self.dynamodb,
            environ["TOLLGATE_KEYS_TABLE"],
            Peppers(self.manager, environ["TOLLGATE_KEY_PEPPER"]),
            lambda: self.now,
        )
        records = DynamoKeyRecords.from_env(environ)
        assert records is not None
        self.records = records

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    def holder(self, key: str) -> Identity:
        """Who holds it, as the authorizer finds out. Raises `Unauthorized`."""
        found = self.records.find(api_keys.parse(key) or "")
        if found is None:
            raise Unauthorized("unknown")
        return api_keys.holder(found, key, self.records.peppers(), self.now)

    def pepper(self, peppers: dict[str, str]) -> None:
        secret = {"SecretId": self.environ["TOLLGATE_KEY_PEPPER"], "SecretString": json.dumps(peppers)}
        self.run(self.manager.call("PutSecretValue", secret))


@pytest.fixture(scope="module")
def backend() -> Iterator[str]:
    with aws_endpoint() as url, pytest.MonkeyPatch.context() as patch:
        for name, value in (ENVIRON | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": url}).items():
            patch.setenv(name, value)
        provision._client.cache_clear()
        yield url
        provision._client.cache_clear()


@pytest.fixture
def keys(backend: str) -> Iterator[Keys]:
    environ = {**ENVIRON, "AWS_ENDPOINT_URL": backend, "TOLLGATE_KEYS_TABLE": f"keys-{time.time_ns()}"}
    environ |= provision.provision(environ).environ()
    with asyncio.Runner() as runner:

        async def start() -> HttpClient:
            return HttpClient()

        http = runner.run(start())
        made = Keys(environ, runner, http)
        made.pepper({"1": PEPPER})
        yield made
        runner.run(http.aclose())


def test_a_new_key_is_known_at_once_and_stored_nowhere(keys: Keys) -> None:
    owner = Owner("acme", "ann", "red")
    expires = int(keys.now) + 60
    item, key = keys.run(keys.table.create(owner, "op", note="ci", expires_at=expires, restrictions='{"models":["m"]}'))
    assert keys.holder(key) == Identity(
        "acme",
        "ann",
        team="red",
        key=item["key_id"],
        scopes=api_keys.SCOPES,
        expires_at=expires,
        restrictions='{"models":["m"]}',
    )
    kept = keys.run(keys.table.get(item["key_id"]))
    assert kept == item
    assert key.rpartition("_")[2] not in repr(kept)
    assert (kept["note"], kept["created_by"], state_of(kept, keys.now)) == ("ci", "op", "active")
    keys.now += 61
    assert state_of(kept, keys.now) == "expired"
    with pytest.raises(Unauthorized):
        keys.holder(key)


def test_a_key_without_a_user_is_its_own(keys: Keys) -> None:
    item, key = keys.run(keys.table.create(Owner("acme"), "op"))
    assert keys.holder(key).user == f"key-{item['key_id']}"
    assert keys.holder(key).expires_at == api_keys.NEVER


def test_lists_are_by_tenant(keys: Keys) -> None:
    made = {keys.run(keys.table.create(Owner(tenant), "op")).item["key_id"] for tenant in ("one", "two", "two")}
    assert len(keys.run(keys.table.list("one"))) == 1
    assert len(keys.run(keys.table.list("two"))) == 2
    assert keys.run(keys.table.list("nobody")) == []
    assert made <= {item["key_id"] for item in keys.run(keys.table.list())}


def test_rotating_keeps_the_old_secret_for_the_overlap_and_everything_else_for_good(keys: Keys) -> None:
    before, old = keys.run(keys.table.create(Owner("acme", "ann"), "op", restrictions='{"models":["m"]}'))
    after, new = keys.run(keys.table.rotate(before["key_id"], "op2", overlap_s=3600))
    assert (new != old, api_keys.parse(new), state_of(after, keys.now)) == (True, before["key_id"], "rotating")
    assert keys.holder(old)._replace(expires_at=keys.holder(new).expires_at) == keys.holder(new)
    assert keys.holder(new).restrictions == '{"models":["m"]}'
    assert keys.holder(old).expires_at == int(keys.now) + 3600
    keys.now += 3601
    with pytest.raises(Unauthorized):
        keys.holder(old)
    assert keys.holder(new).tenant == "acme"


def test_rotating_again_prolongs_nothing_and_drops_what_has_ended(keys: Keys) -> None:
    item, first = keys.run(keys.table.create(Owner("acme"), "op"))
    id = item["key_id"]
    keys.run(keys.table.rotate(id, "op", overlap_s=10))
    second = keys.run(keys.table.rotate(id, "op", overlap_s=1000))
    assert keys.holder(first).expires_at == int(keys.now) + 10
    assert len(second.item["secrets"]) == 3
    keys.now += 11
    assert len(keys.run(keys.table.rotate(id, "op", overlap_s=1)).item["secrets"]) == 3
    keys.now += 2
    for _ in range(MAX_SECRETS - 1):
        keys.run(keys.table.rotate(id, "op", overlap_s=900))
    with pytest.raises(Conflict, match="whose overlap has not ended"):
        keys.run(keys.table.rotate(id, "op", overlap_s=900))


def test_an_overlap_of_nothing_ends_the_old_secret(keys: Keys) -> None:
    item, old = keys.run(keys.table.create(Owner("acme"), "op"))
    new = keys.run(keys.table.rotate(item["key_id"], "op", overlap_s=0)).key
    with pytest.raises(Unauthorized):
        keys.holder(old)
    assert keys.holder(new).key == item["key_id"]


def test_finishing_ends_all_secrets_but_the_newest(keys: Keys) -> None:
    item, first = keys.run(keys.table.create(Owner("acme"), "op"))
    id = item["key_id"]
    with pytest.raises(Conflict, match="has one secret only"):
        keys.run(keys.table.finish(id, "op"))
    second, third = [keys.run(keys.table.rotate(id, "op", overlap_s=1000)).key for _ in range(2)]
    done = keys.run(keys.table.finish(id, "op2"))
    assert (state_of(done, keys.now), done["updated_by"], len(done["secrets"])) == ("active", "op2", 1)
    for old in (first, second):
        with pytest.raises(Unauthorized):
            keys.holder(old)
    assert keys.holder(third).key == id
    with pytest.raises(Conflict, match="has one secret only"):
        keys.run(keys.table.finish(id, "op"))
    keys.run(keys.table.rotate(id, "op", overlap_s=10))
    keys.now += 11
    with pytest.raises(Conflict, match="has one secret only"):
        keys.run(keys.table.finish(id, "op"))
    keys.run(keys.table.revoke(id, "op"))
    with pytest.raises(Conflict, match="is revoked"):
        keys.run(keys.table.finish(id, "op"))


def test_a_revoked_key_is_nobodys_and_cannot_be_rotated(keys: Keys) -> None:
    item, key = keys.run(keys.table.create(Owner("acme"), "op"))
    once = keys.run(keys.table.revoke(item["key_id"], "op"))
    assert keys.run(keys.table.revoke(item["key_id"], "other")) == once
    assert (once["updated_by"], state_of(once, keys.now)) == ("op", "revoked")
    with pytest.raises(Unauthorized):
        keys.holder(key)
    with pytest.raises(Conflict, match="is revoked"):
        keys.run(keys.table.rotate(item["key_id"], "op", overlap_s=1))
    with pytest.raises(NotFound):
        keys.run(keys.table.revoke("0" * 13, "op"))


def test_two_operators_at_once_lose_nothing(keys: Keys) -> None:
    """One rotates while the other revokes: whatever comes first, the key is revoked in the end."""
    item, _ = keys.run(keys.table.create(Owner("acme"), "op"))
    id = item["key_id"]
    stepped_in = False

    async def step_in(operation: str, payload: dict[str, Any]) -> None:
        nonlocal stepped_in
        if operation == "UpdateItem" and not stepped_in:
            stepped_in = True
            await keys.table.revoke(id, "other")

    keys.dynamodb.fault = step_in
    with pytest.raises(Conflict, match="is revoked"):
        keys.run(keys.table.rotate(id, "op", overlap_s=60))
    assert keys.run(keys.table.get(id))["updated_by"] == "other"


def test_peppers_can_be_added_and_each_key_keeps_its_own(keys: Keys) -> None:
    item, old = keys.run(keys.table.create(Owner("acme"), "op"))
    keys.pepper({"1": PEPPER, "2": "second" + PEPPER, "10": "tenth" + PEPPER})
    _, new = keys.run(keys.table.rotate(item["key_id"], "op", overlap_s=60))
    made = keys.run(keys.table.get(item["key_id"]))
    assert [secret["pepper"] for secret in made["secrets"]] == ["10", "1"]
    assert keys.holder(old).key == keys.holder(new).key


def test_a_pepper_is_renewed_without_an_error(keys: Keys) -> None:
    _, before = keys.run(keys.table.create(Owner("acme"), "op"))
    verifier = KeyVerifier(keys.records, remember_s=0, outage_s=0)
    assert verifier.warm()
    number = keys.run(keys.table.add_pepper())
    item, after = keys.run(keys.table.create(Owner("acme"), "op"))
    assert item["secrets"][0]["pepper"] == number == "2"
    assert len(keys.records.peppers()["2"]) == 64
    # a process from before, too
    assert verifier.verify(before, keys.now).tenant == verifier.verify(after, keys.now).tenant == "acme"
    with pytest.raises(Conflict, match="is needed by"):
        keys.run(keys.table.retire_pepper("1"))
    for use in keys.run(keys.table.peppers()):
        for id in use.keys if use.number == "1" else ():
            keys.run(keys.table.revoke(id, "op"))
    keys.run(keys.table.retire_pepper("1"))
    assert [use.number for use in keys.run(keys.table.peppers())] == ["2"]
    assert verifier.verify(after, keys.now).tenant == "acme"
    # what ended is 401 still, not 503
    late = KeyVerifier(keys.records, remember_s=0, outage_s=0)
    assert late.warm()
    with pytest.raises(Unauthorized):
        late.verify(before, keys.now)


def test_a_pepper_that_a_key_needs_and_that_is_gone_is_told_and_its_number_is_not_used_again(keys: Keys) -> None:
    keys.pepper({"1": PEPPER, "3": "third" + PEPPER})
    id = keys.run(keys.table.create(Owner("acme"), "op")).item["key_id"]
    keys.pepper({"1": PEPPER})
    use = {use.number: use for use in keys.run(keys.table.peppers())}["3"]
    assert (use.missing, use.newest, id in use.keys) == (True, False, True)
    with pytest.raises(NotFound):
        keys.run(keys.table.retire_pepper("3"))
    assert keys.run(keys.table.add_pepper()) == "4"


def test_of_two_who_change_the_peppers_at_once_one_is_told(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets Manager refuses another value with a token that it knows. moto takes it, so it is played here."""
    real, made = keys.manager.call, dict[str, str]()
    both_have_read, writes = asyncio.Barrier(2), 0

    async def call(operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        nonlocal writes
        if operation == "PutSecretValue":
            writes += 1
            if writes <= 2:
                await both_have_read.wait()
            if made.setdefault(payload["ClientRequestToken"], payload["SecretString"]) != payload["SecretString"]:
                raise AwsError("ResourceExistsException", "", 400, {})
        return await real(operation, payload, retry=retry)

    monkeypatch.setattr(keys.manager, "call", call)
    one, other = (Peppers(keys.manager, keys.environ["TOLLGATE_KEY_PEPPER"]) for _ in range(2))

    async def at_once() -> list[object]:
        return await asyncio.gather(one.add(beyond=0), other.add(beyond=0), return_exceptions=True)

    numbers, refusals = [], []
    for outcome in keys.run(at_once()):
        (refusals if isinstance(outcome, Conflict) else numbers).append(outcome)
    assert (numbers, len(refusals)) == (["2"], 1)
    assert keys.run(one.numbers()) == ["1", "2"]
    assert keys.run(other.add(beyond=0)) == "3"


@pytest.mark.parametrize(
    "secret", ["", "text", "[]", "{}", '{"1": "short"}', json.dumps({"one": PEPPER}), '{"1": 5}', None]
)
def test_a_secret_that_holds_no_peppers_lets_nobody_in(secret: object) -> None:
    with pytest.raises(KeysUnavailable) as failure:
        peppers_of(secret)
    assert PEPPER not in str(failure.value)


@pytest.mark.parametrize(
    "change",
    [{"tenant": {"N": "5"}}, {"user": {"S": ""}}, {"secrets": {"S": "x"}}, {"secrets": {"L": [{"S": "x"}]}},
     {"expires_at": {"S": "soon"}}, {"restrictions": {"L": []}}],
)  # fmt: skip
def test_a_record_that_was_spoilt_by_hand_lets_nobody_in(keys: Keys, change: dict[str, Any]) -> None:
    item, key = keys.run(keys.table.create(Owner("acme"), "op"))
    client = provision._client("dynamodb")
    whole = client.get_item(TableName=keys.environ["TOLLGATE_KEYS_TABLE"], Key={"key_id": {"S": item["key_id"]}})
    client.put_item(TableName=keys.environ["TOLLGATE_KEYS_TABLE"], Item=whole["Item"] | change)
    with pytest.raises(Unauthorized):
        keys.holder(key)


def test_what_cannot_be_reached_is_said_so(keys: Keys) -> None:
    nowhere = {**keys.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    records = DynamoKeyRecords.from_env(nowhere)
    assert records is not None
    with pytest.raises(KeysUnavailable, match="GetItem: ConnectionRefusedError"):
        records.find("x")
    with pytest.raises(KeysUnavailable):
        records.peppers()
    keys.environ["TOLLGATE_KEYS_TABLE"] = "nowhere"
    missing = DynamoKeyRecords.from_env(keys.environ)
    assert missing is not None
    with pytest.raises(KeysUnavailable, match="ResourceNotFoundException"):
        missing.find("x")
    table = KeysTable(keys.dynamodb, "t", Peppers(keys.manager, "no-such-secret"), time.time)
    with pytest.raises(PolicyUnavailable, match="ResourceNotFoundException"):
        keys.run(table.create(Owner("acme"), "op"))


def test_settings(keys: Keys) -> None:
    assert DynamoKeyRecords.from_env({}) is None
    with pytest.raises(ValueError, match="TOLLGATE_KEY_PEPPER"):
        DynamoKeyRecords.from_env({"TOLLGATE_KEYS_TABLE": "t"})
    with pytest.raises(CallFailed, match="no AWS credentials"):
        BlockingAws("dynamodb", {"AWS_ENDPOINT_URL": keys.environ["AWS_ENDPOINT_URL"]}).call("GetItem", {})
