"""Arrivals: bringing a session to the live position, when it joins, resumes, or has lagged.

What is sent here brings a session to `live.sent`; from the next tick on it gets its audience's
messages. Between working out what came before and joining the audience there is no switch of
greenlets, so nothing is missed or doubled: events that wait for the next tick are behind
`live.sent` and come with it. Viewers that ask for the same get the same backlog, encoded once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import gevent

from gateway.audiences import AudienceKey, sees
from gateway.dialects import native
from gateway.engine import Engine
from gateway.feed import Feed
from gateway.live import Live, Past, fold, past_of
from gateway.session import Session, Wish, name_of
from gateway.tick import Ticker, objects_of
from uproar import codes
from uproar.auth import Claims
from uproar.codes import CloseCode
from uproar.config import Config
from uproar.events import Event
from uproar.logs import event
from uproar.state import StateLost

logger = logging.getLogger(__name__)

OPENED_S = 0.5  # for a stream's opening to reach this gateway, where only opened ones exist
OPEN_S = 10.0  # for a stream to come up while its first viewers wait
AHEAD_S = 3.0  # for this gateway to catch up with a client that is ahead of it
LOOK_S = 0.02
COME_UP_S = 0.05  # between two looks into the store for a stream that is behind a client
BACKLOGS: Final = 256  # encoded ones that are kept for the next who joins


class Arrivals:
    """Sessions on their way into their audience."""

    def __init__(
        self,
        config: Config,
        feed: Feed,
        ticker: Ticker,
        sessions: dict[int, Session],
        welcome: Callable[[Live, Wish, Claims | None, str, bool], native.Object],
        end: Callable[[Session, CloseCode, str], None],
        settled: Callable[[Session], None],
        summon: Callable[[int], Session | None],
        dismiss: Callable[[Session], None],
    ) -> None:
        """`welcome` makes WELCOME: of (stream, wish, who, session's name, recovered).

        `settled` is told of a session that is live, `dismiss` of one that may be plain now, and
        `summon` returns a session by its sid, None for one that is gone.
        """
        self.config = config
        self.feed = feed
        self.ticker = ticker
        self.engine: Engine = ticker.engine
        self.sessions = sessions
        self.welcome = welcome
        self.end = end
        self.settled = settled
        self.summon = summon
        self.dismiss = dismiss
        # Of (audience, how many): at which `sent`, and the message.
        self._backlogs: dict[tuple[int, int], tuple[int, Any]] = {}
        self._waiting: dict[str, set[int]] = {}  # to be brought up with their stream's next tick

    def enter(self, session: Session) -> None:
        """Take up a session that has just connected."""
        if not self.config.streams.open and not session.live.standing.opened:
            gevent.spawn(self._guarded, self._enter_opened, session)
        elif session.wish.offset is None:
            if session.live.ready:
                self._join(session, None)
            else:
                self._wait(session)
        else:
            # A resume may have to read the store: a greenlet of its own, while it lasts.
            gevent.spawn(self._guarded, self._resume, session, session.wish.offset)
        if not session.live.ready:
            gevent.spawn_later(OPEN_S, self._too_late, session)

    def admit(self, sids: list[int], wish: Wish, live: Live, prefix: str) -> list[int]:
        """Bring plain viewers of a stream that is up to its live position, all at once.

        Return those that did not take what they were sent.
        """
        key = Session(0, prefix, wish, None, live).key()
        nobody = name_of(prefix, 0)
        greeting, _ = native.encode(wish.codec, [self.welcome(live, wish, None, nobody, False)])
        # Nothing that a viewer wrote stands before it.
        sid_at = greeting.index(nobody.encode()) + len(prefix.encode())
        number = self.ticker.audiences.number(key)
        self.engine.stands(number, live.sent)
        backlog = self._backlog(live, key, number, wish.backlog)
        return self.engine.admit(sids, number, greeting, sid_at, backlog)

    def _enter_opened(self, session: Session) -> None:
        """Take a session up once its stream is known to exist; else end it."""
        live = session.live
        self._until(lambda: live.ready or session.sid not in self.sessions, OPEN_S)
        # Opened a moment ago, through another gateway: it may be on its way to us.
        self._until(lambda: live.standing.opened or session.sid not in self.sessions, OPENED_S)
        if session.sid not in self.sessions or not live.ready:
            return
        if live.standing.opened:
            self.enter(session)
        else:
            self.end(session, codes.UNKNOWN_STREAM, "there is no such stream; it was never opened")

    def lives(self) -> dict[str, Live]:
        """Return the streams that somebody watches."""
        return self.feed.live

    def forget(self, sid: int, stream: str) -> None:
        """Drop a session that is gone."""
        waiting = self._waiting.get(stream)
        if waiting is not None:
            waiting.discard(sid)
            if not waiting:
                del self._waiting[stream]

    def bring_up(self, live: Live) -> None:
        """Bring those who wait to exactly `live.sent`, and into their audience."""
        for sid in self._waiting.pop(live.stream, ()):
            session = self.sessions.get(sid)
            if session is None:
                continue
            if session.joining:
                self._guarded(self._join, session, None)
            elif session.lags_from is not None:
                self._guarded(self._catch_up, session, session.lags_from)

    def _guarded(self, step: Callable[..., None], session: Session, *arguments: Any) -> None:
        """Take a step with a session; a fault of ours costs this one and nobody else."""
        try:
            step(session, *arguments)
        except Exception:
            event(
                logger, "session_failed", level=logging.ERROR,
                stream=session.live.stream, exc_info=True,
            )  # fmt: skip
            self.end(session, codes.INTERNAL_ERROR, "a fault of ours; connect again")

    def lags(self, sid: int, position: int) -> None:
        """A session's queue is full; it stands at `position` and gets nothing until it drains."""
        session = self.summon(sid)
        if session is None or session.lags_from is not None:
            return
        if self.config.gateway.overflow == "close":
            self.end(session, codes.TOO_SLOW, "you did not take what you were sent in time")
            return
        session.lags_from = position
        self.ticker.figures.overflows += 1
        if session.audience is not None:
            self.engine.leave(sid, self.ticker.audiences.number(session.audience))
            session.audience = None

    def drained(self, sid: int) -> None:
        """A session whose queue was full has taken everything."""
        session = self.sessions.get(sid)
        if session is None:
            return
        if session.joining:
            if session.lags_from is not None:
                session.lags_from = None
                self.enter(session)
        elif session.lags_from is not None:
            self._wait(session)
        elif session.outgoing:
            self.ticker.private_again(session)

    def _wait(self, session: Session) -> None:
        self._waiting.setdefault(session.live.stream, set()).add(session.sid)
        self.ticker.wake(session.live)

    def _too_late(self, session: Session) -> None:
        if session.joining and session.sid in self.sessions and not session.live.ready:
            self.end(session, codes.TRY_AGAIN_LATER, "the stream can't be served now; try again")

    # -- joining ----------------------------------------------------------------------------------

    def _join(self, session: Session, resumed: Past | None) -> None:
        """Send WELCOME and what comes before the next tick; the session is live from here on."""
        live, wish, claims = session.live, session.wish, session.claims
        moderator = session.moderates
        objects = [self.welcome(live, wish, claims, session.name, resumed is not None)]
        key = session.key()
        number = self.ticker.audiences.number(key)
        self.engine.stands(number, live.sent)
        backlog = None
        if resumed is not None:
            objects += objects_of(_seen(session, resumed.events), moderator=moderator)
        elif wish.dialect == "native" and not (
            claims is not None and live.hides_some_of(claims.sub)
        ):
            backlog = self._backlog(live, key, number, wish.backlog)
        elif wish.backlog:
            seen = live.latest(wish.backlog, session.sees)
            objects += historical(seen, moderator=moderator)
        if wish.offset is not None:
            self.ticker.figures.resumed(resumed is not None)
        greeting = self.ticker.encoded(session, objects, live.sent)
        if self.engine.admit([session.sid], number, greeting, -1, backlog):
            session.lags_from = live.sent  # its greeting, too, waits until its queue has drained
            return
        session.joining = False
        if wish.offset is not None:
            session.wish = wish.kept()  # else it is kept already, one object for many sessions
        session.audience = key
        self._settle(session)

    def _backlog(self, live: Live, key: AudienceKey, number: int, most: int) -> Any:
        """Return the newest comments as an audience sees them, as the engine sends them."""
        if not most:
            return None
        kept = self._backlogs.get((number, most))
        if kept is not None and kept[0] == live.sent:
            return kept[1]
        seen = live.latest(most, partial(sees, key))
        message = None
        if seen:
            objects = historical(seen, moderator=key.moderates)
            message = self.engine.prepare(number, native.encode(key.codec, objects)[0])
        if len(self._backlogs) >= BACKLOGS:
            self._backlogs.clear()
        self._backlogs[number, most] = live.sent, message
        return message

    def _go_live(self, session: Session) -> None:
        session.lags_from = None
        session.audience = session.key()
        number = self.ticker.audiences.number(session.audience)
        self.engine.stands(number, session.live.sent)
        self.engine.join(session.sid, number)
        self._settle(session)

    def _settle(self, session: Session) -> None:
        if session.outgoing:
            self.ticker.private_again(session)
        self.settled(session)

    def _resume(self, session: Session, offset: int) -> None:
        """Fetch what a resume needs, then join.

        `recovered` is false when the offset is of another epoch, ahead of everything, or further
        back than can be had or may be brought.
        """
        live = session.live
        self._until(lambda: live.ready or session.sid not in self.sessions, OPEN_S)
        if session.sid not in self.sessions or not live.ready:
            return
        past = None
        if session.wish.epoch == live.epoch and self._reaches(live, offset):
            past = self._since(live, offset)
            if past is not None and past.comments > self.config.gateway.resume_max:
                past = None
        if session.sid in self.sessions:
            self._join(session, past)

    def _reaches(self, live: Live, offset: int) -> bool:
        """Wait for this gateway to come up to a client that saw more on another one."""
        if live.sent < offset:
            try:
                known = self.feed.last(live.stream)
                if known is not None and known[0] < offset:
                    return False  # the log does not have it
                # A quiet stream stands where its last event was; its partition has gone on.
                until = time.monotonic() + AHEAD_S
                while live.sent < offset and time.monotonic() < until:
                    self._until(lambda: live.sent >= offset, COME_UP_S)
                    self.feed.come_up(live)
            except StateLost:
                pass
        return live.sent >= offset

    def _since(self, live: Live, offset: int) -> Past | None:
        """Return everything in (offset, live.sent], from the store as far as it is not kept."""
        older: list[Event] = []
        covered = offset
        while live.since(covered) is None:
            upto = live.horizon
            found = self.feed.stored(live, covered, upto)
            if found is None:
                return None
            older += found
            covered = upto
        newer = live.since(covered)
        return past_of(older + newer.events) if newer is not None else None

    # -- after a lag ------------------------------------------------------------------------------

    def _catch_up(self, session: Session, offset: int) -> None:
        """One message for what a slow viewer missed: folded, with a GAP where something is."""
        past = session.live.since(offset)
        if past is None:
            # More than is kept here. The control events among it must not be lost: the store.
            gevent.spawn(self._guarded, self._catch_up_far, session, offset)
        else:
            self._send_folded(session, offset, past)

    def _catch_up_far(self, session: Session, offset: int) -> None:
        live = session.live
        controls: list[Event] = []
        covered = offset
        while live.since(covered) is None:
            upto = live.horizon
            found = self.feed.stored_controls(live, covered, upto)
            if session.sid not in self.sessions or session.lags_from != offset:
                return  # gone, or brought up meanwhile: its queue was full and drained once more
            if found is None:
                self.end(session, codes.TOO_SLOW, "too far behind; connect again")
                return
            controls += found
            covered = upto
        newer = live.since(covered)
        if newer is not None:
            self._send_folded(session, offset, Past(newer.events, newer.comments), controls)

    def _send_folded(
        self, session: Session, offset: int, past: Past, controls: list[Event] | None = None
    ) -> None:
        visible = past_of(_seen(session, past.events))
        events, gap_to = fold(visible, self.config.gateway.backlog_default)
        if controls is not None:
            events = [*_seen(session, controls), *events]
            gap_to = gap_to if gap_to is not None else session.live.horizon
        moderator = session.moderates
        if gap_to is None:
            objects = objects_of(events, moderator=moderator)
        else:
            # Positions only rise: the controls of the gap, the GAP, what came after it.
            gap = {"type": "GAP", "from": offset, "to": gap_to, "reason": "too_slow"}
            kept = self.config.gateway.backlog_default
            self.ticker.figures.folded += max(0, visible.comments - kept)
            folded = [found for found in events if found.offset <= gap_to]
            newest = [found for found in events if found.offset > gap_to]
            objects = [
                *objects_of(folded, moderator=moderator),
                gap,
                *objects_of(newest, moderator=moderator),
            ]
        if not objects or self.ticker.send_now(session, objects):
            self._go_live(session)

    def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not condition() and time.monotonic() < until:
            gevent.sleep(LOOK_S)


def historical(comments: Sequence[Event], *, moderator: bool) -> list[native.Object]:
    """Return comments in the form that a backlog has them in."""
    return [
        native.comment_object(found, historical=True, moderator=moderator) for found in comments
    ]


def _seen(session: Session, events: list[Event]) -> list[Event]:
    return [found for found in events if session.sees(found)]
