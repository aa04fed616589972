"""A stand-in for API Gateway's REST API with response streaming, in front of the proxy application.

It does to a request what API Gateway and the Lambda Web Adapter do together: match the route, ask the authorizer,
and hand the request on with two headers that only they may write, `x-amzn-request-context` and
`x-amzn-lambda-context`; then it passes the answer on as it comes. Like Lambda, the application is not told when a
client leaves: its answer is read to the end.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from tollgate.adapters.http import ConnectFailed, Header, HttpClient, Response, TimedOut, Timeouts, UpstreamError
from tollgate.local.aws import ACCOUNT
from tollgate.local.children import say
from tollgate.local.gateway_auth import Authorize, Authorizer, AuthorizerFailed, Denied, NotAuthenticated
from tollgate.wire import errors

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

TOKEN, KEY = b"authorization", b"x-api-key"
"""The identity sources of the template's two authorizers, which are one function: a header each."""
ROUTES: dict[str, dict[str, bytes | None]] = {
    "/v1/chat/completions": {"POST": TOKEN},
    "/v1/completions": {"POST": TOKEN},
    "/v1/embeddings": {"POST": TOKEN},
    "/v1/responses": {"POST": TOKEN},
    "/v1/messages": {"POST": TOKEN},
    "/v1/models": {"GET": TOKEN},
    "/v1/usage": {"GET": TOKEN},
    "/anthropic/v1/messages": {"POST": KEY},
    "/anthropic/v1/models": {"GET": KEY},
    "/healthz": {"GET": None},
}
"""The template's routes: path, method, and the header that the authorizer is asked about. Its catch-alls take every
other path but the root; a path that has a route never falls to them, whatever the method."""
CATCH_ALL = (("/anthropic/", KEY), ("/", TOKEN))
"""What a path begins with, the longest first."""

# The template's gateway responses, by API Gateway's names for them
UNAUTHORIZED = errors.invalid_api_key()
ACCESS_DENIED = errors.forbidden("You are not allowed to call this route.")
MISSING_AUTHENTICATION_TOKEN = errors.ApiError(404, "Unknown request URL.", code="unknown_url")
REQUEST_TOO_LARGE = errors.ApiError(413, "The request body is too large.", code="request_too_large")
AUTHORIZER_FAILURE = errors.unavailable("The gateway cannot verify credentials right now.")
INTEGRATION_FAILURE = errors.unavailable("The gateway is overloaded or starting.")
INTEGRATION_TIMEOUT = errors.upstream_timeout("The model provider did not answer in time.")
DEFAULT_5XX = errors.ApiError(502, "The gateway had an error while processing your request.", type="server_error")

STAGE = "live"
API_ID = "local00000"
MAX_BODY = 10 * 1024 * 1024
"""API Gateway's limit for a request's body, in bytes."""
MAX_HEADERS = 10_240
"""API Gateway's limit for the request line and all headers together, in bytes."""
TIMEOUT_S = 900.0
"""The longest that a streaming integration may take; the function's own limit is the same."""
START_S = 10.0
"""How long a request waits for a proxy that is being (re)started, as it would for a cold start."""

NOT_FORWARDED = frozenset(
    {
        b"host", b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"expect", b"content-length",
        # written by API Gateway and the adapter only
        b"x-amzn-request-context", b"x-amzn-lambda-context", b"x-amzn-trace-id",
    }
)  # fmt: skip
NOT_RETURNED = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date", b"server"})


class Refused(Exception):
    """API Gateway answers by itself."""

    def __init__(self, answer: errors.ApiError) -> None:
        super().__init__(answer.message)
        self.answer = answer


class Broken(Exception):
    """The proxy broke off. Where its answer has begun (no `answer`) all that is left is to close the connection."""

    def __init__(self, reason: UpstreamError, answer: errors.ApiError | None = None) -> None:
        super().__init__(str(reason))
        self.timed_out = isinstance(reason, TimedOut)
        self.answer = answer


@dataclass(frozen=True)
class Integration:
    """Where the proxy is, and how long to wait for it."""

    url: str
    serving: asyncio.Event
    """Set while the proxy's process serves."""
    region: str
    function: str = "tollgate-proxy"
    timeout_s: float = TIMEOUT_S
    report: Callable[[str], None] = lambda _: None
    """Takes the line that Lambda writes to the function's log when an invocation has failed."""

    @property
    def arn(self) -> str:
        return f"arn:aws:lambda:{self.region}:{ACCOUNT}:function:{self.function}"


