"""The coordinator's chain: bounds that join whatever the polls, tails, and a memory that ends."""

import random
from itertools import pairwise

import pytest

from uproar.batch import decode_batch
from uproar.consumer import Counted, Poll
from uproar.events import Comment, User, decode_record, encode_record
from uproar.ids import IdMaker
from workers.chain import FORGET_S, TAILS_S, Chain

T = 1_700_000_000_000
MAKER = IdMaker()


def counted(offset, stream="s", text="hi"):
    ts, comment_id = MAKER.make(T)
    data = Comment(comment_id, User("u", "U"), text, ts)
    raw = encode_record("COMMENT", stream, ts, "u", f":{offset}", data)
    return Counted(offset, raw, decode_record(raw))


def poll(after, last, *records):
    return Poll(after, last, list(records))


def new(start=0, *, ring_s=120.0, ring_bytes=4 << 20):
    return Chain(start, ring_s=ring_s, ring_bytes=ring_bytes)


def bounds(link):
    batch = decode_batch(link.payload)
    assert batch.last == link.last
    return batch.prev, batch.last, [event.offset for event in batch.events]


@pytest.mark.parametrize("seed", range(10))
def test_the_batches_of_a_stream_join_without_a_hole_and_hold_every_event_once(seed):
    chance = random.Random(seed)
    chain = new(100)
    at, now = 100, 1000.0
    reached, got, sent = {}, {}, {}
    for _ in range(200):
        last = at + chance.randint(0, 12)
        records = [
            counted(offset, f"s{chance.randrange(4)}", "x" * chance.choice([1, 400]))
            for offset in range(at + 1, last + 1)
            if chance.random() < 0.7  # the rest are repeats and poisons
        ]
        for record in records:
            sent.setdefault(record.record.stream, []).append(record.offset)
        for link in chain.extend(poll(at, last, *records), now):
            prev, upto, offsets = bounds(link)
            assert prev == reached.get(link.stream, 100) and prev < upto <= last
            assert all(prev < offset <= upto for offset in offsets)
            reached[link.stream] = upto
            got.setdefault(link.stream, []).extend(offsets)
        at, now = last, now + chance.random()
        for stream, payload in chain.tails(now):
            tail = decode_batch(payload)
            assert tail.prev == tail.last == reached[stream] and not tail.events
    assert got == sent and len(sent) == 4


def test_a_large_poll_becomes_batches_below_64_kb_that_cover_it():
    for text in ("", "x" * 400, "x" * 16_000):
        chain = new(0)
        records = [counted(2**40 + number, text=text) for number in range(1, 2001)]
        links = chain.extend(poll(0, 2**40 + 5000, *records), 1.0)
        assert all(len(link.payload) <= 65_536 for link in links)
        assert len(links) > 2
        assert bounds(links[0])[0] == 0 and bounds(links[-1])[1] == 2**40 + 5000
        assert [offset for link in links for offset in bounds(link)[2]] == [
            record.offset for record in records
        ]
        for one, two in pairwise(links):
            assert bounds(one)[1] == bounds(two)[0] == bounds(one)[2][-1]


def test_a_stream_that_is_new_to_this_incarnation_begins_where_it_began_to_read():
    chain = new(50)
    chain.extend(poll(50, 60, counted(60, "a")), 1.0)
    (link,) = chain.extend(poll(60, 70, counted(65, "b")), 2.0)
    assert bounds(link) == (50, 70, [65])
    (link,) = chain.extend(poll(70, 80, counted(71, "a")), 3.0)
    assert bounds(link) == (60, 80, [71])


def play(chain, start, seconds, step=0.01):
    """Ask for tails as the coordinator does; return (seconds since the start, stream, last)."""
    found = []
    for number in range(int(seconds / step) + 1):
        now = start + number * step
        for stream, payload in chain.tails(now):
            found.append((now - start, stream, decode_batch(payload).last))
    return found


def test_tails_come_at_their_times_and_then_there_is_silence():
    chain = new(0)
    chain.extend(poll(0, 3, counted(3)), 100.0)
    found = play(chain, 100.0, 60)
    assert [(stream, last) for _, stream, last in found] == [("s", 3)] * 3
    assert [when for when, _, _ in found] == pytest.approx(TAILS_S, abs=0.02)


def test_a_busy_stream_has_no_tails_and_each_batch_starts_them_anew():
    chain = new(0)
    found = []
    for number in range(50):
        now = 100.0 + number * 0.1
        found += chain.tails(now)
        chain.extend(poll(number, number + 1, counted(number + 1)), now)
    assert not found
    found = play(chain, now, 20)
    assert [when for when, _, _ in found] == pytest.approx(TAILS_S, abs=0.02)
    assert {last for _, _, last in found} == {50}
    # A batch between two tails: the first wait is the short one again.
    chain.extend(poll(50, 51, counted(51)), 200.0)
    assert len(play(chain, 200.0, 2)) == 2
    chain.extend(poll(51, 52, counted(52)), 202.0)
    assert [when for when, _, _ in play(chain, 202.0, 20)] == pytest.approx(TAILS_S, abs=0.02)


def test_the_wait_for_the_log_ends_when_a_tail_is_due():
    chain = new(0)
    assert chain.wait_s(100.0, 0.25) == 0.25
    chain.extend(poll(0, 1, counted(1)), 100.0)
    assert chain.wait_s(100.0, 0.25) == pytest.approx(0.2)
    assert chain.wait_s(100.15, 0.25) == pytest.approx(0.05)
    assert chain.wait_s(101.0, 0.25) == 0.0
    chain.tails(100.2)
    assert chain.wait_s(100.2, 0.25) == 0.25


def test_a_quiet_stream_is_forgotten_and_its_bound_becomes_the_floor():
    chain = new(10)
    chain.extend(poll(10, 20, counted(20, "a")), 100.0)
    play(chain, 100.0, 10, 0.1)
    chain.tails(100.0 + FORGET_S - 1)
    assert chain.floor == 10
    chain.tails(100.0 + FORGET_S + 1)
    assert chain.floor == 20 and not chain._streams
    # Another stream, and the same again: nothing below the floor is claimed.
    (link,) = chain.extend(poll(20, 30, counted(25, "b")), 800.0)
    assert bounds(link) == (20, 30, [25])
    (link,) = chain.extend(poll(30, 40, counted(35, "a")), 801.0)
    assert bounds(link) == (20, 40, [35])


def test_the_ring_is_trimmed_by_age():
    chain = new(0, ring_s=10.0)
    trims = [chain.extend(poll(n, n + 1, counted(n + 1)), 100.0 + n)[0].trim_to for n in range(20)]
    assert trims[:11] == [0] * 11
    # An entry of ten seconds stays, an older one may go.
    assert trims[11:] == list(range(1, 10))


def test_the_ring_is_trimmed_by_bytes_and_keeps_the_newest():
    chain = new(0, ring_bytes=5000)
    kept = {}
    for number in range(1, 40):
        (link,) = chain.extend(poll(number - 1, number, counted(number, text="x" * 900)), 100.0)
        kept[link.last] = len(link.payload)
        kept = {last: size for last, size in kept.items() if last > link.trim_to}
        assert sum(kept.values()) <= 5000 * 1.05 and max(kept) == number
    assert len(kept) == 5
    (link,) = chain.extend(poll(39, 41, counted(40, text="x" * 9000), counted(41)), 100.0)
    assert link.trim_to == 39, "one batch above the bound stays alone"
