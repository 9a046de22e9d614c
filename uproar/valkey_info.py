"""What Redis and Valkey servers say of themselves (INFO), for the admin port's metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import redis

from uproar.metrics import Metrics

# Metric → fields of INFO that add up to it.
FIELDS: Final = {
    "uproar_valkey_cpu_seconds_total": ("used_cpu_user", "used_cpu_sys"),
    "uproar_valkey_memory_bytes": ("used_memory",),
    "uproar_valkey_memory_bound_bytes": ("maxmemory",),
    "uproar_valkey_clients": ("connected_clients",),
    "uproar_valkey_commands_total": ("total_commands_processed",),
}


class Servers:
    """Some servers by name, asked in parallel. `ask` returns a server's INFO or raises."""

    def __init__(self, ask: Mapping[str, Callable[[], Mapping[str, Any]]]) -> None:
        self._ask = ask
        self._pool = ThreadPoolExecutor(max(1, len(ask)), thread_name_prefix="info")

    def infos(self) -> dict[str, Mapping[str, Any] | None]:
        """Return each server's INFO, None for one that did not answer in its client's time."""
        return dict(zip(self._ask, self._pool.map(self._one, self._ask), strict=True))

    def text(self) -> str:
        """Return their metrics; of a server that does not answer, only that."""
        found = self.infos()
        metrics = Metrics()
        metrics.read(
            "uproar_valkey_up",
            lambda: {name: int(info is not None) for name, info in found.items()},
        )
        for metric, fields in FIELDS.items():
            metrics.read(metric, lambda fields=fields: _sums(found, fields))  # type: ignore[misc]
        return metrics.text()

    def _one(self, name: str) -> Mapping[str, Any] | None:
        try:
            return self._ask[name]()
        except (redis.RedisError, OSError):
            return None


def _sums(
    found: Mapping[str, Mapping[str, Any] | None], fields: tuple[str, ...]
) -> dict[str, float]:
    """Return the sum of fields by server; an access list may hide some."""
    return {
        name: sum(info[field] for field in fields)
        for name, info in found.items()
        if info is not None and all(isinstance(info.get(field), int | float) for field in fields)
    }
