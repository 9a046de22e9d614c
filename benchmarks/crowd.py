"""Many viewers in a process of their own: the compiled swarm, started, asked and stopped.

`Crowd` is the benchmark's side, `python -m benchmarks.crowd` the process. Everything per message
happens in C (`_fastpath/swarm.c`); latencies come from the stamps in the texts
(`uproar.swarm.stamp`) that its decoding members read, so both ends are on one machine.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import math
import resource
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal
from urllib.parse import urlencode, urlsplit

from benchmarks.child import Child, serve

SPARE_FILES: Final = 200
BROWSER: Final = "permessage-deflate; client_max_window_bits"  # what Chromium and Firefox offer
BUSY: Final = 0.9  # of a core: the crowd was the limit
GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
STAMP: Final = "\x01" * 16  # in the template of a command: becomes the time, in hex
NONCE: Final = "\x02" * 16  # becomes a running number


class Skip(Exception):
    """What a machine lacks for a measurement, in a sentence."""


def files() -> int:
    """Return how many files a process may open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def room(viewers: int) -> None:
    """Raise Skip where one process can't hold so many viewers."""
    if files() < viewers + SPARE_FILES:
        raise Skip(
            f"{viewers:,} viewers in one process need {viewers + SPARE_FILES:,} files, "
            f"this machine allows {files():,} (ulimit -Hn)"
        )


class Seen:
    """What groups of a crowd counted since the reset; several add up."""

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self._groups = groups

    def __getattr__(self, name: str) -> int:
        """Return the sum of a counter over the groups."""
        return sum(int(group["counts"][name]) for group in self._groups)

    @property
    def buckets(self) -> list[tuple[int, int]]:
        """(upper bound in ns, count) of all latencies."""
        merged: dict[int, int] = {}
        for group in self._groups:
            for bound, count in group["latencies"]:
                merged[bound] = merged.get(bound, 0) + count
        return sorted(merged.items())

    def latency_ms(self, share: float) -> float:
        """Return a percentile of the latencies, at most 3 % above it; NaN without any."""
        return percentile_ms(self.buckets, share)


def percentile_ms(buckets: Sequence[tuple[int, int]], share: float) -> float:
    """Return the upper bound of the bucket that holds the nearest rank, in milliseconds."""
    total = sum(count for _, count in buckets)
    rank = max(1, math.ceil(share * total))
    for bound, count in buckets:
        rank -= count
        if rank <= 0:
            return bound / 1e6
    return math.nan


