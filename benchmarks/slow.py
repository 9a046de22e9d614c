"""Does a viewer who reads 1 KB/s delay 1,000 others?

Stretches with and without such a viewer take turns; the p99 of the fast ones may move by the larger
of 10 % and 5 ms.
"""

from __future__ import annotations

import time
from typing import Final

from benchmarks.against_bare import lacking
from benchmarks.report import Figure, Report, at_most, exactly
from benchmarks.stage import Stage, Stretch, latency_figures, merged

QUESTION: Final = "does a viewer who reads 1 KB/s delay 1,000 others?"
VIEWERS: Final = 1000
RATE: Final = 200.0
DECODING: Final = 100
READS: Final = 1000  # bytes a second
ROUNDS: Final = 3


def measure(command: str, *, seconds: float = 8.0, viewers: int = VIEWERS) -> Report:
    """Run once; `seconds` is the length of each stretch."""
    # A queue that 1 KB/s overflows within a stretch: it is what might delay the others.
    with Stage(gateway__queue_bytes=65_536) as stage:
        group = stage.crowd.add(stage.url, viewers, decode_every=viewers // DECODING)
        stage.crowd.join(group, viewers)
        stage.stretch(RATE, 2.0, {group: DECODING})
        found: dict[str, list[Stretch]] = {"alone": [], "with a slow one": []}
        read = 0
        for _ in range(ROUNDS):
            found["alone"].append(stage.stretch(RATE, seconds, {group: DECODING}))
            slow = stage.crowd.add(
                stage.url, 1, codec="json", deflate=False, read_bytes_s=READS, receive_buffer=4096
            )
            stage.crowd.wait(lambda seen: seen.open == 1, slow, deadline_s=10)
            found["with a slow one"].append(stage.stretch(RATE, seconds, {group: DECODING}))
            read += stage.crowd.seen(slow).bytes
            stage.crowd.leave(slow, mode=2)
            time.sleep(0.2)
        figures: dict[str, Figure] = {"bytes that the slow one read": read}
        p99 = {}
        for kind, stretches in found.items():
            latencies = latency_figures(merged(stretches))
            figures.update({f"{kind}: {name}": value for name, value in latencies.items()})
            p99[kind] = float(latencies["latency p99 ms"])
        moved = p99["with a slow one"] - p99["alone"]
        lacks = sum(lacking(stretches) for stretches in found.values())
        return stage.report(
            "slow", QUESTION, command,
            {"viewers": viewers, "comments/s": RATE, "seconds": seconds, "rounds": ROUNDS},
            figures,
            [
                at_most("p99 moved by ms", moved, max(5.0, 0.1 * p99["alone"])),
                exactly("comments that fast viewers lack", lacks, 0),
            ],
        )  # fmt: skip
