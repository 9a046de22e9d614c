"""Admission: what becomes a record, what its sender is told, and that a successor decides alike."""

import random

import msgspec
import pytest

from uproar import ids
from uproar.config import Limits, PerMinute, Sampling
from uproar.events import (
    CommentDeleted,
    HeldResolved,
    Mode,
    StreamStarted,
    User,
    decode_record,
    encode_record,
    to_event,
)
from uproar.idempotency import READ_BACK_MS, WINDOW_MS
from uproar.ipc import Draft, Submission, encode_data
from uproar.log import LogBatch
from workers.admission import Admission
from workers.rates import MINUTE_MS

T = 1_700_000_000_000
ACK_MS = 5_000
ID = ids.build(T, 0, ids.new_node())


class Desk:
    """An Admission with a log in memory: what is taken stands there, and lands when told to."""

    def __init__(self, *, log=None, limits=None, pending=1000):
        self.log: list[bytes] = [] if log is None else log
        self.admission = Admission(limits or Limits(), ack_deadline_ms=ACK_MS, pending_max=pending)
        self.read = 0
        self.ref = 0

    def submit(
        self, nonce, now=T, *, text="hi", user="u", role="viewer", stream="s", ts=None, link="a",
        kind="COMMENT", data=None,
    ):  # fmt: skip
        """Return the answer where there is one at once."""
        self.ref += 1
        if data is None:
            data = encode_data(Draft(User(user, user), text, None, ts))
        return self.admission.submit(
            link, Submission(self.ref, kind, stream, user, role, nonce, msgspec.Raw(data)), now
        )

    def append(self):
        """Append what is in the outbox; return how many records."""
        records, _ = self.admission.take(10_000)
        self.log += records
        return len(records)

    def land(self, now=T):
        """Let admission read what it has not read; return the answers by link and ref."""
        batch = LogBatch(0, self.read + 1, len(self.log), self.log[self.read :])
        self.read = len(self.log)
        return self.admission.landed(batch, now) if batch.records else []

    def send(self, nonce, now=T, **fields):
        """Submit, append, land; return the one answer."""
        answer = self.submit(nonce, now, **fields)
        if answer is not None:
            return answer
        self.append()
        ((_, answer),) = self.land(now)
        return answer


def successor(desk, now):
    """The next incarnation: it reads back the last minutes of the log and nothing else."""
    heir = Desk(log=desk.log)
    last = decode_record(desk.log[-1]).ts
    heir.read = sum(decode_record(raw).ts < last - READ_BACK_MS for raw in desk.log)
    assert heir.land(now) == []
    return heir


def comment_at(desk, offset):
    return to_event(offset, decode_record(desk.log[offset - 1])).data


def test_an_answer_comes_when_the_record_stands_with_its_place():
    desk = Desk()
    assert desk.submit("n") is None
    assert desk.admission.pending == 1
    assert desk.land() == []
    desk.append()
    ((link, answer),) = desk.land()
    assert (link, answer.ref, answer.code, answer.offset) == ("a", 1, "", 1)
    assert answer.id == comment_at(desk, 1).id
    assert (answer.shown, answer.remaining) == (0, 9)
    assert desk.admission.pending == 0
    record = decode_record(desk.log[0])
    assert (record.stream, record.actor, record.ts) == ("s", "u", T)


def test_the_same_nonce_while_it_is_on_its_way_is_one_record_and_all_are_told():
    desk = Desk()
    for link in ("a", "b", "b"):
        assert desk.submit("n", link=link) is None
    assert desk.append() == 1
    answers = desk.land()
    assert [(link, answer.ref) for link, answer in answers] == [("a", 1), ("b", 2), ("b", 3)]
    assert len({(answer.id, answer.offset, answer.remaining) for _, answer in answers}) == 1


def test_the_same_nonce_after_it_stands_is_answered_at_once_with_the_first_place():
    desk = Desk()
    first = desk.send("n")
    again = desk.submit("n", T + WINDOW_MS, text="other words")
    assert (again.code, again.id, again.offset) == ("", first.id, first.offset)
    assert desk.append() == 0
    assert desk.submit("n", T + WINDOW_MS + 1) is None


