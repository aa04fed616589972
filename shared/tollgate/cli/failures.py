"""Failures as a line on standard error and an exit code. Each says what to do next, where anybody can know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

FAILED, USAGE, NOT_FOUND, CONFLICT, BAD_POLICY, UNREACHABLE, NOT_ALLOWED = range(1, 8)

EXIT_CODES = {
    FAILED: "it failed",
    USAGE: "wrong usage",
    NOT_FOUND: "no such thing",
    CONFLICT: "a conflict with what is there",
    BAD_POLICY: "a policy with mistakes (a line each)",
    UNREACHABLE: "nothing to talk to",
    NOT_ALLOWED: "AWS does not know you, or does not let you",
}

_LOG_IN = "log in again (aws sso login), or choose another with --profile"
_AWS_HINTS = {
    "NoCredentials": "add --profile, or set AWS_PROFILE or AWS_ACCESS_KEY_ID",
    "NoCredentialsError": "add --profile, or set AWS_PROFILE or AWS_ACCESS_KEY_ID",
    "PartialCredentialsError": "set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or add --profile",
    "ProfileNotFound": "aws configure list-profiles lists them",
    **dict.fromkeys(
        (
            "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException",
            "InvalidSignatureException", "SignatureDoesNotMatch", "AuthFailure", "MissingAuthenticationToken",
            "TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "CredentialRetrievalError",
        ),
        _LOG_IN,
    ),
    **dict.fromkeys(
        ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "NotAuthorizedException"),
        "ask whoever manages the AWS account, or choose another identity with --profile",
    ),
}  # fmt: skip
"""What AWS says about who calls, and what helps."""


@dataclass(frozen=True, slots=True)
class Failure:
    message: str
    exit_code: int


class Fail(Exception):
    """Ends a command with one line and an exit code."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def describe(error: Exception) -> Failure:
    """What to tell the user about whatever a command raised. A policy's mistakes are a line each."""
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else "tollgate"
        return Failure(f"tollgate: {one_line(error.format_message())} ({path} --help shows how)", USAGE)
    if isinstance(error, click.ClickException):
        return Failure(f"tollgate: {one_line(error.format_message())}", FAILED)
    if isinstance(error, Fail):
        return Failure(f"tollgate: {one_line(error)}", error.exit_code)
    # what raised these has imported them already
    from tollgate.adapters.policy_tables import Conflict, NotFound
    from tollgate.domain.policy_document import PolicyErrors
    from tollgate.ports import PolicyUnavailable, StoreUnavailable
    from tollgate.wiring import BadSetting

    if isinstance(error, PolicyErrors):
        return Failure(str(error), BAD_POLICY)
    for cause in reversed([*_causes(error)]):  # what began it says most
        if hint := _AWS_HINTS.get(_aws_code(cause)):
            return Failure(f"tollgate: {one_line(cause).rstrip('.')}: {hint}", NOT_ALLOWED)
    codes: dict[type[Exception], int] = {
        NotFound: NOT_FOUND,
        Conflict: CONFLICT,
        PolicyUnavailable: UNREACHABLE,
        StoreUnavailable: UNREACHABLE,
        BadSetting: USAGE,
    }
    for kind, code in codes.items():
        if isinstance(error, kind):
            return Failure(f"tollgate: {one_line(error)}", code)
    if _is_boto(error):
        unreachable = type(error).__name__.endswith(("ConnectionError", "TimeoutError"))
        return Failure(f"tollgate: {one_line(error)}", UNREACHABLE if unreachable else FAILED)
    if isinstance(error, OSError):
        told = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error
        return Failure(f"tollgate: {one_line(told)}", FAILED)
    return Failure(f"tollgate: this should not happen: {type(error).__name__}: {one_line(error)}", FAILED)


def one_line(error: object) -> str:
    return " ".join(str(error).split())


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _aws_code(error: BaseException) -> str:
    """The name that AWS, or botocore, has for a failure; "" for what is neither's."""
    from tollgate.adapters.aws import AwsError

    if isinstance(error, AwsError):
        return error.code
    if not _is_boto(error):
        return ""
    response: Any = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return str(code or type(error).__name__)


def _is_boto(error: BaseException) -> bool:
    """Without importing botocore, which takes longer than most commands."""
    return any(base.__module__.startswith("botocore.") for base in type(error).__mro__)
