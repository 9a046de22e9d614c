"""Reactions in the gateway: what is counted, what is refused, and that nothing is told twice."""

from __future__ import annotations

import json
import random

import msgpack
import pytest

from gateway import reactions
from gateway.audiences import AudienceKey, Audiences
from gateway.commands import BadCommand, ReactCommand, parse
from gateway.ephemeral import Ephemeral
from gateway.reactions import Reactions
from tests.unit.memory_state import MemoryState, live_stream
from uproar import ephemeral
from uproar.auth import Claims
from uproar.batch import encode_batch
from uproar.config import ConfigError, load
from uproar.ephemeral import BadEphemeral, Kick, Said
from uproar.events import Event, Sanction
from uproar.state import StateLost

ANN = Claims(sub="ann", name="Ann")


def fire(count=1):
    return ReactCommand("fire", count)


@pytest.fixture
def state():
    return MemoryState()


class CountingEngine:
    """An engine that has counted what the test puts into `sums`."""

    def __init__(self):
        self.sums = {}

    def count_reactions(self, kinds, most):
        self.told = kinds, most

    def reactions(self):
        taken, self.sums = self.sums, {}
        return taken


@pytest.fixture
def counter(state):
    return Reactions(load(environ={}), state, CountingEngine())


def test_what_the_engine_counts_is_added_and_counters_are_used_again(counter, state):
    assert [counter.counter(stream) for stream in "stst"] == [1, 2, 1, 2]
    counter.engine.sums = {1: {"fire": 3, "wow": 1}, 2: {"fire": 5}}
    counter.react(live_stream("s"), ANN, fire(2))
    assert counter.flush()
    assert state.totals == {"s": {"fire": 5, "wow": 1}, "t": {"fire": 5}}
    assert counter.counted == 11
    counter.emptied("s")
    counter.engine.sums = {1: {"sad": 1}}
    assert counter.flush()
    assert state.totals["s"] == {"fire": 5, "wow": 1, "sad": 1}, "the last ones count as well"
    assert counter.counter("new") == 1
    counter.emptied("t")
    assert counter.counter("t") == 2, "somebody came back before it was taken"
    counter.flush()
    counter.engine.sums = {2: {"sad": 1}}
    counter.flush()
    assert state.totals["t"] == {"fire": 5, "sad": 1}


@pytest.mark.parametrize("pack", [json.dumps, msgpack.packb], ids=["json", "msgpack"])
def test_react_is_a_command_of_both_codecs(pack):
    assert parse(pack({"type": "REACT", "kind": "fire"})) == [fire()]
    assert parse(pack([{"type": "REACT", "kind": "wow", "count": 100}])) == [
        ReactCommand("wow", 100)
    ]
    for bad in ({}, {"kind": 5}, {"kind": "fire", "count": "1"}, {"kind": "fire", "nonce": "n"}):
        assert isinstance(parse(pack({"type": "REACT", **bad}))[0], BadCommand)


@pytest.mark.parametrize(
    ("claims", "command", "code", "said"),
    [
        (None, fire(), "read_only", "token"),
        (ANN, ReactCommand("poo"), "bad_request", "fire, heart, clap, laugh, wow, sad"),
        (ANN, fire(0), "bad_request", "1 to 100"),
        (ANN, fire(-5), "bad_request", "1 to 100"),
        (ANN, fire(101), "bad_request", "1 to 100"),
        (ANN, fire(10**9), "bad_request", "1 to 100"),
        (ANN, fire(1 << 62), "bad_request", "1 to 100"),
        (Claims(sub="eve", name="Eve"), fire(), "banned", "banned"),
    ],
)
def test_what_can_not_be_counted_is_refused_and_adds_nothing(
    state, counter, claims, command, code, said
):
    live = live_stream()
    live.standing.apply(Event(1, "SANCTION", 1, "m", 15, 3, Sanction("eve", "ban", "m")))
    found, sentence = counter.react(live, claims, command)
    assert found == code and said in sentence
    assert counter.flush() and state.totals == {}


def test_counts_reach_the_state_once_by_stream_and_kind(state, counter):
    one, two = live_stream("one"), live_stream("two")
    for count in (1, 100, 7):
        assert counter.react(one, ANN, fire(count)) is None
    assert counter.react(one, ANN, ReactCommand("sad")) is None
    assert counter.react(two, ANN, fire()) is None
    assert state.totals == {}, "nothing is written before the flush"
    assert counter.flush() and counter.flush()
    assert state.totals == {"one": {"fire": 108, "sad": 1}, "two": {"fire": 1}}
    assert state.calls == ["add_reactions"], "one call for all, none when nothing waits"
    assert counter.counted == 110


def test_what_the_state_did_not_take_waits_and_is_bounded(state, counter, monkeypatch):
    live = live_stream()
    counter.react(live, ANN, fire(5))
    state.away = True
    assert not counter.flush()
    counter.react(live, ANN, fire(6))
    assert not counter.flush()
    monkeypatch.setattr(reactions, "STREAMS_MAX", 3)
    for number in range(10):
        counter.react(live_stream(f"s{number}"), ANN, fire(2))
    assert counter.dropped == 8 * 2
    state.away = False
    assert counter.flush()
    assert state.totals == {"s": {"fire": 11}, "s0": {"fire": 2}, "s1": {"fire": 2}}


def test_kinds_are_settings():
    config = load(environ={"UPROAR_REACTIONS__KINDS": '["gg"]'})
    counter = Reactions(config, MemoryState(), CountingEngine())
    assert counter.engine.told == (("gg",), 100)
    assert counter.react(live_stream(), ANN, ReactCommand("gg")) is None
    assert counter.react(live_stream(), ANN, fire()) is not None
    for bad in ("[]", '["Not One"]', '[""]', "5"):
        with pytest.raises(ConfigError, match=r"^reactions\.kinds"):
            load(environ={"UPROAR_REACTIONS__KINDS": bad})


