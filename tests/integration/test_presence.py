"""Who is there, through a whole system: distinct viewers, exact connections, kicks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from tests.integration.raw import token_for
from tests.system import ROOT, System, wait_until
from uproar.client import Disconnected, Viewer
from uproar.config import load
from uproar.state.valkey import ValkeyState
from uproar.swarm import Member, Swarm

TWICE, ONCE, ANONYMOUS = 300, 300, 100  # users with two sessions, with one, and nobody's
SESSIONS, DISTINCT = 2 * TWICE + ONCE + ANONYMOUS, TWICE + ONCE + ANONYMOUS
WITHIN_S = 10.0  # exact again after a gateway was killed
STATED = ("viewers", "connections")


@pytest.fixture(scope="module")
def own() -> Iterator[System]:
    """A system whose gateways may be killed."""
    with System() as running:
        yield running


@pytest.fixture
def state(own) -> Iterator[ValkeyState]:
    """The running system's state."""
    found = ValkeyState(load(environ={}, flags={"data": str(own.data)}))
    yield found
    found.close()


def stated(system: System, stream: str) -> tuple[int, int]:
    """(viewers, connections) as REST says."""
    status, info = system.call("GET", f"/stream/{stream}")
    assert status == 200, info
    return info["viewers"], info["connections"]


