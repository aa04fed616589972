"""What administrators may read through the gateway itself: what it goes by at this moment.

Read-only on purpose. Plans and tenants are changed with the `tollgate` command, under AWS credentials of the operator's
own; a token that leaks from a browser must not be able to raise anybody's limits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tollgate.adapters import telemetry
from tollgate.domain.identity import ADMIN, Identity
from tollgate.ports import Administrators, AdministratorsUnavailable, PolicyUnavailable
from tollgate.services.directory import Directory
from tollgate.services.standing import RETRY_AFTER_US, standing
from tollgate.wire import errors

PREFIX = "/admin/"
TENANTS = "/admin/v1/tenants/"
STATUS = "/admin/v1/status"


class Administration:
    """Answers GET /admin/v1/..., for identities with the scope `admin`."""

    def __init__(
        self,
        directory: Directory,
        administrators: Administrators | None,
        status: Callable[[], dict[str, object]],
        clock: Callable[[], int],
    ) -> None:
        """`administrators`: None where there is no user pool to ask."""
        self._directory = directory
        self._administrators = administrators
        self._status = status
        self._clock = clock

    async def read(self, who: Identity, method: str, path: str) -> dict[str, Any]:
        """The page at `path`, for whoever still is an administrator in good standing. Raises `ApiError`."""
        await standing(self._directory, who, self._clock())
        if who.pool_user and not await self._is_one(who.pool_user):
            raise errors.insufficient_scope(ADMIN)
        tenant = path.removeprefix(TENANTS) if path.startswith(TENANTS) else ""
        if path != STATUS and (not tenant or "#" in tenant):  # of the table's keys only those without one are tenants
            raise errors.not_found(method, path)
        if method != "GET":
            raise errors.method_not_allowed(method, path, "GET")
        return await self._tenant(tenant) if tenant else self._status()

    async def _is_one(self, pool_user: str) -> bool:
        if self._administrators is None:
            reason = "TOLLGATE_USER_POOL_ID is not set"
        else:
            try:
                return await self._administrators.include(pool_user)
            except AdministratorsUnavailable as error:
                reason = str(error)
        telemetry.log("ERROR", "administrators cannot be confirmed", reason=reason)
        raise errors.unavailable("The gateway cannot confirm administrators at the moment.", RETRY_AFTER_US)

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
