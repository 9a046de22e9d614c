"""BUS: fan-out of batches from the coordinator to the gateways that hold viewers of a stream.

Comes in: one payload per stream and poll. Goes out: the same bytes to every subscribed shard, at
most once; what is lost shows as a broken chain and is filled from ring and store. Channels are
`stream:{id}:comments:shard{k}`, and `gateway:{name}` for what is meant for one gateway.

Adapters: `uproar.bus.valkey`, and `uproar.bus.cluster` for a Redis or Valkey Cluster; `open_bus`
takes the one that `[state] engine` names.
"""

from __future__ import annotations

import zlib
from typing import Protocol

from uproar.config import Config


class BusLost(Exception):
    """The connection is gone: everything since is a hole; open a new subscriber and fill."""


def channel(stream: str, shard: int) -> str:
    """Return the channel that carries a stream's batches to one shard of gateways."""
    return f"stream:{stream}:comments:shard{shard}"


def shard_of(gateway: str, shards: int) -> int:
    """Return the shard that a gateway listens on: the same after every restart."""
    return zlib.crc32(gateway.encode()) % shards


def control_channel(gateway: str) -> str:
    """Return the channel for what is meant for one gateway: its own probe, later kicks."""
    return f"gateway:{gateway}"


class Subscriber(Protocol):
    """One dedicated connection. Used by one reader; the rest may call (un)subscribe."""

    def subscribe(self, channels: list[str]) -> None:
        """Ask for channels; the confirmation comes out of `get` as (channel, None)."""

    def unsubscribe(self, channels: list[str]) -> None:
        """Give channels up."""

    def get(self, wait_s: float) -> tuple[str, bytes | None] | None:
        """Return (channel, payload), (channel, None) for a confirmation, None after `wait_s`."""

    def close(self) -> None:
        """Close the connection."""


class Bus(Protocol):
    """Publishes; and opens subscribers."""

    def publish(self, messages: list[tuple[str, bytes]]) -> None:
        """Publish (channel, payload) in order, in one round trip; raises BusLost."""

    def subscriber(self) -> Subscriber:
        """Open a connection of its own for subscribing; raises BusLost."""

    def close(self) -> None:
        """Close the publishing connection."""


def open_bus(config: Config) -> Bus:
    """Return the bus that `[state] engine` names; it connects at the first call."""
    if config.state.engine == "cluster":
        from uproar.bus.cluster import ClusterBus

        return ClusterBus(config)
    from uproar.bus.valkey import ValkeyBus

    return ValkeyBus(config)
