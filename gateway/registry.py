"""The registry: which sessions a user has on which gateway, so that a kick finds them.

STATE holds a hash per user, `conn:user:{user_id}`; a session is written within half a second of its
beginning and taken out at its end, in batches. Fields of a dead gateway are dropped by who reads
them. Everything is said again daily, before the keys expire, and when STATE has forgotten.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from itertools import islice
from typing import Final

import gevent
from gevent.event import Event as Flag

from gateway.session import Session
from uproar import codes
from uproar.codes import CloseCode
from uproar.logs import event
from uproar.state import Seat, State, StateLost

logger = logging.getLogger(__name__)

STEP_S: Final = 0.25
BATCH: Final = 1000  # sessions a step: a gateway's 18,000 are written within 5 s
AGAIN_S: Final = 86_400.0
GONE_MAX: Final = 50_000  # sessions that ended while STATE was away


class Ledger:
    """The changes that STATE does not know of yet. Sans-I/O.

    Who has come is bounded by who is here; of those who have gone the oldest give way, and a field
    of theirs that stays finds nobody.
    """

    def __init__(self) -> None:
        self._come: dict[str, Seat] = {}
        self._gone: dict[str, Seat] = {}

    def __len__(self) -> int:
        return len(self._come) + len(self._gone)

    def come(self, seat: Seat) -> None:
        """Note that a session is here."""
        self._come[seat.session] = seat

    def gone(self, seat: Seat) -> None:
        """Note that a session has ended; it never comes back."""
        self._come.pop(seat.session, None)
        self._gone[seat.session] = seat
        if len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]

    def take(self, most: int) -> tuple[list[Seat], list[Seat]]:
        """Return (come, gone), the oldest of each first, at most `most` in all."""
        come = list(islice(self._come, most))
        gone = list(islice(self._gone, most - len(come)))
        return [self._come.pop(name) for name in come], [self._gone.pop(name) for name in gone]

    def put_back(self, come: list[Seat], gone: list[Seat]) -> None:
        """Take back what could not be written."""
        for seat in come:
            if seat.session not in self._gone:
                self.come(seat)
        for seat in gone:
            self.gone(seat)


class Registry:
    """Keeps STATE's registry in step with this gateway's sessions, and closes who is kicked."""

    def __init__(
        self,
        state: State,
        gateway: str,
        incarnation: str,
        sessions: dict[int, Session],
        end: Callable[[Session, CloseCode, str], None],
    ) -> None:
        self.state = state
        self.gateway = gateway
        self.incarnation = incarnation
        self.sessions = sessions
        self.end = end
        self.ledger = Ledger()
        self.kicked = 0
        self._again_at = time.monotonic() + AGAIN_S
        self._away = False
        self._changed = Flag()

    def joined(self, session: Session) -> None:
        """Register a session; anonymous ones are nobody's."""
        if session.claims is not None:
            self.ledger.come(self._seat(session, session.claims.sub))
            self._changed.set()

    def left(self, session: Session) -> None:
        """Take a session out."""
        if session.claims is not None:
            self.ledger.gone(self._seat(session, session.claims.sub))
            self._changed.set()

    def again(self) -> None:
        """Say everything again: STATE may have forgotten, or is about to."""
        self._again_at = time.monotonic() + AGAIN_S
        for session in self.sessions.values():
            self.joined(session)

    def kick(self, user: str, stream: str | None) -> int:
        """Close a user's sessions, on one stream or on all; return how many."""
        found = [
            session
            for session in self.sessions.values()
            if session.claims is not None
            and session.claims.sub == user
            and (stream is None or session.live.stream == stream)
        ]
        for session in found:
            self.end(session, codes.KICKED, "a moderator has closed your connection")
        self.kicked += len(found)
        return len(found)

    def run(self) -> None:
        """Write changes for ever."""
        while True:
            self._changed.wait(max(0.0, self._again_at - time.monotonic()))
            self._changed.clear()
            if time.monotonic() >= self._again_at:
                self.again()
            gevent.sleep(STEP_S)  # what else comes goes along
            self.flush()
            if len(self.ledger):
                self._changed.set()

    def flush(self) -> bool:
        """Write one batch of changes; False when STATE is away."""
        if not len(self.ledger):
            return True
        come, gone = self.ledger.take(BATCH)
        try:
            self.state.seat(come, gone)
        except StateLost as error:
            if not self._away:
                event(logger, "registry_waits", level=logging.WARNING, why=str(error))
            self._away = True
            self.ledger.put_back(come, gone)
            return False
        self._away = False
        return True

    def close(self) -> None:
        """Write what is left, for a gateway that stops."""
        while len(self.ledger) and self.flush():
            pass

    def _seat(self, session: Session, user: str) -> Seat:
        return Seat(user, session.name, self.gateway, self.incarnation, session.live.stream)
