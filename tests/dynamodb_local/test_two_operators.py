"""Two operators edit one tenant a thousand times at once."""

from __future__ import annotations

import asyncio

from tests.policy_tables import Tables, edited_by_two
from tollgate.adapters.aws import AwsClient
from tollgate.domain.policy import TenantSpec


def test_no_edit_is_lost(client: AwsClient, runner: asyncio.Runner) -> None:
    tables = Tables(client, runner)
    tables.apply()
    tables.run(tables.main.create_tenant("acme", TenantSpec(plan="pro"), "tests"))
    tables.run(edited_by_two(tables, edits=1000))
