"""An OpenID provider that is not ours (npm's oidc-provider), its machines and their tokens."""

from __future__ import annotations

import base64
import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.functional.callers import Caller
from tests.functional.scripted import ScriptedUpstream
from tests.functional.test_serve import Served, policy
from tests.tokens import refused
from tollgate.authentication import authenticator
from tollgate.local.children import free_port

pytestmark = pytest.mark.oidc
MODULE = Path(__file__).parents[2] / ".tools/oidc/node_modules/oidc-provider/lib/index.js"


@contextmanager
def provider(port: int) -> Iterator[str]:
    """The issuer's URL, on loopback."""
    command = ["node", str(Path(__file__).with_name("provider.mjs")), str(MODULE), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def ask(issuer: str, client: str = "globex", alg: str = "RS256", scope: str = "tollgate/invoke") -> str:
    """An access token by client credentials."""
    fields = {"grant_type": "client_credentials", "resource": f"urn:tollgate:{alg}", "scope": scope}
    request = urllib.request.Request(f"{issuer}/token", urllib.parse.urlencode(fields).encode())
    basic = base64.b64encode(f"{client}:{client}-secret".encode()).decode()
    request.add_header("authorization", f"Basic {basic}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["access_token"])


def settings(issuer: str, **more: Any) -> dict[str, Any]:
    claims = {"tenant": "/org/id", "team": "https://partner.example/team", "user": "client_id"}
    return {
        "issuer": issuer, "jwks_url": f"{issuer}/jwks", "audiences": ["tollgate"], "tenants": ["globex"],
        "algorithms": ["RS256", "ES256", "EdDSA"], "claims": claims, "user_prefix": "partner:", **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with provider(free_port()) as url:
        yield url


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream().serve() as serving:
        yield serving


@pytest.mark.parametrize("alg", ["RS256", "ES256", "EdDSA"])
def test_its_access_tokens_are_verified_whatever_the_algorithm(issuer: str, alg: str) -> None:
    known = authenticator({"TOLLGATE_ISSUERS": json.dumps([settings(issuer)])})
    token = ask(issuer, alg=alg)
    header = jwt.get_unverified_header(token)
    assert (header["typ"], header["alg"]) == ("at+jwt", alg)
    who = known.verify(token.encode())
    assert (who.tenant, who.team, who.user, who.plan) == ("globex", "batch", "partner:globex", "")
    assert who.scopes == {"invoke", "models.read", "usage.read"}


def test_its_other_customers_are_nobody_here(issuer: str) -> None:
    known = authenticator({"TOLLGATE_ISSUERS": json.dumps([settings(issuer)])})
    assert refused(lambda: known.verify(ask(issuer, "acme").encode())) == "not a tenant of this issuer"
    elsewhere = authenticator({"TOLLGATE_ISSUERS": json.dumps([settings(issuer, audiences=["other"])])})
    assert refused(lambda: elsewhere.verify(ask(issuer).encode())) == "wrong audience"
    rsa_only = authenticator({"TOLLGATE_ISSUERS": json.dumps([settings(issuer, algorithms=["RS256"])])})
    assert refused(lambda: rsa_only.verify(ask(issuer, alg="ES256").encode())) == "algorithm is not allowed"


def test_a_container_serves_its_machines_beside_our_own_callers(
    issuer: str, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    issuers = json.dumps([settings(issuer)])
    with Served(policy(upstream, tmp_path), upstream, TOLLGATE_ISSUERS=issuers) as running:
        theirs = Caller(running.url, "globex", "partner:globex", ask(issuer))
        with upstream.play():
            assert theirs.chat().status == 200
            assert running.caller().chat().status == 200
        (record,) = [line for line in running.records("usage.close") if line["tenant"] == "globex"]
        assert (record["user"], record["team"]) == ("partner:globex", "batch")
        narrow = Caller(running.url, "globex", "x", ask(issuer, scope="tollgate/models.read"))
        assert (narrow.get("/v1/models").status, narrow.chat().status) == (200, 403)
        thief = Caller(running.url, "acme", "x", ask(issuer, "acme"))
        assert thief.chat().status == 401


def test_it_may_change_its_keys_and_be_away(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    with provider(port) as issuer:
        known = authenticator({"TOLLGATE_ISSUERS": json.dumps([settings(issuer)])})
        first, second = ask(issuer), ask(issuer)
        assert known.verify(first.encode()).tenant == "globex"
    assert known.verify(second.encode()).tenant == "globex", "the keys that are known go on serving"
    with provider(port) as issuer:  # with other keys
        fresh = authenticator({"TOLLGATE_ISSUERS": json.dumps([settings(issuer)])})
        assert fresh.verify(ask(issuer).encode()).tenant == "globex"
        assert refused(lambda: fresh.verify(second.encode())) == "unknown signing key"
    assert capsys.readouterr().out == ""
