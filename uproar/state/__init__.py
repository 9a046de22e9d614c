"""STATE: a shared cache of the log, and what is ephemeral: leases, presence, reactions, registry.

Comes in: what the coordinator and the gateways know right now. Goes out: the same to the others.
Losing all of it loses no comment: everything here is rebuilt from the log and the store, or said
again by the gateways, who notice it by their leases. No call costs more in one command than 500
members or 500 streams do.

Adapters: `uproar.state.valkey`, and `uproar.state.cluster` for a Redis or Valkey Cluster;
`open_state` takes the one that `[state] engine` names.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from uproar.config import Config


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


class Present(NamedTuple):
    """Members of a stream's audience, at most 500, counted in the minute of `now` (unix s)."""

    stream: str
    now: float
    members: list[str]


class Seat(NamedTuple):
    """Where a user's session is: which incarnation of which gateway, on which stream."""

    user: str
    session: str
    gateway: str
    incarnation: str
    stream: str


class ActiveStream(NamedTuple):
    """A stream with viewers, or with a comment within the last minutes. `started_at` is unix ms."""

    stream: str
    viewers: int
    connections: int
    started_at: int | None
    title: str


class State(Protocol):
    """Calls block with a deadline; StateLost when it passes."""

    def write_rings(self, writes: list[RingWrite], now: float) -> list[list[int]]:
        """Write batches to their rings, *then* read interest: the interested shards per write.

        A batch at or below the ring's newest is refused silently (an older holder's). `now` is
        unix seconds, for the expiry of leases.
        """

    def ring(self, stream: str, after: int) -> list[RingEntry]:
        """Return the ring's entries with `last` above `after`, oldest first."""

    def interests(self, streams: list[str], now: float) -> list[list[int]]:
        """Return the shards with a live lease on each of the streams."""

    def add_interest(self, streams: list[str], shard: int, until: float) -> list[str]:
        """Lease the streams' batches for a shard until a unix time in seconds.

        Return the streams that had no lease of the shard: what was published meanwhile went past.
        """

    def set_last(self, partition: int, offset: int, epoch: str) -> None:
        """Say that everything up to `offset` of this epoch has been through ring and bus."""

    def last(self, partition: int) -> tuple[int, str] | None:
        """Return the coordinator's (last offset, epoch), None when STATE does not know."""

    def lease_gateway(self, name: str, incarnation: str, connections: dict[str, int]) -> bool:
        """Renew a gateway's lease together with its connections per stream; 0 takes one away.

        False when the lease did not stand any more: STATE may have forgotten everything else, too.
        """

    def leased(self, names: list[str]) -> list[str]:
        """Return which of these gateways have a live lease."""

    def end_lease(self, name: str, incarnation: str) -> None:
        """Give a gateway's lease up: its connections and seats count no more."""

    def connections(self, streams: list[str]) -> list[int]:
        """Return the open connections of each stream, over all gateways with a live lease."""

    # -- presence ---------------------------------------------------------------------------------

    def add_present(self, present: list[Present]) -> None:
        """Count members as present in their minute."""

    def viewers(self, streams: list[str], now: float) -> list[int]:
        """Return the distinct members present per stream, within 2 %.

        The larger of the current and the last minute, so one who left counts for up to two.
        """

    # -- reactions --------------------------------------------------------------------------------

    def add_reactions(self, counts: dict[str, dict[str, int]]) -> None:
        """Add to streams' totals: {stream: {kind: count}}.

        Streams that were added to are taken out of `counts`: after StateLost it holds what may not
        have been counted, and is to be said again.
        """

    def reactions(self, streams: list[str]) -> list[dict[str, int]]:
        """Return the totals of each stream by kind, empty where there are none."""

    def raise_reactions(self, totals: dict[str, dict[str, int]]) -> None:
        """Raise totals to what is known, where STATE has less: it has lost some."""

    # -- the registry -----------------------------------------------------------------------------

    def seat(self, added: list[Seat], removed: list[Seat]) -> None:
        """Register sessions of users, and take others out; kept for 26 h."""

    def seats(self, user: str) -> list[Seat]:
        """Return a user's sessions on gateways with a live lease; drops the others."""

    # -- active streams ---------------------------------------------------------------------------

    def mark_active(self, streams: list[str], now: float) -> None:
        """Say that streams are active (`now` in unix seconds)."""

    def active(self, now: float) -> list[str]:
        """Return the streams that were marked within the last 5 minutes, sorted."""

    def describe_streams(self, described: dict[str, tuple[str, int] | None]) -> None:
        """Keep (title, start in unix ms) for the list of active streams; None: it has ended."""

    def active_streams(self, now: float) -> list[ActiveStream]:
        """Return the active streams with their counts, those with the most viewers first."""

    def ping(self) -> None:
        """Raise StateLost when STATE does not answer."""

    def close(self) -> None:
        """Close the connections."""


def open_state(config: Config) -> State:
    """Return the state that `[state] engine` names; it connects at the first call."""
    if config.state.engine == "cluster":
        from uproar.state.cluster import ClusterState

        return ClusterState(config)
    from uproar.state.valkey import ValkeyState

    return ValkeyState(config)
