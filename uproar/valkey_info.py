"""What Redis and Valkey servers say of themselves (INFO), for the admin port's metrics.

Embedded ones are called `log` and `state`, the masters of a cluster by host and port.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeAlias

import redis

from uproar.config import Config
from uproar.metrics import Metrics
from uproar.valkey_client import connect
from uproar.valkey_cluster import Cluster

INFO_S: Final = 1.0  # for an embedded one to answer; a cluster has `state.timeout_s`

# Metric → fields of INFO that add up to it.
FIELDS: Final = {
    "uproar_valkey_cpu_seconds_total": ("used_cpu_user", "used_cpu_sys"),
    "uproar_valkey_memory_bytes": ("used_memory",),
    "uproar_valkey_memory_bound_bytes": ("maxmemory",),
    "uproar_valkey_clients": ("connected_clients",),
    "uproar_valkey_commands_total": ("total_commands_processed",),
}

# Servers by name with their INFO, None for one that did not answer.
Infos: TypeAlias = dict[str, Mapping[str, Any] | None]


class Servers:
    """The servers of one configuration, asked in parallel."""

    def __init__(self, config: Config, *, embedded: bool = True) -> None:
        """Without `embedded` only those of a cluster: a host of it has no others."""
        self._ask: list[Callable[[], Infos]] = []
        for role, engine in (("log", config.log.engine), ("state", config.state.engine)):
            if embedded and engine == "valkey":
                client = connect(config.socket(role), INFO_S)
                self._ask.append(lambda role=role, client=client: _embedded(role, client))  # type: ignore[misc]
        if config.state.engine == "cluster":
            cluster = Cluster(config.state)
            self._ask.append(lambda: masters(cluster))
        self._pool = ThreadPoolExecutor(max(1, len(self._ask)), thread_name_prefix="info")

    def text(self) -> str:
        """Return their metrics; of a server that does not answer, only that."""
        found: Infos = {}
        for infos in self._pool.map(lambda ask: ask(), self._ask):
            found.update(infos)
        metrics = Metrics()
        metrics.read(
            "uproar_valkey_up",
            lambda: {name: int(info is not None) for name, info in found.items()},
        )
        for metric, fields in FIELDS.items():
            metrics.read(metric, lambda fields=fields: _sums(found, fields))  # type: ignore[misc]
        return metrics.text()


def _embedded(role: str, client: redis.Redis) -> Infos:
    try:
        return {role: client.info()}
    except (redis.RedisError, OSError):
        return {role: None}


def masters(cluster: Cluster) -> Infos:
    """Return the INFO of a cluster's masters; nothing where not even its form can be learnt."""
    try:
        answers = cluster.on_masters(("INFO",))
    except (redis.RedisError, OSError):
        return {"cluster": None}
    return {
        f"{host}:{port}": parse(answer) if isinstance(answer, bytes) else None
        for (host, port), answer in answers.items()
    }


def parse(info: bytes) -> dict[str, float]:
    """Return the numbers of an INFO; whatever is none is left out."""
    numbers = {}
    for line in info.decode("utf-8", "replace").splitlines():
        name, _, text = line.partition(":")
        try:
            numbers[name] = float(text)
        except ValueError:
            continue
    return numbers


def _sums(found: Infos, fields: tuple[str, ...]) -> dict[str, float]:
    """Return the sum of fields by server; an access list may hide some."""
    return {
        name: sum(info[field] for field in fields)
        for name, info in found.items()
        if info is not None and all(isinstance(info.get(field), int | float) for field in fields)
    }
