"""A Valkey or Redis Cluster on loopback for tests: three masters, each with a replica or without.

Started from the bare binary, on free ports, in a directory of its own; ended by pid.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis

from tests.system import wait_until
from uproar.config import Config, load
from uproar.valkey_server import find_binary

MASTERS = 3
SLOTS = 16384
NODE_TIMEOUT_MS = 2000
FORM_S = 30.0
TIMEOUT_S = 0.5  # of a call whose server does not answer


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            one = stack.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            found.append(one.getsockname()[1])
        return found


class Node:
    """One process of the cluster."""

    def __init__(self, port: int, bus_port: int, directory: Path, arguments: list[str]) -> None:
        self.port = port
        self.bus_port = bus_port
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        self._arguments = [*arguments, "--cluster-port", str(bus_port), "--dir", str(directory)]
        directory.mkdir()

    def start(self) -> None:
        """Start; a node that was killed finds its place by itself."""
        with Path.open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(self._arguments, stdout=log, stderr=log)

    def kill(self) -> None:
        """End it as a crash does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self.process is not None
        os.kill(self.process.pid, number)


class ValkeyCluster:
    """Three masters and `replicas` for each; `tls` names the files (ca, cert, key)."""

    def __init__(
        self,
        *,
        replicas: int = 1,
        binary: str = "",
        password: str = "",
        tls: tuple[Path, Path, Path] | None = None,
    ) -> None:
        self.opened: list[Any] = []
        self.replicas = replicas
        self.password = password
        self.tls = tls
        self._directory = tempfile.TemporaryDirectory(prefix="upc")
        self._password_file = Path(self._directory.name) / "password"
        self._password_file.write_text(password)
        count = MASTERS * (1 + replicas)
        ports = free_ports(2 * count)
        self.nodes = [
            Node(
                port, bus_port, Path(self._directory.name) / str(port),
                self._arguments(binary or find_binary(), port),
            )
            for port, bus_port in zip(ports[:count], ports[count:], strict=True)
        ]  # fmt: skip

    def _arguments(self, binary: str, port: int) -> list[str]:
        listen = ["--port", str(port)]
        if self.tls is not None:
            ca, cert, key = map(str, self.tls)
            listen = [
                "--port", "0", "--tls-port", str(port), "--tls-cluster", "yes",
                "--tls-replication", "yes", "--tls-ca-cert-file", ca, "--tls-cert-file", cert,
                "--tls-key-file", key, "--tls-auth-clients", "yes",
            ]  # fmt: skip
        secret = ["--requirepass", self.password, "--masterauth", self.password]
        return [
            binary, *listen, *(secret if self.password else []), "--bind", "127.0.0.1",
            "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf",
            "--cluster-node-timeout", str(NODE_TIMEOUT_MS),
            "--cluster-replica-validity-factor", "0", "--cluster-require-full-coverage", "no",
            "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
            "--repl-diskless-sync-delay", "0", "--maxmemory-policy", "noeviction",
            "--daemonize", "no",
        ]  # fmt: skip

    @property
    def addresses(self) -> list[str]:
        """HOST:PORT of all nodes."""
        return [f"127.0.0.1:{node.port}" for node in self.nodes]

    def start(self) -> None:
        """Start all nodes, and make a cluster of them the first time; wait until it serves."""
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            wait_until(lambda node=node: self._answers(node), FORM_S, f"node {node.port} answers")
        if self._info(self.nodes[0], "cluster_slots_assigned") == "0":
            self._form()
        self.wait_ready()

    def _form(self) -> None:
        first = self.nodes[0]
        for node in self.nodes[1:]:
            self.ask(node, "CLUSTER", "MEET", "127.0.0.1", first.port, first.bus_port)
        bounds = [SLOTS * number // MASTERS for number in range(MASTERS + 1)]
        for node, low, high in zip(self.nodes, bounds, bounds[1:], strict=False):
            self.ask(node, "CLUSTER", "ADDSLOTSRANGE", low, high - 1)
        for number, node in enumerate(self.nodes[MASTERS:]):
            master = self.ask(self.nodes[number % MASTERS], "CLUSTER", "MYID").decode()
            wait_until(
                lambda node=node, master=master: self._follows(node, master),
                FORM_S, f"node {node.port} is a replica",
            )  # fmt: skip

    def _follows(self, node: Node, master: str) -> bool:
        try:
            return bool(self.ask(node, "CLUSTER", "REPLICATE", master) == b"OK")
        except redis.ResponseError:  # it has not heard of its master yet
            return False

    def wait_ready(self) -> None:
        """Wait until all nodes that run agree that all is well, and replicas are in step."""
        for node in self.nodes:
            if node.process is None or node.process.poll() is not None:
                continue
            wait_until(lambda node=node: self._ready(node), FORM_S, f"node {node.port} is ready")

    def _ready(self, node: Node) -> bool:
        try:
            if self._info(node, "cluster_state") != "ok":
                return False
            if self._info(node, "cluster_slots_ok") != str(SLOTS):
                return False
            role = self.ask(node, "ROLE")
            return role[0] == b"master" or role[3] == b"connected"
        except (redis.RedisError, OSError):
            return False

    def _answers(self, node: Node) -> bool:
        try:
            return bool(self.ask(node, "PING") == b"PONG")
        except (redis.RedisError, OSError):
            return False

    def _info(self, node: Node, field: str) -> str:
        for line in self.ask(node, "CLUSTER", "INFO").decode().splitlines():
            if line.startswith(f"{field}:"):
                return line.partition(":")[2]
        raise AssertionError(f"CLUSTER INFO has no {field}")

    def options(self) -> dict[str, Any]:
        """What redis-py needs to know, beside the address."""
        options: dict[str, Any] = {"password": self.password or None, "socket_timeout": 5.0}
        if self.tls is not None:
            ca, cert, key = map(str, self.tls)
            options |= {
                "ssl": True, "ssl_ca_certs": ca, "ssl_certfile": cert, "ssl_keyfile": key
            }  # fmt: skip
        return options

    def ask(self, node: Node, *command: Any) -> Any:
        """Return a node's answer, undecoded; raises redis-py's errors."""
        client = redis.Redis(host="127.0.0.1", port=node.port, protocol=2, **self.options())
        client.response_callbacks.clear()
        try:
            return client.execute_command(*command)
        finally:
            client.close()

    def client(self) -> redis.RedisCluster:
        """A client of the whole cluster, for what only an operator does."""
        node = redis.cluster.ClusterNode("127.0.0.1", self.running()[0].port)
        return self.keep(redis.RedisCluster(startup_nodes=[node], protocol=2, **self.options()))

    # -- as an adapter's test sees it -------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The configuration that leads here."""
        return self.settings()

    def settings(self, **more: Any) -> Config:
        """The same with more settings (state__ring_s=1)."""
        flags: dict[str, Any] = {
            "state.engine": "cluster",
            "state.nodes": self.addresses[:2],  # the others are found
            "state.timeout_s": TIMEOUT_S,
            "state.password_file": str(self._password_file) if self.password else "",
        }
        for name, file in zip(("ca", "cert", "key"), self.tls or (), strict=False):
            flags[f"state.{name}_file"] = str(file)
        flags |= {key.replace("__", "."): value for key, value in more.items()}
        return load(environ={}, flags=flags)

    def keep(self, opened: Any) -> Any:
        """Close something with the end of the test."""
        self.opened.append(opened)
        return opened

    def close_opened(self) -> None:
        """Close what was opened on it."""
        for opened in self.opened:
            opened.close()
        self.opened.clear()

    def running(self) -> list[Node]:
        """The nodes whose processes are there."""
        return [n for n in self.nodes if n.process is not None and n.process.poll() is None]

    def masters(self) -> list[Node]:
        """The nodes that say they are masters with slots, in the order of their slots."""
        slots = self.ask(self.running()[0], "CLUSTER", "SLOTS")
        ports = dict.fromkeys(entry[2][1] for entry in sorted(slots))
        return [node for port in ports for node in self.nodes if node.port == port]

    def owner(self, key: str) -> Node:
        """The master of a key or channel."""
        slot = redis.crc.key_slot(key.encode())
        for first, last, (_, port, *_), *_ in self.ask(self.running()[0], "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody owns {key}")

    def kill(self) -> None:
        """End all of it as a power cut does."""
        for node in self.nodes:
            node.kill()

    def pause(self) -> None:
        """Let no node answer."""
        for node in self.running():
            node.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let all go on after `pause`."""
        for node in self.running():
            node.signal(signal.SIGCONT)

    def remove(self) -> None:
        """End it and delete its data."""
        self.close_opened()
        self.kill()
        self._directory.cleanup()


@contextmanager
def running(**options: Any) -> Iterator[ValkeyCluster]:
    """A cluster for as long as it is needed."""
    cluster = ValkeyCluster(**options)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()
