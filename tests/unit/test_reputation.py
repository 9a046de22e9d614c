"""Strikes that expire, and what they lead to; the same after a restart."""

from __future__ import annotations

import random

import pytest

from uproar import ids
from uproar.events import Sanction
from workers.moderation.moderator import cause_of, nonce_of
from workers.moderation.pipeline import Judged, Verdict
from workers.moderation.reputation import Ladder, Reputation

LADDER = Ladder(strikes=3, strikes_s=600.0, timeouts_s=[300.0, 1800.0], forget_s=86_400.0)
START = 1_700_000_000_000
NODE = bytes(8)


class Room:
    """Comments that are taken away, the log they lead to, and a stage that reads along."""

    def __init__(self, stage=None):
        self.stage = stage or Reputation(LADDER)
        self.log = []  # (sanction, actor, ts, cause)

    def taken(self, at_s, user="u", stream="s", role="viewer", action="delete"):
        """One comment at START + at_s; return what came of it."""
        ts = START + int(at_s * 1000)
        comment_id = ids.build(ts, 0, NODE)
        comment = Judged("x", stream=stream, user=user, role=role, comment_id=comment_id, ts=ts)
        comment.verdicts.append(("rules", Verdict(action, "term: x", "term", 1.0)))
        found = self.stage.judge(comment)
        if found:
            cause = cause_of("s:" + nonce_of(comment_id, "strike"))
            self.put(Sanction(user, "strike", "moderation"), "moderation", ts + 50, cause)
            if found.action != "strike":
                done = Sanction(user, found.action, "moderation", "", found.until)
                self.put(done, "moderation", ts + 51, cause)
        return found and found.action

    def put(self, sanction, actor, ts, cause=None):
        self.log.append((sanction, actor, ts, cause))
        self.stage.learn("s", sanction, actor, ts, cause)

    def acted(self, action, at_s, user="u"):
        """A moderator does something."""
        self.put(Sanction(user, action, "m"), "m", START + int(at_s * 1000))


def test_the_ladder():
    room = Room()
    assert [room.taken(at) for at in (0, 1, 2)] == ["strike", "strike", "timeout"]
    assert [room.taken(at) for at in (400, 401, 402)] == ["strike", "strike", "timeout"]
    assert [room.taken(at) for at in (3000, 3001, 3002)] == ["strike", "strike", "shadow_ban"]
    assert [room.taken(at) for at in (3003, 3004, 3005)] == ["strike", "strike", "timeout"]


def test_timeouts_get_longer_and_end_at_a_time_of_the_log():
    room = Room()
    for at in (0, 1, 2, 400, 401, 402):
        room.taken(at)
    ends = [done.until for done, *_ in room.log if done.action == "timeout"]
    assert ends == [START + 2000 + 300_000, START + 402_000 + 1_800_000]


def test_strikes_expire():
    room = Room()
    assert [room.taken(at) for at in (0, 300, 601)] == ["strike"] * 3
    assert room.taken(602) == "timeout"  # 300, 601 and this


def test_sanctions_are_forgotten():
    room = Room()
    for at in (0, 1, 2):
        room.taken(at)
    later = 2 + 86_400
    assert [room.taken(later + at) for at in (0, 1, 2)] == ["strike", "strike", "timeout"]
    assert room.log[-1][0].until == START + (later + 2 + 300) * 1000


def test_users_and_streams_are_apart():
    room = Room()
    found = [room.taken(at, f"u{at % 2}", f"s{at % 3}") for at in range(12)]
    assert found == ["strike"] * 12


def test_what_was_on_its_way_when_a_timeout_began_costs_nothing():
    room = Room()
    found = [room.taken(at) for at in (0, 0.1, 0.2, 0.3, 0.4, 0.5)]
    assert found == ["strike", "strike", "timeout", None, None, None]
    assert room.taken(400) == "strike"


def test_an_unban_wipes_the_slate():
    room = Room()
    for at in (0, 1, 2):
        room.taken(at)
    room.acted("unban", 10)
    assert [room.taken(at) for at in (11, 12, 13)] == ["strike", "strike", "timeout"]
    assert room.log[-1][0].until == START + 13_000 + 300_000


@pytest.mark.parametrize("action", ["flag", "hold", "allow"])
def test_only_deletions_are_strikes(action):
    room = Room()
    assert [room.taken(at, action=action) for at in range(5)] == [None] * 5


@pytest.mark.parametrize("role", ["moderator", "broadcaster", "service"])
def test_who_moderates_is_exempt(role):
    room = Room()
    assert [room.taken(at, role=role) for at in range(5)] == [None] * 5


def test_somebody_without_a_past_gets_none():
    assert [Room().taken(at, user="") for at in range(3)] == [None] * 3


def test_a_moderators_own_sanctions_are_no_steps():
    room = Room()
    room.acted("timeout", 0)
    assert [room.taken(at) for at in (1, 2, 3)] == ["strike", "strike", "timeout"]


def test_deciding_again_gives_the_same():
    """A worker that was killed before its commit judges the same comments once more."""
    room = Room()
    first = [room.taken(at) for at in (0, 1, 2, 400)]
    assert [room.taken(at) for at in (0, 1, 2, 400)] == first
    assert room.taken(401) == "strike"
    assert room.taken(402) == "timeout"


def test_a_restarted_worker_decides_alike():
    """Whatever the point of the restart, and in whatever order the past is read."""
    times = [0, 1, 2, 400, 401, 402, 3000, 3001]
    for cut in range(len(times)):
        whole = Room()
        expected = [whole.taken(at) for at in times]
        before = Room()
        for at in times[:cut]:
            before.taken(at)
        stage = Reputation(LADDER)
        past = before.log[:]
        random.Random(cut).shuffle(past)
        for sanction, actor, ts, cause in past:
            stage.learn("s", sanction, actor, ts, cause)
        after = Room(stage)
        assert [after.taken(at) for at in times[cut:]] == expected[cut:], cut


def test_the_stores_events_without_their_causes_do_as_well():
    before = Room()
    for at in (0, 1, 2, 400, 401):
        before.taken(at)
    stage = Reputation(LADDER)
    for sanction, actor, ts, _ in before.log:
        stage.learn("s", sanction, actor, ts, None)
    assert Room(stage).taken(402) == "timeout"


def test_without_timeouts_the_shadow_comes_first():
    room = Room(Reputation(LADDER._replace(timeouts_s=[])))
    assert [room.taken(at) for at in (0, 1, 2)] == ["strike", "strike", "shadow_ban"]


@pytest.mark.parametrize("nonce", ["", ":abc", "moderation:", "s:moderation:nonsense:strike"])
def test_a_nonce_that_names_no_comment_has_no_cause(nonce):
    assert cause_of(nonce) is None
