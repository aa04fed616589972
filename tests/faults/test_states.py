"""Whatever is wrong with Redis: nobody sees an error, and the operator is told of each change once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import redis as redis_py

from tests.faults.rig import Redis, containers, redis_to_hurt, requests, run, until
from tests.servers import start_redis
from tests.waiting import wait
from tollgate.adapters.memory_limits import MemoryLimitStore

OPENED, CLOSED = "Redis does not answer; the breaker is open", "Redis answers again; the breaker is closed"

Act = Callable[[Redis], object]


def _config(**settings: object) -> Act:
    def act(redis: Redis) -> None:
        with redis.client() as client:
            for name, value in settings.items():
                client.config_set(name.replace("_", "-"), value)

    return act


def _busy(redis: Redis) -> None:
    """A script that does not end."""
    _config(lua_time_limit=50)(redis)

    def script() -> None:
        with contextlib.suppress(Exception), redis.client() as client:
            client.eval("while true do end", 0)

    threading.Thread(target=script, daemon=True).start()


def _kill_script(redis: Redis) -> None:
    with redis.client() as client:
        client.script_kill()


def _replica(*, stale_reads: bool) -> Act:
    def act(redis: Redis) -> None:
        _config(replica_serve_stale_data="yes" if stale_reads else "no")(redis)
        with redis.client() as client:
            client.replicaof("127.0.0.1", 1)

    return act


def _master(redis: Redis) -> None:
    with redis.client() as client:
        client.replicaof("NO", "ONE")


def _may_run_scripts(allowed: bool) -> Act:
    def act(redis: Redis) -> None:
        rule = "+" if allowed else "-"
        with redis.client() as client:
            client.acl_setuser(
                "default", enabled=True, nopass=True, categories=["+@all"], commands=[f"{rule}evalsha", f"{rule}eval"]
            )

    return act


def _password(redis: Redis) -> None:
    with redis.client() as client:
        client.config_set("requirepass", "new")
        client.execute_command("AUTH", "new")
        client.client_kill_filter(_type="normal", skipme=True)


def _no_password(redis: Redis) -> None:
    with redis_py.Redis(port=redis.port, password="new") as client:
        client.config_set("requirepass", "")


def _cannot_save(redis: Redis) -> None:
    """Its snapshot's place is taken by a folder, and the last snapshot failed."""
    with redis.client() as client:
        (Path(redis.folder) / client.config_get("dbfilename")["dbfilename"]).mkdir()
        client.config_set("save", "3600 1")
        client.set("something", "to save")
        client.bgsave()
        wait(lambda: client.info("persistence")["rdb_last_bgsave_status"] != "ok")


def _loading(redis: Redis) -> None:
    """It starts with a snapshot that it takes long to load, and looks up every 2 MB."""
    with redis.client() as client:
        client.mset({f"key {i}": os.urandom(50_000) for i in range(1_000)})
        client.save()
    redis.kill()
    slowly = ("--key-load-delay", "5000")
    redis.process = start_redis(redis.port, "--dir", redis.folder, *slowly)


def _loaded(redis: Redis) -> None:
    redis.kill()
    shutil.rmtree(redis.folder)
    Path(redis.folder).mkdir()
    redis.restart()


KINDS: dict[str, tuple[Act, Act, str]] = {
    "killed": (Redis.kill, Redis.restart, "connect"),
    "stalled": (Redis.stall, Redis.wake, "in time"),
    "READONLY": (_replica(stale_reads=True), _master, "READONLY"),
    "MASTERDOWN": (_replica(stale_reads=False), _master, "MASTERDOWN"),
    "OOM": (_config(maxmemory=1), _config(maxmemory=0), "OOM"),
    "NOREPLICAS": (_config(min_replicas_to_write=1), _config(min_replicas_to_write=0), "NOREPLICAS"),
    "NOPERM": (_may_run_scripts(False), _may_run_scripts(True), "NOPERM|permissions"),
    "NOAUTH": (_password, _no_password, "NOAUTH"),
    "BUSY": (_busy, _kill_script, "BUSY|in time"),
    "LOADING": (_loading, _loaded, "LOADING|in time"),  # it answers between two looks only
    "MISCONF": (_cannot_save, _config(stop_writes_on_bgsave_error="no"), "MISCONF"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_change_is_told_once(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    hurt, heal, reason = KINDS[kind]

    async def scenario(redis: Redis) -> None:
        async with containers(redis.url, MemoryLimitStore) as (container,):
            take, breaker = requests(1_000_000), container.failover._breaker
            assert (await container.ask(take))[1].store == "redis"
            await asyncio.to_thread(hurt, redis)
            while not breaker.is_open:
                assert (await container.ask(take))[1].admitted
                await asyncio.sleep(0.02)
            for _ in range(50):  # for some probes' time
                assert (await container.ask(take))[1].store == "second"
                await asyncio.sleep(0.02)
            assert breaker.is_open
            await asyncio.to_thread(heal, redis)
            await until(lambda: container.failover.deciding == "redis")
            assert (await container.ask(take))[1].store == "redis"
            told = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
            lines = [(line["message"], line.get("reason", "")) for line in told if "message" in line]
            assert [message for message, _ in lines] == [OPENED, CLOSED]
            assert any(word in lines[0][1] for word in reason.split("|")), lines[0]
            counted: Counter[str] = Counter()
            for line in told:
                counted.update({name: value for name, value in line.items() if name.startswith("Store")})
            doubts = counted.pop("StoreDoubted")
            assert 1 <= doubts <= 3
            assert counted == {"StoreBreakerOpened": 1, "StoreBreakerClosed": 1, "StoreSettlementsDropped": 0}

    with redis_to_hurt() as redis:
        run(lambda: scenario(redis))
