"""Streams over REST: which there are, what stands in one, its figures over time, all of it."""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gateway.dialects import native
from gateway.http.routes import Route
from gateway.http.wire import HttpRequest, Problem, Response, StartResponse
from uproar import mode as modes
from uproar.logs import event
from uproar.state import StateLost
from uproar.store import Place, Reader, StoredComment, StoreUnavailable

if TYPE_CHECKING:
    from gateway.http.app import Api

logger = logging.getLogger(__name__)

PAGE: Final = 1000  # comments of an export that are in memory at a time
BUCKETS: Final = 1000  # of one answer
BUCKET: Final = re.compile(r"([0-9]{1,6})(s|m|h)")
UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000}
SPAN_BUCKETS: Final = 360  # where no window is asked for: an hour of 10 s
LATEST_MS: Final = (1 << 53) - 1

_encode = msgspec.json.Encoder().encode


class Lines(Response):
    """A response that is sent as it is made; its length is not known before."""

    lines: Iterable[bytes] = ()

    def send(self, start_response: StartResponse, *, head: bool = False) -> Iterable[bytes]:
        """Answer a WSGI request with it; `head` leaves the body away."""
        line = f"{self.status} {HTTPStatus(self.status).phrase}"
        headers = [
            ("X-Content-Type-Options", "nosniff"), ("Content-Type", self.content_type),
            *self.headers,
        ]  # fmt: skip
        start_response(line, headers)
        return [] if head else self.lines


