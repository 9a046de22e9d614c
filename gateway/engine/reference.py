"""The reference engine: gevent, gevent-websocket, plain Python. Runs anywhere; is the oracle.

gevent-websocket's handler does the upgrade; frames are `uproar.frames`, because the package's own
reader has no size limit, accepts unmasked frames and answers some closes with the wrong code. One
greenlet reads a connection; writing is a plain non-blocking send of the shared bytes, and a watcher
of the hub only where a socket is full.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

import gevent
from gevent.socket import wait_read

from gateway.engine import (
    SID_DIGITS,
    Closed,
    Drained,
    EngineEvent,
    EngineLimits,
    Flooded,
    Form,
    Opened,
    Received,
    Request,
    WsgiApp,
)
from gateway.engine.acceptor import Acceptor
from gateway.engine.audience import Audience, Message
from gateway.engine.forwarded import Proxies
from gateway.engine.upgrade import HTTP_SOCKETS, LINGER_S, Handler, linger
from uproar import frames
from uproar.logs import event

logger = logging.getLogger(__name__)

READ_BYTES = 65_536
DEFLATED_BYTES = 4096  # at once where they may inflate a thousandfold: 4 MiB, 8 ms
WRITABLE = 2  # libev's name for it


class _Connection:
    """One session. Unsent bytes are references to shared frames, oldest first."""

    __slots__ = (
        "audiences", "closing", "commands", "exempt", "farewell", "flooded", "full", "last",
        "queue", "queued", "raw", "second", "sid", "since", "sock", "text", "watcher", "window",
    )  # fmt: skip

    def __init__(
        self, sid: int, sock: Any, farewell: Callable[[int, str], bytes] | None, *, text: bool
    ) -> None:
        self.sid = sid
        self.farewell = farewell  # of a connection that was handed over; None: a WebSocket
        self.text = text  # what is for it alone goes as text, not binary
        self.sock = sock
        self.raw = sock._sock  # the non-blocking socket below gevent's: EAGAIN comes out as such
        self.audiences: dict[int, Audience[_Connection]] = {}
        self.window: Audience[_Connection] | None = None  # the one whose window it is on
        self.last = 0  # an audience it was in when it was closed
        self.second = 0  # the second in which `commands` were counted
        self.commands = 0
        self.exempt = False
        self.flooded = False
        self.queue: deque[memoryview] = deque()
        self.queued = 0
        self.since = 0.0  # when the oldest queued byte was queued
        self.full = False
        self.closing = False
        self.watcher: Any = None


class ReferenceEngine:
    """`gateway.engine.Engine` in plain Python."""

    behind = False  # a greenlet a socket: nobody knows

    def __init__(
        self,
        limits: EngineLimits,
        subprotocols: tuple[str, ...],
        up: Callable[[list[EngineEvent]], None],
    ) -> None:
        self.limits = limits
        self.subprotocols = subprotocols
        self._up = up
        self._events: list[EngineEvent] = []
        self._connections: dict[int, _Connection] = {}
        self._audiences: dict[int, Audience[_Connection]] = {}
        self._addresses: Counter[str] = Counter()
        self._next_sid = self._next_audience = 0
        self._server: Any = None
        self.proxies = Proxies()
        self.sockets = 0  # accepted and not closed yet, of any kind
        self.bytes_sent = 0
        self.frames_sent = 0

    # -- the interface ----------------------------------------------------------------------------

    def start(self, listener: socket.socket, app: WsgiApp) -> None:
        self._server = Acceptor(
            listener, app, handler_class=Handler, log=None, error_log=logger,
            per_second=self.limits.accepts_per_second,
        )  # fmt: skip
        self._server.engine = self
        self._server.logger = logger
        self._server.start()

    def trust_proxies(self, networks: Sequence[str]) -> None:
        self.proxies = Proxies(networks)

    def audience(self, form: Form) -> int:
        self._next_audience += 1
        self._audiences[self._next_audience] = Audience(self._next_audience, form)
        return self._next_audience

    def forget(self, audience: int) -> None:
        found = self._audiences.pop(audience, None)
        for connection in list(found.members) if found is not None else ():
            self._leave(connection, audience)

    def members(self, audience: int) -> int:
        found = self._audiences.get(audience)
        return len(found.members) if found is not None else 0

    def sent_to(self, audience: int) -> int:
        found = self._audiences.get(audience)
        return found.sent if found is not None else 0

    def sids(self, audience: int) -> list[int]:
        found = self._audiences.get(audience)
        return [member.sid for member in found.members] if found is not None else []

    def audience_of(self, sid: int) -> int:
        connection = self._connections.get(sid)
        return next(iter(connection.audiences), 0) if connection is not None else 0

    def join(self, sid: int, audience: int) -> None:
        connection = self._connections.get(sid)
        found = self._audiences.get(audience)
        if connection is not None and found is not None and not connection.closing:
            connection.audiences[audience] = found
            found.join(connection)

    def leave(self, sid: int, audience: int) -> None:
        connection = self._connections.get(sid)
        if connection is not None:
            self._leave(connection, audience)

    def stands(self, audience: int, position: int) -> None:
        pass  # PING comes up as Received

    def broadcast(self, audience: int, payload: bytes, skip: Collection[int] = ()) -> list[int]:
        found = self._audiences.get(audience)
        if found is None:
            return []
        full: list[int] = []
        takers: list[_Connection] = []
        for member in found.members:
            if member.sid in skip or member.closing:
                continue
            if member.full:
                full.append(member.sid)
            else:
                takers.append(member)
        for message, members in found.messages(payload, takers, time.monotonic()):
            full += [
                member.sid for member in members if not self._write_message(member, found, message)
            ]
        return full

    def send(self, sid: int, payload: bytes) -> bool:
        connection = self._connections.get(sid)
        return connection is None or self._write(connection, self._private(connection, payload))

    def prepare(self, audience: int, payload: bytes) -> Message | None:
        found = self._audiences.get(audience)
        return found.alone(payload) if found is not None else None

    def admit(
        self,
        sids: Sequence[int],
        audience: int,
        greeting: bytes,
        sid_at: int = -1,
        backlog: Message | None = None,
    ) -> list[int]:
        full: list[int] = []
        for sid in sids:
            connection = self._connections.get(sid)
            if connection is None:
                continue
            own = greeting
            if sid_at >= 0:
                end = sid_at + SID_DIGITS
                own = greeting[:sid_at] + f"{sid:0{SID_DIGITS}x}".encode() + greeting[end:]
            # In one piece, so that a queue has room for both or for none.
            frame = self._private(connection, own)
            if backlog is not None:
                frame += backlog.frame
            if not self._write(connection, frame):
                full.append(sid)
                continue
            if backlog is not None and backlog.compressed:
                connection.window = None
            self.join(sid, audience)
        return full

    def charge(self, sid: int) -> bool:
        connection = self._connections.get(sid)
        return connection is None or self._charge(connection)

    def exempt(self, sid: int) -> None:
        connection = self._connections.get(sid)
        if connection is not None:
            connection.exempt = True

    def reacts(self, sid: int, counter: int) -> None:
        pass  # REACT comes up as Received

    def reactions(self) -> dict[int, dict[str, int]]:
        return {}

    def close(self, sid: int, code: int, reason: str) -> None:
        connection = self._connections.get(sid)
        if connection is None or connection.closing:
            return
        connection.last = self.audience_of(sid)
        for audience in list(connection.audiences):
            self._leave(connection, audience)
        self._write_close(connection, code, reason)
        gevent.spawn_later(LINGER_S, self._hang_up, connection)

    def hold_off(self, seconds: float) -> None:
        self._server.hold_off(seconds)

    def stop_accepting(self) -> None:
        self._server.end()

    def stop(self) -> None:
        for connection in list(self._connections.values()):
            self._hang_up(connection)
        self._server.stop(timeout=1)

    @property
    def connections(self) -> int:
        """How many WebSockets are open."""
        return len(self._connections)

    # -- writing ----------------------------------------------------------------------------------

    def _private(self, connection: _Connection, payload: bytes) -> bytes:
        """Return the bytes of a message for one: no secrets beside text that somebody else chose,
        so it is never compressed."""
        if connection.farewell is not None:
            return payload
        return frames.encode(
            frames.Opcode.TEXT if connection.text else frames.Opcode.BINARY, payload
        )

    def _write_message(
        self, connection: _Connection, audience: Audience[_Connection], message: Message
    ) -> bool:
        if not self._write(connection, message.frame):
            return False
        audience.sent += len(message.frame)
        if message.compressed:
            # Its inflater has this in its memory now, whoever's window it was on.
            connection.window = audience if message.window else None
        return True

    def _write(self, connection: _Connection, frame: bytes, *, always: bool = False) -> bool:
        if not always:
            if connection.closing:
                return True  # nothing may follow a close frame
            if connection.full:
                return False
        sent = 0
        if not connection.queue:
            try:
                sent = connection.raw.send(frame)
            except BlockingIOError:
                pass
            except OSError:
                # The reading greenlet sees the broken connection and reports it.
                return True
            self.frames_sent += 1
            self.bytes_sent += sent
            if sent == len(frame):
                return True
            connection.since = time.monotonic()
        elif not always and (
            connection.queued + len(frame) > self.limits.queue_bytes
            or time.monotonic() - connection.since > self.limits.queue_s
        ):
            connection.full = True
            return False
        connection.queue.append(memoryview(frame)[sent:])
        connection.queued += len(frame) - sent
        if connection.watcher is None:
            watcher = gevent.get_hub().loop.io(connection.raw.fileno(), WRITABLE)
            connection.watcher = watcher
            watcher.start(self._flush, connection)
        return True

    def _write_close(self, connection: _Connection, code: int, reason: str = "") -> None:
        """Send the one close frame (or farewell) of a connection."""
        if connection.closing:
            return
        connection.closing = True
        if connection.farewell is None:
            self._write(connection, frames.encode_close(code, reason), always=True)
            return
        self._write(connection, connection.farewell(code, reason), always=True)
        if not connection.queue:
            self._hang_up(connection, socket.SHUT_WR)

    def _flush(self, connection: _Connection) -> None:
        """Runs in the hub when a full socket takes bytes again."""
        try:
            while connection.queue:
                part = connection.queue[0]
                sent = connection.raw.send(part)
                self.bytes_sent += sent
                connection.queued -= sent
                if sent < len(part):
                    connection.queue[0] = part[sent:]
                    return
                connection.queue.popleft()
                connection.since = time.monotonic()
        except BlockingIOError:
            return
        except OSError:
            connection.queue.clear()
            connection.queued = 0
        self._unwatch(connection)
        if connection.closing and connection.farewell is not None:
            self._hang_up(connection, socket.SHUT_WR)  # nothing answers a farewell
        if connection.full:
            connection.full = False
            self._tell(Drained(connection.sid))

    def _unwatch(self, connection: _Connection) -> None:
        if connection.watcher is not None:
            connection.watcher.stop()
            connection.watcher.close()
            connection.watcher = None

    # -- reading ----------------------------------------------------------------------------------

    def serve(
        self,
        sock: Any,
        request: Request,
        first: bytes = b"",
        farewell: Callable[[int, str], bytes] | None = None,
    ) -> None:
        """Read one connection until it ends; called by its greenlet after the handshake."""
        self._next_sid += 1
        text = request.subprotocol in (None, *self.subprotocols[:1])
        connection = _Connection(self._next_sid, sock, farewell, text=text)
        self._connections[connection.sid] = connection
        self._addresses[request.address] += 1
        self._tell(Opened(connection.sid, request))
        code = 1006
        try:
            if farewell is None:
                code = self._read(connection, first, deflate=request.compression != "none")
            else:
                self._watch(connection)
        except OSError:
            pass
        finally:
            last = connection.last or self.audience_of(connection.sid)
            self._forget(connection, request.address)
            self._tell(Closed(connection.sid, code, last))
        if code != 1006:
            self._see_off(connection)

    def _watch(self, connection: _Connection) -> None:
        """Return when one that has nothing to say ends, or no longer takes what it is sent."""
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # A peer that is gone without a word: the kernel's own patience is 15 minutes.
            idle_ms = int(self.limits.idle_s * 1000)
            connection.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, idle_ms)
        said = 0
        while said <= self.limits.handshake_bytes:
            try:
                wait_read(connection.sock.fileno(), self.limits.idle_s / 2)
                data = connection.raw.recv(READ_BYTES)
            except BlockingIOError:
                continue
            except TimeoutError:
                stuck = time.monotonic() - connection.since > self.limits.idle_s
                if connection.queue and stuck:
                    return
                continue
            if not data:
                return
            said += len(data)

    def _read(self, connection: _Connection, first: bytes, *, deflate: bool) -> int:
        parser = frames.FrameParser(
            role="server",
            max_message=self.limits.message_bytes,
            max_fragments=self.limits.fragments,
            deflate=deflate,
        )
        read_bytes = DEFLATED_BYTES if deflate else READ_BYTES
        sock = connection.sock
        asked = False  # a client that says nothing is asked once with a ping; then it is gone
        data = first
        while True:
            for message in parser.feed(data) if data else ():
                if isinstance(message, frames.Close):
                    answer = 1000 if message.code == frames.NO_STATUS else message.code
                    self._write_close(connection, answer)
                    return message.code
                if not connection.closing:
                    self._take(connection, message)
            if parser.error is not None:
                self._write_close(connection, parser.error.code, parser.error.reason)
                return parser.error.code
            # A plain recv from a socket that always has more never gives up the hub, and sleep(0)
            # comes back some 50 times before the hub polls. This is one piece a poll, so a flood
            # is handed up, answered and closed while everybody else is served.
            data = b""
            try:
                wait_read(sock.fileno(), self.limits.idle_s / 2)
                data = connection.raw.recv(read_bytes)
            except BlockingIOError:
                continue
            except TimeoutError:
                if asked:
                    return 1006
                asked = True
                self._write(connection, frames.encode(frames.Opcode.PING, b""))
                continue
            if not data:
                return 1006
            asked = False

    def _take(self, connection: _Connection, message: frames.Message) -> None:
        if isinstance(message, frames.Text):
            self._tell(Received(connection.sid, message.text))
        elif isinstance(message, frames.Binary):
            self._tell(Received(connection.sid, message.data))
        elif not self._charge(connection):
            if not connection.flooded:
                connection.flooded = True
                self._tell(Flooded(connection.sid))
        elif isinstance(message, frames.Ping):
            self._write(connection, frames.encode(frames.Opcode.PONG, message.data))

    def _charge(self, connection: _Connection) -> bool:
        """Count one command, ping or pong; False for one too many in this second."""
        if connection.exempt:
            return True
        second = int(time.monotonic())
        if second != connection.second:
            connection.second, connection.commands = second, 0
        connection.commands += 1
        return connection.commands <= self.limits.commands_per_second

    def _see_off(self, connection: _Connection) -> None:
        """Let what is queued, the close frame last, reach a client that is to know why."""
        try:
            connection.sock.settimeout(LINGER_S)
            for part in connection.queue:
                connection.sock.sendall(part)
        except OSError:
            pass
        connection.queue.clear()
        linger(connection.sock)

    def count_http(self, by: int) -> None:
        """Count connections that pywsgi has."""
        self.sockets += by

    def count_reactions(self, kinds: tuple[str, ...], most: int) -> None:
        """Nothing is counted here: it all goes up."""

    def check_origin(self, check: bool) -> None:
        """Everybody comes up as `Opened`."""

    def crowded(self) -> bool:
        """Whether there are more sockets than this process means to hold."""
        return self.sockets > self.limits.connections + HTTP_SOCKETS

    def refuses(self, address: str) -> bool:
        """Whether there is room for no more WebSockets, in all or of this address."""
        return (
            len(self._connections) >= self.limits.connections
            or self._addresses[address] >= self.limits.connections_per_address
        )

    def _forget(self, connection: _Connection, address: str) -> None:
        self._connections.pop(connection.sid, None)
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]
        for audience in list(connection.audiences):
            self._leave(connection, audience)
        self._unwatch(connection)

    def _leave(self, connection: _Connection, audience: int) -> None:
        found = connection.audiences.pop(audience, None)
        if found is not None:
            found.leave(connection)

    def _hang_up(self, connection: _Connection, how: int = socket.SHUT_RDWR) -> None:
        try:
            connection.raw.shutdown(how)
        except OSError:
            pass

    # -- upwards ----------------------------------------------------------------------------------

    def _tell(self, what: EngineEvent) -> None:
        """Collect what happens in one turn of the hub into one batch."""
        if not self._events:
            gevent.get_hub().loop.run_callback(self._hand_up)
        self._events.append(what)

    def _hand_up(self) -> None:
        batch, self._events = self._events, []
        try:
            self._up(batch)
        except Exception:
            # A fault of ours must cost one batch, not the process (promise 6).
            event(logger, "batch_failed", level=logging.ERROR, exc_info=True)
