"""The REST API: routes, who may call them, and what they do (DESIGN section 9)."""

from __future__ import annotations

import functools
import logging
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import gevent
import msgspec
from gevent.event import AsyncResult

from gateway.commands import CommentCommand
from gateway.dialects import native
from gateway.feed import Feed
from gateway.http import openapi
from gateway.http.events import Events
from gateway.http.moderating import Acts
from gateway.http.pages import Pages
from gateway.http.routes import Nonce, Route, pattern_of
from gateway.http.streams import LATEST_MS, Streams
from gateway.http.wire import HttpRequest, Problem, Response, StartResponse
from gateway.session import STREAM_ID
from gateway.viewers import draft_of, traits_of
from uproar import ids
from uproar.auth import AuthError, Claims, Verifier, make_token, printable
from uproar.config import Config
from uproar.ipc import Answer, IngestLink
from uproar.logs import event
from uproar.standing import Standing, standing_of
from uproar.state import StateLost
from uproar.store import ANYBODY, Place, Reader, Store, StoredComment, StoreUnavailable

logger = logging.getLogger(__name__)

ARCHIVE_S = 0.5  # for history to reach what was acknowledged before the request
PUBLISH_S = 0.5  # for all gateways to learn of an offset before it is acknowledged
LOOK_S = 0.005
ARRAY_MAX = 500
OPENED_MAX = 100_000
ALLOWED_HEADERS = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID"
CURSOR = re.compile(r"([0-9]{1,9})-([0-9]{1,16})")  # (era, offset): both fit the store's integers


