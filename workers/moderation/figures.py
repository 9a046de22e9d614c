"""What the moderation worker says of itself to Prometheus."""

from __future__ import annotations

import time
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class Figures:
    """Counts of one process, in a registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._decisions = Counter(
            "uproar_moderation_decisions",
            "Comments decided on, by what was decided and by which stage.",
            ["action", "stage"],
            registry=self._registry,
        )
        self._queue = Gauge(
            "uproar_moderation_queue_records",
            "Records of the log that were not looked at yet, once a second.",
            registry=self._registry,
        )
        self._seconds = Histogram(
            "uproar_moderation_decision_seconds",
            "From a comment's time to the decision, in the log where it leads to something.",
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self._terms = Gauge(
            "uproar_moderation_terms",
            "Blocked terms of the installation's files.",
            registry=self._registry,
        )

    def decided(self, action: str, stage: str, ts: int) -> None:
        """Count a decision on a comment of time `ts` (unix ms), now that it holds."""
        self._decisions.labels(action, stage).inc()
        self._seconds.observe(max(0.0, time.time() - ts / 1000))

    def queue(self, records: int) -> None:
        """Note how far behind the worker is."""
        self._queue.set(records)

    def terms(self, count: int) -> None:
        """Note how many terms the files have."""
        self._terms.set(count)

    def text(self) -> str:
        """Return all in the Prometheus text format."""
        return generate_latest(self._registry).decode()
