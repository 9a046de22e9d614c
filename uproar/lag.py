"""Lag: how far a consumer group is behind the log's end, in records and in seconds.

A thread of its own looks once a second, so a consumer that hangs is seen to fall behind. What a
look found unread and is unread still goes on growing older, also while the log does not answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from uproar.log import Log, LogUnavailable
from uproar.logs import event
from uproar.metrics import Metrics

logger = logging.getLogger(__name__)

LOOK_S: Final = 1.0


class Lag:
    """What one process has not read yet of its partitions."""

    def __init__(
        self,
        log: Log,
        group: str,
        positions: Callable[[], Mapping[int, int]],
        stop: threading.Event,
    ) -> None:
        """`positions` returns the offset up to which each partition of ours was read."""
        self.log = log
        self.group = group
        self.positions = positions
        self.stop = stop
        self.records = 0
        self._looked_s = 0.0
        self._unread: dict[int, tuple[int, int]] = {}  # partition → oldest unread (offset, ts)
        self._thread = threading.Thread(target=self._run, name="lag", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def seconds(self, now_s: float) -> float:
        """Return the age of the oldest unread record (`now_s` in unix seconds), 0 for none."""
        positions, seconds = self.positions(), 0.0
        for partition, (offset, ts) in self._unread.items():
            # One that was read since the look was unread for as long as that saw.
            until = self._looked_s if positions.get(partition, 0) >= offset else now_s
            seconds = max(seconds, until - ts / 1000)
        return seconds

    def look(self, now_s: float) -> None:
        """Ask the log; raises LogUnavailable."""
        records, unread = 0, {}
        positions = self.positions()
        for partition, end in self.log.ends(positions).items():
            oldest = positions[partition] + 1
            if end >= oldest:
                records += end - oldest + 1
                known, ts = self._unread.get(partition, (0, 0))
                if known != oldest:
                    ts = self.log.ts_at(partition, oldest)
                unread[partition] = oldest, ts
        self.records, self._unread, self._looked_s = records, unread, now_s

    def tell(self, metrics: Metrics) -> None:
        """Serve position and lag."""
        group = self.group
        metrics.read("uproar_log_position", lambda: {group: sum(self.positions().values())})
        metrics.read("uproar_log_lag_records", lambda: {group: self.records})
        metrics.read("uproar_log_lag_seconds", lambda: {group: self.seconds(time.time())})

    def _run(self) -> None:
        while not self.stop.wait(LOOK_S):
            try:
                self.look(time.time())
            except LogUnavailable:
                continue
            except Exception:
                # A thread that ends here would leave a lag of 0 for ever.
                event(logger, "lag_failed", level=logging.ERROR, exc_info=True)
