"""A real Cassandra node for tests: the one that UPROAR_TEST_CASSANDRA names, or one of our own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.stack import jars
from deploy.stack.__main__ import cache_dir
from deploy.stack.cassandra import Cassandra
from deploy.stack.server import free_ports
from uproar.config import Config, load

NAMED = "UPROAR_TEST_CASSANDRA"


class Node:
    """A node with a keyspace for tests on it; `server` only where it is ours to kill."""

    def __init__(self, address: str, server: Cassandra | None = None) -> None:
        host, _, port = address.rpartition(":")
        self.host, self.port = host, int(port)
        self.server = server
        self.keyspace = f"test_{os.getpid()}"

    def flags(self, **settings: Any) -> dict[str, Any]:
        """The settings that lead here, and more of [store]."""
        found = {
            "engine": "cassandra", "hosts": [self.host], "port": self.port,
            "keyspace": self.keyspace, "replication": 1, **settings,
        }  # fmt: skip
        return {f"store.{name}": value for name, value in found.items()}

    def config(self, **settings: Any) -> Config:
        """The configuration that leads here."""
        return load(environ={}, flags=self.flags(**settings))

    @contextmanager
    def session(self, **options: Any) -> Iterator[Any]:
        """A plain session, for what only an operator does."""
        from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
        from cassandra.policies import DCAwareRoundRobinPolicy

        profile = ExecutionProfile(DCAwareRoundRobinPolicy(), request_timeout=60.0)
        cluster = Cluster(
            [self.host], port=self.port, protocol_version=5, schema_metadata_enabled=False,
            execution_profiles={EXEC_PROFILE_DEFAULT: profile}, **options,
        )  # fmt: skip
        try:
            yield cluster.connect()
        finally:
            cluster.shutdown()

    def empty(self) -> None:
        """Leave the tables as after the first start of the archive."""
        with self.session() as session:
            tables = session.execute(
                "SELECT table_name FROM system_schema.tables WHERE keyspace_name = %s",
                (self.keyspace,),
            )
            for (table,) in list(tables):
                name = f"{self.keyspace}.{table}"
                if table == "schema_versions":
                    continue
                if session.execute(f"SELECT * FROM {name} LIMIT 1").one() is not None:
                    session.execute(f"TRUNCATE {name}")

    def drop(self) -> None:
        """Remove what tests have made."""
        with self.session() as session:
            found = session.execute("SELECT keyspace_name FROM system_schema.keyspaces")
            for (name,) in list(found):
                if name.startswith(self.keyspace):
                    session.execute(f"DROP KEYSPACE {name}")


@contextmanager
def own_node(sync: str = "batch") -> Iterator[Node]:
    """Start a node that the test may kill; skips where Cassandra was not fetched."""
    version = jars.CASSANDRA[0].version
    if not (cache_dir() / f"cassandra-{version}" / "complete").exists():
        pytest.skip("needs a Cassandra: make test-stack fetches one")
    with tempfile.TemporaryDirectory(prefix="cassandra") as directory:
        first, second, third = free_ports(3)
        server = Cassandra(cache_dir(), Path(directory), (first, second, third), sync)
        try:
            server.start()
            yield Node(f"127.0.0.1:{first}", server)
        finally:
            server.resume()
            server.kill9()


@contextmanager
def any_node() -> Iterator[Node]:
    """Take the node that the environment names, else start one."""
    named = os.environ.get(NAMED)
    if named:
        node = Node(named)
        try:
            yield node
        finally:
            node.drop()
    else:
        with own_node() as node:
            yield node
