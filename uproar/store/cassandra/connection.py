"""The one connection of a process to the cluster: opened late, checked, bounded, with deadlines.

Statements are prepared and go to a replica of their partition (token aware) in one data center. Not
more than `store.in_flight` requests are on their way at a time; who comes then waits, up to its
deadline. Under gevent's monkey patching the driver runs in greenlets, and a call must come from a
greenlet of the main hub; elsewhere it has a thread of its own for its sockets (libev).
"""

from __future__ import annotations

import logging
import ssl
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from cassandra import (
    AuthenticationFailed,
    ConsistencyLevel,
    CoordinationFailure,
    DriverException,
    InvalidRequest,
    OperationTimedOut,
    Timeout,
    Unauthorized,
    Unavailable,
    UnresolvableContactPoints,
)
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import (
    EXEC_PROFILE_DEFAULT,
    Cluster,
    ExecutionProfile,
    NoHostAvailable,
    Session,
)
from cassandra.policies import (
    ConstantReconnectionPolicy,
    DCAwareRoundRobinPolicy,
    FallthroughRetryPolicy,
    RetryPolicy,
    TokenAwarePolicy,
)
from cassandra.query import BatchStatement, BatchType, tuple_factory

from uproar.config import Store as Settings
from uproar.logs import event
from uproar.store import StoreUnavailable
from uproar.store.cassandra import schema
from uproar.store.cassandra.layout import Partition, Row
from uproar.store.cassandra.statements import CONDITIONAL, SERIAL, STATEMENTS

logger = logging.getLogger(__name__)
# The driver tells of each try to reach a node, with its traceback; who calls us says once, in a
# sentence, that the store is away.
logging.getLogger("cassandra").setLevel(logging.CRITICAL)

# Not 5: when a read ends within the first 6 bytes of a segment, driver 3.30.1 drops them, and no
# later answer on that connection is understood. Of pages for 40 greenlets one run in three hung.
PROTOCOL: Final = 4
RECONNECT_S: Final = 0.5  # between two tries to reach a node that is down
# A cluster that let a call wait in vain and answered nobody for so long is not asked again at once:
# ingest, for one, has other things to do than to wait.
SILENCE_S: Final = 0.5
PAUSE_S: Final = 2.0
HEARTBEAT_S: Final = 5.0  # of silence, before a connection is asked whether it lives
HEARTBEAT_LATE_S: Final = 15.0  # then it is given up; a busy hub may read late
MIGRATE_S: Final = 60.0  # one statement of the schema: 0.2 s on a quiet node, seconds on a busy one
# Of a batch: the server takes megabytes for one partition, but holds them in memory.
BATCH_BYTES: Final = 64 << 10
BATCH_ROWS: Final = 128


class OnceMore(RetryPolicy):  # type: ignore[misc]
    """Try an idempotent statement once more: elsewhere, where somebody else may know better."""

    def on_read_timeout(self, *_: Any, retry_num: int, **__: Any) -> tuple[int, None]:
        """Ask again; the coordinator then prefers replicas that answer."""
        return (self.RETRY, None) if retry_num == 0 else (self.RETHROW, None)

    def on_write_timeout(self, *_: Any, retry_num: int, **__: Any) -> tuple[int, None]:
        """Write again what may have been written: it says the same."""
        return (self.RETRY, None) if retry_num == 0 else (self.RETHROW, None)

    def on_unavailable(self, *_: Any, retry_num: int, **__: Any) -> tuple[int, None]:
        """Ask a coordinator that may see more replicas up."""
        return (self.RETRY_NEXT_HOST, None) if retry_num == 0 else (self.RETHROW, None)

    def on_request_error(self, *_: Any, retry_num: int, **__: Any) -> tuple[int, None]:
        """Go to the next node after a broken connection or an overloaded one."""
        return (self.RETRY_NEXT_HOST, None) if retry_num < 2 else (self.RETHROW, None)


