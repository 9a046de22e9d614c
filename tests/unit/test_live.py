"""Live: whatever is lost, repeated or late on the way, the ticks hand out the stream in order."""

import random
from itertools import pairwise

import pytest

from gateway.live import BACKLOG_EVENTS, INBOX_EVENTS, Live, Past, fold, past_of, without_removed
from uproar.batch import Batch
from uproar.events import (
    CONTROL_TYPES,
    Cleared,
    Comment,
    CommentDeleted,
    Event,
    Mode,
    User,
    UserRemoved,
)

T = 1_700_000_000_000


def cid(offset):
    return offset.to_bytes(16, "big")


def comment(offset, user="u", ts=None):
    data = Comment(cid(offset), User(user, user), f"c{offset}", T)
    return Event(offset, "COMMENT", T + offset if ts is None else ts, user, 15, 0, data)


def control(offset, data, ts=None):
    kind = {CommentDeleted: "COMMENT_DELETED", UserRemoved: "USER_REMOVED", Cleared: "CLEARED"}
    return Event(offset, kind[type(data)], ts or T + offset, "m", 15, 0, data)


def restored(offset, original):
    return original._replace(offset=offset, type="COMMENT_RESTORED")


def deleted(offset, target):
    return control(offset, CommentDeleted(cid(target)))


def batch(prev, last, *events):
    return Batch(prev, last, [comment(one) if isinstance(one, int) else one for one in events])


def live_at(position=0, *, keep_events=5000, keep_ms=120_000, past=(), backlog=()):
    live = Live("s", keep_events=keep_events, keep_ms=keep_ms)
    live.open("e", position, list(past), list(backlog), [])
    return live


def offsets(events):
    return [event.offset for event in events]


def newest(live):
    return offsets(live.newest())[::-1]


def test_events_come_out_once_and_in_order():
    live = live_at(10)
    assert live.take(batch(10, 12, 11, 12))
    assert live.take(batch(12, 20, 15))
    assert live.hole is None
    events, before = live.flush()
    assert (offsets(events), before, live.sent, live.position) == ([11, 12, 15], 10, 20, 20)
    assert live.flush() == ([], 20)


def test_overlaps_are_cut_and_repeats_change_nothing():
    live = live_at(0)
    same = batch(0, 5, 1, 5)
    for one in (same, same, batch(2, 8, 5, 7), batch(0, 3, 1), batch(8, 8)):
        assert live.take(one)
    assert offsets(live.flush()[0]) == [1, 5, 7]
    assert live.position == 8


def test_a_hole_holds_back_what_is_behind_it_until_it_is_filled():
    live = live_at(0)
    assert live.take(batch(0, 5, 3))
    assert not live.take(batch(9, 12, 11))
    assert not live.take(batch(12, 14, 13))
    assert live.hole == (5, 9)
    assert offsets(live.flush()[0]) == [3]
    assert live.since(3) == Past([], 0)
    live.fill(batch(4, 7, 6))
    assert live.hole == (7, 9)
    live.fill(batch(8, 9, 9))  # does not join: no use
    assert live.hole == (7, 9)
    live.fill(batch(7, 9, 8))
    assert live.hole is None
    assert offsets(live.flush()[0]) == [6, 8, 11, 13]
    assert live.position == 14


def test_nothing_more_up_to_here_shows_a_lost_last_batch():
    live = live_at(10)
    assert live.take(batch(10, 10)) and live.hole is None
    assert not live.take(batch(15, 15))
    assert live.hole == (10, 15)
    live.fill(batch(10, 15, 12))
    assert live.hole is None and live.position == 15


def test_a_hole_that_stays_becomes_a_gap_in_its_place():
    live = live_at(0, backlog=[comment(0)])
    live.take(batch(0, 2, 1))
    live.take(batch(7, 9, 8))
    assert live.hole == (2, 7)
    live.give_up(7, "not_available")
    assert live.hole is None
    events, _ = live.flush()
    assert [(event.type, event.offset) for event in events] == [
        ("COMMENT", 1), ("GAP", 7), ("COMMENT", 8),
    ]  # fmt: skip
    assert events[1].data == {"from": 2, "to": 7, "reason": "not_available"}
    # Behind the gap nothing is known: no resume from before it, and nobody is shown a comment
    # that a deletion in the gap may have taken away.
    assert live.since(6) is None
    assert offsets(live.since(7).events) == [8]
    assert newest(live) == [8]


