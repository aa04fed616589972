"""One local stack for all functional tests of a session, started when the first of them asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest

from tests.functional.stack import DevStack


@pytest.fixture(scope="session")
def stack() -> Iterator[DevStack]:
    """A running `tollgate dev` with the demo policy and a fast demo model.

    It is shared: a test that spends budgets makes a tenant of its own (`new_tenant`), and a test that kills parts or
    needs other settings starts its own `DevStack`.
    """
    with DevStack() as running:
        yield running


@pytest.fixture(scope="session")
def token(stack: DevStack) -> Callable[[str, str], str]:
    """`token(tenant, user)`: a token of the shared stack."""
    return stack.token


@pytest.fixture
def new_tenant(stack: DevStack) -> Callable[[str], str]:
    """`new_tenant(plan)`: the name of a tenant that nobody else uses."""
    return lambda plan: stack.new_tenant(f"tenant-{next(_numbers)}", plan)


_numbers = count(1)
