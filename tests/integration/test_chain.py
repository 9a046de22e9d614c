"""The chain from log to viewer, disturbed: emptied state, a killed coordinator, poison, slowness.

Each test has load or a quiet room, one disturbance, and the invariant: every viewer gets every
event once and in order, or a GAP that names what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.chaos.test_killed import RATE, check
from tests.sender import Sender
from tests.system import System, wait_until
from uproar.config import Config, load
from uproar.events import Cleared, encode_record
from uproar.log.valkey import ValkeyLog
from uproar.swarm import Member, Swarm
from uproar.valkey_client import connect

VIEWERS = 6


@pytest.fixture(scope="module")
def disturbed() -> Iterator[System]:
    """A system of this module's own: its state is emptied and its processes are killed."""
    with System() as running:
        yield running


@pytest.fixture
def swarm() -> Iterator[Swarm]:
    with Swarm(seed=7) as running:
        yield running


def config_of(system: System) -> Config:
    return load(environ={}, flags={"data": str(system.data)})


def empty_state(system: System) -> None:
    client = connect(config_of(system).socket("state"), 5.0)
    client.flushall()
    client.close()


class Show:
    """A stream with viewers of both codecs and a service that keeps sending."""

    def __init__(self, system: System, swarm: Swarm, stream: str, viewers: int = VIEWERS) -> None:
        self.system, self.swarm, self.stream = system, swarm, stream
        self.viewers = [self.join(codec=("json", "msgpack")[n % 2]) for n in range(viewers)]
        assert swarm.run(lambda: all(viewer.live for viewer in self.viewers), 20)
        self.sender = Sender(swarm, system.stream(stream), system.tokens["service"], RATE)
        assert swarm.run(lambda: self.sender.member.live, 10)

    def join(self, **options: Any) -> Member:
        """One more viewer; it begins where it joins."""
        return self.swarm.add(self.system.stream(self.stream), **{"backlog": 0, **options})

    def play(self, seconds: float) -> None:
        """Keep sending for so long."""
        end = time.monotonic() + seconds

        def over() -> bool:
            self.sender.pump()
            return time.monotonic() >= end

        assert self.swarm.run(over, seconds + 5)

    def settle(self, deadline_s: float = 30) -> None:
        """Wait until everything is acknowledged and has been seen, and check it all."""

        def settled() -> bool:
            if self.sender.open:
                return False
            last = max(offset for _, offset in self.sender.acknowledged.values())
            return all(viewer.offsets and viewer.offsets[-1] >= last for viewer in self.viewers)

        if not self.swarm.run(settled, deadline_s):
            self.sender.resend_late()
            assert self.swarm.run(settled, deadline_s), self.sender.open
        last = max(offset for _, offset in self.sender.acknowledged.values())

        def archived() -> bool:
            newest = self.system.history(self.stream)
            return bool(newest) and newest[-1]["offset"] >= last

        wait_until(archived, 10, "history is complete")
        check(self.system, self.stream, self.sender, self.viewers)


def pids(system: System) -> dict[str, int]:
    names = ("g1", "g2", "ingest", "coordinator", "archive", "moderation", "log", "state")
    return {name: system.pid_of(name) for name in names}


def test_emptied_state_costs_no_viewer_a_comment(disturbed, swarm):
    show = Show(disturbed, swarm, "emptied")
    for _ in range(2):
        show.play(1.0)
        empty_state(disturbed)
    show.play(1.0)
    show.settle()
    assert not any(viewer.gaps for viewer in show.viewers), "ring or store had it all"


def test_a_comment_in_a_quiet_room_arrives_after_state_was_emptied(swarm):
    """Its batch and its tails find no interest; the renewed lease must bring it all the same."""
    with System(state__interest_lease_s=60) as system:
        viewer = swarm.add(system.stream("quiet"), backlog=0)
        assert swarm.run(lambda: viewer.live, 20)
        empty_state(system)
        body = {"text": "is anybody there?", "nonce": "n"}
        status, answer = system.call("POST", "/stream/quiet/comments", body, role="service")
        assert status == 201, answer
        # Leases are renewed after a sixth of their time.
        assert swarm.run(lambda: viewer.offsets == [answer["offset"]], 60 / 6 + 5), viewer.offsets


def test_a_killed_coordinator_costs_no_viewer_a_comment(disturbed, swarm):
    show = Show(disturbed, swarm, "restarted")
    for _ in range(3):
        show.play(0.7)
        old = disturbed.kill9("coordinator")
        show.play(0.3)
        wait_until(lambda o=old: disturbed.pid_of("coordinator") not in (0, o), 10, "it is back")
    show.play(0.5)
    show.settle()
    assert not any(viewer.gaps for viewer in show.viewers)


