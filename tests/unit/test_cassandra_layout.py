"""Where rows lie, what marks say, and what a cluster is refused for: without a server."""

from __future__ import annotations

import random

import pytest

from uproar import ids
from uproar.events import Comment, CommentDeleted, Event, Sanction, User
from uproar.store import Place, Reader
from uproar.store.cassandra import layout, schema
from uproar.store.cassandra.marks import Marks, Snapshot

NODE = bytes(8)
T0 = 1_700_000_000_000


def said(offset, *, user="ann", ts=T0, visibility=0):
    data = Comment(ids.build(ts, offset % 10_000, NODE), User(user, user), "hi", ts)
    return Event(offset, "COMMENT", ts, user, 15, visibility, data)


def deletion(offset, comment_id):
    return Event(offset, "COMMENT_DELETED", T0, "mod", 15, 0, CommentDeleted(comment_id))


def test_rows_of_a_batch_share_few_partitions():
    events = [("demo", said(n, user=f"user{n}")) for n in range(2000)]
    tables = [table for table, _ in layout.rows_of(1, events, 0)]
    assert tables.count("history") == tables.count("ids") == 1
    assert tables.count("buckets") == 1
    assert tables.count("users") == layout.SLOTS


def test_no_row_is_lost_at_the_edge_of_a_bucket():
    edge = 1 << layout.BUCKET_BITS
    rows = layout.rows_of(3, [("demo", said(n)) for n in (edge - 1, edge, edge + 1)], 0)
    assert [len(rows["history", ("demo", 3, bucket)]) for bucket in (0, 1)] == [1, 2]


def test_a_bucket_says_from_when_to_when_whatever_comes_first():
    """The write time orders: the smallest first_ts and the largest last_ts win."""
    spans = [(T0, T0 + 5), (T0 - 9, T0 + 2), (T0 + 1, T0 + 99)]
    times = []
    for first, last in spans:
        rows = layout.rows_of(1, [("demo", said(1, ts=first)), ("demo", said(2, ts=last))], 0)
        times += rows["buckets", ("demo",)]
    for statement, expected in (("put_first", T0 - 9), ("put_last", T0 + 99)):
        written = [
            row.values
            for row in times
            if row.statement == statement and row.values[1] == layout.HISTORY
        ]
        assert max(written, key=lambda values: values[-1])[4] == expected


def test_what_stands_never_expires_and_a_deletion_outlives_its_comment():
    ban = Event(2, "SANCTION", T0, "mod", 15, 3, Sanction("bob", "ban", "mod"))
    events = [("demo", said(1)), ("demo", ban), ("demo", deletion(3, said(1).data.id))]
    ttl = {
        (row.statement, row.values[1]): row.values[-1]
        for rows in layout.rows_of(1, events, 60).values()
        for row in rows
        if row.statement in ("put_act", "put_verdict", "put_id")
    }
    assert ttl["put_act", "SANCTION"] == 0
    assert ttl["put_act", "COMMENT_DELETED"] == 60
    assert {value for (name, _), value in ttl.items() if name == "put_verdict"} == {60 + 86_400}


@pytest.mark.parametrize("odd", [bytes(16), b"\xff" * 16, random.Random(2).randbytes(16)])
def test_an_id_that_is_no_time_uuid_has_a_place_too(odd):
    rows = layout.rows_of(1, [("demo", deletion(1, odd))], 0)
    [verdict] = [row for found in rows.values() for row in found if row.statement == "put_verdict"]
    assert verdict.values[2].bytes == odd
    assert -(1 << 63) < layout.minute_of(odd) < 1 << 63


def test_marks_agree_in_any_order():
    event = said(5)
    facts = [
        lambda marks: marks.say(event.data.id, Place(1, 6), True),
        lambda marks: marks.say(event.data.id, Place(1, 8), False),
        lambda marks: marks.remove("ann", Place(1, 7)),
        lambda marks: marks.remove("ann", Place(1, 3)),
    ]
    rng = random.Random(1)
    for _ in range(50):
        marks = Marks()
        for fact in rng.sample(facts * 2, 8):
            fact(marks)
        assert marks.gone(1, event) is None  # restored above its author's removal
        marks.remove("ann", Place(2, 1))
        assert marks.gone(1, event) == 1


def test_a_held_comment_is_for_moderators_and_its_author_until_approved():
    held = said(1, visibility=1)
    marks = Marks()
    assert not marks.shows(held, Reader())
    assert marks.shows(held, Reader("ann"))
    assert marks.shows(held, Reader(moderator=True))
    marks.approved.add(held.data.id)
    assert not marks.shows(held, Reader(moderator=True))


def test_a_snapshot_holds_nothing_above_a_position():
    snapshot = Snapshot({1: 10})
    assert snapshot.holds(1, 10)
    assert not snapshot.holds(1, 11)
    assert not snapshot.holds(2, 1)


def test_what_a_keyspace_must_keep():
    assert schema.why_not_keyspace("k", {"dc1": "3"}, True, "dc1", 3) == ""
    assert schema.why_not_keyspace("k", {"replication_factor": "3"}, True, "dc1", 3) == ""
    transient = schema.why_not_keyspace("k", {"dc1": "3/1"}, True, "dc1", 3)
    assert "keeps 2 copies in dc1" in transient
    assert "keeps 0 copies" in schema.why_not_keyspace("k", {"dc2": "3"}, True, "dc1", 1)
    assert "durable_writes" in schema.why_not_keyspace("k", {"dc1": "3"}, False, "dc1", 3)


@pytest.mark.parametrize("sync", ["batch", "group"])
def test_what_a_node_must_do_before_it_answers(sync):
    assert schema.why_not_sync("n1", sync) == ""
    assert "commitlog_sync: group" in schema.why_not_sync("n1", "periodic")
