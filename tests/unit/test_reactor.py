"""The compiled reactor by itself, a pass at a time: what a running engine is too quick to show."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.engine import Arrived, Closed, EngineLimits
from tests.unit.engine_driver import LIMITS, WAIT_S
from uproar import deflate

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
    said = client.recv(4096)
    assert said.startswith(b"HTTP/1.1 101 ")
    assert said.endswith(b"\x81\x07welcome\x81\x06before"), "in one piece"


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
