"""Ticks and arrivals: whoever joins, lags or drains, each session's bytes tell one true story."""

import json
import random

import pytest

from gateway import tick
from gateway.arrivals import Arrivals
from gateway.engine import Request
from gateway.live import Live
from gateway.session import Session, wish_of
from gateway.tick import Ticker
from uproar.auth import Claims
from uproar.batch import Batch
from uproar.config import load
from uproar.events import Cleared, Comment, CommentDeleted, Event, User, UserRemoved

T = 1_700_000_000_000


class QueueEngine:
    """An engine whose sockets are lists: a session's queue takes `bound` bytes until it drains."""

    behind = False

    def __init__(self, bound):
        self.bound = bound
        self.queues, self.read, self.full, self.audiences, self.closed = {}, {}, set(), {}, {}
        self.stood = {}

    def open(self, sid):
        self.queues[sid], self.read[sid] = [], []

    def audience(self, form):
        assert form.compression == "none"
        self.audiences[len(self.audiences) + 1] = set()
        return len(self.audiences)

    def prepare(self, audience, payload):
        return payload

    def admit(self, sids, audience, greeting, sid_at=-1, backlog=None):
        full = [sid for sid in sids if not self.send(sid, greeting)]
        for sid in set(sids) - set(full):
            if backlog is not None:
                self.queues[sid].append(backlog)
            self.join(sid, audience)
        return full

    def stands(self, audience, position):
        assert position >= self.stood.get(audience, 0), "positions only rise"
        self.stood[audience] = position

    def sent_to(self, audience):
        return 0

    def members(self, audience):
        return len(self.audiences.get(audience, ()))

    def send(self, sid, frame):
        queue = self.queues[sid]
        if sid in self.full or (queue and sum(map(len, queue)) + len(frame) > self.bound):
            self.full.add(sid)
            return False
        queue.append(frame)
        return True

    def broadcast(self, audience, frame, skip=()):
        members = sorted(self.audiences.get(audience, set()) - set(skip))
        return [sid for sid in members if not self.send(sid, frame)]

    def join(self, sid, audience):
        self.audiences.setdefault(audience, set()).add(sid)

    def leave(self, sid, audience):
        self.audiences[audience].discard(sid)

    def close(self, sid, code, reason):
        self.closed[sid] = (code, reason)
        for members in self.audiences.values():
            members.discard(sid)

    def drain(self, sid):
        """Let the client read everything; True when the session had overflowed."""
        for frame in self.queues[sid]:
            self.read[sid] += json.loads(frame)
        self.queues[sid] = []
        was_full = sid in self.full
        self.full.discard(sid)
        return was_full


class Room:
    """One stream with its ticker and arrivals, without sockets."""

    def __init__(self, *, bound=10**9, **settings):
        flags = {f"gateway.{key}": value for key, value in settings.items()}
        self.engine = QueueEngine(bound)
        self.ticker = Ticker(self.engine, 0.01)
        self.sessions = {}
        self.arrivals = Arrivals(
            load(environ={}, flags=flags), None, self.ticker, self.sessions,
            lambda live, wish, claims, name, recovered: {"type": "WELCOME", "offset": live.sent},
            lambda session, code, reason: self.engine.close(session.sid, code.code, reason),
            settled=lambda session: None,
            summon=self.sessions.get,
            dismiss=lambda session: None,
        )  # fmt: skip
        self.ticker.arrivals = self.arrivals
        self.ticker.sessions_of = lambda stream, user: [
            one for one in self.sessions.values() if one.claims and one.claims.sub == user
        ]
        self.ticker.sanctioned = lambda stream, sanction: None
        self.live = Live("s", keep_events=100_000, keep_ms=10**9)
        self.live.open("e", 0, [], [], [])

    def join(self, *, role=None, query="backlog=0", dialect="native"):
        sid = len(self.sessions) + 1
        wish = wish_of(Request("/stream/s", query, {}, "a", None), 50, 100)
        wish = wish._replace(dialect=dialect)
        claims = Claims("u", "U", role) if role else None
        self.engine.open(sid)
        session = self.sessions[sid] = Session(sid, "g1-x-", wish, claims, self.live)
        self.arrivals.enter(session)
        return sid

    def feed(self, *events):
        last = events[-1].offset
        assert self.live.take(Batch(self.live.position, last, list(events)))
        self.ticker.wake(self.live)

    def drain(self, sid):
        if self.engine.drain(sid):
            self.arrivals.drained(sid)

    def seen(self, sid):
        """Everything that a client has read once all is still."""
        for _ in range(3):
            self.drain(sid)
            self.ticker.tick()
        self.drain(sid)
        return self.engine.read[sid]


