"""Many viewers over one epoll loop in the calling thread, for tests and benchmarks.

Comes in: URLs. Goes out: what each member saw. Nothing runs unless `run` or `step` is called. All
viewers of one audience get the same bytes, so a message is decoded once and the outcome is shared
by its bytes: 1,000 members cost little more than their system calls. Events handed to hooks are
shared as well and must not be changed.
"""

from __future__ import annotations

import random
import selectors
import socket
import struct
import time
from array import array
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

from uproar import wire
from uproar.client import ClientCore, Closed, State
from uproar.wire import Command, Event

CONNECTING: Final = 64  # handshakes under way at once: a listen queue often holds 128
REMEMBERED: Final = 512  # decoded messages kept by their bytes
UNSENT: Final = 1 << 20  # bytes a member may hold that its socket does not take
_TICK_S: Final = 0.05  # how often timers are looked at, and the longest wait of a step
_SENT: Final = " ~"  # what stands between a text and the time it was sent


def stamp(text: str) -> str:
    """Return the text with the time it is sent at its end, for members that `measure`."""
    return f"{text}{_SENT}{time.monotonic_ns():x}"


def stamp_of(text: str) -> float | None:
    """Return the seconds of the monotonic clock at which a text was stamped, None if it was not."""
    _, found, digits = text.rpartition(_SENT)
    try:
        return int(digits, 16) / 1e9 if found else None
    except ValueError:
        return None


class _Digest(NamedTuple):
    """One message, looked at once for all who get it."""

    events: list[Event]
    live: int  # comments that are not historical
    first: int  # offsets of the first and last event
    last: int  # -1 where the message holds more than live comments, in order
    stamps: tuple[float, ...]


class Member:
    """One viewer of the swarm: a ClientCore, its socket, and what it saw.

    `offsets` are those of the live comments in the order they came, `gaps` the ranges it was told
    of, `recovered` what each WELCOME said, `latencies` seconds from `stamp` to receipt. A member
    without `decode` counts comments and follows its position, and fills none of the lists but
    `latencies`, `gaps` and `recovered`.
    """

    def __init__(
        self,
        swarm: Swarm,
        core: ClientCore,
        *,
        decode: bool,
        reconnect: bool,
        measure: bool,
        on_event: Callable[[Member, Event, float], None] | None,
    ) -> None:
        self.core = core
        self.on_event = on_event
        self.offsets: list[int] = []
        self.historical: list[int] = []
        self.gaps: list[tuple[int, int]] = []
        self.recovered: list[bool | None] = []
        self.latencies = array("d")
        self.messages = 0
        self.comments = 0  # live ones
        self.bytes = 0  # received, frames and handshakes included
        self.auto = reconnect
        self._decode = decode
        self._measure = measure
        self._swarm = swarm
        self._socket: socket.socket | None = None
        self._queued = False  # waits for its turn to connect
        self._shaking = False  # counts among those that connect
        self._connected = False
        self._unsent = b""
        self._retry_at: float | None = None
        self._next_tick = 0.0
        self._comment_at: float | None = None
        self._silence = 0.0

    @property
    def epoch(self) -> str | None:
        """Of the last WELCOME."""
        return self.core.epoch

    @property
    def position(self) -> int | None:
        """As docs/protocol.md defines it."""
        return self.core.position

    @property
    def session(self) -> str | None:
        """Of the connection that stands; None before its WELCOME and after its end."""
        return self.core.session if self.live else None

    @property
    def live(self) -> bool:
        """Whether the connection stands and its WELCOME has come."""
        return self.core.state is State.OPEN and self.core.session is not None

    @property
    def closed(self) -> Closed | None:
        """How the last connection ended, None while one stands or is being made."""
        return self.core.closed

    @property
    def repeats(self) -> int:
        """Events that came again, or out of order; a right server never sends one."""
        return self.core.repeats

    @property
    def silence_s(self) -> float:
        """The longest time without a live comment since the first one or `reset_silence`."""
        if self._comment_at is None:
            return self._silence
        return max(self._silence, time.monotonic() - self._comment_at)

    def reset_silence(self) -> None:
        """Measure silence from now on."""
        self._silence = 0.0
        self._comment_at = time.monotonic()

    def send(self, commands: Command | list[Command]) -> None:
        """Send commands as one message.

        Raises ConnectionError while there is no connection, BufferError when the server has stopped
        reading.
        """
        if self.core.state is not State.OPEN:
            raise ConnectionError(f"the member is not connected; it ended as {self.core.closed}")
        if len(self._unsent) > UNSENT:
            raise BufferError(f"the server has not taken {len(self._unsent)} bytes; send less")
        self.core.send(commands)
        self._swarm._write(self)

    def cut(self) -> None:
        """End the connection with RST, as a crash does. It comes back only as `reconnect` says."""
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._swarm._end(self, "cut off")

    def reconnect(self) -> None:
        """Connect again now, resuming where a position is known."""
        self._swarm._end(self, "connected anew")
        self._swarm._queue(self)

    def leave(self) -> None:
        """Close politely and stay away."""
        self.auto = self._queued = False
        self._retry_at = None
        self.core.close()
        self._swarm._write(self)
        self._swarm._end(self, "left")


