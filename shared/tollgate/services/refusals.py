"""Refusals are counted, not logged one by one: a line for each caller, rule and minute, so that a flood is a few lines.

Nothing here happens to a request that is admitted. What was counted is written when its minute is over; a process that
is frozen then (Lambda) writes it with its next request, and one that ends writes what it has.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from tollgate.domain import keys
from tollgate.domain.audit import Refusals
from tollgate.domain.identity import Identity
from tollgate.ports import UsageLog
from tollgate.wire.errors import ApiError

MINUTE_US = 60_000_000
MAX_KEYS = 500
"""Lines a minute; whoever comes after these is counted together with the others, as nobody in particular."""
OTHERS = "others"

_Key = tuple[int, str, str, str, str, str, str]


class RefusalCounts:
    """Counts of the running minute. Belongs to one event loop."""

    def __init__(self, log: UsageLog, clock: Callable[[], int]) -> None:
        self._log = log
        self._clock = clock
        self._counts: dict[_Key, list[int]] = {}
        self._samples: dict[_Key, str] = {}
        self._minute_us = 0
        self._timer: asyncio.TimerHandle | None = None

    def count(self, error: ApiError, who: Identity | None, address: str, request_id: str) -> None:
        """Count an answer, if it is a refusal: by a limit, a budget, a rule or for want of a credential."""
        if error.status not in (401, 402, 403, 429) and error.code != "exceeds_plan_limit":
            return
        now = self._clock()
        if now - self._minute_us >= MINUTE_US:
            self.flush()
            self._minute_us = now - now % MINUTE_US
        rule = error.rule[:256]  # a budget's names its models
        if who is not None:
            key = error.status, rule, who.tenant, who.user, who.team, who.key, ""
        else:
            key = error.status, rule, "", "", "", "", keys.network(address) if address else ""
        count = self._counts.get(key)
        if count is None:
            if len(self._counts) >= MAX_KEYS:
                key = error.status, OTHERS, "", "", "", "", ""
            count = self._counts.setdefault(key, [0])
            self._samples.setdefault(key, request_id)
            if self._timer is None:
                seconds = (self._minute_us + MINUTE_US - now) / 1e6
                self._timer = asyncio.get_running_loop().call_later(seconds, self.flush)
        count[0] += 1

    def flush(self) -> None:
        """Write what was counted."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        counts, samples = self._counts, self._samples
        self._counts, self._samples = {}, {}
        for key, (count,) in counts.items():
            status, rule, tenant, user, team, api_key, network = key
            entry = Refusals(
                os.urandom(8).hex(), self._minute_us, status, rule, count, samples[key],
                tenant=tenant, user=user, team=team, key=api_key, network=network,
            )  # fmt: skip
            self._log.write(entry.line())
