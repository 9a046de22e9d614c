"""Viewers: whoever comes, lags, is banned or goes, counts and stories are true."""

import random
import time
from collections import Counter
from types import SimpleNamespace

import gevent
import gevent.event
import pytest

from gateway import arrivals, server
from gateway.engine import Flooded, Request
from gateway.ephemeral import Ephemeral
from gateway.feed import Feed
from gateway.live import Live
from gateway.presence import RollCall
from gateway.reactions import Reactions
from gateway.registry import Registry
from gateway.tick import Ticker
from gateway.viewers import Viewers
from tests.unit.memory_engine import PING, REACT, MemoryEngine
from tests.unit.memory_state import MemoryState
from uproar.auth import Claims, Verifier, make_token
from uproar.batch import Batch
from uproar.config import load
from uproar.ephemeral import Said
from uproar.events import (
    CONTROL_TYPES,
    Cleared,
    Comment,
    CommentDeleted,
    Event,
    Sanction,
    User,
    UserRemoved,
)
from uproar.ipc import Answer

KEY = b"k" * 32
T = 1_700_000_000_000
USERS = ("ann", "bob", "eve", "mod")
SEEDS = 200


class MemoryFeed:
    """Streams whose events the test writes; `slow` reads of the store give up the hub."""

    def __init__(self, config):
        self.keep_events = config.gateway.recent_events
        self.live = {}
        self.closed = set()  # streams that nobody watches
        self.truth = {}
        self.slow = False

    def watch(self, stream):
        self.closed.discard(stream)
        if stream not in self.live:
            self.live[stream] = Live(stream, keep_events=self.keep_events, keep_ms=10**9)
            self.truth.setdefault(stream, [])
        return self.live[stream]

    def unwatch(self, stream):
        assert stream not in self.closed
        self.closed.add(stream)

    def last(self, stream):
        return (self.truth[stream][-1].offset if self.truth[stream] else 0), "e"

    def come_up(self, live):
        pass

    def stored(self, live, after, upto):
        if self.slow:
            gevent.sleep(0)
        return [event for event in self.truth[live.stream] if after < event.offset <= upto]

    def stored_controls(self, live, after, upto):
        found = self.stored(live, after, upto)
        return [event for event in found if event.type in CONTROL_TYPES]


class Link:
    """Ingest that answers when the test says so."""

    def __init__(self):
        self.waiting = []

    def submit(self, kind, stream, actor, role, nonce, data, done, traits=None):
        self.waiting.append(done)

    def answer(self):
        while self.waiting:
            self.waiting.pop()(Answer(1, id=bytes(16), offset=1))


