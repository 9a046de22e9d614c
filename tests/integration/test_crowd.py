"""The compiled swarm and the bus publisher on a real system: what benchmarks rely on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import load
from benchmarks.crowd import Crowd
from benchmarks.publisher import Publisher
from tests.system import System
from uproar.swarm import Swarm

DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System(server__gateways=1) as running:
        yield running


def test_a_crowd_sees_what_the_plain_swarm_sees(system: System) -> None:
    url = system.stream("crowd")
    with Crowd() as crowd, Swarm(seed=1) as swarm:
        sending = load.Load(
            swarm, url, system.tokens["service"], rate=200, seconds=2, senders=1
        )  # fmt: skip
        member = swarm.add(url, measure=True, backlog=0)
        groups = [
            crowd.add(url, 20, codec=codec, deflate=deflate, decode_every=2)
            for codec in ("json", "msgpack")
            for deflate in (True, False)
        ]
        assert swarm.run(lambda: sending.ready and member.live, DEADLINE_S)
        for group in groups:
            crowd.join(group, 20, DEADLINE_S)
        load.run(swarm, sending, "crowd", DEADLINE_S)
        due = len(sending.acked)
        assert due == 400
        assert swarm.run(lambda: member.comments == due, DEADLINE_S)
        assert crowd.wait(
            lambda seen: seen.comments == 4 * 10 * due, *groups, deadline_s=DEADLINE_S
        )
        seen = crowd.seen(*groups)
        assert (seen.repeats, seen.gaps, seen.missing, seen.malformed) == (0, 0, 0, 0)
        assert seen.deflated == 2 * 20
        assert sum(count for _, count in seen.buckets) == 4 * 10 * len(member.latencies)
        for group in groups:
            counts = crowd.seen(group)
            assert counts.position_least == counts.position_most == member.position
            assert counts.messages_most - counts.messages_least <= 1  # one may have joined sooner
        assert crowd.offsets() == len(member.offsets) == due


def test_batches_of_the_publisher_join_the_chain(system: System) -> None:
    url = system.stream("fed")
    with (
        Crowd() as crowd,
        Publisher(system.data / "run" / "effective.toml", "fed") as publisher,
    ):
        group = crowd.add(url, 10)
        crowd.join(group, 10, DEADLINE_S)
        for _ in range(2):
            crowd.reset()
            told = publisher.run(500, 1)
            assert told["published"] == 500
            assert crowd.wait(lambda seen: seen.comments == 5000, group, deadline_s=DEADLINE_S)
            seen = crowd.seen(group)
            assert (seen.gaps, seen.missing, seen.repeats) == (0, 0, 0)
            assert seen.position_least == told["last"]
        late = crowd.add(url, 1, backlog=50)
        crowd.join(late, 1, DEADLINE_S)
        assert crowd.wait(lambda seen: seen.historical == 50, late, deadline_s=DEADLINE_S)
