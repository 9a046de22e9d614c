"""One gateway on a core of its own, the load on another: what the engine's benchmarks share.

The gateway is fed over the bus (`benchmarks.publisher`) and read by compiled viewers
(`benchmarks.crowd`); valkey, workers, publisher and viewers are bound to the other cores.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

from benchmarks.crowd import Crowd, Seen, Skip, percentile_ms
from benchmarks.publisher import Publisher
from benchmarks.report import Bar, Figure, Report, per
from benchmarks.served import Served, Window
from uproar import auth

STREAM: Final = "stage"
DRAIN_S: Final = 30.0


class Stretch(NamedTuple):
    """What a stretch of comments cost the gateway and brought the viewers."""

    published: int
    cpu_s: float  # of the gateway, until all was delivered
    wall_s: float
    frames: int
    bytes: int
    comments: int  # that decoding members got
    due: int  # that they should have got
    gaps: int
    repeats: int
    missing: int
    buckets: list[tuple[int, int]]
    late_s: float

    @property
    def whole(self) -> bool:
        """Whether every decoding member got every comment, once and in order."""
        return self.comments == self.due and not (self.gaps or self.repeats or self.missing)


class Stage:
    """A system with one gateway, and the processes that load it. Use it as a context."""

    def __init__(self, *, publish: bool = True, **settings: object) -> None:
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise Skip("one core for the gateway and one for the load are needed, there is one")
        self.apart = (cores[0],)
        self.others = tuple(cores[1:])
        self._publish = publish
        self._settings = settings
        self._stack = ExitStack()
        self._cores = cores

    def __enter__(self) -> Stage:
        with ExitStack() as stack:
            self.served = stack.enter_context(Served(gateways=1, **self._settings))
            self.served.pin(self.apart, self.others)
            stack.callback(os.sched_setaffinity, 0, self._cores)
            self.crowd = stack.enter_context(Crowd(self.others))
            self.beside = {"generator crowd": self.crowd.child.pid}
            if self._publish:
                self.publisher = stack.enter_context(
                    Publisher(self.served.effective, STREAM, self.others)
                )
            self._stack = stack.pop_all()
        self.crowd.reset()
        self.window = Window(self.served, self.beside)
        self._waited = self.served.gateway_waited_s()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """Of the stream that the publisher feeds."""
        return self.served.stream(STREAM)

    def tokens(self, count: int) -> list[str]:
        """Return tokens of as many different viewers."""
        key = auth.load_key(self.served.effective.parents[1] / "signing.key")
        return [
            auth.make_token(key, sub=f"u{number}", name=f"User {number}", ttl_s=7200)
            for number in range(count)
        ]

    def stretch(
        self, rate: float, seconds: float, groups: dict[int, int], drain_s: float = DRAIN_S
    ) -> Stretch:
        """Publish for so long and wait until it is delivered.

        `groups` says how many members of each group decode. Counters of the crowd start anew.
        """
        numbers = tuple(groups)
        decoding = sum(groups.values())
        self.crowd.reset()
        began, cpu = time.monotonic(), self.served.gateway_cpu_s()
        told = self.publisher.run(rate, seconds)
        due: int = told["published"] * decoding

        def arrived(seen: Seen) -> bool:
            return seen.comments >= due

        self.crowd.wait(arrived, *numbers, deadline_s=drain_s)
        cpu = self.served.gateway_cpu_s() - cpu
        wall = time.monotonic() - began
        seen = self.crowd.seen(*numbers)
        return Stretch(
            told["published"], cpu, wall, seen.frames, seen.bytes, seen.comments, due,
            seen.gaps, seen.repeats, seen.missing, seen.buckets, told["late_s"],
        )  # fmt: skip

    def report(
        self, name: str, question: str, command: str, settings: dict[str, Figure],
        figures: dict[str, Figure], bars: list[Bar],
    ) -> Report:  # fmt: skip
        """Close the window that began with the stage, and say what was found."""
        share, lag_ms, said = self.crowd.limit()
        used = self.window.close()
        figures = {
            **figures,
            "gateway waited for a core, share": per(
                self.served.gateway_waited_s() - self._waited, used.wall_s
            ),
            "crowd, share of a core": share,
            "crowd, longest pass ms": lag_ms,
        }
        limit = "; ".join(filter(None, [said, used.limit]))
        return Report(
            name, question, command, settings, figures, used.by_role, self.served.peaks_mb(),
            round(used.wall_s, 2), limit, bars,
        )  # fmt: skip


def latency_figures(buckets: list[tuple[int, int]]) -> dict[str, Figure]:
    """Return percentiles by name, in ms."""
    return {
        f"latency p{share * 100:g} ms": percentile_ms(buckets, share)
        for share in (0.5, 0.99, 0.999)
    }


def merged(stretches: list[Stretch]) -> list[tuple[int, int]]:
    """Return the latencies of several stretches as one histogram."""
    counts: dict[int, int] = {}
    for stretch in stretches:
        for bound, count in stretch.buckets:
            counts[bound] = counts.get(bound, 0) + count
    return sorted(counts.items())


def costs(stretches: list[Stretch], viewers: int) -> dict[str, Any]:
    """Return what deliveries cost the gateway over several stretches, in microseconds."""
    cpu = sum(stretch.cpu_s for stretch in stretches)
    frames = sum(stretch.frames for stretch in stretches)
    delivered = sum(stretch.published for stretch in stretches) * viewers
    return {
        "gateway us/frame": per(cpu * 1e6, frames),
        "gateway us/delivered comment": per(cpu * 1e6, delivered),
        "bytes/frame": per(sum(stretch.bytes for stretch in stretches), frames),
        "bytes/comment": per(sum(stretch.bytes for stretch in stretches), delivered),
        "gateway, share of a core": per(cpu, sum(stretch.wall_s for stretch in stretches)),
    }
