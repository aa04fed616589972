"""What a function keeps from one event to the next lives on one loop, and ends when somebody says so."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.raw_http import OK
from tollgate.adapters.http import HttpClient
from tollgate.adapters.kept import Kept


class Made:
    """Counts what was made and ended, and may fail."""

    def __init__(self) -> None:
        self.made = self.ended = 0
        self.fails = False

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[asyncio.AbstractEventLoop]:
        if self.fails:
            raise ValueError("a bad setting")
        self.made += 1
        yield asyncio.get_running_loop()
        self.ended += 1


async def same_loop(loop: asyncio.AbstractEventLoop) -> bool:
    return loop is asyncio.get_running_loop()


async def fail(_: object) -> None:
    raise RuntimeError("an event that cannot be entered")


def test_events_share_what_was_made_at_the_first() -> None:
    made = Made()
    kept = Kept(made)
    assert made.made == 0, "nothing is done while the module is imported"
    assert kept.run(same_loop)
    with pytest.raises(RuntimeError, match="cannot be entered"):
        kept.run(fail)
    assert kept.run(same_loop)
    assert (made.made, made.ended) == (1, 0)
    kept.close()
    kept.close()
    assert (made.made, made.ended) == (1, 1)
    assert kept.run(same_loop), "it is made again for whoever comes all the same"
    kept.close()
    assert (made.made, made.ended) == (2, 2)


def test_what_could_not_be_made_is_tried_again() -> None:
    made = Made()
    kept, made.fails = Kept(made), True
    with pytest.raises(ValueError, match="bad setting"):
        kept.run(same_loop)
    made.fails = False
    assert kept.run(same_loop)
    kept.close()


def test_a_connection_that_was_lost_while_nothing_ran_is_noticed_first() -> None:
    """As after a freeze: the server has closed it, and no loop was there to see."""

    @asynccontextmanager
    async def client() -> AsyncIterator[HttpClient]:
        http = HttpClient()
        yield http
        await http.aclose()

    def answer_one() -> None:
        accepted, _ = listener.accept()
        servers.append(accepted)
        accepted.recv(65_536)
        accepted.sendall(OK)

    async def ask(http: HttpClient) -> int:
        asking = asyncio.create_task(http.request("GET", f"http://127.0.0.1:{listener.getsockname()[1]}/"))
        await asyncio.to_thread(answer_one)
        response = await asking
        await response.read(100)
        return len(http._connections)

    async def connections(http: HttpClient) -> int:
        return len(http._connections)

    servers: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept = Kept(client)
        assert kept.run(ask) == 1
        servers[0].close()
        assert kept.run(connections) == 0
        assert kept.run(ask) == 1
        servers[1].close()
        kept.close()
