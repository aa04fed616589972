"""Errors in both shapes, and what they tell an SDK to do."""

from __future__ import annotations

import json

import pytest

from tollgate.wire import errors
from tollgate.wire.errors import ApiError
from tollgate.wire.sse import Splitter, data_of

EVERY = [
    (errors.invalid_request("x", "p", "c"), 400, "invalid_request_error"),
    (errors.not_available("p", "x"), 400, "invalid_request_error"),
    (errors.exceeds_plan_limit("x", "max_tokens"), 400, "invalid_request_error"),
    (errors.invalid_api_key(), 401, "authentication_error"),
    (errors.insufficient_quota("x"), 402, "billing_error"),
    (errors.forbidden("x"), 403, "permission_error"),
    (errors.model_not_allowed("m"), 403, "permission_error"),
    (errors.tenant_suspended(), 403, "permission_error"),
    (errors.user_disabled(), 403, "permission_error"),
    (errors.model_not_found("m"), 404, "not_found_error"),
    (errors.not_found("GET", "/x"), 404, "not_found_error"),
    (errors.method_not_allowed("GET", "/x", "POST"), 405, "invalid_request_error"),
    (errors.request_too_large(5), 413, "request_too_large"),
    (errors.rate_limit_exceeded("x", 1, "User"), 429, "rate_limit_error"),
    (errors.headers_too_large(), 431, "invalid_request_error"),
    (errors.internal_error(), 500, "api_error"),
    (errors.upstream_error(), 502, "api_error"),
    (errors.upstream_closed(), 502, "api_error"),
    (errors.unavailable("x"), 503, "overloaded_error"),
    (errors.upstream_timeout(), 504, "timeout_error"),
]


@pytest.mark.parametrize(("error", "status", "kind"), EVERY)
def test_shapes(error: ApiError, status: int, kind: str) -> None:
    assert error.status == status
    openai = json.loads(error.body())
    assert openai == {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}
    anthropic = json.loads(error.body("anthropic", "req_1"))
    assert anthropic == {
        "type": "error",
        "error": {"type": kind, "message": error.message},
        "request_id": "req_1",
    }


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_events(api: errors.Api) -> None:
    error = errors.upstream_closed()
    event = error.event(api, "r")
    assert Splitter().feed(event) == [event]
    assert json.loads(data_of(event)) == error.payload(api, "r")
    assert event.startswith(b"event: error\n") is (api == "anthropic")


@pytest.mark.parametrize(("us", "seconds"), [(-5, 1), (0, 1), (1, 1), (1_000_000, 1), (1_000_001, 2), (60_000_000, 60)])
def test_retry_after_rounds_up(us: int, seconds: int) -> None:
    assert errors.rate_limit_exceeded("x", us, "User").headers["retry-after"] == str(seconds)


def test_what_must_not_be_retried_says_so() -> None:
    assert errors.insufficient_quota("x", "Tenant").headers == {"x-should-retry": "false", "x-ratelimit-type": "Tenant"}
    assert errors.exceeds_plan_limit("x").headers == {"x-should-retry": "false"}


def test_echoes_are_short_and_encodable() -> None:
    for name in ("m" * 10_000, "\ud800", '"\r\n', "模型"):
        error = errors.model_not_found(name)
        assert len(error.message) < 200
        assert json.loads(error.body())["error"]["code"] == "model_not_found"
