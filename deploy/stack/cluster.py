"""A Valkey cluster: three masters and a replica for each, of the binary that uproar brings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import redis

from deploy.stack.server import HOST, POLL_S, Group, Server, StackError, is_open
from uproar.valkey_server import find_binary

MASTERS: Final = 3
SLOTS: Final = 16_384
NODE_TIMEOUT_MS: Final = 2000  # a master is given up after this: writes to it stop for about 3 s
JOIN_S: Final = 30.0
BUS: Final = 10_000  # nodes talk to each other on the client port plus this


class Node(Server):
    """One node. It keeps what it knows of the others, so a killed one rejoins when it starts."""

    ready_s = 20.0

    def __init__(self, directory: Path, port: int) -> None:
        super().__init__(f"valkey-{port}", directory, [port])

    def command(self) -> list[str]:
        settings = {
            "port": self.ports[0], "bind": HOST, "dir": self.directory,
            "cluster-enabled": "yes", "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": NODE_TIMEOUT_MS, "cluster-replica-validity-factor": 0,
            "cluster-require-full-coverage": "no", "appendonly": "yes", "appendfsync": "everysec",
            "save": "", "repl-diskless-sync-delay": 0, "maxmemory": "256mb",
            "maxmemory-policy": "noeviction", "daemonize": "no",
        }  # fmt: skip
        return [
            find_binary(),
            *(str(one) for key in settings for one in (f"--{key}", settings[key])),
        ]

    def serves(self) -> bool:
        try:
            return super().serves() and self.ask("PING") == b"PONG"
        except redis.RedisError:
            return False

    def launch(self) -> None:
        if self.pid is None and is_open(self.ports[0] + BUS):
            raise StackError(f"{self.name}: port {self.ports[0] + BUS} is taken; stop who has it")
        super().launch()

    def ask(self, *words: Any) -> Any:
        """Return a node's own answer to a command, as it came."""
        client = redis.Redis(HOST, self.ports[0], socket_timeout=5.0, single_connection_client=True)
        client.response_callbacks.clear()
        try:
            return client.execute_command(*words)  # type: ignore[no-untyped-call]
        finally:
            client.close()


class Cluster(Group):
    """Six nodes on six ports: the first three are masters when it is made."""

    def __init__(self, directory: Path, ports: Sequence[int]) -> None:
        self.nodes = [Node(directory / f"valkey-{port}", port) for port in ports]
        super().__init__(self.nodes)

    def wait(self) -> None:
        """Wait for the nodes, join them when they are new, wait until every slot is served."""
        super().wait()
        if len(_lines(self.nodes[0].ask("CLUSTER", "NODES"))) < len(self.nodes):
            self._join()
        _until(self._whole, "every node sees all slots and every replica its master")

    def _join(self) -> None:
        first, *others = self.nodes
        masters, replicas = self.nodes[:MASTERS], self.nodes[MASTERS:]
        for number, master in enumerate(masters):
            low, high = number * SLOTS // MASTERS, (number + 1) * SLOTS // MASTERS - 1
            master.ask("CLUSTER", "ADDSLOTSRANGE", low, high)
            # Two that claim one epoch would have to settle it first.
            master.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in others:
            node.ask("CLUSTER", "MEET", HOST, first.ports[0])
        _until(
            lambda: all(
                len(_lines(node.ask("CLUSTER", "NODES"))) == len(self.nodes) for node in self.nodes
            ),
            "all nodes know each other",
        )
        for number, replica in enumerate(replicas):
            replica.ask("CLUSTER", "REPLICATE", masters[number % MASTERS].ask("CLUSTER", "MYID"))

    def _whole(self) -> bool:
        for node in self.nodes:
            if b"cluster_state:ok" not in node.ask("CLUSTER", "INFO"):
                return False
            lines = _lines(node.ask("CLUSTER", "NODES"))
            if any("fail" in line.split()[2] for line in lines):
                return False
            role = node.ask("ROLE")
            if role[0] == b"slave" and role[3] != b"connected":  # the server's own word
                return False
        return True


def _lines(answer: bytes) -> list[str]:
    return answer.decode().splitlines()


def _until(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + JOIN_S
    while not condition():
        if time.monotonic() > until:
            raise StackError(f"the Valkey cluster: not within {JOIN_S:g} s: {what}")
        time.sleep(POLL_S)
