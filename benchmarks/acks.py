"""How long does an author wait for the acknowledgement, which comes after the log's fsync?

Load: 1,000 comments/s into one stream from four service senders over WebSocket, a message each.
"""

from __future__ import annotations

from typing import Final

from benchmarks import load
from benchmarks.report import Figure, Report, milliseconds, per
from benchmarks.served import Served, Window
from uproar.swarm import Swarm

QUESTION: Final = "how long does an author wait for the acknowledgement?"
RATE: Final = 1000.0
SECONDS: Final = 20.0
SENDERS: Final = 4
BAR_MS: Final = 50.0  # p95
JOIN_S: Final = 30.0
DRAIN_S: Final = 30.0
STREAM: Final = "acks"


def measure(command: str, *, seconds: float = SECONDS, rate: float = RATE) -> Report:
    """Run once."""
    with Served() as served, Swarm(seed=1) as swarm:
        sending = load.Load(
            swarm, served.stream(STREAM), served.service_token,
            rate=rate, seconds=seconds, senders=SENDERS,
        )  # fmt: skip
        if not swarm.run(lambda: sending.ready, JOIN_S):
            raise RuntimeError("the senders could not connect")
        window = Window(served)
        took = load.run(swarm, sending, "acks", DRAIN_S)
        used = window.close()
        times = milliseconds(sending.latencies, (0.5, 0.95, 0.99, 0.999))
        acked = len(sending.acked)
        figures: dict[str, Figure] = {
            "comments": sending.sent,
            "acknowledged": acked,
            **{f"refused {code}": count for code, count in sorted(sending.rejected.items())},
            "acknowledged twice": sending.repeated_acks,
            "acknowledgements/s": per(acked, took),
            **{f"ack {name}": value for name, value in times.items()},
            "bar": f"p95 < {BAR_MS:g} ms: {'held' if times['p95_ms'] < BAR_MS else 'missed'}",
            "system us/comment": per(used.system_s * 1e6, acked),
            "generator us/comment": per(sum(used.cpu["generator"]) * 1e6, acked),
            "sent late max_ms": sending.late_s * 1000,
        }
        return Report(
            "acks", QUESTION, command,
            {"comments/s": rate, "seconds": seconds, "senders": SENDERS},
            figures, used.by_role, served.peaks_mb(), round(used.wall_s, 2),
            used.limit,
        )  # fmt: skip
