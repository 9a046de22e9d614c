"""What the coordinator tells: changes, once, and nothing that STATE loses stays lost."""

from __future__ import annotations

import threading

import pytest

from tests.unit.memory_state import MemoryState
from uproar.bus import BusLost
from uproar.consumer import Counted
from uproar.ephemeral import Said, decode
from uproar.events import Comment, StreamEnded, StreamStarted, User, decode_record, encode_record
from uproar.state import StateLost
from workers import totals
from workers.totals import Teller, Totals

NOW = 1_700_000_000.0


class MemoryBus:
    """A bus that keeps what was published; with `away` it refuses."""

    def __init__(self) -> None:
        self.away = False
        self.said: list[tuple[str, Said]] = []

    def publish(self, messages):
        if self.away:
            raise BusLost("the bus does not answer: it is away")
        self.said += [(where.split(":")[1], decode(payload)[1]) for where, payload in messages]

    def take(self):
        said, self.said = self.said, []
        return said


@pytest.fixture
def state():
    state = MemoryState()
    state.marked["s"] = NOW
    return state


@pytest.fixture
def bus():
    return MemoryBus()


@pytest.fixture
def teller(state, bus):
    return Teller(state, bus, threading.Event())


def record(offset, type_, data, stream="s"):
    raw = encode_record(type_, stream, 1_700_000_000_000 + offset, "u", f"n{offset}", data)
    return Counted(offset, raw, decode_record(raw))


def test_only_changes_are_to_be_told():
    known = Totals()
    said = known.see("s", {"fire": 3, "wow": 1}, 7)
    assert said == Said({"fire": 3, "wow": 1}, 7)
    assert known.see("s", {"fire": 3, "wow": 1}, 7) == said, "until it was told"
    known.told("s", said)
    assert known.see("s", {"fire": 3, "wow": 1}, 7) is None
    assert known.see("s", {"fire": 3, "wow": 1}, None) is None, "viewers were not counted"
    assert known.see("s", {"fire": 4, "wow": 1}, 7) == Said({"fire": 4, "wow": 1}, None)
    assert known.see("s", {}, 0) == Said({"fire": 4, "wow": 1}, 0)
    assert known.see("quiet", {}, None) is None


def test_totals_never_fall_and_what_was_lost_is_known():
    known = Totals()
    known.told("s", known.see("s", {"fire": 10, "wow": 2}, None))
    assert known.lost("s", {"fire": 10, "wow": 2}) is None
    assert known.see("s", {"fire": 4}, None) is None
    assert known.lost("s", {"fire": 4}) == {"fire": 10, "wow": 2}
    assert known.lost("s", {"fire": 11}) == {"fire": 10, "wow": 2}
    assert known.known() == {"s": {"fire": 10, "wow": 2}}


def test_memory_is_bounded_and_the_longest_unseen_give_way(monkeypatch):
    monkeypatch.setattr(totals, "STREAMS_MAX", 3)
    known = Totals()
    for stream in "abcadae":
        known.see(stream, {"fire": 1}, None)
    assert sorted(known.known()) == ["a", "d", "e"]


def test_reactions_are_read_each_pass_and_viewers_each_second_one(teller, state, bus):
    state.counts["s"] = 5
    state.add_reactions({"s": {"fire": 1}})
    for step in range(4):
        teller.step(NOW + step)
        state.counts["s"] += 1
        state.add_reactions({"s": {"fire": 1}})
    assert bus.take() == [
        ("s", Said({"fire": 1}, 5)),
        ("s", Said({"fire": 2}, None)),
        ("s", Said({"fire": 3}, 7)),
        ("s", Said({"fire": 4}, None)),
    ]
    # Two passes a second at most: each waits so long after the one before has ended.
    assert totals.PASS_S >= 0.5


def test_nothing_new_says_nothing(teller, state, bus):
    teller.step(NOW)
    bus.take()
    state.calls.clear()
    for step in range(1, 5):
        teller.step(NOW + step)
    assert bus.said == [] and "interests" not in state.calls


def test_what_was_not_published_is_told_with_the_next_pass(teller, state, bus):
    state.add_reactions({"s": {"fire": 1}})
    bus.away = True
    for _ in range(3):
        with pytest.raises(BusLost):
            teller.step(NOW)
    bus.away = False
    teller.step(NOW)
    assert [said.reactions for _, said in bus.said] == [{"fire": 1}]


def test_a_flushed_state_is_told_the_totals_and_the_streams(teller, state, bus):
    teller.saw([record(1, "STREAM_STARTED", StreamStarted("A title"))])
    state.add_reactions({"s": {"fire": 10}, "idle": {"sad": 2}})
    state.marked["idle"] = NOW
    teller.step(NOW)
    bus.take()
    state.forget()
    state.marked["s"] = NOW + 1  # a gateway says that it is watched
    state.add_reactions({"s": {"wow": 1}})
    teller.step(NOW + 1)
    assert state.totals["s"] == {"fire": 10, "wow": 1}, "at once, where the stream is active"
    assert "idle" not in state.totals and not state.described
    teller.step(NOW + 61)
    assert state.totals == {"s": {"fire": 10, "wow": 1}, "idle": {"sad": 2}}
    assert state.described == {"s": ("A title", 1_700_000_000_001)}
    assert next(said.reactions for _, said in bus.said) == {"fire": 10, "wow": 1}


def test_what_the_log_says_while_the_state_fails_is_the_newer(teller, state):
    def fails(streams, now):
        teller.saw([record(2, "STREAM_STARTED", StreamStarted("Newer"))])
        del state.mark_active
        raise StateLost("it died")

    teller.saw([record(1, "STREAM_STARTED", StreamStarted("Older"))])
    state.mark_active = fails
    with pytest.raises(StateLost):
        teller.step(NOW)
    teller.step(NOW)
    assert state.described["s"][0] == "Newer"


def test_the_log_says_what_is_active_and_what_has_ended(teller, state):
    comment = Comment(b"\0" * 16, User("u", "U"), "x", 1)
    teller.saw(
        [
            record(1, "STREAM_STARTED", StreamStarted("One"), "one"),
            record(2, "COMMENT", comment, "two"),
            record(3, "STREAM_STARTED", StreamStarted("Three"), "three"),
            record(4, "STREAM_ENDED", StreamEnded(), "three"),
        ]
    )
    state.away = True
    for _ in range(2):
        with pytest.raises(Exception, match="away"):
            teller.step(NOW + 5)
    teller.saw([record(5, "STREAM_STARTED", StreamStarted("Again"), "three")])
    state.away = False
    teller.step(NOW + 6)
    assert state.marked == {"s": NOW, "two": NOW + 6}
    assert {stream: about[0] for stream, about in state.described.items()} == {
        "one": "One", "three": "Again",
    }  # fmt: skip
    teller.saw([record(6, "STREAM_ENDED", StreamEnded(), "one")])
    teller.step(NOW + 7)
    assert list(state.described) == ["three"]
