"""Viewers: sessions from handshake to end. Who may come in, where they begin, what they ask for.

A plain viewer (no token, live, nothing owed) is known to the engine only, and counted here; it is
summoned as a `Session` when something happens to it alone, and dismissed when that is over.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

from gateway.arrivals import Arrivals
from gateway.commands import BadCommand, Command, CommentCommand, ReactCommand, parse
from gateway.dialects import native
from gateway.engine import (
    Arrived,
    Closed,
    Drained,
    Engine,
    EngineEvent,
    Flooded,
    Opened,
    Received,
    Request,
)
from gateway.ephemeral import Ephemeral
from gateway.feed import Feed
from gateway.live import Live
from gateway.session import Refused, Session, Wish, check_origin, claims_of, name_of, wish_of
from gateway.tick import Ticker
from uproar import codes, ids
from uproar.auth import Claims, Verifier
from uproar.codes import CloseCode
from uproar.config import Config
from uproar.events import SOVEREIGN_ROLES, Sanction
from uproar.ipc import Answer, Draft, IngestLink, Traits
from uproar.logs import event

logger = logging.getLogger(__name__)

WISHES: Final = 10_000  # different ones that are remembered, so that sessions share them


class Viewers:
    """All sessions of this gateway process."""

    def __init__(
        self,
        config: Config,
        gateway: str,
        verifier: Verifier,
        feed: Feed,
        ticker: Ticker,
        link: IngestLink,
        ephemeral: Ephemeral,
        react: Callable[[Live, Claims | None, ReactCommand], tuple[str, str] | None],
    ) -> None:
        self.config = config
        self.verifier = verifier
        self.feed = feed
        self.ticker = ticker
        self.engine: Engine = ticker.engine
        self.link = link
        self.ephemeral = ephemeral
        self.react = react
        self.joined: Callable[[Session], None]
        self.crowd_joined: Callable[[str, list[str]], None]  # the names of plain viewers
        self.left: Callable[[Session], None]
        self.counter: Callable[[str], int]  # at which the engine counts a stream's reactions
        self.emptied: Callable[[str], None]  # nobody is left on a stream
        self.sessions: dict[int, Session] = {}  # all but plain viewers
        self.crowd: Counter[str] = Counter()  # plain viewers of each stream
        self._present: Counter[str] = Counter()  # sessions of each stream, all kinds
        self._serving: Counter[str] = Counter()  # services among them
        self._users: dict[str, dict[str, list[Session] | Session]] = {}
        self._no_reactions = dict.fromkeys(config.reactions.kinds, 0)
        self.prefix = f"{gateway}-{secrets.token_hex(3)}-"
        self.arrivals = Arrivals(
            config, feed, ticker, self.sessions, self._welcome, self.end, self.settled,
            self.summon, self.dismiss,
        )  # fmt: skip
        self._wishes: dict[Wish, Wish] = {}
        self._next_expiry = math.inf  # unix s: no token here expires before it
        self._per_minute: dict[str, int] = {
            role: getattr(config.limits.per_minute, role)
            for role in ("viewer", "vip", "moderator", "broadcaster", "service")
        }
        self._actions: dict[type[Any], Callable[[Any], None]] = {
            Opened: self._opened,
            Arrived: self._arrived,
            Received: self._received,
            Flooded: self._flooded,
            Drained: lambda what: self.arrivals.drained(what.sid),
            Closed: self._closed,
        }

    def on_engine(self, batch: list[EngineEvent]) -> None:
        """Take in what happened on the connections since the last turn of the hub."""
        for what in batch:
            try:
                self._actions[type(what)](what)
            except Exception:
                # A fault of ours costs the connection it is about, not the rest of the batch.
                event(logger, "engine_event_failed", level=logging.ERROR, exc_info=True)
                for sid in what.sids if isinstance(what, Arrived) else [what.sid]:
                    session = self.summon(sid)
                    if session is not None:
                        self.end(session, codes.INTERNAL_ERROR, "a fault of ours")
                    else:  # it was not let in yet
                        self.engine.close(sid, codes.INTERNAL_ERROR.code, "a fault of ours")

    # -- coming and going -------------------------------------------------------------------------

    def _opened(self, what: Opened) -> None:
        try:
            self._enter(what.sid, what.request)
        except Refused as refusal:
            self.engine.close(what.sid, refusal.code.code, refusal.reason)

    def _enter(self, sid: int, request: Request) -> None:
        gateway = self.config.gateway
        check_origin(request, self.config.server.origins)
        wish = wish_of(request, gateway.backlog_default, gateway.backlog_max)
        claims = claims_of(wish, self.verifier.check)
        if wish.offset is None:
            wish = self._shared(wish)
        live = self.feed.watch(wish.stream)
        session = Session(sid, self.prefix, wish, claims, live)
        self.sessions[sid] = session
        self._present[wish.stream] += 1
        if claims is not None:
            self._identified(session, claims)
        self.joined(session)
        self.arrivals.enter(session)

    def _shared(self, wish: Wish) -> Wish:
        """Return an equal wish without the token, the same object for many sessions."""
        wish = wish.kept()
        found = self._wishes.get(wish)
        if found is None:
            if len(self._wishes) >= WISHES:
                self._wishes.clear()
            found = self._wishes[wish] = wish
        return found

    def _identified(self, session: Session, claims: Claims) -> None:
        """Know whose session it is: to find it by its user, and to end it with its token."""
        stream, sid = session.wish.stream, session.sid
        users = self._users.setdefault(stream, {})
        known = users.get(claims.sub)
        if known is None:
            users[claims.sub] = session  # most users have one session
        elif isinstance(known, list):
            known.append(session)
        else:
            users[claims.sub] = [known, session]
        if claims.expires is not None:
            self._next_expiry = min(self._next_expiry, claims.expires)
        if claims.role == "service":
            self._serving[stream] += 1
            self.engine.exempt(sid)

    def _arrived(self, what: Arrived) -> None:
        """Let plain viewers in who ask for the same."""
        gateway = self.config.gateway
        try:
            check_origin(what.request, self.config.server.origins)
            wish = wish_of(what.request, gateway.backlog_default, gateway.backlog_max)
        except Refused as refusal:
            for sid in what.sids:
                self.engine.close(sid, refusal.code.code, refusal.reason)
            return
        live = self.feed.watch(wish.stream)
        if not live.ready or not (self.config.streams.open or live.standing.opened):
            for sid in what.sids:
                self._opened(Opened(sid, what.request))
            return
        full: list[int] = []
        try:
            full = self.arrivals.admit(what.sids, wish, live, self.prefix)
        finally:
            # Who has gone meanwhile is in no audience, and will be told of as one of nobody's.
            joined = [sid for sid in what.sids if self.engine.audience_of(sid)]
            self._present[wish.stream] += len(joined) + len(full)
            self.crowd[wish.stream] += len(joined)
            self._empty(wish.stream)
        for sid in full:
            session = self.sessions[sid] = Session(sid, self.prefix, wish, None, live)
            session.lags_from = live.sent
        self.crowd_joined(wish.stream, [name_of(self.prefix, sid) for sid in joined + full])

    def summon(self, sid: int) -> Session | None:
        """Return a session, made anew for a plain viewer; None for one that is gone."""
        session = self.sessions.get(sid)
        if session is not None:
            return session
        key = self.ticker.audiences.key(self.engine.audience_of(sid))
        if key is None:
            return None
        live = self.feed.live[key.stream]
        session = self.sessions[sid] = Session.member(sid, self.prefix, key, live)
        self.crowd[key.stream] -= 1
        return session

    def settled(self, session: Session) -> None:
        """A session is live."""
        claims = session.claims
        if claims is not None and claims.sub not in session.live.standing.bans:
            self.engine.reacts(session.sid, self.counter(session.wish.stream))
        self.dismiss(session)

    def dismiss(self, session: Session) -> None:
        """Leave a viewer to the engine, if nothing need be known of it here."""
        sid = session.sid
        # One that has gone meanwhile is told of as nobody's unless it is known here.
        if session.plain and sid in self.sessions and self.engine.audience_of(sid):
            del self.sessions[sid]
            self.crowd[session.wish.stream] += 1

    def _closed(self, what: Closed) -> None:
        self.ticker.figures.closed[what.code] += 1
        session = self.sessions.pop(what.sid, None)
        if session is not None:
            stream = session.wish.stream
            self.left(session)
            self._unidentified(session)
            self.arrivals.forget(what.sid, stream)
        else:
            key = self.ticker.audiences.key(what.audience)
            if key is None:
                return  # it was refused, and never one of ours
            stream = key.stream
            self.crowd[stream] -= 1
        self._present[stream] -= 1
        self._empty(stream)

    def _empty(self, stream: str) -> None:
        """Let go of a stream if nobody is on it."""
        if self._present[stream]:
            return
        for counts in (self._present, self._serving, self.crowd):
            counts.pop(stream, None)
        self._users.pop(stream, None)
        self.ticker.audiences.forget(stream)
        self.emptied(stream)
        self.feed.unwatch(stream)

    def _unidentified(self, session: Session) -> None:
        claims, stream = session.claims, session.wish.stream
        if claims is None:
            return
        if claims.role == "service":
            self._serving[stream] -= 1
        users = self._users.get(stream, {})
        known = users.get(claims.sub)
        if isinstance(known, list):
            known.remove(session)
            if len(known) == 1:
                users[claims.sub] = known[0]
        elif known is session:
            del users[claims.sub]

    def end(self, session: Session, code: CloseCode, reason: str) -> None:
        """Close a session with a code of the table."""
        session.ended = True
        self.engine.close(session.sid, code.code, reason)

    def expire(self, now: float) -> None:
        """Close the sessions whose token has expired (`now` in unix seconds)."""
        gone = now - self.config.auth.leeway_s
        if self._next_expiry >= gone:
            return
        # Of all sessions, at most once a second: lists by time would have to be rid of those who
        # leave before, and most do.
        soonest = math.inf
        for session in list(self.sessions.values()):
            claims = session.claims
            if claims is None or claims.expires is None or session.ended:
                continue
            if claims.expires < gone:
                self.end(session, codes.UNAUTHORIZED, "the token has expired; get a new one")
            elif claims.expires < soonest:
                soonest = claims.expires
        self._next_expiry = max(soonest, gone + 1)

    def sessions_of(self, stream: str, user_id: str) -> list[Session]:
        """Return a user's sessions on a stream."""
        known = self._users.get(stream, {}).get(user_id)
        if known is None:
            return []
        return list(known) if isinstance(known, list) else [known]

    def sanctioned(self, stream: str, sanction: Sanction) -> None:
        """Close the sessions of somebody who was banned; a timeout only stops the writing."""
        if sanction.action == "ban":
            self._banned(stream, sanction.user_id)

    def restood(self, live: Live) -> None:
        """Close the sessions of all who are banned: whose ban is new is not known."""
        for user in list(live.standing.bans):
            self._banned(live.stream, user)

    def _banned(self, stream: str, user: str) -> None:
        for session in self.sessions_of(stream, user):
            if session.claims is None or session.claims.role not in SOVEREIGN_ROLES:
                self.end(session, codes.FORBIDDEN, "you are banned from this stream")

    def broken(self, stream: str) -> None:
        """Close a stream's sessions after a fault of ours: they come back and resume."""
        for session in self._everybody(stream):
            self.end(session, codes.INTERNAL_ERROR, "a fault of ours; connect again")

    def _everybody(self, stream: str) -> list[Session]:
        """Return all sessions of a stream, plain viewers summoned."""
        for _, number in self.ticker.audiences.of(stream):
            for sid in self.engine.sids(number):
                self.summon(sid)
        return [found for found in self.sessions.values() if found.wish.stream == stream]

    def watching(self) -> dict[str, int]:
        """Return how many sessions watch each stream; services work, they do not watch."""
        return {
            stream: count - self._serving.get(stream, 0) for stream, count in self._present.items()
        }

    @property
    def count(self) -> int:
        """How many sessions there are, of all streams and kinds."""
        return len(self.sessions) + self.crowd.total()

    def plain_names(self) -> Iterator[tuple[str, list[str]]]:
        """Return the names of plain viewers, by stream."""
        for stream in list(self.crowd):
            for _, number in self.ticker.audiences.of(stream):
                yield (
                    stream,
                    [
                        name_of(self.prefix, sid)
                        for sid in self.engine.sids(number)
                        if sid not in self.sessions
                    ],
                )

    def end_all(self, code: CloseCode, reason: str) -> None:
        """Close everybody's session."""
        for stream in list(self.crowd):
            self._everybody(stream)
        for session in list(self.sessions.values()):
            self.end(session, code, reason)

    def drain(self, seconds: float) -> None:
        """Tell everybody to connect elsewhere, spread over `seconds`."""
        for stream in list(self.crowd):
            self._everybody(stream)
        sessions = list(self.sessions.values())
        for number, session in enumerate(sessions):
            after_ms = int(1000 * seconds * number / max(1, len(sessions)))
            self.ticker.private(session, {"type": "RECONNECT", "after_ms": after_ms})

    def _welcome(
        self, live: Live, wish: Wish, claims: Claims | None, name: str, recovered: bool
    ) -> native.Object:
        user = None
        per_minute: int | None = None
        remaining: int | None = None
        now = int(time.time() * 1000)
        if claims is not None:
            user = {"id": claims.sub, "name": claims.name, "role": claims.role}
            if claims.color is not None:
                user["color"] = claims.color
            per_minute = self._per_minute[claims.role] or None
            if per_minute is not None:
                remaining = max(0, per_minute - live.used(claims.sub, now - 60_000))
        pinned = live.standing.pinned_at(now)
        return {
            "type": "WELCOME",
            "stream": live.stream,
            "epoch": live.epoch,
            "offset": wish.offset if recovered else live.sent,
            "session": name,
            "user": user,
            "mode": live.standing.mode,
            "pinned": native.pinned_object(pinned) if pinned is not None else None,
            "viewers": self.ephemeral.viewers(live.stream),
            # All kinds there are, so a client knows what to offer.
            "reactions": {**self._no_reactions, **self.ephemeral.reactions(live.stream)},
            "sampling": live.standing.ratio if live.standing.ratio < 1 else None,
            "limits": {
                "max_chars": self.config.limits.max_chars,
                "per_minute": per_minute,
                "remaining": remaining,
            },
            "ping_s": int(self.config.gateway.ping_s),
            "recovered": None if wish.offset is None else recovered,
            "server_time": now,
        }

    # -- commands ---------------------------------------------------------------------------------

    def _received(self, what: Received) -> None:
        session = self.summon(what.sid)
        if session is None or session.ended:
            return
        if isinstance(what.data, str) != (session.wish.codec == "json"):
            expected = "text" if session.wish.codec == "json" else "binary"
            reason = f"this subprotocol speaks {expected} messages"
            self.end(session, codes.UNSUPPORTED_DATA, reason)
            return
        for command in parse(what.data):
            if not self.engine.charge(session.sid):
                self._end_flood(session)
                return
            self._command(session, command)
        self.dismiss(session)

    def _flooded(self, what: Flooded) -> None:
        session = self.summon(what.sid)
        if session is not None and not session.ended:
            self._end_flood(session)

    def _end_flood(self, session: Session) -> None:
        limit = self.config.limits.commands_per_second
        self.end(session, codes.TOO_MANY_COMMANDS, f"at most {limit} commands a second")

    def _command(self, session: Session, command: Command | BadCommand) -> None:
        if isinstance(command, CommentCommand):
            self._comment(session, command)
        elif isinstance(command, ReactCommand):
            refusal = self.react(session.live, session.claims, command)
            if refusal is not None:
                self._reject(session, None, *refusal)
        elif isinstance(command, BadCommand):
            self._reject(session, command.nonce, "bad_request", command.message)
        else:
            self.ticker.private(
                session,
                {
                    "type": "PONG",
                    "position": self._position(session),
                    "server_time": int(time.time() * 1000),
                },
            )

    def _position(self, session: Session) -> int:
        """Up to where a session has got everything: what was sent, or where it lags."""
        return session.live.sent if session.lags_from is None else session.lags_from

    def _comment(self, session: Session, command: CommentCommand) -> None:
        nonce = command.nonce or secrets.token_hex(8)
        claims = session.claims
        if claims is None:
            self._reject(
                session,
                nonce,
                "read_only",
                "connect with a token to write; POST /session gives one",
            )
            return
        draft = draft_of(command, claims)
        if isinstance(draft, tuple):
            self._reject(session, nonce, *draft)
            return

        def done(answer: Answer) -> None:
            if answer.code:
                self._reject(session, nonce, answer.code, answer.message, answer.retry_after_ms)
            elif session.sid in self.sessions:
                self.ticker.private(session, ack_object(nonce, answer))

        self.link.submit(
            "COMMENT",
            session.live.stream,
            draft.user.id,
            claims.role,
            nonce,
            draft,
            done,
            traits_of(claims),
        )

    def _reject(
        self,
        session: Session,
        nonce: str | None,
        code: str,
        message: str,
        retry_after_ms: int | None = None,
    ) -> None:
        if session.sid not in self.sessions:
            return
        rejected: native.Object = {
            "type": "REJECTED", "nonce": nonce, "code": code, "message": message,
        }  # fmt: skip
        if retry_after_ms is not None:
            rejected["retry_after_ms"] = retry_after_ms
        self.ticker.private(session, rejected)


def draft_of(command: CommentCommand, claims: Claims) -> Draft | tuple[str, str]:
    """Return what goes to ingest, or (code, message) of the refusal."""
    if claims.role != "service" and (command.user is not None or command.ts is not None):
        return "not_allowed", "only a service may name the author or the time"
    reply_to = None
    if command.reply_to is not None:
        try:
            reply_to = ids.from_text(command.reply_to)
        except ValueError:
            return "bad_request", "reply_to is no comment id"
    user = command.user.user() if command.user is not None else claims.user()
    return Draft(user, command.text, reply_to, command.ts)


def traits_of(claims: Claims) -> Traits:
    """Return what modes ask of a token."""
    return Traits(claims.follows_since, claims.subscriber, claims.created_at)


def ack_object(nonce: str, answer: Answer) -> native.Object:
    """Return the ACK of an accepted comment."""
    limit = None
    if answer.remaining is not None:
        limit = {"remaining": answer.remaining, "reset_ms": answer.reset_ms}
    return {
        "type": "ACK",
        "nonce": nonce,
        "id": ids.to_text(answer.id),
        "offset": answer.offset,
        "shown": native.SHOWN_WORDS[answer.shown],
        "limit": limit,
    }