def cid(offset):
    return offset.to_bytes(16, "big")


def comment(offset, *, mask=15, visibility=0, text="text"):
    data = Comment(cid(offset), User("u", "U"), text, T)
    return Event(offset, "COMMENT", T + offset, "u", mask, visibility, data)


def deleted(offset, target):
    return Event(offset, "COMMENT_DELETED", T + offset, "m", 15, 0, CommentDeleted(cid(target)))


def kinds(events):
    return [(event["type"], event.get("offset")) for event in events]


def test_one_who_joins_gets_what_comes_after_and_a_backlog_before():
    room = Room()
    early = room.join()
    room.ticker.tick()
    room.feed(comment(1), comment(2))
    room.ticker.tick()
    late = room.join(query="backlog=1")
    room.feed(comment(3))
    found = [("WELCOME", 0), ("COMMENT", 1), ("COMMENT", 2), ("COMMENT", 3)]
    assert kinds(room.seen(early)) == found
    found = room.seen(late)
    assert kinds(found) == [("WELCOME", 2), ("COMMENT", 2), ("COMMENT", 3)]
    assert [event.get("historical") for event in found] == [None, True, None]


def test_each_audience_gets_what_is_meant_for_it():
    room = Room()
    everybody, few, moderator = room.join(), room.join(query="rate=5"), room.join(role="moderator")
    author = room.join(role="viewer")  # of all of them: nobody learns of being hidden
    room.ticker.tick()
    room.feed(comment(1), comment(2, mask=1), comment(3, mask=0), comment(4, visibility=2))
    got = {sid: [event.get("offset") for event in room.seen(sid)[1:]] for sid in room.sessions}
    every = [1, 2, 3, 4]
    assert got == {everybody: [1, 2], few: [1], moderator: every, author: every}


def test_one_who_joins_between_two_ticks_gets_what_waits_with_the_next():
    room = Room()
    room.join()
    room.feed(comment(1), comment(2))
    late = room.join(query="backlog=5")
    assert kinds(room.seen(late)) == [("WELCOME", 0), ("COMMENT", 1), ("COMMENT", 2)]


def test_a_backlog_is_encoded_once_for_all_who_join_at_one_position():
    room = Room()
    room.feed(comment(1), comment(2, mask=0))
    room.ticker.tick()
    one, two, moderator = (room.join(query="backlog=5", role=r) for r in (None, None, "moderator"))
    assert room.engine.queues[one][1] is room.engine.queues[two][1]
    assert kinds(room.seen(two)) == [("WELCOME", 2), ("COMMENT", 1)]
    assert kinds(room.seen(moderator)) == [("WELCOME", 2), ("COMMENT", 1), ("COMMENT", 2)]
    author = room.join(query="backlog=5", role="viewer")
    assert kinds(room.seen(author)) == [("WELCOME", 2), ("COMMENT", 1), ("COMMENT", 2)]
    room.feed(comment(3))
    room.ticker.tick()
    assert kinds(room.seen(room.join(query="backlog=5")))[1:] == [("COMMENT", 1), ("COMMENT", 3)]


def test_every_audience_stands_where_its_stream_does():
    room = Room()
    room.join(), room.join(query="rate=5")
    room.feed(comment(1), comment(2, mask=1))
    room.ticker.tick()
    assert room.engine.stood == {1: 2, 2: 2}


