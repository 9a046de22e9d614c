"""What do comments take, hop by hop, on the embedded engines and on Kafka, Cassandra and a cluster?

    python -m benchmarks.stack [--engines embedded|stack] [--rate N] [--seconds S] [--json]

Load: 1,000 viewers of one stream, one in ten of which decodes everything, and four service senders:
1,000 comments/s, for which there are bars, then 10,000 for 60 s. The servers are started for it, on
this machine, and removed. Times by hop and lag come from the system's own metrics, end to end and
acknowledgements from the clients'.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import host, load
from benchmarks.crowd import Crowd, percentile_ms
from benchmarks.report import (
    Bar,
    Figure,
    Report,
    below,
    document,
    exactly,
    milliseconds,
    per,
    table,
)
from benchmarks.served import Served, Window
from deploy.stack.__main__ import cache_dir
from deploy.stack.cassandra import Cassandra
from deploy.stack.cluster import Cluster
from deploy.stack.kafka import Brokers
from deploy.stack.server import Group, StackError, free_ports
from uproar.swarm import Swarm

QUESTION: Final = "what do comments take, hop by hop?"
VIEWERS: Final = 1000
DECODE_EVERY: Final = 10
SENDERS: Final = 4
RATES: Final = {1000.0: 30.0, 10_000.0: 60.0}  # comments/s: seconds
BARS_AT: Final = 1000.0
WARM_S: Final = {"embedded": 3.0, "stack": 20.0}  # of the same load, uncounted: JVMs compile first
SCRAPE_S: Final = 1.0
SHARES: Final = (0.5, 0.95, 0.99)
JOIN_S: Final = 60.0
DRAIN_S: Final = 60.0
STREAM: Final = "stack"

# Histograms of the system: what each is called here.
HOPS: Final = {
    "uproar_comment_seconds logged": "accepted → in the log",
    "uproar_comment_seconds published": "read from the log → published",
    "uproar_comment_seconds sent": "published → sent",
    "uproar_fanout_seconds": "fan-out of a tick",
    "uproar_bus_roundtrip_seconds": "pub/sub round trip",
    "uproar_log_append_seconds": "append to the log",
    "uproar_store_write_seconds": "write to the store",
}
FANOUT: Final = HOPS["uproar_fanout_seconds"]
PUBSUB: Final = HOPS["uproar_bus_roundtrip_seconds"]
LAG: Final = "uproar_log_lag_seconds"
DROPS: Final = "uproar_drops"

Buckets = dict[float, float]  # upper bound in seconds: count of all up to it


class Metrics:
    """What the admin port says: read at the beginning, at the end, and each second for the lag."""

    def __init__(self, served: Served) -> None:
        self._url = f"{served.info['admin'].rstrip('/')}/metrics"
        self.lag: dict[str, float] = {}  # by group, the largest seen
        self._before, self._drops = self._read()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> tuple[dict[str, Buckets], float]:
        """Return the histograms of the time between, by name and hop, and what was dropped."""
        self._done.set()
        self._thread.join(20)
        after, drops = self._read()
        between = {
            name: {
                bound: count - self._before.get(name, {}).get(bound, 0.0)
                for bound, count in buckets.items()
            }
            for name, buckets in after.items()
        }
        return between, drops - self._drops

    def _watch(self) -> None:
        while not self._done.wait(SCRAPE_S):
            self._read()

    def _read(self) -> tuple[dict[str, Buckets], float]:
        with urllib.request.urlopen(self._url, timeout=15) as answer:
            text = answer.read().decode()
        found: dict[str, Buckets] = {}
        drops = 0.0
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = sample.labels
                if family.name == LAG:
                    group = labels["group"]
                    self.lag[group] = max(self.lag.get(group, 0.0), sample.value)
                elif family.name == DROPS:
                    drops += sample.value
                elif sample.name.endswith("_bucket"):
                    name = f"{family.name} {labels.get('hop', '')}".strip()
                    buckets, bound = found.setdefault(name, {}), float(labels["le"])
                    buckets[bound] = buckets.get(bound, 0.0) + sample.value
        return found, drops


def quantile_ms(buckets: Buckets, share: float) -> float:
    """Return a quantile as `histogram_quantile` of Prometheus does: within its bucket by rule of
    three; the last finite bound for what is above it, NaN for nothing."""
    ordered = sorted(buckets.items())
    total = ordered[-1][1] if ordered else 0.0
    if not total:
        return math.nan
    low = below_it = 0.0
    for bound, count in ordered:
        if count >= share * total:
            if math.isinf(bound):
                return low * 1000
            return (low + (bound - low) * per(share * total - below_it, count - below_it)) * 1000
        low, below_it = bound, count
    return math.nan


@contextmanager
def servers() -> Iterator[tuple[dict[str, Any], dict[str, int]]]:
    """Start the stack; give the settings that lead there and the servers' pids by role."""
    with tempfile.TemporaryDirectory(prefix="ups") as directory:
        place = Path(directory)
        first, second, third = free_ports(3)
        kafka = Brokers(cache_dir(), place, free_ports(2))
        cassandra = Cassandra(cache_dir(), place / "cassandra", (first, second, third))
        cluster = Cluster(place, free_ports(6))
        groups: list[Group] = [kafka, Group([cassandra]), cluster]
        try:
            for group in groups:
                group.launch()
            for group in groups:
                group.wait()
            nodes = [f"127.0.0.1:{node.ports[0]}" for node in cluster.nodes]
            settings: dict[str, Any] = {
                "log__engine": "kafka", "log__brokers": kafka.address, "log__replicas": 1,
                "log__min_insync": 1, "store__engine": "cassandra", "store__port": first,
                "store__replication": 1, "state__engine": "cluster",
                "state__nodes": json.dumps(nodes),
            }  # fmt: skip
            pids = {server.name: server.pid for group in groups for server in group.servers}
            yield settings, {name: pid for name, pid in pids.items() if pid}
        finally:
            for group in groups:
                for server in group.servers:
                    server.kill9()


