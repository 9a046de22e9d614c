"""The tick: every 10 ms, each audience's events encoded once and sent to all its members.

A tick runs only when something waits. Per stream, in this order: the events of the tick to the
audiences, then those who join or lag are brought up to exactly the position the audiences have,
then what is meant for single sessions. All of it without giving up the hub, so nobody misses or
doubles an event on the way in. When sending takes longer than the tick leaves time for, the next
one comes later: the tick stretches up to 250 ms by itself and shrinks back. The hub's other work
gets an eighth of what sending takes, and up to as much again while it needs more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import gevent
from gevent.event import Event as Flag

from gateway.audiences import AudienceKey, Audiences, sees
from gateway.dialects import native, sse
from gateway.engine import Engine
from gateway.figures import Figures
from gateway.live import Live
from gateway.session import Session
from uproar import codes
from uproar.events import MASK_ALL, Event, Sanction
from uproar.logs import event

if TYPE_CHECKING:
    from gateway.arrivals import Arrivals

logger = logging.getLogger(__name__)

STRETCH_MAX_S = 0.25
SPARE_MIN, SPARE_MAX = 1 / 8, 1.0  # for everything else, in shares of what sending takes
WAITING_MAX: Final = 10_000  # objects for one session whose queue is full: a second of a service's
QUIET_LOOK_S = 1.0  # how often audiences are looked at that may want a heartbeat

# Makes a message's payload: (codec, objects, position or None).
Encoder: TypeAlias = Callable[[str, list[native.Object], sse.Place | None], bytes]
ENCODERS: Final[dict[str, Encoder]] = {
    "native": lambda codec, objects, place: native.encode(codec, objects)[0],
    "sse": lambda codec, objects, place: sse.encode(objects, place),
}
# What an audience of a dialect hears after so many seconds of silence.
HEARTBEATS: Final = {"sse": (sse.SILENCE_S, sse.heartbeat)}


class Payloads:
    """What a stream's audiences are sent in one tick, encoded once for all who see the same."""

    def __init__(self, live: Live) -> None:
        self._place = sse.Place(live.epoch, live.sent)
        self._made: dict[tuple[str, str, bool, tuple[int, ...]], bytes] = {}
        self.events_encoded = 0

    def of(self, key: AudienceKey, events: list[Event]) -> bytes:
        """Return the payload of events that an audience sees."""
        seen = tuple(found.offset for found in events)
        name = key.dialect, key.codec, key.moderates, seen
        payload = self._made.get(name)
        if payload is None:
            if key.dialect == "native":
                payload, _ = native.encode_events(key.codec, events, key.moderates)
            else:
                objects = objects_of(events, moderator=key.moderates)
                payload = ENCODERS[key.dialect](key.codec, objects, self._place)
            self._made[name] = payload
            self.events_encoded += len(events)
        return payload


