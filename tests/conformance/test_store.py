"""What every store does: order, idempotence, marks, pages, crashes. Parametrised by adapter."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from uproar import ids
from uproar.events import Cleared, Comment, CommentDeleted, Event, User, UserRemoved, Visibility
from uproar.store import Bucket, Place, Reader, Store, StoreUnavailable
from uproar.store import sqlite as sqlite_module
from uproar.store.sqlite import SqliteStore

ROOT = Path(__file__).parents[2]
T0 = 1_700_000_000_000  # unix ms of offset 0; an offset is a millisecond here
START = Place(0, 0)
NODE = ids.new_node()


def comment_id(offset):
    return ids.build(T0 + offset, 0, NODE)


def said(offset, user="ann", text="hello", *, visibility=Visibility.ALL, mask=15, ts=None, of=None):
    """A COMMENT at `offset` with the id that belongs to it, or to `of`."""
    ts = T0 + offset if ts is None else ts
    data = Comment(comment_id(offset if of is None else of), User(user, user.title()), text, ts)
    return Event(offset, "COMMENT", ts, user, mask, int(visibility), data)


def other(offset, type_, data, *, visibility=Visibility.ALL):
    return Event(offset, type_, T0 + offset, "mod", 15, int(visibility), data)


def deleted(offset, of):
    return other(offset, "COMMENT_DELETED", CommentDeleted(comment_id(of), "mod", "rude"))


def restored(offset, of, user="ann"):
    return other(offset, "COMMENT_RESTORED", said(of, user).data)


def removed(offset, user):
    return other(offset, "USER_REMOVED", UserRemoved(user, T0 + 60_000))


def cleared(offset):
    return other(offset, "CLEARED", Cleared("mod"))


def put(store: Store, *events: Event, epoch="e1", stream="demo") -> int:
    """Write the events as one batch; return the era."""
    era = store.open_epoch(epoch)
    store.write(era, [(stream, event) for event in events], max(event.offset for event in events))
    return era


def offsets(page):
    return [stored.event.offset for stored in page]


def shown(store, stream="demo"):
    """Offsets of what history shows; all ways to read it must agree."""
    new = offsets(store.newest(stream, 1000))
    old = store.oldest(stream, 1000, START)
    window = store.window(stream, 0, 1 << 62, 1000)
    assert old == window == list(reversed(store.newest(stream, 1000)))
    assert store.count(stream) == len(new)
    for stored in old:
        assert stored.deleted is None
        assert store.comment(stream, stored.event.data.id) == stored
    return list(reversed(new))


# Order and idempotence


def test_events_come_back_as_they_were_written(store):
    events = [
        said(1, text="plain", mask=3),
        deleted(2, 1),
        Event(5, "COMMENT", T0 + 5, "bot", 0, 2, Comment(
            comment_id(5), User("u5", "Ü", "vip", "#fff", ("a", "b")), "x", T0, comment_id(1),
            (("Kappa", 0, 4),),
        )),
        removed(6, "ann"),
        cleared(7),
        restored(9, 1),
        said(11, visibility=Visibility.HELD),
    ]  # fmt: skip
    era = put(store, *events)
    assert store.events("demo", era, 0, 100, 100) == events
    for after in range(13):
        for upto in range(13):
            between = [event for event in events if after < event.offset <= upto]
            assert store.events("demo", era, after, upto, 100) == between
            assert store.events("demo", era, after, upto, 2) == between[:2]
    assert store.events("demo", era + 1, 0, 100, 100) == []
    assert store.events("other", era, 0, 100, 100) == []
    assert all(type(event) is Event for event in store.events("demo", era, 0, 100, 100))


def test_streams_are_apart(store):
    era = store.open_epoch("e1")
    events = [(name, said(n, user=name)) for n, name in enumerate(["a", "b", "a", "c", "b"], 1)]
    store.write(era, [*events, ("a", removed(6, "b")), ("b", deleted(7, 4)), ("c", cleared(8))], 8)
    assert [shown(store, name) for name in "abcd"] == [[1, 3], [2, 5], [], []]
    assert store.comment("a", comment_id(2)) is None


def test_a_batch_written_twice_changes_nothing(store, open_store):
    batch = [said(1), said(2), deleted(3, 1), said(4), removed(5, "bob"), cleared(6), said(7)]
    era = put(store, *batch)
    before = (shown(store), store.events("demo", era, 0, 99, 99))
    put(store, *batch)
    # Rows below the position are not looked at, even if they say something else.
    put(store, said(2, text="forged"), said(3), cleared(7))
    assert (shown(store), store.events("demo", era, 0, 99, 99)) == before
    assert open_store().position("e1") == 7


def test_a_batch_that_straddles_the_position_adds_only_what_is_new(store):
    era = put(store, said(1), said(2))
    put(store, said(1, text="forged"), said(2, text="forged"), said(3), deleted(4, 2))
    assert shown(store) == [1, 3]
    put(store, deleted(2, 1), removed(3, "ann"), cleared(4), said(5))
    assert shown(store) == [1, 3, 5]
    expected = [said(1), said(2), said(3), deleted(4, 2), said(5)]
    assert store.events("demo", era, 0, 9, 9) == expected


def test_an_older_position_is_no_step_back(store):
    era = put(store, said(5))
    store.write(era, [], 3)
    assert store.position("e1") == 5
    store.write(era, [], 9)
    assert store.position("e1") == 9
    assert store.position("unheard of") == 0


def test_a_batch_is_all_or_nothing(store):
    era = put(store, said(1))
    broken = said(3)._replace(type="NO_SUCH_TYPE")
    with pytest.raises(ValueError, match="NO_SUCH_TYPE"):
        store.write(era, [("demo", said(2)), ("new", said(2)), ("demo", broken)], 3)
    assert (shown(store), shown(store, "new"), store.position("e1")) == ([1], [], 1)
    store.write(era, [("demo", said(2)), ("new", said(2))], 3)  # and it goes on
    assert (shown(store), shown(store, "new"), store.position("e1")) == ([1, 2], [2], 3)


def test_an_era_that_was_never_opened_is_refused(store):
    with pytest.raises(ValueError, match="era 7"):
        store.write(7, [("demo", said(1))], 1)


def test_a_reader_does_not_write(store, open_store):
    put(store, said(1))
    reader = open_store()
    assert reader.open_epoch("e1") == 1
    with pytest.raises(StoreUnavailable, match="not known yet"):
        reader.open_epoch("e2")
    with pytest.raises(StoreUnavailable, match="only the archive writes"):
        reader.write(1, [("demo", said(2))], 2)


def test_a_new_epoch_sorts_above_all_before(store):
    assert put(store, said(100), said(200)) == 1
    assert put(store, said(1), said(2), said(150), epoch="e2") == 2
    assert store.open_epoch("e1") == 1
    assert (store.position("e1"), store.position("e2")) == (200, 150)
    assert shown(store) == [100, 200, 1, 2, 150]
    page = store.newest("demo", 2, Place(2, 2))
    assert [(stored.era, stored.event.offset) for stored in page] == [(2, 1), (1, 200)]
    assert offsets(store.oldest("demo", 2, Place(1, 100))) == [200, 1]
    put(store, cleared(151), epoch="e2")
    assert shown(store) == []


def test_marks_reach_back_over_eras(store):
    put(store, said(100), said(101, "bob"), said(102, "bob"), deleted(103, 100))
    put(store, removed(1, "bob"), restored(2, 100), said(3, "bob"), epoch="e2")
    assert shown(store) == [100, 3]


# Deletion


def test_a_deletion_is_not_undone_by_writing_the_comment_again(store):
    put(store, said(1), said(2))
    put(store, deleted(3, 1))
    put(store, said(4, of=1), epoch="e2")  # the same comment through another log
    assert shown(store) == [2]
    assert store.comment("demo", comment_id(1)).deleted == 3
    assert offsets(store.newest("demo", 9, hidden=True)) == [4, 2, 1]
    assert [stored.deleted for stored in store.newest("demo", 9, hidden=True)] == [3, None, 3]


def test_a_deletion_may_come_before_its_comment(store):
    put(store, deleted(1, of=5))
    assert store.comment("demo", comment_id(5)) is None
    put(store, said(5), said(6))
    assert shown(store) == [6]
    put(store, deleted(7, of=9), said(9))  # and in one batch
    assert shown(store) == [6]


def test_the_last_word_counts(store):
    put(store, said(1), deleted(2, 1), restored(3, 1))
    assert shown(store) == [1]
    put(store, deleted(4, 1))
    assert shown(store) == []
    assert store.comment("demo", comment_id(1)).deleted == 4
    put(store, restored(5, 1))
    assert shown(store) == [1]


def test_a_removed_users_earlier_comments_go(store):
    put(store, said(1, "ann"), said(2, "bob"), said(3, "bob"), removed(4, "bob"), said(5, "bob"))
    assert shown(store) == [1, 5]
    assert store.comment("demo", comment_id(2)).deleted == 4
    put(store, restored(6, 2, "bob"))
    assert shown(store) == [1, 2, 5]
    put(store, removed(7, "bob"))
    assert shown(store) == [1]


def test_a_clear_is_a_watermark(store):
    put(store, said(1), said(2), cleared(3), said(4))
    assert shown(store) == [4]
    assert store.comment("demo", comment_id(1)).deleted == 3
    assert offsets(store.newest("demo", 9, hidden=True)) == [4, 2, 1]
    put(store, restored(5, 1))
    assert shown(store) == [4]  # a clear is final


def test_marks_only_move_forward(store):
    """What an older log still says does not undo what a newer one said."""
    put(store, said(1), said(2, "bob"), said(3, "cat"))
    put(store, restored(1, 1), removed(2, "bob"), cleared(3), epoch="e2")
    put(store, said(4, of=99), said(5, "bob", of=98), epoch="e2")
    assert shown(store) == [4, 5]
    put(store, deleted(4, 1), removed(5, "bob"), cleared(6), said(7))
    assert shown(store) == [4, 5]
    # The removal of era 2 still stands above era 1, and the restoration above its deletion.
    assert [stored.deleted for stored in store.newest("demo", 9, hidden=True)] == [
        None, None, 3, 3, 2, 3
    ]  # fmt: skip


def test_held_and_shadowed_comments_are_for_moderators(store):
    put(store, said(1), said(2, visibility=Visibility.HELD), said(3, visibility=Visibility.SHADOW))
    assert shown(store) == [1]
    assert offsets(store.newest("demo", 9, hidden=True)) == [3, 2, 1]
    assert store.comment("demo", comment_id(3)).event.visibility == Visibility.SHADOW


def test_history_is_complete_whatever_was_sampled(store):
    put(store, said(1, mask=0), said(2, mask=1), said(3, mask=15))
    assert shown(store) == [1, 2, 3]


# Figures


def test_stats_count_what_a_reader_sees(store):
    put(
        store,
        said(1, "ann"), said(500, "bob"), said(999, "ann"),  # the first second
        said(1000, "cy"), deleted(1500, 999), deleted(1600, 1),  # the second
        said(3500, "dan"), said(3600, "sam", visibility=Visibility.SHADOW),
        said(3700, "ann", visibility=Visibility.HELD), removed(3800, "dan"),
    )  # fmt: skip
    assert store.stats("demo", T0, T0 + 5000, 1000) == [
        Bucket(T0, 1, 1, 0), Bucket(T0 + 1000, 1, 1, 2),
    ]  # fmt: skip
    mine = store.stats("demo", T0, T0 + 5000, 1000, reader=Reader("sam"))
    assert mine[-1] == Bucket(T0 + 3000, 1, 1, 0)
    every = store.stats("demo", T0, T0 + 5000, 1000, reader=Reader("mod", moderator=True))
    assert every[-1] == Bucket(T0 + 3000, 2, 2, 0)
    # A window is half open, and its first bucket begins where it begins.
    assert store.stats("demo", T0 + 400, T0 + 1600, 700) == [
        Bucket(T0 + 400, 2, 2, 0), Bucket(T0 + 1100, 0, 0, 1),
    ]  # fmt: skip
    assert store.stats("other", T0, T0 + 5000, 1000) == []
    assert store.stats("demo", T0 + 9, T0, 1000) == []


def test_stats_span_eras_and_stop_at_a_clear(store):
    for n in range(1, 300_001, 50_000):
        put(store, said(n))
    put(store, cleared(300_000))
    put(store, said(1, ts=T0 + 260_000, of=7), said(2, ts=T0 + 400_000, of=8), epoch="e2")
    found = store.stats("demo", T0, T0 + 500_000, 100_000)
    assert found == [Bucket(T0 + 200_000, 1, 1, 0), Bucket(T0 + 400_000, 1, 1, 0)]


def test_an_approved_comment_is_one_of_its_author(store):
    put(store, said(1, visibility=Visibility.HELD), said(2, visibility=Visibility.HELD))
    put(store, said(3)._replace(type="COMMENT_APPROVED", data=said(1).data))
    assert offsets(store.by_user("demo", "ann", 9)) == [3, 2]


# Pages


def test_pages_have_no_gaps_and_no_duplicates(store):
    """Random history over three eras, read in pages of every size from both ends."""
    rng = random.Random(7)
    written: list[Place] = []
    gone: set[Place] = set()
    for era, epoch in enumerate(["e1", "e2", "e3"], 1):
        events, offset = [], 0
        for _ in range(60):
            offset += rng.choice([1, 1, 2, 70_000])
            events.append(said(offset, of=offset + era * 10_000_000))
            written.append(Place(era, offset))
        for place in [place for place in written if place.era == era and rng.random() < 0.3]:
            offset += 1
            events.append(deleted(offset, of=place.offset + era * 10_000_000))
            gone.add(place)
        assert put(store, *events, epoch=epoch) == era
    expected = [place for place in written if place not in gone]

    def walk(read, first):
        seen, place = [], first
        while page := read(place):
            seen += [Place(stored.era, stored.event.offset) for stored in page]
            place = seen[-1]
        return seen

    for limit in (1, 2, 7, 50, 1000):
        newest = walk(lambda place, n=limit: store.newest("demo", n, place), None)
        assert newest[::-1] == expected
        assert walk(lambda place, n=limit: store.oldest("demo", n, place), START) == expected
        paged = walk(lambda place, n=limit: store.window("demo", 0, 1 << 60, n, place), None)
        assert paged == expected


def test_a_window_is_half_open_and_in_order(store):
    for n in range(1, 200_001, 10_000):
        put(store, said(n))
    put(store, deleted(200_002, 50_001))
    # The clock may go back with a new log.
    put(store, said(1, ts=T0 + 60_000, of=7), said(2, ts=T0 + 90_500, of=8), epoch="e2")
    found = store.window("demo", T0 + 40_001, T0 + 70_001, 100)
    assert offsets(found) == [40_001, 60_001, 1]
    assert offsets(store.window("demo", T0 + 40_001, T0 + 70_001, 1)) == [40_001]
    rest = store.window("demo", T0 + 40_001, T0 + 70_001, 100, Place(1, 40_001))
    assert offsets(rest) == [60_001, 1]
    assert offsets(store.window("demo", T0 + 90_100, T0 + 90_501, 100)) == [2]
    assert offsets(store.window("demo", T0 + 20_001, T0 + 40_001, 100)) == [20_001, 30_001]
    assert store.window("demo", T0 + 40_002, T0 + 50_000, 100) == []
    assert store.window("demo", T0 + 9, T0 + 1, 100) == []


def test_odd_limits_and_places_read_nothing_and_raise_nothing(store):
    put(store, said(1), said(2))
    huge = 1 << 80
    assert store.newest("demo", 0) == store.newest("demo", -1) == []
    assert store.oldest("demo", -5, START) == store.window("demo", 0, huge, -1) == []
    assert offsets(store.newest("demo", huge, Place(huge, huge))) == [2, 1]
    assert store.newest("demo", 9, Place(-huge, -huge)) == []
    assert store.oldest("demo", 9, Place(huge, huge)) == []
    assert len(store.events("demo", 1, -huge, huge, huge)) == 2
    assert store.newest("none", 9) == store.oldest("none", 9, START) == []
    assert (store.count("none"), store.comment("none", b"")) == (0, None)


def test_text_and_offsets_at_the_edges(store):
    top = (1 << 53) - 1
    texts = [
        "\N{PILE OF POO}\u200d",
        "a\U000e0000",
        "\u202eשלום مرحبا",
        "e\u0301" * 40,
        "漢字",
        "0\x00",
    ]
    events = [said(top - 9 + n, f"u{text}", text) for n, text in enumerate(texts)]
    era = put(store, *events, removed(top - 1, f"u{texts[1]}"), said(top, "x" * 64))
    assert store.events("demo", era, 0, top, 99)[:6] == events
    assert shown(store) == [top - 9, top - 7, top - 6, top - 5, top - 4, top]
    assert store.position("e1") == top


# Several at once


def test_readers_see_whole_batches_while_the_archive_writes(store, open_store):
    """Batches of 10 with 1 deletion each: a reader never sees a number that is no whole batch."""
    era = store.open_epoch("e1")
    batches, failures = 150, []
    done = threading.Event()

    def read(reader):
        low = 0
        try:
            while not done.is_set():
                count = reader.count("demo")
                page = offsets(reader.newest("demo", 20))
                assert count % 9 == 0
                assert count >= low
                assert page == sorted(page, reverse=True)
                low = count
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(reader,)) for reader in (open_store(), store)]
    shared = open_store()  # one object, two threads
    threads += [threading.Thread(target=read, args=(shared,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for n in range(batches):
        first = n * 11 + 1
        batch = [said(first + k) for k in range(10)] + [deleted(first + 10, first + 3)]
        store.write(era, [("demo", event) for event in batch], first + 10)
    done.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert failures == []
    assert store.count("demo") == batches * 9


WRITER = """
import sys
from uproar import ids
from uproar.events import Comment, CommentDeleted, Event, User
era = store.open_epoch("e1")
at = store.position("e1")
node = bytes(8)
while True:
    events = []
    for offset in range(at + 1, at + 21):
        made = ids.build(offset, 0, node)
        data = Comment(made, User("u", "U"), "x" * 100, offset)
        events.append(("demo", Event(offset, "COMMENT", offset, "u", 15, 0, data)))
    at += 21
    gone = CommentDeleted(ids.build(at - 1, 0, node))
    events.append(("demo", Event(at, "COMMENT_DELETED", at, "m", 15, 0, gone)))
    store.write(era, events, at)
    print(at, flush=True)
