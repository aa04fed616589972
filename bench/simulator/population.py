"""Who calls, and what they ask for: a million tenants in the memory of one array.

Nothing is stored per tenant but its share of the load. Plan, users, addresses and habits follow from the tenant's
number and the seed, so they are the same whenever they are asked for.
"""

from __future__ import annotations

import math
import random
from array import array
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

from bench.simulator.chance import normal, share
from tollgate.domain.identity import Identity
from tollgate.domain.usage import Usage

ZIPF = 1.05
"""Load by rank, as a power: the first of a million tenants sends 9 % of all requests, the first hundred 45 %."""
ENTERPRISE, PRO = 2e-5, 2e-3
"""The share of tenants, counted from the largest, that are on these plans."""
USERS = {"free": 3, "pro": 30, "enterprise": 1000, "flagship": 2000}
BYTES_PER_TOKEN = 4.2
FIRST_BYTE_S, TOKENS_PER_S = 0.35, 90.0


@dataclass(slots=True)
class Call:
    """One request, with what only time will tell: how long its answer is."""

    id: str
    tenant: int
    who: Identity
    ip: str
    model: str
    prompt_bytes: int
    """Of text."""
    max_tokens: int | None
    usage: Usage
    seconds: float
    """From admission to the last byte."""


class Population:
    """`tenants` callers' accounts, ranked by load."""

    def __init__(self, tenants: int, seed: int) -> None:
        self.tenants = tenants
        self.seed = seed
        self._until = array("d", accumulate(rank**-ZIPF for rank in range(1, tenants + 1)))
        self._chance = random.Random(seed * 7 + 1)
        self._count = 0
        self.plans: dict[int, str] = {}
        """Of tenants that have another one than their rank gives them."""

    def plan(self, tenant: int) -> str:
        """The largest tenants are on the largest plans; the shares are at least one and eight tenants."""
        if tenant in self.plans:
            return self.plans[tenant]
        if tenant < max(1, round(self.tenants * ENTERPRISE)):
            return "enterprise"
        return "pro" if tenant < max(8, round(self.tenants * PRO)) else "free"

    def someone(self) -> tuple[int, int]:
        """A tenant and one of its users, by their shares of the load."""
        tenant = bisect_left(self._until, self._chance.random() * self._until[-1])
        users = max(1, round(USERS[self.plan(tenant)] * (0.5 + share(self.seed, tenant, 1))))
        return tenant, int(users * self._chance.random() ** 2)

    def call(self, tenant: int, user: int) -> Call:
        """What this user asks next."""
        chance, seed = self._chance, self.seed
        plan = self.plan(tenant)
        self._count += 1
        model = "small" if plan == "free" or chance.random() < 0.7 else "large"
        prompt = max(1, round(600 * math.exp(0.7 * normal(seed, tenant, 2) + 0.8 * chance.gauss(0, 1))))
        answer = max(1, round(220 * math.exp(0.6 * normal(seed, tenant, 3) + 0.7 * chance.gauss(0, 1))))
        maximum = chance.choice((128, 256, 512, 1024, 2048)) if share(seed, tenant, user, 4) < 0.3 else None
        answer = min(answer, maximum or 16_384)
        prompt = min(prompt, 100_000)
        text_bytes = prompt * BYTES_PER_TOKEN * math.exp(0.08 * normal(seed, tenant, 5) + 0.05 * chance.gauss(0, 1))
        seconds = FIRST_BYTE_S * math.exp(0.4 * chance.gauss(0, 1)) + answer / TOKENS_PER_S
        return Call(
            f"req_{self._count:012x}",
            tenant,
            Identity(f"t{tenant}", f"u{user}", plan, expires_at=2**53),
            self._address(tenant, user, plan),
            model,
            round(text_bytes),
            maximum,
            Usage(prompt, 0, 0, answer),
            seconds,
        )

    def _address(self, tenant: int, user: int, plan: str) -> str:
        """Most users sit at home; those of companies share a few addresses."""
        host = user % 4 if plan in ("pro", "enterprise") else user
        number = int(share(self.seed, tenant, host, 6) * 2**24)
        return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
