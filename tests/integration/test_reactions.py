"""Reactions through a whole system: exact totals, at most two updates a second, none forgotten."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis

from tests.integration.raw import token_for
from tests.system import System, wait_until
from uproar.client import Viewer
from uproar.swarm import Member, Swarm

SENDERS = 26
COMMANDS = 8  # a round of 0.2 s: below the 50 a second and session that are let in
COUNT = 100  # a command: the limit
ROUNDS = 20
ROUND_S = 0.2


@pytest.fixture(scope="module")
def own() -> Iterator[System]:
    """A system whose state server may be emptied and killed."""
    with System() as running:
        yield running


class Watcher:
    """What one viewer is told of a stream's reactions, and when."""

    def __init__(self, swarm: Swarm, url: str, codec: str) -> None:
        self.totals: dict[str, int] = {}
        self.at: list[float] = []
        self.member = swarm.add(url, codec=codec, on_event=self._on_event)

    def _on_event(self, member: Member, event: dict, now: float) -> None:
        if event["type"] == "WELCOME":
            self.totals = {kind: total for kind, total in event["reactions"].items() if total}
        elif event["type"] == "REACTIONS":
            self.at.append(now)
            for kind, total in event["totals"].items():
                assert total > self.totals.get(kind, 0), "only what changed, and totals only rise"
            self.totals.update(event["totals"])


def total(system: System, stream: str) -> dict[str, int]:
    """What REST says."""
    return system.call("GET", f"/stream/{stream}")[1]["reactions"]


def test_100_000_a_second_in_aggregated_form(system):
    stream = "hype"
    with Swarm(seed=1) as swarm:
        watchers = [
            Watcher(swarm, system.stream(stream), codec)
            for codec in ("json", "msgpack") * 6  # so many that both gateways have some
        ]
        senders = [
            swarm.add(system.stream(stream), token=token_for(system, f"u{number}"), backlog=0)
            for number in range(SENDERS)
        ]
        assert swarm.run(lambda: all(member.live for member in swarm.members), 20)
        assert len({(one.member.session or "").split("-")[0] for one in watchers}) == 2
        began = time.monotonic()
        for _ in range(ROUNDS):
            # Never two rounds to make up for a late one: that could be too many in a second.
            due = time.monotonic() + ROUND_S
            swarm.run(lambda due=due: time.monotonic() >= due, 5)
            for sender in senders:
                kinds = ("fire", "heart") * (COMMANDS // 2)
                sender.send([{"type": "REACT", "kind": kind, "count": COUNT} for kind in kinds])
        each = SENDERS * COMMANDS * COUNT * ROUNDS // 2
        sums = {"fire": each, "heart": each}
        assert swarm.run(lambda: all(one.totals == sums for one in watchers), 5), [
            one.totals for one in watchers
        ]
        took = time.monotonic() - began
        swarm.run(lambda: time.monotonic() >= began + took + 1, 2)  # nothing may follow
        for one in watchers:
            assert one.totals == sums
            # The stream's updates, not each kind's: both come in one event.
            assert 4 <= len(one.at) <= 2 * took + 1
            for first, third in zip(one.at, one.at[2:], strict=False):
                assert third - first > 0.9, "three updates within a second"
        late = Watcher(swarm, system.stream(stream), "msgpack")
        assert swarm.run(lambda: late.member.live, 5)
        assert late.totals == sums and not late.at
    assert total(system, stream) == sums


def test_what_is_refused_counts_nothing(system):
    viewer, nobody = (
        Viewer(system.stream("refused"), token=token_for(system, "ann")),
        Viewer(system.stream("refused")),
    )
    for one in (viewer, nobody):
        one.connect()
    for bad in ({"kind": "fire", "count": 10**9}, {"kind": "poo"}, {"kind": "fire", "count": 0}):
        viewer.send({"type": "REACT", **bad})
        rejected = viewer.wait_for(lambda event: event["type"] == "REJECTED", 5)
        assert (rejected["code"], rejected["nonce"]) == ("bad_request", None)
    nobody.send({"type": "REACT", "kind": "fire"})
    assert nobody.wait_for(lambda e: e["type"] == "REJECTED", 5)["code"] == "read_only"
    viewer.send({"type": "REACT", "kind": "wow"})
    told = nobody.wait_for(lambda event: event["type"] == "REACTIONS", 5)
    assert told["totals"] == {"wow": 1}
    assert total(system, "refused") == {"wow": 1}
    for one in (viewer, nobody):
        one.close()


def test_a_flushed_state_learns_the_totals_again(own):
    viewer = Viewer(own.stream("flushed"), token=own.tokens["viewer"])
    viewer.connect()

    def react(count: int) -> dict[str, int]:
        viewer.send({"type": "REACT", "kind": "clap", "count": count})
        told = viewer.wait_for(lambda event: event["type"] == "REACTIONS", 10)
        return told["totals"]

    assert react(70) == {"clap": 70}
    client = redis.Redis(unix_socket_path=str(own.data / "run" / "state.sock"))
    client.flushall()
    client.close()
    wait_until(lambda: total(own, "flushed") == {"clap": 70}, 10, "the total is back by itself")
    assert react(5) == {"clap": 75}
    viewer.close()


def test_reactions_wait_for_a_state_that_died(own):
    viewer = Viewer(own.stream("waits"), token=own.tokens["viewer"])
    viewer.connect()
    viewer.send({"type": "REACT", "kind": "sad", "count": 10})
    assert viewer.wait_for(lambda e: e["type"] == "REACTIONS", 5)["totals"] == {"sad": 10}
    own.kill9("state")
    viewer.send({"type": "REACT", "kind": "sad", "count": 7})
    # The first total may be lost with the file's last second: the coordinator knows it.
    told = viewer.wait_for(lambda event: event["type"] == "REACTIONS", 15)
    assert told["totals"] == {"sad": 17}
    viewer.close()
