"""The engine: connections and bytes. What the compiled reactor and the reference both implement.

Comes in: a listening socket. Goes up: batches of what happened on the connections. Comes down:
bytes that are shared by all members of an audience, or meant for one session. An engine knows
frames and limits; it knows nothing of streams or comments. Nothing above it assumes a greenlet per
connection.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple, Protocol, TypeAlias


class Request(NamedTuple):
    """A completed WebSocket handshake. Header names are lower case."""

    path: str
    query: str
    headers: dict[str, str]
    address: str
    subprotocol: str | None  # the one that was selected, of those the engine was given


class Opened(NamedTuple):
    """A connection speaks WebSocket now."""

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

    def frame(self, payload: bytes, *, text: bool) -> bytes:
        """Return the bytes to hand to `send` and `broadcast` for one message."""

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
        """Send a close frame behind what is queued, then hang up within a few seconds."""

    def stop_accepting(self) -> None:
        """Take no new connections."""

    def stop(self) -> None:
        """Hang up on everybody."""
