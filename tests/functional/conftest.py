"""One local stack for all functional tests of a session, started when the first of them asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import count

import botocore.loaders
import pytest

from tests.functional.callers import Callers
from tests.functional.scripted import ScriptedUpstream
from tests.functional.shell import applied, endpoint, environ, shell
from tests.functional.stack import DevStack, lab_policy

__all__ = ["applied", "endpoint", "environ", "shell"]
"""Fixtures of the `tollgate` command's tests."""


@pytest.fixture(scope="session", autouse=True)
def services_read_once() -> Iterator[None]:
    """botocore reads its descriptions of services, which are megabytes of JSON, for each of its sessions, and commands
    that tests run in this process make hundreds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.session.create_loader", cache(botocore.loaders.create_loader))
        yield


@pytest.fixture(scope="session")
def upstream() -> Iterator[ScriptedUpstream]:
    """The provider behind the shared stack's model `scripted`."""
    with ScriptedUpstream().serve() as serving:
        yield serving


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, upstream: ScriptedUpstream) -> Iterator[DevStack]:
    """A running `tollgate dev` with a fast demo model and `lab_policy`.

    It is shared: a test that spends budgets makes a tenant of its own (`new_tenant`), and a test that kills parts or
    needs other settings starts its own `DevStack`.
    """
    policy = lab_policy(tmp_path_factory.mktemp("policy"), scripted=upstream.base_url)
    with DevStack("--policy", policy) as running:
        yield running


@pytest.fixture(scope="session")
def callers(stack: DevStack) -> Callers:
    """Makes users of new tenants of the shared stack, with any limits, in a moment."""
    return Callers(stack)


@pytest.fixture(scope="session")
def token(stack: DevStack) -> Callable[[str, str], str]:
    """`token(tenant, user)`: a token of the shared stack."""
    return stack.token


@pytest.fixture
def new_tenant(stack: DevStack) -> Callable[[str], str]:
    """`new_tenant(plan)`: the name of a tenant that nobody else uses."""
    return lambda plan: stack.new_tenant(f"tenant-{next(_numbers)}", plan)


_numbers = count(1)
