"""How many system calls does the gateway make for a delivered comment?

10,000 comments/s come over the bus for 200 viewers, sampling off, the tick 10 ms. strace counts the
calls by name, and slows the gateway down so much that the tick stretches, which would flatter it;
perf counts them in a stretch of its own and costs nothing, so its figure is the one that is judged
where it is there. For comparison, strace on a bare loop that sends each comment by itself.
"""

from __future__ import annotations

import math
import re
import shutil
import signal
import subprocess
import time
from typing import Final

from benchmarks.bare import Bare
from benchmarks.crowd import Crowd, Skip
from benchmarks.report import Figure, Report, at_least, at_most, exactly, per
from benchmarks.stage import Stage, Stretch

QUESTION: Final = "how many system calls does a delivered comment take?"
VIEWERS: Final = 200
RATE: Final = 10_000.0
DECODING: Final = 20
ATTACH_S: Final = 1.0
STRACE_S: Final = 30.0
TOTAL: Final = re.compile(r"^\s*100\.00\s+\S+\s+(?:\S+\s+)?(\d+)\s+(?:\d+\s+)?total$", re.M)
PERF: Final = re.compile(r"^(\d+),[^,]*,raw_syscalls:sys_enter", re.M)
CALL: Final = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", re.M)


class Strace:
    """`strace -c -f` on a process, from the beginning of the context to `counted`."""

    def __init__(self, pid: int, cores: tuple[int, ...]) -> None:
        binary = shutil.which("strace")
        if binary is None:
            raise Skip("strace is not installed: sudo apt-get install strace")
        listed = ",".join(map(str, cores))
        self._process = subprocess.Popen(
            ["taskset", "-c", listed, binary, "-c", "-f", "-p", str(pid)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(ATTACH_S)
        if self._process.poll() is not None:
            _, said = self._process.communicate()
            raise Skip(f"strace may not look at a process here: {said.strip()[:200]}")

    def counted(self) -> tuple[int, dict[str, int]]:
        """Let go of the process; return the calls in all, and by name."""
        self._process.send_signal(signal.SIGINT)
        _, text = self._process.communicate(timeout=STRACE_S)
        total = TOTAL.search(text)
        if total is None:
            raise RuntimeError(f"strace printed no total: {text[-300:]}")
        return int(total[1]), {
            name: int(count) for count, name in CALL.findall(text) if name != "total"
        }


class Perf:
    """`perf stat` on a process, from the beginning of the context to `counted`."""

    def __init__(self, pid: int) -> None:
        binary = shutil.which("perf")
        if binary is None:
            raise Skip("perf is not installed: sudo apt-get install linux-perf")
        self._process = subprocess.Popen(
            [binary, "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", str(pid)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(ATTACH_S)
        if self._process.poll() is not None:
            _, said = self._process.communicate()
            raise Skip(f"perf may not count here: {said.strip()[:200]}")

    def counted(self) -> int:
        """Let go of the process; return the calls."""
        self._process.send_signal(signal.SIGINT)
        _, text = self._process.communicate(timeout=STRACE_S)
        total = PERF.search(text)
        if total is None:
            raise Skip(f"perf printed no count: {text.strip()[:200]}")
        return int(total[1])


def measure(command: str, *, seconds: float = 8.0) -> Report:
    """Run once; `seconds` is the length of each stretch."""
    with (
        Stage(gateway__tick_ms=10) as stage,
        Bare(stage.apart) as bare,
        Crowd(stage.others) as sink,
    ):
        group = stage.crowd.add(stage.url, VIEWERS, decode_every=VIEWERS // DECODING)
        stage.crowd.join(group, VIEWERS)
        stage.stretch(RATE, 2.0, {group: DECODING})
        figures: dict[str, Figure] = {}
        each = ticks = math.nan
        lacks = 0
        try:
            perf = Perf(stage.served.gateway.pid)
            one = stage.stretch(RATE, seconds, {group: DECODING})
            each, ticks = _judged(figures, "perf", perf.counted(), one)
            lacks += abs(one.due - one.comments)
        except Skip as lack:
            figures["perf"] = str(lack)
        strace = Strace(stage.served.gateway.pid, stage.others)
        one = stage.stretch(RATE, seconds, {group: DECODING})
        calls, by_name = strace.counted()
        by_strace = _judged(figures, "strace", calls, one)
        if math.isnan(each):
            each, ticks = by_strace
        lacks += abs(one.due - one.comments)
        figures |= {
            f"strace: {name}/s": per(count, one.wall_s)
            for name, count in sorted(by_name.items(), key=lambda item: -item[1])[:6]
        }
        bare.connect(sink, VIEWERS)
        strace = Strace(bare.child.pid, stage.others)
        found = bare.run(60, 200.0, 200)
        bare_calls, _ = strace.counted()
        figures["calls/delivered comment of a bare loop"] = per(bare_calls, found["sends"])
        return stage.report(
            "syscalls", QUESTION, command,
            {"viewers": VIEWERS, "comments/s": RATE, "seconds": seconds}, figures,
            [
                at_most("system calls per delivered comment", each, 0.011),
                at_least("frames a second of a viewer: the tick was 10 ms", ticks, 90),
                exactly("comments that decoding viewers lack", lacks, 0),
            ],
        )  # fmt: skip


def _judged(figures: dict[str, Figure], tool: str, calls: int, one: Stretch) -> tuple[float, float]:
    """Note what a tool counted; return (calls per delivered comment, frames/s of a viewer)."""
    each = per(calls, one.published * VIEWERS)
    ticks = per(one.frames, VIEWERS * one.wall_s)
    figures[f"{tool}: calls/delivered comment"] = each
    figures[f"{tool}: frames/s of a viewer"] = ticks
    figures[f"{tool}: comments/s"] = per(one.published, one.wall_s)
    return each, ticks