def kick(system: System, *arguments: str) -> str:
    """Run `uproar kick`; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "uproar", "kick", *arguments, "--data", str(system.data)],
        cwd=ROOT, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def count_live(members: list[Member]) -> int:
    """How many members are connected."""
    return sum(member.live for member in members)


def near(count: int) -> bool:
    """Whether a count of distinct viewers is within 2 %."""
    return abs(count - DISTINCT) <= 0.02 * DISTINCT


def test_1000_sessions_of_700_viewers(own, state, capsys):
    stream = "crowd"
    told: dict[int, int] = {}
    with Swarm(seed=2) as swarm:

        def watch(member, event, now):
            if event["type"] in ("VIEWERS", "WELCOME"):
                told[id(member)] = event.get("count", event.get("viewers"))

        users = [f"u{number}" for number in range(TWICE + ONCE)]
        tokens = [token_for(own, user) for user in users]
        for number, token in enumerate([*tokens, *tokens[:TWICE], *[None] * ANONYMOUS]):
            swarm.add(
                own.stream(stream), token=token, backlog=0, reconnect=False,
                codec="msgpack" if number % 2 else "json", on_event=watch,
            )  # fmt: skip
        viewers = list(swarm.members)
        swarm.add(own.stream(stream), token=own.tokens["service"], backlog=0)
        assert len(viewers) == SESSIONS
        assert swarm.run(lambda: all(member.live for member in swarm.members), 30)

        def counted() -> bool:
            count, connections = stated(own, stream)
            return connections == SESSIONS and near(count)

        assert swarm.run(counted, 5), stated(own, stream)
        exact = stated(own, stream)
        assert swarm.run(lambda: {told[id(one)] for one in viewers} == {exact[0]}, 5)
        (listed,) = [one for one in state.active_streams(time.time()) if one.stream == stream]
        assert (listed.viewers, listed.connections) == exact

        lost = [one for one in viewers if (one.session or "").startswith("g1-")]
        assert 0.2 * SESSIONS < len(lost) < 0.8 * SESSIONS
        own.kill9("g1")
        died = time.monotonic()
        assert swarm.run(lambda: count_live(viewers) == SESSIONS - len(lost), 5)
        left = SESSIONS - len(lost)
        assert swarm.run(lambda: stated(own, stream)[1] == left, WITHIN_S), stated(own, stream)
        took = time.monotonic() - died
        wait_until(lambda: own.pid_of("g1"), 10, "g1 is back")
        for member in viewers:
            if not member.live:
                member.reconnect()
        assert swarm.run(lambda: all(member.live for member in viewers), 30)
        # Anonymous viewers that came back are new ones; users are who they were.
        assert swarm.run(lambda: stated(own, stream)[1] == SESSIONS, 5)
        again = ANONYMOUS + 0.02 * DISTINCT
        assert DISTINCT * 0.98 <= stated(own, stream)[0] <= DISTINCT + again
    with capsys.disabled():
        print(
            f"\n{SESSIONS} sessions of {DISTINCT} viewers: {exact[0]} viewers, {exact[1]} "
            f"connections; connections right again {took:.1f} s after a gateway was killed"
        )
    wait_until(lambda: stated(own, stream)[1] == 0, 5, "all connections are gone")


@pytest.fixture
def join(own) -> Iterator[Callable[..., Viewer]]:
    """Connect viewers: join(stream, user); all are closed after the test."""
    opened: list[Viewer] = []

    def connected(stream: str, user: str | None = None) -> Viewer:
        token = token_for(own, user) if user is not None else None
        opened.append(Viewer(own.stream(stream), token=token))
        opened[-1].connect()
        return opened[-1]

    yield connected
    for viewer in opened:
        viewer.close()


def gateway_of(viewer: Viewer) -> str:
    """The gateway that holds a viewer."""
    return (viewer.core.session or "").split("-")[0]


def closed(viewer: Viewer) -> int:
    """The close code of a connection that is being closed."""
    with pytest.raises(Disconnected) as ended:
        viewer.wait_for(lambda event: False, 5)
    return ended.value.closed.code


def answers(viewer: Viewer) -> bool:
    """Whether a connection stands."""
    viewer.send({"type": "PING"})
    return bool(viewer.wait_for(lambda event: event["type"] == "PONG", 5))


def test_a_kick_closes_a_user_s_sessions_wherever_they_are(own, state, join):
    ann = [join("kicked", "ann")]
    while len({gateway_of(viewer) for viewer in ann}) < 2:
        assert len(ann) < 40, "one gateway takes everybody"
        ann.append(join("kicked", "ann"))
    elsewhere, bob = join("other", "ann"), join("kicked", "bob")
    wait_until(lambda: len(state.seats("ann")) == len(ann) + 1, 5, "ann's sessions are registered")
    said = kick(own, "ann", "--stream", "KICKED")
    assert said.count("kicked ann from kicked (session g") == len(ann) and "other" not in said
    assert [closed(viewer) for viewer in ann] == [4005] * len(ann)
    assert answers(elsewhere)
    assert kick(own, "ann").count("kicked ann from other") == 1
    assert closed(elsewhere) == 4005
    wait_until(lambda: state.seats("ann") == [], 5, "the sessions are out of the registry")
    assert kick(own, "ann") == "ann has no open session\n"
    assert answers(bob)
    assert answers(join("kicked", "ann")), "a kick is no ban"


def test_a_flushed_state_learns_who_is_there(own, state, join):
    ann, _ = join("again", "ann"), join("again")
    wait_until(lambda: stated(own, "again") == (2, 2), 5, "both are counted")
    wait_until(lambda: on(state, "again", "ann") == 1, 5, "ann is registered")
    client = redis.Redis(unix_socket_path=str(own.data / "run" / "state.sock"))
    client.flushall()
    client.close()
    wait_until(lambda: stated(own, "again") == (2, 2), 5, "both are counted again")
    wait_until(lambda: on(state, "again", "ann") == 1, 5, "ann is registered again")
    wait_until(
        lambda: "again" in [one.stream for one in state.active_streams(time.time())],
        5, "the stream is active again",
    )  # fmt: skip
    assert "kicked ann from again" in kick(own, "ann")
    assert closed(ann) == 4005


def on(state: ValkeyState, stream: str, user: str) -> int:
    """How many registered sessions a user has on a stream."""
    return sum(seat.stream == stream for seat in state.seats(user))


def test_a_gateway_that_stops_takes_its_viewers_along_at_once(own, state, join):
    gateway = gateway_of(join("stops", "cy"))
    wait_until(lambda: state.connections(["stops"]) == [1], 5, "one viewer")
    wait_until(lambda: on(state, "stops", "cy") == 1, 5, "who is registered")
    os.kill(own.pid_of(gateway), signal.SIGTERM)
    wait_until(lambda: state.connections(["stops"]) == [0], 4, "none before the lease would end")
    assert state.seats("cy") == []


def test_kick_without_a_system_is_a_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "uproar", "kick", "ann", "--data", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "no uproar runs on this data directory" in done.stderr
    assert "Traceback" not in done.stderr