class Swarm:
    """The members and their loop. Use it in one thread, and `close` it."""

    def __init__(self, seed: int | None = None) -> None:
        """`seed` makes the back-off of the members repeatable."""
        self.members: list[Member] = []
        self._chance = random.Random(seed)
        self._selector = selectors.DefaultSelector()
        self._waiting: deque[Member] = deque()
        self._connecting = 0
        self._digests: dict[str | bytes, _Digest] = {}
        self._next_scan = 0.0

    def __enter__(self) -> Swarm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(
        self,
        url: str,
        *,
        codec: Literal["json", "msgpack"] = "json",
        token: str | None = None,
        decode: bool = True,
        reconnect: bool = True,
        measure: bool = False,
        on_event: Callable[[Member, Event, float], None] | None = None,
        **options: Any,
    ) -> Member:
        """Add a viewer; it connects as the loop runs, at most 64 at once.

        `reconnect` heals cuts with back-off and resume. `measure` fills `latencies` from stamped
        texts. `on_event(member, event, now)` gets every event of a member that decodes. `options`
        are those of ClientCore: backlog, rate, epoch, offset, backoff_s, ….
        """
        core = ClientCore(url, codec=codec, token=token, chance=self._chance, **options)
        if core.secure:
            raise ValueError(f"{url}: a swarm speaks ws only, not wss")
        member = Member(
            self, core, decode=decode, reconnect=reconnect, measure=measure, on_event=on_event
        )
        self.members.append(member)
        self._queue(member)
        return member

    def run(self, until: Callable[[], bool], deadline_s: float) -> bool:
        """Run until the condition holds (looked at 100 times a second); False at the deadline."""
        now = time.monotonic()
        end, look_at = now + deadline_s, 0.0
        while True:
            if now >= look_at:
                if until():
                    return True
                if now >= end:
                    return False
                look_at = now + 0.01
            self.step(min(look_at, end) - now)
            now = time.monotonic()

    def step(self, wait_s: float) -> None:
        """Wait at most `wait_s` for something to do, and do it."""
        now = time.monotonic()
        if now >= self._next_scan:
            self._next_scan = now + _TICK_S
            self._scan(now)
        while self._waiting and self._connecting < CONNECTING:
            member = self._waiting.popleft()
            if member._queued:
                member._queued = False
                self._connect(member)
        ready = self._selector.select(max(0.0, min(wait_s, _TICK_S)))
        now = time.monotonic()
        for key, mask in ready:
            member = key.data
            if key.fileobj is not member._socket:
                continue  # ended by what another member's hook did
            if mask & selectors.EVENT_WRITE:
                self._writable(member, now)
            if mask & selectors.EVENT_READ:
                self._readable(member)

    def close(self) -> None:
        """Leave with all members."""
        for member in self.members:
            member.leave()
        self._waiting.clear()
        self._selector.close()

    # Sockets

    def _queue(self, member: Member) -> None:
        member._retry_at = None
        if not member._queued:
            member._queued = True
            self._waiting.append(member)

    def _settled(self, member: Member) -> None:
        """Let another member connect."""
        if member._shaking:
            member._shaking = False
            self._connecting -= 1

    def _connect(self, member: Member) -> None:
        core = member.core
        core.closed = None
        core.state = State.NEW
        sock = socket.socket(socket.AF_INET6 if ":" in core.host else socket.AF_INET)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        member._socket = sock
        member._connected = False
        member._unsent = b""
        member._next_tick = time.monotonic() + 10.0
        member._shaking = True
        self._connecting += 1
        self._selector.register(sock, selectors.EVENT_WRITE, member)
        try:
            sock.connect((core.host, core.port))
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(member, f"{core.host}:{core.port} can't be reached: {error}")

    def _writable(self, member: Member, now: float) -> None:
        sock = member._socket
        if sock is None:
            return
        if not member._connected:
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                self._end(member, f"can't be reached: error {number}")
                return
            member._connected = True
            member.core.begin(now)
        self._write(member)

    def _write(self, member: Member) -> None:
        """Send what the core wants sent; ask to be called again for what the socket left."""
        sock = member._socket
        if sock is None or not member._connected:
            return
        data = member._unsent + member.core.outgoing()
        if data:
            try:
                sent = sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._end(member, f"nothing could be sent: {error}")
                return
            data = data[sent:]
        member._unsent = data
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if data else 0)
        if self._selector.get_key(sock).events != events:
            self._selector.modify(sock, events, member)

    def _readable(self, member: Member) -> None:
        sock, core = member._socket, member.core
        if sock is None:
            return
        try:
            data = sock.recv(65_536)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(member, f"the connection broke: {error}")
            return
        if not data:
            self._end(member, "the server closed the connection without a close frame")
            return
        member.bytes += len(data)
        now = time.monotonic()  # not the step's: what came since then is in `data` too
        for payload in core.receive_payloads(data, now):
            self._message(member, payload, now)
        if member._shaking and core.state is not State.HANDSHAKE:
            self._settled(member)
        if core.pending:
            self._write(member)
        if core.state is State.CLOSED:
            self._end(member, "closed")

    def _end(self, member: Member, reason: str) -> None:
        """Give the socket up, and plan the next try where the member wants one."""
        sock = member._socket
        if sock is None:
            return
        self._settled(member)
        member._socket = None
        self._selector.unregister(sock)
        sock.close()
        now = time.monotonic()
        member.core.lost(reason, now)
        member._retry_at = None
        if member.auto:
            delay = member.core.retry_after()
            if delay is not None:
                member._retry_at = now + delay

    def _scan(self, now: float) -> None:
        """Look at every member's timers."""
        for member in self.members:
            if member._socket is None:
                if member._retry_at is not None and now >= member._retry_at:
                    self._queue(member)
            elif now >= member._next_tick:
                member._next_tick = now + 1.0
                if member.core.state is State.NEW:
                    self._end(member, "no connection within 10 s")
                    continue
                member.core.tick(now)
                self._write(member)
                if member.core.state is State.CLOSED:
                    self._end(member, "closed")

    # Messages

    def _message(self, member: Member, payload: str | bytes, now: float) -> None:
        digest = self._digests.get(payload)
        if digest is None:
            try:
                digest = _digest(member.core.codec.decode(payload))
            except wire.WireError as error:
                member.core.refuse(1007, str(error))
                return
            if len(self._digests) >= REMEMBERED:
                del self._digests[next(iter(self._digests))]
            self._digests[payload] = digest
        member.messages += 1
        if member._decode or digest.last < 0 or not member.core.advance(digest.first, digest.last):
            live = self._follow(member, digest, now)
        else:
            live = digest.live
        if live:
            member.comments += live
            if member._comment_at is not None:
                silence = now - member._comment_at
                if silence > member._silence:
                    member._silence = silence
            member._comment_at = now
            if member._measure:
                member.latencies.extend(now - sent for sent in digest.stamps)

    def _follow(self, member: Member, digest: _Digest, now: float) -> int:
        """Take the events one by one; return how many live comments were new."""
        live = 0
        hook = member.on_event if member._decode else None
        for event in member.core.take(digest.events, now):
            kind = event["type"]
            if kind == "COMMENT":
                if event.get("historical"):
                    if member._decode:
                        member.historical.append(event["offset"])
                else:
                    live += 1
                    if member._decode:
                        member.offsets.append(event["offset"])
            elif kind == "GAP":
                member.gaps.append((event["from"], event["to"]))
            elif kind == "WELCOME":
                member.recovered.append(event.get("recovered"))
            if hook is not None:
                hook(member, event, now)
        return live


def _digest(events: list[Event]) -> _Digest:
    comments = [
        event for event in events if event["type"] == "COMMENT" and not event.get("historical")
    ]
    try:
        offsets = [event["offset"] for event in comments]
        plain = len(offsets) == len(events) > 0 and all(one < two for one, two in pairwise(offsets))
        stamps = tuple(
            sent for sent in (stamp_of(event["text"]) for event in comments) if sent is not None
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise wire.WireError(f"a malformed COMMENT: {error!r}") from error
    if not plain:
        return _Digest(events, len(comments), -1, -1, stamps)
    return _Digest(events, len(comments), offsets[0], offsets[-1], stamps)
