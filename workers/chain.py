"""The chain of batches per stream: what the coordinator publishes for each poll. Sans-I/O.

Comes in: polls (everything in (after, last] of the partition). Goes out: per stream that had events
one or several batches whose bounds join without a hole, and `{last}` alone repeated after the last
one, so that a lost last batch shows in a quiet room too.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Final, NamedTuple

from uproar.batch import encode_batch
from uproar.consumer import Counted, Poll

BATCH_BYTES: Final = 65_000  # of records with their places: a batch stays below 64 KiB
PLACE_BYTES: Final = 10  # an offset and its array, at most
TAILS_S: Final = (0.2, 1.0, 5.0)  # after the last batch of a stream
FORGET_S: Final = 600.0


class Link(NamedTuple):
    """One batch of a stream, ready for ring and bus. In the ring, `trim_to` and below may go."""

    stream: str
    last: int
    payload: bytes
    trim_to: int


class _Stream:
    __slots__ = ("bytes", "due", "last", "published", "ring", "tails")

    def __init__(self, last: int) -> None:
        self.last = last
        self.published = 0.0
        self.tails = 0  # how many tails are out since the last batch
        self.due = float("inf")  # when the heap's valid entry for this stream comes up
        self.ring: deque[tuple[int, float, int]] = deque()  # (last, when, bytes)
        self.bytes = 0


class Chain:
    """All streams of one partition, as one coordinator incarnation knows them.

    A stream it has no memory of continues from `floor`: where this incarnation began to read, or
    the newest bound among the streams it has forgotten since. Gateways that stand further back see
    a hole and fill it.
    """

    def __init__(self, start: int, *, ring_s: float, ring_bytes: int) -> None:
        self.floor = start
        self._ring_s = ring_s
        self._ring_bytes = ring_bytes
        self._streams: dict[str, _Stream] = {}
        self._due: list[tuple[float, str]] = []  # heap: when the next tail of a stream is due

    def extend(self, poll: Poll, now: float) -> list[Link]:
        """Return the batches of a poll, in order per stream."""
        by_stream: dict[str, list[Counted]] = {}
        for counted in poll.records:
            by_stream.setdefault(counted.record.stream, []).append(counted)
        links = []
        for name, records in by_stream.items():
            stream = self._streams.get(name)
            if stream is None:
                stream = self._streams[name] = _Stream(self.floor)
            part: list[tuple[int, bytes]] = []
            size = 0
            for counted in records:
                bytes_ = len(counted.raw) + PLACE_BYTES
                if part and size + bytes_ > BATCH_BYTES:
                    links.append(self._link(name, stream, part[-1][0], part, size, now))
                    part, size = [], 0
                part.append((counted.offset, counted.raw))
                size += bytes_
            links.append(self._link(name, stream, poll.last, part, size, now))
            stream.published, stream.tails = now, 0
            if stream.due > now + TAILS_S[0]:
                self._plan(name, stream, now + TAILS_S[0])
        return links

    def tails(self, now: float) -> list[tuple[str, bytes]]:
        """Return (stream, `{last}` alone) for every stream whose repeat is due."""
        due = []
        while self._due and self._due[0][0] <= now:
            when, name = heapq.heappop(self._due)
            stream = self._streams.get(name)
            if stream is None or stream.due != when:
                continue  # planned anew since
            if stream.tails == len(TAILS_S):
                self.floor = max(self.floor, stream.last)
                del self._streams[name]
                continue
            at = stream.published + TAILS_S[stream.tails]
            if at <= now:
                due.append((name, encode_batch(stream.last, stream.last, [])))
                stream.tails += 1
                at = stream.published + (*TAILS_S, FORGET_S)[stream.tails]
            self._plan(name, stream, at)
        return due

    def wait_s(self, now: float, most: float) -> float:
        """Return how long to wait for the log before the next tail is due."""
        return max(0.0, min(most, self._due[0][0] - now)) if self._due else most

    def _link(
        self,
        name: str,
        stream: _Stream,
        last: int,
        part: list[tuple[int, bytes]],
        size: int,
        now: float,
    ) -> Link:
        payload = encode_batch(stream.last, last, part)
        stream.last = last
        stream.ring.append((last, now, size))
        stream.bytes += size
        trim_to = 0
        while len(stream.ring) > 1 and (
            stream.bytes > self._ring_bytes or stream.ring[0][1] < now - self._ring_s
        ):
            trim_to, _, gone = stream.ring.popleft()
            stream.bytes -= gone
        return Link(name, last, payload, trim_to)

    def _plan(self, name: str, stream: _Stream, at: float) -> None:
        stream.due = at
        heapq.heappush(self._due, (at, name))
