"""Server-sent events (WHATWG HTML section 9.2): a tick as one event whose data is JSON's array.

The id of an event is `{epoch}-{position}`, a place to resume from; what is for one viewer alone
says nothing about positions and has none. The encoding is the native one's, so both say the same.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import msgspec

from gateway.dialects import native

SILENCE_S: Final = 15.0  # then a heartbeat: proxies often cut off after 30 or 60 s
RETRY_MS: Final = (1000, 3000)  # drawn for each viewer: those of one gateway come back spread
HEADERS: Final = (
    ("Content-Type", "text/event-stream"),
    ("Cache-Control", "no-store"),
    ("X-Accel-Buffering", "no"),  # nginx passes each event on at once
    ("Connection", "close"),  # the body ends with it
)

_PLACE: Final = re.compile(r"([A-Za-z0-9_.~-]{1,64})-([0-9]{1,16})")


class Place(NamedTuple):
    """Up to where a viewer has got everything."""

    epoch: str
    offset: int

    @classmethod
    def of(cls, text: str) -> Place:
        """Return the place that a Last-Event-ID names; raises ValueError."""
        found = _PLACE.fullmatch(text)
        if found is None:
            raise ValueError("Last-Event-ID must be {epoch}-{offset}, as in the ids of this stream")
        return cls(found[1], int(found[2]))

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"


def greeting(retry_ms: int) -> bytes:
    """Return what a stream begins with: how long to wait before connecting again."""
    return b"retry: %d\n\n" % retry_ms


def encode(objects: list[native.Object], place: Place | None) -> bytes:
    """Return one message; JSON has no line ends of its own."""
    payload, _ = native.encode("json", objects)
    head = f"id: {place}\n".encode() if place is not None else b""
    return head + b"data: " + payload + b"\n\n"


def heartbeat(place: Place) -> bytes:
    """Return a comment line with an id: nothing is dispatched, and a quiet room stays resumable."""
    return f":\nid: {place}\n\n".encode()


def close(code: int, reason: str) -> bytes:
    """Return the last event of a stream that the server ends."""
    said = msgspec.json.encode({"code": code, "reason": reason})
    return b"event: close\ndata: " + said + b"\n\n"
