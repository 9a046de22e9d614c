"""The engine by itself: queues, audiences, closes and floods, over real sockets."""

from __future__ import annotations

import json
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uproar.frames import Close, FrameParser, Message, Opcode, Ping, Pong, Text, encode

ROOT = Path(__file__).parents[2]
WAIT_S = 10.0
MASK = b"\0\0\0\0"
QUEUE_BYTES = 256 << 10
LIMITS = {
    "handshake_s": 2.0, "handshake_bytes": 8192, "message_bytes": 65_536, "connections": 50,
    "connections_per_address": 50, "queue_bytes": QUEUE_BYTES, "queue_s": 30.0, "idle_s": 60.0,
}  # fmt: skip


class Engine:
    """The process of tests/unit/engine_process.py."""

    def __init__(self, **limits: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.engine_process", json.dumps({**LIMITS, **limits})],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
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

    def event(self, kind: str, sid: int | None = None) -> list[Any]:
        """Return the next event of a kind (and session) that was not returned before."""
        for found in self._seen:
            if found[0] == kind and sid in (None, found[1]):
                self._seen.remove(found)
                return found
        until = time.monotonic() + WAIT_S
        while True:
            found = self._events.get(timeout=max(0.01, until - time.monotonic()))
            if found[0] == kind and sid in (None, found[1]):
                return found
            self._seen.append(found)

    def hang_up(self) -> None:
        """Close all connections of clients."""
        while self.clients:
            self.clients.pop().close()

    def close(self) -> None:
        """End the process."""
        self.hang_up()
        self._process.stdin.close()
        assert self._process.wait(WAIT_S) == 0
        self._reader.join(WAIT_S)
        self._process.stdout.close()


class Client:
    """A connection with a small receive buffer, past its handshake."""

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
        self.sid: int = engine.event("Opened")[1]
        self._parser = FrameParser(role="client", max_message=1 << 24)
        self._messages: list[Message] = []

    def send(self, opcode: int, payload: bytes = b"") -> None:
        self.sock.sendall(encode(opcode, payload, mask=MASK))

    def next(self) -> Message | None:
        """Return the next message, None at the end."""
        while not self._messages:
            data = self.sock.recv(65_536)
            if not data:
                return None
            self._messages += self._parser.feed(data)
        return self._messages.pop(0)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    running = Engine()
    yield running
    running.close()


@pytest.fixture(autouse=True)
def hung_up(engine: Engine) -> Iterator[None]:
    """No connection outlives its test."""
    yield
    engine.hang_up()


def test_whole_messages_go_up_and_frames_go_down(engine: Engine) -> None:
    client = Client(engine, "/a/b?c=d", "Sec-WebSocket-Protocol: x, a.v2, a.v1")
    assert b"Sec-WebSocket-Protocol: a.v2\r\n" in client.head
    client.send(Opcode.TEXT, "é".encode())
    client.send(Opcode.BINARY, b"\0\1\2")
    assert engine.event("Received", client.sid)[2:] == [1, "str"]
    assert engine.event("Received", client.sid)[2:] == [3, "bytes"]
    assert engine.tell("send", client.sid, "hello") is True
    assert client.next() == Text("hello")
    client.send(Opcode.PING, b"are you")
    assert client.next() == Pong(b"are you")
    engine.event("Pinged", client.sid)
    client.sock.close()
    assert engine.event("Closed", client.sid)[2] == 1006


def test_audiences(engine: Engine) -> None:
    one, two, other = (Client(engine) for _ in range(3))
    for client in (one, two):
        engine.tell("join", client.sid, 7)
    engine.tell("join", two.sid, 8)
    assert engine.tell("broadcast", 7, "seven") == []
    assert engine.tell("broadcast", 8, "eight") == []
    engine.tell("leave", two.sid, 7)
    assert engine.tell("broadcast", 7, "again") == []
    assert engine.tell("broadcast", 99, "nobody") == []
    for client in (one, two, other):
        assert engine.tell("send", client.sid, "end") is True
    told = {client.sid: [client.next() for _ in range(3)] for client in (one, two)}
    assert told[one.sid] == [Text("seven"), Text("again"), Text("end")]
    assert told[two.sid] == [Text("seven"), Text("eight"), Text("end")]
    assert other.next() == Text("end")
    for client in (one, two, other):
        client.sock.close()
        engine.event("Closed", client.sid)
    assert engine.tell("broadcast", 7, "gone") == []


def fill(engine: Engine, audience: int, size: int = 20_000) -> int:
    """Broadcast until somebody's queue is full; return how many frames were taken."""
    for count in range(10_000):
        if engine.tell("broadcast", audience, f"{count} ".ljust(size, "x")):
            return count
    raise AssertionError("the queue has no bound")


def test_a_slow_viewer_is_named_gets_nothing_half_and_is_told_of_when_it_drains(
    engine: Engine,
) -> None:
    slow, quick = Client(engine), Client(engine)
    engine.tell("join", slow.sid, 1)
    taken = fill(engine, 1)
    assert engine.tell("send", slow.sid, "more") is False
    engine.tell("join", quick.sid, 1)
    assert engine.tell("broadcast", 1, "for the quick") == [slow.sid]
    assert quick.next() == Text("for the quick")
    numbers = []
    while len(numbers) < taken:
        message = slow.next()
        assert isinstance(message, Text)
        numbers.append(int(message.text.split()[0]))
    assert numbers == list(range(taken)), "whole frames, in order, none that was refused"
    engine.event("Drained", slow.sid)
    assert engine.tell("send", slow.sid, "more") is True
    assert slow.next() == Text("more")


def test_old_bytes_are_too_much_as_well() -> None:
    engine = Engine(queue_s=0.2, queue_bytes=1 << 30)
    slow = Client(engine)
    engine.tell("join", slow.sid, 1)
    began = time.monotonic()
    fill(engine, 1)
    assert time.monotonic() - began > 0.2
    engine.close()


def test_a_close_stands_behind_what_is_queued(engine: Engine) -> None:
    client = Client(engine)
    engine.tell("join", client.sid, 2)
    taken = fill(engine, 2)
    engine.tell("close", client.sid, 4008, "too slow")
    assert engine.tell("broadcast", 2, "not for it") == []
    engine.tell("send", client.sid, "nor this")
    got = [client.next() for _ in range(taken + 1)]
    assert got[-1] == Close(4008, "too slow")
    assert all(isinstance(message, Text) for message in got[:-1])
    assert client.next() is None, "and nothing after it"
    engine.event("Closed", client.sid)


def test_a_violation_is_told_to_a_viewer_that_lags(engine: Engine) -> None:
    client = Client(engine)
    engine.tell("join", client.sid, 3)
    fill(engine, 3)
    client.sock.sendall(b"\xff\xff")
    assert engine.event("Closed", client.sid)[2] == 1002
    last: Message | None = None
    while (message := client.next()) is not None:
        last = message
    assert isinstance(last, Close)
    assert last.code == 1002


def test_the_last_words_reach_one_that_is_still_sending(engine: Engine) -> None:
    client = Client(engine)
    client.sock.sendall(struct.pack("!BBQ", 0x82, 0xFF, 8 << 20))
    client.sock.sendall(MASK + bytes(8 << 20))
    last = client.next()
    assert isinstance(last, Close)
    assert last.code == 1009


def test_nothing_goes_up_behind_a_close(engine: Engine) -> None:
    client = Client(engine)
    engine.tell("close", client.sid, 4001, "expired")
    client.send(Opcode.TEXT, b"too late")
    client.send(Opcode.PING, b"too late")
    client.send(Opcode.CLOSE, b"\x0f\xa1")
    assert client.next() == Close(4001, "expired")
    assert client.next() is None
    assert engine.event("Closed", client.sid)[2] == 4001
    with pytest.raises(queue.Empty):
        engine._events.get(timeout=0.05)
    assert not [found for found in engine._seen if found[1] == client.sid]


def test_one_that_does_not_answer_a_close_is_hung_up_on(engine: Engine) -> None:
    client = Client(engine)
    began = time.monotonic()
    engine.tell("close", client.sid, 4001, "expired")
    assert client.next() == Close(4001, "expired")
    assert client.next() is None
    assert time.monotonic() - began < 5
    engine.event("Closed", client.sid)


def test_a_flood_is_handed_up_while_it_lasts(engine: Engine) -> None:
    client, other = Client(engine), Client(engine)
    stop = threading.Event()

    def flood() -> None:
        data = encode(Opcode.TEXT, b"x" * 100, mask=MASK) * 100
        try:
            while not stop.is_set():
                client.sock.sendall(data)
        except OSError:
            pass

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        engine.event("Received", client.sid)
        for number in range(20):  # others are served between
            assert engine.tell("send", other.sid, str(number)) is True
            assert other.next() == Text(str(number))
        engine.tell("close", client.sid, 4029, "too many")
        engine.event("Closed", client.sid)
    finally:
        stop.set()
        try:
            client.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # hung up on already
        flooding.join(WAIT_S)


def test_a_silent_client_is_asked_once_and_then_gone() -> None:
    engine = Engine(idle_s=0.4)
    answers, silent = Client(engine), Client(engine)
    began = time.monotonic()
    assert answers.next() == Ping(b"")
    answers.send(Opcode.PONG)
    assert answers.next() == Ping(b"")
    assert silent.next() == Ping(b"")
    assert silent.next() is None
    assert 0.3 < time.monotonic() - began < 5
    assert engine.event("Closed", silent.sid)[2] == 1006
    engine.close()


def test_a_fault_above_costs_a_batch_not_the_process(engine: Engine) -> None:
    client = Client(engine)
    client.send(Opcode.TEXT, b"raise")
    client.send(Opcode.PING, b"alive?")
    assert client.next() == Pong(b"alive?")
    client.send(Opcode.BINARY, b"12345")
    assert engine.event("Received", client.sid)[2:] == [5, "bytes"]
    client.sock.close()


def test_stop_accepting() -> None:
    engine = Engine()
    client = Client(engine)
    engine.tell("stop_accepting")
    assert engine.tell("send", client.sid, "still served") is True
    assert client.next() == Text("still served")
    client.send(Opcode.BINARY, b"x")
    engine.event("Received", client.sid)
    late = socket.create_connection(("127.0.0.1", engine.port), WAIT_S)
    engine.clients.append(late)
    late.settimeout(0.3)
    late.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with pytest.raises(TimeoutError):
        late.recv(1)
    engine.close()


def test_sockets_are_let_go(engine: Engine) -> None:
    clients = [Client(engine) for _ in range(10)]
    for number, client in enumerate(clients):
        if number % 2:
            client.sock.close()
        else:
            client.send(Opcode.CLOSE, b"\x03\xe8")
            assert client.next() == Close(1000, "")
            client.sock.close()
        engine.event("Closed", client.sid)
    until = time.monotonic() + WAIT_S
    while engine.tell("connections") != [0, 0]:
        assert time.monotonic() < until, engine.tell("connections")