class Ticker:
    """Sends what waits. Everything here runs in one greenlet and one hub."""

    def __init__(
        self, engine: Engine, tick_s: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.engine = engine
        self.audiences = Audiences(engine)
        self.arrivals: Arrivals
        self.sessions_of: Callable[[str, str], list[Session]]  # of a stream and a user id
        self.sanctioned: Callable[[str, Sanction], None]
        self.broken: Callable[[str], None]  # a stream's tick failed half way
        self.tick_s = tick_s
        self.length_s = tick_s  # what the tick has stretched to
        self.took_s = 0.0  # sending, the last time
        self._spare = SPARE_MIN
        self.ticks = 0
        self.events_encoded = 0
        self.figures = Figures()
        self._now = now
        self._flag = Flag()
        self._lives: dict[str, Live] = {}
        self._private: dict[int, Session] = {}
        self._spoken: dict[int, float] = {}  # when an audience heard something last

    def wake(self, live: Live) -> None:
        """A stream has events, or sessions that wait to join."""
        self._lives[live.stream] = live
        self._flag.set()

    def private(self, session: Session, message: native.Object) -> None:
        """Send one object to one session, with the next tick."""
        if session.outgoing is None:
            session.outgoing = []
        session.outgoing.append(message)
        self.private_again(session)

    def private_again(self, session: Session) -> None:
        """Send what a full queue did not take."""
        self._private[session.sid] = session
        self._flag.set()

    def run(self) -> None:
        """Tick for ever."""
        due = look_at = 0.0
        while True:
            self._flag.wait(QUIET_LOOK_S)
            if self._now() >= look_at:
                look_at = self._now() + QUIET_LOOK_S
                self._safely(self.hearten, self._now())
            if not self._flag.is_set():
                continue
            wait = due - self._now()
            if wait > 0:
                gevent.sleep(wait)
                self._share(self._now() - due)
            self._flag.clear()
            began = self._now()
            self._safely(self.tick)
            self._stretch(self._now() - began)
            due = began + self.length_s

    def _safely(self, step: Callable[..., None], *arguments: Any) -> None:
        """Without this greenlet nobody would hear anything more, and nothing would say so."""
        try:
            step(*arguments)
        except Exception:
            event(logger, "ticker_failed", level=logging.ERROR, exc_info=True)

    def _share(self, late: float) -> None:
        """Set what the hub's other work gets; `late`: seconds by which it let a tick begin late."""
        gap = self.length_s - self.took_s
        if self.engine.behind or late > gap / 2:
            self._spare = min(SPARE_MAX, 2 * self._spare)
        else:
            self._spare = max(SPARE_MIN, 0.9 * self._spare)

    def _stretch(self, took: float) -> None:
        """Set the length of the next tick by how long one took."""
        self.took_s = took
        self.length_s = min(STRETCH_MAX_S, max(self.tick_s, (1 + self._spare) * took))
        if took > STRETCH_MAX_S:
            # Nobody else is let in until there is time for those who are here.
            self.length_s = took
            self.engine.hold_off(2 * took)
        self.figures.ticked(took, self.length_s, self.tick_s, STRETCH_MAX_S)

    def tick(self) -> None:
        """Send everything that waits now."""
        self.ticks += 1
        lives, self._lives = self._lives, {}
        for live in lives.values():
            try:
                self._stream(live)
            except Exception:
                # One stream's fault must not stop the others' ticks; and who may have missed
                # something connects again and resumes.
                event(logger, "tick_failed", level=logging.ERROR, stream=live.stream, exc_info=True)
                self._safely(self.broken, live.stream)
        private, self._private = self._private, {}
        for session in private.values():
            if session.joining:
                continue
            try:
                self._send_private(session)
            except Exception:
                event(logger, "message_failed", level=logging.ERROR, exc_info=True)
                self.engine.close(session.sid, codes.INTERNAL_ERROR.code, "a fault of ours")

    def _stream(self, live: Live) -> None:
        if not live.ready:
            return
        events, before = live.flush()
        audiences = self.audiences.of(live.stream)
        if events:
            authors = self._authors_of_hidden(live.stream, events)
            payloads = Payloads(live)
            for key, number in audiences:
                if self.engine.members(number):
                    self._audience(payloads, key, number, events, before, authors)
            self.events_encoded += payloads.events_encoded
            if audiences:
                self.figures.went(events)
            for found in events:
                if found.type == "SANCTION":
                    self.sanctioned(live.stream, found.data)
        for _, number in audiences:
            self.engine.stands(number, live.sent)
        self.arrivals.bring_up(live)

    def _audience(
        self,
        payloads: Payloads,
        key: AudienceKey,
        number: int,
        events: list[Event],
        before: int,
        authors: list[Session],
    ) -> None:
        """Send a tick to an audience; to the authors of what it does not see, rendered for them."""
        apart = [
            session
            for session in authors
            if session.audience == key
            and any(session.sees(found) and not sees(key, found) for found in events)
        ]
        seen = [found for found in events if sees(key, found)]
        if seen:
            skip = [session.sid for session in apart]
            self._spoken[number] = self._now()
            for sid in self.engine.broadcast(number, payloads.of(key, seen), skip):
                self.arrivals.lags(sid, before)
        for session in apart:
            own = [found for found in events if session.sees(found)]
            if not self.send_now(session, objects_of(own, moderator=key.moderates)):
                self.arrivals.lags(session.sid, before)

    def _authors_of_hidden(self, stream: str, events: list[Event]) -> list[Session]:
        """The sessions here whose own comments of this tick some audience does not get."""
        hidden = {
            found.actor
            for found in events
            if found.type == "COMMENT" and (found.visibility or found.mask != MASK_ALL)
        }
        return [session for user in hidden for session in self.sessions_of(stream, user)]

    def send_now(self, session: Session, objects: list[native.Object]) -> bool:
        """Send one message to one session at once; False when its queue is full.

        With it the session has got everything up to `live.sent`.
        """
        return self.engine.send(session.sid, self.encoded(session, objects, session.live.sent))

    def encoded(
        self, session: Session, objects: list[native.Object], position: int | None
    ) -> bytes:
        """Return a message for one session; `position` where it has got everything up to there."""
        wish = session.wish
        place = sse.Place(session.live.epoch, position) if position is not None else None
        return ENCODERS[wish.dialect](wish.codec, objects, place)

    def _send_private(self, session: Session) -> None:
        objects, session.outgoing = session.outgoing, None
        if objects and not self.engine.send(session.sid, self.encoded(session, objects, None)):
            session.outgoing = objects  # it lags: its acknowledgements wait with it
            if len(objects) > WAITING_MAX:
                # Dropped silently, its author would wait for them for ever.
                why = "you did not take your answers in time; send again what has none"
                self.arrivals.end(session, codes.TOO_SLOW, why)
        else:
            self.arrivals.dismiss(session)

    def hearten(self, now: float) -> None:
        """Tell the audiences whose dialect wants it, and that heard nothing for long, of it."""
        spoken: dict[int, float] = {}
        for stream, live in list(self.arrivals.lives().items()):
            for key, number in self.audiences.of(stream):
                if key.dialect not in HEARTBEATS:
                    continue
                silence_s, heartbeat = HEARTBEATS[key.dialect]
                spoken[number] = self._spoken.get(number, now)
                if now - spoken[number] >= silence_s:
                    spoken[number] = now
                    place = sse.Place(live.epoch, live.sent)
                    for sid in self.engine.broadcast(number, heartbeat(place)):
                        self.arrivals.lags(sid, live.sent)
        self._spoken = spoken


def objects_of(events: list[Event], *, moderator: bool) -> list[native.Object]:
    """Return events in the form they are sent in."""
    return [native.event_object(found, moderator=moderator) for found in events]
