"""LOG: the one ordered, durable record of everything that happens in every stream.

Comes in: batches of encoded records (`uproar.events`). Goes out: the same records at their offsets,
in order, to every consumer, as often as it asks. Offsets rise within a partition, are never reused
and stay below 2**53. An append that returned survives `kill -9` of any one process.

Adapters: `uproar.log.valkey` (embedded, one partition). Both adapters of a role pass the tests of
`tests/conformance`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from uproar.config import Config

# The consumer groups. The log is trimmed only below what every one of them has committed.
GROUPS = ("coordinator", "archive", "moderation")


def groups_of(config: Config) -> tuple[str, ...]:
    """Return the groups of a configuration: webhooks read only where there are targets."""
    return (*GROUPS, "webhooks") if config.webhooks.targets else GROUPS


class LogUnavailable(Exception):
    """The log did not take or give records now. The outcome of an append is unknown: send again."""


class LogFull(LogUnavailable):
    """The log is at its memory bound or its disk is full; nothing was appended."""


class LogBatch(NamedTuple):
    """Consecutive records of one partition: `records[i]` stands at offset `first + i`.

    `last` covers the batch even where `records` is shorter because the batch is unreadable.
    """

    partition: int
    first: int
    last: int
    records: list[bytes]


def epoch_of(topic: str, partition: int, partitions: int) -> str:
    """Return the epoch: 12 hex digits that change whenever offsets start a new meaning."""
    return hashlib.blake2b(f"{topic}/{partition}/{partitions}".encode(), digest_size=6).hexdigest()


class Log(Protocol):
    """One topic. Calls block, with a deadline of the adapter's; LogUnavailable when it passes."""

    partitions: int

    def epoch(self, partition: int) -> str:
        """Return the epoch of a partition (`epoch_of` the topic's identity)."""

    def partition_of(self, stream: str) -> int:
        """Return the partition that holds all events of a stream."""

    def append(self, partition: int, records: list[bytes], ts: int) -> int:
        """Append in order, durably; return the first offset. `ts` is the newest record's."""

    def read(self, partition: int, after: int, wait_s: float, limit: int) -> list[LogBatch]:
        """Return about `limit` records above offset `after`, waiting `wait_s` for the first."""

    def end(self, partition: int) -> tuple[int, int]:
        """Return (offset, ts) of the newest record, (0, 0) for an empty log."""

    def ts_at(self, partition: int, offset: int) -> int:
        """Return the `ts` of the newest record at or below an offset, 0 when there is none."""

    def before_ts(self, partition: int, ts: int) -> int:
        """Return an offset such that every record with a `ts` of at least `ts` lies above it."""

    def position(self, group: str, partition: int) -> int:
        """Return the last offset that a group has committed, 0 when it never did."""

    def commit(self, group: str, partition: int, offset: int) -> None:
        """Store a group's position; positions only move forward."""

    def trim(self, partition: int, keep_after: int) -> None:
        """Forget records at and below `keep_after` where that is cheap."""

    def close(self) -> None:
        """Close the connections."""
