"""Each kind of process is killed in turn while 500 comments a second go through.

load: one service sends 500 comments/s and sends again, with the same nonce, what was not
acknowledged; 20 viewers on both codecs reconnect by themselves. fault: SIGKILL. invariant:
acknowledged and lost 0, shown twice 0, out of order 0, and what a viewer did not get lies in a GAP
it was told of.
"""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from tests.sender import Sender
from tests.system import System, wait_until
from uproar.swarm import Member, Swarm

pytestmark = pytest.mark.chaos

RATE = 500  # comments a second
VIEWERS = 20
SETTLE_S = 1.5  # of undisturbed load before each kill
AFTER_S = 3.5  # and after it
# What a viewer may see of a kill: no comment for so long. Others are printed, not bounded.
SILENCE_S = {"g1": 3.0, "ingest": 3.0, "coordinator": 3.0}
RECOVER_S = 30.0


def check(system: System, stream: str, sender: Sender, viewers: list[Member]) -> None:
    """The invariant, once everything is acknowledged and seen."""
    history = system.history(stream)
    places = {comment["id"]: comment["offset"] for comment in history}
    offsets = [comment["offset"] for comment in history]
    texts = [comment["text"] for comment in history]
    lost = [known for known in sender.acknowledged.values() if places.get(known[0]) != known[1]]
    assert not lost, f"{len(lost)} acknowledged comments are not in history: {lost[:5]}"
    assert len(texts) == len(set(texts)), "a comment stands twice in history"
    assert offsets == sorted(offsets)
    for viewer in viewers:
        assert viewer.offsets == sorted(set(viewer.offsets)), "twice or out of order"
        assert viewer.repeats == 0
        missed = [
            offset
            for offset in set(offsets) - set(viewer.offsets)
            if not any(low < offset <= high for low, high in viewer.gaps)
        ]
        assert not missed, f"{len(missed)} comments missed in silence: {sorted(missed)[:5]}"
        assert set(viewer.offsets) <= set(offsets)


def test_nothing_acknowledged_is_lost_whatever_is_killed(capsys):
    table = []
    with System() as system, Swarm(seed=3) as swarm:
        stream = "killed"
        viewers = [
            swarm.add(
                system.stream(stream),
                codec="json" if number % 2 else "msgpack",
                backlog=0,
                backoff_s=0.05,
                backoff_max_s=0.5,
            )
            for number in range(VIEWERS)
        ]
        assert swarm.run(lambda: all(viewer.live for viewer in viewers), 20)
        sender = Sender(swarm, system.stream(stream), system.tokens["service"], RATE)
        assert swarm.run(lambda: sender.member.live, 10)

        def settled() -> bool:
            if sender.open:
                return False
            last = max(offset for _, offset in sender.acknowledged.values())
            return all(viewer.offsets and viewer.offsets[-1] >= last for viewer in viewers)

        for name in ("g1", "ingest", "coordinator", "archive", "moderation", "state", "log"):
            sender.play(swarm, SETTLE_S)
            for viewer in viewers:
                viewer.reset_silence()
            before = len(sender.acknowledged)
            old = system.kill9(name)
            sender.play(swarm, AFTER_S)
            silence = max(viewer.silence_s for viewer in viewers)
            wait_until(lambda n=name, o=old: system.pid_of(n) not in (0, o), 10, f"{name} is back")
            gaps = sum(len(viewer.gaps) for viewer in viewers)
            table.append((name, silence, len(sender.acknowledged) - before, gaps))
            if not swarm.run(settled, RECOVER_S):
                sender.resend_late()
                assert swarm.run(settled, RECOVER_S), (name, sender.open)
        check(system, stream, sender, viewers)
        total = len(sender.acknowledged)
    with capsys.disabled():
        print(f"\n{'killed':12} {'longest silence':>16} {'acknowledged':>13} {'gaps so far':>12}")
        for name, silence, acknowledged, gaps in table:
            print(f"{name:12} {silence:14.2f} s {acknowledged:13} {gaps:12}")
        print(f"{total} acknowledged, lost 0, shown twice 0, out of order 0; {sender.refused}")
    for name, silence, _, _ in table:
        assert silence <= SILENCE_S.get(name, RECOVER_S), f"{name}: {silence:.2f} s of silence"


def test_the_supervisor_dies_and_leaves_nothing_behind():
    system = System().start()
    try:
        children = psutil.Process(system.process.pid).children(recursive=True)
        assert len(children) >= 8
        epoch = system.info["epoch"]
        posted = []
        for number in range(50):
            body = {"text": f"before {number}", "nonce": f"s{number}"}
            status, answer = system.call("POST", "/stream/s/comments", body, role="service")
            assert status == 201
            posted.append((answer["id"], answer["offset"]))
        os.kill(system.process.pid, signal.SIGKILL)
        system.process.communicate(timeout=5)
        _, alive = psutil.wait_procs(children, timeout=3)
        assert not alive, f"left running: {[process.cmdline() for process in alive]}"
        system.start()
        assert system.info["epoch"] == epoch
        stored = [(comment["id"], comment["offset"]) for comment in system.history("s")]
        assert stored == posted
        body = {"text": "before 0", "nonce": "s0"}
        status, answer = system.call("POST", "/stream/s/comments", body, role="service")
        assert (answer["id"], answer["offset"]) == posted[0], "a nonce of before is known"
    finally:
        system.stop()
        system.remove()
