"""STATE: a shared cache of the log: rings, interest leases, gateway leases, last positions.

Comes in: what the coordinator and the gateways know right now. Goes out: the same to the others.
Losing all of it loses no comment: everything here is rebuilt from the log and the store, or by the
next refresh of a lease.

Adapter: `uproar.state.valkey`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class StateLost(Exception):
    """STATE did not answer; callers go on with what they last knew, or try again."""


class RingEntry(NamedTuple):
    """A batch as the coordinator published it: it covers the offsets (prev, last]."""

    last: int
    payload: bytes


class RingWrite(NamedTuple):
    """One stream's batch for the ring; entries at and below `trim_to` are dropped."""

    stream: str
    last: int
    payload: bytes
    trim_to: int


class State(Protocol):
    """Calls block with a deadline; StateLost when it passes."""

    def write_rings(self, writes: list[RingWrite], now: float) -> list[list[int]]:
        """Write batches to their rings, *then* read interest: the interested shards per write.

        A batch at or below the ring's newest is refused silently (an older holder's). `now` is
        unix seconds, for the expiry of leases.
        """

    def ring(self, stream: str, after: int) -> list[RingEntry]:
        """Return the ring's entries with `last` above `after`, oldest first."""

    def interest(self, stream: str, now: float) -> list[int]:
        """Return the shards with a live lease on a stream (`now` in unix seconds)."""

    def add_interest(self, streams: list[str], shard: int, until: float) -> None:
        """Lease the streams' batches for a shard until a unix time in seconds."""

    def set_last(self, partition: int, offset: int, epoch: str) -> None:
        """Say that everything up to `offset` of this epoch has been through ring and bus."""

    def last(self, partition: int) -> tuple[int, str] | None:
        """Return the coordinator's (last offset, epoch), None when STATE does not know."""

    def lease_gateway(self, name: str, incarnation: str, connections: dict[str, int]) -> None:
        """Renew a gateway's lease together with its connections per stream."""

    def connections(self, streams: list[str]) -> list[int]:
        """Return the open connections of each stream, over all gateways with a live lease."""

    def ping(self) -> None:
        """Raise StateLost when STATE does not answer."""

    def close(self) -> None:
        """Close the connections."""
