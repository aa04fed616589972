"""What the first admission after a failover imports, connects to and fetches: nothing, once the store is warm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import asyncio, json, sys
from tests.dynamodb_local.takes import budget, requests, slot
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.adapters.http import HttpClient
from tollgate.domain.limits import Admission

async def main(url, table, credentials):
    loop, connected = asyncio.get_running_loop(), []
    connect = loop.create_connection

    async def counted(*args, **named):
        connected.append(args)
        return await connect(*args, **named)

    loop.create_connection = counted
    http = HttpClient()
    environ = {"AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": url}
    store = DynamoLimitStore(AwsClient.for_service("dynamodb", http, environ), table)
    cold = set(sys.modules)
    await store.warm()
    warm, connections = set(sys.modules), len(connected)
    decision = await store.admit(Admission("a", [requests(), budget(seed=0), slot()], 60_000_000, "acme"))
    await http.aclose()
    print(json.dumps({
        "admitted": decision.admitted,
        "resolved": "botocore.session" in warm - cold,
        "imported": sorted(set(sys.modules) - warm),
        "connected": len(connected) - connections,
    }))

asyncio.run(main(*sys.argv[1:]))
"""


def test_the_first_admission_of_a_warm_store_only_writes(url: str, table: str, tmp_path: Path) -> None:
    """With credentials that have to be looked for, which costs an import of botocore."""
    credentials = tmp_path / "credentials"
    credentials.write_text("[default]\naws_access_key_id = test\naws_secret_access_key = test\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, url, table, str(credentials)],
        env=clean | {"AWS_SHARED_CREDENTIALS_FILE": str(credentials)},
        capture_output=True,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told == {"admitted": True, "resolved": True, "imported": [], "connected": 0}
