"""Requests, responses and problem objects (RFC 9457) for a WSGI application."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import parse_qs

import gevent
import msgspec

from uproar.codes import REJECTIONS, problem

StartResponse: TypeAlias = Callable[..., Any]
QUERY_FIELDS = 50
BODY_S = 10.0  # for a whole request body to arrive


class Problem(Exception):
    """A refusal: the status, a code of the REJECTED table or of HTTP, and a sentence."""

    def __init__(
        self, status: int, code: str, detail: str, *, retry_after_ms: int | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after_ms = retry_after_ms

    @classmethod
    def rejected(cls, code: str, message: str, retry_after_ms: int | None) -> Problem:
        """Return the problem that stands for a REJECTED."""
        return cls(REJECTIONS.get(code, 400), code, message, retry_after_ms=retry_after_ms)

    @classmethod
    def away(cls, error: Exception) -> Problem:
        """Return the problem of a store or state that does not answer."""
        return cls(503, "unavailable", f"{error}; try again", retry_after_ms=1000)

    def response(self) -> Response:
        """Return it as application/problem+json."""
        more: dict[str, Any] = {}
        headers = []
        if self.retry_after_ms is not None:
            more["retry_after_ms"] = self.retry_after_ms
            headers.append(("Retry-After", str(-(-self.retry_after_ms // 1000))))
        if self.status == 401:
            headers.append(("WWW-Authenticate", "Bearer"))
        if self.status in (408, 413):
            headers.append(("Connection", "close"))  # the rest of the body is not waited for
        body = problem(self.status, self.code, self.detail, **more)
        return Response(self.status, body, "application/problem+json", headers)


class Response(msgspec.Struct):
    """What is sent back."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: list[tuple[str, str]] = []

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Response:
        """Return a value as JSON; never cached."""
        return cls(status, msgspec.json.encode(value), headers=[("Cache-Control", "no-store")])

    def send(self, start_response: StartResponse, *, head: bool = False) -> Iterable[bytes]:
        """Answer a WSGI request with it; `head` leaves the body away."""
        line = f"{self.status} {HTTPStatus(self.status).phrase}"
        headers = [("X-Content-Type-Options", "nosniff"), *self.headers]
        if self.status != 204:
            headers += [
                ("Content-Type", self.content_type),
                ("Content-Length", str(len(self.body))),
            ]
        start_response(line, headers)
        return [] if head else [self.body]


class HttpRequest:
    """One request, as far as a handler asks; raises Problem for a query that is no query."""

    def __init__(self, environ: dict[str, Any], body_bytes: int) -> None:
        self._environ = environ
        self._body_bytes = body_bytes
        self.method: str = environ["REQUEST_METHOD"]
        self.path: str = environ["PATH_INFO"]
        try:
            self.query = parse_qs(
                environ.get("QUERY_STRING", ""),
                keep_blank_values=True,
                max_num_fields=QUERY_FIELDS,
            )
        except ValueError:
            raise Problem(
                400, "bad_request", f"a query has at most {QUERY_FIELDS} parameters"
            ) from None

    @property
    def query_string(self) -> str:
        """The query as it was sent."""
        return str(self._environ.get("QUERY_STRING", ""))

    def header(self, name: str) -> str:
        """Return a header, empty when it was not sent."""
        value = self._environ.get("HTTP_" + name.upper().replace("-", "_"), "")
        return str(value)

    @property
    def address(self) -> str:
        """The peer's address."""
        return str(self._environ.get("REMOTE_ADDR", ""))

    @property
    def scheme(self) -> str:
        """http or https."""
        return str(self._environ.get("wsgi.url_scheme", "http"))

    def one(self, name: str) -> str | None:
        """Return a query parameter, the last one of its name."""
        values = self.query.get(name)
        return values[-1] if values else None

    def number(self, name: str, default: int | None, least: int, most: int) -> int | None:
        """Return a whole number of the query; raises Problem."""
        text = self.one(name)
        if text is None:
            return default
        if not text.isascii() or not text.isdigit() or len(text) > 16:
            raise Problem(400, "bad_request", f"{name} must be a whole number")
        value = int(text)
        if not least <= value <= most:
            raise Problem(400, "bad_request", f"{name} must be from {least} to {most}")
        return value

    def body(self, shape: Any, *, default: Any = None, most: int = 0) -> Any:
        """Return the JSON body as `shape`, `default` (where given) for none; raises Problem.

        `most` is the bound in bytes where it is not that of all bodies.
        """
        most = most or self._body_bytes
        length = self._environ.get("CONTENT_LENGTH") or "0"
        if length.isdigit() and int(length) > most:
            raise Problem(413, "too_big", f"a body has at most {most} bytes")
        try:
            with gevent.Timeout(BODY_S):
                raw = self._environ["wsgi.input"].read(most + 1)
        except gevent.Timeout:
            raise Problem(408, "too_slow", "the body did not arrive in time") from None
        except (OSError, ValueError) as error:
            raise Problem(400, "bad_request", f"the body can't be read: {error}") from error
        if len(raw) > most:
            raise Problem(413, "too_big", f"a body has at most {most} bytes")
        if default is not None and not raw.strip():
            return default
        try:
            try:
                return msgspec.json.decode(raw, type=shape)
            except msgspec.ValidationError:
                # To JSON 5.0 is the integer 5 as well, and some clients write it so.
                return msgspec.convert(whole(msgspec.json.decode(raw)), shape)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Problem(
                400, "bad_request", f"the body is not as expected: {str(error).replace('`', '')}"
            ) from error


def whole(value: Any) -> Any:
    """Return a decoded document with its whole floats as integers."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value
