"""A chat room for the tests of the clients, on the `websockets` library's server in threads.

It speaks docs/protocol.md with frames, handshake and encoders that are not ours: `websockets` for
the connection, tests/vectors/make.py for msgpack. One room, in memory, offsets in steps of 3.
"""

from __future__ import annotations

import json
import runpy
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgpack
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

VECTORS = runpy.run_path(str(Path(__file__).parents[1] / "vectors/make.py"))
TS = 1_763_836_800_000


class Peer:
    """The room and its connections; every method may be called from the test's thread."""

    def __init__(self) -> None:
        self.epoch = "e1"
        self.first = 100  # offsets below were trimmed: a resume from there is not recovered
        self.events: list[dict[str, Any]] = []
        self.commands: list[dict[str, Any]] = []
        self.targets: list[str] = []
        self.headers: list[Headers] = []
        self.answers: list[dict[str, Any]] = []  # REJECTED to give before any ACK, in order
        self.silent = 0  # so many commands get no answer
        self.on_connect: list[tuple[int, str]] = []  # closes for the next connections
        self.lock = threading.RLock()
        self.connections: list[ServerConnection] = []
        self.closing: list[threading.Thread] = []
        self.server: Any = None

    @property
    def url(self) -> str:
        host, port = self.server.socket.getsockname()[:2]
        return f"ws://{host}:{port}/stream/demo"

    @property
    def base(self) -> str:
        return self.url.replace("ws://", "http://").removesuffix("/stream/demo")

    @property
    def offset(self) -> int:
        return self.first + 3 * len(self.events)

    def add(self, text: str, user: dict[str, Any] | None = None) -> dict[str, Any]:
        """Place a comment and send it to everybody."""
        with self.lock:
            ts = TS + len(self.events)
            event = VECTORS["comment"](
                self.offset + 3, user or {"id": "u1", "name": "Ada", "role": "viewer"}, text, ts=ts
            )
            self.events.append(event)
            self.broadcast([event])
        return event

    def broadcast(self, events: list[dict[str, Any]]) -> None:
        with self.lock:
            for connection in list(self.connections):
                self.tell(connection, events)

    def tell(self, connection: ServerConnection, events: list[dict[str, Any]]) -> None:
        try:
            if connection.subprotocol == "uproar.v1.msgpack":
                connection.send(VECTORS["encode"](events))
            else:
                connection.send(json.dumps(events))
        except ConnectionClosed:
            pass

    def close_all(self, code: int, reason: str = "") -> None:
        """Begin the closing handshake of every connection; the clients still have to answer."""
        for connection in list(self.connections):
            closing = threading.Thread(target=connection.close, args=(code, reason))
            closing.start()
            self.closing.append(closing)

    def cut_all(self) -> None:
        """End the TCP connections without a close frame."""
        with self.lock:
            for connection in list(self.connections):
                connection.socket.shutdown(2)

    def handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        target = connection.request.path
        query = {key: values[0] for key, values in parse_qs(urlsplit(target).query).items()}
        with self.lock:
            self.targets.append(target)
            self.headers.append(connection.request.headers)
            refusal = self.on_connect.pop(0) if self.on_connect else None
        if refusal:
            connection.close(*refusal)
            return
        with self.lock:
            recovered = None
            events: list[dict[str, Any]] = []
            offset = self.offset
            if "offset" in query:
                asked = int(query["offset"])
                recovered = query["epoch"] == self.epoch and self.first <= asked <= self.offset
                if recovered:
                    offset = asked
                    events = [event for event in self.events if event["offset"] > asked]
            if not recovered:
                count = int(query.get("backlog", 50))
                events = [
                    {**event, "historical": True}
                    for event in self.events[max(0, len(self.events) - count) :]
                ]
            number = len(self.targets)
            welcome = VECTORS["welcome"](
                epoch=self.epoch, offset=offset, session=f"g{number % 2}-{number}",
                recovered=recovered, ping_s=1.0,
            )  # fmt: skip
            self.connections.append(connection)
            self.tell(connection, [welcome, *events])
        try:
            for message in connection:
                binary = isinstance(message, bytes)
                commands = msgpack.unpackb(message) if binary else json.loads(message)
                for command in commands if isinstance(commands, list) else [commands]:
                    self.obey(connection, command)
        except ConnectionClosed:
            pass
        finally:
            with self.lock:
                self.connections.remove(connection)

    def obey(self, connection: ServerConnection, command: dict[str, Any]) -> None:
        with self.lock:
            self.commands.append(command)
            if command["type"] == "PING":
                pong = {"type": "PONG", "position": self.offset, "server_time": TS}
                self.tell(connection, [pong])
                return
            if self.silent:
                self.silent -= 1
                return
            nonce = command["nonce"]
            if self.answers:
                self.tell(connection, [{**self.answers.pop(0), "nonce": nonce}])
                return
            event = self.add(command["text"], command.get("user"))
            ack = {
                "type": "ACK",
                "nonce": nonce,
                "id": event["id"],
                "offset": event["offset"],
                "shown": "all",
                "limit": None,
            }
            self.tell(connection, [ack])


def rejected(code: str, **more: Any) -> dict[str, Any]:
    return {"type": "REJECTED", "code": code, "message": "no", **more}


def until(condition: Any, deadline_s: float = 5.0) -> None:
    """Wait for a condition that another thread brings about."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.002)


@contextmanager
def running() -> Iterator[Peer]:
    peer = Peer()
    with serve(
        peer.handle,
        "127.0.0.1",
        0,
        subprotocols=["uproar.v1.json", "uproar.v1.msgpack"],  # type: ignore[list-item]
        compression="deflate",  # with a context of its own for each connection that offers
        ping_interval=None,
        close_timeout=1,
    ) as server:
        peer.server = server
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield peer
        finally:
            server.shutdown()
            for each in [thread, *peer.closing]:
                each.join(5)