def test_the_inbox_is_bounded():
    live = live_at(0)
    step = INBOX_EVENTS // 10
    for number in range(10):
        at = 100 + number * step
        live.take(Batch(at, at + step, [comment(1)] * step))
        assert not live.overfull
    live.take(batch(10**6, 10**6 + 1, 10**6 + 1))
    assert live.overfull


def test_a_stream_that_does_not_come_up_holds_no_more_than_the_inbox():
    live = Live("s", keep_events=100, keep_ms=1000)
    step = INBOX_EVENTS // 10
    for number in range(100):
        live.take(Batch(number * step, (number + 1) * step, [comment(1)] * step))
    assert sum(len(one.events) for one in live.inbox) <= INBOX_EVENTS + step
    live.open("e", 5, [], [], [])
    assert live.hole is not None and live.hole[0] == 5


def test_what_came_while_it_was_opened_joins():
    live = Live("s", keep_events=100, keep_ms=120_000)
    assert not live.take(batch(0, 5, 4))
    assert not live.take(batch(5, 9, 8))
    live.open("e", 6, [comment(2), comment(4), comment(6)], [comment(1)], [])
    assert live.hole is None
    assert offsets(live.flush()[0]) == [8]
    assert newest(live) == [1, 2, 4, 6, 8]
    assert live.since(1) is not None and live.since(0) is None


def test_the_newest_are_those_up_to_what_was_sent():
    live = live_at(0)
    live.take(batch(0, 3, 1, 2, 3))
    assert newest(live) == []
    live.flush()
    assert newest(live) == [1, 2, 3]
    live.take(batch(3, 4, deleted(4, 2)))
    assert newest(live) == [1, 2, 3]
    live.flush()
    assert newest(live) == [1, 3]


@pytest.mark.parametrize("keep", [3, 100])
def test_what_was_removed_is_never_among_the_newest_whatever_is_kept(keep):
    """Also when the removal, or what it removes, has left the recent events for the backlog."""
    live = live_at(0, keep_events=keep, backlog=[comment(0, "old")])
    live.take(batch(0, 4, comment(1, "a"), comment(2, "b"), comment(3, "b"), comment(4, "c")))
    live.take(batch(4, 5, deleted(5, 1)))
    live.flush()
    assert newest(live) == [0, 2, 3, 4]
    live.take(batch(5, 7, control(6, UserRemoved("b")), comment(7, "b")))
    live.flush()
    assert newest(live) == [0, 4, 7], "what a user wrote after the removal stays"
    live.take(batch(7, 12, *range(8, 13)))
    live.flush()
    assert newest(live) == [0, 4, 7, 8, 9, 10, 11, 12]
    live.take(batch(12, 14, control(13, Cleared()), comment(14)))
    live.flush()
    assert newest(live) == [14]
    live.take(batch(14, 24, *range(15, 25)))
    live.flush()
    assert newest(live) == list(range(14, 25))


def test_the_recent_are_bounded_in_number_and_age():
    live = live_at(0, keep_events=10)
    live.take(batch(0, 30, *range(1, 31)))
    live.flush()
    assert live.start == 20 and live.since(19) is None
    assert offsets(live.since(20).events) == list(range(21, 31))
    live = live_at(0, keep_ms=1000)
    live.take(Batch(0, 3, [comment(1, ts=T), comment(2, ts=T + 1000), comment(3, ts=T + 1001)]))
    live.flush()
    assert live.start == 1


def test_what_waits_for_its_tick_is_nobody_s_past():
    """Trimmed before, it was read from the store for one who lagged, and came again by the tick."""
    live = live_at(0, keep_events=3)
    live.take(batch(0, 2, 1, 2))
    live.flush()
    live.take(batch(2, 12, *range(3, 13)))
    assert (live.start, live.horizon) == (0, 0) and offsets(live.since(0).events) == [1, 2]
    live.flush()
    assert live.start == live.horizon == 9 and live.since(8) is None


def test_before_its_tick_a_hole_that_was_given_up_is_nobody_s_past_either():
    live = live_at(0)
    live.take(batch(0, 2, 1, 2))
    live.flush()
    live.take(batch(2, 4, 3, 4))
    live.give_up(9, "not_available")
    assert live.horizon == 2 and live.since(2) == Past([], 0) and live.since(1) is None
    assert [event.offset for event in live.flush()[0]] == [3, 4, 9]
    assert live.horizon == 9


