"""LOG: the one ordered, durable record of everything that happens in every stream.

Comes in: batches of encoded records (`uproar.events`). Goes out: the same records at their offsets,
in order, to every consumer, as often as it asks. Offsets rise within a partition, are never reused
and stay below 2**53. An append that returned survives `kill -9` of any one process.

Adapters: `uproar.log.valkey` (embedded, one partition) and `uproar.log.kafka`, chosen by
`open_log`. Both pass the tests of `tests/conformance`. Processes with gevent never open a log: they
need `partition_of` only, and have the epochs from STATE.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, Mapping
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


class LogRefused(Exception):
    """The log promises less than this system does; the message names the setting and the remedy."""


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


def partitions_of(config: Config) -> int:
    """Return how many partitions a configuration's log has."""
    return config.log.partitions if config.log.engine == "kafka" else 1


def partition_of(stream: str, partitions: int) -> int:
    """Return the partition of a stream: CRC-32 of its id, librdkafka's `consistent` partitioner."""
    return zlib.crc32(stream.encode()) % partitions


def open_log(config: Config) -> Log:
    """Return a log of the configured engine; it connects when it is first used."""
    if config.log.engine == "kafka":
        # Not at the top: librdkafka has threads of its own and no place in a process with gevent.
        from uproar.log.kafka import KafkaLog

        return KafkaLog(config)
    from uproar.log.valkey import ValkeyLog

    return ValkeyLog(config)


class Member(Protocol):
    """A process's membership in a consumer group. Not thread-safe, but for `close`."""

    def partitions(self) -> frozenset[int]:
        """Return the partitions that are this process's own now."""

    def close(self) -> None:
        """End this incarnation; another with the same name takes over what it had."""


class Log(Protocol):
    """One topic. Calls block, with a deadline of the adapter's; LogUnavailable when it passes.

    Thread-safe but for `read` and `read_any`, which are for one thread at a time.
    """

    partitions: int

    def prepare(self, *, appending: bool = False) -> None:
        """Make the topic where it is missing; raises LogRefused where it promises too little.

        With `appending` what a first append would have to wait for is begun.
        """

    def join(self, group: str, role: str) -> Member:
        """Join a group: its partitions are shared out among the processes that did."""

    def epoch(self, partition: int) -> str:
        """Return the epoch of a partition (`epoch_of` the topic's identity)."""

    def partition_of(self, stream: str) -> int:
        """Return the partition that holds all events of a stream."""

    def append(self, partition: int, records: list[bytes], ts: int) -> int:
        """Append in order, durably; return the first offset. `ts` is the newest record's."""

    def read(self, partition: int, after: int, wait_s: float, limit: int) -> list[LogBatch]:
        """Return about `limit` records above offset `after`, waiting `wait_s` for the first."""

    def read_any(self, after: Mapping[int, int], wait_s: float, limit: int) -> list[LogBatch]:
        """The same for several partitions at once, each above its own offset."""

    def end(self, partition: int) -> tuple[int, int]:
        """Return (offset, ts) of the newest record, (0, 0) for an empty log."""

    def ends(self, partitions: Collection[int]) -> dict[int, int]:
        """Return the offset of the newest record of each partition, 0 for an empty one."""

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
