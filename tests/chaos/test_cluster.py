"""Masters of the cluster under bus and state are killed while comments go through.

load: one service sends 300 comments/s to a stream and 12 viewers on two gateways, each on a shard
of its own. fault: SIGKILL of the master of the stream's ring, then of that of a gateway's channel.
invariant: as in test_killed; and the silence is a failover long.
"""

from __future__ import annotations

import json

import pytest

from tests.chaos.test_killed import check
from tests.sender import Sender
from tests.system import System, wait_until
from tests.valkey_cluster import running
from uproar.bus import channel, shard_of
from uproar.swarm import Swarm

pytestmark = [pytest.mark.chaos, pytest.mark.stack]

RATE = 300  # comments a second
VIEWERS = 12
SETTLE_S = 1.5
AFTER_S = 7.0
SILENCE_S = 12.0  # a node timeout of 2 s, a vote, the subscribers anew; 3.6 s seen
RECOVER_S = 30.0
STREAM = "lasting"


def test_nothing_acknowledged_is_lost_with_a_master(capsys):
    table = []
    shards = {name: shard_of(name, 100) for name in ("g1", "g2")}
    assert len(set(shards.values())) == 2
    with (
        running() as cluster,
        System(state__engine="cluster", state__nodes=json.dumps(cluster.addresses[:2])) as system,
        Swarm(seed=5) as swarm,
    ):
        assert system.pid_of("state") == 0, "no embedded server of bus and state"
        url = system.stream(STREAM)
        viewers = [
            swarm.add(url, codec="msgpack", backlog=0, backoff_s=0.05, backoff_max_s=0.5)
            for _ in range(VIEWERS)
        ]
        assert swarm.run(lambda: all(viewer.live for viewer in viewers), 20)
        sender = Sender(swarm, url, system.tokens["service"], RATE)
        assert swarm.run(lambda: sender.member.live, 10)

        def settled() -> bool:
            if sender.open:
                return False
            last = max(offset for _, offset in sender.acknowledged.values())
            return all(viewer.offsets and viewer.offsets[-1] >= last for viewer in viewers)

        for key in (f"stream:{STREAM}:ring", channel(STREAM, shards["g1"])):
            sender.play(swarm, SETTLE_S)
            for viewer in viewers:
                viewer.reset_silence()
            before = len(sender.acknowledged)
            victim = cluster.owner(key)
            victim.kill()
            sender.play(swarm, AFTER_S)
            silence = max(viewer.silence_s for viewer in viewers)
            gaps = sum(len(viewer.gaps) for viewer in viewers)
            table.append((key, silence, len(sender.acknowledged) - before, gaps))
            assert swarm.run(settled, RECOVER_S), (key, sender.open)
            victim.start()  # it comes back as a replica, and the next master may go
            wait_until(lambda: len(cluster.running()) == 6, 5, "all nodes run")
            cluster.wait_ready()
        check(system, STREAM, sender, viewers)
        total = len(sender.acknowledged)
    with capsys.disabled():
        print(
            f"\n{'its master killed':40} {'longest silence':>16} {'acknowledged':>13} {'gaps':>5}"
        )
        for key, silence, acknowledged, gaps in table:
            print(f"{key:32} {silence:14.2f} s {acknowledged:13} {gaps:5}")
        print(f"{total} acknowledged, lost 0, shown twice 0, out of order 0; {sender.refused}")
    assert max(silence for _, silence, _, _ in table) <= SILENCE_S