def test_poison_in_the_log_stops_nothing(disturbed, swarm):
    show = Show(disturbed, swarm, "poisoned", viewers=2)
    show.play(0.3)
    before = pids(disturbed)
    good = encode_record("CLEARED", "elsewhere", 5, "m", "n", Cleared())
    fields = msgspec.msgpack.decode(good)

    def poisoned(place: int, value: object) -> bytes:
        return msgspec.msgpack.encode([*fields[:place], value, *fields[place + 1 :]])

    log = ValkeyLog(config_of(disturbed))
    now = int(time.time() * 1000)
    log.append(
        0,
        [
            b"", b"\xc1garbage", b"\x91" * 100_000, good[:-2], poisoned(0, 99),
            poisoned(1, "DANCE"), poisoned(3, 2**64 - 1), poisoned(3, -1), poisoned(6, 2**63),
            poisoned(8, "no data"), good.replace(b"elsewhere", b"elsew\xff\xfere"),
        ],
        now,
    )  # fmt: skip
    log.close()
    operator = connect(config_of(disturbed).socket("log"), 5.0)
    last = int(operator.incrby("log:0:next", 2))
    operator.xadd("log:0", {"b": b"\xc1", "t": "soon"}, id=f"{last}-0")
    operator.close()
    show.play(1.0)
    show.settle()
    assert pids(disturbed) == before, "a process ended over it"
    assert not any(viewer.gaps for viewer in show.viewers)


def test_what_a_moderator_deletes_is_gone_for_all_and_from_everywhere(disturbed, swarm):
    stream = "deleted"
    show = Show(disturbed, swarm, stream, viewers=4)
    gone: dict[Member, list[str]] = {viewer: [] for viewer in show.viewers}

    def note(member: Member, event: dict[str, Any], now: float) -> None:
        if event["type"] == "COMMENT_DELETED":
            gone[member].append(event["comment_id"])

    for viewer in show.viewers:
        viewer.on_event = note
    show.play(0.2)
    show.settle()
    target, offset = sorted(show.sender.acknowledged.values(), key=lambda known: known[1])[-5]
    status, _ = disturbed.call("DELETE", f"/stream/{stream}/comments/{target}")
    assert status == 401
    path = f"/stream/{stream}/comments/{target}"
    assert disturbed.call("DELETE", path, role="viewer")[0] == 403
    assert disturbed.call("DELETE", path, role="moderator")[0] in (200, 204)
    assert swarm.run(lambda: all(found == [target] for found in gone.values()), 5), gone
    wait_until(
        lambda: offset not in [comment["offset"] for comment in disturbed.history(stream)],
        5, "history is without it",
    )  # fmt: skip
    epoch, before = disturbed.info["epoch"], offset - 1
    seen: dict[Member, list[dict[str, Any]]] = {}
    resumed = show.join(
        epoch=epoch, offset=before, on_event=lambda m, e, _: seen.setdefault(m, []).append(e)
    )
    fresh = show.join(backlog=50)
    assert swarm.run(lambda: resumed.live and fresh.live and bool(fresh.historical), 10)
    assert swarm.run(lambda: any(e["type"] == "COMMENT_DELETED" for e in seen[resumed]), 5)
    assert resumed.recovered == [True]
    assert offset not in resumed.offsets and len(resumed.offsets) == 4
    assert offset not in fresh.historical


def test_a_resume_that_can_t_be_is_said_at_once(disturbed, swarm):
    show = Show(disturbed, swarm, "resumes", viewers=1)
    show.play(0.3)
    show.settle()
    epoch = disturbed.info["epoch"]
    position = show.viewers[0].position
    assert position is not None
    began = time.monotonic()
    members = [
        show.join(epoch="0123456789ab", offset=position, backlog=10),
        show.join(epoch=epoch, offset=position + 10**6, backlog=10),
        show.join(epoch=epoch, offset=2**53, backlog=10),
        show.join(offset=position, epoch="", backlog=10),
    ]
    assert swarm.run(lambda: all(member.live for member in members), 5)
    assert time.monotonic() - began < 2.5
    for member in members:
        assert member.recovered == [False]
        assert len(member.historical) == 10 and not member.offsets
        assert member.epoch == epoch and (member.position or 0) <= position + 10_000
    show.play(0.3)
    show.viewers += members
    last = max(offset for _, offset in show.sender.acknowledged.values())
    assert swarm.run(lambda: all(m.offsets and m.offsets[-1] >= last for m in members), 10)


