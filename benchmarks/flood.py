"""How many comments a second can one stream take, and is every acknowledged one in history?

Load: 10,000 comments/s offered into one stream for 30 s, with 10 viewers. What the system can't
take it has to refuse (`unavailable`); refused comments are not sent again. The clock stops when
every comment is answered; history and viewers are compared after that.
"""

from __future__ import annotations

import math
import time
from typing import Final

from benchmarks import load
from benchmarks.report import Figure, Report, milliseconds, per
from benchmarks.served import Served, Window
from uproar.swarm import Member, Swarm

QUESTION: Final = "how many comments a second can one stream take, and are all of them in history?"
RATE: Final = 10_000.0
SECONDS: Final = 30.0
SENDERS: Final = 4
VIEWERS: Final = 10
JOIN_S: Final = 30.0
DRAIN_S: Final = 60.0
STREAM: Final = "flood"


def measure(command: str, *, seconds: float = SECONDS, rate: float = RATE) -> Report:
    """Run once."""
    with Served() as served, Swarm(seed=1) as swarm:
        url = served.stream(STREAM)
        sending = load.Load(
            swarm, url, served.service_token, rate=rate, seconds=seconds, senders=SENDERS
        )
        viewers = [
            swarm.add(url, codec="msgpack" if number % 2 else "json", backlog=0, decode=False)
            for number in range(VIEWERS)
        ]
        if not swarm.run(lambda: sending.ready and all(v.live for v in viewers), JOIN_S):
            raise RuntimeError("senders and viewers could not connect")
        window = Window(served)
        took = load.run(swarm, sending, "flood", DRAIN_S)
        used = window.close()
        peaks = served.peaks_mb()
        behind_s = _settle(served, swarm, viewers, sending.newest)
        stored = [
            comment["id"] for page in served.history(STREAM, len(sending.acked)) for comment in page
        ]
        acked = len(sending.acked)
        # A comment that stands in the log without an acknowledgement may be shown or sampled out.
        due = range(sending.shown, sending.shown + len(stored) - acked + 1)
        figures: dict[str, Figure] = {
            "offered": sending.sent,
            "offered/s": per(sending.sent, took),
            "acknowledged": acked,
            "acknowledged twice": sending.repeated_acks,
            "acknowledgements/s": per(acked, took),
            **{f"refused {code}": count for code, count in sorted(sending.rejected.items())},
            **{f"ack {name}": value for name, value in milliseconds(
                sending.latencies, (0.5, 0.95, 0.99)
            ).items()},
            "in history": len(stored),
            "acknowledged, not in history": len(sending.acked - set(stored)),
            "twice in history": len(stored) - len(set(stored)),
            "shown to all": sending.shown,
            "viewers complete": sum(viewer.comments in due for viewer in viewers),
            "viewers with gaps": sum(bool(viewer.gaps) for viewer in viewers),
            "repeats": sum(viewer.repeats for viewer in viewers),
            "history and viewers complete after s": behind_s,
            "system us/comment": per(used.system_s * 1e6, acked),
            "generator us/comment": per(sum(used.cpu["generator"]) * 1e6, acked),
            "sent late max_ms": sending.late_s * 1000,
        }  # fmt: skip
        return Report(
            "flood", QUESTION, command,
            {"comments/s offered": rate, "seconds": seconds, "senders": SENDERS,
             "viewers": VIEWERS},
            figures, used.by_role, peaks, round(used.wall_s, 2),
            used.limit,
        )  # fmt: skip


def _settle(served: Served, swarm: Swarm, viewers: list[Member], newest: int) -> float:
    """Wait until history and viewers have come to an offset; return the seconds that took."""
    began = time.monotonic()
    while time.monotonic() < began + DRAIN_S:
        swarm.run(lambda: all((viewer.position or 0) >= newest for viewer in viewers), 0.1)
        if served.newest_offset(STREAM) >= newest:
            return time.monotonic() - began
    return math.nan
