"""Clients for the embedded Valkeys: one place for sockets, deadlines and the mapping of errors.

No automatic retries: an append whose answer was lost may have happened, and only the caller knows
whether saying it twice is harmless.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

# What redis-py raises when the server is away, starting, or too slow.
AWAY = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError, OSError, select.error)


def connect(path: Path, timeout_s: float) -> redis.Redis:
    """Return a client with a pool of connections; nothing is opened before the first command."""
    return redis.Redis(
        unix_socket_path=str(path),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )


@contextmanager
def errors_as(lost: type[Exception], what: str) -> Iterator[None]:
    """Turn redis-py's errors into the role's own, with a sentence."""
    try:
        yield
    except AWAY as error:
        raise lost(f"{what} does not answer: {error}") from error
    except redis.RedisError as error:
        raise lost(f"{what} refused: {error}") from error
