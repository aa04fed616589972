"""AWS's JSON services (DynamoDB, SQS, EventBridge ...), signed and called over the gateway's own HTTP client.

boto3 costs 120 ms to import and 220 ms for its first client, and blocks a thread per call; these few services need
one POST each. Credentials come from the environment (as on Lambda), or from botocore's resolver (profiles, SSO,
container and instance roles), which is imported only then, on a thread.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import orjson

from tollgate.adapters.aws_environment import endpoint, environment_credentials
from tollgate.adapters.aws_environment import region as region_of
from tollgate.adapters.http import HttpClient
from tollgate.adapters.http_message import TimedOut, Timeouts, UpstreamError
from tollgate.adapters.server_clock import ServerClock
from tollgate.adapters.sigv4 import Credentials, signed_headers

TIMEOUTS = Timeouts(connect=1.0, first_byte=2.0, idle=2.0, total=5.0)
"""Where a caller waits for the answer, or a retry is at hand."""
PATIENT = Timeouts(connect=5.0, first_byte=15.0, idle=15.0, total=30.0)
"""Where an operator would rather wait than try again."""
MAX_ANSWER = 20 * 1024 * 1024
"""Bytes; DynamoDB's largest answer is 16 MB."""
TRIES = 4
BACKOFF = 0.05
"""Seconds; doubled at each try, with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter")."""
CREDENTIALS_CHECK = 60.0
"""Seconds after which botocore is asked again; it renews credentials 10 to 15 minutes before they expire."""

_PROTOCOLS = {
    "dynamodb": ("DynamoDB_20120810", "1.0"),
    "secretsmanager": ("secretsmanager", "1.1"),
    "sqs": ("AmazonSQS", "1.0"),
    "events": ("AWSEvents", "1.1"),
    "cognito-idp": ("AWSCognitoIdentityProviderService", "1.1"),
}
_RETRYABLE = frozenset(
    {
        "ProvisionedThroughputExceededException", "ThrottlingException", "ThrottledException", "Throttling",
        "RequestThrottled", "RequestThrottledException", "TooManyRequestsException", "RequestLimitExceeded",
        "LimitExceededException", "InternalServerError", "InternalFailure", "ServiceUnavailable",
        "TransactionInProgressException",
    }
)  # fmt: skip


class AwsError(Exception):
    """A service's refusal. `body` is its whole JSON answer (`Item`, `CancellationReasons` ...)."""

    def __init__(self, code: str, message: str, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.status = status
        self.body = body

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later, because it was throttled or the service failed."""
        return self.status >= 500 or self.code in _RETRYABLE


class NoCredentials(AwsError):
    """Nobody to sign as."""

    def __init__(self, reason: str = "set AWS_PROFILE or AWS_ACCESS_KEY_ID") -> None:
        super().__init__("NoCredentials", f"no AWS credentials: {reason}", 401, {})


class CredentialSource:
    """The environment's credentials, else botocore's, which it renews before they expire."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._resolver = Resolver(environ.get("AWS_PROFILE"))
        self._found: Credentials | None = None
        self._check_at = 0.0
        self._first = asyncio.Lock()

    async def get(self) -> Credentials:
        """Raises `NoCredentials`."""
        given = environment_credentials(self._environ)
        if given is not None:
            return given
        if self._found is None:
            async with self._first:
                return self._found or await self._ask()
        if time.monotonic() >= self._check_at:
            return await self._ask()
        return self._found

    async def _ask(self) -> Credentials:
        self._check_at = time.monotonic() + CREDENTIALS_CHECK  # first: the others go on with what there is
        self._found = await asyncio.get_running_loop().run_in_executor(None, self._resolver)
        return self._found


def blocking_credentials(environ: Mapping[str, str]) -> Credentials:
    """The same, once, where there is no event loop to block. Raises `NoCredentials`."""
    return environment_credentials(environ) or Resolver(environ.get("AWS_PROFILE"))()


class Resolver:
    """botocore's chain: profiles, SSO, container and instance roles. It may call out, so it runs on a thread."""

    def __init__(self, profile: str | None) -> None:
        self._profile = profile
        self._credentials: Any = None

    def __call__(self) -> Credentials:
        import botocore.exceptions
        import botocore.session

        try:
            if self._credentials is None:
                self._credentials = botocore.session.Session(profile=self._profile).get_credentials()
            if self._credentials is None:
                raise NoCredentials
            frozen = self._credentials.get_frozen_credentials()
        except botocore.exceptions.BotoCoreError as error:
            raise NoCredentials(str(error)) from error
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token or "")


