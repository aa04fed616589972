"""Versions of the policy and of tenants' records, as they were announced.

    v#policy, v#<tenant>   v: newest version

They have no `ttl`. They are read at most every 5 s, beside an admission and not before it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from tollgate.adapters.dynamodb import ConditionFailed, Plain, Table, Write, again, together
from tollgate.adapters.dynamodb_limit_crowds import Reads
from tollgate.adapters.lru import Lru
from tollgate.domain.keys import digest
from tollgate.domain.limits import Admission
from tollgate.ports import StoreUnavailable

FRESH_S = 5.0
"""How old the versions that admissions are compared with may be."""
KNOWN = 10_000
POLICY = "v#policy"
_UNKNOWN = (0, float("-inf"))


class Versions:
    """The versions in a table, and what this container knows of them."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._reads = Reads(table, consistent=False)
        self._known: Lru[tuple[int, float]] = Lru(KNOWN)
        """Version, and when it was read (s, monotonic)."""

    async def publish(self, policy: int, tenants: Mapping[str, int]) -> None:
        """Announce newer versions; none falls. `policy`: 0 for none."""
        wanted = {_tenant(tenant): version for tenant, version in tenants.items()}
        if policy:
            wanted[POLICY] = policy
        await together(self._publish(pk, version) for pk, version in wanted.items())

    async def _publish(self, pk: str, version: int) -> None:
        write = Write()
        v, new = write.name("v"), write.value(version)
        write.conditions.append(f"(attribute_not_exists({v}) OR {v} < {new})")
        write.sets.append(f"{v} = {new}")
        try:
            await again(lambda: self._table.update({"pk": pk}, write))
        except ConditionFailed as failed:
            version = _version(failed.item)
        self._known.put(pk, (version, time.monotonic()))

    async def now(self, tenant: str) -> tuple[int, int]:
        """Of the policy and the tenant's record, read for this."""
        pks = POLICY, _tenant(tenant)
        found = {item["pk"]: _version(item) for item in await self._table.get_many([{"pk": pk} for pk in pks])}
        return found.get(pks[0], 0), found.get(pks[1], 0)

    async def newest(self, admission: Admission) -> tuple[int, int]:
        """Of the policy and the tenant's record, as they were at most 5 s ago."""
        policy, tenant = POLICY, _tenant(admission.tenant)
        asked = [policy] if admission.policy_version else []
        asked += [tenant] if admission.tenant_version else []
        now_s = time.monotonic()
        old = [pk for pk in asked if self._known.get(pk, _UNKNOWN)[1] < now_s - FRESH_S]
        if old:
            found = await self._reads.get(old)
            for pk in old:
                read = _version(found[pk]) if pk in found else 0
                self._known.put(pk, (max(self._known.get(pk, _UNKNOWN)[0], read), now_s))
        return self._known.get(policy, _UNKNOWN)[0], self._known.get(tenant, _UNKNOWN)[0]

    async def ping(self) -> None:
        """Raises `StoreUnavailable` unless DynamoDB answers."""
        await self._reads.get([POLICY])


def _tenant(tenant: str) -> str:
    return f"v#{digest(tenant)}"


def _version(plain: Plain) -> int:
    found = plain.get("v")
    if type(found) is not int:
        raise StoreUnavailable(f"DynamoDB: {plain.get('pk')} has no version")
    return found