def test_since_is_exact_and_applies_what_was_removed():
    live = live_at(0)
    live.take(batch(0, 9, 2, 4, deleted(5, 2), deleted(6, 4), 8))
    live.flush()
    live.take(batch(9, 10, 10))
    past = live.since(0)
    assert (offsets(past.events), past.comments) == ([5, 6, 8], 1)
    assert offsets(live.since(2).events) == [5, 6, 8]
    assert offsets(live.since(5).events) == [6, 8]
    assert live.since(9) == Past([], 0)
    assert live.since(100) == Past([], 0)


def test_used_counts_an_author_s_comments_of_late():
    live = live_at(0)
    live.take(batch(0, 4, comment(1, "a"), comment(2, "a"), comment(3, "b"), deleted(4, 2)))
    assert live.used("a", T) == 2
    assert live.used("a", T + 1) == 1
    assert live.used("m", T) == 0


def by_author(live):
    found = {}
    for event in (*live.backlog, *live._recent):
        if event.type == "COMMENT":
            found.setdefault(event.actor, []).append(event)
    return found


@pytest.mark.parametrize("keep", [2, 100])
def test_the_latest_are_of_those_that_are_meant_for_one(keep):
    live = live_at(0, keep_events=keep, backlog=[comment(0, "old")])
    hidden = comment(3, "b")._replace(mask=0)
    live.take(batch(0, 6, comment(1, "a"), comment(2, "a"), hidden, 4, deleted(5, 2), 6))
    live.flush()
    for most in range(7):
        assert offsets(live.latest(most, lambda event: True)) == [0, 1, 3, 4, 6][-most:][:most]
    assert offsets(live.latest(3, lambda event: event.mask)) == [1, 4, 6]
    assert live.hides_some_of("b")
    assert not live.hides_some_of("a") and not live.hides_some_of("nobody")


def test_nothing_stays_of_authors_whose_comments_are_no_longer_kept():
    live = live_at(0, keep_events=10)
    for offset in range(1, 3000):
        author = f"u{offset % 400}" if offset < 2000 else f"v{offset % 400}"
        live.take(batch(offset - 1, offset, comment(offset, author)))
        live.flush()
    assert sum(map(len, live._written.values())) == 10 + BACKLOG_EVENTS
    assert live._written == by_author(live)
    live.take(batch(5000, 5000))
    live.give_up(5000, "not_available")
    assert not live._written


def history(chance, count):
    """A random stream: comments of few users, and all that may remove them."""
    events, offset = [], 0
    for _ in range(count):
        offset += chance.randint(1, 3)
        roll = chance.random()
        if roll < 0.8 or not events:
            events.append(comment(offset, f"u{chance.randrange(5)}"))
        elif roll < 0.92:
            events.append(deleted(offset, chance.choice(events).offset))
        elif roll < 0.95:
            comments = [event for event in events if event.type == "COMMENT"]
            events.append(restored(offset, chance.choice(comments)))
        elif roll < 0.99:
            events.append(control(offset, UserRemoved(f"u{chance.randrange(5)}")))
        else:
            events.append(control(offset, Cleared()))
    return events


def visible(events):
    """The comments that stand at the end, by the definition, the slow way."""
    standing, gone = {}, {}  # by id; what is gone may be restored, until a clear
    for event in events:
        data = event.data
        if event.type == "COMMENT":
            standing[data.id] = event
        elif event.type == "COMMENT_DELETED":
            taken = [k for k in standing if k == data.comment_id]
            gone.update({k: standing.pop(k) for k in taken})
        elif event.type == "USER_REMOVED":
            taken = [k for k, v in standing.items() if v.data.user.id == data.user_id]
            gone.update({k: standing.pop(k) for k in taken})
        elif event.type == "COMMENT_RESTORED":
            if data.id in gone:
                standing[data.id] = gone.pop(data.id)
        else:
            standing, gone = {}, {}
    return sorted(standing.values(), key=lambda event: event.offset)


@pytest.mark.parametrize("seed", range(8))
def test_removals_agree_with_their_definition(seed):
    chance = random.Random(seed)
    events = history(chance, 300)
    kept = without_removed(events)
    assert [event for event in kept if event.type == "COMMENT"] == visible(events)
    assert [e for e in kept if e.type != "COMMENT"] == [e for e in events if e.type != "COMMENT"]
    assert offsets(kept) == sorted(offsets(kept))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("most", [0, 1, 10, 1000])
