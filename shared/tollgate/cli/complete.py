"""Names for shell completion, from the stack to talk to: quickly, or not at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from tollgate.cli.connect import Stack, with_stack
from tollgate.cli.failures import Fail

if TYPE_CHECKING:
    from tollgate.domain.policy import Policy

WITHIN_S = 1.5
"""Who presses Tab does not wait for longer."""
MAX_NAMES = 1000

Completion = Callable[[click.Context, click.Parameter, str], list[str]]


def _completion(read: Callable[[Stack], Awaitable[list[str]]]) -> Completion:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        import asyncio

        from tollgate.domain.policy_document import PolicyErrors
        from tollgate.ports import PolicyUnavailable

        async def run(stack: Stack) -> list[str]:
            return await asyncio.wait_for(read(stack), WITHIN_S)

        with ctx.scope(cleanup=False):
            try:
                found = with_stack(run)
            except (Fail, PolicyErrors, PolicyUnavailable, OSError, TimeoutError):
                return []  # there is nobody to tell why
        return sorted(name for name in found if name.startswith(incomplete))

    return complete


async def _tenants(stack: Stack) -> list[str]:
    return [row.tenant for row in (await stack.tables().tenants.page(MAX_NAMES))[0]]


def _of_policy(names: Callable[[Policy], list[str]]) -> Completion:
    async def read(stack: Stack) -> list[str]:
        return names(await stack.tables().edited())

    return _completion(read)


tenants = _completion(_tenants)
plans = _of_policy(lambda policy: list(policy.plans))
models = _of_policy(lambda policy: list(policy.models))
upstreams = _of_policy(lambda policy: list(policy.upstreams))
