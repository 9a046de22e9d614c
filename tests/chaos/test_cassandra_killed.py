"""Cassandra nodes are killed: the only one under a whole system, and one of three.

load: one service sends 200 comments/s and sends again what was not acknowledged; 5 viewers. fault:
SIGKILL of the only node, then of the archive as well. invariant: comments go on being acknowledged
and delivered while the store is away, and afterwards history has every one of them, in order.
"""

from __future__ import annotations

import threading
import time

import pytest

from tests.cassandra_node import three_nodes
from tests.chaos.test_killed import check
from tests.conformance.test_cassandra import eventually, opened, write_until
from tests.sender import Sender
from tests.system import System, wait_until
from uproar.store import StoreUnavailable
from uproar.swarm import Swarm

pytestmark = [pytest.mark.chaos, pytest.mark.stack]

RATE = 200  # comments a second
AWAY_S = 3.0  # of load while the node is down
CATCH_UP_S = 60.0


def test_comments_go_on_without_the_store_and_history_gets_them_all(shared_mortal_cassandra):
    node = shared_mortal_cassandra
    node.drop()
    settings = {name.replace(".", "__"): value for name, value in node.flags().items()}
    settings["store__hosts"] = f'["{node.host}"]'
    with System(**settings) as system, Swarm(seed=4) as swarm:
        stream = "away"
        viewers = [swarm.add(system.stream(stream), backlog=0) for _ in range(5)]
        assert swarm.run(lambda: all(viewer.live for viewer in viewers), 30)
        sender = Sender(swarm, system.stream(stream), system.tokens["service"], RATE)
        assert swarm.run(lambda: sender.member.live, 10)
        sender.play(swarm, 2.0)
        assert sender.acknowledged
        wait_until(lambda: system.history(stream), 20, "the archive writes")

        node.server.kill9()
        before = len(sender.acknowledged)
        sender.play(swarm, AWAY_S)
        assert len(sender.acknowledged) - before > RATE * AWAY_S / 2
        assert system.call("GET", f"/stream/{stream}/comments")[0] == 503
        old = system.kill9("archive")
        sender.play(swarm, 1.0)
        node.server.start()
        wait_until(lambda: system.pid_of("archive") not in (0, old), 10, "archive is back")

        assert swarm.run(lambda: not sender.open, 30)
        expected = {known[0] for known in sender.acknowledged.values()}

        def archived() -> bool:
            status, page = system.call("GET", f"/stream/{stream}/comments?limit=1")
            if status != 200 or not page["comments"]:
                return False
            last = max(offset for _, offset in sender.acknowledged.values())
            return page["comments"][0]["offset"] >= last

        wait_until(archived, CATCH_UP_S, "the archive has caught up")
        assert {comment["id"] for comment in system.history(stream)} >= expected
        check(system, stream, sender, viewers)


@pytest.mark.long
def test_one_of_three_nodes_may_die_and_nobody_notices():
    """RF 3: kill -9 of one node in mid-write fails no call; with two gone the sentence says so."""
    done, acknowledged = threading.Event(), []
    with three_nodes() as (node, members), opened(node, replication=3) as store:
        eventually(lambda: store.open_epoch("e1"), 60)
        writer = threading.Thread(target=write_until, args=(store, done, acknowledged))
        writer.start()
        try:
            for member in (None, members[2]):
                if member is not None:
                    member.kill9()
                until = len(acknowledged) + 30
                deadline = time.monotonic() + 60
                while len(acknowledged) < until:
                    assert time.monotonic() < deadline, "writing stands still"
                    store.newest("demo", 20)
                    time.sleep(0.02)
        finally:
            done.set()
            writer.join(30)
        kept = acknowledged[-1]
        # The dead one comes back without what it missed, and another goes: the quorum is
        # the one that was always there and the one that was away.
        members[2].start()
        members[1].kill9()
        events = eventually(lambda: store.events("demo", 1, 0, kept, 1 << 20), 60)
        assert [event.offset for event in events] == list(range(1, kept + 1))
        members[2].kill9()
        with pytest.raises(StoreUnavailable, match=r"too few replicas up|did not answer"):
            store.newest("demo", 1)