def measure(
    command: str, engines: str, rate: float, seconds: float,
    settings: dict[str, Any], pids: dict[str, int],
) -> Report:  # fmt: skip
    """Run once."""
    with Served(**settings) as served, Crowd() as crowd, Swarm(seed=1) as swarm:
        _await_store(served)
        url = served.stream(STREAM)

        def sending(part_s: float) -> load.Load:
            made = load.Load(
                swarm, url, served.service_token, rate=rate, seconds=part_s, senders=SENDERS
            )
            if not swarm.run(lambda: made.ready, JOIN_S):
                raise RuntimeError("the senders could not connect")
            return made

        group = crowd.add(url, VIEWERS, decode_every=DECODE_EVERY)
        crowd.join(group, VIEWERS, JOIN_S)
        warm = sending(WARM_S[engines])
        load.run(swarm, warm, f"{engines}: warm", DRAIN_S)
        decoding = VIEWERS // DECODE_EVERY
        crowd.wait(lambda seen: seen.comments >= warm.shown * decoding, group, deadline_s=DRAIN_S)
        for member in warm.senders:
            member.leave()

        measured = sending(seconds)
        crowd.reset()
        metrics = Metrics(served)
        window = Window(served, {"generator crowd": crowd.child.pid, **pids})
        took = load.run(swarm, measured, engines, DRAIN_S)
        due = measured.shown * decoding
        crowd.wait(lambda seen: seen.comments >= due, group, deadline_s=DRAIN_S)
        used = window.close()
        histograms, drops = metrics.close()
        seen = crowd.seen(group)
        acked = len(measured.acked)
        lacking = abs(due - seen.comments) + seen.missing + seen.repeats + seen.gaps
        times = milliseconds(measured.latencies, SHARES)
        ends = {share: percentile_ms(seen.buckets, share) for share in SHARES}
        hops = {
            title: {share: quantile_ms(histograms[name], share) for share in SHARES}
            for name, title in HOPS.items()
            if name in histograms
        }
        figures: dict[str, Figure] = {
            "comments": measured.sent,
            "acknowledged": acked,
            "acknowledgements/s": per(acked, took),
            **{f"refused {code}": count for code, count in sorted(measured.rejected.items())},
            "shown to all": measured.shown,
            "deliveries/s": per(measured.shown * VIEWERS, took),
            "comments that viewers lack": lacking,
            **{f"end to end p{share * 100:g} ms": value for share, value in ends.items()},
            **{f"ack {name}": value for name, value in times.items()},
            **{
                f"{title} p{share * 100:g} ms": value
                for title, found in hops.items()
                for share, value in found.items()
            },
            **{f"lag of {name}, largest s": value for name, value in sorted(metrics.lag.items())},
            "dropped": drops,
            **{
                f"us/comment {role}": per(spent * 1e6, acked)
                for role, spent in used.by_role.items()
            },
            "system us/comment": per(used.system_s * 1e6, acked),
            "sent late max_ms": measured.late_s * 1000,
            "crowd, share of a core": crowd.limit()[0],
        }  # fmt: skip
        if not hops or not metrics.lag:
            figures["not measured"] = "hops and lag: this build's /metrics has none of them"
        bars: list[Bar] = []
        if rate <= BARS_AT:
            bars = [
                below("end to end p95 ms", ends[0.95], 150),
                below("ACK p95 ms", times["p95_ms"], 50),
                *([below("fan-out p95 ms", hops[FANOUT][0.95], 150)] if FANOUT in hops else []),
                *([below("pub/sub p95 ms", hops[PUBSUB][0.95], 10)] if PUBSUB in hops else []),
                *(below(f"lag of {name} s", value, 1) for name, value in metrics.lag.items()),
                exactly("drops", drops + lacking + sum(measured.rejected.values()), 0),
            ]
        limit = "; ".join(filter(None, [crowd.limit()[2], used.limit]))
        return Report(
            f"stack, {engines} engines, {rate:g}/s", QUESTION, command,
            {"viewers": VIEWERS, "comments/s": rate, "seconds": seconds, "senders": SENDERS},
            figures, used.by_role, served.peaks_mb(), round(used.wall_s, 2), limit, bars,
        )  # fmt: skip


