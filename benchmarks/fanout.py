"""What does it cost to deliver one comment to one viewer, and how long is it on its way?

Load: 1,000 viewers of one stream, half JSON and half msgpack, 100 comments/s. Latency is from the
sending of a comment (its text carries the monotonic time) to its receipt, and so includes the time
that a busy generator takes to come to a socket.
"""

from __future__ import annotations

from array import array
from typing import Final, Literal

from benchmarks import load
from benchmarks.report import Figure, Report, milliseconds, per
from benchmarks.served import Served, Window
from uproar.swarm import Swarm

QUESTION: Final = "what does a delivery cost, and how long does it take?"
VIEWERS: Final = 1000
RATE: Final = 100.0
SECONDS: Final = 15.0
JOIN_S: Final = 60.0
DRAIN_S: Final = 30.0
STREAM: Final = "fanout"


def measure(command: str, *, seconds: float = SECONDS, viewers: int = VIEWERS) -> Report:
    """Run once."""
    with Served() as served, Swarm(seed=1) as swarm:
        url = served.stream(STREAM)
        sending = load.Load(swarm, url, served.service_token, rate=RATE, seconds=seconds, senders=1)
        if not swarm.run(lambda: sending.ready, JOIN_S):
            raise RuntimeError("the sender could not connect")
        empty_mb = served.memory_mb("gateway")
        codecs: tuple[tuple[Literal["json", "msgpack"], int], ...] = (
            ("json", viewers - viewers // 2),
            ("msgpack", viewers // 2),
        )
        by_codec = {
            codec: [
                swarm.add(url, codec=codec, backlog=0, decode=False, measure=True)
                for _ in range(count)
            ]
            for codec, count in codecs
        }
        everybody = [viewer for group in by_codec.values() for viewer in group]
        if not swarm.run(lambda: all(viewer.live for viewer in everybody), JOIN_S):
            raise RuntimeError("not all viewers could connect")
        rss_kb = per((served.memory_mb("gateway") - empty_mb) * 1000, viewers)
        before = {
            codec: (sum(v.bytes for v in group), sum(v.messages for v in group))
            for codec, group in by_codec.items()
        }
        window = Window(served)
        load.run(swarm, sending, "fanout", DRAIN_S)
        due = len(sending.acked)
        complete = swarm.run(lambda: all(v.comments >= due for v in everybody), DRAIN_S)
        used = window.close()

        got = sum(viewer.comments for viewer in everybody)
        latencies = array("d")
        for viewer in everybody:
            latencies.extend(viewer.latencies)
        gateways = sum(used.cpu["gateway"])
        generator = sum(used.cpu["generator"])
        figures: dict[str, Figure] = {
            "comments": due,
            "deliveries due": due * viewers,
            "deliveries": got,
            "complete": "yes" if complete and got == due * viewers else "no",
            "gaps": sum(len(viewer.gaps) for viewer in everybody),
            "repeats": sum(viewer.repeats for viewer in everybody),
            "deliveries/s": per(got, used.wall_s),
            **{f"latency {name}": value for name, value in milliseconds(
                latencies, (0.5, 0.99, 0.999)
            ).items()},
            "gateway us/delivery": per(gateways * 1e6, got),
            "system us/delivery": per(used.system_s * 1e6, got),
            "generator us/delivery": per(generator * 1e6, got),
        }  # fmt: skip
        for codec, group in by_codec.items():
            comments = sum(viewer.comments for viewer in group)
            size, messages = before[codec]
            figures[f"{codec} bytes/comment"] = per(sum(v.bytes for v in group) - size, comments)
            figures[f"{codec} frames/comment"] = per(
                sum(v.messages for v in group) - messages, comments
            )
        figures["gateway KB/viewer"] = rss_kb
        figures["sent late max_ms"] = sending.late_s * 1000
        return Report(
            "fanout", QUESTION, command,
            {"viewers": viewers, "comments/s": RATE, "seconds": seconds},
            figures, used.by_role, served.peaks_mb(), round(used.wall_s, 2),
            used.limit,
        )  # fmt: skip