class House:
    """One gateway's viewers with everything that they use, sockets and servers excepted."""

    def __init__(self, *, bound=10**9, **settings):
        flags = {f"gateway.{key}": value for key, value in settings.items()}
        self.config = load(environ={}, flags=flags)
        self.engine = MemoryEngine(bound)
        self.state = MemoryState()
        self.ticker = Ticker(self.engine, 0.01)
        self.feed = MemoryFeed(self.config)
        self.link = Link()
        self.ephemeral = Ephemeral(self.state, self.engine, self.ticker.audiences, self.feed.live)
        self.reactions = Reactions(self.config, self.state, self.engine)
        viewers = self.viewers = Viewers(
            self.config, "g1", Verifier(KEY), self.feed, self.ticker, self.link, self.ephemeral,
            self.reactions.react,
        )  # fmt: skip
        self.registry = Registry(self.state, "g1", "i1", viewers.sessions, viewers.end)
        self.roll = RollCall(list)
        viewers.joined = self.registry.joined
        viewers.crowd_joined = self.roll.joined
        viewers.left = self.registry.left
        viewers.counter = self.reactions.counter
        viewers.emptied = self.reactions.emptied
        self.ticker.arrivals = viewers.arrivals
        self.ticker.sessions_of = viewers.sessions_of
        self.ticker.sanctioned = viewers.sanctioned
        self.ticker.broken = viewers.broken
        self.claims = {}  # sid → of those who came with a token
        self.streams = {}  # sid → its stream

    # -- what happens -----------------------------------------------------------------------------

    def ready(self, stream):
        live = self.feed.watch(stream)
        if not live.ready:
            live.open("e", 0, [], [], [])
            self.ticker.wake(live)
        return live

    def hand_up(self):
        self.viewers.on_engine(self.engine.take())
        gevent.sleep(0)

    def arrive(self, stream, count=1, query="backlog=0"):
        request = Request(f"/stream/{stream}", query, {}, "a", None)
        sids = self.engine.arrive(request, count)
        self.streams.update(dict.fromkeys(sids, stream))
        return sids

    def open(
        self, stream, *, user=None, role="viewer", query="backlog=0", dialect="native", ttl=3600
    ):
        path = f"/stream/{stream}" + ("/events" if dialect == "sse" else "")
        headers = {}
        if user is not None:
            token = make_token(KEY, sub=user, name=user, role=role, ttl_s=ttl)
            headers["authorization"] = f"Bearer {token}"
        sid = self.engine.open(Request(path, query, headers, "a", None, dialect=dialect))
        self.streams[sid] = stream
        if user is not None:
            self.claims[sid] = Claims(user, user, role)
        return sid

    def write(self, stream, *events):
        live = self.feed.live[stream]
        self.feed.truth[stream] += events
        if live.ready:
            assert live.take(Batch(live.position, events[-1].offset, list(events)))
            self.ticker.wake(live)

    def lose(self, stream, *events):
        """A hole that is given up: only the store has what was in it."""
        live = self.feed.live[stream]
        self.feed.truth[stream] += events
        if live.ready:
            live.give_up(events[-1].offset, "not_available")
            self.ticker.wake(live)

    def tick(self):
        self.ticker.tick()
        gevent.sleep(0)

    def settle(self):
        """Let everybody read until all is still."""
        for _ in range(6):
            for sid in list(self.engine.sockets):
                self.engine.drain(sid)
            self.hand_up()
            self.tick()
        for sid in list(self.engine.sockets):
            self.engine.drain(sid)

    # -- what is true -----------------------------------------------------------------------------

    def check(self):
        """Compare every count with who is there. All that happened has been handed up."""
        engine, viewers = self.engine, self.viewers
        assert not engine.events
        here = {sid for sid in engine.sockets if not self.refused(sid)}
        members = {sid for group in engine.groups.values() for sid in group}
        assert members <= here
        assert set(viewers.sessions) <= here
        crowd = members - set(viewers.sessions)
        assert crowd | set(viewers.sessions) == here, "everybody is known somewhere"
        assert not crowd & set(self.claims), "only plain viewers are left to the engine"
        assert +viewers.crowd == Counter(self.streams[sid] for sid in crowd)
        present = Counter(self.streams[sid] for sid in here)
        assert viewers._present == present
        assert viewers.count == len(here)
        services = [
            sid for sid in here if sid in self.claims and self.claims[sid].role == "service"
        ]
        served = Counter(self.streams[sid] for sid in services)
        assert viewers.watching() == {s: n - served[s] for s, n in present.items()}
        for sid, session in viewers.sessions.items():
            assert session.sid == sid and session.wish.stream == self.streams[sid]
            if not session.ended:
                assert (session.audience is not None) == (sid in members)
                waits = session.joining or session.lags_from is not None
                assert waits == (sid not in members)
        mine = {}
        for sid in here & set(self.claims):
            mine.setdefault((self.streams[sid], self.claims[sid].sub), set()).add(sid)
        for stream in self.feed.live:
            for user in USERS:
                found = [session.sid for session in viewers.sessions_of(stream, user)]
                assert len(found) == len(set(found))
                assert set(found) == mine.get((stream, user), set())
        # What nobody watches leaves nothing behind.
        watched = set(present)
        assert set(self.feed.live) - self.feed.closed == watched
        assert set(viewers.ticker.audiences._by_stream) <= watched
        assert set(viewers._users) <= watched and set(viewers.crowd) <= watched
        assert set(viewers._serving) <= watched
        assert {sid for sids in viewers.arrivals._waiting.values() for sid in sids} <= here
        for sid, socket in engine.sockets.items():
            if socket.counter:
                assert self.reactions._streams[socket.counter] == self.streams[sid]

    def refused(self, sid):
        return self.engine.sockets[sid].closing is not None and sid not in self.viewers.sessions

    def story(self, sid):
        """Check what a client has read against the truth; return (live events, gaps)."""
        socket = self.engine.sockets.get(sid) or self.engine.ended[sid]
        found = socket.read
        if not found:
            return [], []
        assert [event["type"] for event in found].count("WELCOME") == 1
        assert found[0]["type"] == "WELCOME"
        place = begin = found[0]["offset"]
        ends, shown, told, lost, controls = [], [], [], [], []
        for event in found[1:]:
            kind = event["type"]
            if event.get("historical"):
                continue
            if kind in ("PONG", "VIEWERS"):
                # Who resumes from here misses nothing, and what follows is no repetition.
                place = max(place, event["position"])
            elif kind == "GAP":
                assert event["from"] <= event["to"] and event["to"] >= place
                told.append((event["from"], event["to"]))
                if event["reason"] == "not_available":
                    lost.append(told[-1])
                place = event["to"]
            elif "offset" in event and kind not in ("ACK", "WELCOME"):
                assert event["offset"] > place, (sid, kind, event["offset"], place)
                place = event["offset"]
                (shown if kind == "COMMENT" else controls).append(place)
                ends.append(place)
        claims = self.claims.get(sid)
        truth = self.feed.truth[self.streams[sid]]
        after = [
            event for event in truth if begin < event.offset <= place and self.meant(event, claims)
        ]
        assert set(shown) <= {event.offset for event in after}
        due = [event.offset for event in after if event.type != "COMMENT"]
        assert set(controls) <= set(due)
        for offset in set(due) - set(controls):
            assert any(low < offset <= high for low, high in lost), offset
        for number, event in enumerate(after):
            if event.type != "COMMENT" or event.offset in shown:
                continue
            in_gap = any(low < event.offset <= high for low, high in told)
            removed = any(
                other.type == "CLEARED"
                or (other.type == "COMMENT_DELETED" and other.data.comment_id == event.data.id)
                for other in after[number:]
            )
            assert in_gap or removed, (sid, event.offset, begin, place)
        return ends, told

    @staticmethod
    def meant(event, claims):
        if claims is not None and claims.moderates:
            return True
        if event.type == "COMMENT" and claims is not None and claims.sub == event.actor:
            return True
        return bool(event.mask) and not event.visibility


