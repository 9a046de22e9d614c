"""How long is a comment on its way, through ingest, log, coordinator, bus and gateway?

100 viewers, 10 comments/s from a service connection; from the sending to the receipt of each.
"""

from __future__ import annotations

from typing import Final

from benchmarks import load
from benchmarks.report import Figure, Report, below, exactly
from benchmarks.stage import STREAM, Stage, latency_figures
from uproar.swarm import Swarm

QUESTION: Final = "how long is a comment on its way, end to end?"
VIEWERS: Final = 100
RATE: Final = 10.0
JOIN_S: Final = 60.0
DRAIN_S: Final = 20.0


def measure(command: str, *, seconds: float = 30.0) -> Report:
    """Run once."""
    with Stage(publish=False) as stage, Swarm(seed=1) as swarm:
        url = stage.served.stream(STREAM)
        token = stage.served.service_token
        sending = load.Load(swarm, url, token, rate=RATE, seconds=seconds, senders=1)
        if not swarm.run(lambda: sending.ready, JOIN_S):
            raise RuntimeError("the sender could not connect")
        group = stage.crowd.add(url, VIEWERS)
        stage.crowd.join(group, VIEWERS, JOIN_S)
        stage.crowd.reset()
        load.run(swarm, sending, "end to end", DRAIN_S)
        due = len(sending.acked) * VIEWERS
        stage.crowd.wait(lambda seen: seen.comments >= due, group, deadline_s=DRAIN_S)
        seen = stage.crowd.seen(group)
        latencies = latency_figures(seen.buckets)
        lacking = abs(due - seen.comments) + seen.missing + seen.repeats + seen.gaps
        figures: dict[str, Figure] = {
            "comments": len(sending.acked), "deliveries": seen.comments, **latencies,
            "sent late max_ms": sending.late_s * 1000,
        }  # fmt: skip
        return stage.report(
            "endtoend", QUESTION, command,
            {"viewers": VIEWERS, "comments/s": RATE, "seconds": seconds},
            figures,
            [
                exactly("comments that viewers lack", lacking, 0),
                below("p50 ms", float(latencies["latency p50 ms"]), 25),
                below("p99 ms", float(latencies["latency p99 ms"]), 60),
            ],
        )  # fmt: skip
