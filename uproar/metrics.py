"""Metrics: what each process counts, told to Prometheus when it is asked.

A process owns one `Metrics`. Hot paths add to plain integers and to `Histogram`s, in places that
know nothing of names; `Metrics` has a function per name that reads them, and makes text of it when
the admin port is scraped. Every name is in `CATALOGUE`, with its kind, labels and roles; no label
is a stream or a user. The admin process adds `process` and `role` (`uproar.exposition`).

Written by hand: an observation takes a third to a twelfth of the time of prometheus-client's.
"""

from __future__ import annotations

import logging
import math
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from uproar.logs import event

log = logging.getLogger(__name__)

# The bars of the benchmarks (10, 50 and 150 ms) and of the alerts (1 s) are bounds.
BOUNDS_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
)  # fmt: skip

CONSUMERS: Final = ("coordinator", "archive", "moderation", "webhooks")
EVERYBODY: Final = ("gateway", "ingest", *CONSUMERS, "admin")
CHILDREN: Final = (*EVERYBODY, "log", "state")  # of the supervisor


class Spec(NamedTuple):
    """What a metric is. A name ends in its unit; what has none counts what the name says."""

    kind: str  # counter, gauge or histogram
    roles: tuple[str, ...]  # that serve it
    about: str
    labels: tuple[str, ...] = ()  # beside process and role


