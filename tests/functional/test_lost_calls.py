"""Callers that leave, and gateways that are killed: each call is charged once, with what the upstream produced, or
with what was held for it where nobody can say."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.aws_fixture import aws_endpoint, dynamodb, make_table
from tests.functional.callers import HELLO, HELLO_ESTIMATE, Caller
from tests.functional.scripted import DONE_EVENT, Exchange, ScriptedUpstream, completion, delta
from tests.functional.stack import ROOT
from tests.functional.test_serve import CHAT, Served, wait
from tests.servers import redis_server
from tollgate.adapters.dead_letters import LoggedDeadLetters
from tollgate.adapters.dynamodb_ledger import DynamoLedger
from tollgate.adapters.redis_store import redis_limit_store
from tollgate.domain.limits import hold_grid_us
from tollgate.services.admit import HOLD_MARGIN_US
from tollgate.services.meter import PATIENCE_US, meter

BUDGET = 1_000_000
MOST = 50
"""Tokens that each answer may have; with the prompt's, what is held for it."""
TOTAL_S = 1
"""The upstream's total timeout where processes are killed: holds end half a minute later."""
HOLD_US = TOTAL_S * 1_000_000 + HOLD_MARGIN_US
LONGEST_HOLD_US = HOLD_US + hold_grid_us(HOLD_US)
LABEL = "x-tollgate-use-case"


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


def policy(upstream: ScriptedUpstream, folder: Path, *, total: float = 60) -> str:
    timeouts = {"connect": min(total, 20), "first_byte": min(total, 20), "idle": min(total, 40), "total": total}
    document = {
        "version": 1,
        "upstreams": {"scripted": {"api": "openai", "base_url": upstream.base_url, "timeouts": timeouts}},
        "models": {"small": {"route": [{"upstream": "scripted", "model": "m"}], "price": {"input": 1, "output": 2}}},
        "plans": {"open": {"models": ["small"], "budgets": [{"scope": "tenant", "tokens": BUDGET, "per": "life"}]}},
        "tenants": {name: {"plan": "open"} for name in ("leaving", "killed", "slow")},
    }
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def usage_of(number: int) -> tuple[int, int]:
    """Prompt and answer tokens that the upstream says call `number` had."""
    return 7 + number % 5, 3 + number % 7


def usage_event(number: int) -> bytes:
    prompt, answer = usage_of(number)
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    return b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"


def spend_the_rest(caller: Caller, used: int) -> None:
    """Everything but what was `used` can be had in one request, and not a token more."""
    rest = BUDGET - used - HELLO_ESTIMATE
    assert caller.chat(max_tokens=rest + 1).status == 402
    assert caller.chat(max_tokens=rest).status == 200


# -- callers that leave ------------------------------------------------------------------------------------------------


def breaks_off(number: int) -> bool:
    """Whether the upstream itself ends call `number` without a word about usage."""
    return number % 10 == 9


def number_of(exchange: Exchange) -> int:
    return int(exchange.received.json["seed"])


def stream_slowly(exchange: Exchange) -> None:
    number = number_of(exchange)
    exchange.begin_stream()
    for _ in range(4):
        exchange.send(delta("12345678"))
        time.sleep(0.1)
    if breaks_off(number):
        exchange.break_off()
        return
    exchange.send(usage_event(number) + DONE_EVENT)
    exchange.end_stream()


def leave_early(caller: Caller, number: int) -> None:
    body = json.dumps({**HELLO, "stream": True, "max_tokens": MOST, "seed": number}).encode()
    with caller.begin("POST", CHAT, body, {LABEL: f"n-{number}"}) as response:
        assert response.status == 200
        response.read(1 + number % 40)


@pytest.mark.parametrize("calls", [10, pytest.param(200, marks=pytest.mark.long)])
def test_who_leaves_is_charged_for_what_the_upstream_produced(
    upstream: ScriptedUpstream, redis_url: str, tmp_path: Path, calls: int
) -> None:
    with (
        redis_flushed_after(redis_url),
        Served(policy(upstream, tmp_path), upstream, TOLLGATE_STORE_URL=redis_url) as served,
    ):
        caller = served.caller("leaving")
        with upstream.play(stream_slowly) as received, ThreadPoolExecutor(20) as threads:
            list(threads.map(lambda number: leave_early(caller, number), range(calls)))
            wait(lambda: len(served.records("usage.close")) == calls)
        assert len(received) == calls
        closed = {int(record["use_case"][2:]): record for record in served.records("usage.close")}
        assert sorted(closed) == list(range(calls))
        for number, record in closed.items():
            used = (HELLO_ESTIMATE, 8) if breaks_off(number) else usage_of(number)  # 4 deltas of 8 bytes, by four
            assert (record["input_tokens"], record["output_tokens"]) == used, record
            assert record["estimated"] is breaks_off(number)
            assert record["cost_microusd"] == used[0] + 2 * used[1]
        spend_the_rest(caller, sum(r["input_tokens"] + r["output_tokens"] for r in closed.values()))


