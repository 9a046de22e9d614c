"""The Cassandra node and the archive are killed while comments go through a whole system.

load: one service sends 200 comments/s and sends again what was not acknowledged; 5 viewers. fault:
SIGKILL of the only node, then of the archive as well. invariant: comments go on being acknowledged
and delivered while the store is away, and afterwards history has every one of them, in order.
"""

from __future__ import annotations

import pytest

from tests.cassandra_node import own_node
from tests.chaos.test_killed import check
from tests.sender import Sender
from tests.system import System, wait_until
from uproar.swarm import Swarm

pytestmark = [pytest.mark.chaos, pytest.mark.stack]

RATE = 200  # comments a second
AWAY_S = 3.0  # of load while the node is down
CATCH_UP_S = 60.0


def test_comments_go_on_without_the_store_and_history_gets_them_all():
    with own_node() as node:
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