def test_nonces_are_those_of_a_user_a_stream_and_a_kind_of_sender():
    desk = Desk()
    desk.send("n")
    for other in ({"user": "v"}, {"stream": "t"}, {"role": "service"}):
        assert desk.send("n", **other).offset == len(desk.log), other


def test_a_successor_knows_the_nonces_of_what_landed():
    desk = Desk()
    answers = {f"n{n}": desk.send(f"n{n}", T + n * 20_000, role="service") for n in range(20)}
    now = T + 20 * 20_000
    heir = successor(desk, now)
    for nonce, answer in answers.items():
        again = heir.submit(nonce, now, role="service")
        recent = ids.split(answer.id)[0] >= now - WINDOW_MS
        assert (again is not None) == recent, nonce
        if again is not None:
            assert (again.code, again.id, again.offset) == ("", answer.id, answer.offset)


def test_a_record_that_landed_twice_is_acknowledged_as_the_first():
    """An append whose answer was lost is made again: both land, one counts."""
    desk = Desk()
    desk.submit("n")
    records, _ = desk.admission.take(10)
    desk.log += records + records
    ((_, answer),) = desk.land()
    assert answer.offset == 1
    # Sent anew after an answer `unavailable`: the second record is a repeat of the first.
    other = Desk()
    other.submit("n")
    other.append()
    other.admission.expire(T + ACK_MS)
    assert other.submit("n", T + ACK_MS + 1) is None
    other.append()
    answers = other.land(T + ACK_MS + 2)
    assert [(answer.ref, answer.offset) for _, answer in answers] == [(2, 1)]
    assert answers[0][1].id == comment_at(other, 1).id != comment_at(other, 2).id
    assert other.submit("n", T + ACK_MS + 3).offset == 1


def test_eleven_in_a_minute_are_one_too_many_those_on_their_way_included():
    desk = Desk()
    for number in range(5):
        assert desk.send(f"n{number}", T + number * 1000).remaining == 9 - number
    for number in range(5, 10):
        assert desk.submit(f"n{number}", T + number * 1000) is None
    refused = desk.submit("n10", T + 10_000)
    assert refused.code == "rate_limited"
    assert refused.retry_after_ms == MINUTE_MS - 10_000  # when the first leaves the minute
    desk.append()
    answers = desk.land(T + 10_000)
    assert {answer.remaining for _, answer in answers} == {0}
    assert {answer.reset_ms for _, answer in answers} == {50_000}
    assert desk.submit("n10", T + MINUTE_MS - 1).retry_after_ms == 1
    assert desk.submit("n10", T + MINUTE_MS) is None
    assert desk.submit("n11", T + MINUTE_MS).code == "rate_limited"
    # Others, and the same user elsewhere, are not concerned.
    assert desk.submit("x", T + MINUTE_MS, user="v") is None
    assert desk.submit("x", T + MINUTE_MS, stream="t") is None


def test_retry_after_is_when_a_comment_will_be_taken_for_one_who_is_far_above():
    """A role with a lower limit (a token of other rank) waits for more than one to leave."""
    desk = Desk()
    for number in range(15):
        assert not desk.send(f"n{number}", T + number * 1000, role="vip").code
    now = T + 20_000
    wait = desk.submit("late", now, role="viewer").retry_after_ms
    assert desk.submit("late", now + wait - 1, role="viewer").code == "rate_limited"
    assert desk.submit("late", now + wait, role="viewer") is None


def test_repeats_and_refusals_cost_nothing_and_a_service_has_no_limit():
    desk = Desk()
    for _ in range(30):
        assert not desk.send("same").code
        assert desk.submit("bad", text="").code == "empty"
    assert desk.send("next").remaining == 8
    for number in range(100):
        answer = desk.send(f"s{number}", role="service")
        assert (answer.code, answer.remaining, answer.reset_ms) == ("", None, None)
    assert desk.send("third").remaining == 7, "what a service wrote for a user is not the user's"


@pytest.mark.parametrize(
    ("role", "limit"),
    [("viewer", 10), ("vip", 20), ("moderator", 100), ("broadcaster", 100), ("service", None)],
)
def test_each_role_has_its_limit(role, limit):
    desk = Desk()
    taken = sum(desk.submit(f"n{number}", role=role) is None for number in range(150))
    assert taken == (limit or 150)