# -- on the bus -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("probe", None),
        ("kick", Kick("ann ö")),
        ("kick", Kick("ann", "s")),
        ("totals", Said({"fire": 10**15}, 7)),
        ("totals", Said(None, 0)),
        ("totals", Said({}, None)),
    ],
)
def test_a_message_is_no_batch_and_reads_back(kind, body):
    payload = ephemeral.encode(kind, body)
    assert ephemeral.is_ephemeral(payload)
    assert ephemeral.decode(payload) == (kind, body)


def test_a_batch_is_no_message():
    for payload in (encode_batch(0, 0, []), encode_batch(5, 9, [(7, b"\x90")]), b"", b"probe"):
        assert not ephemeral.is_ephemeral(payload)


@pytest.mark.parametrize(
    "message",
    [
        ["totals", {"viewers": -1}],
        ["totals", {"reactions": {"fire": 1 << 53}}],
        ["totals", None],
        ["kick", {"stream": "s"}],
        ["kick", {"user": 5}],
        ["probe", 1],
        ["dance", None],
        [None, None],
        ["kick"],
    ],
)
def test_what_no_version_wrote_is_refused(message):
    with pytest.raises(BadEphemeral, match=r"unknown kind|not \[kind, body\]: "):
        ephemeral.decode(msgpack.packb(message))


def test_damaged_messages_raise_nothing_but_their_own_error():
    good = [
        ephemeral.encode("totals", Said({"fire": 5}, 3)),
        ephemeral.encode("kick", Kick("a", "b")),
        msgpack.packb(["totals", {"viewers": -1}]),
        msgpack.packb(["dance", None]),
        msgpack.packb(["kick", None]),
    ]
    refused = 0
    for seed in range(3000):
        chance = random.Random(seed)
        data = bytearray(chance.choice(good))
        data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            ephemeral.decode(bytes(data))
        except BadEphemeral as error:
            refused += 1
            assert str(error)
    assert refused > 1000


# -- to the viewers -------------------------------------------------------------------------------


class Audience:
    """An engine that keeps what each audience was sent."""

    def __init__(self):
        self.sent = []
        self.made = 0

    def audience(self, form):
        assert form.compression == "none"
        self.made += 1
        return self.made

    def broadcast(self, number, frame):
        self.sent.append((number, frame))
        return []

    def take(self):
        """The events of the JSON audience since the last call."""
        told = [event for _, frame in self.sent if frame[:1] == b"[" for event in json.loads(frame)]
        self.sent.clear()
        return told


@pytest.fixture
def room(state):
    live = live_stream()
    engine = Audience()
    audiences = Audiences(engine)
    audiences.number(AudienceKey("s", "native", "json", "none", "all", "viewer"))
    teller = Ephemeral(state, engine, audiences, {"s": live})
    return teller, teller.engine


def test_only_what_changed_is_told_and_the_latest_wins(room):
    teller, engine = room
    assert (teller.viewers("s"), teller.reactions("s")) == (None, {})
    teller.take("s", Said({"fire": 5, "wow": 1}, 3))
    assert engine.take() == [
        {"type": "REACTIONS", "totals": {"fire": 5, "wow": 1}},
        {"type": "VIEWERS", "count": 3, "position": 0},
    ]
    teller.take("s", Said({"fire": 6, "wow": 1}, 3))
    assert engine.take() == [{"type": "REACTIONS", "totals": {"fire": 6}}]
    teller.take("s", Said({"fire": 4, "wow": 1}, 2))
    assert engine.take() == [{"type": "VIEWERS", "count": 2, "position": 0}], "totals only rise"
    teller.take("s", Said({"fire": 6, "wow": 1}, 2))
    teller.take("other", Said({"fire": 6}, 2))
    assert engine.take() == []
    assert (teller.viewers("s"), teller.reactions("s")) == (2, {"fire": 6, "wow": 1})


def test_every_audience_gets_the_same_bytes_in_its_codec(room):
    teller, engine = room
    for rate in ("all", "20", "5"):
        for codec in ("json", "msgpack"):
            teller.audiences.number(AudienceKey("s", "native", codec, "none", rate, "viewer"))
    teller.take("s", Said({"fire": 5}, None))
    assert sorted(number for number, _ in engine.sent) == list(range(1, 7))
    assert len({id(frame) for _, frame in engine.sent}) == 2


def test_the_state_is_asked_when_no_news_came_and_told_what_it_lost(room, state):
    teller, engine = room
    teller.take("s", Said({"fire": 9}, 4))
    engine.take()
    state.calls.clear()
    teller.refresh()
    assert state.calls == [], "there was news just now"
    state.counts["s"] = 5
    state.add_reactions({"s": {"fire": 2, "sad": 1}})
    teller._known["s"].at -= 11
    teller.refresh()
    assert engine.take() == [
        {"type": "REACTIONS", "totals": {"sad": 1}},
        {"type": "VIEWERS", "count": 5, "position": 0},
    ]
    assert state.totals == {"s": {"fire": 9, "sad": 1}}


def test_a_stream_that_nobody_watches_is_forgotten(room, state):
    teller, _ = room
    teller.take("s", Said({"fire": 9}, 4))
    teller.live.clear()
    teller.refresh()
    assert teller.reactions("s") == {} and not teller._known


def test_opening_a_stream_without_the_state_is_no_error(room, state):
    teller, _ = room
    state.away = True
    teller.opened(live_stream())
    with pytest.raises(StateLost):
        teller.refresh()
