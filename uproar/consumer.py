"""Reading the log as coordinator, archive and moderation do: what counts, from a position on.

Comes in: batches of the log. Goes out: per poll the records that count, with their offsets, and the
offset up to which everything has been seen. Repeats (`uproar.idempotency`) and poisoned records are
left out here, once for all; poisoned ones are counted and logged. A `Consumer` reads one partition;
a `Share` holds one for each partition that the group has given to this process.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

from uproar.events import PoisonedRecord, Record, decode_record
from uproar.idempotency import READ_BACK_MS, Deduplicator, key_of_record
from uproar.log import Log, LogBatch, LogUnavailable, Member
from uproar.logs import event

logger = logging.getLogger(__name__)

READ_BACK_RECORDS = 20_000


class Counted(NamedTuple):
    """A record that counts, in its place; `raw` is the record as the log holds it."""

    offset: int
    raw: bytes
    record: Record


class Poll(NamedTuple):
    """Everything in (after, last] of a partition that counts."""

    after: int
    last: int
    records: list[Counted]
    partition: int = 0


class Consumer:
    """Reads one partition for one group. Not thread-safe: one owner."""

    def __init__(self, log: Log, group: str, partition: int = 0) -> None:
        self.log = log
        self.group = group
        self.partition = partition
        self.position = 0
        self.poisoned = 0
        self._seen: Deduplicator[bool] = Deduplicator()
        self._away_logged = False

    def start(self, position: int, stop: threading.Event) -> None:
        """Take up reading after `position`, with the last minutes' keys known again.

        Waits for the log as long as `stop` is not set.
        """
        self.position = position
        while not stop.is_set():
            try:
                ts = self.log.ts_at(self.partition, position)
                at = self.log.before_ts(self.partition, ts - READ_BACK_MS) if ts else position
                while at < position:
                    batches = self.log.read(self.partition, at, 0.0, READ_BACK_RECORDS)
                    if not batches:
                        break
                    for batch in batches:
                        self._count(batch, upto=position)
                    at = batches[-1].last
                return
            except LogUnavailable as error:
                self._away(error, stop)

    def poll(self, wait_s: float, limit: int, stop: threading.Event) -> Poll:
        """Return what is next; an empty poll after `wait_s`, or when the log is away."""
        try:
            batches = self.log.read(self.partition, self.position, wait_s, limit)
        except LogUnavailable as error:
            self._away(error, stop)
            batches = []
        else:
            self.back()
        return self.take(batches)

    def take(self, batches: list[LogBatch]) -> Poll:
        """Return what counts of the batches that were read above the position."""
        after = self.position
        counted: list[Counted] = []
        for batch in batches:
            counted += self._count(batch)
        if batches:
            self.position = batches[-1].last
        return Poll(after, self.position, counted, self.partition)

    def lag(self) -> tuple[int, float]:
        """Return (records not read yet, how much older than the newest the last read is, seconds).

        Raises LogUnavailable.
        """
        end, ts = self.log.end(self.partition)
        if end <= self.position:
            return 0, 0.0
        read = self.log.ts_at(self.partition, self.position)
        return end - self.position, max(0, ts - read) / 1000 if read else 0.0

    def commit(self) -> bool:
        """Store the position; False when the log is away (a later commit covers it)."""
        try:
            self.log.commit(self.group, self.partition, self.position)
        except LogUnavailable:
            return False
        return True

    def _count(self, batch: LogBatch, upto: int | None = None) -> list[Counted]:
        counted = []
        if not batch.records:
            self._set_aside(batch.first, b"", PoisonedRecord("the batch is unreadable"))
        for offset, raw in enumerate(batch.records, batch.first):
            if upto is not None and offset > upto:
                break
            try:
                record = decode_record(raw)
            except PoisonedRecord as error:
                self._set_aside(offset, raw, error)
                continue
            if self._seen.admit(key_of_record(record), record.ts, True) is None:
                counted.append(Counted(offset, raw, record))
        return counted

    def _set_aside(self, offset: int, raw: bytes, error: PoisonedRecord) -> None:
        self.poisoned += 1
        event(
            logger, "record_poisoned", level=logging.WARNING,
            group=self.group, offset=offset, size=len(raw), head=raw[:48].hex(), why=str(error),
        )  # fmt: skip

    def set_aside(self, counted: Counted, error: PoisonedRecord) -> None:
        """Count and log a record whose head is good and whose data is not."""
        self._set_aside(counted.offset, counted.raw, error)

    def back(self) -> None:
        """Say once that the log answers again."""
        if self._away_logged:
            self._away_logged = False
            event(logger, "log_back", group=self.group, position=self.position)

    def _away(self, error: LogUnavailable, stop: threading.Event) -> None:
        if not self._away_logged:
            self._away_logged = True
            event(logger, "log_away", level=logging.WARNING, group=self.group, why=str(error))
        stop.wait(0.1)


class Share:
    """The partitions of a group that are this process's own, each with its consumer. One owner.

    What a new partition needs is done in `begin`, which returns the position to read on from; what
    is no longer ours is told to `end`. Two holders of a partition for a moment do no harm.
    """

    def __init__(
        self,
        log: Log,
        group: str,
        begin: Callable[[int], int],
        end: Callable[[int], None] = lambda partition: None,
    ) -> None:
        self.log = log
        self.group = group
        self.consumers: dict[int, Consumer] = {}
        self.reason = ""  # why the log is not being read
        self._begin = begin
        self._end = end
        self._member: Member | None = None
        self._poisoned = 0  # in partitions that are no longer ours

    @property
    def poisoned(self) -> int:
        """Records that were set aside."""
        return self._poisoned + sum(each.poisoned for each in self.consumers.values())

    def start(self, stop: threading.Event) -> None:
        """Join the group and take up what it gives us; waits for the log. Raises LogRefused."""
        while not stop.is_set():
            try:
                if self._member is None:
                    self.log.prepare()
                    self._member = self.log.join(self.group, self.group)
                self.settle(stop)
                return
            except LogUnavailable as error:
                self._away(error)
                stop.wait(0.05)

    def settle(self, stop: threading.Event) -> None:
        """Take up partitions that have become ours, drop the others; raises LogUnavailable.

        What `begin` raises is raised, and tried again the next time.
        """
        assert self._member is not None
        owned = self._member.partitions()
        if owned == self.consumers.keys():
            return
        for partition in self.consumers.keys() - owned:
            self._poisoned += self.consumers.pop(partition).poisoned
            self._end(partition)
        for partition in sorted(owned - self.consumers.keys()):
            position = self._begin(partition)
            consumer = Consumer(self.log, self.group, partition)
            consumer.start(position, stop)
            if not stop.is_set():
                self.consumers[partition] = consumer

    def poll(self, wait_s: float, limit: int, stop: threading.Event) -> list[Poll]:
        """Return what is next in each partition that has something; waits like `Consumer.poll`."""
        try:
            self.settle(stop)
            after = self.positions()
            batches = self.log.read_any(after, wait_s, limit) if after else []
        except LogUnavailable as error:
            self._away(error)
            stop.wait(0.1)
            return []
        if self.reason:
            self.reason = ""
            event(logger, "log_back", group=self.group)
        if not after:
            stop.wait(wait_s)
        by_partition: dict[int, list[LogBatch]] = {}
        for batch in batches:
            by_partition.setdefault(batch.partition, []).append(batch)
        return [self.consumers[number].take(found) for number, found in by_partition.items()]

    def positions(self) -> dict[int, int]:
        """Return up to where each partition has been read."""
        # A copy: the thread that looks at the lag asks as well.
        return {number: each.position for number, each in dict(self.consumers).items()}

    @property
    def position(self) -> int:
        """The sum of the positions: it moves on whenever one does."""
        return sum(self.positions().values())

    def commit(self) -> bool:
        """Store all positions; False when the log is away (a later commit covers it)."""
        stored = [each.commit() for each in self.consumers.values()]
        return all(stored)

    def set_aside(self, partition: int, counted: Counted, error: PoisonedRecord) -> None:
        """Count and log a record whose head is good and whose data is not."""
        self.consumers[partition].set_aside(counted, error)

    def close(self) -> None:
        """Leave the group; another incarnation takes over."""
        if self._member is not None:
            self._member.close()

    def _away(self, error: LogUnavailable) -> None:
        if not self.reason:
            event(logger, "log_away", level=logging.WARNING, group=self.group, why=str(error))
        self.reason = str(error)
