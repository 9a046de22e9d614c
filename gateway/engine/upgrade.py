"""The HTTP side of the reference engine: one connection until it is a session, or is answered.

gevent-websocket does the upgrade and pywsgi the rest; around both stand our bounds (a deadline and
a size for the request head, nothing read on behind a refusal) and problem objects for refusals.
What is upgraded or handed over is the engine's from then on.
"""

from __future__ import annotations

import socket
import time
from typing import Any

import gevent
from gevent.socket import wait_read
from geventwebsocket.handler import WebSocketHandler

from gateway.engine import Handover, Request, handshake
from uproar import deflate

READ_BYTES = 65_536
HTTP_SOCKETS = 1000  # besides the WebSockets: REST, and handshakes under way
LINGER_S = 2.0  # from our last words to hanging up
LINGER_BYTES = 16 << 20  # of input after them that are read and thrown away
HTTP_WAIT_S = 30.0  # for a client to take its answer
DISCARD_BYTES = 65_536  # of a body nobody asked for, to keep the connection
DISCARD_S = 1.0


class Handler(WebSocketHandler):  # type: ignore[misc]
    """gevent-websocket's upgrade, with bounds on the request around it and our frames after it."""

    rfile: Any
    wsgi_input: Any
    _agreed = deflate.Agreement(None, "none")
    _deadline: Any = None
    _lingers = False  # the client may be sending still when its answer has gone out

    def handle(self) -> None:
        engine = self.server.engine
        engine.count_http(1)
        try:
            self.socket.settimeout(HTTP_WAIT_S)
            if engine.crowded():
                self.socket.sendall(handshake.FULL.response())
                return
            super().handle()
        except OSError:
            pass  # it is gone, or did not take its answer in time
        finally:
            engine.count_http(-1)

    def read_requestline(self) -> Any:
        limits = self.server.engine.limits
        self._deadline = gevent.Timeout.start_new(limits.handshake_s, _SlowHead)
        return super().read_requestline()

    def read_request(self, raw_requestline: Any) -> Any:
        file = self.rfile
        self.rfile = _BoundedHead(file, self.server.engine.limits.handshake_bytes)
        try:
            return super().read_request(raw_requestline)
        finally:
            self.rfile = file
            self._disarm()

    def handle_one_request(self) -> Any:
        """Serve one request; a refusal of pywsgi's comes back as a pair and leaves as a problem."""
        try:
            result = super().handle_one_request()
        except _SlowHead:
            result = ("408", handshake.SLOW_HEAD)
        finally:
            self._disarm()
        if result is True:
            return True
        if result is not None:
            status, refusal = result
            if not isinstance(refusal, handshake.Refusal):
                refusal = handshake.LONG_TARGET if status == "414" else handshake.BAD_HEAD
            self.socket.sendall(refusal.response())
            self._lingers = True
        if self._lingers:
            linger(self.socket)
        return None

    def _handle_client_error(self, ex: Exception) -> Any:
        # pywsgi logs the request line here, which may hold a token.
        if isinstance(ex, _LongHead):
            return "431", handshake.long_head(self.server.engine.limits.handshake_bytes)
        return "400", handshake.BAD_HEAD

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.close()
            self._deadline = None

    def get_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environ()
        self.wsgi_input = _Unread(self, self.wsgi_input)
        proxies = self.server.engine.proxies
        peer = _address(self.client_address)
        environ["REMOTE_ADDR"] = proxies.viewer(peer, environ.get("HTTP_X_FORWARDED_FOR", ""))
        # Where the balancer ends TLS, links and `ws_url` must say so.
        if environ.get("HTTP_X_FORWARDED_PROTO") == "https" and proxies.trusts(peer):
            environ["wsgi.url_scheme"] = "https"
        return environ

    def run_application(self) -> None:
        if self.environ.get("HTTP_UPGRADE", "").lower() != "websocket":
            super().run_application()
            return
        engine = self.server.engine
        headers = self._lower_headers()
        refusal = handshake.refusal_of(self.command, self.request_version, headers)
        try:
            self._agreed = deflate.negotiate(headers.get("sec-websocket-extensions", ""))
        except ValueError as error:
            refusal = refusal or handshake.bad_extensions(str(error))
        if refusal is None and engine.refuses(self.environ["REMOTE_ADDR"]):
            refusal = handshake.FULL
        if refusal is None:
            super().run_application()
            return
        self._lingers = True
        self.start_response(refusal.line, refusal.headers)
        self.result = [refusal.body]
        self.process_result()

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        if status.startswith("101"):
            self.chosen = handshake.choose(
                self.environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", ""),
                self.server.engine.subprotocols,
            )
            if self.chosen:
                headers = [*headers, ("Sec-WebSocket-Protocol", self.chosen)]
            if self._agreed.answer:
                headers = [*headers, ("Sec-WebSocket-Extensions", self._agreed.answer)]
        return super().start_response(status, headers, exc_info)

    def run_websocket(self) -> None:
        """Called when the 101 has been written: from here on the connection is the engine's."""
        environ = self.environ
        self.websocket.closed = True  # its object is not used; this keeps it from closing ours
        self.socket.settimeout(0.0)
        first = self.rfile.peek()  # frames that came in the same segment as the handshake
        request = Request(
            environ["PATH_INFO"],
            environ.get("QUERY_STRING", ""),
            self._lower_headers(),
            environ["REMOTE_ADDR"],
            self.chosen,
            compression=self._agreed.compression,
        )
        self.server.engine.serve(self.socket, request, bytes(first or b""))

    def process_result(self) -> None:
        """Send what the application answered, or take over a connection that it hands over."""
        given = self.result
        if not isinstance(given, Handover):
            super().process_result()
            return
        engine = self.server.engine
        if engine.refuses(given.request.address):
            self.start_response(handshake.FULL.line, handshake.FULL.headers)
            self.result = [handshake.FULL.body]
            super().process_result()
            return
        self.provided_content_length = ""  # a body that ends with the connection has none
        self.close_connection = True
        self.write(given.greeting)
        self.socket.settimeout(0.0)
        engine.serve(self.socket, given.request, farewell=given.farewell)

    def _lower_headers(self) -> dict[str, str]:
        return {
            key[5:].replace("_", "-").lower(): value
            for key, value in self.environ.items()
            if key.startswith("HTTP_")
        }

    def log_request(self) -> None:
        """Requests are counted, not logged: query strings may hold tokens."""


