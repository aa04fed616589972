"""template.yaml: a stack for each kind of limit store."""

from __future__ import annotations

from typing import Any

import pytest

from tests.functional.cloudformation import FUNCTIONS, deployed, references, source

STORES: dict[str, dict[str, str]] = {
    "dynamodb": {},
    "redis": {"StoreUrl": "rediss://cache.example:6379"},
    "redis in a VPC": {"StoreUrl": "redis://10.0.0.1:6379", "VpcId": "vpc-1", "SubnetIds": "subnet-1,subnet-2"},
    "elasticache-public": {},
    "elasticache-vpc": {},
    "elasticache-vpc in a VPC": {"VpcId": "vpc-1", "SubnetIds": "subnet-1,subnet-2"},
}
BILLED_BY_THE_HOUR = ("AWS::EC2::NatGateway", "AWS::ElastiCache::ServerlessCache", "AWS::WAFv2::WebACL")


def with_store(store: str) -> dict[str, Any]:
    return deployed(StoreType=store.split(" ")[0], **STORES[store])


def test_by_default_nothing_costs_money_while_nobody_calls() -> None:
    kinds = {resource["Type"] for resource in deployed().values()}
    assert kinds.isdisjoint(BILLED_BY_THE_HOUR)


@pytest.mark.parametrize("store", STORES)
def test_whatever_exists_names_only_what_exists(store: str) -> None:
    stack = with_store(store)
    known = stack.keys() | source()["Parameters"].keys()
    for name, resource in stack.items():
        unknown = {it for it in references(resource) if it not in known and not it.startswith("AWS::")}
        assert not unknown, name


@pytest.mark.parametrize(
    ("store", "url"),
    [
        ("dynamodb", {"Fn::Sub": "dynamodb://${LimitsTable}"}),
        ("redis", "rediss://cache.example:6379"),
        (
            "elasticache-public",
            {
                "Fn::Sub": "rediss://default.iam-user@${Cache.Endpoint.Address}:${Cache.Endpoint.Port}?cluster=yes&iam=${Cache}"
            },
        ),
        ("elasticache-vpc", {"Fn::Sub": "rediss://${Cache.Endpoint.Address}:${Cache.Endpoint.Port}?cluster=yes"}),
    ],
)
def test_all_functions_that_use_the_store_get_the_same_url(store: str, url: object) -> None:
    stack = with_store(store)
    for name in ("ProxyFunction", "MeteringFunction", "PublisherFunction"):
        variables = stack[name]["Properties"]["Environment"]["Variables"]
        assert variables["TOLLGATE_STORE_URL"] == url
        assert variables["TOLLGATE_LIMITS_TABLE"] == {"Ref": "LimitsTable"}  # the fallback


def test_the_policy_says_who_decides_while_redis_is_away_unless_the_stack_does() -> None:
    """The environment's word counts before the policy's, so there must be none."""

    def told(stack: dict[str, Any]) -> object:
        return stack["ProxyFunction"]["Properties"]["Environment"]["Variables"].get("REDIS_FAILURE_MODE")

    assert told(deployed()) in (None, {"Ref": "AWS::NoValue"})
    assert told(deployed(RedisFailureMode="closed")) == "closed"


def test_a_public_cache_has_no_vpc_and_lets_roles_in_by_iam() -> None:
    stack = with_store("elasticache-public")
    assert "Vpc" not in stack
    cache = stack["Cache"]["Properties"]
    assert cache["ConnectionType"] == "public"
    assert "SubnetIds" not in cache
    assert "SecurityGroupIds" not in cache
    for name in ("ProxyRole", "MeteringRole", "PublisherRole"):
        allowed = [
            it["Action"]
            for policy in stack[name]["Properties"]["Policies"]
            for it in policy["PolicyDocument"]["Statement"]
        ]
        assert "elasticache:Connect" in allowed


def test_a_cache_in_a_vpc_brings_the_way_out_that_providers_need_unless_there_is_one() -> None:
    made = with_store("elasticache-vpc")
    assert {"Vpc", "NatGateway", "DynamoDbEndpoint"} <= made.keys()
    assert made["Cache"]["Properties"]["SubnetIds"] == [{"Ref": "PrivateSubnetA"}, {"Ref": "PrivateSubnetB"}]
    given = with_store("elasticache-vpc in a VPC")
    assert {"Vpc", "NatGateway"}.isdisjoint(given)
    assert given["CacheSecurityGroup"]["Properties"]["VpcId"] == "vpc-1"


def test_outputs_lead_to_the_first_call() -> None:
    outputs = source()["Outputs"]
    assert [name for name in outputs if name.startswith("Step")] == [
        "Step1Environment", "Step2ProviderKey", "Step3Policy", "Step4Tenant", "Step5Token", "Step6FirstCall",
    ]  # fmt: skip
    assert {"ApiUrl", "UserPoolId", "MachineClientId", "PublicClientId", "TokenUrl"} <= outputs.keys()


def test_only_functions_in_a_vpc_may_make_network_interfaces() -> None:
    for store in STORES:
        stack = with_store(store)
        for name in FUNCTIONS:
            role = stack[name.replace("Function", "Role")]["Properties"]
            in_vpc = "VpcConfig" in stack[name]["Properties"]
            assert ("ManagedPolicyArns" in role) == in_vpc
            assert in_vpc == (
                ("VPC" in store or store == "elasticache-vpc")
                and name not in ("AlertsFunction", "AuthorizerFunction", "TokenTriggerFunction")
            )
