"""Which stack a command talks to, and how."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from tollgate.cli.failures import UNREACHABLE, Fail

if TYPE_CHECKING:
    from tollgate.adapters.http import HttpClient
    from tollgate.adapters.policy_tables import PolicyTables

T = TypeVar("T")

TABLES = ("TOLLGATE_POLICY_TABLE", "TOLLGATE_TENANTS_TABLE")
_OF_ANOTHER_AWS = ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE")


def local_stack() -> dict[str, str] | None:
    """The variables of the local stack to talk to; None if the environment names a deployed one, or none runs."""
    from tollgate.local.discovery import find

    if all(os.environ.get(name) for name in TABLES) and not os.environ.get("TOLLGATE_URL"):
        return None
    return find(os.environ)


def environment(needs: tuple[str, ...] = TABLES) -> dict[str, str]:
    """The environment of the stack to talk to. Raises `Fail` where there is none."""
    local = local_stack()
    if local is not None:
        # nothing of the terminal's own AWS may lead elsewhere
        own = {
            n: v for n, v in os.environ.items() if not n.startswith("AWS_ENDPOINT_URL_") and n not in _OF_ANOTHER_AWS
        }
        return {**own, **local}
    missing = [name for name in needs if not os.environ.get(name)]
    if missing:
        url = os.environ.get("TOLLGATE_URL")
        where = f"no local stack runs at {url}" if url else "no local stack is running"
        raise Fail(f"{where} and {missing[0]} is not set: start `tollgate dev`, or name a deployed stack", UNREACHABLE)
    return dict(os.environ)


def with_tables(operation: Callable[[PolicyTables], Awaitable[T]]) -> T:
    """Run an operation on the tables of the stack to talk to."""
    environ = environment()

    async def run(http: HttpClient) -> T:
        from tollgate.adapters.aws import AwsClient
        from tollgate.adapters.policy_tables import PolicyTables

        dynamodb = AwsClient.for_service("dynamodb", http, environ)
        return await operation(
            PolicyTables(dynamodb, environ["TOLLGATE_POLICY_TABLE"], environ["TOLLGATE_TENANTS_TABLE"])
        )

    return with_http(run)


def with_http(operation: Callable[[HttpClient], Awaitable[T]]) -> T:
    import asyncio

    from tollgate.adapters.http import HttpClient

    async def run() -> T:
        http = HttpClient()
        try:
            return await operation(http)
        finally:
            await http.aclose()

    return asyncio.run(run())


def actor() -> str:
    """Who changes something, for the tables' own record."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "tollgate"