def test_a_resume_from_beyond_memory_is_recovered_from_the_store_while_comments_flow(swarm):
    with System(gateway__recent_events=100, gateway__resume_max=10_000) as system:
        show = Show(system, swarm, "far", viewers=2)
        show.play(1.5)
        first = show.viewers[0].offsets[20]
        resumed: list[Member] = []
        for _ in range(6):
            resumed.append(show.join(epoch=system.info["epoch"], offset=first))
            show.play(0.4)
        show.settle()
        assert [member.recovered for member in resumed] == [[True]] * 6
        everything = [offset for offset in show.viewers[0].offsets if offset > first]
        assert all(member.offsets == everything for member in resumed)
        assert len(everything) > 1000


def test_a_resume_in_a_quiet_room_on_a_gateway_that_opened_it_earlier(disturbed, swarm):
    """Positions are the partition's: other streams move them on, a quiet stream stays behind."""
    url = disturbed.stream("calm")

    def join(**options: Any) -> Member:
        member = swarm.add(url, backlog=0, **options)
        assert swarm.run(lambda: member.live, 20)
        return member

    early = join()
    assert early.session is not None
    home = early.session.split("-")[0]
    Show(disturbed, swarm, "busy", viewers=1).play(0.5)
    for _ in range(50):
        late = join()
        if not (late.session or "").startswith(home + "-"):
            break
    else:
        pytest.fail("one gateway took 50 connections in a row")
    assert late.position is not None and early.position is not None
    assert late.position > early.position, "the gateway that opened it later begins later"
    for _ in range(50):
        began = time.monotonic()
        back = join(epoch=late.epoch, offset=late.position)
        if (back.session or "").startswith(home + "-"):
            break
    assert back.recovered == [True]
    assert time.monotonic() - began < 2.0


def test_a_slow_viewer_gets_a_gap_and_the_deletions_and_delays_nobody():
    text = "👋" * 480  # 1,920 bytes: what lies in the kernel's buffers is soon filled
    comments, each = 5000, 25
    with (
        System(gateway__queue_bytes=65_536, gateway__queue_s=120) as system,
        Swarm() as quick_swarm,
        Swarm() as slow_swarm,
    ):
        url = system.stream("slow")
        events: list[dict[str, Any]] = []
        slow = slow_swarm.add(
            url, backlog=0, reconnect=False, on_event=lambda _, event, now: events.append(event)
        )
        assert slow_swarm.run(lambda: slow.live, 20)
        quick = quick_swarm.add(url, backlog=0)
        known: dict[str, tuple[str, int]] = {}

        def note(member: Member, event: dict[str, Any], now: float) -> None:
            if event["type"] == "ACK":
                known[event["nonce"]] = (event["id"], event["offset"])

        sender = quick_swarm.add(url, backlog=0, token=system.tokens["service"], on_event=note)
        assert quick_swarm.run(lambda: quick.live and sender.live, 10)
        quick.reset_silence()
        user = {"id": "u", "name": "U"}
        deleted = []
        for at in range(0, comments, each):
            sender.send(
                [
                    {"type": "COMMENT", "text": text, "nonce": f"n{n}", "user": user}
                    for n in range(at, at + each)
                ]
            )
            assert quick_swarm.run(lambda upto=at: len(known) >= upto, 20)
            if at in (0, comments // 2):  # one deletion of the very first, one within the gap
                assert quick_swarm.run(lambda upto=at: len(known) >= upto + each, 20)
                target = known[f"n{at}"][0]
                path = f"/stream/slow/comments/{target}"
                assert system.call("DELETE", path, role="moderator")[0] in (200, 204)
                deleted.append(target)
        assert quick_swarm.run(lambda: len(known) == comments, 20)
        last = max(offset for _, offset in known.values())
        assert quick_swarm.run(lambda: quick.offsets[-1:] == [last], 20)
        assert quick.offsets == sorted(offset for _, offset in known.values())
        assert quick.silence_s < 2.0 and not quick.gaps
        # Only now the slow one reads.
        assert slow_swarm.run(lambda: slow.offsets[-1:] == [last], 20), (slow.offsets[-1:], last)
        assert slow.closed is None and slow.repeats == 0
        assert slow.offsets == sorted(set(slow.offsets))
        assert slow.gaps, "it was never slow: the test proves nothing"
        missed = set(quick.offsets) - set(slow.offsets)
        assert missed
        for offset in missed:
            assert any(low < offset <= high for low, high in slow.gaps)
        for low, high in slow.gaps:
            assert not any(low < offset <= high for offset in slow.offsets)
        told = [event["comment_id"] for event in events if event["type"] == "COMMENT_DELETED"]
        assert told == deleted
        assert {event["reason"] for event in events if event["type"] == "GAP"} == {"too_slow"}
        # And it goes on live.
        body = {"text": "after", "nonce": "after"}
        _, answer = system.call("POST", "/stream/slow/comments", body, role="service")
        assert slow_swarm.run(lambda: slow.offsets[-1:] == [answer["offset"]], 10)
