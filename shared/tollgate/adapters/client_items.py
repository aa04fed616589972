"""Which tenant each app client acts for: items ``client#<client id>`` of the tenants table.

    tenant      client#<client id>
    tenant_id   the tenant
    team        its team, where it has one
    name        what operators call it; unique in a tenant

The token trigger reads them when a client asks for a token.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tollgate.adapters.document_table import Client, ConditionFailed, DocumentTable, as_read
from tollgate.adapters.tenants_table import Conflict, NotFound, stamp

PREFIX = "client#"
"""No tenant's name can hold a ``#``."""


class MachineClient(NamedTuple):
    client_id: str
    tenant: str
    name: str = ""
    """Empty where somebody made the item by hand."""
    team: str = ""
    created: str = ""

    def as_dict(self) -> dict[str, str]:
        return self._asdict()


class ClientItems:
    """The items of one tenants table. Failures to reach it are raised as `PolicyUnavailable`."""

    def __init__(self, client: Client, tenants_table: str, clock_s: Callable[[], float] = time.time) -> None:
        self._table = DocumentTable(client, tenants_table, "tenant")
        self._clock_s = clock_s

    async def all(self, tenant: str | None = None) -> list[MachineClient]:
        """Every client, or a tenant's."""
        found = [_client(item) async for item in self._table.scan() if str(item["tenant"]).startswith(PREFIX)]
        return sorted(
            (client for client in found if tenant is None or client.tenant == tenant),
            key=lambda client: (client.tenant, client.name, client.client_id),
        )

    async def find(self, name: str, tenant: str | None = None) -> MachineClient:
        """The client of this name or id. Raises `NotFound`; `Conflict` where several tenants have one."""
        found = [client for client in await self.all(tenant) if name in (client.name, client.client_id)]
        if not found:
            whose = f" of tenant {tenant!r}" if tenant else ""
            raise NotFound(f"there is no client {name!r}{whose}: see `tollgate client list`")
        if len(found) > 1:
            tenants = ", ".join(client.tenant for client in found)
            raise Conflict(f"several tenants have a client {name!r} ({tenants}): add --tenant, or give its id")
        return found[0]

    async def add(self, client: MachineClient, actor: str) -> MachineClient:
        """Let a client act for its tenant. Raises `Conflict` if it acts for one already."""
        made = client._replace(created=stamp(self._clock_s()))
        item = {
            "tenant": PREFIX + made.client_id,
            "tenant_id": made.tenant,
            "name": made.name,
            "team": made.team,
            "updated_at": made.created,
            "updated_by": actor,
        }
        try:
            await self._table.put({key: value for key, value in item.items() if value}, as_read("tenant", None, ()))
        except ConditionFailed:
            raise Conflict(f"the client {client.client_id!r} acts for a tenant already") from None
        return made

    async def remove(self, client_id: str) -> None:
        await self._table.delete(PREFIX + client_id)


def _client(item: dict[str, Any]) -> MachineClient:
    return MachineClient(
        client_id=str(item["tenant"]).removeprefix(PREFIX),
        tenant=str(item.get("tenant_id", "")),
        name=str(item.get("name", "")),
        team=str(item.get("team", "")),
        created=str(item.get("updated_at", "")),
    )