@contextmanager
def redis_flushed_after(url: str) -> Iterator[None]:
    """The next test finds none of this one's budgets."""
    import redis

    yield
    with redis.Redis.from_url(url) as client:
        client.flushall()


@pytest.mark.long
def test_who_leaves_is_drained_for_half_a_minute_and_more(
    upstream: ScriptedUpstream, redis_url: str, tmp_path: Path
) -> None:
    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        for _ in range(33):
            exchange.send(delta("1234"))
            time.sleep(1)
        exchange.send(usage_event(0) + DONE_EVENT)
        exchange.end_stream()

    with (
        Served(policy(upstream, tmp_path), upstream, TOLLGATE_STORE_URL=redis_url) as served,
        upstream.play(script),
    ):
        leave_early(served.caller("slow"), 0)
        wait(lambda: bool(served.records("usage.close")))
        (record,) = served.records("usage.close")
        assert (record["input_tokens"], record["output_tokens"]) == usage_of(0)
        assert not record["estimated"]
        assert record["latency_ms"] > 32_000


# -- gateways that are killed ------------------------------------------------------------------------------------------


class Mortal:
    """A gateway that is started again and again, and what all of its processes recorded."""

    def __init__(self, served: Served, folder: Path) -> None:
        """`served` only lends its environment and port."""
        self._served = served
        self.records = folder / "records"
        command = [sys.executable, "-m", "tests.functional.forker", str(served.port), str(self.records)]
        env = {**served.env, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._forker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=ROOT, text=True
        )
        self.pid = 0

    def start(self) -> None:
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        if self.records.exists() and self.records.read_bytes()[-1:] not in (b"", b"\n"):
            with self.records.open("ab") as records:  # as in a pipe of its own, a new process begins a new line
                records.write(b"\n")
        print(file=self._forker.stdin, flush=True)
        self.pid = int(self._forker.stdout.readline())
        caller = self._served.caller()

        def healthy() -> bool:
            try:
                return caller.get("/healthz").status == 200
            except ConnectionError:
                return False

        wait(healthy)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def lines(self) -> list[str]:
        """But for what a kill tore: a write to a file may end where a page does."""
        lines = self.records.read_text().splitlines()
        return [line for line in lines if line.startswith('{"event":"usage.') and line.endswith("}")]

    def end(self) -> None:
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        self._forker.stdin.close()
        self._forker.wait(20)
        self._forker.stdout.close()


@contextmanager
def mortal(upstream: ScriptedUpstream, redis_url: str, folder: Path) -> Iterator[Mortal]:
    served = Served(policy(upstream, folder, total=TOTAL_S), upstream, TOLLGATE_STORE_URL=redis_url)
    gateway = Mortal(served, folder)
    try:
        yield gateway
    finally:
        try:
            gateway.kill()
        except ProcessLookupError:
            pass  # a test may end with it dead
        gateway.end()


