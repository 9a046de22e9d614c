"""The engine: connections and bytes. What the compiled reactor and the reference both implement.

Comes in: a listening socket. Goes up: batches of what happened on the connections. Comes down:
payloads that all members of an audience get, framed and compressed once, or that are for one
session. An engine knows frames and limits; it knows nothing of streams or comments. Nothing above
it assumes a greenlet or an object per connection. A connection is a WebSocket, or one that the
application handed over: then the same payloads go out without frames, and nothing comes in.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias


class Request(NamedTuple):
    """A completed WebSocket handshake, or a request handed over. Header names are lower case."""

    path: str
    query: str
    headers: dict[str, str]
    address: str
    subprotocol: str | None  # the one that was selected, of those the engine was given
    # What was agreed on: `none`, `each` (no message may refer to another), `window`, or `unused`
    # (only what the client sends is compressed).
    compression: str = "none"
    dialect: str = "native"  # what a connection that was handed over speaks

    @property
    def compression_out(self) -> str:
        """How messages to it are compressed."""
        return "none" if self.compression == "unused" else self.compression


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


class Form(NamedTuple):
    """How an audience's messages go out.

    `framing` is `text` or `binary` (WebSocket messages) or `raw` (connections handed over).
    `compression` is `none`, `each` or `window`: one deflate stream for the whole audience. A new
    member of a window gets messages that refer to nothing until the next keyframe, and so does one
    that was skipped or whose queue was full.
    """

    framing: str
    compression: str = "none"


class Opened(NamedTuple):
    """A connection is a session now."""

    sid: int
    request: Request


class Arrived(NamedTuple):
    """Plain viewers have come: no token, no resume, nothing but a stream and how to be sent it.

    An engine that can tell hands them up in groups; `Opened` says the same of one at a time.
    """

    sids: list[int]
    request: Request  # of the first; the others' differ in nothing that matters


class Received(NamedTuple):
    """One whole message: text as str, binary as bytes. Not charged yet."""

    sid: int
    data: str | bytes


class Flooded(NamedTuple):
    """A session has sent more commands or pings in this second than it may; told once."""

    sid: int


class Drained(NamedTuple):
    """Everything queued for the session has left; it had overflowed before."""

    sid: int


class Closed(NamedTuple):
    """The connection is gone; its sid is never used again."""

    sid: int
    code: int
    audience: int  # one it was in to the last, 0 for none


EngineEvent: TypeAlias = Opened | Arrived | Received | Flooded | Drained | Closed
WsgiApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# When an audience with a window gets a keyframe: a message that refers to nothing, on which those
# who wait hop on. At once where nobody is on the window; else where somebody waits and the last one
# is KEYFRAME_S old, or many wait (so many, and a fourth of the members) and it is HURRY_S old.
KEYFRAME_S: Final = 5.0
HURRY_S: Final = 1.0
HURRY_MEMBERS: Final = 8
HURRY_SHARE: Final = 4

# Hexadecimal digits of a sid where an engine writes it into a greeting.
SID_DIGITS: Final = 12


class EngineLimits(NamedTuple):
    """What one connection may cost."""

    handshake_s: float
    handshake_bytes: int
    message_bytes: int
    fragments: int
    connections: int
    connections_per_address: int
    queue_bytes: int
    queue_s: float
    idle_s: float
    commands_per_second: int
    accepts_per_second: int


class Engine(Protocol):
    """Audiences and sids are integers of the engine's."""

    @property
    def connections(self) -> int:
        """How many sessions are open."""

    @property
    def behind(self) -> bool:
        """Whether more of what clients say is waiting than was taken when last looked at."""

    @property
    def frames_sent(self) -> int:
        """How many frames were sent or queued since the start."""

    @property
    def bytes_sent(self) -> int:
        """How many bytes the sockets have taken since the start."""

    def start(self, listener: socket.socket, app: WsgiApp) -> None:
        """Serve: upgrades become sessions, everything else goes to the WSGI application."""

    # -- audiences --------------------------------------------------------------------------------

    def audience(self, form: Form) -> int:
        """Return the number of a new audience, above 0."""

    def forget(self, audience: int) -> None:
        """Drop an audience; its members are in none."""

    def members(self, audience: int) -> int:
        """Return how many sessions an audience has."""

    def sent_to(self, audience: int) -> int:
        """Return how many bytes its members took from `broadcast`: framed, compressed, each."""

    def sids(self, audience: int) -> list[int]:
        """Return the members of an audience."""

    def audience_of(self, sid: int) -> int:
        """Return an audience that a session is in, 0 for none."""

    def join(self, sid: int, audience: int) -> None:
        """Add a session to an audience."""

    def leave(self, sid: int, audience: int) -> None:
        """Take a session out of an audience."""

    def stands(self, audience: int, position: int) -> None:
        """Say up to where the members have got everything: an engine may answer PING by itself."""

    # -- sending ----------------------------------------------------------------------------------

    def broadcast(self, audience: int, payload: bytes, skip: Collection[int] = ()) -> list[int]:
        """Queue one message for every member but `skip`; return those whose queue is full.

        They got nothing, and get nothing more until `Drained`.
        """

    def send(self, sid: int, payload: bytes) -> bool:
        """Queue a message for one session, never compressed; False when its queue is full.

        Nothing was queued then. Text where the session's subprotocol is the first of the engine's.
        """

    def prepare(self, audience: int, payload: bytes) -> Any:
        """Return a message in the form of an audience that refers to no other, for `admit`."""

    def admit(
        self,
        sids: Sequence[int],
        audience: int,
        greeting: bytes,
        sid_at: int = -1,
        backlog: Any = None,
    ) -> list[int]:
        """Queue `greeting` and `backlog` (as `prepare` gave it) for sessions, and let them join.

        Where `sid_at` is not negative, each session's sid is written there into its greeting, in
        SID_DIGITS digits. Return those whose queue is full: they have not joined.
        """

    # -- sessions ---------------------------------------------------------------------------------

    def charge(self, sid: int) -> bool:
        """Count one command of a session; False when it has sent too many in this second."""

    def exempt(self, sid: int) -> None:
        """Let a session send as many commands as it likes."""

    def reacts(self, sid: int, counter: int) -> None:
        """Let an engine that can count a session's REACT commands do so, at `counter` (0: don't).

        What it does not count comes up as `Received`.
        """

    def reactions(self) -> dict[int, dict[str, int]]:
        """Return what was counted since the last call: {counter: {kind: sum}}."""

    def close(self, sid: int, code: int, reason: str) -> None:
        """Send a close frame (or farewell) behind what is queued, then hang up in a few seconds."""

    # -- the whole --------------------------------------------------------------------------------

    def count_reactions(self, kinds: tuple[str, ...], most: int) -> None:
        """Name the kinds of REACT that may be counted at `reacts`, and the largest count of one."""

    def check_origin(self, check: bool) -> None:
        """Say whether a viewer who names an origin is not to come up as `Arrived`."""

    def trust_proxies(self, networks: Sequence[str]) -> None:
        """Name the networks of balancers: behind them a viewer's address is what they say it is."""

    def hold_off(self, seconds: float) -> None:
        """Accept nobody for a while: there is no time for more viewers."""

    def stop_accepting(self) -> None:
        """Take no new connections."""

    def stop(self) -> None:
        """Hang up on everybody."""


def engine_class() -> type[Any]:
    """Return the engine of this process: compiled where it is built, or as UPROAR_ENGINE says."""
    wanted = os.environ.get("UPROAR_ENGINE", "")
    if wanted not in ("", "fast", "reference"):
        raise ValueError(f'UPROAR_ENGINE: "{wanted}" is no engine; take fast or reference')
    if wanted != "reference" and sys.platform == "linux":
        try:
            from gateway.engine.fast import FastEngine

            return FastEngine
        except ImportError:
            if wanted:
                raise
    from gateway.engine.reference import ReferenceEngine

    return ReferenceEngine
