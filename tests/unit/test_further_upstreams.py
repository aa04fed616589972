"""A further upstream, where the first cannot serve: who is asked for its limits, and who is charged for the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tests.unit.test_admit import NOON, SECOND, Spent
from tollgate.adapters.http_message import UpstreamError
from tollgate.adapters.memory_limits import MemoryLimitStore
from tollgate.adapters.policy_file import FilePolicySource
from tollgate.domain.identity import INVOKE, Identity
from tollgate.domain.limits import Admission, Decision, RateTake, Settlement, Status
from tollgate.domain.policy import UpstreamSpec
from tollgate.domain.records import UsageClose
from tollgate.domain.replay import settlement_of
from tollgate.ports import LimitStore, StoreUnavailable
from tollgate.services.account import Account
from tollgate.services.administration import Administration
from tollgate.services.admit import Admitter
from tollgate.services.directory import Directory
from tollgate.services.exchange import Exchange
from tollgate.services.forward import Forwarder
from tollgate.services.gateway import Gateway

ALICE = Identity("acme", "alice", scopes=frozenset({INVOKE}), expires_at=2**40)
TOKENS = 900
"""What each answer says that it used."""
MINUTE = 60 * SECOND
SPARE = "[{tokens: 2000, per: minute}]"


def policy(first: str = "[{tokens: 1000, per: minute}]", spare: str = SPARE, route: str = "spare") -> str:
    return f"""
version: 1
upstreams:
  first: {{api: openai, base_url: "http://127.0.0.1:9/v1", limits: {first}}}
  spare: {{api: openai, base_url: "http://127.0.0.1:10/v1", limits: {spare}}}
models:
  small: {{route: [{{upstream: first, model: s}}, {{upstream: {route}, model: t}}], price: {{input: 1, output: 2}}}}
plans:
  free: {{models: [small], when_stores_fail: open, limits: [{{scope: user, tokens: 100000, per: minute}}]}}
tenants: {{acme: {{plan: free}}}}
"""


class Answer:
    """An upstream's whole answer."""

    status = 200
    headers: Sequence[tuple[bytes, bytes]] = ((b"content-type", b"application/json"),)

    def header(self, name: bytes) -> bytes | None:
        return dict(self.headers).get(name)

    async def read(self, limit: int) -> bytes:
        usage = {"prompt_tokens": 100, "completion_tokens": TOKENS - 100, "total_tokens": TOKENS}
        return json.dumps({"choices": [{"message": {"content": "hi"}}], "usage": usage}).encode()

    def close(self) -> None: ...


class FirstIsDead:
    """Sends nothing to the first route's model; any other one answers."""

    async def send(self, upstream: UpstreamSpec, path: str, headers: object, body: bytes, seconds: float) -> Answer:
        if json.loads(body)["model"] == "s":
            raise UpstreamError("connection refused", sent=False)
        return Answer()


class Counting(MemoryLimitStore):
    """A store that notes what it was asked for, and may not answer."""

    name = "redis"
    away = False
    cold = False
    """Whether it has lost its rates, so that it takes from none that nobody has loaded."""

    def __init__(self) -> None:
        super().__init__(lambda: NOON)
        self.asked: list[str] = []
        self.settled: list[Settlement] = []

    async def admit(self, admission: Admission) -> Decision:
        self.asked.append(admission.id)
        if self.away:
            raise StoreUnavailable("as if it were down")
        rates = [(i, take) for i, take in enumerate(admission.takes) if isinstance(take, RateTake)]
        missing = tuple(i for i, take in rates if self.cold and take.seed_us is None)
        return Decision(Status.COLD, NOON, cold=missing) if missing else await super().admit(admission)

    async def settle(self, settlement: Settlement) -> bool:
        self.settled.append(settlement)
        return await super().settle(settlement)


