"""Does the gateway's memory stay where it is? `make soak`.

Callers of many tenants and users keep calling, streaming and not, with answers and refusals, tokens that are new and
tokens that are forged, and callers who leave in mid-answer. After a warm-up of a fifth of the time, memory is read each
second; the last fifth may exceed the first by 5 % (exit code 1 otherwise), in less than half an hour by 15 %.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from statistics import median

from rig import CannotRun, Process, Rig

from tollgate.adapters.http import HttpClient
from tollgate.adapters.http_message import Timeouts, UpstreamError

GROWTH = 0.05
FULL_MINUTES, SHORT_GROWTH = 30, 0.15
"""A shorter run sees caches fill, which are bounded; a kilobyte lost with each request would show all the same."""
USERS, CALLERS = 1_000, 8
TIMEOUTS = Timeouts(connect=5, first_byte=20, idle=20, total=60)


class Crowd:
    """Callers, each of whom asks again after a pause."""

    def __init__(self, rig: Rig, port: int, seed: int) -> None:
        self.seen: Counter[int | str] = Counter()
        self._url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self._dice = random.Random(seed)
        self._http = HttpClient()
        self._issuer = rig.issuer
        self._tokens: dict[str, str] = {}
        self._newcomers = iter([(tenant, f"user-{i}") for i in range(USERS) for tenant in ("bench", "exact")])
        """Everyone calls once, within the warm-up: what the gateway keeps of each caller is not growth."""

    async def call(self, pause: float, until: float) -> None:
        while time.monotonic() < until:
            try:
                await self._once()
            except UpstreamError as error:
                self.seen[type(error).__name__] += 1
            await asyncio.sleep(pause * self._dice.expovariate(1))
        await self._http.aclose()

    async def _once(self) -> None:
        dice = self._dice
        stream = dice.random() < 0.5
        asked = {
            "model": "bench" if dice.random() < 0.98 else f"unknown-{dice.randrange(10**9)}",
            "messages": [{"role": "user", "content": "word " * round(dice.lognormvariate(4, 1))}],
            "stream": stream,
        }
        if dice.random() < 0.5:
            asked["max_tokens"] = dice.randrange(1, 500)
        headers = [(b"authorization", b"Bearer " + self._token().encode()), (b"content-type", b"application/json")]
        response = await self._http.request("POST", self._url, headers, json.dumps(asked).encode(), TIMEOUTS)
        self.seen[response.status] += 1
        async for _ in response:
            if dice.random() < 0.05:
                self.seen["left"] += 1
                response.close()
                break

    def _token(self) -> str:
        dice = self._dice
        somebody = dice.choices(("bench", "exact", "unknown"), (90, 8, 2))[0], f"user-{dice.randrange(USERS)}"
        tenant, user = next(self._newcomers, somebody)
        if dice.random() < 0.01:
            return f"forged.{dice.randrange(10**9)}.token"
        name = f"{tenant}/{user}"
        if name not in self._tokens or dice.random() < 0.01:  # a new one, for one who has one already
            self._tokens[name] = self._issuer.token(tenant, user)
        return self._tokens[name]


async def soak(rig: Rig, process: Process, port: int, minutes: float, rate: float, seed: int) -> bool:
    """Run the load and watch; whether memory stayed."""
    until = time.monotonic() + minutes * 60
    crowd = Crowd(rig, port, seed)
    callers = [asyncio.create_task(crowd.call(CALLERS / rate, until)) for _ in range(CALLERS)]
    watched: list[float] = []
    started = told = time.monotonic()
    while time.monotonic() < until:
        await asyncio.sleep(1)
        watched.append(process.rss_mb())
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print(f"{(told - started) / 60:4.0f} min {watched[-1]:7.1f} MB {dict(crowd.seen)}", file=sys.stderr)
    await asyncio.gather(*callers)
    fifth = len(watched) // 5
    before, after = median(watched[fifth : 2 * fifth]), median(watched[-fifth:])
    growth, most = after / before - 1, GROWTH if minutes >= FULL_MINUTES else SHORT_GROWTH
    print(f"{sum(n for k, n in crowd.seen.items() if isinstance(k, int))} answers in {minutes:g} minutes: {crowd.seen}")
    print(f"memory {before:.1f} MB after the warm-up, {after:.1f} MB at the end: {growth:+.1%} (at most {most:+.0%})")
    return growth <= most


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=100, help="requests per second, about")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        with Rig() as rig:
            process, port = rig.gateway()
            stayed = asyncio.run(soak(rig, process, port, options.minutes, options.rate, options.seed))
    except CannotRun as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if stayed else 1


if __name__ == "__main__":
    sys.exit(main())
