"""Does one gateway process on one core deliver ten million comments a second?

10,000 viewers of 1,000 comments/s over the bus, msgpack with a browser's compression, the tick free
to stretch. Publisher and viewers have the other core to themselves.
"""

from __future__ import annotations

from typing import Final

from benchmarks.against_bare import lacking
from benchmarks.crowd import room
from benchmarks.report import Figure, Report, below, exactly, per
from benchmarks.stage import Stage, costs, latency_figures

QUESTION: Final = "does one process on one core deliver ten million comments a second?"
VIEWERS: Final = 10_000
RATE: Final = 1000.0
DECODING: Final = 100
WARM_S: Final = 4.0
JOIN_S: Final = 120.0


def measure(command: str, *, seconds: float = 20.0, viewers: int = VIEWERS) -> Report:
    """Run once."""
    room(viewers)
    with Stage() as stage:
        group = stage.crowd.add(stage.url, viewers, decode_every=viewers // DECODING)
        stage.crowd.join(group, viewers, JOIN_S)
        stage.stretch(RATE, WARM_S, {group: DECODING})
        one = stage.stretch(RATE, seconds, {group: DECODING})
        seen = stage.crowd.seen(group)
        latencies = latency_figures(one.buckets)
        figures: dict[str, Figure] = {
            "deliveries due": one.published * viewers,
            "deliveries/s": per(one.published * viewers, one.wall_s) if one.whole else 0.0,
            "every comment once and in order": "yes" if one.whole else "NO",
            "gaps": one.gaps,
            "frames of the viewer with the fewest": seen.messages_least,
            "frames of the viewer with the most": seen.messages_most,
            "comments/frame": per(one.published * viewers, one.frames),
            **latencies,
            **costs([one], viewers),
            "published late max_ms": one.late_s * 1000,
        }
        return stage.report(
            "millions", QUESTION, command,
            {"viewers": viewers, "comments/s": RATE, "seconds": seconds},
            figures,
            [
                exactly("comments that decoding viewers lack", lacking([one]), 0),
                exactly(
                    "viewers short of frames", seen.messages_most - seen.messages_least, 0
                ),
                below("p99 ms", float(latencies["latency p99 ms"]), 500),
            ],
        )  # fmt: skip