class AwsClient:
    """One service in one region. Belongs to one event loop, like its HTTP client."""

    def __init__(
        self,
        http: HttpClient,
        service: str,
        region: str,
        endpoint: str,
        target_prefix: str,
        json_version: str,
        credentials: CredentialSource,
        timeouts: Timeouts = TIMEOUTS,
    ) -> None:
        self._http = http
        self._service = service
        self._region = region
        self._url = endpoint + "/"
        self._target = target_prefix
        self._content_type = f"application/x-amz-json-{json_version}".encode()
        self._credentials = credentials
        self._timeouts = timeouts
        self._clock = ServerClock()

    @property
    def clock_offset_us(self) -> int:
        """The service's clock minus ours (µs), from the `Date` of its answers; wrong by about a second at most."""
        return self._clock.offset_us

    @property
    def clock_known(self) -> bool:
        """Whether the service has told its time since our clock was last set."""
        return self._clock.known(time.time_ns() // 1000, int(time.monotonic() * 1e6))

    @classmethod
    def for_service(
        cls, service: str, http: HttpClient, environ: Mapping[str, str], timeouts: Timeouts = TIMEOUTS
    ) -> AwsClient:
        """`service`: dynamodb, secretsmanager, sqs, events or cognito-idp."""
        region = region_of(environ)
        prefix, version = _PROTOCOLS[service]
        source = CredentialSource(environ)
        return cls(http, service, region, endpoint(service, region, environ), prefix, version, source, timeouts)

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        """One operation. `retry`: call again when throttled, on the service's own failure and on lost connections, a
        few times; for what may be done twice without harm. Not after a timeout: the caller has waited long enough.
        Raises `AwsError`, `UpstreamError`."""
        body = orjson.dumps(payload)
        tries = TRIES if retry else 1
        for attempt in range(tries):
            try:
                return await self._once(operation, body)
            except (AwsError, UpstreamError) as error:
                hopeless = isinstance(error, TimedOut) or (isinstance(error, AwsError) and not error.retryable)
                if hopeless or attempt + 1 == tries:
                    raise
                await asyncio.sleep(random.random() * BACKOFF * 2**attempt)
        raise AssertionError("unreachable")

    async def _once(self, operation: str, body: bytes) -> dict[str, Any]:
        headers = [(b"content-type", self._content_type), (b"x-amz-target", f"{self._target}.{operation}".encode())]
        credentials = await self._credentials.get()
        sent_us = time.time_ns() // 1000
        signed = signed_headers(
            "POST",
            self._url,
            headers,
            body,
            service=self._service,
            region=self._region,
            credentials=credentials,
            now_s=(sent_us + self._clock.offset_us) / 1e6,
        )
        response = await self._http.request("POST", self._url, signed, body, self._timeouts)
        if (date := response.header(b"date")) is not None:
            self._clock.observe(date, sent_us, time.time_ns() // 1000, int(time.monotonic() * 1e6))
        answer = await response.read(MAX_ANSWER)
        try:
            parsed = orjson.loads(answer) if answer else {}
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            status = response.status if response.status >= 400 else 502
            raise AwsError("BadAnswer", f"{self._service} answered {response.status} without JSON", status, {})
        if response.status == 200:
            return parsed
        code = str(parsed.get("__type") or parsed.get("code") or response.status).rpartition("#")[2].partition(":")[0]
        message = parsed.get("message") or parsed.get("Message") or ""
        raise AwsError(code, str(message), response.status, parsed)


# -- DynamoDB's values -----------------------------------------------------------------------------------------------


def to_dynamo(value: Any) -> dict[str, Any]:
    """A Python value as a DynamoDB attribute value. Raises TypeError for what DynamoDB cannot hold."""
    kind = type(value)
    encode: Callable[[Any], dict[str, Any]] | None = _ENCODERS.get(kind)
    if encode is None:
        raise TypeError(f"DynamoDB cannot hold {kind.__name__}")
    return encode(value)


def _encode_set(value: Any) -> dict[str, Any]:
    if not value or not all(type(item) is str for item in value):
        raise TypeError("DynamoDB's string sets hold at least one string, and strings only")
    return {"SS": sorted(value)}


def _encode_float(value: float) -> dict[str, Any]:
    if not math.isfinite(value):
        raise TypeError("DynamoDB's numbers are finite")
    return {"N": repr(value)}


_ENCODERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    str: lambda v: {"S": v},
    bool: lambda v: {"BOOL": v},
    int: lambda v: {"N": str(v)},
    Decimal: lambda v: {"N": str(v)},
    float: _encode_float,
    bytes: lambda v: {"B": b64encode(v).decode()},
    type(None): lambda v: {"NULL": True},
    list: lambda v: {"L": [to_dynamo(item) for item in v]},
    tuple: lambda v: {"L": [to_dynamo(item) for item in v]},
    dict: lambda v: {"M": {name: to_dynamo(item) for name, item in v.items()}},
    set: _encode_set,
    frozenset: _encode_set,
}


def from_dynamo(value: Mapping[str, Any]) -> Any:
    """A DynamoDB attribute value as a Python value: whole numbers as int, others as Decimal."""
    ((kind, held),) = value.items()
    if kind == "N":
        return int(held) if held.lstrip("-").isdigit() else Decimal(held)
    if kind == "M":
        return {name: from_dynamo(item) for name, item in held.items()}
    if kind == "L":
        return [from_dynamo(item) for item in held]
    if kind == "NULL":
        return None
    if kind == "B":
        return b64decode(held)
    if kind in ("SS", "NS", "BS"):
        return {from_dynamo({kind[0]: item}) for item in held}
    return held
