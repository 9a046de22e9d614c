"""What the moderation worker says of itself to Prometheus."""

from __future__ import annotations

import time
from collections import Counter

from uproar.lag import Lag
from uproar.metrics import Histogram, Metrics


class Figures:
    """Counts of one process, and its metrics."""

    def __init__(self, lag: Lag) -> None:
        self.metrics = Metrics()
        self._decisions: Counter[tuple[str, str]] = Counter()
        self._seconds = Histogram()
        self.terms = 0  # of the installation's files
        read = self.metrics.read
        read("uproar_moderation_decisions_total", lambda: self._decisions)
        read("uproar_moderation_decision_seconds", lambda: self._seconds)
        read("uproar_moderation_queue_records", lambda: lag.records)
        read("uproar_moderation_terms", lambda: self.terms)
        lag.tell(self.metrics)

    def decided(self, action: str, stage: str, ts: int) -> None:
        """Count a decision on a comment of time `ts` (unix ms), now that it holds."""
        self._decisions[action, stage] += 1
        self._seconds.observe(time.time() - ts / 1000)

    def text(self) -> str:
        """Return all in the Prometheus text format."""
        return self.metrics.text()
