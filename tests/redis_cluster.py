"""A real Redis Cluster of three masters, joined by plain commands (redis-cli may be missing; 6.2 must do)."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.servers import start_redis
from tollgate.adapters.redis_cluster import hash_tag, slot_of
from tollgate.adapters.redis_limits import EPOCH, SERVERS
from tollgate.adapters.redis_scripts import Script

SLOTS = 16_384
MASTERS = 3


class Cluster:
    """Servers that a test can hurt, and slots that it can move."""

    def __init__(self, folder: Path, node_timeout_ms: int) -> None:
        self._folder = folder
        self._node_timeout_ms = node_timeout_ms
        self.ports = [_two_ports() for _ in range(MASTERS)]
        self.nodes = [redis.Redis(port=port, socket_timeout=5) for port in self.ports]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.ports[0]}?cluster=yes"

    def form(self) -> None:
        """Start all, share out the slots, introduce the nodes to each other, wait until all agree."""
        for index in range(MASTERS):
            self.start(index)
        for index, node in enumerate(self.nodes):
            slots = range(index * SLOTS // MASTERS, (index + 1) * SLOTS // MASTERS)
            node.execute_command("CLUSTER", "ADDSLOTS", *slots)
            node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for port in self.ports[1:]:
            self.nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port)
        self.wait()

    def wait(self) -> None:
        """Until every node thinks that the cluster is whole."""
        deadline = time.monotonic() + 20
        while not all(self._whole(node) for node in self.nodes):
            if time.monotonic() > deadline:
                raise TimeoutError("the Redis Cluster does not come together")
            time.sleep(0.05)

    def start(self, index: int) -> None:
        folder = self._folder / str(index)
        folder.mkdir(exist_ok=True)
        options = ["--cluster-enabled", "yes", "--dir", str(folder)]
        options += ["--cluster-node-timeout", str(self._node_timeout_ms), "--repl-diskless-sync-delay", "0"]
        self.processes[index] = start_redis(self.ports[index], *options)

    def add_replica(self, master: int) -> int:
        """A further node that follows a master, and takes over when that is declared failed; its index."""
        index = len(self.ports)
        self.ports.append(_two_ports())
        self.nodes.append(redis.Redis(port=self.ports[index], socket_timeout=5))
        self.start(index)
        replica = self.nodes[index]
        replica.execute_command("CLUSTER", "MEET", "127.0.0.1", self.ports[master])
        self.wait()
        replica.execute_command("CLUSTER", "REPLICATE", self._id(master))
        deadline = time.monotonic() + 20
        while not self.follows(index):
            if time.monotonic() > deadline:
                raise TimeoutError("the replica does not follow")
            time.sleep(0.05)
        return index

    def follows(self, index: int) -> bool:
        """Whether it is a replica that is connected to its master, and known to it."""
        info = self.nodes[index].info("replication")
        if info.get("master_link_status") != "up":
            return False
        master = self.ports.index(info["master_port"])
        return bool(self.nodes[master].execute_command("CLUSTER", "REPLICAS", self._id(master)))

    def kill(self, index: int) -> None:
        process = self.processes.pop(index)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for node in self.nodes:
            node.close()
        for index in list(self.processes):
            self.kill(index)

    def flush(self) -> None:
        for node in self.nodes:
            node.flushall()

    def begin(self) -> None:
        """Empty it; its servers are known, and its epoch is long past, so that rates are believed."""
        self.flush()
        keeper = self.nodes[self.owner(slot_of(hash_tag(EPOCH)))]
        source = Script("reopen").source.decode()
        keeper.hset(SERVERS, mapping={node.eval(source, 0): 1 for node in self.nodes})
        keeper.set(EPOCH, 1)

    # -- slots

    def owner(self, slot: int, asked: int = 0) -> int:
        """Which of the masters serves the slot, as one of them thinks; -1: none does."""
        ranges = self.nodes[asked].execute_command("CLUSTER", "SLOTS")
        return next((self.ports.index(node[1]) for first, last, node, *_ in ranges if first <= slot <= last), -1)

    def agrees(self, slot: int, owner: int) -> bool:
        """Whether all that live think that this one serves the slot."""
        return all(self.owner(slot, index) == owner for index in self.processes)

    def open_migration(self, slot: int, source: int, target: int) -> None:
        self.nodes[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(source))
        self.nodes[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(target))

    def move_keys(self, slot: int, source: int, target: int) -> int:
        """Take the slot's keys across; how many there were."""
        names = self.nodes[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000)
        if names:
            self.nodes[source].migrate("127.0.0.1", self.ports[target], names, 0, 5000)
        return len(names)

    def close_migration(self, slot: int, target: int) -> None:
        for node in [self.nodes[target], *self.nodes]:  # the new owner first
            node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self._id(target))

    def move_slot(self, slot: int, source: int, target: int) -> None:
        self.open_migration(slot, source, target)
        self.move_keys(slot, source, target)
        self.close_migration(slot, target)

    def _id(self, index: int) -> str:
        return str(self.nodes[index].execute_command("CLUSTER", "MYID").decode())

    def _whole(self, node: redis.Redis) -> bool:
        info = node.execute_command("CLUSTER", "INFO").decode()
        return "cluster_state:ok" in info and f"cluster_size:{MASTERS}" in info


@contextmanager
def redis_cluster(node_timeout_ms: int = 60_000) -> Iterator[Cluster]:
    """Without replicas nobody can take over, so by default nobody is declared failed soon."""
    folder = Path(tempfile.mkdtemp(prefix="tollgate-cluster-"))
    cluster = Cluster(folder, node_timeout_ms)
    try:
        cluster.form()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def _two_ports() -> int:
    """A free port whose bus port (10000 above; 6.2 cannot be told another) is free, too."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as client, socket.socket() as bus:
            try:
                client.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
