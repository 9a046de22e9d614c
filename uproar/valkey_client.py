"""Clients for Valkeys: one place for sockets, deadlines and the mapping of errors.

`connect` gives redis-py's client, `OneServer` runs pipelines of raw commands. No automatic retries:
an append whose answer was lost may have happened, and only the caller knows whether saying it twice
is harmless.
"""

from __future__ import annotations

import select
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.connection import UnixDomainSocketConnection
from redis.retry import Retry

# What redis-py raises when the server is away, starting, or too slow.
AWAY = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError, OSError, select.error)

# What a socket that does not block says when it would.
LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

# Of a process to one server: more callers wait for a free one, so that a thousand greenlets that
# open a stream each are no thousand connections.
CONNECTIONS: Final = 32

# What is here already is read even when another server has used up all of the time.
LEAST_S: Final = 0.02

# A verb, then its key; of EVAL the key is the fourth.
Command: TypeAlias = tuple[str | bytes | int | float, ...]


def connect(path: Path, timeout_s: float) -> redis.Redis:
    """Return a client with a pool of connections; nothing is opened before the first command."""
    return redis.Redis(
        unix_socket_path=str(path),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=no_retry(),
        protocol=2,
    )


def no_retry() -> Retry:
    """Return redis-py's policy of trying once."""
    return Retry(NoBackoff(), 0)


@contextmanager
def errors_as(lost: type[Exception], what: str) -> Iterator[None]:
    """Turn redis-py's errors into the role's own, with a sentence."""
    try:
        yield
    except (redis.RedisError, *AWAY) as error:
        raise lost(sentence(error, what)) from error


def sentence(error: BaseException, what: str) -> str:
    """Say what an error of redis-py means."""
    if isinstance(error, redis.AuthenticationError):
        # redis-py takes it for a failed connection, but waiting does not help.
        return f"{what} refused: {error}; look at its user and password"
    if isinstance(error, AWAY):
        return f"{what} does not answer: {error}"
    return f"{what} refused: {error}"


class Server(Protocol):
    """One server or a cluster of them, for pipelines of commands on one key each."""

    def run(self, *parts: Sequence[Command]) -> list[Any]:
        """Return one answer a command, in order; an exception of redis-py where it failed.

        A part begins after the one before it was answered. The deadline is that of the whole call.
        """

    def close(self) -> None:
        """Close the connections."""


class Busy(redis.TimeoutError):
    """All connections were in use until the deadline: nothing was sent, nobody is to blame."""


class Pool:
    """Connections of redis-py's to one server, at most CONNECTIONS; who comes later waits."""

    def __init__(self, new: Callable[[], Any]) -> None:
        """`new` returns a connection that is not opened yet."""
        self._new = new
        self._idle: list[Any] = []
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self._closed = False

    def take(self, until: float) -> Any:
        """Return an open connection, to be given back; raises Busy and AWAY errors."""
        if not self._free.acquire(timeout=max(0.0, until - time.monotonic())):
            raise Busy(f"all {CONNECTIONS} connections are busy")
        try:
            while True:
                try:
                    connection = self._idle.pop()
                except IndexError:
                    connection = self._new()
                    connection.connect()
                    return connection
                if _is_sound(connection):
                    return connection
                connection.disconnect()
        except BaseException:
            self._free.release()
            raise

    def give(self, connection: Any, *, sound: bool) -> None:
        """Take a connection back; one that is not sound, with answers to come, is closed."""
        if sound and not self._closed:
            self._idle.append(connection)
        else:
            connection.disconnect()
        self._free.release()

    def close(self) -> None:
        """Close the connections that nobody uses now, and the others when they are given back."""
        self._closed = True
        while self._idle:
            self._idle.pop().disconnect()


def _is_sound(connection: Any) -> bool:
    """Whether an idle connection is still open: then there is nothing to read.

    redis-py asks poll, which under gevent costs a turn of the hub.
    """
    sock = connection._sock
    if sock is None:
        return False
    sock.settimeout(0.0)
    try:
        sock.recv(1)
    except LATER:
        sock.settimeout(connection.socket_timeout)
        return True
    except OSError:
        pass
    return False


class Flight:
    """Commands on their way over one connection, which is given back once they are answered."""

    def __init__(self, pool: Pool, connection: Any, commands: Sequence[Command]) -> None:
        """Send over a connection of the pool; raises redis-py's errors when that fails."""
        self._pool = pool
        self._connection = connection
        self._count = len(commands)
        try:
            # What redis-py does around the same call makes it 1.9 us a command instead of 0.4.
            pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]
            packed = b"".join(map(pack, commands))
            connection.send_packed_command([packed])
        except BaseException:
            self.drop()
            raise

    def answers(self, until: float) -> list[Any]:
        """Return one answer or refusal a command; raises AWAY errors, at `until` (monotonic)."""
        found: list[Any] = []
        try:
            for _ in range(self._count):
                left = max(LEAST_S, until - time.monotonic())
                try:
                    found.append(self._connection.read_response(timeout=left))
                except redis.ResponseError as refusal:
                    found.append(refusal)
        except BaseException:
            self.drop()
            raise
        connection, self._connection = self._connection, None
        self._pool.give(connection, sound=True)
        return found

    def drop(self) -> None:
        """Close the connection, if it is still ours: what it would answer nobody reads."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give(connection, sound=False)


class OneServer:
    """`Server` on the Valkey behind a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._pool = Pool(
            lambda: UnixDomainSocketConnection(  # type: ignore[abstract, no-untyped-call]
                path=str(path),
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=no_retry(),
                protocol=2,
            )
        )

    def run(self, *parts: Sequence[Command]) -> list[Any]:
        commands = [command for part in parts for command in part]
        if not commands:
            return []
        until = time.monotonic() + self._timeout_s
        try:
            # One pipeline for all parts: one server runs them in their order anyway.
            return Flight(self._pool, self._pool.take(until), commands).answers(until)
        except (redis.RedisError, *AWAY) as error:
            return [error] * len(commands)

    def close(self) -> None:
        self._pool.close()