class World:
    """A gateway whose first upstream cannot be reached."""

    def __init__(self, folder: Path, text: str) -> None:
        (folder / "policy.yaml").write_text(text)
        self.store, self.local = Counting(), MemoryLimitStore(lambda: NOON)
        self.records: list[dict[str, Any]] = []
        source = FilePolicySource(folder / "policy.yaml", {})
        self.directory = Directory(source, lambda: NOON, versioned=lambda: True)
        self.admitter = Admitter(self.store, Spent(), self.directory, self.local, lambda: NOON)
        ids = iter(range(1000))
        self.gateway = Gateway(
            identify=self._identify,
            account=cast("Account", None),
            administration=cast("Administration", None),
            admitter=self.admitter,
            forwarder=cast("Forwarder", FirstIsDead()),
            usage_log=self,
            clock=lambda: NOON,
            name=lambda exchange: f"r{next(ids)}",
            deadline=lambda exchange: None,
            status=dict,
            close=self.store.aclose,
        )

    def write(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    async def ask(self) -> int:
        """One call; the answer's status."""
        body = {"model": "small", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": json.dumps(body).encode()}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"method": "POST", "path": "/v1/chat/completions", "headers": []}
        await self.gateway.serve(Exchange(scope, receive, send))
        status: int = sent[0]["status"]
        return status

    async def left(self, upstream: str, store: LimitStore | None = None) -> list[int]:
        """How many of each limit of an upstream are used: µs of TAT ahead of now, or slots."""
        bounds = self.directory.upstream_bounds(await self.directory.policy(), upstream)
        state = store or self.store
        assert isinstance(state, MemoryLimitStore)
        return [max(0, state._tats.get(bound.key, 0) - NOON) + len(state._slots.get(bound.key, ())) for bound in bounds]

    async def _identify(self, exchange: Exchange) -> tuple[Identity, str]:
        return ALICE, "192.0.2.1"


def test_an_upstream_that_did_not_serve_is_charged_no_tokens(tmp_path: Path) -> None:
    """Nor when its settlement is made again from the record."""
    limits = "[{tokens: 1000, per: minute}, {requests: 100, per: minute}, {concurrent: 5}]"

    async def calls() -> World:
        world = World(tmp_path, policy(first=limits, spare="[{tokens: 5000, per: minute}]"))
        assert [await world.ask() for _ in range(5)] == [200] * 5, "its 1,000 tokens do not stop them"
        assert await world.left("first") == [0, 5 * MINUTE // 100, 0], "it was asked five times, and used nothing"
        assert await world.left("spare") == [5 * TOKENS * MINUTE // 5000]
        return world

    world = asyncio.run(calls())
    closes = [UsageClose.parse(record) for record in world.records if record["event"] == "usage.close"]
    assert len(closes) == 5
    for close in closes:
        assert (close.upstream, close.total_tokens) == ("spare", TOKENS)
        again = settlement_of(close)
        assert again is not None
        assert again.used == [None, TOKENS * MINUTE // 100_000, 0, 0]


def test_a_further_upstream_is_loaded_like_any_other_limit(tmp_path: Path) -> None:
    """A store that has lost its rates says so of the first admission, and of each further upstream's."""

    async def call() -> None:
        world = World(tmp_path, policy())
        world.store.cold = True
        assert await world.ask() == 200
        assert world.store.asked == ["r0", "r0", "r0.1", "r0.1"]
        assert await world.left("spare") == [TOKENS * MINUTE // 2000]

    asyncio.run(call())


def test_a_further_upstream_without_limits_needs_no_store(tmp_path: Path) -> None:
    async def call() -> None:
        world = World(tmp_path, policy(spare="[]"))
        assert await world.ask() == 200
        assert world.store.asked == ["r0"]
        assert [each.id for each in world.store.settled] == ["r0"]

    asyncio.run(call())


def test_where_no_store_answers_a_further_upstream_is_as_open_as_the_plan(tmp_path: Path) -> None:
    async def calls(text: str) -> tuple[list[int], list[int]]:
        world = World(tmp_path, text)
        world.store.away = True
        return [await world.ask() for _ in range(4)], await world.left("spare", world.local)

    statuses, spare = asyncio.run(calls(policy()))
    assert statuses == [200, 200, 200, 502], "until what this container has of it is used"
    assert spare == [3 * TOKENS * MINUTE // 2000]


def test_a_second_model_of_the_same_upstream_is_charged_once(tmp_path: Path) -> None:
    """Its limits were taken already, for the first model."""

    async def call() -> None:
        world = World(tmp_path, policy(route="first"))
        assert await world.ask() == 200
        assert world.store.asked == ["r0"]
        assert await world.left("first") == [TOKENS * MINUTE // 1000]

    asyncio.run(call())
