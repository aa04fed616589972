"""API Gateway's REQUEST authorizer: a token or API key in, a policy and the caller's identity out.

API Gateway caches the answer per `Authorization` header (per `x-api-key` on the routes below ``/anthropic``) and
applies it to every route, so the policy names all that the caller may use, never the method that happened to come
first, and the context carries the credential's expiry for the proxy to check again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from tollgate.adapters.telemetry import emf, log, service
from tollgate.authentication import authenticator
from tollgate.domain.identity import ADMIN, INVOKE, MODELS_READ, USAGE_READ, Identity, KeysUnavailable, Unauthorized
from tollgate.domain.keys import digest
from tollgate.services.authorize import Authenticator
from tollgate.wire.credentials import presented

EVERYTHING = ("*/*",)
"""What the scope `invoke` opens, administration excepted: unknown routes too, which get the proxy's 404."""
ROUTES = {
    MODELS_READ: ("GET/v1/models", "GET/v1/models/*", "GET/anthropic/v1/models", "GET/anthropic/v1/models/*"),
    USAGE_READ: ("GET/v1/usage", "GET/anthropic/v1/usage"),
    ADMIN: ("GET/admin/*",),
}
"""What each other scope opens, as method and path. The proxy checks scopes again: this spares it the others' calls."""


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:
    """An Allow policy. Raises `Exception("Unauthorized")`, which API Gateway answers with 401; a Deny would be 403."""
    request = event["requestContext"]
    ip = request["identity"]["sourceIp"]
    try:
        identity = verifier().verify(presented(_values(event, "authorization"), _values(event, "x-api-key")), ip)
    except Unauthorized as refusal:
        _note("WARNING", "unauthorized", "Unauthorized", reason=refusal.reason, ip=ip, request=request.get("requestId"))
        raise Exception("Unauthorized") from None
    except KeysUnavailable as failure:
        what = "credentials cannot be verified"
        _note("ERROR", what, "KeysUnavailable", reason=str(failure), request=request.get("requestId"))
        raise
    return allow(identity, event["methodArn"])


def allow(identity: Identity, method_arn: str) -> dict[str, Any]:
    """The policy that lets `identity` call what its scopes are for, on the stage that `method_arn` belongs to."""
    # the ARN's own colons and slashes come first; behind them the caller's path may hold any
    arn, partition, execute_api, region, account, path = method_arn.split(":", 5)
    api, stage, _ = path.split("/", 2)
    stage_arn = ":".join((arn, partition, execute_api, region, account, f"{api}/{stage}"))
    return {
        # names the caller in access logs; a hash, because logs are no place for tokens or people's names
        "principalId": digest(f"{len(identity.tenant)}:{identity.tenant}{identity.user}"),
        "policyDocument": {"Version": "2012-10-17", "Statement": _statements(identity.scopes, stage_arn)},
        "context": identity.to_context(),
    }


def _statements(scopes: frozenset[str], stage_arn: str) -> list[dict[str, Any]]:
    """What the scopes open and close. Nothing of the caller's own text is in it, whatever wildcards that holds."""
    if INVOKE in scopes:
        everything = _statement("Allow", stage_arn, EVERYTHING)
        return [everything] if ADMIN in scopes else [everything, _statement("Deny", stage_arn, ROUTES[ADMIN])]
    opened = [route for scope in sorted(scopes) for route in ROUTES[scope]]
    return [_statement("Allow", stage_arn, opened) if opened else _statement("Deny", stage_arn, EVERYTHING)]


def _statement(effect: str, stage_arn: str, routes: Sequence[str]) -> dict[str, Any]:
    resources = [f"{stage_arn}/{route}" for route in routes]
    return {"Action": "execute-api:Invoke", "Effect": effect, "Resource": resources}


@cache
def verifier() -> Authenticator:
    """Built once per environment, from TOLLGATE_* variables; raises `ValueError` that names a bad one."""
    return authenticator(os.environ)


def _values(event: Mapping[str, Any], wanted: str) -> list[bytes]:
    """The values of the headers of one name."""
    many = event.get("multiValueHeaders") or {name: [value] for name, value in (event.get("headers") or {}).items()}
    values = [value for name, found in many.items() if name.lower() == wanted for value in found]
    return [str(value).encode("utf-8", "surrogatepass") for value in values]


def _note(level: str, message: str, metric: str, **fields: Any) -> None:
    log(level, message, **fields, **emf("Tollgate", {"service": service()}, **{metric: 1}))


if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    # Lambda gives its init phase a full CPU and does not count it as the first request's time.
    verifier().warm()