class Deadline:
    """When a call of the store's has to be over, and each of its requests."""

    def __init__(self, seconds: float, each_s: float | None = None) -> None:
        self.seconds = seconds
        self._each_s = each_s or seconds
        self.restart()

    def restart(self) -> None:
        """Begin anew: what went before was making tables, which no call asked for."""
        self._until = time.monotonic() + self.seconds

    def left(self) -> float:
        """Return the seconds that a request has; raises StoreUnavailable when there are none."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise StoreUnavailable(
                f"Cassandra took more than {self.seconds:g} s to answer; ask for less"
            )
        return min(left, self._each_s)


class Connection:
    """Owns the driver's cluster and session. Safe to call from several threads."""

    def __init__(self, settings: Settings, *, writer: bool) -> None:
        self._settings = settings
        self._writer = writer
        self.closed = False
        self._slots = threading.BoundedSemaphore(settings.in_flight)
        self._answered_at = 0.0  # monotonic
        self._retry_at = 0.0  # not before; `_why` says why
        self._why = ""
        self._prepared: dict[str, Any] = {}
        self._lock = threading.Lock()  # guards what follows
        self._cluster: Cluster | None = None
        self._session: Session | None = None
        self._usable = threading.Event()

    @property
    def place(self) -> str:
        """What messages call this store."""
        return f"keyspace {self._settings.keyspace}"

    def read(
        self, requests: Iterable[tuple[str, tuple[Any, ...]]], deadline: Deadline
    ) -> list[list[tuple[Any, ...]]]:
        """Return the rows of every request, asked all at once; raises StoreUnavailable."""
        self.open(deadline)
        try:
            return _answers(
                [self._send(self._bound(name, values), deadline) for name, values in requests]
            )
        except (DriverException, NoHostAvailable) as error:
            raise self._lost(error) from error

    def write(self, partitions: dict[Partition, list[Row]], deadline: Deadline) -> None:
        """Write rows, as unlogged batches within a partition; returns when all are acknowledged."""
        self.open(deadline)
        try:
            _answers(
                [
                    self._send(statement, deadline)
                    for rows in partitions.values()
                    for statement in self._batches(rows)
                ]
            )
        except (DriverException, NoHostAvailable) as error:
            raise self._lost(error) from error

    def open(self, deadline: Deadline) -> None:
        """Connect and check, unless that is done; raises StoreUnavailable with what is wrong."""
        if time.monotonic() < self._retry_at:
            raise StoreUnavailable(self._why)
        if self._usable.is_set():
            return
        if not self._lock.acquire(timeout=deadline.left()):
            raise StoreUnavailable(self._why or "Cassandra is being connected to; try again")
        try:
            if self.closed:
                raise StoreUnavailable(f"{self.place}: this store was closed")
            if self._usable.is_set():
                return
            if time.monotonic() < self._retry_at:  # somebody else has just tried
                raise StoreUnavailable(self._why)
            self._connect()
            if self._check():
                deadline.restart()
            self._usable.set()
        except (DriverException, NoHostAvailable) as error:
            raise self._unavailable(error) from error
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the connections; calls under way end with StoreUnavailable."""
        with self._lock:
            self.closed = True
            self._usable.clear()
            cluster, self._cluster, self._session = self._cluster, None, None
        if cluster is not None:
            cluster.shutdown()

    # Requests

    def _bound(self, name: str, values: tuple[Any, ...]) -> Any:
        statement = self._prepared.get(name) or self._prepare(name)
        return statement.bind(values)

    def _prepare(self, name: str) -> Any:
        session = self._session
        if session is None:
            raise StoreUnavailable(f"{self.place}: this store was closed")
        statement = session.prepare(STATEMENTS[name].format(ks=self._settings.keyspace))
        statement.is_idempotent = name not in CONDITIONAL
        if name in CONDITIONAL:
            statement.retry_policy = FallthroughRetryPolicy()
        if name in SERIAL:
            statement.consistency_level = self._serial
        self._prepared[name] = statement
        return statement

    def _batches(self, rows: list[Row]) -> Iterable[Any]:
        if len(rows) == 1:
            yield self._bound(rows[0].statement, rows[0].values)
            return
        batch, size = None, 0
        for row in rows:
            if batch is None:
                batch = BatchStatement(BatchType.UNLOGGED, consistency_level=self._consistency)
                batch.is_idempotent = True
            batch.add(self._bound(row.statement, row.values))
            size += row.size
            if size >= BATCH_BYTES or len(batch) >= BATCH_ROWS:
                yield batch
                batch, size = None, 0
        if batch is not None:
            yield batch

    def _send(self, statement: Any, deadline: Deadline) -> Any:
        """Send when there is a free slot; the answer frees it."""
        session = self._session
        if session is None:
            raise StoreUnavailable(f"{self.place}: this store was closed")
        if not self._slots.acquire(timeout=deadline.left()):
            raise StoreUnavailable(
                f"Cassandra has not answered {self._settings.in_flight} requests yet; try again"
            )
        try:
            future = session.execute_async(statement, timeout=deadline.left())
        except BaseException:
            self._slots.release()
            raise
        future.add_callbacks(self._answered, self._failed)
        return future

    def _answered(self, _: Any) -> None:
        self._answered_at = time.monotonic()
        self._slots.release()

    def _failed(self, _: Any) -> None:
        self._slots.release()

    # Opening

    @property
    def _consistency(self) -> int:
        level: int = getattr(ConsistencyLevel, self._settings.consistency.upper())
        return level

    @property
    def _serial(self) -> int:
        local = self._settings.consistency == "local_quorum"
        level: int = ConsistencyLevel.LOCAL_SERIAL if local else ConsistencyLevel.SERIAL
        return level

    def _connect(self) -> None:
        if self._session is not None:
            return
        settings = self._settings
        # Every host may be tried, and the call that waits has one deadline.
        each_s = max(settings.timeout_s / (2 * len(settings.hosts)), 1.0)
        policy = TokenAwarePolicy(DCAwareRoundRobinPolicy(settings.datacenter))
        try:
            cluster = Cluster(
                settings.hosts,
                port=settings.port,
                protocol_version=PROTOCOL,
                compression=False,
                auth_provider=_login(settings),
                ssl_context=_tls(settings),
                connect_timeout=each_s,
                control_connection_timeout=each_s,
                idle_heartbeat_interval=HEARTBEAT_S,
                idle_heartbeat_timeout=HEARTBEAT_LATE_S,
                reconnection_policy=ConstantReconnectionPolicy(RECONNECT_S, None),
                schema_metadata_enabled=False,
                execution_profiles={
                    EXEC_PROFILE_DEFAULT: ExecutionProfile(
                        load_balancing_policy=policy,
                        retry_policy=OnceMore(),
                        consistency_level=self._consistency,
                        serial_consistency_level=self._serial,
                        request_timeout=settings.timeout_s,
                        row_factory=tuple_factory,
                    )
                },
            )
            try:
                self._session = cluster.connect()
            except BaseException:
                cluster.shutdown()
                raise
        except (DriverException, NoHostAvailable, OSError) as error:
            unavailable = self._unavailable(error)
            self._pause(unavailable, RECONNECT_S)
            raise unavailable from error
        self._session.default_fetch_size = None  # what may be long has a LIMIT of ours
        self._cluster = cluster

    def _check(self) -> bool:
        """Compare the cluster with what the promises need; whether tables had to be made.

        Only the writer makes them.
        """
        keyspace = self._settings.keyspace
        found = self._execute(schema.READ_KEYSPACE, (keyspace,))
        if not found and not self._writer:
            raise StoreUnavailable(
                f"keyspace {keyspace} does not exist yet; the archive makes it at its first start"
            )
        if self._writer:
            self._check_nodes()
            if not found:
                known = len(self._known_nodes())
                self._refuse(
                    schema.why_not_nodes(self._datacenter, known, self._settings.replication)
                )
                self._define(schema.MAKE_KEYSPACE)
                found = self._execute(schema.READ_KEYSPACE, (keyspace,))
            replication, durable = found[0]
            self._refuse(
                schema.why_not_keyspace(
                    keyspace, dict(replication), durable, self._datacenter,
                    self._settings.replication,
                )
            )  # fmt: skip
            self._define(schema.MAKE_VERSIONS)
        try:
            versions = self._execute(schema.READ_VERSION.format(ks=keyspace))
        except InvalidRequest:
            versions = []  # the table is not there yet
        version = versions[0][0] if versions else 0
        if not version and not self._writer:
            raise StoreUnavailable(
                f"keyspace {keyspace} is not ready yet; the archive makes it at its first start"
            )
        self._refuse(schema.why_not_version(keyspace, version, writer=self._writer))
        for number, statements in enumerate(schema.MIGRATIONS[version:], version + 1):
            for statement in statements:
                self._define(statement)
            self._execute(schema.PUT_VERSION.format(ks=keyspace), (number,))
        return version < len(schema.MIGRATIONS)

    def _check_nodes(self) -> None:
        """Refuse nodes that acknowledge a row before it would survive a kill."""
        for host in self._nodes():
            try:
                [(sync,)] = self._execute(schema.READ_SYNC, host=host)
            except Unauthorized as error:
                raise StoreUnavailable(
                    f"store.user may not see whether node {host.address} keeps what it "
                    "acknowledges; GRANT SELECT ON KEYSPACE system_views TO "
                    f"{self._settings.user}"
                ) from error
            except (InvalidRequest, ValueError) as error:  # another server that speaks CQL
                event(
                    logger, "commitlog_sync_unknown", level=logging.WARNING, node=host.address,
                    why=str(error), remedy="see to it that it is batch or group",
                )  # fmt: skip
                continue
            self._refuse(schema.why_not_sync(host.address, sync))

    def _nodes(self) -> list[Any]:
        """The nodes of our data center that are up, in a fixed order."""
        up = [host for host in self._known_nodes() if host.is_up is not False]
        return sorted(up, key=lambda host: str(host.endpoint))

    def _known_nodes(self) -> list[Any]:
        assert self._cluster is not None
        hosts = self._cluster.metadata.all_hosts()
        return [host for host in hosts if host.datacenter == self._datacenter]

    @property
    def _datacenter(self) -> str:
        assert self._cluster is not None
        if self._settings.datacenter:
            return self._settings.datacenter
        # What the policy took: the data center of the host that answered.
        host = self._cluster.get_control_connection_host()
        return str(host.datacenter) if host is not None else ""

    def _define(self, statement: str) -> None:
        """Change the schema; always through the same node, so that two archives take turns."""
        self._execute(
            statement.format(
                ks=self._settings.keyspace,
                datacenter=self._datacenter,
                copies=self._settings.replication,
            ),
            host=next(iter(self._nodes()), None),
            seconds=MIGRATE_S,
        )

    def _execute(
        self, query: str, values: tuple[Any, ...] = (), *, host: Any = None, seconds: float = 0
    ) -> list[tuple[Any, ...]]:
        """Run a plain statement, of which only opening has some."""
        assert self._session is not None
        timeout = seconds or self._settings.timeout_s
        return list(self._session.execute(query, values or None, timeout=timeout, host=host))

    @staticmethod
    def _refuse(why: str) -> None:
        if why:
            raise StoreUnavailable(why)

    # Errors

    def _pause(self, why: StoreUnavailable, seconds: float) -> None:
        self._why = str(why)
        self._retry_at = time.monotonic() + seconds

    def _lost(self, error: Exception) -> StoreUnavailable:
        """A request's error as ours; calls rest after one that found nobody answering."""
        found = self._unavailable(error)
        silent = time.monotonic() - self._answered_at >= SILENCE_S
        if silent and isinstance(error, OperationTimedOut):
            self._pause(found, PAUSE_S)
        return found

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        settings = self._settings
        where = f"Cassandra at {', '.join(settings.hosts)}, port {settings.port}"
        if isinstance(error, NoHostAvailable):
            errors = error.errors
            causes = list(errors.values()) if isinstance(errors, dict) else []
            for cause in causes:
                if "[SSL: " in str(cause):  # the driver wraps it in an OSError
                    return self._unavailable(ssl.SSLError(str(cause)))
                if any(isinstance(cause, kinds) for kinds, _ in _SENTENCES):
                    return self._unavailable(cause)
            if not causes and self._session is None:
                return StoreUnavailable(
                    f"{where}, has no node that we may ask; is store.datacenter right, and is one "
                    f"up? ({error.args[0]})"
                )
            return StoreUnavailable(
                f"{where}, can't be reached; is it up, and are store.hosts and store.port right? "
                f"({causes[0] if causes else error.args[0]})"
            )
        if self.closed:
            return StoreUnavailable(f"{self.place}: this store was closed")
        for kinds, sentence in _SENTENCES:
            if isinstance(error, kinds):
                seconds = f"{settings.timeout_s:g} s"
                return StoreUnavailable(f"{where}, {sentence.format(seconds=seconds)} ({error})")
        return StoreUnavailable(f"{where}, can't be used: {error}")


