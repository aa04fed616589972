"""What administrators may read through the gateway itself: what it goes by at this moment.

Read-only on purpose. Plans and tenants are changed with the `tollgate` command, under AWS credentials of the operator's
own; a token that leaks from a browser must not be able to raise anybody's limits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from tollgate.domain.identity import Identity
from tollgate.ports import PolicyUnavailable
from tollgate.services.directory import Directory
from tollgate.services.standing import RETRY_AFTER_US, standing
from tollgate.wire import errors

PREFIX = "/admin/"
TENANTS = "/admin/v1/tenants/"
STATUS = "/admin/v1/status"


class Administration:
    """Answers GET /admin/v1/..., for identities with the scope `admin`."""

    def __init__(self, directory: Directory, status: Callable[[], dict[str, object]], clock: Callable[[], int]) -> None:
        self._directory = directory
        self._status = status
        self._clock = clock

    async def read(self, who: Identity, method: str, path: str) -> dict[str, Any]:
        """The page at `path`, unless the administrator was disabled, or their tenant suspended. Raises `ApiError`."""
        await standing(self._directory, who, self._clock())
        tenant = unquote(path.removeprefix(TENANTS)) if path.startswith(TENANTS) else ""
        if path != STATUS and (not tenant or "#" in tenant):  # of the table's keys only those without one are tenants
            raise errors.not_found(method, path)
        if method != "GET":
            raise errors.method_not_allowed(method, path, "GET")
        return await self._tenant(tenant) if tenant else self._status()

    async def _tenant(self, name: str) -> dict[str, Any]:
        """The tenant's record as admissions see it, which is how a change is seen to have arrived."""
        directory = self._directory
        try:
            await directory.recheck(name)
            policy = await directory.policy()
            record = await directory.record(Identity(name, ""))
        except PolicyUnavailable as error:
            raise errors.unavailable(str(error), RETRY_AFTER_US, "policy_unavailable") from error
        if record is None:
            raise errors.tenant_not_found(name)
        plan = policy.plans.get(record.plan)
        return {
            "object": "tenant",
            "tenant": name,
            "plan": record.plan,
            "state": record.state,
            "version": record.version,
            "models": [model for model in plan.models if model in policy.models] if plan is not None else [],
            "own_limits": len(record.limits),
            "own_budgets": len(record.budgets),
            "policy": policy.revision,
        }
