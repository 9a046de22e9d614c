"""The engine: connections and bytes. What the compiled reactor and the reference both implement.

Comes in: a listening socket. Goes up: batches of what happened on the connections. Comes down:
bytes that are shared by all members of an audience, or meant for one session. An engine knows
frames and limits; it knows nothing of streams or comments. Nothing above it assumes a greenlet per
connection. A connection is a WebSocket, or one that the application handed over: then the same
bytes go out without frames, and nothing comes in.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias


class Request(NamedTuple):
    """A completed WebSocket handshake, or a request handed over. Header names are lower case."""

    path: str
    query: str
    headers: dict[str, str]
    address: str
    subprotocol: str | None  # the one that was selected, of those the engine was given
    deflate: bool = False  # permessage-deflate was agreed on: frames for it may be compressed
    dialect: str = "native"  # what a connection that was handed over speaks


class Handover:
    """What an application returns for a response that has no end: the connection becomes a session.

    The engine writes the head that `start_response` was given and `greeting`, then tells of it by
    `Opened` as of a WebSocket. What is sent to it goes out as it is, what it sends is dropped, and
    `farewell` makes the last bytes of a close. Another server ends the response after `greeting`.
    """

    def __init__(
        self, request: Request, greeting: bytes, farewell: Callable[[int, str], bytes]
    ) -> None:
        self.request = request
        self.greeting = greeting
        self.farewell = farewell

    def __iter__(self) -> Iterator[bytes]:
        yield self.greeting


class Opened(NamedTuple):
    """A connection is a session now."""

    sid: int
    request: Request


class Received(NamedTuple):
    """One whole message: text as str, binary as bytes."""

    sid: int
    data: str | bytes


class Pinged(NamedTuple):
    """The client sent a ping (already answered) or a pong: it is alive."""

    sid: int


class Drained(NamedTuple):
    """Everything queued for the session has left; it had overflowed before."""

    sid: int


class Closed(NamedTuple):
    """The connection is gone; its sid is never used again."""

    sid: int
    code: int


EngineEvent: TypeAlias = Opened | Received | Pinged | Drained | Closed
WsgiApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class EngineLimits(NamedTuple):
    """What one connection may cost."""

    handshake_s: float
    handshake_bytes: int
    message_bytes: int
    connections: int
    connections_per_address: int
    queue_bytes: int
    queue_s: float
    idle_s: float


class Engine(Protocol):
    """Audiences are integers of the caller's; sids are the engine's."""

    def start(self, listener: socket.socket, app: WsgiApp) -> None:
        """Serve: upgrades become sessions, everything else goes to the WSGI application."""

    def frame(self, payload: bytes, *, text: bool, compress: int = 0) -> bytes:
        """Return the bytes to hand to `send` and `broadcast` for one message.

        `compress` is how many sessions share it, all of them with `Request.deflate`; 0: as it is. A
        small one stays as it is too.
        """

    def members(self, audience: int) -> int:
        """Return how many sessions an audience has."""

    def send(self, sid: int, frame: bytes) -> bool:
        """Queue a frame for one session; False when its queue is full (nothing was queued)."""

    def broadcast(self, audience: int, frame: bytes, skip: Collection[int] = ()) -> list[int]:
        """Queue one frame for every member but `skip`; return those whose queue is full.

        They got nothing, and get nothing more until `Drained`.
        """

    def join(self, sid: int, audience: int) -> None:
        """Add a session to an audience."""

    def leave(self, sid: int, audience: int) -> None:
        """Take a session out of an audience."""

    def close(self, sid: int, code: int, reason: str) -> None:
        """Send a close frame (or farewell) behind what is queued, then hang up in a few seconds."""

    def stop_accepting(self) -> None:
        """Take no new connections."""

    def stop(self) -> None:
        """Hang up on everybody."""