class ApiGateway:
    """The ASGI application."""

    def __init__(self, authorize: Authorize, integration: Integration, http: HttpClient) -> None:
        # each remembers what the function said by its own header
        self._authorizers = {source: Authorizer(authorize) for source in (TOKEN, KEY)}
        self._integration = integration
        self._http = http

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request_id = str(uuid.uuid4())
        try:
            await self._handle(scope, receive, send, request_id)
        except Refused as refusal:
            await _refuse(send, refusal.answer, request_id)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        method, path = scope["method"], scope["path"]
        source = _identity_source(method, path)
        headers: list[Header] = scope["headers"]
        if sum(len(name) + len(value) + 4 for name, value in headers) + len(scope["raw_path"]) > MAX_HEADERS:
            raise Refused(errors.headers_too_large())
        context = self._request_context(scope, request_id)
        if source is not None:
            context["authorizer"] = await self._authorize(source, scope, context)
        body = await _body(receive, headers)
        invocation, began = str(uuid.uuid4()), time.monotonic()
        try:
            response = await self._forward(scope, body, context, invocation)
            await _pass_on(response, send, request_id)
        except Broken as broken:
            self._integration.report(report_line(invocation, time.monotonic() - began, timed_out=broken.timed_out))
            if broken.answer is None:
                raise
            raise Refused(broken.answer) from None

    def _request_context(self, scope: Scope, request_id: str) -> dict[str, Any]:
        """The event's `requestContext`, as far as it does not come from the authorizer."""
        now = time.time()
        client = scope.get("client") or ("127.0.0.1", 0)
        return {
            "accountId": ACCOUNT,
            "apiId": API_ID,
            "resourceId": "local",
            "resourcePath": scope["path"],
            "httpMethod": scope["method"],
            "path": f"/{STAGE}{scope['path']}",
            "protocol": f"HTTP/{scope['http_version']}",
            "stage": STAGE,
            "requestId": request_id,
            "extendedRequestId": request_id[:16],
            "requestTime": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(now)),
            "requestTimeEpoch": int(now * 1000),
            "domainName": "127.0.0.1",
            "identity": {
                "sourceIp": client[0],
                "userAgent": dict(scope["headers"]).get(b"user-agent", b"").decode("latin-1"),
            },
        }

    async def _authorize(self, source: bytes, scope: Scope, context: Mapping[str, Any]) -> Mapping[str, Any]:
        values = _values(scope["headers"], source)
        if not values or not values[0].strip():
            raise Refused(UNAUTHORIZED)
        event = authorizer_event(scope, context, self._integration.region)
        try:
            return await self._authorizers[source].check(",".join(values), event)
        except NotAuthenticated:
            raise Refused(UNAUTHORIZED) from None
        except Denied:
            raise Refused(ACCESS_DENIED) from None
        except AuthorizerFailed as error:
            say(f"the authorizer failed: {error}")
            raise Refused(AUTHORIZER_FAILURE) from None

    async def _forward(self, scope: Scope, body: bytes, context: Mapping[str, Any], invocation: str) -> Response:
        """The head of the proxy's answer. Raises `Refused` if the proxy was not reached, `Broken` if it gave none."""
        integration = self._integration
        timeout_s = integration.timeout_s
        query = scope["query_string"]
        url = integration.url + scope["raw_path"].decode("latin-1") + (f"?{query.decode('latin-1')}" if query else "")
        headers = [(name, value) for name, value in scope["headers"] if name not in NOT_FORWARDED]
        headers += [
            (b"x-amzn-request-context", _json(context)),
            (b"x-amzn-lambda-context", _json(self._lambda_context(timeout_s, invocation))),
        ]
        timeouts = Timeouts(connect=2.0, first_byte=timeout_s, idle=timeout_s, total=timeout_s)
        until = asyncio.get_running_loop().time() + START_S
        while True:
            try:
                async with asyncio.timeout_at(until):
                    await integration.serving.wait()
                return await self._http.request(scope["method"], url, headers, body, timeouts)
            except ConnectFailed:
                # it died and its end was not noticed yet: nothing was sent, so the next one can have it
                if asyncio.get_running_loop().time() > until:
                    raise Refused(INTEGRATION_FAILURE) from None
                await asyncio.sleep(0.05)
            except TimedOut as error:
                raise Broken(error, INTEGRATION_TIMEOUT) from None
            except TimeoutError:
                raise Refused(INTEGRATION_FAILURE) from None
            except UpstreamError as error:
                raise Broken(error, DEFAULT_5XX) from None
            except ValueError:
                raise Refused(DEFAULT_5XX) from None

    def _lambda_context(self, timeout_s: float, invocation: str) -> dict[str, Any]:
        """What the adapter tells of the invocation; `deadline` is in epoch milliseconds."""
        integration = self._integration
        return {
            "request_id": invocation,
            "deadline": int((time.time() + timeout_s) * 1000),
            "invoked_function_arn": integration.arn,
            "xray_trace_id": None,
            "client_context": None,
            "identity": None,
            "env_config": {
                "function_name": integration.function,
                "memory": 1024,
                "version": "$LATEST",
                "log_stream": "local",
                "log_group": f"/aws/lambda/{integration.function}",
            },
        }