class Crowd:
    """A process full of viewers. Use it as a context."""

    def __init__(self, cores: Iterable[int] = ()) -> None:
        self.child = Child("benchmarks.crowd", cores=cores)
        self._cpu = self._wall = 0.0

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.close()

    def add(
        self,
        url: str,
        count: int,
        *,
        codec: Literal["json", "msgpack"] = "msgpack",
        deflate: bool = True,
        tokens: Sequence[str] = (),
        backlog: int = 0,
        rate: str | None = None,
        decode_every: int = 1,
        raw: bool = False,
        **more: Any,
    ) -> int:
        """Add viewers of a stream; return their group.

        One in `decode_every` decodes everything (0: none). `raw` members shake no hands and count
        bytes. `more` are read_bytes_s, never_reads, receive_buffer, at_once, rate_s (connects a
        second), churn, stream: see swarm.h.
        """
        parts = urlsplit(url)
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
        query = {"backlog": str(backlog), **({"rate": rate} if rate else {})}
        heads = [
            "\r\n".join(
                [
                    f"GET {parts.path}?{urlencode({**query, **token})} HTTP/1.1",
                    f"Host: {parts.netloc}",
                    "Upgrade: websocket",
                    "Connection: Upgrade",
                    f"Sec-WebSocket-Key: {key}",
                    "Sec-WebSocket-Version: 13",
                    f"Sec-WebSocket-Protocol: uproar.v1.{codec}",
                    *([f"Sec-WebSocket-Extensions: {BROWSER}"] if deflate else []),
                    "",
                    "",
                ]
            )
            for token in ([{"access_token": each} for each in tokens] or [{}])
        ]
        return int(
            self.child.ask(
                do="add", host=parts.hostname, port=parts.port, count=count, accept=accept,
                heads=[] if raw else heads, raw=raw, binary=codec == "msgpack",
                decode_every=decode_every, **more,
            )
        )  # fmt: skip

    def send(self, group: int, text: str, rate: float, *, total: int = 0) -> int:
        """Have a group say a JSON command, its members in turn; STAMP and NONCE in it are filled.

        `rate` is of the whole group, a second; an empty text is a protocol ping. Returns the job.
        """
        payload = text.encode()
        return int(
            self.child.ask(
                do="send", group=group, opcode=1 if text else 9, text=text, rate=rate, total=total,
                stamp_at=payload.find(STAMP.encode()), nonce_at=payload.find(NONCE.encode()),
            )
        )  # fmt: skip

    def stop(self, group: int, job: int) -> int:
        """End a job; return how many messages were due by then."""
        return int(self.child.ask(do="stop", group=group, job=job))

    def leave(self, group: int, *, keep: int = 0, mode: int = 0) -> None:
        """Close members: 0 by a close frame, 1 FIN, 2 RST."""
        self.child.ask(do="leave", group=group, keep=keep, mode=mode)

    def reset(self) -> None:
        """Count from here on."""
        self._cpu, self._wall = self.child.ask(do="reset"), time.monotonic()

    def seen(self, *groups: int) -> Seen:
        """Return what groups counted since the reset."""
        return Seen(self.child.ask(do="seen", groups=groups))

    def offsets(self, stream: int = 0) -> int:
        """Return how many different comments the decoding members of a stream saw live."""
        return int(self.child.ask(do="offsets", stream=stream))

    def wait(self, until: Callable[[Seen], bool], *groups: int, deadline_s: float) -> bool:
        """Wait for what groups counted; False at the deadline."""
        end = time.monotonic() + deadline_s
        while not until(self.seen(*groups)):
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def join(self, group: int, count: int, deadline_s: float = 120.0) -> None:
        """Wait until so many members of a group have their WELCOME; raises RuntimeError."""
        if not self.wait(lambda seen: seen.live >= count, group, deadline_s=deadline_s):
            counts = self.seen(group)._groups[0]["counts"]
            known = {name: value for name, value in counts.items() if value}
            raise RuntimeError(f"{counts['live']} of {count} viewers came in: {known}")

    def limit(self) -> tuple[float, float, str]:
        """Return (share of a core, longest pass in ms, a clause where the crowd was the limit)."""
        cpu, lag_ns = self.child.ask(do="load")
        wall = time.monotonic() - self._wall
        share, lag_ms = (cpu - self._cpu) / wall if wall else 0.0, lag_ns / 1e6
        said = f"the crowd was the limit: {share:.0%} of a core" if share > BUSY else ""
        return share, lag_ms, said


def main() -> None:
    """The process."""
    from _fastpath.swarm import Swarm
    from benchmarks.facts import look

    resource.setrlimit(resource.RLIMIT_NOFILE, (files(), files()))
    swarm = Swarm(look)

    def add(command: dict[str, Any]) -> int:
        count = int(command["count"])
        if count + SPARE_FILES > files():
            raise ValueError(f"{count} members need more files than {files()}")
        return swarm.add(
            int(ipaddress.IPv4Address(command["host"])),
            command["port"],
            count,
            [head.encode() for head in command["heads"]],
            command["accept"].encode(),
            rate=command.get("rate_s", 0.0),
            **{
                name: command[name]
                for name in (
                    "raw", "binary", "decode_every", "read_bytes_s", "never_reads",
                    "receive_buffer", "at_once", "churn", "stream",
                )
                if name in command
            },
        )  # fmt: skip

    def send(command: dict[str, Any]) -> int:
        return swarm.send(
            command["group"], command["opcode"], command["text"].encode(), command["rate"],
            total=command["total"], stamp_at=command["stamp_at"], nonce_at=command["nonce_at"],
        )  # fmt: skip

    def handle(command: dict[str, Any]) -> Any:
        match command["do"]:
            case "add":
                return add(command)
            case "send":
                return send(command)
            case "stop":
                return swarm.stop(command["group"], command["job"])
            case "leave":
                return swarm.close_members(command["group"], command["keep"], command["mode"])
            case "reset":
                swarm.reset()
                return time.process_time()
            case "seen":
                return [
                    {"counts": swarm.counts(group), "latencies": swarm.latencies(group)}
                    for group in command["groups"]
                ]
            case "offsets":
                return swarm.offsets(command["stream"])
            case "load":
                return [time.process_time(), swarm.lag_ns]
        raise ValueError(f"unknown command {command['do']}")

    serve(handle, lambda: (swarm.run(10), None)[1])
    swarm.close()


if __name__ == "__main__":
    main()