"""


def test_what_was_committed_survives_a_kill(open_store):
    """kill -9 in the middle of writing, five times over; a reader stays open throughout."""
    reader = open_store()
    committed = 0
    for round_ in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", open_store.code + WRITER], cwd=ROOT, stdout=subprocess.PIPE
        )
        try:
            for _ in range(10 + 7 * round_):
                committed = int(child.stdout.readline())
            # Somewhere in the next batches; the child goes on while we come to it.
            os.kill(child.pid, signal.SIGKILL)
            lines = child.stdout.read().splitlines(keepends=True)
            committed = max([committed, *(int(line) for line in lines if line.endswith(b"\n"))])
        finally:
            child.kill()
            child.wait(10)
            child.stdout.close()
        for store in (reader, open_store()):
            position = store.position("e1")
            assert position >= committed
            assert position % 21 == 0
            batches = position // 21
            assert store.count("demo") == batches * 19
            found = [event.offset for event in store.events("demo", 1, 0, 1 << 53, 1 << 20)]
            assert found == list(range(1, position + 1))
    assert committed > 1000


# Away, damaged, from another version


def test_before_the_first_write_readers_are_told_so(open_store):
    open_store.go_where_nothing_is()
    reader = open_store()
    with pytest.raises(StoreUnavailable, match="the archive makes it"):
        reader.newest("demo", 1)
    put(open_store(writer=True), said(1))
    assert shown(reader) == [1]


def test_a_reader_outlives_the_writer(store, open_store):
    put(store, said(1))
    reader = open_store()
    assert shown(reader) == [1]
    store.close()
    assert shown(reader) == [1]
    assert shown(open_store()) == [1]
    put(open_store(writer=True), said(2))
    assert shown(reader) == [1, 2]


def test_a_closed_store_says_so(store):
    put(store, said(1))
    store.close()
    store.close()
    for call in (lambda: store.count("demo"), lambda: put(store, said(2))):
        with pytest.raises(StoreUnavailable, match="closed"):
            call()


def test_two_archives_for_a_moment_do_no_harm(store, open_store):
    second = open_store(writer=True)
    era = put(store, said(1), said(2))
    put(second, said(1), said(2), said(3))
    put(store, said(2), said(3), said(4))
    assert store.events("demo", era, 0, 9, 9) == [said(n) for n in (1, 2, 3, 4)]


def test_sqlite_refuses_the_file_of_a_later_version(tmp_path):
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    for writer in (True, False):
        store = SqliteStore(path, writer=writer)
        with pytest.raises(StoreUnavailable, match=r"schema version 99, this code knows 1; run"):
            store.open_epoch("e1")
        store.close()


def test_sqlite_migrates_forward_and_keeps_the_rows(tmp_path, monkeypatch):
    path = tmp_path / "store.db"
    old = SqliteStore(path, writer=True)
    put(old, said(1))
    old.close()
    later = [*sqlite_module._MIGRATIONS, ("ALTER TABLE streams ADD COLUMN title TEXT",)]
    monkeypatch.setattr(sqlite_module, "_MIGRATIONS", later)
    reader, writer = SqliteStore(path), SqliteStore(path, writer=True)
    with pytest.raises(StoreUnavailable, match="schema version 1, 2 is needed"):
        reader.count("demo")
    put(writer, said(2))
    assert shown(reader) == [1, 2]
    reader.close()
    writer.close()


@pytest.mark.parametrize("where", ["head", "pages", "garbage", "empty"])
def test_sqlite_says_that_a_file_is_damaged(tmp_path, where):
    path = tmp_path / "store.db"
    store = SqliteStore(path, writer=True)
    put(store, *[said(n, text="x" * 300) for n in range(1, 500)])
    store.close()
    raw = bytearray(path.read_bytes())
    if where == "head":
        raw[:100] = random.Random(1).randbytes(100)
    elif where == "pages":
        raw[4096:] = random.Random(1).randbytes(len(raw) - 4096)
    path.write_bytes({"garbage": b"not a database at all " * 99, "empty": b""}.get(where, raw))
    calls = [
        lambda store: store.newest("demo", 10),
        lambda store: store.count("demo"),
        lambda store: store.comment("demo", comment_id(1)),
        lambda store: store.position("e1"),
    ]
    reader = SqliteStore(path)
    for call in calls:
        with pytest.raises(StoreUnavailable, match=r"damaged|schema version 0"):
            call(reader)
    reader.close()
    if where != "empty":  # the archive makes an empty file a store
        writer = SqliteStore(path, writer=True)
        with pytest.raises(StoreUnavailable, match="damaged"):
            put(writer, said(1000))
        writer.close()


def test_sqlite_random_damage_never_raises_anything_else(tmp_path):
    path, broken = tmp_path / "store.db", tmp_path / "broken.db"
    store = SqliteStore(path, writer=True)
    put(store, *[said(n, f"user{n % 7}", "x" * 200) for n in range(1, 300)], deleted(300, 5))
    store.close()
    raw = path.read_bytes()
    rng = random.Random(3)
    unavailable = 0
    for _ in range(60):
        copy = bytearray(raw)
        for _ in range(rng.choice([1, 20, 400])):
            copy[rng.randrange(len(copy))] = rng.randrange(256)
        broken.write_bytes(copy[: rng.choice([len(copy), len(copy) // 2])])
        reader = SqliteStore(broken)
        for call in (
            lambda store: store.newest("demo", 500, hidden=True),
            lambda store: store.window("demo", 0, 1 << 60, 500),
            lambda store: store.events("demo", 1, 0, 1 << 53, 500),
            lambda store: store.count("demo"),
        ):
            try:
                call(reader)
            except StoreUnavailable:
                unavailable += 1
        reader.close()
    assert unavailable > 20


def test_sqlite_waits_for_a_lock_only_so_long(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_module, "BUSY_S", 0.1)
    path = tmp_path / "store.db"
    store = SqliteStore(path, writer=True)
    era = put(store, said(1))
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    with pytest.raises(StoreUnavailable, match="locked by another process"):
        store.write(era, [("demo", said(2))], 2)
    assert time.monotonic() - start < 5
    assert shown(store) == [1]  # readers don't mind
    blocker.close()
    store.write(era, [("demo", said(2))], 2)
    assert shown(store) == [1, 2]
    store.close()


def test_sqlite_ends_a_read_at_its_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_module, "READ_S", 0.0)
    monkeypatch.setattr(sqlite_module, "_CHECK_OPS", 100)
    store = SqliteStore(tmp_path / "store.db", writer=True)
    put(store, *[said(n) for n in range(1, 200)])
    with pytest.raises(StoreUnavailable, match="to answer; ask for less"):
        store.count("demo")
    monkeypatch.setattr(sqlite_module, "READ_S", 5.0)
    assert store.count("demo") == 199
    store.close()


def test_sqlite_full_disk_refuses_and_goes_on_after(tmp_path):
    store = SqliteStore(tmp_path / "store.db", writer=True)
    era = put(store, said(1))
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreUnavailable, match="disk is full; free some space"):
        store.write(era, [("demo", said(n, text="x" * 400)) for n in range(2, 200)], 199)
    assert (shown(store), store.position("e1")) == ([1], 1)
    store.write(era, [("demo", said(2))], 2)  # a new connection has no such limit
    assert shown(store) == [1, 2]
    store.close()


def test_sqlite_needs_a_directory_it_may_use(tmp_path):
    store = SqliteStore(tmp_path / "nowhere" / "store.db", writer=True)
    with pytest.raises(StoreUnavailable, match=r"can't be opened; is its directory there"):
        store.open_epoch("e1")


def test_sqlite_readers_hold_the_file_read_only(tmp_path):
    store = SqliteStore(tmp_path / "store.db", writer=True)
    put(store, said(1))
    db = store._open(write=False)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("DELETE FROM comments")
    db.close()
    store.close()


def test_sqlite_commits_reach_the_disk(tmp_path):
    """Promise 1 rests on it: the log is trimmed below what the store says it has."""
    store = SqliteStore(tmp_path / "store.db", writer=True)
    put(store, said(1))
    assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()
