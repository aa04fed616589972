"""template.yaml: who may do what in a deployed stack, and what holds its data."""

from __future__ import annotations

import json

import pytest

from tests.functional.cloudformation import (
    FUNCTIONS,
    TEMPLATE,
    resources,
    statements,
    translated,
)
from tollgate.adapters import key_records
from tollgate.domain.identity import ADMIN, SCOPES
from tollgate.domain.issuer_settings import issuers
from tollgate.domain.issuers import Issuer
from tollgate.local import provision

ROOT = TEMPLATE.parent


@pytest.mark.parametrize("name", FUNCTIONS)
def test_roles_name_actions_and_resources(name: str) -> None:
    function = resources("AWS::Lambda::Function")[name]
    role = resources("AWS::IAM::Role")[function["Role"]["Fn::GetAtt"][0]]
    for statement in statements(role):
        assert statement["Effect"] == "Allow"
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            assert "*" not in action
        assert json.dumps(statement["Resource"]) not in ('"*"', '["*"]')


def test_only_the_proxy_reads_provider_keys_and_only_the_authorizer_what_api_keys_are_hashed_with() -> None:
    readers = {
        name: statement["Resource"]
        for name, role in resources("AWS::IAM::Role").items()
        for statement in statements(role)
        if "secretsmanager" in str(statement["Action"])
    }
    assert readers.keys() == {"ProxyRole", "AuthorizerRole"}
    assert readers["ProxyRole"]["Fn::Sub"].endswith(":secret:${SecretPrefix}/*")
    assert readers["AuthorizerRole"] == {"Ref": "KeyPepper"}
    (pepper,) = [it for name, it in resources("AWS::SecretsManager::Secret").items() if name == "KeyPepper"]
    assert "Name" not in pepper  # one that begins with the stack's name, not with the provider keys' prefix
    made = pepper["GenerateSecretString"]
    text = json.dumps(
        json.loads(made["SecretStringTemplate"]) | {made["GenerateStringKey"]: "x" * made["PasswordLength"]}
    )
    assert key_records.peppers_of(text).keys() == {"1"}
    assert translated()["Resources"]["KeyPepper"]["DeletionPolicy"] == "Retain"


def test_tables_are_on_demand_recoverable_encrypted_and_outlive_the_stack() -> None:
    tables = resources("AWS::DynamoDB::Table")
    assert tables.keys() == {"PolicyTable", "TenantsTable", "LimitsTable", "LedgerTable", "AuditTable", "KeysTable"}
    for name, table in tables.items():
        assert table["BillingMode"] == "PAY_PER_REQUEST"
        assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
        assert table["SSESpecification"] == {"SSEEnabled": True}
        assert translated()["Resources"][name]["DeletionPolicy"] == "Retain"
        assert translated()["Resources"][name]["UpdateReplacePolicy"] == "Retain"
        assert ("StreamSpecification" in table) == (name in ("PolicyTable", "TenantsTable", "KeysTable"))
        assert ("TimeToLiveSpecification" in table) == (name not in ("PolicyTable", "TenantsTable"))


def test_tables_have_the_keys_that_the_local_stack_creates() -> None:
    made: dict[str, dict[str, str]] = {}

    class Recorder:
        exceptions = None

        def create_table(self, TableName: str, KeySchema: list[dict[str, str]], **_: object) -> None:
            made[TableName] = {key["AttributeName"]: key["KeyType"] for key in KeySchema}

        def describe_table(self, TableName: str) -> dict[str, dict[str, str]]:
            return {"Table": {"TableStatus": "ACTIVE"}}

        def update_time_to_live(self, **_: object) -> None:
            pass

    for name, table in resources("AWS::DynamoDB::Table").items():
        keys = {key["AttributeName"]: key["KeyType"] for key in table["KeySchema"]}
        provision._table(Recorder(), name, keys)
        assert made[name] == keys


