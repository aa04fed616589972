"""Every error that a caller can get, in the shape that the caller's SDK knows.

The numbers follow what the OpenAI and Anthropic SDKs do with them: which exception they raise, and whether they
retry (both obey `x-should-retry` before the status).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from tollgate.wire import eventstream

Api = Literal["openai", "anthropic", "converse"]
"""Whose shapes a route speaks."""

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

AWS_TYPES = {
    400: "ValidationException",
    401: "UnrecognizedClientException",
    402: "ServiceQuotaExceededException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    413: "ValidationException",
    429: "ThrottlingException",
    502: "ModelErrorException",
    503: "ServiceUnavailableException",
    504: "ModelTimeoutException",
}
"""What AWS's SDKs raise, by status; and, in a stream, only these:"""
_AWS_STREAM_TYPES = {
    429: "throttlingException",
    502: "modelStreamErrorException",
    503: "serviceUnavailableException",
    504: "modelStreamErrorException",
}

_ECHO = 100
"""How many characters of a caller's own value an error repeats."""


class ApiError(Exception):
    """An answer other than success: what the caller is told, and how."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.rule = code or type
        """What refused, for the audit log; callers are not told. The id of a limit where it was one."""

    def payload(self, api: Api = "openai", request_id: str | None = None) -> dict[str, object]:
        """The error as a JSON object in the shape of `api`."""
        if api == "anthropic":
            kind = ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
            return {"type": "error", "error": {"type": kind, "message": self.message}, "request_id": request_id}
        if api == "converse":
            return {"message": self.message}
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers_for(self, api: Api, request_id: str) -> dict[str, str]:
        """The response headers; AWS's SDKs are told there which exception to raise."""
        found = {**self.headers, "x-request-id": request_id}
        if api == "converse":
            found["x-amzn-errortype"] = AWS_TYPES.get(self.status, "InternalServerException")
        return found

    def body(self, api: Api = "openai", request_id: str | None = None) -> bytes:
        """The response body. ASCII only, so that no echoed character can be unencodable."""
        return json.dumps(self.payload(api, request_id)).encode("ascii")

    def event(self, api: Api = "openai", request_id: str | None = None) -> bytes:
        """The error as a server-sent event, for a stream that has already begun.

        OpenAI's chat streams carry errors as plain data (their SDK looks for a top-level `error`); Anthropic's name
        the event; Converse's are binary.
        """
        if api == "converse":
            kind = _AWS_STREAM_TYPES.get(self.status, "internalServerException")
            return eventstream.failure(kind, self.body(api, request_id))
        name = b"event: error\n" if api == "anthropic" else b""
        return name + b"data: " + self.body(api, request_id) + b"\n\n"


def shown(value: object) -> str:
    """A caller's value as an error may repeat it: short, quoted if it is text, else as JSON has it.

    Of arrays and objects only the kind: they may be megabytes, and nested so deeply that they cannot be written again.
    """
    if isinstance(value, list):
        return "an array"
    if isinstance(value, dict):
        return "an object"
    text = repr(value[: _ECHO + 1]) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _ECHO else text[:_ECHO] + "…"