def cid(offset):
    return offset.to_bytes(16, "big")


def comment(offset, user="ann", *, mask=15, visibility=0, text="text"):
    data = Comment(cid(offset), User(user, user), text, T)
    return Event(offset, "COMMENT", T + offset, user, mask, visibility, data)


def banned(offset, user):
    return Event(offset, "SANCTION", T + offset, "mod", 15, 3, Sanction(user, "ban", "mod"))


def deleted(offset, target):
    data = CommentDeleted(cid(target))
    return Event(offset, "COMMENT_DELETED", T + offset, "mod", 15, 0, data)


def some_events(chance, truth):
    offset = truth[-1].offset if truth else 0
    events = []
    for _ in range(chance.randint(1, 4)):
        offset += chance.randint(1, 2)
        kind = chance.random()
        if kind < 0.85 or not truth:
            hidden = chance.choice([{}, {}, {}, {"mask": 0}, {"visibility": 2}])
            text = "x" * chance.randrange(100)
            events.append(comment(offset, chance.choice(USERS), text=text, **hidden))
        elif kind < 0.93:
            events.append(deleted(offset, chance.choice(truth).offset))
        elif kind < 0.95:
            data = UserRemoved("nobody")
            events.append(Event(offset, "USER_REMOVED", T + offset, "mod", 15, 0, data))
        elif kind < 0.98:
            events.append(banned(offset, chance.choice(USERS)))
        else:
            events.append(Event(offset, "CLEARED", T + offset, "mod", 15, 0, Cleared()))
    return events


SAID = [
    PING, PING, REACT,
    '[{"type":"PING"},{"type":"PING"}]', '{"type":"COMMENT","text":"hi","nonce":"n"}', "nonsense",
]  # fmt: skip


