"""Presence: who watches through this gateway, as STATE is told.

Exact: the connections of each stream, with the gateway's lease; they go with it. Distinct: every
viewer is added to a HyperLogLog of the stream and the minute when joining and once in each minute
after. The coordinator counts and tells (`workers.totals`). Services work, they do not watch.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import gevent
from gevent.event import Event as Flag

from gateway.session import Session
from uproar.logs import event
from uproar.state import Present, State, StateLost

logger = logging.getLogger(__name__)

STEP_S: Final = 0.25
LEASE_S: Final = 1.0
MARK_S: Final = 30.0  # between two signs of life of a stream; five minutes without one end it
CHUNK: Final = 500  # members of one command
MEMBERS_A_STEP: Final = 2000  # 3 ms of a gateway; 18,000 viewers are called within 3 s
STREAMS_A_STEP: Final = 500


def member_of(session: Session) -> str:
    """Return what counts once: a user with however many sessions, or an anonymous session."""
    return f"u:{session.claims.sub}" if session.claims is not None else f"s:{session.name}"


class RollCall:
    """Who is to be added to the current minute, in pieces. Sans-I/O; times are unix seconds."""

    def __init__(self, everybody: Callable[[], Iterable[tuple[str, list[str]]]]) -> None:
        """`everybody` returns (stream, members) of all who are present, in pieces."""
        self._everybody = everybody
        self._joined: dict[str, dict[str, None]] = {}
        self._waiting: deque[tuple[str, list[str]]] = deque()
        self._minute = -1

    def joined(self, stream: str, members: list[str]) -> None:
        """Count those who have just come."""
        self._joined.setdefault(stream, {}).update(dict.fromkeys(members))

    @property
    def waits(self) -> bool:
        """Whether there is more to be taken before the next minute."""
        return bool(self._waiting or self._joined)

    def restart(self) -> None:
        """Call everybody again: what was said may be lost."""
        self._minute = -1
        self._joined.clear()

    def take(self, now: float) -> list[Present]:
        """Return the next piece: all who joined, and some of those whose turn it is."""
        minute = int(now // 60)
        if minute != self._minute:
            self._minute = minute
            self._joined.clear()
            self._waiting.clear()
            by_stream: dict[str, dict[str, None]] = {}
            for stream, some in self._everybody():
                by_stream.setdefault(stream, {}).update(dict.fromkeys(some))
            for stream, members in by_stream.items():
                self._wait(stream, members)
        joined, self._joined = self._joined, {}
        for stream, members in joined.items():
            self._wait(stream, members, first=True)
        taken: list[Present] = []
        size = 0
        while self._waiting and size < MEMBERS_A_STEP and len(taken) < STREAMS_A_STEP:
            stream, some = self._waiting.popleft()
            taken.append(Present(stream, now, some))
            size += len(some)
        return taken

    def _wait(self, stream: str, members: Iterable[str], *, first: bool = False) -> None:
        every = list(members)
        for at in range(0, len(every), CHUNK):
            piece = (stream, every[at : at + CHUNK])
            if first:
                self._waiting.appendleft(piece)
            else:
                self._waiting.append(piece)


class Presence:
    """Renews this gateway's lease with its counts, and calls the roll."""

    def __init__(
        self,
        state: State,
        gateway: str,
        incarnation: str,
        sessions: dict[int, Session],
        plain: Callable[[], Iterable[tuple[str, list[str]]]],
        count: Callable[[], dict[str, int]],
        on_forgotten: Callable[[], None],
        refresh: Callable[[], None],
    ) -> None:
        """`plain` returns the names of plain viewers, which are in no `sessions`.

        `on_forgotten` says that STATE may have lost what this gateway told it.
        """
        self.state = state
        self.gateway = gateway
        self.incarnation = incarnation
        self.sessions = sessions
        self.plain = plain
        self.count = count
        self.on_forgotten = on_forgotten
        self.refresh = refresh  # every second, with STATE there
        self.roll = RollCall(self._everybody)
        self._joined = Flag()
        self._written: dict[str, int] = {}
        self._marked: set[str] = set()
        self._mark_at = 0.0
        self._lease_at = 0.0
        self._forgotten = False
        self._away = False
        self._closed = False

    def joined(self, session: Session) -> None:
        """Count one who has just come."""
        if not session.serves:
            self.roll.joined(session.live.stream, [member_of(session)])
            self._joined.set()

    def plain_joined(self, stream: str, names: list[str]) -> None:
        """Count plain viewers who have just come."""
        self.roll.joined(stream, [f"s:{name}" for name in names])
        self._joined.set()

    def run(self) -> None:
        """Tell STATE for ever; while it is away nothing is kept, all is said again after."""
        while not self._closed:
            began = time.monotonic()
            try:
                self.step(time.time(), began)
                self._away = False
            except StateLost as error:
                if not self._away:
                    event(logger, "presence_waits", level=logging.WARNING, why=str(error))
                self._away = self._forgotten = True
                self.roll.restart()
            if not self.roll.waits:
                self._joined.wait(max(0.0, self._lease_at - time.monotonic()))
            self._joined.clear()
            gevent.sleep(max(0.05, STEP_S - (time.monotonic() - began)))

    def step(self, now: float, mono: float) -> None:
        """Do what is due (`now` in unix seconds, `mono` of the monotonic clock)."""
        if mono >= self._lease_at:
            self._renew()
            self._lease_at = mono + LEASE_S
            self._mark(list(self._written), now, mono)
            self.refresh()
        present = self.roll.take(now)
        if present:
            self.state.add_present(present)
            self._mark(sorted({piece.stream for piece in present} - self._marked), now, mono)

    def close(self) -> None:
        """Give the lease up, so that nobody counts this gateway's viewers twice meanwhile."""
        self._closed = True
        try:
            self.state.end_lease(self.gateway, self.incarnation)
        except StateLost:
            return  # it runs out by itself

    def _renew(self) -> None:
        mine = {stream: count for stream, count in self.count().items() if count}
        gone = dict.fromkeys(self._written.keys() - mine.keys(), 0)
        stood = self.state.lease_gateway(self.gateway, self.incarnation, {**mine, **gone})
        self._written = mine
        if self._forgotten or not stood:
            self._forgotten = False
            self._marked.clear()
            self._mark_at = 0.0
            self.roll.restart()
            self.on_forgotten()

    def _mark(self, streams: list[str], now: float, mono: float) -> None:
        """Mark streams as active: new ones at once, the others now and then."""
        if mono >= self._mark_at:
            self._mark_at = mono + MARK_S
            self._marked.clear()
            streams = sorted({*streams, *self._written})
        new = [stream for stream in streams if stream not in self._marked]
        if new:
            self.state.mark_active(new, now)
            self._marked.update(new)

    def _everybody(self) -> Iterable[tuple[str, list[str]]]:
        for session in self.sessions.values():
            if not session.serves:
                yield session.live.stream, [member_of(session)]
        for stream, names in self.plain():
            yield stream, [f"s:{name}" for name in names]