# In this order: the first that fits.
_SENTENCES: Final[list[tuple[tuple[type[Exception], ...], str]]] = [
    (
        (AuthenticationFailed,),
        "refused the login; check store.user and store.password_file",
    ),
    (
        (ssl.SSLError,),
        "has a certificate that store.ca_file does not vouch for, or speaks no TLS",
    ),
    (
        (UnresolvableContactPoints,),
        "has no address; check store.hosts",
    ),
    (
        (Unavailable,),
        "has too few replicas up for store.consistency; start the missing nodes",
    ),
    ((OperationTimedOut, Timeout), "did not answer within {seconds}; try again"),
    (
        (CoordinationFailure,),
        "reports replicas that failed; their logs say why (a full disk is usual)",
    ),
    (
        (Unauthorized,),
        "does not let store.user do that; GRANT it SELECT and MODIFY on the keyspace, and the "
        "archive's also CREATE and ALTER",
    ),
    ((InvalidRequest,), "refused a request"),
]


def on_gevent() -> bool:
    """Whether sockets are gevent's, so that the driver runs in greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


def _answers(futures: Sequence[Any]) -> list[list[tuple[Any, ...]]]:
    return [list(future.result()) for future in futures]


def _login(settings: Settings) -> PlainTextAuthProvider | None:
    if not settings.user:
        return None
    try:
        text = Path(settings.password_file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreUnavailable(
            f"store.password_file: {settings.password_file} can't be read: {error}"
        ) from error
    return PlainTextAuthProvider(settings.user, text.partition("\n")[0].rstrip("\r"))


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if not settings.ca_file:
        return None
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise StoreUnavailable(
            f"store.ca_file: {settings.ca_file} has no certificates that can be read: {error}"
        ) from error
