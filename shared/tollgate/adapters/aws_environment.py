"""What the environment says about AWS: as whom to sign, and where services are."""

from __future__ import annotations

from collections.abc import Mapping

from tollgate.adapters.sigv4 import Credentials

_SERVICE_IDS = {"secretsmanager": "SECRETS_MANAGER", "cognito-idp": "COGNITO_IDENTITY_PROVIDER"}
"""As the AWS SDKs spell them in variables, where it is not the service's own name."""


def environment_credentials(environ: Mapping[str, str]) -> Credentials | None:
    access, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if not access or not secret:
        return None
    return Credentials(access, secret, environ.get("AWS_SESSION_TOKEN", ""))


def region(environ: Mapping[str, str]) -> str:
    return environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def endpoint(service: str, region: str, environ: Mapping[str, str]) -> str:
    """Where a service is: AWS_ENDPOINT_URL_<SERVICE>, AWS_ENDPOINT_URL, LocalStack's LOCALSTACK_HOST, or AWS."""
    service_id = _SERVICE_IDS.get(service, service.upper())
    named = environ.get(f"AWS_ENDPOINT_URL_{service_id}") or environ.get("AWS_ENDPOINT_URL")
    if named:
        return named.rstrip("/")
    if host := environ.get("LOCALSTACK_HOST"):
        scheme = "https" if environ.get("USE_SSL", "").lower() in ("1", "true") else "http"
        return f"{scheme}://{host if ':' in host else host + ':' + environ.get('EDGE_PORT', '4566')}"
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"https://{service}.{region}.{suffix}"