def one_step(house, chance, now):
    """Something happens; return the time (unix s) after it."""
    engine, viewers = house.engine, house.viewers
    stream = chance.choice("abc")
    sids = sorted(engine.sockets)
    roll = chance.random()
    if roll < 0.16:
        query = chance.choice(["backlog=0", "backlog=5", "backlog=5&rate=5"])
        came = house.arrive(stream, chance.randint(1, 4), query)
        for sid in came:
            what = chance.random()
            if what < 0.2:
                engine.gone(sid)  # in the batch that it came in
            elif what < 0.4:
                engine.say(sid, chance.choice(SAID[:4]))
                if what < 0.25:
                    engine.gone(sid)
    elif roll < 0.26:
        query = f"backlog={chance.choice([0, 5])}"
        if chance.random() < 0.4 and house.feed.truth.get(stream):
            query = f"epoch=e&offset={chance.choice(house.feed.truth[stream]).offset}"
        user = chance.choice([None, *USERS])
        role = chance.choice(["viewer", "moderator", "service"]) if user else "viewer"
        dialect = chance.choice(["native", "native", "sse"])
        sid = house.open(
            stream, user=user, role=role, query=query, dialect=dialect,
            ttl=chance.choice([3600, 100_000]),
        )  # fmt: skip
        if chance.random() < 0.2:
            engine.gone(sid)
    elif roll < 0.30:
        house.ready(stream) if stream in house.feed.live and stream not in house.feed.closed else 0
    elif roll < 0.45:
        live = house.feed.live.get(stream)
        if live is not None and live.ready:
            happen = house.lose if chance.random() < 0.1 else house.write
            happen(stream, *some_events(chance, house.feed.truth[stream]))
    elif roll < 0.60:
        house.tick()
    elif roll < 0.75:
        for sid in sids:
            if chance.random() < 0.4:
                engine.drain(sid)
    elif roll < 0.84 and sids:
        sid = chance.choice(sids)
        if engine.sockets[sid].request.dialect == "native":
            engine.say(sid, chance.choice(SAID))
    elif roll < 0.93 and sids:
        for sid in chance.sample(sids, min(len(sids), chance.randint(1, 3))):
            engine.gone(sid)
    elif roll < 0.95:
        house.link.answer()
        house.reactions.flush()
    elif roll < 0.96:
        live = house.feed.live.get(stream)
        if live is not None:
            house.ephemeral.take(stream, Said(viewers=chance.randrange(1000)))
    elif roll < 0.97:
        now += 2000.0
        viewers.expire(now)
    elif roll < 0.975:
        viewers.drain(1.0)
    elif roll < 0.98:
        viewers.broken(stream)
    elif roll < 0.985:
        house.registry.kick(chance.choice(USERS), None)
    elif roll < 0.99 and sids:
        engine.events.append(Flooded(chance.choice(sids)))
    else:
        for sid in sids:  # everybody of a stream goes, and somebody comes in the same batch
            if house.streams[sid] == stream:
                engine.gone(sid)
        if chance.random() < 0.5:
            house.arrive(stream, 2)
    return now


@pytest.mark.parametrize("seed", range(SEEDS))
def test_counts_and_stories_are_true_whatever_happens(seed, monkeypatch):
    monkeypatch.setattr(arrivals, "LOOK_S", 0)
    chance = random.Random(seed)
    house = House(
        bound=chance.choice([1500, 6000, 10**9]), backlog_default=chance.choice([0, 2, 50]),
        overflow=chance.choice(["coalesce"] * 4 + ["close"]),
    )  # fmt: skip
    house.feed.slow = chance.random() < 0.5
    house.feed.keep_events = chance.choice([5, 20, 5000])
    now = time.time()
    for _ in range(chance.choice([50, 50, 250])):
        now = one_step(house, chance, now)
        if chance.random() < 0.7:
            house.hand_up()
            house.check()
        for sid, socket in list(house.engine.sockets.items()):
            # Who was sent a close frame answers it, sooner or later.
            if socket.closing and chance.random() < 0.3:
                house.engine.drain(sid)
                house.engine.gone(sid, socket.closing[0])
    house.hand_up()
    for stream in set(house.feed.live) - house.feed.closed:
        house.ready(stream)
    house.settle()
    house.check()
    for sid in house.streams:
        house.story(sid)
    for sid, socket in house.engine.sockets.items():
        if not socket.closing:
            assert socket.read and socket.read[0]["type"] == "WELCOME", sid
    for sid in list(house.engine.sockets):
        house.engine.gone(sid)
    house.hand_up()
    house.check()
    viewers = house.viewers
    assert not viewers.sessions and not viewers.crowd and not viewers._present
    assert not viewers._users and not viewers.arrivals._waiting
    house.tick()
    assert not house.ticker._private and not house.ticker._lives
    house.reactions.flush()
    assert not house.reactions._counters
    house.registry.close()
    assert not house.state.seated


def test_a_stream_is_let_go_whose_only_viewers_were_gone_before_they_were_let_in():
    """It used to be watched for ever."""
    house = House()
    house.ready("a")
    house.feed.unwatch("a")
    for sid in house.arrive("a", 3):
        house.engine.gone(sid)
    house.hand_up()
    house.check()
    assert house.feed.closed == {"a"} and not house.ticker.audiences.of("a")


