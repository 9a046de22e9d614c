"""The protocol's failures, each in one table: close codes and rejections.

`docs/protocol.md` prints these tables and a test compares them; server and clients read them here.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, NamedTuple

import msgspec


class CloseCode(NamedTuple):
    """Why a connection ends. `again`: may the client reconnect (with a new token: `token`)."""

    code: int
    name: str
    again: str  # "no" | "yes" | "token"


NORMAL: Final = CloseCode(1000, "normal", "no")
GOING_AWAY: Final = CloseCode(1001, "going_away", "yes")
PROTOCOL_ERROR: Final = CloseCode(1002, "protocol_error", "no")
UNSUPPORTED_DATA: Final = CloseCode(1003, "unsupported_data", "no")
INVALID_PAYLOAD: Final = CloseCode(1007, "invalid_payload", "no")
TOO_BIG: Final = CloseCode(1009, "too_big", "no")
INTERNAL_ERROR: Final = CloseCode(1011, "internal_error", "yes")
TRY_AGAIN_LATER: Final = CloseCode(1013, "try_again_later", "yes")
BAD_REQUEST: Final = CloseCode(4000, "bad_request", "no")
UNAUTHORIZED: Final = CloseCode(4001, "unauthorized", "token")
FORBIDDEN: Final = CloseCode(4003, "forbidden", "no")
UNKNOWN_STREAM: Final = CloseCode(4004, "unknown_stream", "no")
KICKED: Final = CloseCode(4005, "kicked", "no")
TOO_SLOW: Final = CloseCode(4008, "too_slow", "yes")
TOO_MANY_COMMANDS: Final = CloseCode(4029, "too_many_commands", "yes")

CLOSE_CODES: Final = {
    entry.code: entry
    for entry in (
        NORMAL, GOING_AWAY, PROTOCOL_ERROR, UNSUPPORTED_DATA, INVALID_PAYLOAD, TOO_BIG,
        INTERNAL_ERROR, TRY_AGAIN_LATER, BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, UNKNOWN_STREAM,
        KICKED, TOO_SLOW, TOO_MANY_COMMANDS,
    )
}  # fmt: skip

# REJECTED codes and the HTTP status of the same refusal.
REJECTIONS: Final = {
    "rate_limited": 429,
    "too_long": 422,
    "empty": 422,
    "read_only": 401,
    "not_allowed": 403,
    "unavailable": 503,
    "bad_request": 400,
    "slow_mode": 429,
    "banned": 403,
    "timed_out": 403,
    "frozen": 403,
    "duplicate": 409,
    "denied": 403,
    "conflict": 409,
}


def problem(status: int, code: str, detail: str, **more: Any) -> bytes:
    """Return the body of a problem object (RFC 9457), for application/problem+json."""
    return msgspec.json.encode(
        {
            "type": "about:blank",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "code": code,
            "detail": detail,
            **more,
        }
    )
