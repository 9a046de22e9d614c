"""A viewer of one stream: `ClientCore` without sockets, and `Viewer`, a thin blocking shell.

Comes in: bytes from the server and commands from the user. Goes out: events in the JSON shape, once
and in order, and bytes for the server. The core knows how to resume (docs/protocol.md, "The
client's position"), when to try again, and which close codes end it. `uproar.swarm` runs many cores
over one loop.
"""

from __future__ import annotations

import base64
import hashlib
import random
import secrets
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from uproar import __version__, wire
from uproar.deflate import OFFER, accepted
from uproar.frames import (
    Binary,
    Close,
    FrameParser,
    Opcode,
    Ping,
    Text,
    encode,
    encode_close,
)
from uproar.wire import Command, Event, Retry

MAX_HEAD: Final = 16_384  # bytes of a handshake's answer
MAX_MESSAGE: Final = 16 << 20  # bytes; a backlog of 1,000 comments of 500 emoji has 2 MB
STABLE_S: Final = 1.0  # a connection that lived this long lets the back-off start anew
INBOX: Final = 10_000  # events a Viewer holds for its user; the oldest go first

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


class State(Enum):
    """Of one connection."""

    NEW = "new"
    HANDSHAKE = "handshake"
    OPEN = "open"
    CLOSED = "closed"


class Closed(NamedTuple):
    """How a connection ended; 1006 where no close frame came. Wait `after_s` before a retry."""

    code: int
    reason: str
    retry: Retry
    after_s: float = 0.0


_NOT_CONNECTED: Final = Closed(1006, "not connected", Retry.YES)


class Disconnected(ConnectionError):
    """The connection has ended for good; `closed` says how."""

    def __init__(self, closed: Closed) -> None:
        super().__init__(f"closed with {closed.code}: {closed.reason or 'no reason given'}")
        self.closed = closed


def stream_url(base: str, stream: str) -> str:
    """Return the WebSocket URL of a stream below `http[s]://host[:port]` (or ws, wss)."""
    parts = urlsplit(base)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = f"{parts.path.rstrip('/')}/stream/{quote(stream.lower(), safe='')}"
    return f"{scheme}://{parts.netloc}{path}" + (f"?{parts.query}" if parts.query else "")


