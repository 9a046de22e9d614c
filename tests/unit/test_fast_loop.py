"""The fast engine in its hub: who is heard when passes fail, rest, or are full."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from gateway.engine import Arrived, Closed, EngineEvent, EngineLimits
from tests.unit.engine_driver import LIMITS, WAIT_S

fast = pytest.importorskip("gateway.engine.fast", reason="make setup builds it")

HEAD = (
    b"GET /stream/a HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Passes:
    """The engine's reactor, with a say in what `poll` does."""

    def __init__(
        self, reactor: Any, poll: Callable[[], tuple[list[EngineEvent], int, int]]
    ) -> None:
        self._reactor = reactor
        self.poll = poll

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


class Served:
    """A fast engine that serves in this thread's hub."""

    def __init__(self) -> None:
        self.events: list[EngineEvent] = []
        self.engine = fast.FastEngine(
            EngineLimits(**{**LIMITS, "connections": 1000, "connections_per_address": 1000}),
            ("a.v1", "a.v2"), self.events.extend,
        )  # fmt: skip
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.listener.setblocking(False)
        self.engine.start(self.listener, lambda environ, start_response: [b""])
        self.clients: list[socket.socket] = []

    def connect(self, said: bytes = HEAD) -> None:
        client = socket.create_connection(self.listener.getsockname(), WAIT_S)
        self.clients.append(client)
        client.sendall(said)

    def until(self, condition: Callable[[], object]) -> None:
        with gevent.Timeout(WAIT_S):
            while not condition():
                gevent.sleep(0.001)

    def has(self, kind: type[Any]) -> bool:
        return any(isinstance(found, kind) for found in self.events)


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    for client in made.clients:
        client.close()
    made.engine.stop()
    for watcher in ("_watcher", "_anchor", "_rest", "_timer"):
        if getattr(made.engine, watcher) is not None:
            getattr(made.engine, watcher).stop()


@pytest.mark.parametrize("when", ["watching", "resting"])
def test_a_pass_that_fails_leaves_nobody_unheard(served: Served, when: str) -> None:
    """gevent stops the watcher of a failing call: the process was deaf from then on."""
    real = served.engine._reactor
    faults = [OSError("asked to")]
    if when == "resting":
        faults.insert(0, None)

    def poll() -> tuple[list[EngineEvent], int, int]:
        fault = faults.pop(0) if faults else None
        if fault is not None:
            raise fault
        return real.poll()

    served.engine._reactor = Passes(real, poll)
    served.connect()
    served.until(lambda: served.has(Arrived) and not faults)
    for client in served.clients:
        client.close()
    served.until(lambda: served.has(Closed))


def test_a_full_pass_ends_the_rest(served: Served) -> None:
    """With more ready than a pass takes it went on resting after each, 51,200 sockets a second."""
    watching = _watching(served, [1, 256, 256, 255, 1, 256, 1, 0], drained=1)
    assert watching == [True, False, True, True, False, False, True, False]


@pytest.mark.parametrize(("ready", "behind"), [(1, False), (255, False), (256, True)])
def test_after_a_full_pass_the_engine_says_that_it_is_behind(
    served: Served, ready: int, behind: bool
) -> None:
    """By this the tick leaves it more time: its passes are too short to make a tick late."""
    real = served.engine._reactor
    served.engine._reactor = Passes(real, lambda: ([], ready, 0))
    served.engine._look()
    served.engine._reactor = real
    assert served.engine.behind is behind


@pytest.mark.parametrize(
    ("sizes", "sessions", "expected"),
    [
        # A pass for a single ping costs as much as the answers to three. A full pass ends the rest,
        # and so does one with nothing in it.
        (
            [1, 3, 9, 9, 9, fast.WORTH, 100, 256, 1, 0, 1, 0], 15_000,
            [0.01, 0.02, 0.04, 0.08, 0.08, 0.08, 0.08, 0, 0.01, 0, 0.01, 0],
        ),
        ([9, 9, 9, 9, 0], 899, [0.005, 0.005, 0.005, 0.005, 0]),
        ([1, 1, 1, 1, 0], 1, [0.005, 0.005, 0.005, 0.005, 0]),
    ],
)  # fmt: skip
def test_a_rest_grows_while_few_of_many_ping(
    served: Served, sizes: list[int], sessions: int, expected: list[float]
) -> None:
    rests: list[float] = []
    real = served.engine._sleep

    def sleep(seconds: float) -> None:
        rests.append(seconds)
        real(seconds)

    served.engine._sleep = sleep
    served.engine.counters = lambda: {"open": sessions}
    watching = _watching(served, sizes, drained=0)
    assert rests == [seconds for seconds in expected if seconds]
    assert watching == [True, *(not seconds for seconds in expected[:-1])]


def _watching(served: Served, sizes: list[int], drained: int) -> list[bool]:
    """Let passes find so many ready sockets; return for each whether the epoll was watched."""
    real = served.engine._reactor
    watching: list[bool] = []

    def poll() -> tuple[list[EngineEvent], int, int]:
        watching.append(served.engine._watcher.active)
        ready = sizes[len(watching) - 1] if len(watching) <= len(sizes) else 0
        return [], ready, drained if ready else 0

    served.engine._reactor = Passes(real, poll)
    served.connect()  # the epoll stays ready, as nobody looks into it
    served.until(lambda: len(watching) >= len(sizes))
    served.engine._reactor = real
    return watching[: len(sizes)]
