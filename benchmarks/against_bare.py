"""What does the gateway spend on a frame, against a bare C loop of `send` of the same bytes?

Load over the bus, msgpack with the compression of a browser's offer. Stretches of comments and of
the bare loop take turns on the same core, with as many sockets, the same bytes a frame and the same
frames a second; the ratio is of their sums. What a merged frame saves shows per delivered comment:
with ten comments in a frame a bare `send` a comment costs ten times as much, and 0.10 is the floor.
"""

from __future__ import annotations

from typing import Final

from benchmarks.bare import Bare
from benchmarks.crowd import Crowd, room
from benchmarks.report import Figure, Report, at_least, at_most, below, exactly, per
from benchmarks.stage import Stage, Stretch, costs, latency_figures, merged

QUESTION: Final = "what does a frame cost the gateway, against a bare send?"
ROUNDS: Final = 3
DECODING: Final = 100
WARM_S: Final = 3.0  # viewers come onto the shared window meanwhile
JOIN_S: Final = 120.0


def measure(
    command: str, *, viewers: int, rate: float, p99_ms: float, seconds: float = 6.0
) -> Report:
    """Run once; `seconds` is the length of each of the three stretches."""
    room(viewers)
    with (
        Stage(gateway__tick_ms=10) as stage,
        Bare(stage.apart) as bare,
        Crowd(stage.others) as sink,
    ):
        sockets = bare.connect(sink, viewers)
        group = stage.crowd.add(stage.url, viewers, decode_every=viewers // DECODING)
        stage.crowd.join(group, viewers, JOIN_S)
        stage.stretch(rate, WARM_S, {group: DECODING})
        stretches: list[Stretch] = []
        sent = blocked = bare_ns = 0
        for _ in range(ROUNDS):
            one = stage.stretch(rate, seconds, {group: DECODING})
            stretches.append(one)
            size = max(1, round(per(one.bytes, one.frames))) if one.frames else 1
            rounds = max(1, round(one.frames / viewers))
            found = bare.run(size, rounds / one.wall_s, rounds)
            sent += found["sends"]
            blocked += found["blocked"] + found["partial"]
            bare_ns += found["cpu_ns"]
        received = sink.seen(sockets).bytes
        cost = costs(stretches, viewers)
        bare_us = per(bare_ns / 1e3, sent)
        by_frame = per(cost["gateway us/frame"], bare_us)
        by_comment = per(cost["gateway us/delivered comment"], bare_us)
        frames = sum(stretch.frames for stretch in stretches)
        ticks = per(frames, viewers * sum(stretch.wall_s for stretch in stretches))
        whole = all(stretch.whole for stretch in stretches)
        figures: dict[str, Figure] = {
            "comments": sum(stretch.published for stretch in stretches),
            "every comment once and in order": "yes" if whole else "NO",
            "gaps": sum(stretch.gaps for stretch in stretches),
            **latency_figures(merged(stretches)),
            **cost,
            "frames/s of a viewer": ticks,
            "comments/frame": per(
                sum(stretch.published for stretch in stretches) * viewers, frames
            ),
            "bare us/send": bare_us,
            "bare sends not taken": blocked,
            "bare bytes received": received,
            "ratio a frame": by_frame,
            "ratio a delivered comment": by_comment,
            "published late max_ms": max(stretch.late_s for stretch in stretches) * 1000,
        }
        if rate <= 10:
            bars = [at_most("CPU per frame ÷ bare send", by_frame, 1.25)]
        else:
            bars = [
                at_most("CPU per delivered comment ÷ bare send", by_comment, 0.13),
                # A tick that had to stretch merges more, and would flatter the ratio.
                at_least("frames a second of a viewer: the tick was 10 ms", ticks, 90),
            ]
        return stage.report(
            f"{viewers} viewers at {rate:g}/s", QUESTION, command,
            {"viewers": viewers, "comments/s": rate, "seconds": seconds, "rounds": ROUNDS},
            figures,
            [
                *bars,
                below("p99 ms", percentile(stretches), p99_ms),
                exactly("comments that decoding viewers lack", lacking(stretches), 0),
            ],
        )  # fmt: skip


def percentile(stretches: list[Stretch]) -> float:
    """Return the p99 in ms."""
    return float(latency_figures(merged(stretches))["latency p99 ms"])


def lacking(stretches: list[Stretch]) -> int:
    """Return how many comments decoding members did not get, or got wrongly."""
    return sum(
        abs(stretch.due - stretch.comments) + stretch.gaps + stretch.repeats + stretch.missing
        for stretch in stretches
    )
