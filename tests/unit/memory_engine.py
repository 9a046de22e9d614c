"""An engine in memory: sockets are lists, and what the compiled one does by itself happens here.

Of a session it keeps what the reactor keeps: its audiences, its queue, whether that is full and
whether the close frame is out. PING and REACT of members are answered and counted by itself.
"""

from __future__ import annotations

import json
import time
from collections import deque

from gateway.engine import SID_DIGITS, Arrived, Closed, Drained, Opened, Received, Request

PING = '{"type":"PING"}'
REACT = '{"type":"REACT","kind":"fire"}'


class Socket:
    """One connection; `read` is what its client has read, one list of events a message."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.audiences: list[int] = []
        self.queue: deque[bytes] = deque()
        self.read: list[dict] = []
        self.full = False
        self.closing: tuple[int, str] | None = None
        self.last = 0
        self.exempt = False
        self.counter = 0


class MemoryEngine:
    """What `gateway.engine.Engine` promises, for JSON and SSE without compression."""

    behind = False

    def __init__(self, bound: int = 10**9) -> None:
        self.bound = bound
        self.sockets: dict[int, Socket] = {}
        self.ended: dict[int, Socket] = {}
        self.groups: dict[int, dict[int, None]] = {}  # audiences: their members in order
        self.positions: dict[int, int] = {}
        self.sums: dict[int, dict[str, int]] = {}
        self.events: list = []
        self.per_second = 10**9
        self._next = self._next_audience = 0

    # -- what clients do --------------------------------------------------------------------------

    def open(self, request: Request) -> int:
        """Connect somebody who is told of one at a time."""
        self._next += 1
        self.sockets[self._next] = Socket(request)
        self.events.append(Opened(self._next, request))
        return self._next

    def arrive(self, request: Request, count: int) -> list[int]:
        """Connect plain viewers who come up as one group."""
        sids = list(range(self._next + 1, self._next + 1 + count))
        self._next += count
        self.sockets.update((sid, Socket(request)) for sid in sids)
        self.events.append(Arrived(sids, request))
        return sids

    def say(self, sid: int, text: str) -> None:
        """A client's message."""
        socket = self.sockets[sid]
        if socket.closing:
            return
        number = socket.audiences[0] if socket.audiences else 0
        if not socket.full and self.positions.get(number, -1) >= 0:
            if text == PING:
                pong = {"type": "PONG", "position": self.positions[number], "server_time": 0}
                self.send(sid, json.dumps([pong]).encode())
                return
            if text == REACT and socket.counter:
                sums = self.sums.setdefault(socket.counter, {})
                sums["fire"] = sums.get("fire", 0) + 1
                return
        self.events.append(Received(sid, text))

    def drain(self, sid: int) -> None:
        """A client reads all that is queued for it."""
        socket = self.sockets[sid]
        while socket.queue:
            for line in socket.queue.popleft().splitlines():
                data = line.removeprefix(b"data: ")
                if data.startswith(b"["):
                    socket.read += json.loads(data)
        if socket.full:
            socket.full = False
            self.events.append(Drained(sid))

    def gone(self, sid: int, code: int = 1006) -> None:
        """A connection ends."""
        socket = self.sockets.pop(sid)
        self.ended[sid] = socket
        last = socket.audiences[0] if socket.audiences else socket.last
        for number in socket.audiences:
            del self.groups[number][sid]
        self.events.append(Closed(sid, code, last))

    def take(self) -> list:
        """Return what is to be handed up."""
        taken, self.events = self.events, []
        return taken

    # -- the interface ----------------------------------------------------------------------------

    def audience(self, form) -> int:
        assert form.compression == "none"
        self._next_audience += 1
        self.groups[self._next_audience] = {}
        return self._next_audience

    def forget(self, audience: int) -> None:
        for sid in list(self.groups.pop(audience, ())):
            self.sockets[sid].audiences.remove(audience)
        self.positions.pop(audience, None)

    def sent_to(self, audience):
        return 0

    def members(self, audience: int) -> int:
        return len(self.groups.get(audience, ()))

    def sids(self, audience: int) -> list[int]:
        return list(self.groups.get(audience, ()))

    def audience_of(self, sid: int) -> int:
        socket = self.sockets.get(sid)
        return socket.audiences[0] if socket is not None and socket.audiences else 0

    def join(self, sid: int, audience: int) -> None:
        socket = self.sockets.get(sid)
        if socket is None or socket.closing or audience not in self.groups:
            return
        if audience not in socket.audiences:
            assert not socket.audiences, "nobody is in two audiences here"
            socket.audiences.append(audience)
            self.groups[audience][sid] = None

    def leave(self, sid: int, audience: int) -> None:
        socket = self.sockets.get(sid)
        if socket is not None and audience in socket.audiences:
            socket.audiences.remove(audience)
            del self.groups[audience][sid]

    def stands(self, audience: int, position: int) -> None:
        if audience in self.groups:
            assert position >= self.positions.get(audience, 0), "positions only rise"
            self.positions[audience] = position

    def send(self, sid: int, payload: bytes) -> bool:
        socket = self.sockets.get(sid)
        if socket is None or socket.closing:
            return True
        size = sum(map(len, socket.queue)) + len(payload)
        if socket.full or (socket.queue and size > self.bound):
            socket.full = True
            return False
        socket.queue.append(payload)
        return True

    def broadcast(self, audience: int, payload: bytes, skip=()) -> list[int]:
        members = [sid for sid in self.groups.get(audience, ()) if sid not in skip]
        return [sid for sid in members if not self.send(sid, payload)]

    def prepare(self, audience: int, payload: bytes) -> bytes:
        return payload

    def admit(self, sids, audience, greeting, sid_at=-1, backlog=None) -> list[int]:
        full = []
        for sid in sids:
            own = greeting
            if sid_at >= 0:
                name = f"{sid:0{SID_DIGITS}x}".encode()
                own = greeting[:sid_at] + name + greeting[sid_at + SID_DIGITS :]
            if not self.send(sid, own + (b"\n" + backlog if backlog else b"")):
                full.append(sid)
                continue
            self.join(sid, audience)
        return full

    def charge(self, sid: int) -> bool:
        self.per_second -= 1
        return self.per_second >= 0

    def exempt(self, sid: int) -> None:
        if sid in self.sockets:
            self.sockets[sid].exempt = True

    def reacts(self, sid: int, counter: int) -> None:
        if sid in self.sockets:
            self.sockets[sid].counter = counter

    def reactions(self) -> dict[int, dict[str, int]]:
        taken, self.sums = self.sums, {}
        return taken

    def count_reactions(self, kinds, most) -> None:
        self.kinds = kinds

    def close(self, sid: int, code: int, reason: str) -> None:
        socket = self.sockets.get(sid)
        if socket is None or socket.closing:
            return
        socket.last = self.audience_of(sid)
        for number in list(socket.audiences):
            self.leave(sid, number)
        socket.closing = (code, reason)

    def hold_off(self, seconds: float) -> None:
        self.held = time.monotonic() + seconds
