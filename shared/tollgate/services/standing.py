"""Whether somebody may do anything at all: their tenant is there and active, and has not disabled them."""

from __future__ import annotations

from tollgate.domain.identity import Identity
from tollgate.domain.policy import Policy, TenantRecord
from tollgate.ports import PolicyUnavailable
from tollgate.services.directory import Directory
from tollgate.wire import errors

RETRY_AFTER_US = 2_000_000
"""What a caller is told to wait when no store answers: longer than the breaker needs to notice."""


def check_standing(policy: Policy, record: TenantRecord | None, who: Identity, now_us: int) -> None:
    """403 unless the caller's tenant is known, active and on a plan that exists, and has not disabled the caller."""
    if record is None or record.plan not in policy.plans:
        raise errors.forbidden("No plan is assigned to this account.", "no_plan")
    if record.state != "active":
        raise errors.tenant_suspended()
    if record.disables(who.user, now_us):
        raise errors.user_disabled()


async def standing(directory: Directory, who: Identity, now_us: int) -> tuple[Policy, TenantRecord]:
    """The policy and the caller's record, some seconds old at most, for what is answered without an admission. Raises
    `ApiError`."""
    try:
        await directory.recheck(who.tenant)
        policy, record = await directory.policy(), await directory.record(who)
    except PolicyUnavailable as error:
        raise errors.unavailable(str(error), RETRY_AFTER_US, "policy_unavailable") from error
    check_standing(policy, record, who, now_us)
    assert record is not None
    return policy, record
