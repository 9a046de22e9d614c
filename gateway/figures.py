"""Figures: what a gateway process counts for Prometheus, and where each of its metrics is read.

`Figures` holds the counts that have no other home; the places that add to it have one line each.
Counted are ticks, batches and comments, never sends: those are the engine's integers.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from uproar import codes
from uproar.events import Event
from uproar.metrics import Histogram, Metrics

if TYPE_CHECKING:
    from gateway.server import Gateway

CAME_MAX: Final = 10_000  # batches between two ticks whose latency is known

# Close codes that nobody sends: what a connection without a close frame ended as.
UNSENT: Final = {1005: "no_status", 1006: "lost"}
ENDS: Final = (*(entry.name for entry in codes.CLOSE_CODES.values()), *UNSENT.values(), "other")


class Figures:
    """Counts of one gateway process. One hub adds to them."""

    def __init__(self) -> None:
        self.sent = Histogram()  # from published to sent, by comment
        self.all = Histogram()  # from accepted to sent, by comment
        self.fanout = Histogram()  # by tick
        self.roundtrip = Histogram()  # by probe
        self.ticks = {"normal": 0, "stretched": 0, "overload": 0}
        self.resumes = {"true": 0, "false": 0}
        self.closed: Counter[int] = Counter()  # by close code
        self.overflows = 0
        self.folded = 0  # comments behind a GAP, by viewer
        self._came: deque[tuple[int, int]] = deque(maxlen=CAME_MAX)
        self._probed_at = 0.0

    def came(self, published_ms: int, events: list[Event]) -> None:
        """Note a batch that goes out with the next tick; 0: it did not come from the bus."""
        if published_ms and events:
            self._came.append((published_ms, len(events)))

    def went(self, events: list[Event]) -> None:
        """Count the comments of a tick, now that they are sent."""
        now_ms = time.time_ns() // 1_000_000
        self.all.observe_since(now_ms, [found.ts for found in events if found.type == "COMMENT"])

    def ticked(self, took_s: float, length_s: float, tick_s: float, longest_s: float) -> None:
        """Count a tick that took so long, before one that waits `length_s`."""
        self.fanout.observe(took_s)
        overload, stretched = took_s > longest_s, length_s > tick_s
        self.ticks["overload" if overload else "stretched" if stretched else "normal"] += 1
        if self._came:
            now_ms = time.time_ns() // 1_000_000
            for published_ms, count in self._came:
                self.sent.observe((now_ms - published_ms) / 1000, count)
            self._came.clear()

    def probe(self) -> None:
        """Note that a probe leaves; while one is out, it counts from when that one left."""
        if not self._probed_at:
            self._probed_at = time.monotonic()

    def probed(self) -> None:
        """Count a probe that has come back."""
        if self._probed_at:
            self.roundtrip.observe(time.monotonic() - self._probed_at)
            self._probed_at = 0.0

    def resumed(self, recovered: bool) -> None:
        """Count a session that asked to go on where it was."""
        self.resumes["true" if recovered else "false"] += 1

    def ends(self) -> dict[str, int]:
        """Return how many sessions ended, by the names of the table of close codes."""
        found: Counter[str] = Counter(dict.fromkeys(ENDS, 0))
        for code, count in dict(self.closed).items():
            entry = codes.CLOSE_CODES.get(code)
            found[entry.name if entry else UNSENT.get(code, "other")] += count
        return found


def metrics_of(gateway: Gateway) -> Metrics:
    """Return the metrics of a gateway process, read from its parts when asked."""
    metrics = Metrics()
    read = metrics.read
    engine, ticker, feed = gateway.engine, gateway.ticker, gateway.feed
    figures = ticker.figures
    # The reference engine counts frames and bytes only.
    counters = getattr(engine, "counters", None)

    read("uproar_comment_seconds", lambda: {"sent": figures.sent, "all": figures.all})
    read("uproar_fanout_seconds", lambda: figures.fanout)
    read("uproar_bus_roundtrip_seconds", lambda: figures.roundtrip)
    read("uproar_gateway_probe_age_seconds", lambda: feed.probe_age_s)
    read(
        "uproar_drops_total",
        lambda: {
            "slow_viewer": figures.folded,
            "reactions": gateway.reactions.dropped,
            **({"refused": counters()["refused"]} if counters else {}),
        },
    )
    read(
        "uproar_reconnects_total",
        lambda: {"bus": max(0, feed.reconnects), "ingest": max(0, gateway.link.reconnects)},
    )
    read("uproar_gateway_connections", lambda: engine.connections)
    read("uproar_gateway_viewers", lambda: sum(gateway.viewers.watching().values()))
    read("uproar_gateway_streams", lambda: len(feed.live))
    read("uproar_gateway_closed_total", figures.ends)
    read("uproar_gateway_resumes_total", lambda: figures.resumes)
    read("uproar_gateway_kicked_total", lambda: gateway.registry.kicked)
    read("uproar_gateway_frames_total", lambda: engine.frames_sent)
    read("uproar_gateway_bytes_total", lambda: engine.bytes_sent)
    if counters:
        read("uproar_gateway_accepted_total", lambda: counters()["accepted"])
        read("uproar_gateway_handshakes_total", lambda: counters()["handshakes"])
        read("uproar_gateway_received_bytes_total", lambda: counters()["bytes_received"])
        read("uproar_gateway_keyframes_total", lambda: counters()["keyframes"])
        read(
            "uproar_gateway_compressed_bytes_total",
            lambda: {side: counters()[f"compressed_{side}"] for side in ("in", "out")},
        )
    read("uproar_gateway_audience_bytes_total", ticker.audiences.bytes_by_kind)
    read("uproar_gateway_audience_members", ticker.audiences.members_by_kind)
    read("uproar_gateway_events_total", lambda: ticker.events_encoded)
    read("uproar_gateway_ticks_total", lambda: figures.ticks)
    read("uproar_gateway_tick_seconds", lambda: ticker.length_s)
    read("uproar_gateway_fills_total", lambda: feed.fills)
    read("uproar_gateway_gaps_total", lambda: feed.gaps)
    read("uproar_gateway_overflows_total", lambda: figures.overflows)
    read("uproar_gateway_pending", lambda: gateway.link.pending)
    read("uproar_gateway_reactions_total", lambda: gateway.reactions.counted)
    return metrics