def test_a_slow_viewer_is_told_what_it_missed_and_others_are_not_delayed():
    room = Room(bound=2000, backlog_default=3)
    slow, quick = room.join(), room.join()
    room.ticker.tick()
    for offset in range(1, 61):
        room.feed(deleted(30, 2) if offset == 30 else comment(offset))
        room.ticker.tick()
        room.drain(quick)
        assert room.engine.read[quick][-1]["offset"] == offset
    found = room.seen(slow)
    at = next(i for i, event in enumerate(found) if event["type"] == "GAP")
    before = [event["offset"] for event in found[1:at] if event["type"] == "COMMENT"]
    assert before == list(range(1, len(before) + 1)) and 3 < len(before) < 29
    assert found[at - 1]["type"] == "COMMENT_DELETED" and found[at - 1]["offset"] == 30
    gap = found[at]
    assert (gap["from"], gap["to"], gap["reason"]) == (len(before), 57, "too_slow")
    assert kinds(found[at + 1 :]) == [("COMMENT", 58), ("COMMENT", 59), ("COMMENT", 60)]
    room.feed(comment(61))
    assert room.seen(slow)[-1]["offset"] == 61


def test_the_policy_close_closes():
    room = Room(bound=2000, overflow="close")
    slow = room.join()
    room.ticker.tick()
    for offset in range(1, 40):
        room.feed(comment(offset))
        room.ticker.tick()
    assert room.engine.closed[slow][0] == 4008


def test_private_messages_come_after_the_welcome_and_survive_a_full_queue():
    room = Room(bound=2000)
    sid = room.join()
    room.ticker.private(room.sessions[sid], {"type": "ACK", "nonce": "first"})
    room.ticker.tick()
    for offset in range(1, 30):
        room.feed(comment(offset))
        room.ticker.tick()
    assert sid in room.engine.full
    room.ticker.private(room.sessions[sid], {"type": "ACK", "nonce": "second"})
    room.ticker.tick()
    found = room.seen(sid)
    assert found[0]["type"] == "WELCOME"
    assert [event["nonce"] for event in found if event["type"] == "ACK"] == ["first", "second"]


def test_private_messages_that_filled_the_queue_themselves_come_when_it_drains():
    """No comment was missed, so nothing lags; the answers used to wait for the next command."""
    room = Room(bound=2000)
    sid = room.join()
    room.ticker.tick()
    for number in range(100):
        room.ticker.private(room.sessions[sid], {"type": "ACK", "nonce": f"n{number}"})
        room.ticker.tick()
    assert sid in room.engine.full
    found = room.seen(sid)
    nonces = [event["nonce"] for event in found if event["type"] == "ACK"]
    assert nonces == [f"n{number}" for number in range(100)]


