"""An engine in a process of its own (tests/unit/engine_process.py), and connections to it."""

from __future__ import annotations

import json
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from uproar import deflate
from uproar.frames import FrameParser, Message, encode

ROOT = Path(__file__).parents[2]
WAIT_S = 10.0
MASK = b"\0\0\0\0"
QUEUE_BYTES = 256 << 10
LIMITS = {
    "handshake_s": 2.0, "handshake_bytes": 8192, "message_bytes": 65_536, "fragments": 4096,
    "connections": 100, "connections_per_address": 100, "queue_bytes": QUEUE_BYTES,
    "queue_s": 30.0, "idle_s": 60.0, "commands_per_second": 10_000, "accepts_per_second": 1000,
}  # fmt: skip
ENGINES = ["reference", *(["fast"] if find_spec("_fastpath.reactor") else [])]
WINDOW = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
EACH = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover"


class Engine:
    """The process, led from the test's thread."""

    def __init__(
        self, kind: str, subprotocols: tuple[str, ...] = ("a.v1", "a.v2"), **limits: float
    ) -> None:
        limits = {**LIMITS, **limits}
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "tests.unit.engine_process", kind, json.dumps(limits),
                *subprotocols,
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.pid = self._process.pid
        self._results: queue.Queue[Any] = queue.Queue()
        self._events: queue.Queue[list[Any]] = queue.Queue()
        self._seen: list[list[Any]] = []
        self.clients: list[socket.socket] = []
        self.port = int(json.loads(self._process.stdout.readline())[0])
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            kind, *fields = json.loads(line)
            if kind == "done":
                self._results.put(fields[0])
            else:
                self._events.put([kind, *fields])

    def tell(self, method: str, *arguments: Any) -> Any:
        """Call a method of the engine and return what it returns."""
        self._process.stdin.write(json.dumps([method, *arguments]).encode() + b"\n")
        self._process.stdin.flush()
        return self._results.get(timeout=WAIT_S)

    def event(self, kind: str, sid: int | None = None, wait_s: float = WAIT_S) -> list[Any]:
        """Return the next event of a kind (and session) that was not returned before.

        Raises queue.Empty where none comes in time.
        """
        return self._find(lambda found: found[0] == kind and sid in (None, found[1]), wait_s)

    def event_of(self, sid: int) -> list[Any]:
        """Return the next event of a session that was not returned before."""
        return self._find(lambda found: found[1] == sid, WAIT_S)

    def _find(self, fits: Callable[[list[Any]], bool], wait_s: float) -> list[Any]:
        for found in self._seen:
            if fits(found):
                self._seen.remove(found)
                return found
        until = time.monotonic() + wait_s
        while True:
            found = self._events.get(timeout=max(0.001, until - time.monotonic()))
            if fits(found):
                return found
            self._seen.append(found)

    def arrived(self, kind: str) -> list[Any] | None:
        """Return the next event of a kind that is here already, None for none."""
        try:
            return self.event(kind, None, 0.0)
        except queue.Empty:
            return None

    def hears_nothing_of(self, sid: int, wait_s: float = 0.05) -> bool:
        """Whether nothing (more) is handed up about a session."""
        until = time.monotonic() + wait_s
        try:
            while True:
                self._seen.append(self._events.get(timeout=max(0.001, until - time.monotonic())))
        except queue.Empty:
            return not [found for found in self._seen if found[1] == sid]

    def hang_up(self) -> None:
        """Close all connections of clients."""
        while self.clients:
            self.clients.pop().close()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def close(self) -> None:
        """End the process."""
        self.hang_up()
        self._process.stdin.close()
        assert self._process.wait(WAIT_S) == 0
        self._reader.join(WAIT_S)
        self._process.stdout.close()


class Frame(NamedTuple):
    """One frame as it came, without its head."""

    compressed: bool
    payload: bytes

    @property
    def alone(self) -> bytes | None:
        """What it says to one that knows nothing before it; None: it refers to something."""
        if not self.compressed:
            return self.payload
        try:
            return deflate.inflate(self.payload, 1 << 20)
        except deflate.DeflateError:
            return None


class Client:
    """A connection with a small receive buffer, past its handshake.

    It inflates as what was agreed on lets it: with `window` one inflater reads all messages.
    """

    def __init__(self, engine: Engine, path: str = "/x", *lines: str) -> None:
        self.sock = socket.socket()
        engine.clients.append(self.sock)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(("127.0.0.1", engine.port))
        head = [
            f"GET {path} HTTP/1.1", "Host: a", "Upgrade: websocket",
            "Connection: keep-alive, Upgrade", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            "Sec-WebSocket-Version: 13", *lines, "", "",
        ]  # fmt: skip
        self.sock.sendall("\r\n".join(head).encode())
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.sock.recv(1)
        self.head = data
        assert b" 101 " in data, data
        opened = engine.event("Opened")
        self.sid: int = opened[1]
        self.compression: str = opened[4]
        self.address: str = opened[5]
        self._parser = FrameParser(
            role="client", max_message=1 << 24, deflate=self.compression != "none",
            context=self.compression == "window",
        )  # fmt: skip
        self._data = b""
        self._messages: deque[tuple[Message, Frame]] = deque()
        self.frame = Frame(False, b"")  # of the message that `next` returned last
        self.referring = 0  # messages that can't be read without those before them

    def send(self, opcode: int, payload: bytes = b"") -> None:
        self.sock.sendall(encode(opcode, payload, mask=MASK))

    def next(self) -> Message | None:
        """Return the next message, None at the end."""
        while not self._messages:
            data = self.sock.recv(65_536)
            if not data:
                return None
            self._take(data)
        message, self.frame = self._messages.popleft()
        return message

    def drain(self) -> list[Message]:
        """Return the messages that are here, without waiting."""
        self.sock.settimeout(0)
        try:
            while data := self.sock.recv(65_536):
                self._take(data)
        except BlockingIOError:
            pass
        finally:
            self.sock.settimeout(WAIT_S)
        found = [message for message, _ in self._messages]
        self._messages.clear()
        return found

    def _take(self, data: bytes) -> None:
        """Cut the bytes into frames: each is a whole message, as an engine makes them."""
        self._data += data
        while (cut := _cut(self._data)) is not None:
            start, stop = cut
            raw = self._data[:stop]
            messages = self._parser.feed(raw)
            assert self._parser.error is None, self._parser.error
            assert len(messages) == 1, raw
            frame = Frame(bool(raw[0] & 0x40), raw[start:])
            self.referring += frame.alone is None
            self._messages.append((messages[0], frame))
            self._data = self._data[stop:]


def _cut(data: bytes) -> tuple[int, int] | None:
    """Return where the payload of the first frame starts and stops, None where it is not whole."""
    start, size = 2, data[1] if len(data) > 1 else 126
    if size == 126:
        start, size = 4, int.from_bytes(data[2:4])
    elif size == 127:
        start, size = 10, int.from_bytes(data[2:10])
    return (start, start + size) if 2 <= start <= len(data) >= start + size else None