def test_a_successor_knows_the_rates_of_the_last_minute():
    desk = Desk()
    for number in range(10):
        desk.send(f"n{number}", T + number * 1000)
    refused = successor(desk, T + 30_000).submit("n10", T + 30_000)
    assert (refused.code, refused.retry_after_ms) == ("rate_limited", 30_000)
    assert successor(desk, T + MINUTE_MS).submit("n10", T + MINUTE_MS) is None


def test_those_who_waited_too_long_are_told_and_may_send_again():
    desk = Desk()
    desk.submit("n1", T)
    desk.submit("n1", T + 1, link="b")
    desk.submit("n2", T + 1000)
    assert desk.admission.expire(T + ACK_MS - 1) == []
    late = desk.admission.expire(T + ACK_MS)
    assert [(link, answer.ref, answer.code) for link, answer in late] == [
        ("a", 1, "unavailable"),
        ("b", 2, "unavailable"),
    ]
    assert all(answer.retry_after_ms for _, answer in late)
    assert desk.admission.pending == 1
    # What was in vain costs no rate.
    for number in range(9):
        assert desk.submit(f"m{number}", T + ACK_MS) is None
    assert desk.submit("m9", T + ACK_MS).code == "rate_limited"


def test_a_full_log_tells_everybody_at_once_and_appends_nothing_of_it_later():
    desk = Desk()
    for number in range(5):
        desk.submit(f"n{number}")
    answers = desk.admission.expire(T, everything=True)
    assert [answer.code for _, answer in answers] == ["unavailable"] * 5
    assert (desk.append(), desk.admission.pending) == (0, 0)


def test_what_waits_is_bounded():
    desk = Desk(pending=10)
    assert all(desk.submit(f"n{number}", role="service") is None for number in range(10))
    refused = desk.submit("more", role="service")
    assert (refused.code, refused.retry_after_ms) == ("unavailable", 1000)
    # Also when those who waited have gone and the records still stand in the outbox.
    desk.admission.expire(T + ACK_MS)
    assert desk.admission.pending == 0
    assert desk.submit("more", role="service").code == "unavailable"
    desk.append()
    assert desk.submit("more", role="service") is None


def test_the_second_look_at_a_user_who_paused_does_not_end_ingest():
    """A refused comment a minute after the last one left an empty list; the sweep fell over it."""
    desk = Desk()
    desk.send("n1", T)
    now = T + 2 * MINUTE_MS
    assert desk.submit("n2", now) is None
    assert desk.admission.expire(now + MINUTE_MS) != []
    desk.admission.expire(now + 3 * MINUTE_MS)


def test_the_memory_of_rates_is_that_of_the_last_minute():
    desk = Desk()
    for number in range(500):
        desk.send("n", T + number, user=f"u{number}")
    desk.admission.expire(T + 3 * MINUTE_MS)
    assert not desk.admission._rates._landed and not desk.admission._rates._coming


def test_ts_never_goes_back_and_ids_are_unique_whatever_the_clock_does():
    desk = Desk()
    chance = random.Random(1)
    now = T
    for number in range(400):
        now += chance.choice([0, 0, 0, 1, 50, -30, -5000])
        if chance.random() < 0.2:
            data = encode_data(CommentDeleted(ID, "m"))
            desk.submit(f"d{number}", now, kind="COMMENT_DELETED", data=data, role="service")
        else:
            desk.submit(f"n{number}", now, role="service")
        if chance.random() < 0.3:
            desk.append()
            desk.land(now)
    desk.append()
    times = [decode_record(raw).ts for raw in desk.log]
    assert times == sorted(times)
    comments = [to_event(1, decode_record(raw)) for raw in desk.log]
    made = [event.data.id for event in comments if event.type == "COMMENT"]
    assert len(set(made)) == len(made) > 200
    # A successor with a slow clock goes on from the log's own time.
    heir = successor(desk, T - 10**6)
    heir.submit("after", T - 10**6, role="service")
    heir.append()
    assert decode_record(desk.log[-1]).ts >= times[-1]


