"""Reading the log as coordinator, archive and moderation do: what counts, from a position on.

Comes in: batches of the log. Goes out: per poll the records that count, with their offsets, and the
offset up to which everything has been seen. Repeats (`uproar.idempotency`) and poisoned records are
left out here, once for all; poisoned ones are counted and logged.
"""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple

from uproar.events import PoisonedRecord, Record, decode_record
from uproar.idempotency import READ_BACK_MS, Deduplicator, key_of_record
from uproar.log import Log, LogBatch, LogUnavailable
from uproar.logs import event

logger = logging.getLogger(__name__)

READ_BACK_RECORDS = 20_000


class Counted(NamedTuple):
    """A record that counts, in its place; `raw` is the record as the log holds it."""

    offset: int
    raw: bytes
    record: Record


class Poll(NamedTuple):
    """Everything in (after, last] that counts."""

    after: int
    last: int
    records: list[Counted]


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
        after = self.position
        try:
            batches = self.log.read(self.partition, after, wait_s, limit)
        except LogUnavailable as error:
            self._away(error, stop)
            return Poll(after, after, [])
        if self._away_logged:
            self._away_logged = False
            event(logger, "log_back", group=self.group, position=after)
        counted: list[Counted] = []
        for batch in batches:
            counted += self._count(batch)
        if batches:
            self.position = batches[-1].last
        return Poll(after, self.position, counted)

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

    def _away(self, error: LogUnavailable, stop: threading.Event) -> None:
        if not self._away_logged:
            self._away_logged = True
            event(logger, "log_away", level=logging.WARNING, group=self.group, why=str(error))
        stop.wait(0.1)
