"""The tick: every 10 ms, each audience's events encoded once and sent to all its members.

A tick runs only when something waits. Per stream, in this order: the events of the tick to the
audiences, then those who join or lag are brought up to exactly the position the audiences have,
then what is meant for single sessions. All of it without giving up the hub, so nobody misses or
doubles an event on the way in. When sending takes longer than the tick leaves time for, the next
one comes later: the tick stretches up to 250 ms by itself and shrinks back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

import gevent
from gevent.event import Event as Flag

from gateway.audiences import AudienceKey, Audiences, sees
from gateway.dialects import native, sse
from gateway.engine import Engine
from gateway.live import Live
from gateway.session import Session
from uproar import codes
from uproar.events import MASK_ALL, Event, Sanction
from uproar.logs import event

if TYPE_CHECKING:
    from gateway.arrivals import Arrivals

logger = logging.getLogger(__name__)

STRETCH_MAX_S = 0.25
QUIET_LOOK_S = 1.0  # how often audiences are looked at that may want a heartbeat

# Makes a message's bytes: (engine, codec, objects, position or None, how many share it deflated).
Encoder: TypeAlias = Callable[[Engine, str, list[native.Object], sse.Place | None, int], bytes]


def _native(
    engine: Engine, codec: str, objects: list[native.Object], place: sse.Place | None, sharing: int
) -> bytes:
    payload, text = native.encode(codec, objects)
    return engine.frame(payload, text=text, compress=sharing)


def _sse(
    engine: Engine, codec: str, objects: list[native.Object], place: sse.Place | None, sharing: int
) -> bytes:
    return sse.encode(objects, place)


ENCODERS: Final[dict[str, Encoder]] = {"native": _native, "sse": _sse}
# What an audience of a dialect hears after so many seconds of silence.
HEARTBEATS: Final = {"sse": (sse.SILENCE_S, sse.heartbeat)}


def shared(
    engine: Engine, key: AudienceKey, number: int, objects: list[native.Object], live: Live
) -> bytes:
    """Return the bytes of one message to all members of an audience."""
    sharing = engine.members(number) if key.compression == "each" else 0
    place = sse.Place(live.epoch, live.sent)
    return ENCODERS[key.dialect](engine, key.codec, objects, place, sharing)


class Ticker:
    """Sends what waits. Everything here runs in one greenlet and one hub."""

    def __init__(
        self, engine: Engine, tick_s: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.engine = engine
        self.audiences = Audiences()
        self.arrivals: Arrivals
        self.sessions_of: Callable[[str, str], list[Session]]  # of a stream and a user id
        self.sanctioned: Callable[[str, Sanction], None]
        self.broken: Callable[[str], None]  # a stream's tick failed half way
        self.tick_s = tick_s
        self.length_s = tick_s  # what the tick has stretched to
        self.ticks = 0
        self.events_encoded = 0
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
        session.outgoing.append(message)
        self.private_again(session)

    def private_again(self, session: Session) -> None:
        """Send what a full queue did not take."""
        self._private[session.sid] = session
        self._flag.set()

    def run(self) -> None:
        """Tick for ever."""
        last = look_at = 0.0
        while True:
            self._flag.wait(QUIET_LOOK_S)
            if self._now() >= look_at:
                look_at = self._now() + QUIET_LOOK_S
                self.hearten(self._now())
            if not self._flag.is_set():
                continue
            wait = last + self.length_s - self._now()
            if wait > 0:
                gevent.sleep(wait)
            self._flag.clear()
            last = self._now()
            self.tick()
            took = self._now() - last
            # Half of the time is for sending: the other half is for everything else.
            self.length_s = min(STRETCH_MAX_S, max(self.tick_s, 2 * took))

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
                self.broken(live.stream)
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
        if events:
            authors = self._authors_of_hidden(live.stream, events)
            for key, number in self.audiences.of(live.stream):
                if self.engine.members(number):
                    self._audience(live, key, number, events, before, authors)
            for found in events:
                if found.type == "SANCTION":
                    self.sanctioned(live.stream, found.data)
        self.arrivals.bring_up(live)

    def _audience(
        self,
        live: Live,
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
        moderator = key.visibility == "moderator"
        if seen:
            frame = shared(self.engine, key, number, objects_of(seen, moderator=moderator), live)
            self._spoken[number] = self._now()
            skip = {session.sid for session in apart}
            for sid in self.engine.broadcast(number, frame, skip):
                self.arrivals.lags(sid, before)
            self.events_encoded += len(seen)
        for session in apart:
            own = [found for found in events if session.sees(found)]
            if not self.send_now(session, objects_of(own, moderator=moderator)):
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
        return self._send(session, objects, sse.Place(session.live.epoch, session.live.sent))

    def _send(
        self, session: Session, objects: list[native.Object], place: sse.Place | None
    ) -> bool:
        # What is for one viewer goes as it is: no secrets beside text that an attacker chose.
        wish = session.wish
        frame = ENCODERS[wish.dialect](self.engine, wish.codec, objects, place, 0)
        return self.engine.send(session.sid, frame)

    def _send_private(self, session: Session) -> None:
        objects, session.outgoing = session.outgoing, []
        if objects and not self._send(session, objects, None):
            # It lags: its acknowledgements wait with it, bounded.
            session.outgoing = objects[-100:]

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
