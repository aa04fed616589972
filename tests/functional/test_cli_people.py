"""People and machines of a tenant: `tollgate user` and `tollgate client`, in a user pool on moto's server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from joserfc.jwk import RSAKey
from moto.utilities.utils import load_resource

from functions.token_trigger import handler as trigger
from tests.functional.shell import Shell


@pytest.fixture(scope="module", autouse=True)
def one_signing_key() -> Iterator[None]:
    """All of moto's user pools have the same; only, each works out its primes, which takes longer than most tests."""
    key = RSAKey.import_key(load_resource("cognitoidp/resources/jwks-private.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RSAKey, "import_key", lambda _: key)
        yield


@pytest.fixture
def cognito(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The client of a new user pool, which the environment names."""
    client = boto3.client("cognito-idp", endpoint_url=environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
    attributes = [{"Name": name, "AttributeDataType": "String", "Mutable": True} for name in ("tenant", "team")]
    pool = client.create_user_pool(PoolName="tests", Schema=attributes)["UserPool"]["Id"]
    client.create_group(UserPoolId=pool, GroupName="tollgate-admins")
    monkeypatch.setenv("TOLLGATE_USER_POOL_ID", pool)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")  # for the token trigger, as on Lambda
    client.pool = pool
    return client


@pytest.fixture
def acme(cognito: Any, applied: Shell) -> Shell:
    applied.ok("tenant", "create", "acme", "--plan", "pro")
    return applied


# -- people ----------------------------------------------------------------------------------------------------------


def test_a_user_with_an_address_is_invited(acme: Shell, cognito: Any) -> None:
    made = acme.ok("user", "create", "ann@example.com", "--tenant", "acme", "--team", "research", "--json").json
    assert (made["tenant"], made["team"], made["email"], made["password"]) == (
        "acme", "research", "ann@example.com", None,
    )  # fmt: skip
    found = cognito.admin_get_user(UserPoolId=cognito.pool, Username="ann@example.com")
    attributes = {entry["Name"]: entry["Value"] for entry in found["UserAttributes"]}
    assert attributes["custom:tenant"] == "acme"
    assert attributes["email_verified"] == "true"


def test_a_user_without_an_address_gets_a_password_once(acme: Shell) -> None:
    text = acme.ok("user", "create", "robot", "--tenant", "acme").out
    password = text.rpartition("first password, shown this once: ")[2].strip()
    assert len(password) == 22
    again = acme.ok("user", "create", "robot", "--tenant", "acme", "--json").json
    assert (again["user"], again["password"]) == ("robot", None)  # there already, and left alone
    assert password not in acme.ok("user", "show", "robot", "--json").out


def test_who_is_somebody_elses_is_not_taken(acme: Shell) -> None:
    acme.ok("tenant", "create", "globex", "--plan", "free")
    acme.ok("user", "create", "ann", "--tenant", "acme", "--no-invite")
    line = acme.fails(4, "user", "create", "ann", "--tenant", "globex", "--no-invite")
    assert line == "tollgate: there is a user 'ann' already, of tenant 'acme', with no email"
    assert (
        acme.fails(3, "user", "create", "bob", "--tenant", "acne")
        == "tollgate: there is no tenant 'acne': see `tollgate tenant list`"
    )


def test_the_life_of_a_user(acme: Shell, cognito: Any) -> None:
    acme.ok("user", "create", "ann", "--tenant", "acme", "--no-invite", "--admin")
    groups = cognito.admin_list_groups_for_user(UserPoolId=cognito.pool, Username="ann")["Groups"]
    assert [group["GroupName"] for group in groups] == ["tollgate-admins"]
    assert "groups     tollgate-admins" in acme.ok("user", "show", "ann").out
    for _ in range(2):  # doing it twice changes nothing
        assert acme.ok("user", "demote", "ann", "--json").json["groups"] == []
    assert acme.ok("user", "promote", "ann", "--json").json["groups"] == ["tollgate-admins"]
    assert acme.ok("user", "disable", "ann").out == "ann is disabled\n"
    assert acme.ok("user", "disable", "ann", "--json").json["enabled"] is False  # doing it twice changes nothing
    assert "status     disabled" in acme.ok("user", "show", "ann").out
    assert acme.ok("user", "enable", "ann").out == "ann is enabled\n"
    assert "add --yes" in acme.fails(2, "user", "delete", "ann")
    assert acme.ok("user", "delete", "ann", "--yes", "--json").json == {"deleted": "ann", "tenant": "acme"}
    for command in ("show", "disable", "enable", "delete", "promote", "demote"):
        assert acme.fails(3, "user", command, "ann") == "tollgate: there is no user 'ann': see `tollgate user list`"


def names_disabled(acme: Shell, tenant: str = "acme") -> set[str]:
    record = acme.ok("tenant", "show", tenant, "--json").json
    return {entry["user"] for entry in record.get("disabled_users", [])}


def test_whoever_is_disabled_is_refused_by_every_name(acme: Shell, cognito: Any) -> None:
    sub = acme.ok("user", "create", "ann", "--tenant", "acme", "--no-invite", "--json").json["sub"]
    assert len(sub) == 36
    acme.ok("user", "disable", "ann")
    assert names_disabled(acme) == {"ann", sub}, "of API keys, and of tokens"
    assert "\ndisabled ann\n" in acme.ok("tenant", "show", "acme").out
    line = acme.fails(4, "user", "create", "ann", "--tenant", "acme", "--no-invite")
    assert line == "tollgate: 'ann' is disabled: tollgate user enable ann --tenant acme"
    acme.ok("tenant", "set", "acme", "--unset", f"disabled_users[{sub}]")  # as any other list
    assert names_disabled(acme) == {"ann"}
    acme.ok("user", "enable", "ann", "--tenant", "acme")
    assert names_disabled(acme) == set()
    assert cognito.admin_get_user(UserPoolId=cognito.pool, Username="ann")["Enabled"] is True


def test_users_whom_the_pool_does_not_know_are_disabled_in_their_tenant(acme: Shell) -> None:
    acme.ok("tenant", "create", "globex", "--plan", "free")
    acme.ok("user", "create", "ci", "--tenant", "acme", "--no-invite")
    done = acme.ok("user", "disable", "ci", "--tenant", "globex")  # globex's is another one
    assert done.out == "ci of globex is disabled; the user pool does not know them\n"
    acme.ok("user", "disable", "partner:bob", "--tenant", "globex")
    assert (names_disabled(acme), names_disabled(acme, "globex")) == (set(), {"ci", "partner:bob"})
    assert acme.ok("user", "show", "ci", "--json").json["enabled"] is True
    again = acme.ok("user", "enable", "ci", "--tenant", "globex", "--json").json
    assert again == {"user": "ci", "tenant": "globex", "enabled": True}
    assert names_disabled(acme, "globex") == {"partner:bob"}
    assert "there is no tenant 'acne'" in acme.fails(3, "user", "disable", "bob", "--tenant", "acne")
    for name in ("", " bob", "bo\nb", "b" * 257):
        assert "expected a name" in acme.fails(2, "user", "disable", name, "--tenant", "globex")


def test_a_stack_without_a_user_pool_disables_its_issuers_users(
    applied: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied.ok("tenant", "create", "globex", "--plan", "free")
    monkeypatch.delenv("TOLLGATE_USER_POOL_ID", raising=False)
    applied.ok("user", "disable", "partner:bob", "--tenant", "globex")
    assert names_disabled(applied, "globex") == {"partner:bob"}
    applied.ok("user", "enable", "partner:bob", "--tenant", "globex")
    assert names_disabled(applied, "globex") == set()
    assert "TOLLGATE_USER_POOL_ID is not set" in applied.fails(6, "user", "disable", "partner:bob")


def test_what_the_deleted_hold_is_refused_for_as_long_as_it_could_be_good(acme: Shell) -> None:
    sub = acme.ok("user", "create", "ann", "--tenant", "acme", "--no-invite", "--json").json["sub"]
    acme.ok("user", "delete", "ann", "--yes")
    client = acme.ok("client", "create", "job", "--tenant", "acme", "--json").json["client_id"]
    acme.ok("client", "delete", "job", "--yes")
    found = acme.ok("tenant", "show", "acme", "--json").json["disabled_users"]
    assert {entry["user"] for entry in found} == {sub, client}
    for entry in found:
        ends = datetime.fromisoformat(entry["until"]) - datetime.now(UTC)
        assert timedelta(hours=23) < ends <= timedelta(days=1)
    acme.ok("user", "create", "ann", "--tenant", "acme", "--no-invite")  # another one of that name


def test_what_cannot_be_entered_is_done_in_the_pool_all_the_same(
    acme: Shell, cognito: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tollgate.adapters.tenants_table import TenantsTable
    from tollgate.ports import PolicyUnavailable

    async def down(*_: object) -> None:
        raise PolicyUnavailable("DynamoDB cannot be reached")

    acme.ok("user", "create", "ann", "--tenant", "acme", "--no-invite")
    monkeypatch.setattr(TenantsTable, "disable", down)
    monkeypatch.setattr(TenantsTable, "enable", down)
    assert acme.fails(6, "user", "disable", "ann") == "tollgate: DynamoDB cannot be reached"
    assert cognito.admin_get_user(UserPoolId=cognito.pool, Username="ann")["Enabled"] is False
    acme.fails(6, "user", "enable", "ann")
    assert cognito.admin_get_user(UserPoolId=cognito.pool, Username="ann")["Enabled"] is False


def test_users_are_listed_by_tenant(acme: Shell) -> None:
    acme.ok("tenant", "create", "globex", "--plan", "free")
    assert acme.ok("user", "list").out == "no users\n"
    for name, tenant in (("cid", "globex"), ("bob", "acme"), ("ann", "acme")):
        acme.ok("user", "create", name, "--tenant", tenant)
    found = acme.ok("user", "list", "--tenant", "acme", "--json").json["users"]
    assert [one["user"] for one in found] == ["ann", "bob"]
    lines = acme.ok("user", "list").out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["ann", "acme"], ["bob", "acme"], ["cid", "globex"]]
    assert len(acme.ok("user", "list", "--limit", "2", "--json").json["users"]) == 2


# -- machines --------------------------------------------------------------------------------------------------------


def claims(client_id: str) -> dict[str, str]:
    """What the token trigger says of a machine that asks for a token."""
    event = {
        "version": "3",
        "triggerSource": "TokenGeneration_ClientCredentials",
        "callerContext": {"clientId": client_id},
        "request": {},
    }
    trigger._dynamodb.cache_clear()
    return trigger.claims_for(event, trigger._lookup, time.time_ns() // 1000)


def test_a_client_acts_for_its_tenant(acme: Shell, cognito: Any) -> None:
    made = acme.ok("client", "create", "billing-job", "--tenant", "acme", "--team", "finance", "--json").json
    found = cognito.describe_user_pool_client(UserPoolId=cognito.pool, ClientId=made["client_id"])["UserPoolClient"]
    assert found["ClientSecret"] == made["client_secret"]
    assert (found["AllowedOAuthFlows"], found["ClientName"]) == (["client_credentials"], "acme.billing-job")
    assert claims(made["client_id"]) == {"tenant": "acme", "plan": "pro", "team": "finance"}

    again = acme.ok("client", "create", "billing-job", "--tenant", "acme", "--team", "finance", "--json").json
    assert (again["client_id"], again["client_secret"]) == (made["client_id"], None)
    assert "of team 'finance'" in acme.fails(4, "client", "create", "billing-job", "--tenant", "acme")
    listed = acme.ok("client", "list").out
    assert made["client_id"] in listed
    assert made["client_secret"] not in listed


def test_a_disabled_client_gets_no_tokens(acme: Shell) -> None:
    made = acme.ok("client", "create", "job", "--tenant", "acme", "--json").json["client_id"]
    acme.ok("user", "disable", made, "--tenant", "acme")
    with pytest.raises(trigger.NoToken) as refused:
        claims(made)
    assert refused.value.reason == "the user is disabled"
    acme.ok("user", "enable", made, "--tenant", "acme")
    assert claims(made)["tenant"] == "acme"


@pytest.mark.parametrize(("until", "refused"), [("2026-01-01", False), ("2999-01-01T00:00:00+01:00", True)])
def test_a_client_is_disabled_until_the_moment_that_its_entry_names(acme: Shell, until: str, refused: bool) -> None:
    made = acme.ok("client", "create", "job", "--tenant", "acme", "--json").json["client_id"]
    acme.ok("tenant", "set", "acme", f"disabled_users+={{user: {made}, until: {until}}}")
    with pytest.raises(trigger.NoToken) if refused else nullcontext():
        assert claims(made)["tenant"] == "acme"


def test_a_secret_is_rotated_with_an_overlap(acme: Shell) -> None:
    made = acme.ok("client", "create", "job", "--tenant", "acme", "--json").json
    assert "nothing to finish" in acme.fails(4, "client", "rotate", "job", "--finish", "--yes")
    rotated = acme.ok("client", "rotate", "job", "--json").json
    assert rotated["client_id"] == made["client_id"]
    assert rotated["client_secret"] not in (None, made["client_secret"])
    assert "two secrets already" in acme.fails(4, "client", "rotate", "job")
    assert "add --yes" in acme.fails(2, "client", "rotate", "job", "--finish")
    acme.ok("client", "rotate", "job", "--finish", "--yes")
    acme.ok("client", "rotate", made["client_id"])  # there is room for another; the id names it, too


def test_a_deleted_client_gets_no_tokens(acme: Shell, cognito: Any) -> None:
    made = acme.ok("client", "create", "job", "--tenant", "acme", "--json").json
    assert "add --yes" in acme.fails(2, "client", "delete", "job")
    assert acme.ok("client", "delete", "job", "--yes").out == "the client job of acme is deleted\n"
    with pytest.raises(trigger.NoToken):
        claims(made["client_id"])
    with pytest.raises(cognito.exceptions.ResourceNotFoundException):
        cognito.describe_user_pool_client(UserPoolId=cognito.pool, ClientId=made["client_id"])
    assert (
        acme.fails(3, "client", "delete", "job", "--yes")
        == "tollgate: there is no client 'job': see `tollgate client list`"
    )


def test_a_client_that_cannot_be_entered_does_not_stay(
    acme: Shell, cognito: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tollgate.adapters.client_items import ClientItems
    from tollgate.ports import PolicyUnavailable

    async def down(*_: object) -> None:
        raise PolicyUnavailable("DynamoDB cannot be reached")

    monkeypatch.setattr(ClientItems, "add", down)
    acme.fails(6, "client", "create", "job", "--tenant", "acme")
    assert cognito.list_user_pool_clients(UserPoolId=cognito.pool, MaxResults=60)["UserPoolClients"] == []


def test_a_client_of_the_template_is_assigned(acme: Shell, cognito: Any) -> None:
    made = cognito.create_user_pool_client(UserPoolId=cognito.pool, ClientName="machine")["UserPoolClient"]["ClientId"]
    assert "no app client 'nobody'" in acme.fails(3, "client", "assign", "nobody", "--tenant", "acme")
    acme.ok("client", "assign", made, "--tenant", "acme")
    assert claims(made)["tenant"] == "acme"
    acme.ok("client", "assign", made, "--tenant", "acme")
    acme.ok("tenant", "create", "globex", "--plan", "free")
    assert "acts for a tenant already" in acme.fails(4, "client", "assign", made, "--tenant", "globex")


def test_a_name_may_be_used_by_several_tenants(acme: Shell) -> None:
    acme.ok("tenant", "create", "globex", "--plan", "free")
    for tenant in ("acme", "globex"):
        acme.ok("client", "create", "job", "--tenant", tenant)
    assert "several tenants have a client 'job' (acme, globex): add --tenant" in acme.fails(
        4, "client", "rotate", "job"
    )
    assert acme.ok("client", "rotate", "job", "--tenant", "globex", "--json").json["tenant"] == "globex"
    assert acme.ok("tenant", "list", "--json").json["tenants"][0].keys() >= {"tenant"}  # they are no tenants
    assert len(acme.ok("tenant", "list", "--json").json["tenants"]) == 2
