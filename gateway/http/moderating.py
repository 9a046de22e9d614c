"""Acts: what moderators, broadcasters and services do in a stream over REST (docs/rooms.md).

Every act becomes one event in the log (ingest adds what follows from it), and is answered when it
stands there. The same act with the same nonce (`nonce` of the body, or the header Idempotency-Key)
within two minutes is done once.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import gevent
import msgspec
from gevent.event import AsyncResult
from msgspec import Meta

from gateway.dialects import native
from gateway.http.routes import NONCE, Nonce, Route
from gateway.http.wire import HttpRequest, Problem, Response, whole
from uproar import ids, kick
from uproar import mode as modes
from uproar.auth import Claims, printable
from uproar.bus import BusLost
from uproar.events import (
    SOVEREIGN_ROLES,
    Cleared,
    Comment,
    CommentDeleted,
    Event,
    HeldResolved,
    Mode,
    Pinned,
    Sanction,
    StreamEnded,
    StreamStarted,
    Terms,
    Unpinned,
    Visibility,
)
from uproar.ipc import Answer
from uproar.standing import Standing
from uproar.state import StateLost
from uproar.store import Place, StoredComment, StoredEvent
from workers.moderation.terms import TERMS, TermsError
from workers.moderation.terms import Terms as Checker

if TYPE_CHECKING:
    from gateway.http.app import Api

FRESH_MS: Final = 5000
FIND_S: Final = 0.5
LOOK_S: Final = 0.01
SANCTION_S: Final = 14 * 86_400  # the longest timeout, and the longest pin
BODY_TERMS: Final = 8 << 20  # bytes of a body with terms: 100,000 of them need more than others
TEXT_TERMS: Final = 2 << 20  # bytes of all terms together: they are one record of the log
AUDIT_TYPES: Final = frozenset(
    {
        "SANCTION", "MODE", "TERMS", "CLEARED", "COMMENT_DELETED", "COMMENT_RESTORED",
        "COMMENT_PINNED", "COMMENT_UNPINNED", "HELD_RESOLVED", "STREAM_STARTED", "STREAM_ENDED",
    }
)  # fmt: skip

Reason = Annotated[str, Meta(max_length=500)]
Seconds = Annotated[int, Meta(ge=1, le=SANCTION_S)]


class _Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    nonce: Nonce | None = None


class NewStream(_Body):
    """Body of POST /stream."""

    id: str
    title: Annotated[str, Meta(max_length=140)] = ""


class Pinning(_Body):
    """Body of POST …/pin; without `seconds` until it is unpinned."""

    comment_id: str
    seconds: Seconds | None = None


class Sanctioning(_Body):
    """Body of POST …/users/{user}/{action}; `seconds` for timeouts alone."""

    seconds: Seconds | None = None
    reason: Reason = ""


class Explained(_Body):
    """Body of acts that take a reason and no more."""

    reason: Reason = ""


class Decision(_Body):
    """Body of POST …/held/{comment}."""

    action: Literal["approve", "deny"]


class TermLists(_Body):
    """Body of PUT …/terms: the stream's lists, whole."""

    blocked: list[str]
    allowed: list[str] = []