def test_a_service_may_say_when_a_comment_was_written_and_order_is_the_log_s():
    desk = Desk()
    desk.send("n", role="service", ts=5)
    assert comment_at(desk, 1).ts == 5
    assert decode_record(desk.log[0]).ts == T


GOOD = ["a", "é" * 500, "👋" * 500, "a b", "👩‍👩‍👧", "مرحبا", "‏שלום", "a\u200b", "1️⃣", "…", "🇩🇪"]
BAD = {
    "": "empty",
    " ": "empty",
    "\u3000\u2003": "empty",
    "\u200b": "empty",
    "\u200d\ufe0f": "empty",
    "\u0301": "empty",
    "\ue000": "empty",
    "\u3164": "empty",
    "\u2800 \u2800": "empty",
    "a" * 501: "too_long",
    "👋" * 501: "too_long",
    "a\n": "bad_request",
    "\r\n": "bad_request",
    "a\0": "bad_request",
    "a\x1b[0m": "bad_request",
    "a\x7f": "bad_request",
    "a\x85": "bad_request",
}


@pytest.mark.parametrize("text", GOOD)
def test_texts_that_are_fine(text):
    desk = Desk()
    assert not desk.send("n", text=text).code
    assert comment_at(desk, 1).text == text


@pytest.mark.parametrize("text", BAD, ids=ascii)
def test_texts_that_are_refused(text):
    refused = Desk().submit("n", text=text)
    assert refused.code == BAD[text] and len(refused.message) > 10


def test_bytes_have_a_limit_of_their_own():
    limits = Limits(max_chars=4000, max_bytes=2000, per_minute=PerMinute())
    assert Desk(limits=limits).submit("n", text="a" * 2000) is None
    assert Desk(limits=limits).submit("n", text="é" * 1001).code == "too_long"


def packed_draft(**changes):
    fields = {"user": ["u", "U"], "text": "hi", "reply_to": None, "ts": None}
    return msgspec.msgpack.encode(list({**fields, **changes}.values()))


@pytest.mark.parametrize(
    "data",
    [
        b"\xc0",
        b"\x91" * 100_000,
        packed_draft(text=5),
        packed_draft().replace(b"\xa2hi", b"\xa2\xff\xff"),
        packed_draft().replace(b"\xa2hi", b"\xa5h\xed\xa0\x80i"),  # a lone surrogate
        packed_draft(user=["", "U"]),
        packed_draft(user=["u" * 65, "U"]),
        packed_draft(user=["u", "U\nV"]),
        packed_draft(user=["u", "U", "king"]),
        packed_draft(user=["u", "U", "vip", "x" * 33]),
        packed_draft(ts=-1),
        packed_draft(ts=1 << 53),
        packed_draft(ts="now"),
    ],
    ids=repr,
)
def test_drafts_that_are_refused(data):
    desk = Desk()
    refused = desk.submit("n", data=data, role="service")
    assert refused.code == "bad_request" and len(refused.message) > 10
    assert (desk.append(), desk.admission.pending) == (0, 0)


def test_other_events_than_comments_take_the_same_way():
    desk = Desk()
    data = encode_data(CommentDeleted(ID, "m", "why"))
    first = desk.send("n", kind="COMMENT_DELETED", data=data, role="moderator")
    assert (first.code, first.offset, first.id, first.remaining) == ("", 1, b"", None)
    assert comment_at(desk, 1) == CommentDeleted(ID, "m", "why")
    again = desk.submit("n", kind="COMMENT_DELETED", data=data, role="moderator")
    assert (again.code, again.offset) == ("", 1)
    assert not desk.send("n", role="moderator").code, "another type, another key"
    for bad in (b"\xc0", b"\x91\xc4\x01x", b"\x93\xc4\x01x\xa1\xff\xa0", b"\x91" * 100_000):
        assert desk.submit("m", kind="COMMENT_DELETED", data=bad).code == "bad_request"
    assert desk.submit("m", kind="DANCE", data=data).code == "bad_request"