CATALOGUE: Final[dict[str, Spec]] = {
    # -- a comment's way --------------------------------------------------------------------------
    "uproar_comment_seconds": Spec(
        "histogram", ("ingest", "coordinator", "gateway"),
        "Latency of comments by hop: logged (accepted by ingest to read back from the log, which "
        "is when it is acknowledged), published (read from the log by the coordinator to taken by "
        "ring and bus), sent (published to sent by a gateway's tick), all (accepted to sent).",
        ("hop",),
    ),
    "uproar_fanout_seconds": Spec(
        "histogram", ("gateway",), "Encoding and sending one tick to everybody it is for."
    ),
    "uproar_bus_roundtrip_seconds": Spec(
        "histogram", ("gateway",),
        "A gateway's probe, through the bus and back: publish and subscribe.",
    ),
    "uproar_gateway_probe_age_seconds": Spec(
        "gauge", ("gateway",), "Since the last probe came back; above 3 the gateway is not ready."
    ),
    "uproar_drops_total": Spec(
        "counter", ("gateway", "ingest", *CONSUMERS),
        "What was given up, by reason: slow_viewer (comments behind a GAP to one viewer), refused "
        "(connections, for there were too many or they came too fast), reactions (STATE was away "
        "for long), poisoned (records nobody can read), webhook (events no target took).",
        ("reason",),
    ),
    "uproar_reconnects_total": Spec(
        "counter", ("gateway",),
        "Connections to the bus and to ingest that were made anew.",
        ("to",),
    ),
    # -- gateway ----------------------------------------------------------------------------------
    "uproar_gateway_connections": Spec("gauge", ("gateway",), "Open sessions of every dialect."),
    "uproar_gateway_viewers": Spec(
        "gauge", ("gateway",), "Sessions that watch; services are not among them."
    ),
    "uproar_gateway_streams": Spec("gauge", ("gateway",), "Streams that are followed."),
    "uproar_gateway_accepted_total": Spec(
        "counter", ("gateway",), "Connections accepted (fast engine)."
    ),
    "uproar_gateway_handshakes_total": Spec(
        "counter", ("gateway",), "WebSocket handshakes that were completed (fast engine)."
    ),
    "uproar_gateway_closed_total": Spec(
        "counter", ("gateway",),
        "Sessions that ended, by the name of the close code; lost: without one.",
        ("reason",),
    ),
    "uproar_gateway_resumes_total": Spec(
        "counter", ("gateway",),
        "Sessions that asked to go on where they were, and whether they could.",
        ("recovered",),
    ),
    "uproar_gateway_kicked_total": Spec("counter", ("gateway",), "Sessions kicked."),
    "uproar_gateway_frames_total": Spec("counter", ("gateway",), "Frames sent."),
    "uproar_gateway_bytes_total": Spec("counter", ("gateway",), "Bytes sent."),
    "uproar_gateway_received_bytes_total": Spec(
        "counter", ("gateway",), "Bytes received on sessions (fast engine)."
    ),
    "uproar_gateway_compressed_bytes_total": Spec(
        "counter", ("gateway",),
        "Bytes of messages before (in) and after (out) they were compressed (fast engine).",
        ("side",),
    ),
    "uproar_gateway_keyframes_total": Spec(
        "counter", ("gateway",), "Messages on which those who wait hop on (fast engine)."
    ),
    "uproar_gateway_audience_bytes_total": Spec(
        "counter", ("gateway",),
        "Bytes of the ticks' messages to all members, framed and compressed.",
        ("dialect", "codec", "compression"),
    ),
    "uproar_gateway_audience_members": Spec(
        "gauge", ("gateway",), "Sessions in audiences.", ("dialect", "codec", "compression")
    ),
    "uproar_gateway_events_total": Spec(
        "counter", ("gateway",), "Events encoded, once per audience."
    ),
    "uproar_gateway_ticks_total": Spec(
        "counter", ("gateway",),
        "Ticks, by how long the next one waits: normal, stretched (sending took most of "
        "the tick), overload (it took longer than the longest tick).",
        ("reason",),
    ),
    "uproar_gateway_tick_seconds": Spec("gauge", ("gateway",), "Length of the tick now."),
    "uproar_gateway_fills_total": Spec(
        "counter", ("gateway",), "Times that a broken chain was mended, or tried to be."
    ),
    "uproar_gateway_gaps_total": Spec(
        "counter", ("gateway",), "Broken chains that could not be mended: viewers were sent a GAP."
    ),
    "uproar_gateway_overflows_total": Spec(
        "counter", ("gateway",), "Times that a session's queue was full."
    ),
    "uproar_gateway_pending": Spec(
        "gauge", ("gateway",), "Submissions that wait for ingest's answer."
    ),
    "uproar_gateway_reactions_total": Spec("counter", ("gateway",), "Reactions counted."),
    # -- ingest -----------------------------------------------------------------------------------
    "uproar_ingest_answers_total": Spec(
        "counter", ("ingest",),
        "Submissions answered: accepted, or the code of the refusal.",
        ("outcome",),
    ),
    "uproar_ingest_appended_total": Spec("counter", ("ingest",), "Records appended to the log."),
    "uproar_ingest_pending": Spec("gauge", ("ingest",), "Records on their way through the log."),
    "uproar_ingest_waiting": Spec("gauge", ("ingest",), "Records that wait to be appended."),
    "uproar_ingest_sampled_streams": Spec(
        "gauge", ("ingest",), "Streams of which not every comment is shown."
    ),
    "uproar_ingest_sampling_ratio": Spec(
        "gauge", ("ingest",), "The lowest share of comments shown of any stream; 1: all of all."
    ),
    "uproar_log_append_seconds": Spec(
        "histogram", ("ingest",), "One append to the log, until it is durable."
    ),
    # -- consumers of the log ---------------------------------------------------------------------
    "uproar_log_position": Spec(
        "gauge", CONSUMERS, "Offset up to which a group has seen everything.", ("group",)
    ),
    "uproar_log_lag_records": Spec(
        "gauge", CONSUMERS, "Records that a group has not read yet.", ("group",)
    ),
    "uproar_log_lag_seconds": Spec(
        "gauge", CONSUMERS, "Age of the oldest record that a group has not read yet.", ("group",)
    ),
    "uproar_coordinator_published_total": Spec(
        "counter", ("coordinator",), "Messages published on the bus."
    ),
    "uproar_coordinator_totals_total": Spec(
        "counter", ("coordinator",), "Totals of reactions and viewers published on the bus."
    ),
    "uproar_archive_written_total": Spec("counter", ("archive",), "Events written to the store."),
    "uproar_store_write_seconds": Spec(
        "histogram", ("archive",), "One transaction of the store: rows and position."
    ),
    "uproar_moderation_queue_records": Spec(
        "gauge", ("moderation",), "Records of the log that were not looked at yet."
    ),
    "uproar_moderation_decision_seconds": Spec(
        "histogram", ("moderation",),
        "From a comment's time to the decision, in the log where it leads to something.",
    ),
    "uproar_moderation_decisions_total": Spec(
        "counter", ("moderation",),
        "Comments decided on, by what was decided and by which stage.",
        ("action", "stage"),
    ),
    "uproar_moderation_terms": Spec(
        "gauge", ("moderation",), "Blocked terms of the installation's files."
    ),
    "uproar_webhooks_waiting": Spec("gauge", ("webhooks",), "Events that wait for a target."),
    "uproar_webhooks_delivered_total": Spec("counter", ("webhooks",), "Events that targets took."),
    "uproar_webhooks_failures_total": Spec("counter", ("webhooks",), "Tries that failed."),
    # -- the machine, as its admin process sees it ------------------------------------------------
    "uproar_process_answers": Spec(
        "gauge", EVERYBODY[:-1], "Whether a process told its status when it was asked."
    ),
    "uproar_process_restarts_total": Spec(
        "counter", CHILDREN, "Deaths of a process since its supervisor started."
    ),
    "uproar_valkey_up": Spec(
        "gauge", ("admin",), "Whether a Redis or Valkey server answers INFO.", ("server",)
    ),
    "uproar_valkey_cpu_seconds_total": Spec(
        "counter", ("admin",), "CPU time of a Redis or Valkey server.", ("server",)
    ),
    "uproar_valkey_memory_bytes": Spec(
        "gauge", ("admin",), "Memory that a Redis or Valkey server uses.", ("server",)
    ),
    "uproar_valkey_memory_bound_bytes": Spec(
        "gauge", ("admin",), "Memory that it may use; 0: no bound.", ("server",)
    ),
    "uproar_valkey_clients": Spec("gauge", ("admin",), "Connections to it.", ("server",)),
    "uproar_valkey_commands_total": Spec(
        "counter", ("admin",), "Commands that it has run.", ("server",)
    ),
    # -- every process ----------------------------------------------------------------------------
    "process_cpu_seconds_total": Spec("counter", EVERYBODY, "CPU time of a process."),
    "process_resident_memory_bytes": Spec("gauge", EVERYBODY, "Memory of a process (Linux)."),
}  # fmt: skip


