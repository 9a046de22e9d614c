"""Archive: log → store. Rows and position in one transaction; what counts is written once.

The position that matters is the store's. The one committed to the log is a hint for trimming, and
follows behind.
"""

from __future__ import annotations

import logging
import os
import time

from uproar import status
from uproar.consumer import Poll, Share
from uproar.events import Event, PoisonedRecord, to_event
from uproar.lag import Lag
from uproar.log import open_log
from uproar.logs import event
from uproar.metrics import Histogram, Metrics
from uproar.store import StoreUnavailable, open_store
from workers.process import Process

logger = logging.getLogger(__name__)

GROUP = "archive"
POLL_RECORDS = 2048
COMMIT_EVERY_S = 2.0
# Between two transactions, so that a busy stream gets fewer and larger ones: at 10,000 comments/s
# this takes 40 % off the archive's CPU.
GATHER_S = 0.02


class Archive:
    """The loop and what it needs."""

    def __init__(self, process: Process) -> None:
        self.stop = process.stop
        self.log = open_log(process.config)
        self.store = open_store(process.config, writer=True)
        self.share = Share(self.log, GROUP, self.begin)
        self.reason = "starting"
        self.eras: dict[int, int] = {}
        self.written = 0
        self.write_s = Histogram()
        self.lag = Lag(self.log, GROUP, self.share.positions, self.stop)

    def begin(self, partition: int) -> int:
        """Return where the store stands in a partition."""
        while True:
            try:
                epoch = self.log.epoch(partition)
                self.eras[partition] = self.store.open_epoch(epoch)
                return self.store.position(epoch)
            except StoreUnavailable as error:
                self._wait(error)
                if self.stop.is_set():
                    return 0

    def run(self) -> None:
        """Write until stopped."""
        self.reason = ""
        commit_at = 0.0
        while not self.stop.is_set():
            polls = self.share.poll(0.25, POLL_RECORDS, self.stop)
            if not polls:
                continue
            for poll in polls:
                self._write(poll)
            self.stop.wait(GATHER_S)
            if time.monotonic() >= commit_at:
                self.share.commit()
                commit_at = time.monotonic() + COMMIT_EVERY_S

    def _write(self, poll: Poll) -> None:
        rows: list[tuple[str, Event]] = []
        for counted in poll.records:
            try:
                rows.append((counted.record.stream, to_event(counted.offset, counted.record)))
            except PoisonedRecord as error:
                self.share.set_aside(poll.partition, counted, error)
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                self.store.write(self.eras[poll.partition], rows, poll.last)
            except StoreUnavailable as error:
                self._wait(error)
                continue
            self.write_s.observe(time.monotonic() - began)
            self.written += len(rows)
            if self.reason:
                self.reason = ""
                event(logger, "store_back")
            return

    def _wait(self, error: Exception) -> None:
        if self.reason != str(error):
            self.reason = str(error)
            event(logger, "store_away", level=logging.WARNING, why=self.reason)
        self.stop.wait(0.2)


def metrics_of(archive: Archive) -> Metrics:
    """Return the metrics of the archive, read when asked."""
    metrics = Metrics()
    metrics.read("uproar_drops_total", lambda: {"poisoned": archive.share.poisoned})
    metrics.read("uproar_archive_written_total", lambda: archive.written)
    metrics.read("uproar_store_write_seconds", lambda: archive.write_s)
    archive.lag.tell(metrics)
    return metrics


def work(process: Process) -> None:
    """The process: `python -m workers archive`."""
    archive = Archive(process)
    metrics = metrics_of(archive)
    closer = status.serve(
        process.config.socket("status-archive"),
        lambda: {
            "name": "archive",
            "pid": os.getpid(),
            "ready": not archive.reason,
            "reason": archive.reason or archive.share.reason,
            "metrics": metrics.text(),
        },
    )
    archive.share.start(process.stop)
    if not process.stop.is_set():
        archive.lag.start()
        process.ready()
        archive.run()
        archive.share.commit()
    archive.share.close()
    closer.close()
    archive.store.close()
