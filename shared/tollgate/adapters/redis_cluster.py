"""Redis Cluster: which node owns a key, and script calls that follow it when it moves.

One `RedisNode` per master, so that whatever one tick of the event loop asks of one node leaves in one write. The slot
map comes from CLUSTER SLOTS (any node, any version knows it) and is read again when an answer or a lost node says that
it is old; until then MOVED and ASK are followed as they come. Every call must be idempotent: it may be repeated.
"""

from __future__ import annotations

import asyncio
import ipaddress
from binascii import crc_hqx
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from tollgate.adapters.redis_connection import (
    REPLY_TIMEOUT,
    ConnectionLost,
    Greet,
    Login,
    RedisAddress,
    RedisConnection,
    RedisNode,
    RedisReplyError,
    refused,
)
from tollgate.adapters.redis_scripts import ScriptCall
from tollgate.domain.dataclass import dataclass
from tollgate.ports import StoreUnavailable

SLOTS = 16_384
REFRESH_EVERY = 0.25
"""Seconds between two readings of the slot map, however many answers ask for one."""
MAX_REPEATS = 6
"""Of one call: a node that forgot the script, a redirection or two, a lost connection, a slot on its way."""
MIGRATION_PAUSE = 0.015
"""Seconds until a script is called again whose keys are on both sides of a migration: one slot's take milliseconds."""
RETIRE_AFTER = 5.0
"""Seconds that a node which left the map has to answer what it was asked."""


def hash_tag(key: str) -> str:
    """What Redis hashes of a key: between its first braces. Every key of ours has them (`domain/keys.py`)."""
    return key[key.index("{") + 1 : key.index("}")]


def slot_of(tag: str) -> int:
    """The slot of all keys with this hash tag: CRC-16/XMODEM, as the Redis Cluster specification says."""
    return crc_hqx(tag.encode(), 0) % SLOTS


Reach = Callable[[RedisNode], Awaitable[RedisConnection]]
"""How a node is connected to: greeted (`RedisNode.connected`) or not (`RedisNode.opened`)."""


@dataclass(slots=True)
class Call:
    """One script call, all of whose keys are in `slot`."""

    slot: int
    script: ScriptCall


