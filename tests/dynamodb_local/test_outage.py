"""Redis dies at 100 requests a second, and DynamoDB Local stands by."""

from __future__ import annotations

from tests.faults.killed import redis_is_killed
from tests.faults.rig import redis_to_hurt, run


def test_redis_is_killed_at_a_hundred_requests_a_second(url: str) -> None:
    with redis_to_hurt() as redis:
        run(lambda: redis_is_killed(redis, url, 100))