@pytest.mark.parametrize("kind", ["plain", "token", "resume"])
def test_who_has_no_room_for_its_greeting_is_greeted_when_it_has(kind):
    """It used to get ticks without ever having been told WELCOME."""
    house = House(bound=1000)
    house.ready("a")
    house.hand_up()
    house.write("a", comment(1), comment(2))
    house.tick()
    if kind == "plain":
        (sid,) = house.arrive("a", query="backlog=5")
    else:
        query = "epoch=e&offset=1" if kind == "resume" else "backlog=5"
        sid = house.open("a", user="bob", query=query)
    house.engine.sockets[sid].queue.append(b"x" * 1000)  # answers to pings, not taken yet
    house.hand_up()
    house.check()
    house.write("a", comment(3))
    house.tick()
    assert sid in house.viewers.sessions
    house.settle()
    house.check()
    found = house.engine.sockets[sid].read
    begin, historical = (1, []) if kind == "resume" else (3, [1, 2, 3])
    assert (found[0]["type"], found[0]["offset"]) == ("WELCOME", begin)
    assert [event["offset"] for event in found[1:]] == (historical or [2, 3])
    assert all(event.get("historical", False) == bool(historical) for event in found[1:])
    house.story(sid)


@pytest.mark.parametrize("state", ["joining", "live", "lagging"])
def test_a_token_expires_in_every_state(state):
    house = House(bound=100)
    if state != "joining":
        house.ready("a")
    now = time.time()
    sid = house.open("a", user="bob", ttl=60)
    other = house.open("a", user="ann", ttl=600)
    house.hand_up()
    if state == "lagging":
        house.write("a", comment(1))
        house.tick()
        assert house.viewers.sessions[sid].lags_from == 0
    for at in (0, 59, 63):
        house.viewers.expire(now + at)
        assert not house.viewers.sessions[sid].ended
    house.viewers.expire(now + 67)
    assert house.engine.sockets[sid].closing[0] == 4001
    assert house.engine.sockets[other].closing is None
    house.engine.gone(sid)
    house.hand_up()
    house.check()
    house.viewers.expire(now + 599)
    assert house.engine.sockets[other].closing is None
    house.viewers.expire(now + 610)
    assert house.engine.sockets[other].closing[0] == 4001


def test_a_session_that_has_ended_leaves_nothing_until_its_token_expires():
    """Eight bytes each stayed for as long as the token was good for, a year for example."""
    house = House()
    house.ready("a")
    house.hand_up()
    house.open("a", user="ann")
    house.hand_up()
    sizes = []
    for _ in range(3):
        for _ in range(100):
            sid = house.open("a", user="bob", ttl=31_536_000)
            house.hand_up()
            house.engine.gone(sid)
            house.hand_up()
        sizes.append(sum(map(held, vars(house.viewers).values())))
    assert len(set(sizes)) == 1


def held(value):
    """How many things a structure of dictionaries holds."""
    if not isinstance(value, dict):
        return len(value) if hasattr(value, "__len__") else 0
    return len(value) + sum(map(held, value.values()))


def test_sessions_that_ask_for_the_same_share_what_they_asked_for():
    house = House()
    house.ready("a")
    one, two = house.open("a", user="ann"), house.open("a", user="bob")
    house.hand_up()
    assert house.viewers.sessions[one].wish is house.viewers.sessions[two].wish


def lagging(house):
    """Return a plain viewer that lags so far behind that only the store has what it missed."""
    house.ready("a")
    (sid,) = house.arrive("a")
    house.hand_up()
    for offset in range(1, 300):
        house.write("a", comment(offset) if offset % 100 else deleted(offset, 1))
        house.tick()
    assert house.viewers.sessions[sid].lags_from is not None
    return sid


def drained(house, sid):
    house.engine.drain(sid)
    house.hand_up()
    house.tick()


def test_one_who_lags_is_brought_up_once_though_its_queue_was_full_twice(monkeypatch):
    """While the store is read, its answers can fill the queue: it was sent the same twice."""
    house = House(bound=5000, recent_events=100, backlog_default=5)
    sid = lagging(house)
    store = gevent.event.Event()
    read = house.feed.stored
    monkeypatch.setattr(house.feed, "stored", lambda *where: store.wait() and read(*where))
    drained(house, sid)
    session = house.viewers.sessions[sid]
    while not house.engine.sockets[sid].full:
        house.engine.say(sid, "nonsense")
        house.hand_up()
        house.tick()
    assert session.lags_from is not None
    drained(house, sid)
    store.set()
    gevent.sleep(0)
    house.settle()
    house.check()
    house.story(sid)
    assert [event["type"] for event in house.engine.sockets[sid].read].count("GAP") == 1


