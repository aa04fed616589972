"""API Gateway's REQUEST authorizer: a bearer token in, a policy and the caller's identity out.

API Gateway caches the answer per `Authorization` header and applies it to every route, so the policy names the whole
stage, never the method that happened to come first, and the context carries the token's expiry for the proxy to
check again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from tollgate.adapters.telemetry import emf, log, service
from tollgate.authentication import authenticator
from tollgate.domain.identity import Identity, KeysUnavailable, Unauthorized
from tollgate.domain.keys import digest
from tollgate.services.authorize import Authenticator
from tollgate.wire.credentials import presented


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:
    """An Allow policy. Raises `Exception("Unauthorized")`, which API Gateway answers with 401; a Deny would be 403."""
    request = event["requestContext"]
    ip = request["identity"]["sourceIp"]
    try:
        identity = verifier().verify(presented(_authorization(event)), ip)
    except Unauthorized as refusal:
        _note("WARNING", "unauthorized", "Unauthorized", reason=refusal.reason, ip=ip, request=request.get("requestId"))
        raise Exception("Unauthorized") from None
    except KeysUnavailable as failure:
        _note("ERROR", "no signing keys", "KeysUnavailable", reason=str(failure), request=request.get("requestId"))
        raise
    return allow(identity, event["methodArn"])


def allow(identity: Identity, method_arn: str) -> dict[str, Any]:
    """The policy that lets `identity` call every route of the stage that `method_arn` belongs to."""
    # the ARN's own colons and slashes come first; behind them the caller's path may hold any
    arn, partition, execute_api, region, account, path = method_arn.split(":", 5)
    api, stage, _ = path.split("/", 2)
    return {
        # names the caller in access logs; a hash, because logs are no place for tokens or people's names
        "principalId": digest(f"{len(identity.tenant)}:{identity.tenant}{identity.user}"),
        "policyDocument": {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Action": "execute-api:Invoke",
                    "Effect": "Allow",
                    "Resource": ":".join((arn, partition, execute_api, region, account, f"{api}/{stage}/*/*")),
                }
            ],
        },
        "context": identity.to_context(),
    }


@cache
def verifier() -> Authenticator:
    """Built once per environment, from TOLLGATE_* variables; raises `ValueError` that names a bad one."""
    return authenticator(os.environ)


def _authorization(event: Mapping[str, Any]) -> list[bytes]:
    """The values of the `Authorization` headers."""
    many = event.get("multiValueHeaders") or {name: [value] for name, value in (event.get("headers") or {}).items()}
    values = [value for name, found in many.items() if name.lower() == "authorization" for value in found]
    return [str(value).encode("utf-8", "surrogatepass") for value in values]


def _note(level: str, message: str, metric: str, **fields: Any) -> None:
    log(level, message, **fields, **emf("Tollgate", {"service": service()}, **{metric: 1}))


if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    # Lambda gives its init phase a full CPU and does not count it as the first request's time.
    verifier().warm()
