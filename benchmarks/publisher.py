"""Comments straight onto the bus, in batches as the coordinator publishes them.

So a benchmark measures the gateway alone: neither ingest nor the log takes part. The batches join
the chain where the coordinator stands (`prev` is where the last one ended), every text is stamped,
and nothing of it is in ring, log or history: a hole could not be filled, and would show as a GAP.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.child import Child, serve
from uproar import chatgen, config, ids
from uproar.batch import encode_batch
from uproar.bus import channel
from uproar.bus.valkey import ValkeyBus
from uproar.events import ROLES, Comment, User, encode_record
from uproar.state.valkey import ValkeyState
from uproar.swarm import stamp

EVERY_S: Final = 0.004  # as ingest appends
LINES: Final = 5000
PARTITION: Final = 0  # and the shard: there is one of each


class Publisher:
    """The process that publishes, seen from the benchmark. Use it as a context."""

    def __init__(self, effective: Path, stream: str, cores: tuple[int, ...] = ()) -> None:
        self._child = Child("benchmarks.publisher", str(effective), stream, cores=cores)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()

    def begin(self, rate: float, seconds: float) -> None:
        """Publish `rate` comments a second for so long; `end` waits for it."""
        self._child.tell(rate=rate, total=int(rate * seconds))

    def end(self, deadline_s: float = 300.0) -> dict[str, Any]:
        """Return {published, last (offset), late_s, cpu_s, wall_s}."""
        found: dict[str, Any] = self._child.answer(deadline_s)
        return found

    def run(self, rate: float, seconds: float) -> dict[str, Any]:
        """Publish and wait until all is on the bus."""
        self.begin(rate, seconds)
        return self.end(3 * seconds + 60)


class _Source:
    """Makes batches that continue one chain."""

    def __init__(self, settings: config.Config, stream: str) -> None:
        self._bus = ValkeyBus(settings)
        self._stream = stream
        known = ValkeyState(settings).last(PARTITION)
        if known is None:
            raise RuntimeError("the coordinator has not said yet where it stands")
        self._last = known[0]
        self._maker = ids.IdMaker()
        self._made = 0
        self._lines = [
            (line["text"], _author(line["user"], line["role"]))
            for line in chatgen.generate(seed=11, count=LINES, users=600)
        ]

    def publish(self, count: int) -> None:
        """Put `count` comments on the bus as one batch."""
        records = []
        for number in range(count):
            text, user = self._lines[self._made % LINES]
            self._made += 1
            ts, made = self._maker.make(int(time.time() * 1000))
            data = Comment(made, user, stamp(text), ts)
            raw = encode_record("COMMENT", self._stream, ts, user.id, f"{self._made:x}", data)
            records.append((self._last + 1 + number, raw))
        payload = encode_batch(self._last, self._last + count, records)
        self._last += count
        self._bus.publish([(channel(self._stream, PARTITION), payload)])

    def run(self, command: dict[str, Any]) -> dict[str, Any]:
        """Publish at an even pace, whatever becomes of it."""
        rate, total = float(command["rate"]), int(command["total"])
        began, cpu, done, late = time.monotonic(), time.process_time(), 0, 0.0
        while done < total:
            elapsed = time.monotonic() - began
            due = min(total, int(elapsed * rate) + 1) - done
            if due > 0:
                late = max(late, elapsed - done / rate)
            while due > 0:
                part = min(due, 400)  # some 40 KB: a batch stays below 64
                self.publish(part)
                done, due = done + part, due - part
            pause = max(EVERY_S, done / rate - (time.monotonic() - began))
            if done < total:
                time.sleep(pause)
        return {
            "published": done, "last": self._last, "late_s": late,
            "cpu_s": time.process_time() - cpu, "wall_s": time.monotonic() - began,
        }  # fmt: skip


def _author(user: str, role: str) -> User:
    return User(user, user, role if role in ROLES else "viewer")


def main() -> None:
    """The process: `python -m benchmarks.publisher EFFECTIVE.TOML STREAM`."""
    source = _Source(config.load(sys.argv[1], environ={}), sys.argv[2])
    serve(source.run)


if __name__ == "__main__":
    main()
