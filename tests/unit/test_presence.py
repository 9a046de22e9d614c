"""Presence: everybody is called once a minute, in bounded pieces, and again when STATE forgot."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from gateway.presence import CHUNK, MEMBERS_A_STEP, Presence, RollCall, member_of
from tests.unit.memory_state import MemoryState, live_stream, session
from uproar.state import StateLost

NOW = 1_700_000_040.0  # the beginning of a minute


def called(roll, now):
    """Everything a roll gives at one time, with its bounds checked."""
    found = []
    while pieces := roll.take(now):
        assert sum(len(piece.members) for piece in pieces) < MEMBERS_A_STEP + CHUNK
        assert all(1 <= len(piece.members) <= CHUNK and piece.now == now for piece in pieces)
        found += [(piece.stream, member) for piece in pieces for member in piece.members]
    return found


def pieces(members):
    """(stream, member) as (stream, members), as they come from sessions."""
    return [(stream, [member]) for stream, member in members]


def test_everybody_is_called_once_in_every_minute():
    here = [("s", f"u:{number}") for number in range(7000)] + [("t", "u:1"), ("t", "u:1")]
    roll = RollCall(lambda: pieces(here))
    assert sorted(called(roll, NOW)) == sorted(set(here)), "a user with two sessions counts once"
    assert called(roll, NOW + 59.9) == []
    assert sorted(called(roll, NOW + 60)) == sorted(set(here))


def test_who_joins_is_called_at_once_before_those_who_wait():
    here = [("s", f"u:{number}") for number in range(9000)]
    roll = RollCall(lambda: pieces(here))
    roll.take(NOW)
    for _ in range(3):
        roll.joined("s", ["s:new"])
    (first, *_) = roll.take(NOW + 1)
    assert (first.stream, first.members) == ("s", ["s:new"])
    assert "s:new" not in [member for _, member in called(roll, NOW + 2)]


def test_nobody_is_left_out_whoever_comes_and_goes():
    for seed in range(30):
        chance = random.Random(seed)
        here: dict[int, tuple[str, str]] = {}
        roll = RollCall(lambda here=here: pieces(here.values()))
        told: Counter[tuple[int, str, str]] = Counter()
        stayed: set[tuple[str, str]] = set()
        now = NOW
        for step in range(400):
            now = NOW + step * 0.5
            if step % 120 == 0:
                stayed = set(here.values())
            for _ in range(chance.randrange(5)):
                member = (chance.choice("st"), f"u:{chance.randrange(400)}")
                here[len(told) * 1000 + chance.randrange(1000)] = member
                roll.joined(member[0], [member[1]])
            for sid in chance.sample(list(here), min(len(here), chance.randrange(3))):
                stayed.discard(here.pop(sid))
            for piece in roll.take(now):
                told.update((int(now // 60), piece.stream, member) for member in piece.members)
            if step % 120 == 119:
                missed = [one for one in stayed if (int(now // 60), *one) not in told]
                assert not missed


class Gateway:
    """A presence with its sessions and a state."""

    def __init__(self):
        self.state = MemoryState()
        self.sessions = {}
        self.forgotten = 0
        self.refreshed = 0
        self.plain = {}
        self.presence = Presence(
            self.state, "g1", "i1", self.sessions, self.plain.items, self.count, self.on_forgotten,
            self.refresh,
        )  # fmt: skip

    def count(self):
        return dict(Counter(one.live.stream for one in self.sessions.values() if not one.serves))

    def on_forgotten(self):
        self.forgotten += 1

    def refresh(self):
        self.refreshed += 1

    def open(self, live, user=None, role="viewer"):
        sid = len(self.sessions) + 1
        one = self.sessions[sid] = session(sid, live, user, role)
        self.presence.joined(one)
        return one

    @property
    def members(self):
        return sorted(
            (piece.stream, member) for piece in self.state.present for member in piece.members
        )


def test_users_count_once_anonymous_by_session_and_services_not_at_all():
    gateway, live = Gateway(), live_stream()
    gateway.open(live, "ann")
    gateway.open(live, "ann")
    gateway.open(live, "bot", "service")
    nobody = gateway.open(live)
    look_alike = gateway.open(live, nobody.name)
    assert member_of(nobody) != member_of(look_alike)
    gateway.presence.step(NOW, 100.0)
    assert gateway.members == sorted(
        ("s", member) for member in ("u:ann", f"u:{nobody.name}", f"s:{nobody.name}")
    )
    assert gateway.state.leases["g1"] == ("i1", {"s": 4})
    assert gateway.state.marked == {"s": NOW}


def test_plain_viewers_count_by_session_like_those_that_are_known():
    gateway, live = Gateway(), live_stream()
    nobody = gateway.open(live)
    gateway.presence.step(NOW, 100.0)
    gateway.plain["s"] = ["g1-i1-2", "g1-i1-3"]
    gateway.presence.plain_joined("s", ["g1-i1-2", "g1-i1-3"])
    gateway.presence.step(NOW + 1, 100.1)
    found = [("s", f"s:{name}") for name in ("g1-i1-2", "g1-i1-3", nobody.name)]
    assert sorted(gateway.members) == sorted(found)
    gateway.state.present.clear()
    gateway.presence.step(NOW + 60, 160.0)
    assert sorted(gateway.members) == sorted(found), "and again in the next minute"


def test_streams_are_marked_at_once_and_then_now_and_then():
    gateway = Gateway()
    one = live_stream("one")
    gateway.presence.step(NOW, 100.0)
    gateway.open(one, "ann")
    gateway.presence.step(NOW + 0.25, 100.25)
    assert gateway.state.marked == {"one": NOW + 0.25}
    for step in range(2, 117):
        gateway.presence.step(NOW + step / 4, 100 + step / 4)
    assert gateway.state.calls.count("mark_active") == 1
    gateway.presence.step(NOW + 30, 130.0)
    gateway.presence.step(NOW + 31, 131.0)
    assert gateway.state.marked == {"one": NOW + 30}


def test_a_stream_that_nobody_watches_any_more_leaves_the_counts():
    gateway, live = Gateway(), live_stream()
    gateway.open(live, "ann")
    gateway.presence.step(NOW, 100.0)
    gateway.sessions.clear()
    gateway.presence.step(NOW + 1, 101.0)
    assert gateway.state.leases["g1"] == ("i1", {})


@pytest.mark.parametrize("loss", ["flushed", "away"])
def test_all_is_said_again_to_a_state_that_forgot(loss):
    gateway, live = Gateway(), live_stream()
    gateway.open(live, "ann")
    gateway.presence.step(NOW, 100.0)
    gateway.presence.step(NOW + 1, 101.0)
    assert gateway.forgotten == 1, "a lease that begins"
    if loss == "flushed":
        gateway.state.forget()
    else:
        gateway.state.away = True
        _one_turn_of(gateway.presence)
        gateway.state.away = False
        # Killed and started again: its file has the lease and lacks the last second.
        gateway.state.present.clear()
        gateway.state.marked.clear()
    gateway.presence.step(NOW + 2, 1e9)
    assert gateway.forgotten == 2
    assert gateway.members == [("s", "u:ann")]
    assert gateway.state.leases["g1"] == ("i1", {"s": 1})
    assert "s" in gateway.state.marked


def _one_turn_of(presence):
    """Run the loop once with the state away: it logs and goes on."""
    presence._lease_at = 0.0
    ended = presence.step

    def once(now, mono):
        presence._closed = True
        ended(now, mono)

    presence.step = once
    presence.run()
    presence.step, presence._closed = ended, False


def test_a_gateway_that_stops_gives_its_lease_up():
    gateway = Gateway()
    gateway.presence.step(NOW, 100.0)
    gateway.presence.close()
    assert gateway.state.leases == {}
    gateway.state.away = True
    gateway.presence.close()
    with pytest.raises(StateLost):
        gateway.presence.step(NOW, 1e9)
