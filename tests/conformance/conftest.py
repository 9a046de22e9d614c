"""Adapters under test. Every fixture here is parametrised over the adapters of its role."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.cassandra_node import Node
from tests.system import wait_until
from tests.valkey_cluster import ValkeyCluster
from tests.valkey_cluster import running as running_cluster
from uproar import bus as buses
from uproar import state as states
from uproar.bus import Bus
from uproar.config import Config, load
from uproar.log import Log
from uproar.log.valkey import ValkeyLog
from uproar.state import State
from uproar.store import Store
from uproar.store import open_store as make_store
from uproar.valkey_client import connect
from uproar.valkey_server import Role, arguments, find_binary, ready_check

TIMEOUT_S = 0.5  # of a call whose server does not answer


class StoreOpener:
    """Opens stores on one place, as several processes would; closes them after the test."""

    def __init__(self, flags: dict[str, Any]) -> None:
        self.flags = flags
        self.opened: list[Store] = []

    def __call__(self, *, writer: bool = False) -> Store:
        """Open one more."""
        store = make_store(load(environ={}, flags=self.flags), writer=writer)
        self.opened.append(store)
        return store

    def go_where_nothing_is(self) -> None:
        """Open the next ones where no archive ever was."""
        if self.flags.get("store.engine") == "cassandra":
            self.flags["store.keyspace"] += "_new"

    @property
    def code(self) -> str:
        """Python that opens the same place for writing as `store`, for a process of its own."""
        return (
            "from uproar.config import load\n"
            "from uproar.store import open_store\n"
            f"store = open_store(load(environ={{}}, flags={self.flags!r}), writer=True)\n"
        )


@pytest.fixture
def cassandra(shared_cassandra: Node) -> Node:
    """The shared node, its keyspace empty."""
    shared_cassandra.empty()
    return shared_cassandra


@pytest.fixture
def mortal_cassandra(shared_mortal_cassandra: Node) -> Node:
    """A node to be killed, paused, restarted, its keyspace empty."""
    shared_mortal_cassandra.empty()
    return shared_mortal_cassandra


@pytest.fixture(params=["sqlite", pytest.param("cassandra", marks=pytest.mark.stack)])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreOpener]:
    """Open stores of one adapter on an empty place."""
    if request.param == "sqlite":
        opener = StoreOpener({"data": str(tmp_path)})
    else:
        node: Node = request.getfixturevalue("cassandra")
        opener = StoreOpener(node.flags())
    yield opener
    for store in opener.opened:
        store.close()


@pytest.fixture
def store(open_store: StoreOpener) -> Store:
    """A store open for writing, empty."""
    return open_store(writer=True)


class Server:
    """One of the two Valkeys, as the supervisor starts it, in a data directory of its own."""

    def __init__(self, role: Role) -> None:
        self.role = role
        # Short, because Unix sockets lie below it.
        self._directory = tempfile.TemporaryDirectory(prefix="up")
        self.process: subprocess.Popen[bytes] | None = None
        self.opened: list[Any] = []
        self.config = self.settings()
        for path in (self.config.data_dir / role, self.config.run_dir):
            path.mkdir(parents=True)

    def settings(self, **more: Any) -> Config:
        """The configuration that leads here, with more settings (state__ring_s=1)."""
        flags = {"log.timeout_s": TIMEOUT_S, "state.timeout_s": TIMEOUT_S}
        flags |= {key.replace("__", "."): value for key, value in more.items()}
        return load(environ={}, flags={"data": self._directory.name, **flags})

    def start(self) -> None:
        """Start and wait until it serves."""
        self.process = subprocess.Popen(
            arguments(find_binary(), self.role, self.config), stdout=subprocess.DEVNULL
        )
        wait_until(ready_check(self.config.socket(self.role)), 20, f"the {self.role} server serves")

    def kill(self) -> None:
        """End it as a crash does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def pause(self) -> None:
        """Let it neither answer nor go away."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def client(self) -> redis.Redis:
        """A plain client, for what only an operator does."""
        return self.keep(connect(self.config.socket(self.role), 5.0))

    def keep(self, opened: Any) -> Any:
        """Close something with the end of the test."""
        self.opened.append(opened)
        return opened

    def close_opened(self) -> None:
        """Close what was opened on it."""
        for opened in self.opened:
            opened.close()
        self.opened.clear()

    def remove(self) -> None:
        """End it and delete its data."""
        self.close_opened()
        self.kill()
        self._directory.cleanup()


def _running(role: Role) -> Iterator[Server]:
    server = Server(role)
    try:
        server.start()
        yield server
    finally:
        server.remove()


def _emptied(server: Any) -> Iterator[Any]:
    server.client().flushall()
    yield server
    server.close_opened()


@pytest.fixture(scope="session")
def shared_log_server() -> Iterator[Server]:
    """A log server for all tests that do no harm to it."""
    yield from _running("log")


@pytest.fixture(scope="session")
def shared_state_server() -> Iterator[Server]:
    """A server of bus and state for all tests that do no harm to it."""
    yield from _running("state")


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[ValkeyCluster]:
    """A cluster of bus and state for all tests that do no harm to it."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def log_server(shared_log_server: Server) -> Iterator[Server]:
    """The shared log server, empty."""
    yield from _emptied(shared_log_server)


STATE_ENGINES = ["valkey", pytest.param("cluster", marks=pytest.mark.stack)]


@pytest.fixture(params=STATE_ENGINES)
def state_server(request: pytest.FixtureRequest) -> Iterator[Server | ValkeyCluster]:
    """The shared server or cluster of bus and state, empty."""
    shared = "shared_cluster" if request.param == "cluster" else "shared_state_server"
    yield from _emptied(request.getfixturevalue(shared))


@pytest.fixture
def mortal_log_server() -> Iterator[Server]:
    """A log server of the test's own: to be killed, paused, restarted."""
    yield from _running("log")


@pytest.fixture(params=STATE_ENGINES)
def mortal_state_server(request: pytest.FixtureRequest) -> Iterator[Server | ValkeyCluster]:
    """A server or a cluster of bus and state of the test's own."""
    if request.param == "cluster":
        with running_cluster() as cluster:
            yield cluster
    else:
        yield from _running("state")


@pytest.fixture
def mortal_cluster() -> Iterator[ValkeyCluster]:
    """A cluster of the test's own."""
    with running_cluster() as cluster:
        yield cluster


def open_log(server: Server) -> Log:
    """One more log on a server, as another process would have."""
    log: Log = server.keep(ValkeyLog(server.config))
    return log


def open_bus(server: Server | ValkeyCluster) -> Bus:
    """One more bus on a server."""
    bus: Bus = server.keep(buses.open_bus(server.config))
    return bus


def open_state(server: Server | ValkeyCluster, **settings: Any) -> State:
    """One more state on a server."""
    state: State = server.keep(states.open_state(server.settings(**settings)))
    return state