class Acts:
    """The routes of those who moderate."""

    def __init__(self, api: Api) -> None:
        self.api = api
        stream = "/stream/{stream}"
        self.routes: list[Route] = [
            ("POST", "/stream", self._open),
            ("POST", f"{stream}/end", self._end),
            ("DELETE", f"{stream}/comments", self._clear),
            ("DELETE", f"{stream}/comments/{{comment}}", self._delete),
            ("POST", f"{stream}/comments/{{comment}}/restore", self._restore),
            ("POST", f"{stream}/pin", self._pin),
            ("DELETE", f"{stream}/pin", self._unpin),
            ("PATCH", f"{stream}/mode", self._change_mode),
            ("GET", f"{stream}/terms", self._terms),
            ("PUT", f"{stream}/terms", self._set_terms),
            ("GET", f"{stream}/held", self._held),
            ("POST", f"{stream}/held/{{comment}}", self._resolve),
            ("GET", f"{stream}/audit", self._audit),
            ("GET", f"{stream}/users/{{user}}/comments", self._by_user),
            ("POST", f"{stream}/users/{{user}}/{{action}}", self._sanction),
        ]

    # -- the stream -------------------------------------------------------------------------------

    def _open(self, request: HttpRequest) -> Response:
        claims = self.api.holder(request)
        if not claims.moderates:
            raise _not_allowed("open a stream")
        body = request.body(NewStream)
        stream = body.id
        _check_text("title", body.title)
        if not claims.allows(stream):
            raise Problem(403, "not_allowed", "this token is for other streams")
        self.api.well_formed(stream, status=400)
        standing = self.api.standing(stream)
        if standing.started_at is not None and not standing.ended:
            if body.title not in ("", standing.title):
                detail = "this stream is open under another title; end it first"
                raise Problem(409, "conflict", detail)
            return Response.json(_described(stream, standing))
        # Derived from its cause: two calls at once open the stream once.
        ended = self._last(stream, "STREAM_ENDED")
        nonce = f"open:{ended.era}-{ended.event.offset}" if ended is not None else "open"
        offset = self._act(
            request, claims, stream, "STREAM_STARTED", StreamStarted(body.title, claims.sub), nonce
        )
        standing = self.api.standing(stream)
        return Response.json({**_described(stream, standing), "offset": offset}, 201)

    def _end(self, request: HttpRequest, stream: str) -> Response:
        claims, stream = self._moderator(request, stream, "end a stream")
        standing = self.api.standing(stream)
        if standing.ended:
            raise Problem(409, "conflict", "this stream has ended already")
        offset = self._act(request, claims, stream, "STREAM_ENDED", StreamEnded(claims.sub))
        return Response.json({"id": stream, "offset": offset})

    def _last(self, stream: str, type_: str) -> StoredEvent | None:
        found: list[StoredEvent] = self.api.read(self.api.store.acts, stream, frozenset({type_}), 1)
        return found[0] if found else None

    # -- comments ---------------------------------------------------------------------------------

    def _delete(self, request: HttpRequest, stream: str, comment: str) -> Response:
        claims, stream = self._moderator(request, stream, "delete comments")
        self._find(stream, comment)
        data = CommentDeleted(self.api.comment_id(comment), claims.sub)
        offset = self._act(request, claims, stream, "COMMENT_DELETED", data)
        return Response.json({"comment_id": comment, "offset": offset})

    def _restore(self, request: HttpRequest, stream: str, comment: str) -> Response:
        claims, stream = self._moderator(request, stream, "restore comments")
        row = self._find(stream, comment)
        if row.deleted is None:
            raise Problem(409, "conflict", "this comment is not deleted")
        if row.event.visibility != Visibility.ALL:
            raise Problem(409, "conflict", "this comment was never shown; it can't be shown again")
        cleared = self._last(stream, "CLEARED")
        if cleared is not None and (row.era, row.event.offset) < (
            cleared.era, cleared.event.offset,
        ):  # fmt: skip
            raise Problem(409, "conflict", "the stream was cleared since; a clear is final")
        offset = self._act(request, claims, stream, "COMMENT_RESTORED", row.event.data)
        return Response.json({"comment_id": comment, "offset": offset})

    def _clear(self, request: HttpRequest, stream: str) -> Response:
        claims, stream = self._moderator(request, stream, "clear a stream")
        offset = self._act(request, claims, stream, "CLEARED", Cleared(claims.sub))
        return Response.json({"offset": offset})

    def _pin(self, request: HttpRequest, stream: str) -> Response:
        claims, stream = self._moderator(request, stream, "pin comments")
        body = request.body(Pinning)
        row = self._find(stream, body.comment_id)
        if row.deleted is not None:
            raise Problem(409, "conflict", "this comment is deleted")
        if row.event.visibility != Visibility.ALL:
            raise Problem(409, "conflict", "this comment is not shown to all; approve it first")
        until = None if body.seconds is None else _now_ms() + body.seconds * 1000
        data = Pinned(row.event.data, claims.sub, until)
        offset = self._act(request, claims, stream, "COMMENT_PINNED", data, body.nonce)
        return Response.json({**native.pinned_object(data), "offset": offset})

    def _unpin(self, request: HttpRequest, stream: str) -> Response:
        claims, stream = self._moderator(request, stream, "unpin comments")
        pinned = self.api.standing(stream).pinned_at(_now_ms())
        if pinned is None:
            raise Problem(404, "not_found", "nothing is pinned in this stream")
        data = Unpinned(pinned.comment.id, claims.sub)
        offset = self._act(request, claims, stream, "COMMENT_UNPINNED", data)
        return Response.json({"comment_id": ids.to_text(pinned.comment.id), "offset": offset})

    def _find(self, stream: str, comment: str) -> StoredComment:
        """Return a comment, archived or still on its way there; raises Problem.

        One of the last seconds may have been acknowledged by another gateway and be on its way to
        everything that is known here: it is waited for, briefly.
        """
        comment_id = self.api.comment_id(comment)
        fresh = _now_ms() - ids.split(comment_id)[0] < FRESH_MS
        until = time.monotonic() + (FIND_S if fresh else 0.0)
        while True:
            self.api.await_archive(stream)
            row = self.api.stored(stream, comment_id)
            if row is not None:
                return row
            live = self.api.feed.live.get(stream)
            for found in live.newest() if live is not None else ():
                if isinstance(found.data, Comment) and found.data.id == comment_id:
                    return StoredComment(0, found, None)
            if time.monotonic() >= until:
                raise Problem(404, "not_found", "this stream has no such comment")
            gevent.sleep(LOOK_S)

    # -- modes and terms --------------------------------------------------------------------------

    def _change_mode(self, request: HttpRequest, stream: str) -> Response:
        claims, stream = self._moderator(request, stream, "change the mode")
        changes = whole(request.body(dict[str, Any]))
        try:
            modes.checked(changes)
        except modes.ModeError as error:
            raise Problem(400, "bad_request", str(error)) from error
        offset = self._act(request, claims, stream, "MODE", Mode(changes, claims.sub))
        # Somebody else's change may lie behind ours: what is shown stands now.
        return Response.json({**modes.full(self.api.standing(stream).mode), "offset": offset})

    def _terms(self, request: HttpRequest, stream: str) -> Response:
        _, stream = self._moderator(request, stream, "see the terms")
        return Response.json(_listed(self.api.standing(stream).terms))

    def _set_terms(self, request: HttpRequest, stream: str) -> Response:
        claims, stream = self._moderator(request, stream, "change the terms")
        body = request.body(TermLists, most=BODY_TERMS)
        # Folding 100,000 terms takes a second: not in the hub.
        self.api.in_thread(_check_terms, body)
        data = Terms(_written(body.blocked), _written(body.allowed), claims.sub)
        offset = self._act(request, claims, stream, "TERMS", data, body.nonce)
        return Response.json({**_listed(data), "offset": offset})

    # -- people -----------------------------------------------------------------------------------

    def _sanction(self, request: HttpRequest, stream: str, user: str, action: str) -> Response:
        claims, stream = self._moderator(request, stream, "sanction others")
        user = _user_id(user)
        timeout = action == "timeout"
        body = request.body(Sanctioning, default=None if timeout else Sanctioning())
        if timeout and body.seconds is None:
            raise Problem(400, "bad_request", f"a timeout needs seconds, from 1 to {SANCTION_S}")
        if not timeout and body.seconds is not None:
            raise Problem(400, "bad_request", f"seconds: only a timeout has them, not {action}")
        _check_text("reason", body.reason)
        if claims.role == "moderator" and self._is_sovereign(stream, user):
            detail = "a moderator may not sanction a broadcaster or service"
            raise Problem(403, "not_allowed", detail)
        until = _now_ms() + body.seconds * 1000 if body.seconds is not None else None
        data = Sanction(user, action, claims.sub, body.reason, until)
        offset = self._act(request, claims, stream, "SANCTION", data, body.nonce)
        done: dict[str, Any] = {"user_id": user, "action": action, "offset": offset}
        if until is not None:
            done["until"] = until
        if action == "kick":
            try:
                feed = self.api.feed
                done["sessions"] = len(kick.kick(feed.state, feed.bus, user, stream))
            except (StateLost, BusLost) as error:
                raise Problem(503, "unavailable", f"{error}; try again") from error
        return Response.json(done)

    def _is_sovereign(self, stream: str, user: str) -> bool:
        """Whether a user was a broadcaster or service in the newest comment known here."""
        self.api.await_archive(stream)
        rows: list[StoredComment] = self.api.read(self.api.store.by_user, stream, user, 1)
        return any(row.event.data.user.role in SOVEREIGN_ROLES for row in rows)

    def _by_user(self, request: HttpRequest, stream: str, user: str) -> Response:
        _, stream = self._moderator(request, stream, "see everything that somebody wrote")
        user = _user_id(user)
        limit, before = self._page(request, stream)
        rows: list[StoredComment] = self.api.read(
            self.api.store.by_user, stream, user, limit, before
        )
        comments = []
        for row in rows:
            shown = native.comment_object(row.event, moderator=True)
            del shown["type"]
            comments.append({**shown, "deleted": row.deleted is not None})
        return Response.json({"comments": comments, "next": _cursor(rows, limit)})

    # -- what waits, and what was done ------------------------------------------------------------

    def _held(self, request: HttpRequest, stream: str) -> Response:
        _, stream = self._moderator(request, stream, "see what is held")
        limit = request.number("limit", 100, 1, 1000) or 100
        after = request.one("after")
        held = list(self.api.standing(stream).held.values())
        if after is not None:
            at = self.api.comment_id(after)
            # One that was decided since has no place any more: begin at the oldest again.
            found = next((n for n, item in enumerate(held, 1) if item.comment.id == at), 0)
            held = held[found:]
        shown = [
            {
                "comment_id": ids.to_text(item.comment.id),
                "comment": native.comment_fields(item.comment),
                "rule": item.rule, "category": item.category, "score": item.score,
                "spans": [list(span) for span in item.spans],
            }
            for item in held[:limit]
        ]  # fmt: skip
        more = shown[-1]["comment_id"] if len(held) > limit else None
        return Response.json({"held": shown, "waiting": len(held), "next": more})

    def _resolve(self, request: HttpRequest, stream: str, comment: str) -> Response:
        claims, stream = self._moderator(request, stream, "decide on held comments")
        body = request.body(Decision)
        self._find(stream, comment)
        data = HeldResolved(self.api.comment_id(comment), body.action, claims.sub)
        offset = self._act(request, claims, stream, "HELD_RESOLVED", data, body.nonce)
        return Response.json({"comment_id": comment, "action": body.action, "offset": offset})

    def _audit(self, request: HttpRequest, stream: str) -> Response:
        _, stream = self._moderator(request, stream, "see the audit list")
        limit, before = self._page(request, stream)
        rows: list[StoredEvent] = self.api.read(
            self.api.store.acts, stream, AUDIT_TYPES, limit, before
        )
        acts = [audited(row.event) for row in rows]
        return Response.json({"acts": acts, "next": _cursor(rows, limit)})

    def _page(self, request: HttpRequest, stream: str) -> tuple[int, Place | None]:
        limit = request.number("limit", 50, 1, 1000) or 50
        before = request.one("before")
        if before is None:
            self.api.await_archive(stream)
            return limit, None
        return limit, self.api.place(stream, before)

    # -- into the log -----------------------------------------------------------------------------

    def _moderator(self, request: HttpRequest, stream: str, what: str) -> tuple[Claims, str]:
        """Return who asks, when they may, and the stream; raises Problem."""
        claims = self.api.claims(request, stream)
        if not claims.moderates:
            raise _not_allowed(what)
        _check_nonce(request.header("idempotency-key"))
        return claims, self.api.known(stream)

    def _act(
        self,
        request: HttpRequest,
        claims: Claims,
        stream: str,
        type_: str,
        data: Any,
        nonce: str | None = None,
    ) -> int:
        """Log an event and return its offset, once it stands; raises Problem."""
        nonce = nonce or request.header("idempotency-key") or secrets.token_hex(8)
        result = AsyncResult()
        self.api.link.submit(type_, stream, claims.sub, claims.role, nonce, data, result.set)
        answer: Answer = result.get()
        if answer.code:
            raise Problem.rejected(answer.code, answer.message, answer.retry_after_ms)
        self.api.acknowledge(stream, answer.offset)
        self.api.await_published(stream, answer.offset)
        return answer.offset


