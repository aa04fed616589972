"""Whether a limit admits what it should: recomputed from the times at which the store admitted each request."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Exactness:
    """What a flooded limit admitted."""

    admitted: int
    allowed: int
    """The burst, and the rate for as long as the flood lasted."""
    beyond: int
    """Admissions for which the bucket had no room at that moment."""

    @property
    def false_refusals(self) -> int:
        """Room that a flood of callers left unused."""
        return max(0, self.allowed - self.admitted)


def judge(times_us: Iterable[int], rate: int, burst: int) -> Exactness:
    """Replay admissions (on the store's clock) through a bucket of `rate` requests per second."""
    times = sorted(times_us)
    if not times:
        return Exactness(0, 0, 0)
    step = -(-1_000_000 // rate)
    tat, beyond = 0, 0
    for now in times:
        tat = max(tat, now) + step
        beyond += tat > now + burst * step
    return Exactness(len(times), burst + (times[-1] - times[0]) // step, beyond)


def usage_records(log: Path, event: str, tenant: str) -> list[int]:
    """When (us, the store's clock) the requests of `tenant` were admitted whose `event` records stand in `log`."""
    found: list[int] = []
    with open(log, encoding="utf-8") as lines:
        for line in lines:
            if f'"{event}"' in line:
                record = json.loads(line)
                if record.get("event") == event and record.get("tenant") == tenant:
                    found.append(record["ts_us"])
    return found