@pytest.mark.parametrize("seed", range(25))
def test_every_session_gets_everything_once_and_in_order_or_a_gap(seed):
    chance = random.Random(seed)
    room = Room(bound=chance.choice([1500, 6000, 10**9]), backlog_default=chance.choice([0, 2, 50]))
    truth, offset = [], 0
    for _ in range(250):
        roll = chance.random()
        if roll < 0.08 and len(room.sessions) < 12:
            role = chance.choice([None, None, "moderator", "viewer"])
            room.join(role=role, query=f"backlog={chance.choice([0, 5])}")
        events = []
        for _ in range(chance.randint(0, 4)):
            offset += chance.randint(1, 2)
            kind = chance.random()
            if kind < 0.85 or not truth:
                text = "x" * chance.randrange(100)
                hidden = chance.choice([{}, {}, {}, {"mask": 0}, {"visibility": 2}])
                events.append(comment(offset, text=text, **hidden))
            elif kind < 0.95:
                events.append(deleted(offset, chance.choice(truth).offset))
            elif kind < 0.98:
                data = UserRemoved("nobody")
                events.append(Event(offset, "USER_REMOVED", T + offset, "m", 15, 0, data))
            else:
                events.append(Event(offset, "CLEARED", T + offset, "m", 15, 0, Cleared()))
        if events:
            room.feed(*events)
            truth += events
        if chance.random() < 0.7:
            room.ticker.tick()
        for sid in room.sessions:
            if chance.random() < 0.15:
                room.drain(sid)
    gaps = 0
    for sid in room.sessions:
        found = room.seen(sid)
        assert found[0]["type"] == "WELCOME"
        begin = found[0]["offset"]
        told = [(event["from"], event["to"]) for event in found if event["type"] == "GAP"]
        gaps += len(told)
        live = [event for event in found[1:] if not event.get("historical")]
        ends = [event["to"] if event["type"] == "GAP" else event["offset"] for event in live]
        assert ends == sorted(ends)
        shown = [event["offset"] for event in live if event["type"] == "COMMENT"]
        controls = [event["offset"] for event in live if event["type"] not in ("COMMENT", "GAP")]
        assert len(set(shown)) == len(shown)
        one = room.sessions[sid]  # with a token it is the author of all, or a moderator
        after = [
            event
            for event in truth
            if event.offset > begin and (one.claims or (event.mask and not event.visibility))
        ]
        assert set(shown) <= {event.offset for event in after}
        assert controls == [event.offset for event in after if event.type != "COMMENT"]
        for number, event in enumerate(after):
            if event.type != "COMMENT" or event.offset in shown:
                continue
            in_gap = any(low < event.offset <= high for low, high in told)
            # One that lagged is not sent what was removed meanwhile.
            removed = any(
                other.type == "CLEARED"
                or (other.type == "COMMENT_DELETED" and other.data.comment_id == event.data.id)
                for other in after[number:]
            )
            assert in_gap or removed, event
    if room.engine.bound == 10**9:
        assert gaps == 0


def test_the_tick_stretches_with_what_it_takes_and_shrinks_back():
    room = Room()
    held = []
    room.engine.hold_off = held.append
    for took, length in ((0.001, 0.01), (0.08, 0.09), (0.24, 0.25), (0.3, 0.3), (0.001, 0.01)):
        room.ticker._stretch(took)
        assert room.ticker.length_s == pytest.approx(length)
    assert held == [0.6] and room.ticker.figures.ticks["overload"] == 1, (
        "above 250 ms nobody else is let in"
    )


def test_the_tick_leaves_more_to_everything_else_while_that_makes_it_late():
    room = Room()
    lengths = []
    for late in (0.0, 0.02, 0.02, 0.05, 0.3, 0.3, *[0.001] * 40):
        room.ticker._share(late)
        room.ticker._stretch(0.08)
        lengths.append(room.ticker.length_s)
    assert lengths[:5] == pytest.approx([0.09, 0.1, 0.12, 0.16, 0.16]), "as much again, at most"
    assert lengths[6] == pytest.approx(0.152) and lengths[-1] == pytest.approx(0.09)
    room.engine.behind = True
    room.ticker._share(0.0)
    assert room.ticker._spare == pytest.approx(0.25), "its passes are short, and still all are full"


def test_answers_that_nobody_takes_end_the_session_and_say_so():
    room = Room(bound=100)
    sid = room.join(role="service")
    room.seen(sid)
    room.feed(comment(0, text="x" * 200))
    room.ticker.tick()
    room.feed(comment(1, text="x" * 200))
    room.ticker.tick()
    session = room.sessions[sid]
    for number in range(tick.WAITING_MAX):
        room.ticker.private(session, {"type": "ACK", "nonce": str(number)})
    room.ticker.tick()
    assert sid not in room.engine.closed and len(session.outgoing) == tick.WAITING_MAX
    room.ticker.private(session, {"type": "ACK", "nonce": "one more"})
    room.ticker.tick()
    code, why = room.engine.closed[sid]
    assert code == 4008 and "send again what has none" in why
