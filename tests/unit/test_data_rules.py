"""Data rules: whatever the policy and the rules say, a call is only ever given routes that break none of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.domain.data_rules import place
from tollgate.domain.identity import Identity
from tollgate.domain.limits import BudgetTake
from tollgate.domain.policy import Policy, RouteSpec, TenantRecord, UpstreamSpec
from tollgate.domain.policy_check import check, check_record
from tollgate.domain.policy_document import Document, PolicyErrors
from tollgate.services.account import Account
from tollgate.services.admit import Admitter, Grant, Request
from tollgate.services.directory import SPEAKS, Directory
from tollgate.wire.errors import Api, ApiError

REGIONS = ("eu-central-1", "eu-west-1", "us-east-1", "us", "eu")
BASES = {"openai": "https://one.example/v1", "anthropic": "https://two.example/v1"}


class OneTenant:
    """A policy, and one tenant of it."""

    def __init__(self, policy: Policy, record: TenantRecord) -> None:
        self._policy, self._record = policy, record

    async def policy(self) -> Policy:
        return self._policy

    async def tenant(self, name: str) -> TenantRecord | None:
        return self._record


class Spent:
    async def spent(self, takes: Sequence[BudgetTake]) -> list[int]:
        return [0] * len(takes)


def a_policy(upstreams: Mapping[str, Any], route: Sequence[Mapping[str, Any]]) -> Policy:
    models = {"small": {"route": list(route)}, "other": {"route": list(route)}}
    plans = {"plan": {"models": ["small", "other"]}}
    return check(Document({"version": 1, "upstreams": upstreams, "models": models, "plans": plans}))


def a_record(data: Mapping[str, Any], teams: Mapping[str, Any]) -> TenantRecord:
    value = {"tenant": "acme", "plan": "plan", "data": data, "teams": teams}
    return check_record(TenantRecord, Document(value))


async def ask(policy: Policy, record: TenantRecord, team: str, api: Api, **request: Any) -> list[Grant | ApiError]:
    """Twice, because the second call finds what the first has compiled."""
    source = OneTenant(policy, record)
    directory = Directory(source, lambda: 10**15, versioned=lambda: True)
    store = MemoryLimitStore(lambda: 10**15)
    admitter = Admitter(store, Spent(), directory, store, lambda: 10**15)
    answers: list[Grant | ApiError] = []
    for id in ("a", "b"):
        try:
            asked = Request(id, api, "small", 1, 1, 10**6, **request)
            answers.append(await admitter.admit(Identity("acme", "alice", team=team), "192.0.2.1", asked, 1))
        except ApiError as error:
            answers.append(error)
    return answers


upstreams = st.builds(
    lambda api, region, phi, silent: (
        {"api": api, "phi": phi, "no_content_logging": silent}
        | ({"base_url": BASES[api], "secret": "s"} if api in BASES else {})
        | ({"region": region or "ap-south-1"} if region or api == "bedrock" else {})
    ),
    st.sampled_from(["openai", "anthropic", "bedrock"]),
    st.sampled_from(["", *REGIONS]),
    st.booleans(),
    st.booleans(),
)
rules = st.fixed_dictionaries(
    {},
    optional={
        "phi": st.booleans(),
        "no_content_logging": st.booleans(),
        "regions": st.lists(st.sampled_from(REGIONS), min_size=1, max_size=2),
        "models": st.lists(st.sampled_from(["small", "other"]), min_size=1, max_size=2),
    },
)


def fulfils(rule: Mapping[str, Any], upstream: Mapping[str, Any]) -> bool:
    """The rules once more, said in another way."""
    region = upstream.get("region")
    regions = rule.get("regions")
    at_home = regions is None or (region is not None and any(f"{region}-".startswith(f"{r}-") for r in regions))
    phi = upstream["phi"] or not rule.get("phi")
    return at_home and phi and (upstream["no_content_logging"] or not rule.get("no_content_logging"))


@given(
    st.lists(upstreams, min_size=1, max_size=4), rules, rules, st.booleans(), st.sampled_from(["openai", "anthropic"])
)
def test_no_call_is_ever_given_a_route_that_breaks_a_rule(
    found: list[dict[str, Any]], tenant: dict[str, Any], team: dict[str, Any], in_team: bool, api: Api
) -> None:
    named = {f"u{i}": upstream for i, upstream in enumerate(found)}
    policy = a_policy(named, [{"upstream": name, "model": "m"} for name in named])
    record = a_record(tenant, {"research": {"data": team}})
    applying = [tenant, team] if in_team else [tenant]
    spoken = [name for name, upstream in named.items() if SPEAKS[upstream["api"]] == api]
    allowed = [name for name in spoken if all(fulfils(rule, named[name]) for rule in applying)]
    named_model = all("small" in rule.get("models", ["small"]) for rule in applying)
    for answer in asyncio.run(ask(policy, record, "research" if in_team else "sales", api)):
        if not spoken:
            assert isinstance(answer, ApiError)
            assert (answer.status, answer.code) == (400, "model_not_supported")
        elif named_model and allowed:
            assert isinstance(answer, Grant)
            assert [route.upstream for route in answer.entitlement.routes] == allowed
        else:
            assert isinstance(answer, ApiError)
            assert (answer.status, answer.code) == (403, "data_rule")


@pytest.mark.parametrize(
    ("api", "model", "region", "own", "expected"),
    [
        ("openai", "gpt", None, None, ""),
        ("openai", "gpt", "eu-west-1", None, "eu-west-1"),
        ("openai", "gpt", "eu-west-1", "us-east-1", "us-east-1"),
        ("bedrock", "openai.gpt-oss-20b-1:0", "eu-central-1", None, "eu-central-1"),
        ("bedrock", "eu.anthropic.claude", "eu-central-1", None, "eu"),
        ("bedrock", "apac.amazon.nova", "ap-south-1", None, "ap"),
        ("bedrock", "global.anthropic.claude", "eu-central-1", None, ""),
        ("bedrock", "global.anthropic.claude", "eu-central-1", "eu", "eu"),
        ("bedrock", "arn:aws:bedrock:eu-central-1:1:inference-profile/us.meta.llama", "eu-central-1", None, "us"),
        ("bedrock", "arn:aws:bedrock:eu-central-1:1:application-inference-profile/x1", "eu-central-1", None, ""),
    ],
)
def test_where_a_model_computes(api: Any, model: str, region: str | None, own: str | None, expected: str) -> None:
    upstream = UpstreamSpec(api=api, region=region)
    assert place(RouteSpec(upstream="u", model=model, region=own), upstream) == expected


def test_what_asks_the_provider_to_keep_content_is_refused() -> None:
    named = {"u": {"api": "openai", "base_url": BASES["openai"], "secret": "s", "no_content_logging": True}}
    policy = a_policy(named, [{"upstream": "u", "model": "m"}])
    for data, status in (({"no_content_logging": True}, 403), ({}, 200)):
        for answer in asyncio.run(ask(policy, a_record(data, {}), "", "openai", retained="prompt_cache_retention")):
            assert (answer.status if isinstance(answer, ApiError) else 200) == status


def test_models_that_the_rules_forbid_are_not_listed() -> None:
    named = {"u": {"api": "openai", "base_url": BASES["openai"], "secret": "s", "region": "us"}}
    policy = a_policy(named, [{"upstream": "u", "model": "m"}])
    record = a_record({"models": ["other"]}, {"europe": {"data": {"regions": ["eu"]}}})
    directory = Directory(OneTenant(policy, record), lambda: 10**15, versioned=lambda: True)
    account = Account(directory, Spent(), MemoryLimitStore(), lambda: 10**15)
    assert asyncio.run(account.models(Identity("acme", "alice"))) == ["other"]
    assert asyncio.run(account.models(Identity("acme", "alice", team="europe"))) == []


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"phi": "yes"}, "expected true or false"),
        ({"phi": 1}, "expected true or false"),
        ({"regions": []}, "expected at least 1 entry"),
        ({"regions": ["EU"]}, "expected a name"),
        ({"models": []}, "expected at least 1 entry"),
        ({"fi": True}, "is not known"),
    ],
)
def test_rules_that_cannot_be_read_are_refused(data: Mapping[str, Any], problem: str) -> None:
    with pytest.raises(PolicyErrors) as caught:
        a_record(data, {})
    assert problem in str(caught.value)
