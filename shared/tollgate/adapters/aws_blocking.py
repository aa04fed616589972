"""AWS's JSON services for code that may block: a thread of `tollgate serve`, or the authorizer function.

`AwsClient` belongs to an event loop; the authorizer has none, and asyncio with an HTTP parser and a JSON library would
add more to its cold start than this, on a standard library that it has loaded anyway.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from tollgate.adapters.aws_environment import endpoint, environment_credentials, region
from tollgate.adapters.sigv4 import Credentials, signed_headers

TIMEOUT_S = 1.5
"""For connecting, and for each read: twice that fits into what callers wait for."""
MAX_ANSWER = 1024 * 1024

_TARGETS = {"dynamodb": "DynamoDB_20120810", "secretsmanager": "secretsmanager"}
_JSON = {"dynamodb": "1.0", "secretsmanager": "1.1"}

CredentialsOf = Callable[[], Credentials | None]


class CallFailed(Exception):
    """No answer, or a refusal; the message names the operation and AWS's code, and holds nothing that was sent."""


class BlockingAws:
    """One service. Thread safe: each thread keeps a connection of its own."""

    def __init__(self, service: str, environ: Mapping[str, str], credentials: CredentialsOf | None = None) -> None:
        """`service`: dynamodb or secretsmanager. `credentials`: instead of those in `environ`."""
        self._service = service
        self._region = region(environ)
        self._url = endpoint(service, self._region, environ) + "/"
        self._credentials = credentials or (lambda: environment_credentials(environ))
        self._kept = threading.local()

    def call(self, operation: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """One operation that may be repeated without harm: a kept connection may have been closed meanwhile (Lambda
        freezes them), and then it is asked again. Raises `CallFailed`."""
        body = json.dumps(payload).encode()
        connection: http.client.HTTPConnection | None = getattr(self._kept, "connection", None)
        try:
            if connection is not None:
                try:
                    return self._once(connection, operation, body)
                except (ConnectionError, http.client.HTTPException):
                    connection.close()
            connection = self._kept.connection = self._connect()
            return self._once(connection, operation, body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise CallFailed(f"{self._service}: {operation}: {type(error).__name__}") from error

    def close(self) -> None:
        """Close this thread's connection; the next call makes another."""
        connection: http.client.HTTPConnection | None = getattr(self._kept, "connection", None)
        if connection is not None:
            connection.close()
        self._kept.connection = None

    def _once(self, connection: http.client.HTTPConnection, operation: str, body: bytes) -> dict[str, Any]:
        credentials = self._credentials()
        if credentials is None:
            raise CallFailed("no AWS credentials: set AWS_PROFILE or AWS_ACCESS_KEY_ID")
        headers = [
            (b"content-type", f"application/x-amz-json-{_JSON[self._service]}".encode()),
            (b"x-amz-target", f"{_TARGETS[self._service]}.{operation}".encode()),
        ]
        signed = signed_headers(
            "POST", self._url, headers, body,
            service=self._service, region=self._region, credentials=credentials, now_s=time.time(),
        )  # fmt: skip
        target = urlsplit(self._url).path
        connection.request("POST", target, body, {name.decode(): value.decode() for name, value in signed})
        response = connection.getresponse()
        answer = response.read(MAX_ANSWER + 1)
        if len(answer) > MAX_ANSWER:
            raise ValueError("the answer is too long")
        if response.length:  # read takes an early end for the end
            raise http.client.IncompleteRead(answer, response.length)
        parsed = json.loads(answer or b"{}")
        if not isinstance(parsed, dict):
            raise ValueError("the answer is not an object")
        if response.status != 200:
            code = str(parsed.get("__type") or response.status).rpartition("#")[2]
            raise CallFailed(f"{self._service}: {operation}: {code}")
        return parsed

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self._url)
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S, context=_tls())
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)


@cache
def _tls() -> ssl.SSLContext:
    """Certificates are read once (20 ms)."""
    return ssl.create_default_context()
