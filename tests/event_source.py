"""An EventSource for tests: the parser of WHATWG HTML section 9.2.6, and a client on a socket."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Told(NamedTuple):
    """One event that was dispatched."""

    kind: str
    data: str
    last_id: str


class EventParser:
    """Turns bytes into events. `last_id` is what a reconnect would send."""

    def __init__(self) -> None:
        self.last_id = ""
        self.retry_ms: int | None = None
        self.comments = 0
        self._line = b""
        self._kind, self._data, self._id = "", [], ""

    def feed(self, data: bytes) -> list[Told]:
        """Return the events that `data` completes."""
        told: list[Told] = []
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            if not line:
                self.last_id = self._id
                if self._data:
                    told.append(Told(self._kind or "message", "\n".join(self._data), self.last_id))
                self._kind, self._data = "", []
                continue
            assert b"\r" not in line
            name, _, value = line.decode().partition(":")
            self._field(name, value.removeprefix(" "))
        return told

    def _field(self, name: str, value: str) -> None:
        if not name:
            self.comments += 1
        elif name == "event":
            self._kind = value
        elif name == "data":
            self._data.append(value)
        elif name == "id":
            self._id = value
        elif name == "retry":
            self.retry_ms = int(value)
        else:
            raise AssertionError(f"a field of no meaning: {name}")


class EventSource:
    """One stream of events over a raw socket, past its head; deadlines are seconds from now."""

    def __init__(
        self, base: str, path: str, *lines: str, buffer: int | None = None, wait_s: float = 10.0
    ) -> None:
        url = urlsplit(base)
        self.wait_s = wait_s
        self.sock = socket.socket()
        if buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.sock.settimeout(wait_s)
        self.sock.connect((url.hostname, url.port))
        head = [f"GET {path} HTTP/1.1", "Host: test", "Accept: text/event-stream", *lines, "", ""]
        self.sock.sendall("\r\n".join(head).encode())
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.sock.recv(65_536)
            assert piece, f"hung up within the head: {data!r}"
            data += piece
        raw, _, rest = data.partition(b"\r\n\r\n")
        status, *named = raw.decode("latin-1").split("\r\n")
        self.status = int(status.split(" ")[1])
        self.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in named)
        }
        self.parser = EventParser()
        self.ended = False
        self.seen: list[dict[str, Any]] = []  # the native events, in order
        self.close_event: dict[str, Any] | None = None
        self._take(rest)

    def __enter__(self) -> EventSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    @property
    def last_id(self) -> str:
        """What Last-Event-ID would say."""
        return self.parser.last_id

    @property
    def gateway(self) -> str:
        """The gateway process that serves it."""
        name: str = self.event("WELCOME")["session"]
        return name.partition("-")[0]

    def offsets(self, kind: str = "COMMENT") -> list[int]:
        """Return the offsets of what was seen live."""
        return [
            one["offset"] for one in self.seen if one["type"] == kind and not one.get("historical")
        ]

    def until(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first event that fits, of those seen and those to come."""
        until = time.monotonic() + self.wait_s
        at = 0
        while True:
            for event in self.seen[at:]:
                if fits(event):
                    return event
            at = len(self.seen)
            assert self.read(until - time.monotonic()), f"ended; seen: {self.seen[-3:]}"

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Return the first event of a type with these fields."""
        wanted = {"type": kind, **fields}
        return self.until(lambda event: wanted.items() <= event.items())

    def to_end(self) -> None:
        """Read until the server hangs up."""
        until = time.monotonic() + self.wait_s
        while self.read(until - time.monotonic()):
            pass

    def read(self, seconds: float) -> bool:
        """Read once; False at the end. Raises AssertionError when nothing comes in time."""
        self.sock.settimeout(max(0.001, seconds))
        try:
            data = self.sock.recv(65_536)
        except TimeoutError:
            raise AssertionError(f"nothing in time; seen: {self.seen[-3:]}") from None
        except ConnectionResetError:
            data = b""
        self.ended = not data
        self._take(data)
        return not self.ended

    def _take(self, data: bytes) -> None:
        for told in self.parser.feed(data):
            assert self.close_event is None, "an event after the last one"
            if told.kind == "close":
                self.close_event = json.loads(told.data)
            else:
                assert told.kind == "message"
                self.seen += json.loads(told.data)