def _await_store(served: Served) -> None:
    """Wait until history is answered: the archive makes the keyspace at its first start."""
    until = time.monotonic() + JOIN_S
    while True:
        try:
            served.newest_offset(STREAM)
            return
        except RuntimeError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--engines", type=click.Choice(["embedded", "stack"]), help="Only these.")
@click.option("--rate", type=click.FloatRange(1), help="Comments a second; 1,000, then 10,000.")
@click.option("--seconds", type=click.FloatRange(1), help="How long; 30, and 60 for 10,000.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--out", type=click.Path(path_type=Path), help="Write stack.json there, too.")
def main(
    engines: str | None, rate: float | None, seconds: float | None, as_json: bool, out: Path | None
) -> None:
    """Measure on this machine."""
    command = shlex.join(["python", "-m", "benchmarks.stack", *sys.argv[1:]])
    reports: list[Report] = []
    failed = False

    def run(kind: str, settings: dict[str, Any], pids: dict[str, int]) -> None:
        nonlocal failed
        for each, long_s in ({rate: 30.0} if rate else RATES).items():
            try:
                one = measure(command, kind, each, seconds or long_s, settings, pids)
            except RuntimeError as error:
                click.echo(f"benchmarks.stack: {kind}, {each:g}/s: {error}", err=True)
                failed = True  # the others may still tell something
                continue
            reports.append(one)
            if not as_json:
                click.echo(f"\n{table([one])}")

    try:
        if engines != "stack":
            run("embedded", {}, {})
        if engines != "embedded":
            with servers() as (settings, pids):
                run("stack", settings, pids)
    except (StackError, OSError) as error:
        raise click.ClickException(str(error)) from error
    text = document(host.block(), reports)
    if as_json:
        click.echo(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "stack.json").write_text(f"{text}\n")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.stack")
