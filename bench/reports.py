"""How long usage reports take of a month of a million calls: `python -m bench.reports` (Java and DynamoDB Local).

The rows are those that metering would have made of the calls; what is timed is reading and adding them up, as
`tollgate usage` does, and the CPU time of that in this process. DynamoDB Local shares this machine's cores, and answers
a page of 1 MB in its own time; the pages are told, so that another DynamoDB can be reckoned.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import itertools
import random
import resource
import time
from collections import Counter, defaultdict
from typing import Any

from tests.aws_fixture import dynamodb, make_table
from tests.servers import dynamodb_local
from tollgate.adapters.aws import AwsClient
from tollgate.adapters.dynamodb import Table
from tollgate.adapters.dynamodb_counters import place_item
from tollgate.adapters.dynamodb_ledger import DynamoLedger
from tollgate.domain.bookkeeping import Row, add
from tollgate.domain.keys import digest
from tollgate.domain.reports import ALL_KEYS, KEYS, OVERVIEW, TENANT_OVERVIEW, grouped

TENANTS, USERS, USE_CASES = 60, 2_000, 4
MODELS = (("small", 70), ("large", 25), ("embed", 5))


class Zipf:
    """Some of `n` are much busier than others."""

    def __init__(self, n: int, exponent: float = 1.0) -> None:
        self._sums = list(itertools.accumulate(1 / (i + 1) ** exponent for i in range(n)))

    def __call__(self, rng: random.Random) -> int:
        return bisect.bisect(self._sums, rng.random() * self._sums[-1])


def month(calls: int, rng: random.Random) -> dict[Row, dict[str, int]]:
    """The rows of a month: 60 tenants, 2,000 users, three models, four use cases each; weekdays are busier."""
    tenant_of, case_of = Zipf(TENANTS), Zipf(USE_CASES)
    shares = [max(1, round(USERS / (i + 1) / sum(1 / (j + 1) for j in range(TENANTS)))) for i in range(TENANTS)]
    users = [Zipf(share, 0.8) for share in shares]
    days = [f"2026-11-{day:02}" for day in range(1, 31) for _ in range(1 if day % 7 in (0, 1) else 5)]
    names, weights = zip(*MODELS, strict=True)
    models = rng.choices(names, weights, k=calls)
    rows: dict[Row, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for i in range(calls):
        tenant = tenant_of(rng)
        user, case = users[tenant](rng), case_of(rng)
        row = Row(
            f"tenant-{tenant:02}", rng.choice(days), f"user-{user:04}@example.com", models[i], "openai",
            f"team-{user % 8}", f"key-{user % 20:02}", f"use-case-{case}",
        )  # fmt: skip
        sums = rows[row]
        sums["requests"] += 1
        sums["input_tokens"] += 900
        sums["cached_input_tokens"] += 300
        sums["output_tokens"] += 350
        sums["cost_microusd"] += 345
    rolled: dict[Row, dict[str, int]] = {}
    for row, sums in rows.items():
        add(rolled, {row: sums, **dict.fromkeys(row.rolled(), sums)})
    return rolled


async def fill(client: AwsClient, rows: dict[Row, dict[str, int]]) -> str:
    name = await make_table(client, sort_key=True)
    table = Table(client, name, patient=True)
    items: list[dict[str, Any]] = []
    for row, sums in rows.items():
        key, about = place_item(row)
        items.append({**key, **about, **sums})
    items += [{"pk": "tenants", "sk": digest(t), "tenant": t} for t in {row.tenant for row in rows}]
    step = 25 * 40
    for at in range(0, len(items), step * 4):
        await asyncio.gather(*(table.write_many(puts=items[i : i + step]) for i in range(at, at + step * 4, step)))
    return name


class Counted:
    """A client that counts its queries."""

    def __init__(self, client: AwsClient) -> None:
        self.client = client
        self.queries = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    async def call(self, operation: str, payload: dict[str, Any], *, retry: bool = False) -> dict[str, Any]:
        self.queries += 1
        return await self.client.call(operation, payload, retry=retry)


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = month(arguments.calls, random.Random(7))
    number = Counter(row.rollup or "rows" for row in rows)
    print(f"{arguments.calls:,} calls made", ", ".join(f"{count:,} {name}" for name, count in number.items()))
    november: dict[str, Any] = {"since": "2026-11-01", "until": "2026-11-30"}
    asked: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
        *((f"everything, by {key}", {}, (key,)) for key in ALL_KEYS),
        ("everything, by tenant, model and day", {}, ("tenant", "model", "day")),
        ("everything, by tenant and user", {}, ("tenant", "user")),
        ("everything, by all but the day", {}, tuple(key for key in ALL_KEYS if key != "day")),
        ("everything, by what `tollgate usage` shows first", {}, OVERVIEW),
        ("the largest tenant, by what it shows first", {"tenant": "tenant-00"}, TENANT_OVERVIEW),
        ("the largest tenant, by all", {"tenant": "tenant-00"}, ALL_KEYS),
        ("a small tenant, by user and day", {"tenant": "tenant-40"}, ("user", "day")),
        ("everything, by what `--json` has", {}, KEYS),
    ]
    with dynamodb_local() as url, asyncio.Runner() as runner, dynamodb(url, runner) as client:
        table = runner.run(fill(client, rows))
        for name, where, by in asked:
            found: list[tuple[float, float, int, int]] = []
            for _ in range(arguments.rounds):
                counted = Counted(client)
                began, cpu = time.perf_counter(), cpu_s()
                lines = grouped(runner.run(DynamoLedger(counted, table).report(**november, **where, by=by)), by)
                found.append((time.perf_counter() - began, cpu_s() - cpu, counted.queries, len(lines)))
                assert where or sum(line["requests"] for line in lines) == arguments.calls
            took, used, queries, number = min(found)
            slowest = max(found)[0]
            print(
                f"{name}: {took:.2f} to {slowest:.2f} s, {used:.2f} s of CPU here, {queries} queries, {number:,} lines"
            )


if __name__ == "__main__":
    main()