class PostedComment(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /stream/{id}/comments; the same fields as the COMMENT command."""

    text: str
    nonce: Nonce | None = None
    reply_to: str | None = None
    user: dict[str, Any] | None = None
    ts: int | None = None


class NewSession(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /session."""

    name: str


class Guests:
    """Guest tokens per address and minute."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._seen: OrderedDict[str, list[float]] = OrderedDict()

    def admit(self, address: str, now: float) -> float:
        """Return 0, or the seconds to wait."""
        times = [at for at in self._seen.pop(address, []) if at > now - 60]
        self._seen[address] = times
        while len(self._seen) > 10_000:
            self._seen.popitem(last=False)
        if len(times) >= self._per_minute:
            return times[0] + 60 - now
        times.append(now)
        return 0.0


class Api:
    """The WSGI application of a gateway."""

    def __init__(
        self,
        config: Config,
        key: bytes,
        verifier: Verifier,
        feed: Feed,
        link: IngestLink,
        viewer_count: Callable[[str], int | None],
        in_pool: Callable[..., Any],
        in_thread: Callable[..., Any],
    ) -> None:
        self.in_pool = in_pool  # runs a store call, one that blocks on a thread of REST's own
        self.in_thread = in_thread  # runs what computes for long
        self.config = config
        self.key = key
        self.verifier = verifier
        self.feed = feed
        self.link = link
        self.viewer_count = viewer_count
        self.pages = Pages(config.server.origins)
        self.guests = Guests(config.auth.guests_per_minute)
        self.acknowledged: dict[int, int] = {}  # the newest offset of each partition, by us
        self._opened: set[str] = set()  # streams known to exist, where not every id does
        self.streams = Streams(self)
        self.acts = Acts(self)
        self.events = Events(self)
        self.routes: list[Route] = [
            ("GET", "/", lambda request: self.pages.get("index.html")),
            ("GET", "/assets/{name}", self._asset),
            ("GET", "/openapi.json", lambda request: Response.json(openapi.DOCUMENT)),
            ("POST", "/session", self._session),
            ("GET", "/stream/{stream}/comments", self._history),
            ("POST", "/stream/{stream}/comments", self._post),
            *self.streams.routes,
            *self.acts.routes,
            *self.events.routes,
        ]
        self._routes = [(verb, pattern_of(path), handler) for verb, path, handler in self.routes]

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        try:
            response = self._answer(HttpRequest(environ, self.config.limits.body_bytes))
        except Problem as problem:
            response = problem.response()
        except StoreUnavailable as error:  # or no thread was free for what `in_thread` runs
            response = Problem.away(error).response()
        except Exception:
            event(logger, "request_failed", level=logging.ERROR, exc_info=True)
            response = Problem(500, "internal_error", "a fault of ours; it is logged").response()
        response.headers = [*response.headers, *self._cors(environ.get("HTTP_ORIGIN", ""))]
        return response.send(start_response, head=environ["REQUEST_METHOD"] == "HEAD")

    def _answer(self, request: HttpRequest) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        allowed = []
        for verb, pattern, handler in self._routes:
            found = pattern.fullmatch(request.path)
            if found is None:
                continue
            if verb != method:
                allowed.append(verb)
                continue
            return handler(request, **found.groupdict())
        if allowed and method == "OPTIONS":
            return Response(204, b"", headers=[("Allow", ", ".join(allowed))])
        if allowed:
            refusal = Problem(405, "not_allowed", f"{method} is not served here").response()
            refusal.headers = [*refusal.headers, ("Allow", ", ".join(allowed))]
            return refusal
        raise Problem(404, "not_found", "there is nothing at this path")

    def _cors(self, origin: str) -> list[tuple[str, str]]:
        if not origin or (self.config.server.origins and origin not in self.config.server.origins):
            return []
        return [
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Allow-Headers", ALLOWED_HEADERS),
            ("Access-Control-Allow-Methods", "GET, POST, DELETE, PATCH, PUT"),
            ("Access-Control-Expose-Headers", "Retry-After"),
            ("Vary", "Origin"),
        ]

    # -- pages and guests -------------------------------------------------------------------------

    def _asset(self, request: HttpRequest, name: str) -> Response:
        return self.pages.get(name)

    def _session(self, request: HttpRequest) -> Response:
        if not self.config.auth.guests:
            raise Problem(403, "not_allowed", "guests are not let in here (auth.guests)")
        wait_s = self.guests.admit(request.address, time.monotonic())
        if wait_s:
            raise Problem(
                429, "rate_limited", "too many guests from this address; try again later",
                retry_after_ms=int(wait_s * 1000) + 1,
            )  # fmt: skip
        name = request.body(NewSession).name.strip()
        if not 1 <= len(name) <= 40 or not printable(name) or not name.isprintable():
            raise Problem(422, "bad_request", "a name has 1 to 40 printable characters")
        sub = f"guest-{secrets.token_hex(6)}"
        ttl_s = self.config.auth.guest_ttl_s
        token = make_token(self.key, sub=sub, name=name, ttl_s=ttl_s)
        host = request.header("host") or f"{self.config.server.host}:{self.config.server.port}"
        scheme = "wss" if request.scheme == "https" else "ws"
        return Response.json(
            {
                "token": token,
                "user": {"id": sub, "name": name, "role": "viewer"},
                "ws_url": f"{scheme}://{host}/stream/",
                "expires": int(time.time() + ttl_s),
                "reconnect": {"base_ms": 250, "max_ms": 10_000, "jitter": "full"},
            },
            201,
        )

    def _history(self, request: HttpRequest, stream: str) -> Response:
        reader = self.reader(request, stream)
        stream = self.known(stream)
        limit = request.number("limit", 50, 1, 1000) or 50
        from_ms = request.number("from_ms", None, 0, LATEST_MS)
        to_ms = request.number("to_ms", None, 0, LATEST_MS)
        before, after = request.one("before"), request.one("after")
        if before is not None and after is not None:
            raise Problem(400, "bad_request", "take before or after, not both")
        if before is not None and (from_ms is not None or to_ms is not None):
            raise Problem(400, "bad_request", "a window goes forward: take after, not before")
        if before is None:
            self.await_archive(stream)
        text = before if before is not None else after
        place = self.place(stream, text) if text is not None else None
        store = self.store
        if from_ms is not None or to_ms is not None:
            end = to_ms if to_ms is not None else LATEST_MS
            window = functools.partial(store.window, reader=reader)
            rows = self.read(window, stream, from_ms or 0, end, limit, place)
        elif after is not None:
            rows = self.read(functools.partial(store.oldest, reader=reader), stream, limit, place)
        else:
            rows = self.read(functools.partial(store.newest, reader=reader), stream, limit, place)
        cursor = f"{rows[-1].era}-{rows[-1].event.offset}" if len(rows) == limit else None
        if after is not None and from_ms is None and to_ms is None:
            rows = list(reversed(rows))
        shown = [self.shown(row, reader) for row in rows]
        return Response.json({"comments": shown, "next": cursor})

    def acknowledge(self, stream: str, offset: int) -> None:
        """Remember that this gateway has acknowledged an offset."""
        partition = self.feed.partition(stream)
        self.acknowledged[partition] = max(self.acknowledged.get(partition, 0), offset)

    def await_archive(self, stream: str) -> None:
        """Let history come up to what was acknowledged or shown before this request, briefly."""
        until = time.monotonic() + ARCHIVE_S
        try:
            known = self.feed.last(stream)
            acknowledged = self.acknowledged.get(self.feed.partition(stream), 0)
            while known is not None and time.monotonic() < until:
                stored = self.in_pool(self.feed.store.position, known[1])
                if stored >= max(known[0], acknowledged):
                    return
                gevent.sleep(0.01)
        except (StateLost, StoreUnavailable):
            return

    def await_published(self, stream: str, offset: int) -> None:
        """Hold an answer until STATE knows of its offset, briefly.

        History waits for what STATE knows of: with this, the next request finds what this one was
        told of on any gateway, not only here. What is late is acknowledged all the same.
        """
        until = time.monotonic() + PUBLISH_S
        try:
            while time.monotonic() < until:
                known = self.feed.last(stream)
                if known is None or known[0] >= offset:
                    return
                gevent.sleep(LOOK_S)
        except StateLost:
            return

    def place(self, stream: str, text: str) -> Place:
        """Return the place that a cursor or a comment id names; raises Problem."""
        found = CURSOR.fullmatch(text)
        if found is not None:
            return Place(int(found[1]), int(found[2]))
        row = self.stored(stream, self.comment_id(text))
        if row is None:
            raise Problem(404, "not_found", "this stream has no such comment")
        return Place(row.era, row.event.offset)

    # -- comments ---------------------------------------------------------------------------------

    def _post(self, request: HttpRequest, stream: str) -> Response:
        claims = self.claims(request, stream)
        stream = self.known(stream)
        posted = request.body(PostedComment | list[msgspec.Raw])
        if isinstance(posted, PostedComment):
            answer = self._submit(stream, claims, posted).get()
            if answer.code:
                raise Problem.rejected(answer.code, answer.message, answer.retry_after_ms)
            self.await_published(stream, answer.offset)
            return Response.json(self._accepted(stream, answer), 201)
        if len(posted) > ARRAY_MAX:
            raise Problem(413, "too_big", f"at most {ARRAY_MAX} comments in one request")
        # One bad item costs itself only, as in an array of commands.
        waiting = [self._submit_raw(stream, claims, raw) for raw in posted]
        results = []
        for nonce, result in waiting:
            answer = result.get()
            shown = self._accepted(stream, answer) if not answer.code else _refused(answer)
            results.append({"nonce": nonce, **shown})
        newest = max((result.get("offset", 0) for result in results), default=0)
        self.await_published(stream, newest)
        refused = any("code" in result for result in results)
        return Response.json(results, 207 if refused else 201)

    def _submit_raw(
        self, stream: str, claims: Claims, raw: msgspec.Raw
    ) -> tuple[str | None, AsyncResult]:
        try:
            posted = msgspec.json.decode(raw, type=PostedComment)
        except (msgspec.DecodeError, RecursionError) as error:
            result = AsyncResult()
            result.set(Answer(0, "bad_request", message=str(error).replace("`", "")))
            return None, result
        return posted.nonce, self._submit(stream, claims, posted)

    def _submit(self, stream: str, claims: Claims, posted: PostedComment) -> AsyncResult:
        """Hand a comment to ingest; the result is an Answer, by the link's deadline at last."""
        result = AsyncResult()
        fields = {k: v for k, v in msgspec.to_builtins(posted).items() if v is not None}
        try:
            command = msgspec.convert({"type": "COMMENT", **fields}, CommentCommand)
        except msgspec.ValidationError as error:
            result.set(Answer(0, "bad_request", message=str(error).replace("`", "")))
            return result
        draft = draft_of(command, claims)
        if isinstance(draft, tuple):
            result.set(Answer(0, draft[0], message=draft[1]))
            return result
        self.link.submit(
            "COMMENT",
            stream,
            draft.user.id,
            claims.role,
            command.nonce or secrets.token_hex(8),
            draft,
            result.set,
            traits_of(claims),
        )
        return result

    def _accepted(self, stream: str, answer: Answer) -> dict[str, Any]:
        self.acknowledge(stream, answer.offset)
        return {
            "id": ids.to_text(answer.id),
            "offset": answer.offset,
            "shown": native.SHOWN_WORDS[answer.shown],
        }

    # -- for the routes of all modules ------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The store; its calls block, so they go through `read`."""
        return self.feed.store

    def read(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a call of the store's returns; raises Problem."""
        try:
            return self.in_pool(call, *arguments)
        except StoreUnavailable as error:
            raise Problem.away(error) from error

    def stored(self, stream: str, comment_id: bytes) -> StoredComment | None:
        """Return a comment of the archive, deleted or not; raises Problem."""
        row: StoredComment | None = self.read(self.store.comment, stream, comment_id)
        return row

    def standing(self, stream: str) -> Standing:
        """Return what stands in a stream, with all that was acknowledged; raises Problem."""
        self.await_archive(stream)
        return standing_of(self.read(self.store.standing, stream))

    def shown(self, row: StoredComment, reader: Reader) -> dict[str, Any]:
        """Return a comment as history shows it."""
        shown = native.comment_object(row.event, moderator=reader.moderator)
        del shown["type"]
        return shown

    # -- who and what -----------------------------------------------------------------------------

    def well_formed(self, stream: str, status: int = 404) -> None:
        """Refuse what is no stream id; raises Problem."""
        if not STREAM_ID.fullmatch(stream):
            code = "unknown_stream" if status == 404 else "bad_request"
            raise Problem(status, code, "a stream id has 1 to 64 of a-z 0-9 _ -")

    def known(self, stream: str) -> str:
        """Return the id of a stream that exists; raises Problem."""
        self.well_formed(stream)
        if self.config.streams.open or stream in self._opened:
            return stream
        live = self.feed.live.get(stream)
        standing = live.standing if live is not None and live.ready else None
        if standing is None or not standing.opened:
            standing = self.standing(stream)
        if not standing.opened:
            raise Problem(404, "unknown_stream", "there is no such stream; POST /stream opens one")
        if len(self._opened) >= OPENED_MAX:
            self._opened.clear()
        self._opened.add(stream)  # a stream that was opened once exists for good
        return stream

    def holder(self, request: HttpRequest) -> Claims:
        """Return whose request it is; raises Problem."""
        scheme, _, token = request.header("authorization").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else request.one("access_token") or ""
        if not token:
            raise Problem(401, "read_only", "send a token: Authorization: Bearer …")
        try:
            return self.verifier.check(token)
        except AuthError as error:
            raise Problem(401, "unauthorized", str(error)) from error

    def claims(self, request: HttpRequest, stream: str) -> Claims:
        """Return whose request it is, when it is good for a stream; raises Problem."""
        claims = self.holder(request)
        if not claims.allows(stream):
            raise Problem(403, "not_allowed", "this token is for other streams")
        return claims

    def reader(self, request: HttpRequest, stream: str) -> Reader:
        """Return for whom history is read: anybody without a token; raises Problem."""
        if not request.header("authorization") and not request.one("access_token"):
            return ANYBODY
        claims = self.claims(request, stream)
        return Reader(claims.sub, claims.moderates)

    def comment_id(self, text: str) -> bytes:
        """Return the id that a text is; raises Problem."""
        try:
            return ids.from_text(text)
        except ValueError:
            raise Problem(404, "not_found", "this is no comment id") from None


def _refused(answer: Answer) -> dict[str, Any]:
    refused: dict[str, Any] = {"code": answer.code, "message": answer.message}
    if answer.retry_after_ms is not None:
        refused["retry_after_ms"] = answer.retry_after_ms
    return refused
