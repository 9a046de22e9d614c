"""The compiled reactor by itself, one pass at a time: what a running engine is too quick for."""

from __future__ import annotations

import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.engine import Arrived, Closed, EngineLimits, Received
from tests.unit.engine_driver import LIMITS, MASK, WAIT_S
from uproar import deflate
from uproar.frames import Opcode, encode

reactor = pytest.importorskip("_fastpath.reactor", reason="make setup builds it")

HEAD = (
    b"GET /stream/a HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Loop:
    """A reactor with a listening socket; passes are made by hand."""

    def __init__(self, **limits: float) -> None:
        self.reactor = reactor.Reactor(
            EngineLimits(**{**LIMITS, **limits}), ("a.v1", "a.v2"), deflate.negotiate,
            b"HTTP/1.1 408 Slow\r\n\r\n", b"HTTP/1.1 503 Full\r\n\r\n", 100,
        )  # fmt: skip
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.listener.setblocking(False)
        self.reactor.listen(self.listener.fileno())
        self.clients: list[socket.socket] = []

    def connect(self, said: bytes = b"") -> socket.socket:
        client = socket.create_connection(self.listener.getsockname(), WAIT_S)
        self.clients.append(client)
        client.sendall(said)
        return client

    def passes(self, kind: type[Any], count: int = 1) -> list[Any]:
        """Make passes until so many events of a kind have come; return them."""
        until = time.monotonic() + WAIT_S
        found: list[Any] = []
        while len(found) < count:
            assert time.monotonic() < until, f"{len(found)} of {count} came"
            found += [each for each in self.reactor.poll()[0] if isinstance(each, kind)]
        return found

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.listener.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_a_handshake_goes_out_together_with_its_greeting(loop: Loop) -> None:
    client = loop.connect(HEAD)
    (arrived,) = loop.passes(Arrived)
    client.settimeout(0)
    with pytest.raises(BlockingIOError):
        client.recv(1)
    client.settimeout(WAIT_S)
    audience = loop.reactor.audience("text", "none")
    backlog = loop.reactor.prepare(audience, b"before")
    assert loop.reactor.admit(arrived.sids, audience, b"welcome", -1, backlog) == []
    assert loop.reactor.broadcast(audience, b"now") == []
    loop.reactor.flush()
    said = client.recv(4096)
    assert said.startswith(b"HTTP/1.1 101 ")
    assert said.endswith(b"\x81\x07welcome\x81\x06before\x81\x03now"), "in one piece"


def test_a_handshake_that_nobody_greets_goes_out_by_the_end_of_the_pass(loop: Loop) -> None:
    client = loop.connect(HEAD)
    loop.passes(Arrived)
    loop.reactor.flush()
    assert client.recv(4096).startswith(b"HTTP/1.1 101 ")


def test_a_handshake_with_a_violation_behind_it_is_answered_and_closed(loop: Loop) -> None:
    client = loop.connect(HEAD + b"\xff\xff")
    assert [each.code for each in loop.passes(Closed)] == [1002]
    loop.reactor.flush()
    said = client.recv(4096)
    assert said.startswith(b"HTTP/1.1 101 ")
    assert said.partition(b"\r\n\r\n")[2].startswith(b"\x88")


def test_an_address_has_so_many_sessions_whoever_else_is_at_the_door() -> None:
    loop = Loop(connections_per_address=3)
    waiting = [loop.connect() for _ in range(5)]
    loop.reactor.poll()
    answers = []
    for client in waiting:
        client.sendall(HEAD)
        until = time.monotonic() + WAIT_S
        while not (said := peek(client)):
            assert time.monotonic() < until
            loop.reactor.poll()
            loop.reactor.flush()
        answers.append(said.split()[1])
    assert answers == [b"101"] * 3 + [b"503"] * 2
    waiting[0].close()
    loop.passes(Closed)
    assert not loop.reactor.refuses("127.0.0.1")
    loop.close()


def peek(client: socket.socket) -> bytes:
    """Return what is there, nothing where there is nothing."""
    client.settimeout(0.001)
    try:
        return client.recv(4096)
    except TimeoutError:
        return b""
    finally:
        client.settimeout(WAIT_S)


def test_there_is_room_for_so_many_names(loop: Loop) -> None:
    with pytest.raises(ValueError, match="at most 32 are counted"):
        loop.reactor.count_reactions(tuple(f"kind{number}" for number in range(33)), 10)
    loop.reactor.count_reactions(tuple(f"kind{number}" for number in range(32)), 10)
    with pytest.raises(ValueError, match="there is room for 8"):
        reactor.Reactor(
            EngineLimits(**LIMITS), tuple(f"a.v{number}" for number in range(9)),
            deflate.negotiate, b"", b"", 100,
        )  # fmt: skip


def test_many_who_send_bombs_do_not_hold_the_loop(loop: Loop) -> None:
    extension = b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    clients = [loop.connect(HEAD.replace(b"\r\n\r\n", extension)) for _ in range(50)]
    until = time.monotonic() + WAIT_S
    while loop.reactor.counters()["open"] < len(clients):
        assert time.monotonic() < until
        loop.reactor.poll()
    loop.reactor.flush()
    bomb = encode(Opcode.TEXT, deflate.compress(b"x" * 65_536), mask=MASK, compressed=True)
    for client in clients:
        client.sendall(bomb * 40)
    ready = select.poll()
    ready.register(loop.reactor.fd, select.POLLIN)
    passes = received = 0
    while received < 40 * len(clients):
        assert ready.poll(WAIT_S * 1000), f"{received} came"
        events, *_ = loop.reactor.poll()
        passes += 1
        received += sum(isinstance(each, Received) for each in events)
    assert passes > 4, "50 times 2.6 MB in one go"


def test_one_who_never_stops_keeps_nobody_waiting(loop: Loop) -> None:
    """Where the time of a pass is used up by the first, the next begins behind them."""
    extension = b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    clients = [loop.connect(HEAD.replace(b"\r\n\r\n", extension)) for _ in range(40)]
    sids = [sid for each in loop.passes(Arrived) for sid in each.sids]
    while len(sids) < len(clients):
        sids += [sid for each in loop.passes(Arrived) for sid in each.sids]
    loop.reactor.flush()
    bomb = encode(Opcode.TEXT, deflate.compress(b"x" * 65_536), mask=MASK, compressed=True)
    for client in clients:
        client.sendall(bomb * 40 * 10)
    heard: Counter[int] = Counter()
    until = time.monotonic() + WAIT_S
    while len(heard) < len(clients):
        assert time.monotonic() < until, f"{len(heard)} of {len(clients)} were heard"
        heard.update(each.sid for each in loop.reactor.poll()[0] if isinstance(each, Received))
    assert max(heard.values()) < 100, "the first were served again and again"
