"""A session: one connection of a viewer, moderator or service to one stream."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection
from typing import Final, NamedTuple
from urllib.parse import parse_qs

from gateway.audiences import RATES, AudienceKey, sees
from gateway.dialects import native, sse
from gateway.engine import Request
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
    deflate: bool = False


class Session:
    """What the gateway knows of one connection.

    It is `joining` until its first tick, then a member of `audience`; one that lags is in none, and
    `lags_from` is the position it had.
    """

    __slots__ = (
        "audience", "claims", "commands", "ended", "joining", "lags_from", "live", "name",
        "outgoing", "second", "sid", "wish",
    )  # fmt: skip

    def __init__(self, sid: int, name: str, wish: Wish, claims: Claims | None, live: Live) -> None:
        self.sid = sid
        self.name = name
        self.wish = wish
        self.claims = claims
        self.live = live
        self.joining = True
        self.ended = False  # its close frame is out: nothing it sends counts any more
        self.audience: AudienceKey | None = None
        self.lags_from: int | None = None
        self.outgoing: list[native.Object] = []  # for this session alone, with the next tick
        self.second = 0  # the second in which `commands` were counted
        self.commands = 0

    @property
    def moderates(self) -> bool:
        """Whether it sees what only moderators see."""
        return self.claims is not None and self.claims.moderates

    @property
    def serves(self) -> bool:
        """Whether it is a backend of the platform, not a person."""
        return self.claims is not None and self.claims.role == "service"

    def key(self) -> AudienceKey:
        """The audience it belongs to when live."""
        return AudienceKey(
            self.live.stream,
            self.wish.dialect,
            self.wish.codec,
            "each" if self.wish.deflate else "none",
            self.wish.rate,
            "moderator" if self.moderates else "viewer",
        )

    def sees(self, event: Event) -> bool:
        """Whether an event is for this session: what its audience gets, and own comments."""
        if sees(self.key(), event):
            return True
        return (
            event.type == "COMMENT" and self.claims is not None and event.actor == self.claims.sub
        )

    def counts_command(self, second: int, limit: int) -> bool:
        """Count one command; False when there were more than `limit` in this second."""
        if second != self.second:
            self.second, self.commands = second, 0
        self.commands += 1
        return self.commands <= limit


def wish_of(request: Request, backlog_default: int, backlog_max: int) -> Wish:
    """Return what the handshake asks for; raises Refused."""
    found = STREAM_PATHS[request.dialect].fullmatch(request.path)
    stream = found[1] if found else ""
    if not STREAM_ID.fullmatch(stream):
        raise Refused(codes.UNKNOWN_STREAM, "connect to /stream/{id}, an id of a-z 0-9 _ -")
    try:
        query = parse_qs(request.query, keep_blank_values=True, max_num_fields=QUERY_FIELDS)
    except ValueError:
        raise Refused(codes.BAD_REQUEST, f"a query has at most {QUERY_FIELDS} parameters") from None

    def one(name: str) -> str | None:
        values = query.get(name)
        return values[-1] if values else None

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
        request.deflate,
    )


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


class SessionNames:
    """Names sessions `{gateway}-{incarnation}-{number}`: unique, and they say where one is."""

    def __init__(self, gateway: str, incarnation: str) -> None:
        self._prefix = f"{gateway}-{incarnation}-"
        self._numbers = itertools.count(1)

    def next(self) -> str:
        """Return a new name."""
        return f"{self._prefix}{next(self._numbers)}"