class RedisCluster:
    """Belongs to one event loop. `address` is any node, or the endpoint that stands for all. Masters are greeted before
    they are used; `greet` may call `tell`."""

    def __init__(
        self,
        address: RedisAddress,
        reply_timeout: float = REPLY_TIMEOUT,
        login: Login | None = None,
        greet: Greet | None = None,
    ) -> None:
        self._reply_timeout = reply_timeout
        self._login = login
        self._greet = greet
        self._seed = self._made(address)
        self._nodes: dict[tuple[str, int], RedisNode] = {}
        self._retiring: set[RedisNode] = set()
        """Those that left the map, and may still answer what they were asked."""
        self._owners: list[RedisNode | None] = [None] * SLOTS
        self._refreshing: asyncio.Future[None] | None = None
        self._refreshed_at = float("-inf")

    async def run(self, calls: Sequence[Call], *, all_or_none: bool = False) -> list[Any]:
        """Make all calls together; their replies, with a `StoreUnavailable` in the place of each that failed.

        `all_or_none`: raise it instead, before anything is sent, where a node cannot be reached.
        """
        targets: list[RedisConnection | StoreUnavailable] = []
        for call in calls:
            owner = self._owners[call.slot]
            connection = None if owner is None else owner.connection
            if connection is None:
                try:
                    connection = await self._connected(call.slot)
                except StoreUnavailable as error:
                    if all_or_none:
                        raise
                    targets.append(error)
                    continue
            targets.append(connection)
        # All are sent in this tick, before the first reply is waited for.
        sent = [
            target.send(call.script.by_digest) if isinstance(target, RedisConnection) else target
            for target, call in zip(targets, calls, strict=True)
        ]
        replies: list[Any] = []
        for call, target, future in zip(calls, targets, sent, strict=True):
            if isinstance(future, StoreUnavailable) or isinstance(target, StoreUnavailable):
                replies.append(future)
                continue
            try:
                replies.append(await future)
            except (RedisReplyError, StoreUnavailable) as error:
                try:
                    replies.append(await self._repeat(call, target, error))
                except StoreUnavailable as final:
                    replies.append(final)
        return replies

    async def tell(self, call: Call) -> Any:
        """The reply to one call, of a node that may not have been greeted yet. Raises `StoreUnavailable`."""
        connection = await self._connected(call.slot, RedisNode.opened)
        try:
            return await connection.send(call.script.whole())
        except (RedisReplyError, StoreUnavailable) as error:
            return await self._repeat(call, connection, error, RedisNode.opened)

    async def ping(self) -> None:
        """Raises `StoreUnavailable` unless every slot has a master, and every master answers."""
        for connection in await self.masters():
            try:
                await connection.call("PING")
            except RedisReplyError as error:
                raise StoreUnavailable(f"Redis answered {error.code}") from error

    async def masters(self) -> list[RedisConnection]:
        """A connection to each. Raises `StoreUnavailable` unless every slot has a master."""
        await self.refresh()
        if None in self._owners:
            raise StoreUnavailable("some slots of the Redis Cluster have no master")
        return await asyncio.gather(*(node.connected() for node in self._nodes.values()))

    async def owned(self, keys: Iterable[str]) -> dict[RedisConnection, list[str]]:
        """The keys by the connection to the master that has them. Raises `StoreUnavailable`."""
        found: dict[RedisConnection, list[str]] = {}
        for key in keys:
            found.setdefault(await self._connected(slot_of(hash_tag(key))), []).append(key)
        return found

    async def refresh(self) -> None:
        """Read the slot map again, once for all who ask, and not more often than every REFRESH_EVERY seconds. Raises
        `StoreUnavailable` where no node gives one."""
        if (refreshing := self._refresh()) is not None:
            await asyncio.shield(refreshing)

    def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        for node in {self._seed, *self._nodes.values(), *self._retiring}:
            node.close()

    # -- where to

    async def _connected(self, slot: int, reach: Reach = RedisNode.connected) -> RedisConnection:
        """A connection to the slot's master; where that cannot be reached, to the one that has taken its place."""
        owner, failure = self._owners[slot], StoreUnavailable("no node of the Redis Cluster owns the slot")
        if owner is not None:
            try:
                return await reach(owner)
            except StoreUnavailable as error:
                failure = error
        await self.refresh()
        successor = self._owners[slot]
        if successor is None or successor is owner:
            raise failure
        return await reach(successor)

    async def _repeat(
        self, call: Call, connection: RedisConnection, error: Exception, reach: Reach = RedisNode.connected
    ) -> Any:
        """The reply to a call that was answered with `error`; raises `StoreUnavailable` where it stays without."""
        whole = asking = False
        for _ in range(MAX_REPEATS):
            if isinstance(error, ConnectionLost):
                connection, asking = await self._connected(call.slot, reach), False
                call.script.repeated = True
            elif not isinstance(error, RedisReplyError):
                raise error
            elif error.code == "NOSCRIPT":
                whole = True
            elif error.code in ("MOVED", "ASK"):
                node = self._named(error, connection)
                asking = error.code == "ASK"
                if not asking:
                    self._owners[call.slot] = node
                    self._refresh()
                connection = await reach(node)
            elif error.code == "TRYAGAIN":
                await asyncio.sleep(MIGRATION_PAUSE)
                connection, asking = await self._connected(call.slot, reach), False
            else:  # CLUSTERDOWN, OOM ...
                raise refused(error)
            allowed = connection.call("ASKING") if asking else None  # in one write with the call that it is for
            reply = connection.send(call.script.whole() if whole else call.script.by_digest)
            try:
                if allowed is not None:
                    await asyncio.wait((allowed, reply))
                    allowed.exception()
                return await reply
            except (RedisReplyError, StoreUnavailable) as again:
                error = again
        raise StoreUnavailable(f"the Redis Cluster keeps answering {error}")

    def _named(self, error: RedisReplyError, asked: RedisConnection) -> RedisNode:
        """The node that a redirection names (``MOVED 3999 host:port``); without a host, the one that was asked."""
        host, _, port = str(error).rpartition(" ")[2].rpartition(":")
        asked_node = next((n for n in (*self._nodes.values(), self._seed) if n.stranger is asked), self._seed)
        return self._node(host or asked_node.address.host, int(port))

    def _node(self, host: str, port: int, hostname: str | None = None) -> RedisNode:
        """The node at this place. Where it is told as an address, its certificate must name `hostname`, else the
        endpoint that we were configured with."""
        place = (host, port)
        node = self._nodes.get(place)
        if node is None:
            seed = self._seed.address
            if place == (seed.host, seed.port):
                node = self._seed
            else:
                name = (hostname or seed.host) if _is_address(host) and not _is_address(seed.host) else None
                node = self._made(replace(seed, host=host, port=port, server_name=name))
            self._nodes[place] = node
        return node

    def _made(self, address: RedisAddress) -> RedisNode:
        return RedisNode(address, self._reply_timeout, self._login, self._greet)

    # -- the slot map

    def _refresh(self) -> asyncio.Future[None] | None:
        loop = asyncio.get_running_loop()
        if self._refreshing is None and loop.time() >= self._refreshed_at + REFRESH_EVERY:
            self._refreshing = asyncio.ensure_future(self._read_map())
            self._refreshing.add_done_callback(self._refreshed)
        return self._refreshing

    def _refreshed(self, refreshing: asyncio.Future[None]) -> None:
        self._refreshing = None
        self._refreshed_at = refreshing.get_loop().time()
        if not refreshing.cancelled():
            refreshing.exception()  # whoever waits has seen it; nobody need wait

    async def _read_map(self) -> None:
        failure: Exception = StoreUnavailable("nobody was asked")
        known = dict.fromkeys((*self._nodes.values(), self._seed))
        for node in sorted(known, key=lambda node: node.stranger is None):
            try:
                connection = await node.opened()
                self._adopt(await connection.call("CLUSTER", "SLOTS"), node)
            except (RedisReplyError, StoreUnavailable) as error:
                failure = error
            else:
                return
        raise StoreUnavailable(f"no node gives the Redis Cluster's slot map: {failure}") from failure

    def _adopt(self, ranges: Iterable[Any], asked: RedisNode) -> None:
        """Take over what a node answered: ``[first slot, last slot, [host, port, id, [name, value, ...]], ...]`` each,
        the first node being the master. A missing host means the node that was asked."""
        owners: list[RedisNode | None] = [None] * SLOTS
        for first, last, master, *_ in ranges:
            host = (master[0] or b"").decode()
            details = [word.decode() for word in master[3]] if len(master) > 3 else []
            named = dict(zip(details[::2], details[1::2], strict=False))
            if host in ("", "?"):
                host = asked.address.host
            node = self._node(host, master[1], named.get("hostname"))
            owners[first : last + 1] = [node] * (last + 1 - first)
        self._owners = owners
        loop = asyncio.get_running_loop()
        serving = {node for node in owners if node is not None}
        for place in [place for place, node in self._nodes.items() if node not in serving]:
            gone = self._nodes.pop(place)
            self._retiring.add(gone)
            loop.call_later(RETIRE_AFTER, self._retired, gone)
            if gone is self._seed:  # when it is a master again, it is another server's successor, and greeted anew
                self._seed = self._made(gone.address)

    def _retired(self, gone: RedisNode) -> None:
        self._retiring.discard(gone)
        gone.close()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