def test_poisoned_records_are_counted_and_what_stands_around_them_lands(caplog):
    desk = Desk()
    desk.submit("n1")
    desk.append()
    desk.log += [b"\xc1garbage", encode_record("COMMENT", "s", T, "u", ":n", CommentDeleted(ID))]
    desk.log.append(msgspec.msgpack.encode([99, "COMMENT", "s", T, "u", ":n", 15, 0, None]))
    desk.submit("n2")
    desk.append()
    answers = desk.land()
    assert [answer.offset for _, answer in answers] == [1, 5]
    assert desk.admission.poisoned == 3
    assert desk.admission.position == 5
    assert [record.getMessage() for record in caplog.records] == ["record_poisoned"] * 3


def _event(desk, kind, nonce, data, user="mod", now=T):
    return desk.send(nonce, now, kind=kind, data=encode_data(data), user=user, role="moderator")


def _types(desk):
    return [decode_record(raw).type for raw in desk.log]


def _held(desk, nonce="h", now=T):
    _event(desk, "MODE", f"mode-{nonce}", Mode({"hold": True}, "mod"), now=now)
    return desk.send(nonce, now)


def test_what_follows_from_a_record_is_appended_with_it():
    desk = Desk()
    _event(desk, "MODE", "m", Mode({"hold": True}, "mod"))
    for number in range(4):
        desk.submit(f"n{number}", user=f"u{number}")
    sizes = []
    while records := desk.admission.take(3)[0]:
        sizes.append([decode_record(raw).type for raw in records])
    assert sizes == [["COMMENT", "HELD"]] * 4


def test_the_first_decision_on_a_held_comment_counts_and_has_one_consequence():
    desk = Desk()
    held = _held(desk)
    assert held.shown == 2
    decide = HeldResolved(held.id, "approve", "mod")
    answer = desk.submit("d1", kind="HELD_RESOLVED", data=encode_data(decide), user="mod",
                         role="moderator")  # fmt: skip
    assert answer is None
    again = _event(desk, "HELD_RESOLVED", "d2", HeldResolved(held.id, "deny", "two"), user="two")
    assert again.code == "conflict"
    # Its sender is told `unavailable`, the record lands all the same, and somebody decides again.
    desk.admission.expire(T + ACK_MS + 1)
    desk.submit("d3", T + ACK_MS + 2, kind="HELD_RESOLVED", data=encode_data(decide), user="two",
                role="moderator")  # fmt: skip
    desk.append()
    desk.land(T + ACK_MS + 3)
    keys = [
        (record.type, record.actor, record.nonce)
        for record in map(decode_record, desk.log)
        if record.type == "COMMENT_APPROVED"
    ]
    assert len(keys) == 2 and len(set(keys)) == 1, "consumers count the first"


def test_a_control_event_does_not_end_sampling_that_is_on_its_way():
    desk = Desk()
    admission = Admission(
        Limits(), ack_deadline_ms=ACK_MS, pending_max=10_000, sampling=Sampling(threshold=10)
    )
    desk.admission = admission
    change = encode_data(Mode({"slow_s": 1}, "mod"))
    desk.submit("m", kind="MODE", data=change, user="mod", role="moderator")
    for number in range(12):
        desk.submit(f"n{number}", user=f"u{number}")
    room = admission._room("s")
    assert room.sampler.ratio < 1
    desk.log += admission.take(1)[0]
    desk.land()
    assert _types(desk) == ["MODE"] and room.sampler.ratio < 1
    desk.append()
    desk.land()
    assert _types(desk).count("SAMPLING") == 1 and room.sampler.ratio < 1


def test_a_service_does_not_slow_the_user_in_whose_name_it_writes():
    desk = Desk()
    _event(desk, "MODE", "m", Mode({"slow_s": 30}, "mod"))
    assert not desk.send("a", T, user="u", role="service").code
    assert not desk.send("b", T + 1, user="u").code
    assert desk.send("c", T + 2, user="u").code == "slow_mode"


def test_a_stream_that_was_never_opened_takes_nothing_where_streams_are_opened():
    desk = Desk()
    desk.admission = Admission(Limits(), ack_deadline_ms=ACK_MS, pending_max=10, streams_open=False)
    assert desk.send("n").code == "not_allowed"
    _event(desk, "STREAM_STARTED", "s", StreamStarted("Launch", "mod"))
    assert not desk.send("n2").code
