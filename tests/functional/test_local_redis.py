"""The local stack's Redis: a real one, or fakeredis where there is none; empty whenever it starts."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
import redis

from tests.contract.test_limit_store import budget, requests, slot
from tests.servers import start_redis
from tollgate.adapters.redis_limits import EPOCH, RedisLimitStore
from tollgate.domain.limits import Admission, Settlement, Take
from tollgate.local import redis_server
from tollgate.local.children import free_port
from tollgate.local.redis_server import answers, find_server, redis_child

TAKES: list[Take] = [requests(2), budget(1, at=time.time_ns() // 1000), slot(2)]


def test_a_server_is_found_on_the_path_or_beside_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    assert find_server("/nowhere") is None
    for name in ("valkey-server", "redis-server"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        assert find_server("/nowhere") == str(tmp_path / name)
        assert find_server(str(tmp_path)) == str(tmp_path / name)


@pytest.mark.parametrize("fake", [False, True])
def test_it_decides_admissions(fake: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if fake:
        monkeypatch.setattr(redis_server, "find_server", lambda path: None)

    async def run() -> None:
        port = free_port()
        child = redis_child(port, os.environ)
        await child.start()
        with redis.Redis(port=port) as client:
            client.set(EPOCH, 1)
        store = RedisLimitStore(f"redis://127.0.0.1:{port}", reply_timeout=5)
        for id in ("a", "a", "b"):
            assert (await store.admit(Admission(id, TAKES, 60_000_000, "acme"))).admitted
        assert not (await store.admit(Admission("c", TAKES, 60_000_000, "acme"))).admitted
        assert await store.settle(Settlement("a", TAKES, [None, 1, 0], "acme"))
        await store.aclose()
        await child.stop(5)

    asyncio.run(run())
    assert ("using fakeredis" in capsys.readouterr().err) is fake


def test_one_that_dies_comes_back_empty_on_its_port() -> None:
    async def run() -> None:
        port = free_port()
        child = redis_child(port, os.environ)
        await child.start()
        with redis.Redis(port=port) as client:
            client.set("key", "value")
        child.serving.clear()
        os.kill(child.pid, signal.SIGKILL)
        await asyncio.wait_for(child.serving.wait(), 10)
        await asyncio.wait_for(answers(port), 5)
        with redis.Redis(port=port) as client:
            assert client.get("key") is None
        await child.stop(5)

    asyncio.run(run())


def test_a_snapshot_that_somebody_left_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    somebody = start_redis(port := free_port(), "--dir", str(tmp_path), "--dbfilename", "dump.rdb")
    with redis.Redis(port=port) as client:
        client.set("key", "value")
        client.save()
    somebody.kill()
    somebody.wait()
    assert (tmp_path / "dump.rdb").exists()

    async def run() -> None:
        child = redis_child(port := free_port(), os.environ)
        await child.start()
        with redis.Redis(port=port) as client:
            assert client.get("key") is None
        await child.stop(5)

    asyncio.run(run())
