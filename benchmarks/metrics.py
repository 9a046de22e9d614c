"""What share of the system's CPU do the metrics take at full load?

Load: 5,000 comments/s into one stream from four service senders, 200 viewers, a scrape every 5 s;
more than two cores take, so every process is as busy as it gets. On and off would differ by less
than two runs do. So what was counted is read from the metrics themselves, each kind of counting is
timed here by the code that does it, and what a scrape and a look at the lag take is measured on the
running system.
"""

from __future__ import annotations

import re
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks import load
from benchmarks.report import Figure, Report, per
from benchmarks.served import Served, Window
from gateway.figures import Figures
from uproar.batch import encode_batch, stamped
from uproar.config import load as load_config
from uproar.events import MASK_ALL, Event
from uproar.lag import LOOK_S
from uproar.log.valkey import ValkeyLog
from uproar.metrics import Histogram
from uproar.swarm import Swarm

QUESTION: Final = "what share of the CPU do metrics take?"
RATE: Final = 5000.0
SECONDS: Final = 15.0
SENDERS: Final = 4
VIEWERS: Final = 200
SCRAPE_S: Final = 5.0  # between two scrapes, as in deploy/prometheus/prometheus.yml
SCRAPES: Final = 50  # to know what one takes
ROUNDS: Final = 20_000
BAR: Final = 2.0  # percent
JOIN_S: Final = 30.0
DRAIN_S: Final = 60.0
STREAM: Final = "metrics"
SAMPLE: Final = re.compile(r'(\w+)\{process="[^"]*",role="([^"]*)"[^}]*\} (\S+)')


def measure(command: str, *, seconds: float = SECONDS, rate: float = RATE) -> Report:
    """Run once."""
    with Served() as served, Swarm(seed=1) as swarm:
        url = served.stream(STREAM)
        sending = load.Load(
            swarm, url, served.service_token, rate=rate, seconds=seconds, senders=SENDERS
        )
        viewers = [swarm.add(url, codec="msgpack", backlog=0, decode=False) for _ in range(VIEWERS)]
        if not swarm.run(lambda: sending.ready and all(v.live for v in viewers), JOIN_S):
            raise RuntimeError("not all senders and viewers could connect")
        before = counted(served)
        window = Window(served)
        load.run(swarm, sending, "metrics", DRAIN_S)
        used = window.close()
        done = counted(served) - before
        scrape = scrape_cpu(served)
        look_s = look_cpu(served.data)
        counting = counting_cpu(done)
        figures: dict[str, Figure] = {
            "comments": len(sending.acked),
            "comments/s": per(len(sending.acked), used.wall_s),
        }
        whole = 0.0
        for role, spent in used.by_role.items():
            if role == "generator":
                continue
            scrapes_s = scrape.get(role, 0.0) * used.wall_s / SCRAPE_S
            looks_s = look_s * used.wall_s / LOOK_S if role in CONSUMERS else 0.0
            added = counting.get(role, 0.0) + scrapes_s + looks_s
            whole += added
            if added and role != "admin":  # which has nothing else to do
                figures[f"{role}: %"] = 100 * per(added, spent)
        figures["scrape: system CPU ms"] = sum(scrape.values()) * 1000
        share = 100 * per(whole, used.system_s)
        figures["system: %"] = share
        figures["bar"] = f"at most {BAR:g} %: {'held' if share <= BAR else 'missed'}"
        return Report(
            "metrics", QUESTION, command,
            {"comments/s": rate, "seconds": seconds, "senders": SENDERS, "viewers": VIEWERS},
            figures, used.by_role, served.peaks_mb(), round(used.wall_s, 2),
            used.limit,
        )  # fmt: skip


CONSUMERS: Final = ("coordinator", "archive", "moderation")


def scraped(served: Served) -> str:
    """Return the text of one scrape."""
    with urllib.request.urlopen(
        f"{served.info['admin'].rstrip('/')}/metrics", timeout=15
    ) as answer:
        return str(answer.read().decode())


def counted(served: Served) -> Counter[tuple[str, str]]:
    """Return the sums over (name, role) of everything that is served."""
    found: Counter[tuple[str, str]] = Counter()
    for name, role, value in SAMPLE.findall(scraped(served)):
        found[name, role] += float(value)  # type: ignore[assignment]
    return found


def scrape_cpu(served: Served) -> dict[str, float]:
    """Return the CPU seconds that one scrape takes, by role; the system is idle meanwhile."""
    time.sleep(1.0)
    idle_before = served.cpu()
    began = time.monotonic()
    time.sleep(2.0)
    idle_s = time.monotonic() - began
    idle = {role: sum(now) - sum(idle_before[role]) for role, now in served.cpu().items()}
    before, began = served.cpu(), time.monotonic()
    for _ in range(SCRAPES):
        scraped(served)
    share = (time.monotonic() - began) / idle_s
    return {
        role: max(0.0, sum(now) - sum(before[role]) - idle[role] * share) / SCRAPES
        for role, now in served.cpu().items()
        if role != "generator"
    }


def look_cpu(data: Path) -> float:
    """Return the CPU seconds that one look at the lag takes its process."""
    log = ValkeyLog(load_config(environ={}, flags={"data": str(data)}))
    end, _ = log.end(0)
    began = time.process_time()
    for _ in range(200):
        log.ends([0])
        log.ts_at(0, end)
    spent = time.process_time() - began
    log.close()
    return spent / 200


def counting_cpu(done: Counter[tuple[str, str]]) -> dict[str, float]:
    """Return the CPU seconds that the counting took, by role."""
    figures, histogram, outcomes = Figures(), Histogram(), Counter({"accepted": 0})
    now_ms = time.time_ns() // 1_000_000
    tick = [Event(n, "COMMENT", now_ms - 20 - n % 7, "u", MASK_ALL, 0, None) for n in range(50)]
    payload = encode_batch(1, 50, [(n, b"x" * 120) for n in range(50)])
    empty: list[Event] = []
    observe = timed(lambda: histogram.observe(0.02))
    comment = timed(lambda: figures.went(tick)) / len(tick)
    ticked = timed(lambda: figures.ticked(0.002, 0.01, 0.01, 0.25))
    came = timed(lambda: figures.came(now_ms, tick))
    stamps = [found.ts for found in tick]
    logged = timed(lambda: histogram.observe_since(now_ms, stamps)) / len(tick)
    codes = [""] * 20
    answer = timed(lambda: outcomes.update({"accepted": codes.count("")})) / len(codes)
    stamp = timed(lambda: stamped(payload, now_ms))
    went = timed(lambda: figures.went(empty))

    def count(name: str, role: str) -> float:
        return done[name, role]

    batches = count("uproar_coordinator_published_total", "coordinator")
    ticks = count("uproar_fanout_seconds_count", "gateway")
    comments = count("uproar_comment_seconds_count", "gateway") / 2  # two hops a comment
    return {
        "ingest": count("uproar_comment_seconds_count", "ingest") * logged
        + count("uproar_ingest_answers_total", "ingest") * answer
        + count("uproar_log_append_seconds_count", "ingest") * observe,
        "coordinator": batches * (stamp + observe),
        "gateway": comments * comment + ticks * (ticked + went) + batches * came,
        "archive": count("uproar_store_write_seconds_count", "archive") * observe,
        "moderation": count("uproar_moderation_decision_seconds_count", "moderation")
        * (observe + answer + timed(time.time)),
    }


def timed(what: Callable[[], object]) -> float:
    """Return the CPU seconds of one call, the empty call around it included."""
    began = time.process_time()
    for _ in range(ROUNDS):
        what()
    return (time.process_time() - began) / ROUNDS