class ClientCore:
    """The client's side of one stream over any number of connections, one after the other.

    A shell calls `begin` when its transport is connected, `receive` for every piece that arrives,
    `lost` when the transport ends, `tick` about once a second, and writes what `outgoing` gives.
    All times are of one monotonic clock, in seconds.

    `repeats` counts events at or below what was already seen; they are dropped. A right server
    never sends one.
    """

    def __init__(
        self,
        url: str,
        *,
        codec: Literal["json", "msgpack"] = "json",
        token: str | None = None,
        token_by: Literal["header", "query", "subprotocol"] = "header",
        backlog: int | None = None,
        rate: str | int | None = None,
        deflate: bool = False,
        epoch: str | None = None,
        offset: int | None = None,
        backoff_s: float = 0.2,
        backoff_max_s: float = 10.0,
        chance: random.Random | None = None,
    ) -> None:
        """`deflate` offers permessage-deflate; a server may decline it, `deflated` says so.

        Raises ValueError for a URL that is not ws, wss, http or https with a host.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss", "http", "https") or not parts.hostname:
            raise ValueError(
                f"{url}: not a URL of a stream; it looks like ws://host:port/stream/id"
            )
        self.secure = parts.scheme in ("wss", "https")
        self.host = parts.hostname
        self.port = parts.port or (443 if self.secure else 80)
        self.codec = wire.CODECS[codec]
        self.state = State.NEW
        self.closed: Closed | None = None
        self.epoch = epoch
        self.position = offset
        self.session: str | None = None
        self.welcome: Event | None = None
        self.connections = 0  # WELCOMEs so far
        self.repeats = 0
        self.deflated = False  # agreed on for the connection that stands
        self._netloc = parts.netloc.rpartition("@")[2]
        self._path = parts.path or "/"
        self._query = parse_qsl(parts.query, keep_blank_values=True)
        self._token = token
        self._token_by = token_by
        self._backlog = backlog
        self._rate = rate
        self._offers = deflate
        self._backoff_s = backoff_s
        self._backoff_max_s = backoff_max_s
        self._chance = chance or random.Random()
        self._attempts = 0
        self._floor = -1  # events at or below this offset were seen
        self._out = bytearray()
        self._head = bytearray()
        self._key = b""
        self._parser = FrameParser(role="client", max_message=MAX_MESSAGE)
        self._ping_s = 30.0
        self._heard_at = self._asked_at = self._welcomed_at = 0.0
        self._move_at: float | None = None

    # Connecting

    def target(self) -> str:
        """Return path and query of the next handshake; it resumes where a position is known."""
        query = list(self._query)
        if self._token is not None and self._token_by == "query":
            query.append(("access_token", self._token))
        if self.epoch is not None and self.position is not None:
            query += [("epoch", self.epoch), ("offset", str(self.position))]
        if self._backlog is not None:
            query.append(("backlog", str(self._backlog)))
        if self._rate is not None:
            query.append(("rate", str(self._rate)))
        return self._path + (f"?{urlencode(query)}" if query else "")

    def begin(self, now: float) -> None:
        """Start over on a transport that has just been connected."""
        self._key = base64.b64encode(secrets.token_bytes(16))
        protocols = self.codec.subprotocol
        if self._token is not None and self._token_by == "subprotocol":
            protocols += f", uproar.token.{self._token}"
        lines = [
            f"GET {self.target()} HTTP/1.1",
            f"Host: {self._netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {self._key.decode()}",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Protocol: {protocols}",
            f"User-Agent: uproar/{__version__}",
        ]
        if self._offers:
            lines.append(f"Sec-WebSocket-Extensions: {OFFER}")
        if self._token is not None and self._token_by == "header":
            lines.append(f"Authorization: Bearer {self._token}")
        self._out = bytearray("\r\n".join([*lines, "", ""]).encode("latin-1"))
        self._head = bytearray()
        self._parser = FrameParser(role="client", max_message=MAX_MESSAGE)
        self.deflated = False
        self._heard_at = self._asked_at = now
        self._welcomed_at = 0.0
        self._move_at = None
        self.session = None
        self.closed = None
        self.state = State.HANDSHAKE

    def retry_after(self) -> float | None:
        """Return the seconds to wait before the next try, None when there must be none.

        Full jitter: anything between nothing and a bound that doubles with each failed attempt, so
        that the viewers of a dead gateway do not come back in step.
        """
        closed = self.closed or _NOT_CONNECTED
        if closed.retry in (Retry.NEVER, Retry.NEW_TOKEN):
            return None
        bound = min(self._backoff_max_s, self._backoff_s * 2**self._attempts)
        self._attempts = min(self._attempts + 1, 30)
        return closed.after_s + self._chance.uniform(0.0, bound)

    def set_token(self, token: str) -> None:
        """Use another token from the next handshake on, as after close code 4001."""
        self._token = token
        if self.closed is not None and self.closed.retry is Retry.NEW_TOKEN:
            self.closed = self.closed._replace(retry=Retry.YES)

    # Bytes in

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Return the events that `data` completes, duplicates left out."""
        events: list[Event] = []
        for payload in self.receive_payloads(data, now):
            try:
                message = self.codec.decode(payload)
            except wire.WireError as error:
                self.refuse(1007, str(error))
                break
            events += self.take(message, now)
        return events

    def receive_payloads(self, data: bytes, now: float) -> list[Any]:
        """Return whole messages undecoded; for shells that decode themselves and call `take`."""
        self._heard_at = now
        if self.state is State.HANDSHAKE:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0 and len(self._head) <= MAX_HEAD:
                return []
            head, data = bytes(self._head[: max(end, 0)]), bytes(self._head[end + 4 :])
            self._head = bytearray()
            self._read_head(head)
        if self.state is not State.OPEN:
            return []
        payloads: list[Any] = []
        binary = self.codec.binary
        for message in self._parser.feed(data):
            kind = type(message)
            if kind is (Binary if binary else Text):
                payloads.append(message[0])
            elif isinstance(message, Ping):
                self._out += encode(Opcode.PONG, message.data, mask=secrets.token_bytes(4))
            elif isinstance(message, Close):
                self._peer_closed(message, now)
            elif isinstance(message, Text | Binary):
                self.refuse(1003, f"a {kind.__name__.lower()} message on {self.codec.subprotocol}")
                break
        error = self._parser.error
        if error is not None and self.closed is None:
            self.refuse(error.code, error.reason)
        return payloads

    def take(self, events: list[Event], now: float) -> list[Event]:
        """Follow the events of one message; return those that were not seen before."""
        taken: list[Event] = []
        for event in events:
            try:
                if self._follow(event, now):
                    taken.append(event)
            except (KeyError, TypeError, ValueError) as error:
                self.refuse(1007, f"a malformed {event['type'][:40]}: {error!r}")
                break
        return taken

    def _follow(self, event: Event, now: float) -> bool:
        """Take position and state from one event; return whether it is new."""
        kind = event["type"]
        if kind in wire.PLACED:
            if not event.get("historical"):
                offset: int = event["offset"]
                if offset <= self._floor:
                    self.repeats += 1
                    return False
                self._floor = offset
                self._advance(offset)
        elif kind in ("VIEWERS", "PONG"):
            self._advance(event["position"])
        elif kind == "GAP":
            # What is folded into a gap comes after it with offsets inside: no floor here.
            self._advance(event["to"])
        elif kind == "WELCOME":
            self._welcomed(event, now)
        elif kind == "RECONNECT":
            self._move_at = now + event["after_ms"] / 1000
        return True

    def advance(self, first: int, last: int) -> bool:
        """Follow a message known to hold only live comments with offsets `first` to `last`.

        Returns False, and follows nothing, where that message needs `take`.
        """
        if first <= self._floor or self.position is None:
            return False
        self._floor = last
        self._advance(last)
        return True

    # Bytes out

    def send(self, commands: Command | list[Command]) -> None:
        """Queue commands as one message; raises wire.WireError for what can't be encoded."""
        opcode = Opcode.BINARY if self.codec.binary else Opcode.TEXT
        self.send_frame(opcode, self.codec.encode(commands))

    def send_frame(self, opcode: int, payload: bytes) -> None:
        """Queue one frame as it is, proper or not."""
        self._out += encode(opcode, payload, mask=secrets.token_bytes(4))

    @property
    def pending(self) -> bool:
        """Whether `outgoing` has something to write."""
        return bool(self._out)

    def outgoing(self) -> bytes:
        """Return the bytes to write now; they are the caller's from here on."""
        if not self._out:
            return b""
        out = bytes(self._out)
        self._out.clear()
        return out

    def tick(self, now: float) -> None:
        """Do what is due: keep the connection alive, give up a silent one, follow RECONNECT."""
        if self.state is State.HANDSHAKE and now - self._heard_at > 10.0:
            self.lost("the handshake was not answered within 10 s", now)
        elif self.state is not State.OPEN:
            return
        elif self._move_at is not None and now >= self._move_at:
            self.close()
            self._end(Closed(1000, "moved as the server asked", Retry.YES), now)
        elif now - self._heard_at > 2 * self._ping_s + 5.0:
            self.lost(f"nothing came for {now - self._heard_at:.0f} s", now)
        elif now - self._asked_at >= 0.8 * self._ping_s:
            self._asked_at = now
            self.send(wire.PING)

    # The end

    def close(self, code: int = 1000) -> None:
        """Queue a close frame. The core stays open for what is still on its way."""
        if self.state is State.OPEN:
            self._out += encode_close(code, mask=secrets.token_bytes(4))

    def lost(self, reason: str, now: float) -> None:
        """Say that the transport has ended or could not be connected."""
        self._end(Closed(1006, reason, Retry.YES), now)

    def refuse(self, code: int, reason: str) -> None:
        """End the connection because of what the server sent; never tried again."""
        if self.closed is None:
            self._out += encode_close(code, reason, mask=secrets.token_bytes(4))
            self._end(Closed(code, f"refused: {reason}", Retry.NEVER), self._heard_at)

    def _end(self, closed: Closed, now: float) -> None:
        if self.closed is not None:
            return
        if self._move_at is not None and closed.retry in (Retry.YES, Retry.LATER):
            closed = closed._replace(after_s=max(0.0, self._move_at - now))
        if self._welcomed_at and now - self._welcomed_at >= STABLE_S:
            self._attempts = 0
        self.closed = closed
        self.state = State.CLOSED

    def _peer_closed(self, message: Close, now: float) -> None:
        self._out += encode_close(message.code, mask=secrets.token_bytes(4))
        retry = wire.retry_of(message.code)
        after_s = 1.0 if retry is Retry.LATER else 0.0
        self._end(Closed(message.code, message.reason, retry, after_s), now)

    def _read_head(self, head: bytes) -> None:
        """Judge the answer to the handshake; go on to OPEN or to CLOSED."""
        status, headers = _parse_head(head)
        fault = ""
        context = False  # whether the server's messages may refer to one another
        if status != 101:
            after = headers.get("retry-after", "")
            after_s = float(after) if after.isdigit() else 0.0
            later = status == 429 or status >= 500
            reason = f"the handshake was answered {status}" if status else "the answer is not HTTP"
            closed = Closed(1006, reason, Retry.LATER if later else Retry.NEVER, after_s)
            self._end(closed, self._heard_at)
            return
        accept = base64.b64encode(hashlib.sha1(self._key + _GUID).digest()).decode()
        if headers.get("upgrade", "").lower() != "websocket":
            fault = "it does not upgrade to websocket"
        elif "upgrade" not in headers.get("connection", "").lower():
            fault = "its Connection header does not say Upgrade"
        elif headers.get("sec-websocket-accept") != accept:
            fault = "its Sec-WebSocket-Accept does not fit the key"
        elif headers.get("sec-websocket-protocol") != self.codec.subprotocol:
            fault = f"it does not choose {self.codec.subprotocol}"
        elif "sec-websocket-extensions" in headers:
            try:
                if not self._offers:
                    raise ValueError("it chooses an extension that was not offered")
                context = accepted(headers["sec-websocket-extensions"])
                self.deflated = True
            except ValueError as error:
                fault = str(error)
        if fault:
            self._end(
                Closed(1006, f"the handshake's answer is wrong: {fault}", Retry.NEVER),
                self._heard_at,
            )
            return
        if self.deflated:
            self._parser = FrameParser(
                role="client", max_message=MAX_MESSAGE, deflate=True, context=context
            )
        self.state = State.OPEN

    def _welcomed(self, event: Event, now: float) -> None:
        self.connections += 1
        self.welcome = event
        self.session = event.get("session")
        self._welcomed_at = now
        self._ping_s = float(event.get("ping_s") or 30.0)
        if event.get("recovered") is not True or self.position is None:
            # A new beginning, perhaps of an epoch whose offsets are lower.
            self.position = event["offset"]
        self._advance(event["offset"])
        self.epoch = event["epoch"]
        self._floor = self.position

    def _advance(self, position: int) -> None:
        if self.position is None or position > self.position:
            self.position = position


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Return (status, headers with lower-case names); status 0 for what is not HTTP."""
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        return 0, {}
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(words[1]), headers


class Viewer:
    """A ClientCore on a blocking socket, for one thread or greenlet at a time.

    With `reconnect` a cut is healed inside `recv`, with resume, until a terminal close code; the
    WELCOME of each new connection is among the events. Without it Disconnected is raised. All
    deadlines are seconds from now.
    """

    def __init__(self, url: str, *, reconnect: bool = False, **options: Any) -> None:
        """`options` are those of ClientCore."""
        self.core = ClientCore(url, **options)
        self._reconnect = reconnect
        self._socket: socket.socket | None = None
        self._inbox: deque[Event] = deque(maxlen=INBOX)
        self._retry_at: float | None = None

    def connect(self, deadline_s: float = 10.0) -> Event:
        """Return the WELCOME; raises Disconnected when refused, TimeoutError at the deadline."""
        self._open(deadline_s)
        return self.wait_for(lambda event: event["type"] == "WELCOME", deadline_s)

    def recv(self, deadline_s: float) -> list[Event]:
        """Return the events that are here or come first; an empty list at the deadline."""
        end = time.monotonic() + deadline_s
        while not self._inbox:
            left = end - time.monotonic()
            self._step(left)
            if left <= 0:
                break
        events = list(self._inbox)
        self._inbox.clear()
        return events

    def wait_for(self, predicate: Callable[[Event], bool], deadline_s: float) -> Event:
        """Return the first event that fits; the others stay for later calls, in order.

        Raises TimeoutError with the types of what came instead.
        """
        end = time.monotonic() + deadline_s
        looked = 0
        while True:
            for index in range(looked, len(self._inbox)):
                if predicate(self._inbox[index]):
                    event = self._inbox[index]
                    del self._inbox[index]
                    return event
            looked = len(self._inbox)
            left = end - time.monotonic()
            if left <= 0:
                break
            self._step(left)
            if len(self._inbox) == INBOX:
                looked = 0  # the oldest may have gone
        came = ", ".join(event["type"] for event in list(self._inbox)[-20:]) or "nothing"
        raise TimeoutError(f"no event that fits within {deadline_s} s; came: {came}")

    def send(self, commands: Command | list[Command]) -> None:
        """Send commands as one message; raises Disconnected while there is no connection."""
        if self.core.state is not State.OPEN:
            raise Disconnected(self.core.closed or _NOT_CONNECTED)
        self.core.send(commands)
        self._flush()

    def send_frame(self, opcode: int, payload: bytes) -> None:
        """Send one frame as it is, proper or not."""
        self.core.send_frame(opcode, payload)
        self._flush()

    def send_comment(self, text: str, nonce: str | None = None, **more: Any) -> str:
        """Send a COMMENT; return its nonce, to be looked for in ACK or REJECTED."""
        nonce = nonce or secrets.token_hex(8)
        self.send(wire.comment(text, nonce, **more))
        return nonce

    def cut(self) -> None:
        """Drop the connection without a word, as a dead network does."""
        self._drop("cut off")

    def close(self) -> None:
        """Say goodbye and close; no reconnect follows."""
        self._reconnect = False
        if self._socket is not None:
            self.core.close()
            self._flush()
            self._drop("closed")

    def _open(self, deadline_s: float) -> None:
        """Connect and write the handshake; what fails stands in `core.closed`."""
        core, now = self.core, time.monotonic()
        if self._socket is not None:
            self._drop("connected anew")
        core.closed = None
        try:
            raw = socket.create_connection((core.host, core.port), timeout=max(deadline_s, 0.001))
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if core.secure:
                raw = ssl.create_default_context().wrap_socket(raw, server_hostname=core.host)
        except OSError as error:
            core.lost(f"{core.host}:{core.port} can't be reached: {error}", now)
            self._after_end()
            return
        self._socket = raw
        self._retry_at = None
        core.begin(now)
        self._flush()

    def _step(self, left_s: float) -> None:
        """Wait once, at most a second, for bytes or for the next try."""
        if self._socket is None:
            if self._retry_at is None:
                raise Disconnected(self.core.closed or _NOT_CONNECTED)
            wait = self._retry_at - time.monotonic()
            if wait > 0:
                time.sleep(max(0.0, min(wait, left_s)))
            else:
                self._open(left_s)
            return
        data: bytes | None = None
        try:
            self._socket.settimeout(max(0.0001, min(left_s, 1.0)))
            data = self._socket.recv(65536)
        except TimeoutError:
            pass
        except OSError as error:
            self._drop(f"the connection broke: {error}")
            return
        if data == b"":
            self._drop("the server closed the connection without a close frame")
            return
        now = time.monotonic()
        if data is not None:
            self._inbox.extend(self.core.receive(data, now))
        self.core.tick(now)
        self._flush()
        if self.core.state is State.CLOSED:
            self._drop("")

    def _flush(self) -> None:
        data = self.core.outgoing()
        if self._socket is not None and data:
            try:
                self._socket.settimeout(10.0)
                self._socket.sendall(data)
            except OSError as error:
                self._drop(f"nothing could be sent: {error}")

    def _drop(self, reason: str) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.core.lost(reason, time.monotonic())
        self._after_end()

    def _after_end(self) -> None:
        """Plan the next try, or leave the end to be told by the next call."""
        self._retry_at = None
        if self._reconnect:
            delay = self.core.retry_after()
            if delay is not None:
                self._retry_at = time.monotonic() + delay