class Histogram:
    """Counts of values up to each bound and above all. One thread adds; any may read."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = BOUNDS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value; a negative one (clocks differ) as 0."""
        if value < 0:
            value = 0.0
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def observe_since(self, now_ms: int, stamps_ms: Sequence[int]) -> None:
        """Count how long ago each of some rising stamps was, in seconds.

        A look for each bound among them and none for each stamp: 50 take as long as 6 by `observe`.
        """
        count, at = len(stamps_ms), 0
        if not count:
            return
        bounds = self.bounds
        while at < count:
            bucket = bisect_left(bounds, (now_ms - stamps_ms[at]) / 1000)
            end = count
            if bucket:
                upto = bisect_left(stamps_ms, now_ms - bounds[bucket - 1] * 1000, at)
                end = max(upto, at + 1)
            self.counts[bucket] += end - at
            at = end
        newest = stamps_ms[-1]
        ages = count * now_ms - sum(stamps_ms)
        # A clock that is behind: ages below 0 count as 0.
        self.sum += (
            ages if newest <= now_ms else sum(max(0, now_ms - s) for s in stamps_ms)
        ) / 1000


Number: TypeAlias = int | float
Value: TypeAlias = Number | Histogram
# By the values of the metric's labels: a string for one label, a tuple for several.
Labelled: TypeAlias = Mapping[Any, Value]
Reading: TypeAlias = Callable[[], Value | Labelled | None]


class Metrics:
    """The readings of one process by name."""

    def __init__(self) -> None:
        self._readings: dict[str, Reading] = {}
        self.read("process_cpu_seconds_total", time.process_time)
        self.read("process_resident_memory_bytes", resident_bytes)

    def read(self, name: str, reading: Reading) -> None:
        """Serve under a name of the catalogue what `reading` returns then; None: nothing now."""
        if name not in CATALOGUE:
            raise ValueError(f"{name} is not in uproar.metrics.CATALOGUE; describe it there")
        self._readings[name] = reading

    def text(self) -> str:
        """Return all in the text format (version 0.0.4); a reading that fails costs itself."""
        lines: list[str] = []
        for name, reading in self._readings.items():
            try:
                lines += family(name, reading())
            except Exception:
                event(log, "metric_failed", level=logging.ERROR, metric=name, exc_info=True)
        return "".join(f"{line}\n" for line in lines)


def family(name: str, found: Value | Labelled | None) -> list[str]:
    """Return the lines of one metric, none where there is nothing to say."""
    spec = CATALOGUE[name]
    if found is None:
        return []
    samples: list[str] = []
    # A copy: the owner may add a key meanwhile.
    by_labels = dict(found) if isinstance(found, Mapping) else {(): found}
    for values, value in by_labels.items():
        texts = (values,) if isinstance(values, str) else values
        labels = ",".join(
            f'{label}="{escape(text)}"' for label, text in zip(spec.labels, texts, strict=True)
        )
        samples += _samples(name, labels, value)
    head = [f"# HELP {name} {spec.about}", f"# TYPE {name} {spec.kind}"]
    return head + samples if samples else []


def escape(text: str) -> str:
    """Return a label's value as it stands between quotes."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _samples(name: str, labels: str, value: Value) -> list[str]:
    if not isinstance(value, Histogram):
        braced = f"{{{labels}}}" if labels else ""
        return [] if math.isnan(value) else [f"{name}{braced} {value}"]
    counts, total, lines = value.counts.copy(), 0, []
    first = f"{labels}," if labels else ""
    for bound, count in zip((*map(str, value.bounds), "+Inf"), counts, strict=True):
        total += count
        lines.append(f'{name}_bucket{{{first}le="{bound}"}} {total}')
    braced = f"{{{labels}}}" if labels else ""
    return [*lines, f"{name}_count{braced} {total}", f"{name}_sum{braced} {value.sum}"]


def resident_bytes() -> int | None:
    """Return the memory of this process, None where the system does not tell it so."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def table() -> str:
    """Return the catalogue as docs/metrics.md has it."""
    rows = ["| metric | kind | labels | from | what |", "|---|---|---|---|---|"]
    for name, spec in CATALOGUE.items():
        labels = ", ".join(spec.labels)
        everybody = {EVERYBODY: "every process", CHILDREN: "every process and server"}
        roles = everybody.get(spec.roles) or ", ".join(spec.roles)
        rows.append(f"| `{name}` | {spec.kind} | {labels} | {roles} | {spec.about} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