def report_line(invocation: str, seconds: float, *, timed_out: bool) -> str:
    """What Lambda writes at the end of an invocation that failed, where logs are text."""
    status = "timeout" if timed_out else "error\tError Type: Runtime.ExitError"
    return (
        f"REPORT RequestId: {invocation}\tDuration: {seconds * 1000:.2f} ms\tBilled Duration: {seconds * 1000:.0f} ms\t"
        f"Memory Size: 1024 MB\tMax Memory Used: 128 MB\tStatus: {status}"
    )


def _identity_source(method: str, path: str) -> bytes | None:
    """The header that the route's authorizer is asked about; None where there is no authorizer. Raises `Refused` for
    what is no route."""
    if path in ROUTES:
        if method not in ROUTES[path]:
            raise Refused(MISSING_AUTHENTICATION_TOKEN)
        return ROUTES[path][method]
    for beginning, source in CATCH_ALL:
        if path.startswith(beginning) and path != beginning:
            return source
    raise Refused(MISSING_AUTHENTICATION_TOKEN)


def authorizer_event(scope: Scope, context: Mapping[str, Any], region: str) -> dict[str, Any]:
    """The event of a REQUEST authorizer."""
    many: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        many.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    method, path = scope["method"], scope["path"]
    return {
        "type": "REQUEST",
        "methodArn": f"arn:aws:execute-api:{region}:{ACCOUNT}:{API_ID}/{STAGE}/{method}{path}",
        "resource": path,
        "path": path,
        "httpMethod": method,
        "headers": {name: values[-1] for name, values in many.items()},
        "multiValueHeaders": many,
        "queryStringParameters": {},
        "multiValueQueryStringParameters": {},
        "pathParameters": {},
        "stageVariables": {},
        "requestContext": dict(context),
    }


def _values(headers: Iterable[Header], name: bytes) -> list[str]:
    return [value.decode("latin-1") for found, value in headers if found == name]


def _json(value: Mapping[str, Any]) -> bytes:
    """One header's worth of JSON; UTF-8, as the adapter writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


async def _body(receive: Receive, headers: Iterable[Header]) -> bytes:
    """The whole body: API Gateway streams answers, not requests."""
    declared = _values(headers, b"content-length")
    if declared and declared[0].isdigit() and int(declared[0]) > MAX_BODY:
        raise Refused(REQUEST_TOO_LARGE)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(errors.invalid_request("The request's body is incomplete."))
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY:
            raise Refused(REQUEST_TOO_LARGE)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


async def _pass_on(response: Response, send: Send, request_id: str) -> None:
    """The answer, as it comes. A client that has left is no reason to stop: `send` then does nothing."""
    headers = [(name, value) for name, value in response.headers if name not in NOT_RETURNED]
    headers.append((b"x-amzn-requestid", request_id.encode()))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    try:
        async for chunk in response:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except UpstreamError as error:
        raise Broken(error) from error
    finally:
        response.close()
    await send({"type": "http.response.body", "body": b""})


async def _refuse(send: Send, error: errors.ApiError, request_id: str) -> None:
    body = error.body()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
        (b"x-amzn-requestid", request_id.encode()),
        *((name.encode(), value.encode()) for name, value in error.headers.items()),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
