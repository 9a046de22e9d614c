"""A real Cassandra node for tests: the one that UPROAR_TEST_CASSANDRA names, or one of our own."""

from __future__ import annotations

import datetime
import ipaddress
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID

from deploy.stack import jars
from deploy.stack.__main__ import cache_dir
from deploy.stack.cassandra import Cassandra
from deploy.stack.server import HOST, free_ports
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
            [self.host], port=self.port, protocol_version=4, schema_metadata_enabled=False,
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


class Guarded(Cassandra):
    """A node that wants a login over TLS; its first user is `cassandra`, with that password."""

    def prepare(self) -> None:
        super().prepare()
        make_certificates(self.directory)
        settings = self.directory / "cassandra.yaml"
        text = settings.read_text()
        text = text.replace("AllowAllAuthenticator", "PasswordAuthenticator")
        text = text.replace("AllowAllAuthorizer", "CassandraAuthorizer")
        settings.write_text(
            f"{text}client_encryption_options: {{enabled: true, optional: false, keystore: "
            f"{self.directory}/server.p12, keystore_password: test, store_type: PKCS12}}\n"
        )

    def command(self) -> list[str]:
        java, *rest = super().command()
        return [java, "-Dcassandra.superuser_setup_delay_ms=0", *rest]


class Member(Cassandra):
    """A small node of several on one address; `seed` is the storage port of the first."""

    seed = 0

    def prepare(self) -> None:
        super().prepare()
        settings = self.directory / "cassandra.yaml"
        text = settings.read_text()
        text = text.replace(f"{HOST}:{self._storage}", f"{HOST}:{self.seed or self._storage}")
        # Together they start empty, so none has to wait for what the others hold.
        settings.write_text(f"{text}auto_bootstrap: false\n")

    def command(self) -> list[str]:
        changed = {
            "-Xmx1g": "-Xmx512m", "-Xms256m": "-Xms128m",
            # How long a new node looks for one that answers: on a busy machine more than a moment.
            "-Dcassandra.ring_delay_ms=100": "-Dcassandra.ring_delay_ms=5000",
        }  # fmt: skip
        return [changed.get(word, word) for word in super().command()]


def make_certificates(directory: Path) -> None:
    """Write `ca.pem`, `server.p12` for 127.0.0.1 (password `test`), and `other.pem` of nobody."""
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name: str, key: Any, issuer: str, signer: Any, *, ca: bool) -> Any:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=5))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .sign(signer, hashes.SHA256())
        )

    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    ca = certificate("test ca", keys[0], "test ca", keys[0], ca=True)
    other = certificate("other ca", keys[1], "other ca", keys[1], ca=True)
    server = certificate("node", keys[2], "test ca", keys[0], ca=False)
    pem = serialization.Encoding.PEM
    (directory / "ca.pem").write_bytes(ca.public_bytes(pem))
    (directory / "other.pem").write_bytes(other.public_bytes(pem))
    packed = pkcs12.serialize_key_and_certificates(
        b"node", keys[2], server, [ca], serialization.BestAvailableEncryption(b"test")
    )
    (directory / "server.p12").write_bytes(packed)


def _fetched() -> Path:
    """Return where the jars lie; skips where they do not, unless real servers are wanted."""
    version = jars.CASSANDRA[0].version
    wanted = os.environ.get("UPROAR_TEST_STACK")
    if not wanted and not (cache_dir() / f"cassandra-{version}" / "complete").exists():
        pytest.skip("needs a Cassandra: make test-stack fetches one")
    return cache_dir()


@contextmanager
def three_nodes() -> Iterator[tuple[Node, list[Member]]]:
    """Start a cluster of three; the first is the one that clients are told of."""
    cache, ports = _fetched(), free_ports(9)
    with tempfile.TemporaryDirectory(prefix="cassandra") as directory:
        members = [
            Member(
                cache, Path(directory) / str(n), (ports[3 * n], ports[3 * n + 1], ports[3 * n + 2])
            )
            for n in range(3)
        ]
        try:
            for member in members:
                member.seed = ports[1]
                member.start()
            yield Node(f"{HOST}:{ports[0]}", members[0]), members
        finally:
            for member in members:
                member.kill9()


@contextmanager
def own_node(kind: type[Cassandra] = Cassandra) -> Iterator[Node]:
    """Start a node that the test may kill; skips where Cassandra was not fetched."""
    cache = _fetched()
    with tempfile.TemporaryDirectory(prefix="cassandra") as directory:
        first, second, third = free_ports(3)
        server = kind(cache, Path(directory), (first, second, third))
        try:
            server.start()
            yield Node(f"{HOST}:{first}", server)
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
