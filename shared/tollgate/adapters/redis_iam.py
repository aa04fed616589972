"""Logging in to ElastiCache as an IAM principal (docs.aws.amazon.com, "Authenticating with IAM", ElastiCache).

The password is a presigned URL without its scheme. It is good for 15 minutes, so each login gets one of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from urllib.parse import quote, urlencode

from tollgate.adapters.aws import AwsError, CredentialSource
from tollgate.adapters.redis_connection import Login, RedisAddress
from tollgate.adapters.sigv4 import Credentials, presigned_url
from tollgate.ports import StoreUnavailable

LIFETIME_S = 900
NODE_ENDPOINTS = ("clustercfg.", "master.", "replica.")
"""What the TLS endpoints of node-based caches begin with; all others are serverless."""


def iam_login(address: RedisAddress, environ: Mapping[str, str]) -> Login:
    """Logins for an address with `iam`, with this process's own credentials."""
    cache, user = (address.iam or "").lower(), address.username or ""
    serverless = not address.host.startswith(NODE_ENDPOINTS)
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    source = CredentialSource(environ)

    async def login() -> tuple[str, str]:
        try:
            credentials = await source.get()
        except AwsError as error:
            raise StoreUnavailable(f"cannot log in to ElastiCache: {error}") from error
        return user, token(cache, user, serverless, region, credentials, time.time())

    return login


def token(cache: str, user: str, serverless: bool, region: str, credentials: Credentials, now_s: float) -> str:
    """The password with which `user` logs in to `cache` (its name, in lower case)."""
    query = {"Action": "connect", "User": user}
    if serverless:
        query["ResourceType"] = "ServerlessCache"
    url = f"https://{cache}/?{urlencode(query, quote_via=quote)}"
    signed = presigned_url(
        url, service="elasticache", region=region, credentials=credentials, now_s=now_s, expires_s=LIFETIME_S
    )
    return signed.removeprefix("https://")