class _SlowHead(BaseException):
    """The request head did not arrive in time. No Exception, so that pywsgi lets it through."""


class _LongHead(ValueError):
    """The request head is above the limit."""


class _BoundedHead:
    """The request's headers as a file that refuses to give more than the limit."""

    def __init__(self, file: Any, limit: int) -> None:
        self._file = file
        self._left = limit

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self._file.readline(min(limit, self._left + 1) if limit >= 0 else self._left)
        self._left -= len(line)
        if self._left < 0:
            raise _LongHead
        return line


class _Unread:
    """What a request left of its body. pywsgi would read on to its end, however far that is."""

    def __init__(self, handler: Handler, body: Any) -> None:
        self._handler = handler
        self._body = body

    def _discard(self) -> None:
        body = self._body
        if body.chunked_input:
            complete = body.chunk_length == 0
        else:
            left = (body.content_length or 0) - body.position
            complete = left == 0
            if 0 < left <= DISCARD_BYTES and body.socket is None:
                with gevent.Timeout(DISCARD_S, False):
                    body._discard()
                    complete = True
        if not complete:
            self._handler.close_connection = True
            self._handler._lingers = True


def linger(sock: Any) -> None:
    """Read on for a moment: hanging up on unread input resets the connection, and our last words
    with it."""
    until = time.monotonic() + LINGER_S
    seen = 0
    try:
        sock.shutdown(socket.SHUT_WR)
        while seen < LINGER_BYTES and (left := until - time.monotonic()) > 0:
            wait_read(sock.fileno(), left)
            data = sock.recv(READ_BYTES)
            if not data:
                return
            seen += len(data)
    except OSError:
        return


def _address(peer: Any) -> str:
    return peer[0] if peer else "local"
