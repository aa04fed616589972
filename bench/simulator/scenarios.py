"""What can be simulated, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NOON_US = 1_795_262_400_000_000
"""2026-11-21 12:00 UTC."""
HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Flood:
    """One user (or several of one tenant) who sends without pause."""

    rps: float
    tenant: int
    """By rank; plans follow from it."""
    start: float
    end: float
    """Shares of the run."""
    users: int = 1
    plan: str = ""
    """Of the tenant, if not the one that its rank gives it."""


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    says: str
    """What happens, in one line."""
    minutes: float = 5.0
    rps: float = 100.0
    containers: int = 2000
    tenants: int = 1_000_000
    store: Literal["redis", "dynamodb"] = "redis"
    at_once: int = 1
    """Requests at a time in one container: 1 on Lambda, which freezes it in between; more elsewhere."""
    skew_s: float = 0.02
    """Containers' clocks are off by up to this, either way."""
    stale: float = 0.0
    """The share of thawed containers whose clock has stood still while they were frozen."""
    fresh: float = 0.0
    """The share of requests that meet a container which never served any."""
    outage: tuple[float, float] | None = None
    """When Redis dies, as a share of the run, and for how many seconds; it comes back empty."""
    partition: tuple[float, float] | None = None
    """When a third of the containers is cut off from Redis, as a share of the run, and for how many seconds."""
    flood: Flood | None = None
    greedy: int = 0
    """Users who always ask for twice their limit."""
    boost: tuple[float, float] | None = None
    """The shares of the run between which the largest tenants have ten times their limits."""
    start_us: int = NOON_US


_ALL = (
    Scenario("steady", "mixed load on Redis, a day's curve and bursts"),
    Scenario(
        "cold", "half of all requests meet a container that never served any", minutes=2, fresh=0.5, containers=20_000
    ),
    Scenario(
        "flood", "one user sends 1,000 requests a second", minutes=2, flood=Flood(1000, 3000, 0.25, 0.6, plan="pro")
    ),
    Scenario(
        "boost", "the largest tenants get ten times their limits, and lose them again", minutes=2, boost=(0.33, 0.67)
    ),
    Scenario(
        "skew",
        "clocks are off by up to 300 s either way, and may stand still in between, over midnight UTC",
        minutes=3,
        skew_s=300,
        stale=0.1,
        start_us=NOON_US + 12 * HOUR_US - 90_000_000,
    ),
    Scenario(
        "outage",
        "Redis dies for 60 s and comes back empty; DynamoDB decides",
        minutes=4,
        rps=50,
        outage=(0.25, 60),
        greedy=20,
    ),
    Scenario(
        "partition",
        "a third of the containers cannot reach Redis for 30 s; DynamoDB decides for those",
        minutes=4,
        rps=50,
        partition=(0.25, 30),
        greedy=20,
    ),
    Scenario(
        "one-container",
        "mixed load on DynamoDB, from one warm container",
        minutes=1.5,
        rps=40,
        store="dynamodb",
        at_once=1000,
        containers=1,
    ),
    Scenario(
        "many-containers", "mixed load on DynamoDB, from very many containers", minutes=1.5, rps=40, store="dynamodb"
    ),
    Scenario(
        "throttle",
        "DynamoDB decides, items serve 1,000 writes/s, one tenant sends 2,000 requests/s",
        minutes=0.5,
        rps=40,
        containers=9000,
        store="dynamodb",
        flood=Flood(2000, 0, 0.4, 0.6, users=500, plan="flagship"),
    ),
    Scenario(
        "skew-dynamodb",
        "mixed load on DynamoDB over midnight UTC; clocks are off by up to 300 s either way",
        minutes=1.5,
        rps=40,
        store="dynamodb",
        skew_s=300,
        start_us=NOON_US + 12 * HOUR_US - 45_000_000,
    ),
    Scenario(
        "thaw-dynamodb",
        "mixed load on DynamoDB; one in ten containers wakes with the clock that it was frozen with",
        minutes=1.5,
        rps=40,
        store="dynamodb",
        stale=0.1,
    ),
)
SCENARIOS = {scenario.name: scenario for scenario in _ALL}