@pytest.mark.parametrize("step", ["catch up", "resume"])
def test_a_fault_while_the_store_is_read_ends_the_session(step, monkeypatch):
    """It used to hear nothing any more, and nobody said why."""
    house = House(bound=1000, recent_events=100)
    sid = lagging(house)

    def fails(*where):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(house.feed, "stored", fails)
    if step == "resume":
        sid = house.open("a", query="epoch=e&offset=5")
        house.hand_up()
    else:
        drained(house, sid)
    assert house.engine.sockets[sid].closing[0] == 1011
    house.engine.gone(sid)
    house.hand_up()
    house.check()


def test_a_fault_with_one_who_joins_costs_nobody_else(monkeypatch):
    """A stream's first viewers join together; all of them used to be closed for one."""
    house = House()
    ann, bob = house.open("a", user="ann"), house.open("a", user="bob")
    house.hand_up()
    welcome = house.viewers.arrivals.welcome

    def fails_for_bob(live, wish, claims, *more):
        assert claims.sub != "bob"
        return welcome(live, wish, claims, *more)

    monkeypatch.setattr(house.viewers.arrivals, "welcome", fails_for_bob)
    house.ready("a")
    house.tick()
    assert house.engine.sockets[bob].closing[0] == 1011
    house.settle()
    assert house.engine.sockets[ann].read[0]["type"] == "WELCOME"
    house.write("a", comment(1))
    house.settle()
    assert house.engine.sockets[ann].read[1]["offset"] == 1


def test_the_ticker_goes_on_after_a_fault(monkeypatch):
    """Nobody would have heard anything more, with the probe of the bus still green."""
    house = House()
    house.ready("a")
    faults = iter([True])

    def broken(live):
        raise RuntimeError("a stream's tick")

    def broken_too(stream):
        raise RuntimeError("and what is done about it")

    stream = house.ticker._stream
    monkeypatch.setattr(
        house.ticker, "_stream", lambda live: (broken if next(faults, None) else stream)(live)
    )
    monkeypatch.setattr(house.ticker, "broken", broken_too)
    monkeypatch.setattr(house.viewers.arrivals, "lives", broken_too)  # in hearten
    ticker = gevent.spawn(house.ticker.run)
    sid = house.open("b")
    house.hand_up()
    house.ready("b")
    try:
        with gevent.Timeout(5):
            while not house.engine.sockets[sid].queue:
                gevent.sleep(0.001)
    finally:
        ticker.kill()


def test_a_fault_half_way_through_a_group_leaves_the_counts_true(monkeypatch):
    """Those who were in by then were counted as gone, but never as come."""
    house = House()
    house.ready("a")
    admit = house.engine.admit

    def fails(sids, *more):
        admit(sids[:2], *more)
        raise MemoryError

    monkeypatch.setattr(house.engine, "admit", fails)
    sids = house.arrive("a", 3)
    house.hand_up()
    assert [house.engine.sockets[sid].closing[0] for sid in sids] == [1011] * 3
    house.check()
    for sid in sids:
        house.engine.gone(sid)
    house.hand_up()
    house.check()
    assert not house.viewers._present


def test_a_ban_that_was_in_a_hole_closes_the_sessions_once_the_store_tells_of_it():
    house = House()
    live = house.ready("a")
    bob, ann = house.open("a", user="bob"), house.open("a", user="ann")
    owner = house.open("a", user="eve", role="broadcaster")
    house.hand_up()
    store = SimpleNamespace(
        position=lambda epoch: 9, standing=lambda stream: [banned(1, "bob"), banned(2, "eve")]
    )
    feed = SimpleNamespace(
        live={"a": live}, store=store, in_pool=lambda function, *given: function(*given),
        restood=house.viewers.restood,
    )  # fmt: skip
    Feed._restand(feed, live, 9)
    codes = [house.engine.sockets[sid].closing for sid in (bob, ann, owner)]
    assert codes == [(4003, "you are banned from this stream"), None, None]


def test_a_loop_goes_on_after_a_fault(monkeypatch):
    """Presence, for one, would have been silent for ever, and its viewers counted nowhere."""
    monkeypatch.setattr(server, "AGAIN_S", 0.001)
    faults = [OSError("asked to"), ValueError("and again")]
    rounds = []

    def loop():
        rounds.append(len(faults))
        if faults:
            raise faults.pop()

    server.keep(loop)
    assert rounds == [2, 1, 0]
