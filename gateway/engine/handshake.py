"""Which upgrades are taken (RFC 6455 section 4.2.1) and how requests are refused. Sans-I/O.

Both engines answer here, so a refusal below the REST API is a problem object too.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

from uproar.codes import problem

KEY_BYTES: Final = 16


class Refusal(NamedTuple):
    """Why a request is not served: status, code, a sentence, and headers besides the usual ones."""

    status: int
    code: str
    detail: str
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def line(self) -> str:
        """Status and phrase."""
        return f"{self.status} {HTTPStatus(self.status).phrase}"

    @property
    def body(self) -> bytes:
        """The problem object."""
        return problem(self.status, self.code, self.detail)

    @property
    def headers(self) -> list[tuple[str, str]]:
        """All headers; the connection ends with the answer."""
        return [
            ("Content-Type", "application/problem+json"),
            ("Content-Length", str(len(self.body))),
            ("Connection", "close"),
            *self.extra,
        ]

    def response(self) -> bytes:
        """The whole answer."""
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        return f"HTTP/1.1 {self.line}\r\n{head}\r\n".encode("latin-1") + self.body


BAD_HEAD: Final = Refusal(400, "bad_request", "this is no HTTP/1.1 request")
LONG_TARGET: Final = Refusal(414, "too_big", "the path and query are too long")
SLOW_HEAD: Final = Refusal(408, "too_slow", "the request head did not arrive in time")
FULL: Final = Refusal(
    503, "unavailable", "this gateway is full; try again", (("Retry-After", "2"),)
)


def long_head(limit: int) -> Refusal:
    """Return the refusal of a request head above `limit` bytes."""
    return Refusal(431, "too_big", f"the request head has at most {limit} bytes")


def bad_extensions(fault: str) -> Refusal:
    """Return the refusal of a malformed Sec-WebSocket-Extensions header (RFC 6455 section 9.1)."""
    return Refusal(400, "bad_request", f"Sec-WebSocket-Extensions is malformed: {fault}")


def refusal_of(method: str, version: str, headers: Mapping[str, str]) -> Refusal | None:
    """Return why an upgrade to WebSocket is not taken; header names are lower case."""
    if method != "GET":
        return Refusal(405, "not_allowed", "a WebSocket begins with GET", (("Allow", "GET"),))
    if version != "HTTP/1.1":
        return Refusal(400, "bad_request", "a WebSocket begins with HTTP/1.1")
    tokens = headers.get("connection", "").lower().split(",")
    if "upgrade" not in (token.strip() for token in tokens):
        return Refusal(
            400, "bad_request", "`Connection: Upgrade` is missing; a proxy may have dropped it"
        )
    if headers.get("sec-websocket-version") != "13":
        extra = (("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket"))
        return Refusal(426, "bad_request", "Sec-WebSocket-Version must be 13", extra)
    try:
        key = base64.b64decode(headers.get("sec-websocket-key", ""), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        return Refusal(400, "bad_request", "Sec-WebSocket-Key must be 16 bytes in base64")
    return None


def choose(offered: str, known: tuple[str, ...]) -> str | None:
    """Return the first known one of the subprotocols that a client offers."""
    for name in (part.strip() for part in offered.split(",")):
        if name in known:
            return name
    return None
