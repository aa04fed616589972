"""A Cognito user pool on moto's server: real HTTP, real RS256 keys, a real key set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
import jwt
from moto.server import ThreadedMotoServer
from moto.utilities.utils import load_resource

from tests.tokens import sign

REGION = "us-east-1"
PASSWORD = "Long-Enough-Secret-7"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": REGION}


@dataclass(frozen=True, slots=True)
class Pool:
    endpoint: str
    id: str
    client: str

    @property
    def env(self) -> dict[str, str]:
        """What the authorizer's environment says about this pool."""
        return {
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": self.endpoint,
            "TOLLGATE_USER_POOL_ID": self.id,
            "TOLLGATE_CLIENT_IDS": self.client,
        }

    def aws(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def login(self, user: str, tenant: str) -> dict[str, str]:
        """Create a user and log in: `AccessToken` and `IdToken` exactly as moto issues them (it runs no triggers)."""
        cognito = self.aws("cognito-idp")
        attributes = [{"Name": "custom:tenant", "Value": tenant}]
        cognito.admin_create_user(UserPoolId=self.id, Username=user, UserAttributes=attributes)
        cognito.admin_set_user_password(UserPoolId=self.id, Username=user, Password=PASSWORD, Permanent=True)
        parameters = {"USERNAME": user, "PASSWORD": PASSWORD}
        answer = cognito.initiate_auth(AuthFlow="USER_PASSWORD_AUTH", ClientId=self.client, AuthParameters=parameters)
        return answer["AuthenticationResult"]  # type: ignore[no-any-return]  # boto3 has no types

    def issue(self, access_token: str, **added: Any) -> str:
        """The same access token with claims added, signed with the pool's own key: what Cognito does after its
        pre-token-generation trigger has answered."""
        claims = jwt.decode(access_token, options={"verify_signature": False}) | added
        key = jwt.PyJWK(load_resource("cognitoidp/resources/jwks-private.json"), "RS256").key
        return sign({"alg": "RS256", "kid": "dummy"}, claims, key)


@contextmanager
def user_pool() -> Iterator[Pool]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        pool = Pool(f"http://{host}:{port}", "", "")
        cognito = pool.aws("cognito-idp")
        schema = [{"Name": "tenant", "AttributeDataType": "String", "Mutable": True}]
        pool_id = cognito.create_user_pool(PoolName=f"test-{time.time_ns()}", Schema=schema)["UserPool"]["Id"]
        flows = ["ALLOW_USER_PASSWORD_AUTH"]
        client = cognito.create_user_pool_client(UserPoolId=pool_id, ClientName="people", ExplicitAuthFlows=flows)
        yield Pool(pool.endpoint, pool_id, client["UserPoolClient"]["ClientId"])
    finally:
        server.stop()