def test_a_fold_keeps_every_control_and_its_gap_names_what_is_left_out(seed, most):
    chance = random.Random(seed)
    past = past_of(history(chance, 200))
    events, upto = fold(past, most)
    controls = [event for event in past.events if event.type in CONTROL_TYPES]
    assert [event for event in events if event.type in CONTROL_TYPES] == controls
    assert offsets(events) == sorted(offsets(events))
    left_out = [event.offset for event in past.events if event not in events]
    comments = [event for event in past.events if event.type == "COMMENT"]
    if past.comments <= most:
        assert upto is None and not left_out
        return
    kept = [event for event in events if event.type == "COMMENT"]
    assert kept == comments[len(comments) - most :]
    assert left_out == offsets(comments[: len(comments) - most])
    assert max(left_out) <= upto
    assert all(event.offset > upto for event in events if event.type == "COMMENT")


@pytest.mark.parametrize("seed", range(40))
def test_with_losses_repeats_and_overlaps_every_event_comes_once_and_in_order(seed):
    """The bus loses, repeats and overlaps; ring and store know more or less of it."""
    chance = random.Random(seed)
    truth = history(chance, 400)
    end = truth[-1].offset
    bounds = sorted({0, end, *chance.choices(range(end), k=120)})

    def piece(prev, last):
        return Batch(prev, last, [event for event in truth if prev < event.offset <= last])

    wire = []
    for prev, last in pairwise(bounds):
        roll = chance.random()
        if roll < 0.25:
            continue  # lost
        wire.append(piece(max(0, prev - chance.choice([0, 0, 5])), last))
        if roll > 0.85:
            wire += chance.choices(wire, k=2)  # another holder, or the same again
        if roll > 0.95:
            wire.append(Batch(last, last, []))
    wire.append(Batch(end, end, []))
    begin = chance.choice([0, 0, bounds[len(bounds) // 4]])
    live = live_at(begin, keep_events=chance.choice([20, 5000]), keep_ms=10**9)
    out, lost = [], []

    def tick():
        assert live._written == by_author(live), "what is found by author is what is kept"
        events, before = live.flush()
        assert before <= live.sent
        assert all(before < event.offset <= live.sent for event in events)
        out.extend(events)
        if live.sent == live.position:
            shown = visible([event for event in truth if event.offset <= live.sent])
            kept = newest(live)
            if not lost and begin == 0 and live.start == 0:
                assert kept == offsets(shown)
            assert set(kept) <= set(offsets(shown)) or lost

    for one in wire:
        live.take(one)
        while chance.random() < 0.7 and (hole := live.hole) is not None:
            low, high = hole
            assert live.position == low < high
            if chance.random() < 0.1:
                live.give_up(high, "not_available")
                lost.append((low, high))
            else:  # ring: pieces that may overlap, or store: just what is missing
                live.fill(piece(max(0, low - chance.choice([0, 7])), chance.randint(low + 1, high)))
        if chance.random() < 0.5:
            tick()
    while (hole := live.hole) is not None:
        live.fill(piece(*hole))
    tick()
    gaps = [(event.data["from"], event.data["to"]) for event in out if event.type == "GAP"]
    assert gaps == lost
    expected = [
        event
        for event in truth
        if event.offset > begin and not any(low < event.offset <= high for low, high in lost)
    ]
    assert [event for event in out if event.type != "GAP"] == expected
    assert offsets(out) == sorted(offsets(out))
    assert live.position == live.sent == end


def test_what_stands_is_known_again_after_a_hole_was_given_up():
    live = Live("s", keep_events=100, keep_ms=60_000)
    live.open("e", 10, [], [], [])

    def changed(offset, **changes):
        return Event(offset, "MODE", offset, "m", 15, 0, Mode(changes, "m"))

    live.take(Batch(20, 21, [changed(21, unique=True)]))
    live.give_up(20, "not_available")
    assert live.hole is None and live.standing.mode == {"unique": True}
    # The store has the hole by now, and what came after it perhaps, perhaps not.
    live.restand([changed(15, slow_s=5), changed(16, frozen=True), changed(17, frozen=False)])
    assert live.standing.mode == {"slow_s": 5, "unique": True}
