"""Publishing: from an edit of a table to the version that every warm gateway sees.

The tables' streams bring the edits. An edit of the policy is checked as a whole and becomes a new snapshot; an edit
of a tenant gets a new version, if whoever made it did not give it one. The store is told the versions, and with their
next admission the gateways learn from it that they hold old ones. What is wrong is reported and goes no further.

Everything here may be repeated: a stream delivers at least once, and again after a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from typing import Any, Protocol

from tollgate.domain.dataclass import dataclass
from tollgate.domain.policy import Policy, TenantSpec
from tollgate.domain.policy_document import PolicyErrors
from tollgate.ports import LimitStore

Image = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TenantEdit:
    """One edit of a tenant's item: what it was and what it is; None where there was or is none."""

    tenant: str
    before: Image | None
    after: Image | None


@dataclass(slots=True)
class Edits:
    """What a batch of stream records says."""

    policy: bool = False
    tenants: list[TenantEdit] = field(default_factory=list)


@dataclass(slots=True)
class Published:
    """What the store was told."""

    policy: int = 0
    tenants: dict[str, int] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)
    """``policy``, and the names of tenants whose record is wrong."""


class Tables(Protocol):
    """What publishing needs of the tables."""

    async def publish(self) -> tuple[Policy, int]:
        """The edited policy as the snapshot, and its revision. Raises `PolicyErrors`."""
        ...

    async def published(self) -> Policy:
        """The policy in force. Raises `PolicyErrors`."""
        ...

    def check_tenant(self, policy: Policy, image: Image) -> TenantSpec:
        """Raises `PolicyErrors`."""
        ...

    async def settle_version(self, tenant: str, before: Image | None, after: Image | None) -> int:
        """The version that this edit is known by, written to the item if it has none of its own; 0: not to be
        announced."""
        ...


Alarm = Callable[[str, PolicyErrors], None]
"""Called with ``policy`` or a tenant's name."""


async def publish(edits: Edits, tables: Tables, store: LimitStore, alarm: Alarm) -> Published:
    """Publish a batch of edits. Raises `StoreUnavailable` or `PolicyUnavailable`: then ask again."""
    done = Published()
    if edits.policy:
        try:
            _, done.policy = await tables.publish()
        except PolicyErrors as errors:
            done.rejected.append("policy")
            alarm("policy", errors)
    if edits.tenants:
        await _tenants(edits.tenants, tables, done, alarm)
    if done.policy or done.tenants:
        await store.publish(policy=done.policy, tenants=done.tenants)
    return done


async def _tenants(edits: Iterable[TenantEdit], tables: Tables, done: Published, alarm: Alarm) -> None:
    try:
        policy = await tables.published()
    except PolicyErrors as errors:
        alarm("policy", errors)
        policy = None
    for edit in edits:
        if edit.after is not None and policy is not None:
            try:
                tables.check_tenant(policy, edit.after)
            except PolicyErrors as errors:
                done.rejected.append(edit.tenant)
                alarm(edit.tenant, errors)
                continue
        version = await tables.settle_version(edit.tenant, edit.before, edit.after)
        if version:
            done.tenants[edit.tenant] = max(version, done.tenants.get(edit.tenant, 0))