def seconds(us: int) -> int:
    """Microseconds as whole seconds for `Retry-After`: rounded up, at least 1."""
    return max(1, -(-us // 1_000_000))


# -- 4xx ---------------------------------------------------------------------------------------------------------


def invalid_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def not_available(param: str, what: str) -> ApiError:
    """A field that costs or shares something which is not metered here."""
    return ApiError(400, f"{what} is not available through this gateway.", param=param, code="unsupported_parameter")


def exceeds_plan_limit(message: str, param: str | None = None) -> ApiError:
    """A request that no wait can ever make fit."""
    return ApiError(400, message, param=param, code="exceeds_plan_limit", headers={"x-should-retry": "false"})


def invalid_api_key(message: str = "Missing or incorrect API key or token.") -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def insufficient_quota(message: str, limit_type: str | None = None) -> ApiError:
    """A budget is used up. The SDKs have no class for 402 and must not retry it."""
    headers = {"x-should-retry": "false"} | ({"x-ratelimit-type": limit_type} if limit_type else {})
    return ApiError(402, message, type="insufficient_quota", code="insufficient_quota", headers=headers)


def forbidden(message: str, code: str = "permission_denied", param: str | None = None) -> ApiError:
    return ApiError(403, message, type="permission_error", param=param, code=code)


def insufficient_scope(scope: str) -> ApiError:
    """The credential is good, but not for this (RFC 6750, 3.1). `scope` is one of ours, never the caller's text."""
    headers = {"www-authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'}
    return ApiError(
        403,
        f"This credential may not do that: it lacks the scope {scope}.",
        type="permission_error",
        code="insufficient_scope",
        headers=headers,
    )


def model_not_allowed(model: str) -> ApiError:
    return forbidden(f"Your plan does not include the model {shown(model)}.", "model_not_allowed", "model")


def data_rule(model: str, reason: str) -> ApiError:
    message = f"Your account's data rules do not allow the model {shown(model)}: {reason}."
    return forbidden(message, "data_rule", "model")


def keeps_content(param: str) -> ApiError:
    message = f"Your account's data rules do not let the provider keep content ('{param}')."
    return forbidden(message, "data_rule", param)


def key_not_allowed(what: str, code: str = "permission_denied", param: str | None = None) -> ApiError:
    """An API key that is narrower than its tenant's plan."""
    return forbidden(f"This API key may not use {what}.", code, param)


def tenant_suspended() -> ApiError:
    return forbidden("This account is suspended.", "account_suspended")


def user_disabled() -> ApiError:
    """403 and not 401: the credential is good, and another one of theirs would not help."""
    return forbidden("This user is disabled.", "user_disabled")


def tenant_not_found(tenant: str) -> ApiError:
    """For administrators only; nobody else learns which tenants there are."""
    return ApiError(404, f"There is no tenant {shown(tenant)}.", code="tenant_not_found")


def model_not_found(model: str) -> ApiError:
    message = f"The model {shown(model)} does not exist or you do not have access to it."
    return ApiError(404, message, param="model", code="model_not_found")


def model_not_on_route(model: str) -> ApiError:
    message = f"The model {shown(model)} is served in another API's shapes, not on this route."
    return ApiError(400, message, param="model", code="model_not_supported")


def not_found(method: str, path: str) -> ApiError:
    return ApiError(404, f"Unknown request URL: {method} {path[:_ECHO]}.", code="unknown_url")


def method_not_allowed(method: str, path: str, allowed: str) -> ApiError:
    message = f"Not allowed to {method} on {path[:_ECHO]}."
    return ApiError(405, message, code="method_not_supported", headers={"allow": allowed})


def request_too_large(limit_bytes: int) -> ApiError:
    return ApiError(413, f"The request body is larger than {limit_bytes} bytes.", code="request_too_large")


def rate_limit_exceeded(message: str, retry_after_us: int, limit_type: str, unit: str = "requests") -> ApiError:
    """`limit_type` names whose limit refused (`User`, `Local-IP`, ...), `unit` what it counts."""
    headers = {"retry-after": str(seconds(retry_after_us)), "x-ratelimit-type": limit_type}
    return ApiError(429, message, type=unit, code="rate_limit_exceeded", headers=headers)


def headers_too_large() -> ApiError:
    return ApiError(431, "The request's headers are too large.", code="headers_too_large")


# -- 5xx ---------------------------------------------------------------------------------------------------------


def internal_error() -> ApiError:
    return ApiError(500, "The gateway had an error while processing your request.", type="server_error")


def upstream_error(message: str = "The model provider gave no usable answer.") -> ApiError:
    """The provider failed, or refused *us*: its 401 is our 502, never the caller's fault."""
    return ApiError(502, message, type="server_error", code="upstream_error")


def upstream_closed() -> ApiError:
    return upstream_error("The model provider closed the connection before its answer was complete.")


def unavailable(message: str, retry_after_us: int = 1_000_000, code: str = "unavailable") -> ApiError:
    """Overloaded, draining, or no store can decide."""
    return ApiError(503, message, type="server_error", code=code, headers={"retry-after": str(seconds(retry_after_us))})


def upstream_timeout(message: str = "The model provider did not answer in time.") -> ApiError:
    return ApiError(504, message, type="server_error", code="upstream_timeout")
