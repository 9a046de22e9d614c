"""Viewers: sessions from handshake to end. Who may come in, where they begin, what they ask for."""

from __future__ import annotations

import heapq
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from gateway.arrivals import Arrivals
from gateway.commands import BadCommand, Command, CommentCommand, ReactCommand, parse
from gateway.dialects import native
from gateway.engine import Closed, Drained, Engine, EngineEvent, Opened, Pinged, Received, Request
from gateway.ephemeral import Ephemeral
from gateway.feed import Feed
from gateway.live import Live
from gateway.session import Refused, Session, SessionNames, check_origin, claims_of, wish_of
from gateway.tick import Ticker
from uproar import codes, ids
from uproar.auth import Claims, Verifier
from uproar.codes import CloseCode
from uproar.config import Config
from uproar.events import SOVEREIGN_ROLES, Sanction
from uproar.ipc import Answer, Draft, IngestLink, Traits
from uproar.logs import event

logger = logging.getLogger(__name__)


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
        self.left: Callable[[Session], None]
        self.sessions: dict[int, Session] = {}
        self.by_stream: dict[str, set[int]] = {}
        self._no_reactions = dict.fromkeys(config.reactions.kinds, 0)
        self._by_user: dict[tuple[str, str], set[int]] = {}
        self.names = SessionNames(gateway, secrets.token_hex(3))
        self.arrivals = Arrivals(config, feed, ticker, self.sessions, self._welcome, self.end)
        self._expiries: list[tuple[int, int]] = []  # heap: (unix s, sid)
        self._per_minute: dict[str, int] = {
            role: getattr(config.limits.per_minute, role)
            for role in ("viewer", "vip", "moderator", "broadcaster", "service")
        }
        self._actions: dict[type[Any], Callable[[Any], None]] = {
            Opened: self._opened,
            Received: self._received,
            Pinged: self._pinged,
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
                self.engine.close(what.sid, codes.INTERNAL_ERROR.code, "a fault of ours")

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
        live = self.feed.watch(wish.stream)
        session = Session(sid, self.names.next(), wish, claims, live)
        self.sessions[sid] = session
        self.by_stream.setdefault(wish.stream, set()).add(sid)
        self.joined(session)
        if claims is not None:
            self._by_user.setdefault((wish.stream, claims.sub), set()).add(sid)
        if claims is not None and claims.expires is not None:
            heapq.heappush(self._expiries, (claims.expires, sid))
            if len(self._expiries) > 2 * len(self.sessions) + 1000:
                # Those who left long before their token does.
                self._expiries = [e for e in self._expiries if e[1] in self.sessions]
                heapq.heapify(self._expiries)
        self.arrivals.enter(session)

    def _closed(self, what: Closed) -> None:
        session = self.sessions.pop(what.sid, None)
        if session is None:
            return
        stream = session.live.stream
        self.left(session)
        if session.claims is not None:
            mine = self._by_user.get((stream, session.claims.sub), set())
            mine.discard(what.sid)
            if not mine:
                self._by_user.pop((stream, session.claims.sub), None)
        members = self.by_stream.get(stream, set())
        members.discard(what.sid)
        self.arrivals.forget(what.sid, stream)
        if not members:
            self.by_stream.pop(stream, None)
            self.ticker.audiences.forget(stream)
            self.feed.unwatch(stream)

    def end(self, session: Session, code: CloseCode, reason: str) -> None:
        """Close a session with a code of the table."""
        session.ended = True
        self.engine.close(session.sid, code.code, reason)

    def expire(self, now: float) -> None:
        """Close the sessions whose token has expired (`now` in unix seconds)."""
        while self._expiries and self._expiries[0][0] + self.config.auth.leeway_s < now:
            _, sid = heapq.heappop(self._expiries)
            session = self.sessions.get(sid)
            if session is not None:
                self.end(session, codes.UNAUTHORIZED, "the token has expired; get a new one")

    def sessions_of(self, stream: str, user_id: str) -> list[Session]:
        """Return a user's sessions on a stream."""
        return [self.sessions[sid] for sid in self._by_user.get((stream, user_id), ())]

    def sanctioned(self, stream: str, sanction: Sanction) -> None:
        """Close the sessions of somebody who was banned; a timeout only stops the writing."""
        if sanction.action == "ban":
            for session in self.sessions_of(stream, sanction.user_id):
                if session.claims is not None and session.claims.role in SOVEREIGN_ROLES:
                    continue
                self.end(session, codes.FORBIDDEN, "you are banned from this stream")

    def broken(self, stream: str) -> None:
        """Close a stream's sessions after a fault of ours: they come back and resume."""
        for sid in list(self.by_stream.get(stream, ())):
            self.end(self.sessions[sid], codes.INTERNAL_ERROR, "a fault of ours; connect again")

    def watching(self) -> dict[str, int]:
        """Return how many sessions watch each stream; services work, they do not watch."""
        return {
            stream: sum(not self.sessions[sid].serves for sid in sids)
            for stream, sids in self.by_stream.items()
        }

    def drain(self, seconds: float) -> None:
        """Tell everybody to connect elsewhere, spread over `seconds`."""
        sessions = list(self.sessions.values())
        for number, session in enumerate(sessions):
            after_ms = int(1000 * seconds * number / max(1, len(sessions)))
            self.ticker.private(session, {"type": "RECONNECT", "after_ms": after_ms})

    def _welcome(self, session: Session, recovered: bool) -> native.Object:
        live, claims, wish = session.live, session.claims, session.wish
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
            "session": session.name,
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
        session = self.sessions.get(what.sid)
        if session is None or session.ended:
            return
        if isinstance(what.data, str) != (session.wish.codec == "json"):
            expected = "text" if session.wish.codec == "json" else "binary"
            reason = f"this subprotocol speaks {expected} messages"
            self.end(session, codes.UNSUPPORTED_DATA, reason)
            return
        for command in parse(what.data):
            if not self._admits(session):
                return
            self._command(session, command)

    def _pinged(self, what: Pinged) -> None:
        session = self.sessions.get(what.sid)
        if session is not None and not session.ended:
            self._admits(session)

    def _admits(self, session: Session) -> bool:
        """Count one command or ping; a session that sends too many is closed."""
        limit = self.config.limits.commands_per_second
        if session.serves or session.counts_command(int(time.monotonic()), limit):
            return True
        self.end(session, codes.TOO_MANY_COMMANDS, f"at most {limit} commands a second")
        return False

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
