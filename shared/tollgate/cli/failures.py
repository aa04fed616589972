"""Failures as a line on standard error and an exit code."""

from __future__ import annotations

from dataclasses import dataclass

import click

FAILED, USAGE, NOT_FOUND, CONFLICT, BAD_POLICY, UNREACHABLE = range(1, 7)


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
        return Failure(f"tollgate: {error.format_message()} ({path} --help shows how)", USAGE)
    if isinstance(error, click.ClickException):
        return Failure(f"tollgate: {error.format_message()}", FAILED)
    if isinstance(error, Fail):
        return Failure(f"tollgate: {error}", error.exit_code)
    # what raised these has imported them already
    from tollgate.adapters.policy_tables import Conflict, NotFound
    from tollgate.bootstrap import BadSetting
    from tollgate.domain.policy_document import PolicyErrors
    from tollgate.ports import PolicyUnavailable, StoreUnavailable

    if isinstance(error, PolicyErrors):
        return Failure(str(error), BAD_POLICY)
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
    if isinstance(error, OSError):
        return Failure(f"tollgate: {one_line(error)}", FAILED)
    return Failure(f"tollgate: this should not happen: {type(error).__name__}: {one_line(error)}", FAILED)


def one_line(error: object) -> str:
    return " ".join(str(error).split())
