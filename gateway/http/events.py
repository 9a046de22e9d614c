"""GET /stream/{id}/events: who may have a stream of events, and how it begins.

What is refused is a problem object, which a client can read here, other than with a WebSocket. What
is let in becomes a session of the engine like any other (`gateway.engine.Handover`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from gateway.dialects import sse
from gateway.engine import Handover, Request
from gateway.http.routes import Route
from gateway.http.wire import HttpRequest, Problem, Response, StartResponse
from gateway.session import Refused, check_origin, claims_of, wish_of
from uproar import codes

if TYPE_CHECKING:
    from gateway.http.app import Api

_REFUSALS: Final = {
    codes.BAD_REQUEST: (400, "bad_request"),
    codes.UNAUTHORIZED: (401, "unauthorized"),
    codes.FORBIDDEN: (403, "not_allowed"),
    codes.UNKNOWN_STREAM: (404, "unknown_stream"),
}
_HEADERS: Final = ("authorization", "last-event-id", "origin")  # all that a session is made of


class Events:
    """The route of event streams."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.routes: list[Route] = [("GET", "/stream/{stream}/events", self._events)]

    def _events(self, request: HttpRequest, stream: str) -> Response:
        self.api.known(stream)
        gateway = self.api.config.gateway
        asked = Request(
            request.path,
            request.query_string,
            {name: value for name in _HEADERS if (value := request.header(name))},
            request.address,
            None,
            dialect="sse",
        )
        try:
            check_origin(asked, self.api.config.server.origins)
            wish = wish_of(asked, gateway.backlog_default, gateway.backlog_max)
            claims_of(wish, self.api.verifier.check)
        except Refused as refusal:
            raise Problem(*_REFUSALS[refusal.code], refusal.reason) from refusal
        response = EventStream(200, b"", headers=list(sse.HEADERS))
        response.request = asked
        return response


class EventStream(Response):
    """A response without an end."""

    request: Request | None = None

    def send(self, start_response: StartResponse, *, head: bool = False) -> Iterable[bytes]:
        """Answer a WSGI request with it; `head` leaves the body away."""
        start_response("200 OK", [("X-Content-Type-Options", "nosniff"), *self.headers])
        if head or self.request is None:
            return []
        return Handover(self.request, sse.greeting(random.randint(*sse.RETRY_MS)), sse.close)