class Bookkeeper:
    """Metering on a real ledger's table, with a clock of its own."""

    def __init__(self, ledger: DynamoLedger, redis_url: str, run: asyncio.Runner) -> None:
        self.ledger = ledger
        self._redis_url = redis_url
        self._run = run
        self._chance = random.Random(1)

    def deliver(self, lines: list[str], later_us: int = 0) -> None:
        """All lines, some twice, in any order, in batches; `later_us` from now."""
        lines = lines + self._chance.sample(lines, len(lines) // 3)
        self._chance.shuffle(lines)
        for at in range(0, max(len(lines), 1), 50):
            self._run.run(self._meter(lines[at : at + 50], time.time_ns() // 1000 + later_us))

    async def _meter(self, lines: list[str], now_us: int) -> None:
        store = redis_limit_store(self._redis_url, {})
        try:
            report = await meter(lines, self.ledger, store, LoggedDeadLetters(), now_us)
            assert (report.poison, report.store_failure) == (0, "")
        finally:
            await store.aclose()


@pytest.mark.parametrize("kills", [4, pytest.param(500, marks=pytest.mark.long)])
def test_a_gateway_killed_between_answer_and_settlement(
    upstream: ScriptedUpstream, redis_url: str, tmp_path: Path, kills: int
) -> None:
    """The upstream kills it: a part of a millisecond after its answer, or (every third time) before a byte of it is
    read. What died before its record is billed at its estimate, and everything exactly once."""
    chance = random.Random(kills)

    def script(exchange: Exchange) -> None:
        number = number_of(exchange)
        prompt, answer = usage_of(number)
        unread = number % 3 == 0
        if unread:
            os.kill(gateway.pid, signal.SIGSTOP)
        if number % 2:
            exchange.begin_stream()
            exchange.send(delta("12345678") + usage_event(number) + DONE_EVENT)
            exchange.end_stream()
        else:
            exchange.whole(200, completion(usage={"prompt_tokens": prompt, "completion_tokens": answer}))
        if not unread:
            time.sleep(chance.random() * 0.004)
        gateway.kill()

    with (
        redis_flushed_after(redis_url),
        aws_endpoint() as endpoint,
        asyncio.Runner() as run,
        dynamodb(endpoint, run) as client,
        mortal(upstream, redis_url, tmp_path) as gateway,
    ):
        table = run.run(make_table(client, sort_key=True))
        books = Bookkeeper(DynamoLedger(client, table), redis_url, run)
        caller = Served(str(tmp_path), upstream).caller("killed")
        caller = Caller(f"http://127.0.0.1:{gateway._served.port}", caller.tenant, caller.user, caller.token)
        with upstream.play(script) as received:
            for number in range(kills):
                gateway.start()
                fields = {**HELLO, "stream": bool(number % 2), "max_tokens": MOST, "seed": number}
                until = time.monotonic() + 30
                while len(received) == number:  # else it was refused (Redis was slow, say), and lives
                    assert time.monotonic() < until, "no call reaches the upstream"
                    try:
                        caller.post(CHAT, fields, {LABEL: f"n-{number}"})
                    except (ConnectionError, http.client.HTTPException):
                        pass  # nearly always: it died
            died = time.monotonic()
            assert len(received) == kills
        lines = gateway.lines()
        events = Counter(json.loads(line)["event"] for line in lines)
        print(f"figure: {kills} kills, {events['usage.open']} opened, {events['usage.close']} closed by themselves")
        assert events["usage.open"] == kills
        assert events["usage.close"] < kills

        # the pipe brings everything late, twice and in disorder; nobody ever says how the others ended
        books.deliver(lines)
        books.deliver(lines, later_us=LONGEST_HOLD_US + PATIENCE_US + 1_000_000)
        books.deliver(lines)
        entries = entries_of(run, client, table)
        assert sorted(int(entry["use_case"][2:]) for entry in entries) == list(range(kills)), "0 lost, 0 doubled"
        for entry in entries:
            held = (HELLO_ESTIMATE, MOST)
            used = held if entry["estimated"] else usage_of(int(entry["use_case"][2:]))
            assert (entry["input_tokens"], entry["output_tokens"]) == used
        assert sum(entry["estimated"] for entry in entries) == kills - events["usage.close"]
        sums: Counter[str] = Counter()
        for row in run.run(books.ledger.report(tenant="killed")):
            sums.update(row.sums)
        total = sum(entry["input_tokens"] + entry["output_tokens"] for entry in entries)
        assert sums["requests"] == kills
        assert sums["input_tokens"] + sums["output_tokens"] == total

        if kills > 100:  # the holds end in real time
            time.sleep(max(0.0, died + LONGEST_HOLD_US / 1e6 + 1 - time.monotonic()))
            gateway.start()
            with upstream.play():
                assert caller.chat(max_tokens=MOST).status == 200
                wait(lambda: len(gateway.lines()) == len(lines) + 2)
                books.deliver(gateway.lines())  # its close brings the floor
                spend_the_rest(caller, total + 10)


def entries_of(run: asyncio.Runner, client: Any, table: str) -> list[dict[str, Any]]:
    async def scan() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        start: dict[str, Any] = {}
        while True:
            page = await client.call("Scan", {"TableName": table, **start})
            found += [json.loads(item["r"]["S"]) for item in page["Items"] if item["pk"]["S"].startswith("u#")]
            if "LastEvaluatedKey" not in page:
                return found
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}

    return run.run(scan())
