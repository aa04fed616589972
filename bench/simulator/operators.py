"""Who runs the gateway: the policy, and the tenants' records as they are now."""

from __future__ import annotations

from pathlib import Path

from bench.simulator.population import Population
from bench.simulator.virtual_time import at_once
from tollgate.adapters.policy_file import FilePolicySource
from tollgate.domain.policy import LimitOverride, LimitSpec, TenantRecord
from tollgate.domain.schema import plain

BOOSTED = 200
"""How many of the largest tenants a boost is for."""


class Operators:
    """Records are made when they are asked for: a tenant that nobody changed has its plan, and nothing else."""

    def __init__(self, population: Population) -> None:
        source = FilePolicySource(Path(__file__).parent / "policy.yaml", {})
        self.policy = at_once(source.policy()).replace(revision=1)
        self._population = population
        self._plain = {plan: TenantRecord(tenant="any", plan=plan, version=1) for plan in self.policy.plans}
        self._changed: dict[int, TenantRecord] = {}

    def record(self, tenant: int) -> TenantRecord:
        return self._changed.get(tenant) or self._plain[self._population.plan(tenant)]

    def boost(self, factor: int) -> dict[str, int]:
        """Give the largest tenants `factor` times their plans' rates; their records' new versions, by name."""
        versions = {}
        for tenant in range(BOOSTED):
            old = self.record(tenant)
            limits = tuple(_times(factor, limit) for limit in self.policy.plans[old.plan].limits)
            self._changed[tenant] = TenantRecord(
                tenant=f"t{tenant}", plan=old.plan, version=old.version + 1, limits=limits
            )
            versions[f"t{tenant}"] = old.version + 1
        return versions


def _times(factor: int, limit: LimitSpec) -> LimitOverride:
    given = plain(limit)
    amounts = {name: factor * given[name] for name in ("requests", "tokens", "burst", "concurrent") if name in given}
    return LimitOverride(**limit.__dict__ | amounts)
