"""Forwarding: one admitted call to the model's upstream, and to the next one where the first cannot serve it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Protocol

from tollgate.adapters.http_message import TimedOut, Timeouts, UpstreamError
from tollgate.domain.policy import UpstreamSpec
from tollgate.ports import Response, Secrets, SecretUnavailable
from tollgate.wire import errors

Header = tuple[bytes, bytes]
NEXT_ROUTE = frozenset({408, 429, 500, 502, 503, 504, 529})
"""Answers that say nothing about the request, only about the upstream: another one may serve it. (529: Anthropic's
"overloaded".)"""
KEY_REFUSED = frozenset({401, 403})
"""Our key is not, or no longer, the provider's: it was rotated, or the new one is not known there yet."""
ERROR_BODY_LIMIT = 64 * 1024
"""Bytes of an upstream's error that are read; the rest is not worth a caller's time."""


class Http(Protocol):
    """What forwarding needs of an HTTP client."""

    def request(
        self, method: str, url: str, headers: Sequence[Header], body: bytes, timeouts: Timeouts
    ) -> Awaitable[Response]: ...


Sign = Callable[[UpstreamSpec, str, Sequence[Header], bytes], Awaitable[list[Header]]]
"""Adds the signature of the function's own role (Bedrock)."""


class Forwarder:
    """Calls upstreams of the policy, and nothing else."""

    def __init__(self, http: Http, secrets: Secrets, sign: Sign) -> None:
        self._http = http
        self._secrets = secrets
        self._sign = sign

    async def send(
        self, upstream: UpstreamSpec, path: str, headers: Sequence[Header], body: bytes, seconds: float
    ) -> Response:
        """The upstream's answer as soon as its head is there; asked twice where it refused the provider key and there
        is another. `path` is below the upstream's base URL, `headers` have passed the allow-list, `seconds` bounds the
        whole call, below the policy's own total. Raises `UpstreamError`, `SecretUnavailable`."""
        url, name = upstream.url + path, upstream.secret
        if upstream.is_bedrock:
            headers = await self._sign(upstream, url, headers, body)
        if name is None:
            return await self._post(upstream, url, headers, body, seconds)
        began = time.monotonic()
        key = await self._secrets.get(name)
        response = await self._post(upstream, url, [*headers, _credential(upstream.api, key)], body, seconds)
        if response.status not in KEY_REFUSED:
            return response
        try:
            other = await self._secrets.another(name, refused=key)
        except SecretUnavailable:
            other = None
        left = seconds - (time.monotonic() - began)
        if other is None or left <= 0:
            return response
        response.close()
        headers = [*headers, _credential(upstream.api, other)]
        return await self._post(upstream, url, headers, body, left)  # no model saw the first: it costs nothing twice

    def _post(
        self, upstream: UpstreamSpec, url: str, headers: Sequence[Header], body: bytes, seconds: float
    ) -> Awaitable[Response]:
        limits = upstream.timeouts
        total = limits.total if limits.total < seconds else seconds
        timeouts = _timeouts(limits.connect, limits.first_byte, limits.idle, total)
        return self._http.request("POST", url, headers, body, timeouts)


def _credential(api: str, key: str) -> Header:
    if api == "anthropic":
        return b"x-api-key", key.encode()
    return b"authorization", b"Bearer " + key.encode()


_timeouts = lru_cache(maxsize=256)(Timeouts)  # the same few, but behind Lambda's deadlines


def failure(error: Exception) -> errors.ApiError:
    """What the caller is told when no upstream gave an answer."""
    if isinstance(error, SecretUnavailable):
        return errors.upstream_error("The gateway has no valid key for this model's provider.")
    if isinstance(error, TimedOut):
        return errors.upstream_timeout()
    if isinstance(error, UpstreamError) and error.sent:
        return errors.upstream_closed()
    return errors.upstream_error("The model provider cannot be reached.")


async def refused(response: Response) -> tuple[errors.ApiError | None, bytes]:
    """What an answer other than 2xx means to the caller: an error of ours, or None with a body to pass on as it is.

    Only what the caller can mend is passed on (400, 404 of a file, 413, 422 ...). The provider's 401, 403 and 404 are
    about our key and our route, its 429 about our account: none of the caller's business, or fault.
    """
    status = response.status
    if status in (400, 409, 413, 415, 422):
        return None, await response.read(ERROR_BODY_LIMIT)
    response.close()
    if status in (429, 529):
        wait = response.header(b"retry-after") or b""
        seconds = int(wait) if wait.isdigit() and len(wait) < 6 else 1
        message = "The model provider is over its own limit at the moment. Try again later."
        return errors.unavailable(message, seconds * 1_000_000, "upstream_rate_limited"), b""
    if status in (408, 504):
        return errors.upstream_timeout(), b""
    if status in (401, 403):
        return errors.upstream_error("The model provider refused the gateway's own key."), b""
    return errors.upstream_error(f"The model provider answered with status {status}."), b""