def audited(event: Event) -> dict[str, Any]:
    """Return an act as the audit list shows it: who, when, what."""
    data = event.data
    shown = {**native.event_object(event, moderator=True), "ts": event.ts}
    shown["by"] = getattr(data, "by", "") or event.actor
    if isinstance(data, CommentDeleted) and data.reason:
        shown["reason"] = data.reason
    if isinstance(data, Terms):  # GET …/terms has them
        shown |= {"blocked": len(data.blocked), "allowed": len(data.allowed)}
    return shown


def _described(stream: str, standing: Standing) -> dict[str, Any]:
    return {"id": stream, "title": standing.title, "started_at": standing.started_at}


def _cursor(rows: list[Any], limit: int) -> str | None:
    return f"{rows[-1].era}-{rows[-1].event.offset}" if len(rows) == limit else None


def _check_terms(lists: TermLists) -> None:
    """Refuse lists that moderation could not use; raises Problem."""
    for name, terms in (("blocked", lists.blocked), ("allowed", lists.allowed)):
        if len(terms) > TERMS:
            raise Problem(400, "bad_request", f"{name}: more than {TERMS:,} terms; shorten it")
        for number, term in enumerate(terms, 1):
            if not term.isprintable():
                detail = f"{name}:{number}: control characters and line ends are refused"
                raise Problem(400, "bad_request", detail)
        try:
            Checker(terms, name)
        except TermsError as error:
            raise Problem(400, "bad_request", str(error)[:400]) from error
    size = sum(len(term.encode()) for terms in (lists.blocked, lists.allowed) for term in terms)
    if size > TEXT_TERMS:
        raise Problem(413, "too_big", f"all terms together have at most {TEXT_TERMS:,} bytes")


def _written(terms: list[str]) -> tuple[str, ...]:
    """Return the terms without blank ones and repetitions, in order."""
    return tuple(dict.fromkeys(term.strip() for term in terms if term.strip()))


def _listed(terms: Terms) -> dict[str, Any]:
    return {"blocked": list(terms.blocked), "allowed": list(terms.allowed)}


def _user_id(text: str) -> str:
    """Return a user id of a path, which WSGI hands over as Latin-1."""
    try:
        user = text.encode("latin-1").decode()
    except UnicodeError:
        raise Problem(400, "bad_request", "a user id is UTF-8") from None
    if not 1 <= len(user) <= 64 or not printable(user):
        raise Problem(400, "bad_request", "a user id has 1 to 64 characters, no controls")
    return user


def _check_nonce(nonce: str) -> None:
    if nonce and not NONCE.fullmatch(nonce):
        raise Problem(400, "bad_request", "a nonce has 1 to 64 visible ASCII characters")


def _check_text(name: str, text: str) -> None:
    if not printable(text):
        raise Problem(400, "bad_request", f"{name}: control characters are refused")


def _not_allowed(what: str) -> Problem:
    return Problem(403, "not_allowed", f"only moderators, broadcasters and services may {what}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
