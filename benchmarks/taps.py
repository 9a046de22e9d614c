"""Do 100,000 REACT a second from 5,000 viewers leave the comments alone, and are they all counted?

Every viewer taps 20 times a second, a command each. Updates are counted at viewers who decode, the
totals are read over REST once they stand.
"""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Final

from benchmarks.report import Figure, Report, at_most, below, exactly, per
from benchmarks.stage import STREAM, Stage, latency_figures

QUESTION: Final = "do 100,000 REACT a second delay comments, and are they counted?"
VIEWERS: Final = 5000
RATE: Final = 100_000.0
DECODING: Final = 50
COMMENTS: Final = 10.0
REACT: Final = '{"type":"REACT","kind":"fire"}'
JOIN_S: Final = 200.0
LATE_S: Final = 60.0


def measure(
    command: str, *, seconds: float = 10.0, viewers: int = VIEWERS, rate: float = RATE
) -> Report:
    """Run once."""
    with Stage() as stage:
        group = stage.crowd.add(
            stage.url, viewers, codec="json", tokens=stage.tokens(viewers),
            decode_every=viewers // DECODING,
        )  # fmt: skip
        stage.crowd.join(group, viewers, JOIN_S)
        stage.stretch(COMMENTS, 2.0, {group: DECODING})
        total = int(rate * seconds)
        started = time.monotonic()
        job = stage.crowd.send(group, REACT, rate, total=total)
        one = stage.stretch(COMMENTS, seconds, {group: DECODING})
        seen = stage.crowd.seen(group)
        # Between n updates lie n - 1 waits.
        updates = per(seen.totals - DECODING, DECODING * one.wall_s)
        counted, until = 0, started + seconds + LATE_S
        while counted < total and time.monotonic() < until:
            time.sleep(0.2)  # a crowd without a core is late, and sends the rest after the comments
            with urllib.request.urlopen(
                f"{stage.served.info['http']}/stream/{STREAM}", timeout=5
            ) as answer:
                counted = json.loads(answer.read())["reactions"].get("fire", 0)
        took = time.monotonic() - started
        sent = stage.crowd.stop(group, job)
        seen = stage.crowd.seen(group)
        latencies = latency_figures(one.buckets)
        figures: dict[str, Figure] = {
            "REACT sent": sent, "not taken by a socket": seen.blocked, "counted": counted,
            "updates/s": updates, **latencies,
            "REACT/s": per(sent, took),
            "gateway us/REACT": per(one.cpu_s * 1e6, min(total, per(sent, took) * one.wall_s)),
            "gateway, share of a core": per(one.cpu_s, one.wall_s),
            "sent late max_ms": seen.late_ns / 1e6,
            "refused": seen.rejected, "closed": seen.ended,
        }  # fmt: skip
        return stage.report(
            "taps", QUESTION, command,
            {"viewers": viewers, "REACT/s": rate, "comments/s": COMMENTS, "seconds": seconds},
            figures,
            [
                at_most("updates a second", updates, 2.0),
                exactly("reactions counted", counted, total),
                below("comment p99 ms", float(latencies["latency p99 ms"]), 150),
            ],
        )  # fmt: skip
