"""A system whose log is on Kafka: streams on several partitions, and everything killed in turn.

load: a service a stream sends 60 comments/s and sends again, with the same nonce, what was not
acknowledged; viewers on both codecs. fault: SIGKILL of ingest, coordinator, archive and of the
broker. invariant: as in test_killed, for every stream.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

from tests.chaos.test_killed import check
from tests.sender import Sender
from tests.system import System, wait_until
from uproar.log import partition_of
from uproar.swarm import Swarm

pytestmark = [pytest.mark.chaos, pytest.mark.stack]

STREAMS = ("north", "east", "south", "west")
RATE = 60  # comments a second and stream
VIEWERS = 4  # of a stream
PLAY_S = 2.0
RECOVER_S = 60.0


def test_nothing_acknowledged_is_lost_on_kafka_whatever_is_killed(brokers):
    assert len({partition_of(stream, 12) for stream in STREAMS}) >= 3
    settings = {
        "log__engine": "kafka", "log__brokers": brokers.address, "log__replicas": 1,
        "log__min_insync": 1, "log__topic": "chaos",
    }  # fmt: skip
    with System(**settings) as system, Swarm(seed=4) as swarm:
        viewers = {
            stream: [
                swarm.add(
                    system.stream(stream),
                    codec="json" if number % 2 else "msgpack",
                    backlog=0,
                    backoff_s=0.05,
                    backoff_max_s=0.5,
                )
                for number in range(VIEWERS)
            ]
            for stream in STREAMS
        }
        everybody = [viewer for some in viewers.values() for viewer in some]
        assert swarm.run(lambda: all(viewer.live for viewer in everybody), 30)
        senders = {
            stream: Sender(swarm, system.stream(stream), system.tokens["service"], RATE)
            for stream in STREAMS
        }
        assert swarm.run(lambda: all(one.member.live for one in senders.values()), 20)

        def play(seconds: float) -> None:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                for sender in senders.values():
                    sender.play(swarm, 0.05)

        def settled() -> bool:
            for stream, sender in senders.items():
                if sender.open:
                    return False
                last = max(offset for _, offset in sender.acknowledged.values())
                if any(not one.offsets or one.offsets[-1] < last for one in viewers[stream]):
                    return False
            return True

        def settle(what: str) -> None:
            until = time.monotonic() + RECOVER_S
            while not swarm.run(settled, 5):
                for sender in senders.values():
                    sender.resend_late()
                assert time.monotonic() < until, what

        for name in ("ingest", "coordinator", "archive", "moderation", "kafka"):
            play(PLAY_S)
            if name == "kafka":
                brokers.servers[0].kill9()
                play(0.5)
                brokers.start()
            else:
                old = system.kill9(name)
                wait_until(lambda n=name, o=old: system.pid_of(n) not in (0, o), 20, name)
            play(PLAY_S)
            settle(name)
        for stream in STREAMS:
            check(system, stream, senders[stream], viewers[stream])
        assert min(len(one.acknowledged) for one in senders.values()) > 300


@pytest.mark.long
def test_history_survives_the_move_from_the_embedded_log(brokers):
    streams, posted = ("north", "east"), {}

    def post(system, when):
        for stream in streams:
            for number in range(20):
                body = {"text": f"{when} {number}", "nonce": f"{when}{number}"}
                status, answer = system.call(
                    "POST", f"/stream/{stream}/comments", body, role="service"
                )
                assert status == 201, answer
                posted.setdefault(stream, []).append((answer["id"], body["text"]))

    def told(system):
        return {
            stream: [(one["id"], one["text"]) for one in system.history(stream)]
            for stream in streams
        }

    with tempfile.TemporaryDirectory(prefix="up") as directory:
        data = Path(directory) / "d"
        with System(data) as system:
            post(system, "before")
            wait_until(lambda: told(system) == posted, 10, "all of it is archived")
        settings = {
            "log__engine": "kafka", "log__brokers": brokers.address, "log__replicas": 1,
            "log__min_insync": 1, "log__topic": "moved",
        }  # fmt: skip
        for when in ("after", "again"):
            with System(data, **settings) as system:
                wait_until(lambda s=system: _takes(s), 30, "ingest has its partitions")
                post(system, when)
                wait_until(lambda s=system: told(s) == posted, 10, "old and new, in order")


def _takes(system):
    """Whether comments are taken: a new member of the groups waits a moment for its partitions."""
    return all(
        system.call("POST", f"/stream/t{number}/comments", {"text": "x"}, role="service")[0] == 201
        for number in range(24)
    )
