"""A session: one connection of a viewer, moderator or service to one stream."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from gateway.audiences import RATES, AudienceKey, sees
from gateway.dialects import native, sse
from gateway.engine import SID_DIGITS, Request
from gateway.live import Live
from uproar import codes
from uproar.auth import AuthError, Claims
from uproar.codes import CloseCode
from uproar.events import Event

STREAM_ID: Final = re.compile(r"[a-z0-9_-]{1,64}")
STREAM_PATHS: Final = {
    "native": re.compile(r"/stream/([^/]+)"),
    "sse": re.compile(r"/stream/([^/]+)/events"),
}
QUERY_FIELDS: Final = 50


class Refused(Exception):
    """A handshake that can't be served: the close code and a sentence."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Wish(NamedTuple):
    """What a client asks for in its handshake."""

    stream: str
    codec: str
    token: str | None
    epoch: str | None
    offset: int | None
    backlog: int
    rate: str
    dialect: str = "native"
    compression: str = "none"

    def kept(self) -> Wish:
        """Return what of it a session needs once it is live; the same for many."""
        return self._replace(token=None, epoch=None, offset=None)


class Session:
    """What the gateway knows of one connection that is more than a plain viewer among others.

    It is `joining` until its WELCOME is out, then a member of `audience`; one that lags is in none,
    and `lags_from` is the position it had.
    """

    __slots__ = (
        "audience", "claims", "ended", "joining", "lags_from", "live", "outgoing", "prefix", "sid",
        "wish",
    )  # fmt: skip

    def __init__(
        self, sid: int, prefix: str, wish: Wish, claims: Claims | None, live: Live
    ) -> None:
        self.sid = sid
        self.prefix = prefix  # of the names of this process's sessions
        self.wish = wish
        self.claims = claims
        self.live = live
        self.joining = True
        self.ended = False  # its close frame is out: nothing it sends counts any more
        self.audience: AudienceKey | None = None
        self.lags_from: int | None = None
        # For this session alone, with the next tick; an empty list costs 56 bytes a session.
        self.outgoing: list[native.Object] | None = None

    @classmethod
    def member(cls, sid: int, prefix: str, key: AudienceKey, live: Live) -> Session:
        """Return a session for a plain viewer that is live in an audience."""
        wish = Wish(
            key.stream, key.codec, None, None, None, 0, key.rate, key.dialect, key.compression
        )
        session = cls(sid, prefix, wish, None, live)
        session.joining = False
        session.audience = key
        return session

    @property
    def name(self) -> str:
        """Unique, and says on which gateway it is."""
        return name_of(self.prefix, self.sid)

    @property
    def moderates(self) -> bool:
        """Whether it sees what only moderators see."""
        return self.claims is not None and self.claims.moderates

    @property
    def serves(self) -> bool:
        """Whether it is a backend of the platform, not a person."""
        return self.claims is not None and self.claims.role == "service"

    @property
    def plain(self) -> bool:
        """Whether it is a live viewer like any other, of whom nothing need be known here."""
        return (
            self.claims is None
            and self.audience is not None
            and not self.outgoing
            and not self.ended
            and self.wish.dialect == "native"
        )

    def key(self) -> AudienceKey:
        """The audience it belongs to when live."""
        wish = self.wish
        return AudienceKey(
            wish.stream,
            wish.dialect,
            wish.codec,
            wish.compression,
            wish.rate,
            "moderator" if self.moderates else "viewer",
        )

    def sees(self, event: Event) -> bool:
        """Whether an event is for this session: what its audience gets, and own comments."""
        if sees(self.key(), event):
            return True
        return (
            event.type == "COMMENT" and self.claims is not None and event.actor == self.claims.sub
        )


def name_of(prefix: str, sid: int) -> str:
    """Return a session's name; all have the same length, so an engine can write the sid in."""
    return f"{prefix}{sid:0{SID_DIGITS}x}"


def wish_of(request: Request, backlog_default: int, backlog_max: int) -> Wish:
    """Return what the handshake asks for; raises Refused."""
    found = STREAM_PATHS[request.dialect].fullmatch(request.path)
    stream = found[1] if found else ""
    if not STREAM_ID.fullmatch(stream):
        raise Refused(codes.UNKNOWN_STREAM, "connect to /stream/{id}, an id of a-z 0-9 _ -")
    query = _query(request.query)
    one = query.get

    def number(name: str, default: int | None, most: int) -> int | None:
        text = one(name)
        if text is None:
            return default
        if not text.isascii() or not text.isdigit() or len(text) > 16:
            raise Refused(codes.BAD_REQUEST, f"{name} must be a whole number")
        return min(int(text), most)

    rate = one("rate") or "all"
    if rate not in RATES:
        raise Refused(codes.BAD_REQUEST, "rate must be one of all, 50, 20, 5")
    backlog = number("backlog", backlog_default, backlog_max)
    epoch, offset = one("epoch"), number("offset", None, 1 << 53)
    last = request.headers.get("last-event-id") if request.dialect == "sse" else None
    if last:
        # It is newer than the query, which a browser sends again as it was.
        try:
            epoch, offset = sse.Place.of(last)
        except ValueError as error:
            raise Refused(codes.BAD_REQUEST, str(error)) from None
    return Wish(
        stream,
        native.codec_of(request.subprotocol),
        token_of(request, one("access_token")),
        epoch,
        offset,
        backlog if backlog is not None else backlog_default,
        rate,
        request.dialect,
        request.compression_out,
    )


def _query(text: str) -> dict[str, str]:
    """Return the parameters of a query, the last of each name; raises Refused."""
    if not text:
        return {}
    pairs = text.split("&")
    if len(pairs) > QUERY_FIELDS:
        raise Refused(codes.BAD_REQUEST, f"a query has at most {QUERY_FIELDS} parameters")
    if "%" in text or "+" in text:
        return dict(parse_qsl(text, keep_blank_values=True))
    # Nothing to decode: a fifth of the time of urllib's.
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def check_origin(request: Request, allowed: Collection[str]) -> None:
    """Let in no page of another origin than those allowed (none named: any); raises Refused."""
    origin = request.headers.get("origin")
    if allowed and origin is not None and origin not in allowed:
        raise Refused(codes.FORBIDDEN, "this origin is not among server.origins")


def token_of(request: Request, in_query: str | None) -> str | None:
    """Return the token of a handshake: header, query or subprotocol entry; None for none."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    if in_query:
        return in_query
    for entry in request.headers.get("sec-websocket-protocol", "").split(","):
        if entry.strip().startswith("uproar.token."):
            return entry.strip()[len("uproar.token.") :]
    return None


def claims_of(wish: Wish, check: Callable[[str], Claims]) -> Claims | None:
    """Return whose session it is, None for anonymous; raises Refused."""
    if wish.token is None:
        return None
    try:
        claims = check(wish.token)
    except AuthError as error:
        raise Refused(codes.UNAUTHORIZED, str(error)) from error
    if not claims.allows(wish.stream):
        raise Refused(codes.FORBIDDEN, "this token is for other streams")
    return claims
