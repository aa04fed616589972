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
"""Status, rule, tenant, user, team, API key, and the network of nobody known."""


class RefusalCounts:
    """Counts of the running minute. Belongs to one event loop."""

    def __init__(self, log: UsageLog, clock: Callable[[], int]) -> None:
        self._log = log
        self._clock = clock
        self._counts: dict[_Key, tuple[int, str]] = {}
        """How many, and the id of the first."""
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
        if key not in self._counts and len(self._counts) >= MAX_KEYS:
            key = error.status, OTHERS, "", "", "", "", ""
        count, first = self._counts.get(key, (0, request_id))
        self._counts[key] = count + 1, first
        if self._timer is None:
            seconds = (self._minute_us + MINUTE_US - now) / 1e6
            self._timer = asyncio.get_running_loop().call_later(seconds, self.flush)

    def flush(self) -> None:
        """Write what was counted."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        counts, self._counts = self._counts, {}
        for (status, rule, tenant, user, team, api_key, network), (count, first) in counts.items():
            entry = Refusals(
                os.urandom(8).hex(), self._minute_us, status, rule, count, first,
                tenant=tenant, user=user, team=team, key=api_key, network=network,
            )  # fmt: skip
            self._log.write(entry.line())