def test_access_tokens_carry_the_tenant_and_no_user_can_change_theirs() -> None:
    pool = resources("AWS::Cognito::UserPool")["UserPool"]
    assert pool["UserPoolTier"] != "LITE"
    assert pool["LambdaConfig"]["PreTokenGenerationConfig"]["LambdaVersion"] == "V3_0"
    assert pool["AdminCreateUserConfig"] == {"AllowAdminCreateUserOnly": True}
    for client in resources("AWS::Cognito::UserPoolClient").values():
        if client["AllowedOAuthFlows"] == ["client_credentials"]:
            assert client["GenerateSecret"] is True
            continue
        assert client["AllowedOAuthFlows"] == ["code"]
        assert client["GenerateSecret"] is False
        assert not any(name.startswith("custom:") for name in client["WriteAttributes"])
        # its tokens would let the user write attributes through Cognito's own API
        assert "aws.cognito.signin.user.admin" not in client["AllowedOAuthScopes"]


def test_people_sign_in_by_code_alone_and_their_refresh_tokens_rotate() -> None:
    pool = resources("AWS::Cognito::UserPool")["UserPool"]
    (client,) = (it for it in resources("AWS::Cognito::UserPoolClient").values() if it["AllowedOAuthFlows"] == ["code"])
    assert client["RefreshTokenRotation"]["Feature"] == "ENABLED"
    assert 0 < client["RefreshTokenRotation"]["RetryGracePeriodSeconds"] <= 60
    # Cognito takes rotation only without ALLOW_REFRESH_TOKEN_AUTH, and takes none named for several
    assert client["ExplicitAuthFlows"] == ["ALLOW_CUSTOM_AUTH"]
    challenges = {"DefineAuthChallenge", "CreateAuthChallenge", "VerifyAuthChallengeResponse"}
    assert not challenges & pool["LambdaConfig"].keys()


def test_the_authorizer_takes_the_pools_tokens_that_name_a_scope_of_the_resource_server() -> None:
    variables = resources("AWS::Lambda::Function")["AuthorizerFunction"]["Environment"]["Variables"]
    known = {"UserPool": "eu-central-1_AbC123", "AdminGroup": "admins", "Issuers": ""}
    (found,) = issuers(
        {
            name: known.get(value["Ref"], "") if isinstance(value, dict) else str(value)
            for name, value in variables.items()
        }
    )
    assert found.jwks_url == "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbC123/.well-known/jwks.json"
    assert (found.pool, found.admin_groups) == ("eu-central-1_AbC123", {"admins"})
    assert (found.clients, found.default_scopes, found.token_use) == ({"*"}, frozenset(), "access")
    assert found.algorithms == {"RS256"}


def test_the_proxy_may_ask_the_pool_who_administers() -> None:
    functions = resources("AWS::Lambda::Function")
    asked = ("TOLLGATE_USER_POOL_ID", "TOLLGATE_ADMIN_GROUPS")
    proxy, authorizer = (functions[f"{name}Function"]["Environment"]["Variables"] for name in ("Proxy", "Authorizer"))
    assert [proxy[name] for name in asked] == [authorizer[name] for name in asked]
    (policy,) = resources("AWS::IAM::Role")["ProxyRole"]["Policies"]
    (said,) = [it for it in policy["PolicyDocument"]["Statement"] if it.get("Sid") == "Administrators"]
    assert said["Resource"] == {"Fn::GetAtt": ["UserPool", "Arn"]}
    assert set(said["Action"]) == {"cognito-idp:AdminGetUser", "cognito-idp:AdminListGroupsForUser"}


def test_the_pools_scopes_are_those_that_are_enforced() -> None:
    (server,) = resources("AWS::Cognito::UserPoolResourceServer").values()
    prefix = f"{server['Identifier']}/"
    assert {scope["ScopeName"] for scope in server["Scopes"]} == SCOPES - {ADMIN}, "administrators are a group"
    offered = {prefix + scope["ScopeName"] for scope in server["Scopes"]}
    for client in resources("AWS::Cognito::UserPoolClient").values():
        assert {s for s in client["AllowedOAuthScopes"] if s.startswith(prefix)} == offered
    assert prefix == Issuer("x", "x").scope_prefix
