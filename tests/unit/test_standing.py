"""What stands: the fold of the control events, whatever comes twice."""

from __future__ import annotations

import itertools

from uproar import ids, standing
from uproar.events import (
    Comment,
    Event,
    Flagged,
    HeldResolved,
    Mode,
    Pinned,
    Sampling,
    Sanction,
    StreamEnded,
    StreamStarted,
    Terms,
    Unpinned,
    User,
)
from uproar.standing import Standing, standing_of

NODE = ids.new_node()
NOW = 1_700_000_000_000
_offsets = itertools.count(1)


def made(type_, data, ts=NOW):
    return Event(next(_offsets), type_, ts, "mod", 15, 0, data)


def comment(number, user="ann"):
    return Comment(ids.build(NOW, number, NODE), User(user, user), "hi", NOW)


def sanction(user, action, until=None):
    return made("SANCTION", Sanction(user, action, "mod", "", until))


def facts(of: Standing):
    return {name: getattr(of, name) for name in Standing.__slots__}


def test_sanctions_come_and_go():
    events = [
        sanction("a", "ban"), sanction("b", "timeout", NOW + 1000), sanction("c", "shadow_ban"),
        sanction("d", "ban"), sanction("d", "unban"), sanction("e", "timeout", NOW + 1000),
        sanction("e", "unban"), sanction("f", "shadow_ban"), sanction("f", "unshadow_ban"),
        sanction("g", "kick"), sanction("h", "strike"),
    ]  # fmt: skip
    found = standing_of(events)
    assert (found.bans, found.shadows, found.timeouts) == ({"a"}, {"c"}, {"b": NOW + 1000})
    assert found.timeout_until("b", NOW + 999) == NOW + 1000
    assert found.timeout_until("b", NOW + 1000) is None
    assert found.timeouts == {}


def test_an_unban_ends_no_shadow_ban_and_the_other_way_round():
    found = standing_of(
        [sanction("a", "ban"), sanction("a", "shadow_ban"), sanction("a", "unshadow_ban")]
    )
    assert (found.bans, found.shadows) == ({"a"}, set())
    found = standing_of([sanction("a", "shadow_ban"), sanction("a", "unban")])
    assert (found.bans, found.shadows) == (set(), {"a"})


def test_a_later_timeout_counts_even_when_it_is_shorter():
    found = standing_of(
        [sanction("a", "timeout", NOW + 60_000), sanction("a", "timeout", NOW + 1000)]
    )
    assert found.timeout_until("a", NOW + 2000) is None


def test_at_most_one_comment_is_pinned():
    first, second = comment(1), comment(2)
    found = standing_of(
        [made("COMMENT_PINNED", Pinned(first)), made("COMMENT_PINNED", Pinned(second))]
    )
    assert found.pinned_at(NOW).comment == second
    found.apply(made("COMMENT_UNPINNED", Unpinned(first.id)))  # of one that is not pinned now
    assert found.pinned_at(NOW).comment == second
    found.apply(made("COMMENT_UNPINNED", Unpinned(second.id)))
    assert found.pinned_at(NOW) is None


def test_a_timed_pin_ends():
    found = standing_of([made("COMMENT_PINNED", Pinned(comment(1), "mod", NOW + 1000))])
    assert found.pinned_at(NOW + 999) is not None
    assert found.pinned_at(NOW + 1000) is None


def test_modes_add_up():
    found = standing_of(
        [
            made("MODE", Mode({"slow_s": 5, "hold": True})), made("MODE", Mode({"hold": False})),
        ]
    )  # fmt: skip
    assert found.mode == {"slow_s": 5}


def test_held_comments_wait_in_order_until_they_are_decided():
    held = [comment(number) for number in range(5)]
    found = standing_of([made("HELD", Flagged(one)) for one in held])
    found.apply(made("HELD_RESOLVED", HeldResolved(held[1].id, "approve")))
    found.apply(made("HELD_RESOLVED", HeldResolved(held[1].id, "deny")))
    assert list(found.held) == [held[n].id for n in (0, 2, 3, 4)]


def test_held_comments_are_bounded(monkeypatch):
    monkeypatch.setattr(standing, "HELD_MAX", 3)
    held = [comment(number) for number in range(5)]
    found = standing_of([made("HELD", Flagged(one)) for one in held])
    assert list(found.held) == [one.id for one in held[2:]]


def test_a_stream_begins_ends_and_begins_again():
    found = Standing()
    assert (found.opened, found.ended) == (False, False)
    found.apply(made("STREAM_STARTED", StreamStarted("One"), NOW))
    assert (found.opened, found.ended, found.title, found.started_at) == (True, False, "One", NOW)
    found.apply(made("STREAM_ENDED", StreamEnded()))
    assert (found.opened, found.ended, found.started_at) == (True, True, NOW)
    found.apply(made("STREAM_STARTED", StreamStarted("Two"), NOW + 5))
    assert (found.ended, found.title, found.started_at) == (False, "Two", NOW + 5)


def test_what_comes_twice_in_order_changes_nothing():
    """The ring repeats the newest part of what the store has."""
    held = comment(9)
    events = [
        made("STREAM_STARTED", StreamStarted("One")), made("MODE", Mode({"slow_s": 5})),
        sanction("a", "ban"), made("COMMENT_PINNED", Pinned(comment(1))), sanction("a", "unban"),
        made("HELD", Flagged(held)), made("MODE", Mode({"slow_s": 0, "unique": True})),
        made("TERMS", Terms(("x",), ("y",))), made("SAMPLING", Sampling(0.2, 6000.0)),
        made("COMMENT_UNPINNED", Unpinned(comment(1).id)), sanction("b", "timeout", NOW + 5),
        made("HELD_RESOLVED", HeldResolved(held.id, "deny")), made("STREAM_ENDED", StreamEnded()),
    ]  # fmt: skip
    once = facts(standing_of(events))
    assert once["ratio"] == 0.2
    for cut in range(len(events)):
        assert facts(standing_of(events + events[cut:])) == once
