"""One process of many: its own store, its own (wrong) clock, and a hundred callers at once.

    python -m tests.dynamodb_local.caller URL TABLE KIND CALLERS SKEW_S

prints what its callers were told: ``{"admitted": [now_us, ...], "refused": [...], "offset_us": N}``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from tests.aws_fixture import ENVIRON, PATIENT
from tests.dynamodb_local.takes import one
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.dynamodb_limits import DynamoLimitStore
from tollgate.adapters.http import HttpClient
from tollgate.domain.limits import Admission

HOLD_US = 900_000_000
APART_S = 1.1
"""Between a caller's tries: clocks that are right to a second have all passed what the others saw."""


async def call(url: str, table: str, kind: str, callers: int, clock_skew_us: int) -> dict[str, object]:
    http = HttpClient()
    client = AwsClient.for_service("dynamodb", http, ENVIRON | {"AWS_ENDPOINT_URL": url}, PATIENT)
    store = DynamoLimitStore(client, table)
    told: dict[bool, list[int]] = {True: [], False: []}

    async def caller() -> None:
        for _ in range(2):
            decision = await store.admit(Admission(os.urandom(16).hex(), [one(kind)], HOLD_US, "acme"))
            told[decision.admitted].append(decision.now_us)
            if not decision.admitted:
                await asyncio.sleep(APART_S)

    await store.warm()
    await asyncio.gather(*(caller() for _ in range(callers)))
    await http.aclose()
    return {"admitted": told[True], "refused": told[False], "offset_us": client.clock_offset_us}


def main() -> None:
    url, table, kind, callers, skew_s = sys.argv[1:]
    right, skew_ns = time.time_ns, int(float(skew_s) * 1e9)
    time.time_ns = lambda: right() + skew_ns
    print(json.dumps(asyncio.run(call(url, table, kind, int(callers), skew_ns // 1000))))


if __name__ == "__main__":
    main()