class Streams:
    """The routes of everybody."""

    def __init__(self, api: Api) -> None:
        self.api = api
        stream = "/stream/{stream}"
        self.routes: list[Route] = [
            ("GET", "/streams", self._active),
            ("GET", stream, self._stream),
            ("GET", f"{stream}/mode", self._mode),
            ("GET", f"{stream}/stats", self._stats),
            ("GET", f"{stream}/export", self._export),
        ]

    def _active(self, request: HttpRequest) -> Response:
        limit = request.number("limit", 100, 1, 1000) or 100
        try:
            active = self.api.feed.state.active_streams(time.time())
        except StateLost as error:
            raise Problem.away(error) from error
        shown = [
            {
                "id": found.stream, "title": found.title, "viewers": found.viewers,
                "connections": found.connections, "started_at": found.started_at,
            }
            for found in active[:limit]
        ]  # fmt: skip
        return Response.json({"streams": shown})

    def _stream(self, request: HttpRequest, stream: str) -> Response:
        stream = self.api.known(stream)
        if "text/html" in request.header("accept"):
            page = self.api.pages.get("stream.html")
            page.headers = [*page.headers, ("Vary", "Accept")]
            return page
        response = Response.json(self._info(stream))
        response.headers = [*response.headers, ("Vary", "Accept")]
        return response

    def _info(self, stream: str) -> dict[str, Any]:
        live = self.api.feed.live.get(stream)
        now_ms = time.time_ns() // 1_000_000
        if live is not None and live.ready:
            standing = live.standing
            late = takewhile(lambda found: found.ts > now_ms - 10_000, live.newest())
            rate = sum(1 for _ in late) / 10
        else:
            standing, rate = self.api.standing(stream), 0.0
        try:
            state = self.api.feed.state
            viewers = state.viewers([stream], time.time())[0]
            connections = state.connections([stream])[0]
            reactions = state.reactions([stream])[0]
        except StateLost as error:
            raise Problem.away(error) from error
        pinned = standing.pinned_at(now_ms)
        return {
            "id": stream,
            "title": standing.title,
            "viewers": viewers,
            "connections": connections,
            "reactions": reactions,
            "pinned": native.pinned_object(pinned) if pinned is not None else None,
            "mode": modes.full(standing.mode),
            "rate": rate,
            "sample_ratio": standing.ratio if standing.ratio < 1 else None,
            "started_at": standing.started_at,
            "ended": standing.ended,
        }

    def _mode(self, request: HttpRequest, stream: str) -> Response:
        stream = self.api.known(stream)
        return Response.json(modes.full(self.api.standing(stream).mode))

    def _stats(self, request: HttpRequest, stream: str) -> Response:
        reader = self.api.reader(request, stream)
        stream = self.api.known(stream)
        bucket_ms = _bucket_ms(request.one("bucket"))
        from_ms = request.number("from_ms", None, 0, LATEST_MS)
        to_ms = request.number("to_ms", None, 0, LATEST_MS)
        if to_ms is None:
            now_ms = time.time_ns() // 1_000_000
            to_ms = now_ms // bucket_ms * bucket_ms + bucket_ms
            if from_ms is not None and from_ms >= to_ms:
                to_ms = from_ms
        if from_ms is None:
            from_ms = max(0, to_ms - SPAN_BUCKETS * bucket_ms)
        if from_ms > to_ms:
            raise Problem(400, "bad_request", "from_ms must not be above to_ms")
        count = -(-(to_ms - from_ms) // bucket_ms)
        if count > BUCKETS:
            detail = f"{count} buckets, at most {BUCKETS}: take longer ones or a shorter window"
            raise Problem(400, "bad_request", detail)
        self.api.await_archive(stream)
        stats = functools.partial(self.api.store.stats, reader=reader)
        found = {item.ts: item for item in self.api.read(stats, stream, from_ms, to_ms, bucket_ms)}
        buckets = []
        for ts in range(from_ms, to_ms, bucket_ms):
            item = found.get(ts)
            comments, authors, deletions = item[1:] if item is not None else (0, 0, 0)
            buckets.append(
                {"ts": ts, "comments": comments, "authors": authors, "deletions": deletions}
            )
        return Response.json(
            {
                "from_ms": from_ms, "to_ms": to_ms, "bucket_ms": bucket_ms, "buckets": buckets,
                **self._now(stream),
            }
        )  # fmt: skip

    def _now(self, stream: str) -> dict[str, Any]:
        """What has no history: totals as they are now, null where STATE does not answer."""
        try:
            state = self.api.feed.state
            return {
                "reactions": state.reactions([stream])[0],
                "viewers": state.viewers([stream], time.time())[0],
            }
        except StateLost:
            return {"reactions": None, "viewers": None}

    def _export(self, request: HttpRequest, stream: str) -> Response:
        reader = self.api.reader(request, stream)
        stream = self.api.known(stream)
        self.api.await_archive(stream)
        newest = functools.partial(self.api.store.newest, reader=reader)
        last: list[StoredComment] = self.api.read(newest, stream, 1)
        response = Lines(200, b"", "application/x-ndjson", [("Cache-Control", "no-store")])
        if last:
            end = Place(last[0].era, last[0].event.offset)
            response.lines = self._lines(stream, reader, end)
        return response

    def _lines(self, stream: str, reader: Reader, end: Place) -> Iterator[bytes]:
        """Yield pages of lines up to `end`: what comes while we send is for the next export."""
        after = Place(0, 0)
        oldest: Callable[..., Any] = functools.partial(self.api.store.oldest, reader=reader)
        while after < end:
            try:
                rows: list[StoredComment] = self.api.in_pool(oldest, stream, PAGE, after)
            except StoreUnavailable as error:
                # The head is out: a body that breaks off is all that can be said.
                event(logger, "export_broken", level=logging.WARNING, why=str(error))
                raise
            rows = [row for row in rows if (row.era, row.event.offset) <= end]
            if not rows:
                return
            after = Place(rows[-1].era, rows[-1].event.offset)
            yield b"".join(_encode(self.api.shown(row, reader)) + b"\n" for row in rows)


def _bucket_ms(text: str | None) -> int:
    found = BUCKET.fullmatch("10s" if text is None else text)
    bucket_ms = int(found[1]) * UNITS_MS[found[2]] if found is not None else 0
    if not 1000 <= bucket_ms <= 86_400_000:
        raise Problem(400, "bad_request", "bucket must be 1s to 86400s, such as 10s, 5m or 1h")
    return bucket_ms
