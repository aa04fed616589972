"""Who calls and what they may do, over HTTP: hostile tokens, several issuers, scopes, administrators."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.functional.callers import HELLO, Caller, Callers
from tests.functional.scripted import ScriptedUpstream
from tests.functional.stack import DevStack
from tests.functional.test_serve import CHAT, Served, policy
from tests.hostile_tokens import HOSTILE
from tests.issuer import Issuer, serving
from tests.tokens import claims, refused, token
from tollgate.authentication import authenticator

ADMIN_GROUP = "ops"


@pytest.fixture(scope="module")
def partner() -> Iterator[Issuer]:
    """An identity provider that may speak for globex only."""
    with serving() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def served(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory, partner: Issuer) -> Iterator[Served]:
    entry = partner.settings(tenants=["globex"], user_prefix="partner:", claims={"tenant": "/org/id"})
    with Served(
        policy(upstream, tmp_path_factory.mktemp("who")),
        upstream,
        TOLLGATE_ISSUERS=json.dumps([entry]),
        TOLLGATE_ADMIN_GROUPS=ADMIN_GROUP,
        TOLLGATE_FORGED_TOKENS_PER_MINUTE="1000000",  # what refuses here is the look at each token
    ) as running:
        yield running


def statuses(caller: Caller) -> dict[str, int]:
    """What the caller gets on each kind of route, on one credential, whose policy may be cached."""
    return {
        "invoke": caller.post(CHAT, HELLO).status,
        "models": caller.get("/v1/models").status,
        "one model": caller.get("/v1/models/small").status,
        "usage": caller.get("/v1/usage").status,
        "admin": caller.get("/admin/v1/status").status,
        "admin tenant": caller.get("/admin/v1/tenants/acme").status,
        "unknown": caller.get("/nothing").status,
    }


EVERYTHING = {"invoke": 200, "models": 200, "one model": 200, "usage": 200}
ORDINARY = EVERYTHING | {"admin": 403, "admin tenant": 403, "unknown": 404}
ADMINISTRATOR = EVERYTHING | {"admin": 200, "admin tenant": 200, "unknown": 404}
NOTHING = dict.fromkeys(ORDINARY, 403)


# -- hostile tokens ------------------------------------------------------------------------------------------------


def test_no_hostile_token_is_accepted_fetches_anything_or_breaks_anything(served: Served, partner: Issuer) -> None:
    good = served.caller()
    assert good.get("/v1/models").status == 200
    baits = [
        partner.token(headers={name: bait}, org={"id": "globex"})
        for name in ("jku", "x5u")
        for bait in (f"{partner.url}/bait", [f"{partner.url}/bait"])
    ]
    elsewhere = claims(iss=f"{partner.url}/bait", kid=f"{partner.url}/bait")
    asked = len(partner.asked)
    sent = [make() for make in HOSTILE.values()] + [*baits, token(elsewhere, headers={"kid": f"{partner.url}/bait"})]
    found = {}
    for credential in sent:
        if "\n" not in credential:  # no HTTP client sends it
            found[credential[:60]] = good.get("/v1/models", {"authorization": f"Bearer {credential}"}).status
    assert set(found.values()) == {401}, found
    assert len(partner.asked) == asked
    assert good.get("/v1/models").status == 200


def test_two_credentials_are_none(served: Served) -> None:
    good = served.caller()
    twice = [("authorization", f"Bearer {good.token}")] * 2
    assert good.get("/v1/models", twice).status == 401
    assert good.get("/v1/models", [*twice[:1], ("authorization", "Bearer x")]).status == 401
    assert good.get("/v1/models", [("authorization", f"Bearer {good.token}, Bearer {good.token}")]).status == 401


def test_a_refusal_says_nothing_of_its_reason(served: Served) -> None:
    bodies = {
        served.caller().get("/v1/models", {"authorization": f"Bearer {HOSTILE[name]()}"}).error["message"]
        for name in ("another's key", "wrong client", "no tenant", "kid is unknown", "alg none")
    }
    assert bodies == {"Missing or incorrect API key or token."}


# -- several issuers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ["RS256", "ES256", "EdDSA"])
def test_a_foreign_issuers_users_call_for_its_tenant_and_no_other(alg: str) -> None:
    with serving() as issuer:
        issuer.rotate(alg)
        entry = issuer.settings(tenants=["globex"], user_prefix="partner:", claims={"tenant": "/org/id"})
        known = authenticator({"TOLLGATE_ISSUERS": json.dumps([entry])})
        who = known.verify(issuer.token(org={"id": "globex"}, sub="bob").encode())
        assert (who.tenant, who.user) == ("globex", "partner:bob")
        for org in ({"id": "acme"}, {"id": "globex "}, {}, "globex", None):
            refused(lambda org=org: known.verify(issuer.token(org=org).encode()))
        assert issuer.asked == ["/jwks"]


def test_both_issuers_users_are_served_side_by_side(served: Served, partner: Issuer) -> None:
    ours = served.caller(user="bob")
    theirs = Caller(served.url, "globex", "partner:bob", partner.token(sub="bob", org={"id": "globex"}))
    assert statuses(ours) == statuses(theirs) == ORDINARY
    seen = theirs.get("/v1/usage").json
    assert (seen["tenant"], seen["user"]) == ("globex", "partner:bob")
    forged = Caller(served.url, "acme", "bob", partner.token(sub="bob", org={"id": "acme"}, tenant="acme"))
    assert forged.get("/v1/usage").status == 401


# -- scopes and administrators -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("tollgate/models.read", NOTHING | {"models": 200, "one model": 200, "unknown": 404}),
        ("tollgate/usage.read", NOTHING | {"usage": 200, "unknown": 404}),
        ("tollgate/else", NOTHING | {"unknown": 404}),
        ("tollgate/admin", NOTHING | {"unknown": 404}),
    ],
)
def test_a_container_enforces_scopes(served: Served, scope: str, expected: dict[str, int]) -> None:
    caller = served.caller(scope=scope)
    assert statuses(caller) == expected
    answer = caller.post(CHAT, HELLO)
    assert answer.error["code"] == "insufficient_scope"
    assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="invoke"'


def test_administrators_are_a_group_in_a_container(served: Served) -> None:
    admin = served.caller(user="root", **{"cognito:groups": [ADMIN_GROUP]})
    assert statuses(admin) == ADMINISTRATOR
    assert admin.get("/admin/v1/tenants/nobody").error["code"] == "tenant_not_found"
    assert admin.get("/admin/v1/tenants/client%23x").status == 404
    assert (admin.get("/admin/v1/tenants/%61cme").status, admin.get("/admin/v1/tenants/%2561cme").status) == (200, 404)
    assert admin.get("/admin/v1/else").status == 404
    assert admin.post("/admin/v1/status", {}).status == 405
    ordinary = served.caller()
    assert ordinary.post("/admin/v1/status", {}).status == 403
    assert ordinary.get("/admin/v1/else").status == 403


def test_one_cached_policy_is_right_on_every_route(stack: DevStack, callers: Callers) -> None:
    """Through the stand-in for API Gateway, which keeps the authorizer's answer and applies it to every route."""
    user = callers("pro")

    def holding(name: str, scope: str, **more: Any) -> Caller:
        return Caller(user.url, user.tenant, name, callers.token(user.tenant, name, scope=scope, **more))

    assert statuses(holding("a", "tollgate/invoke")) == ORDINARY
    stack.run("token", "--tenant", user.tenant, "--user", "b", "--admin")  # in the group, in the pool
    named = {"username": f"{user.tenant}/b", "cognito:groups": ["tollgate-admins"]}
    assert statuses(holding("b", "tollgate/invoke", **named)) == ADMINISTRATOR
    pretender = holding("z", "tollgate/invoke", **named | {"username": f"{user.tenant}/z"})
    assert statuses(pretender) == ORDINARY, "the token says so, the pool does not"
    assert statuses(holding("c", "tollgate/models.read")) == NOTHING | {"models": 200, "one model": 200}
    assert statuses(holding("d", "tollgate/usage.read", **{"cognito:groups": ["others"]})) == NOTHING | {"usage": 200}
    assert statuses(holding("e", "openid email")) == NOTHING
    assert statuses(holding("f", "tollgate/admin")) == NOTHING
    answer = holding("g", "tollgate/invoke").get("/admin/v1/status")
    assert answer.error["code"] == "permission_denied"


def test_the_local_stack_issues_administrators_and_narrow_tokens(stack: DevStack) -> None:
    words = ("token", "--tenant", "acme", "--user", "boss")
    admin = Caller(stack.url, "acme", "boss", stack.run(*words, "--admin").stdout.strip())
    assert admin.get("/admin/v1/tenants/acme").json["plan"] == "pro"
    demoted = Caller(stack.url, "acme", "ex", stack.run(*words[:-1], "ex", "--admin").stdout.strip())
    stack.run("user", "demote", "acme/ex")
    answer = demoted.get("/admin/v1/tenants/acme")
    assert (answer.status, answer.error["code"]) == (403, "insufficient_scope")
    assert demoted.get("/v1/models").status == 200
    narrow = Caller(stack.url, "acme", "tv", stack.run(*words[:-1], "tv", "--scope", "usage.read").stdout.strip())
    assert (narrow.get("/v1/usage").status, narrow.get("/v1/models").status) == (200, 403)
