"""Moving history from store to store: nothing is missing, eras and order stay."""

from __future__ import annotations

import random

import pytest
from click.testing import CliRunner

from tests.conformance.test_store import (
    START,
    T0,
    cleared,
    deleted,
    other,
    put,
    removed,
    said,
    shown,
)  # fmt: skip
from uproar.cli import main
from uproar.config import dump, load
from uproar.events import Mode, Sanction, Visibility
from uproar.store import Reader, StoreUnavailable
from uproar.store import move as move_module
from uproar.store.move import MoveError, move
from uproar.store.sqlite import SqliteStore

STREAMS = ("a", "b", "c")
MODERATOR = Reader(moderator=True)


@pytest.fixture
def source(tmp_path):
    """Two eras of three streams, with all that may become of a comment."""
    (tmp_path / "old").mkdir()
    store = SqliteStore(tmp_path / "old" / "store.db", writer=True)
    rng = random.Random(5)
    for n, epoch in enumerate(("e1", "e2")):
        era, offset, batch = store.open_epoch(epoch), 0, []
        for _ in range(400):
            offset += rng.choice((1, 1, 3, 40_000))
            stream, of = rng.choice(STREAMS), offset + n * 50_000_000
            kinds = [said(offset, rng.choice(("ann", "bob")), of=of)] * 6
            kinds.append(said(offset, of=of, visibility=Visibility.HELD))
            kinds.append(other(offset, "MODE", Mode({"slow_s": offset % 60})))
            if batch:
                earlier = rng.choice(batch)[1]
                if earlier.type == "COMMENT":
                    gone = deleted(offset, 0).data.__class__(earlier.data.id, "mod")
                    kinds.append(other(offset, "COMMENT_DELETED", gone))
                    kinds.append(other(offset, "COMMENT_RESTORED", earlier.data))
            batch.append((stream, rng.choice(kinds)))
        batch += [("a", removed(offset + 1, "bob")), ("b", cleared(offset + 2))]
        batch.append(("c", other(offset + 3, "SANCTION", Sanction("bob", "ban", "mod"))))
        store.write(era, batch, offset + 10)
    yield store
    store.close()


def assert_same(source, target):
    assert target.epochs() == source.epochs()
    assert target.streams() == source.streams() == list(STREAMS)
    for stream in STREAMS:
        for era in (1, 2):
            events = source.events(stream, era, 0, 1 << 53, 9999)
            assert target.events(stream, era, 0, 1 << 53, 9999) == events
        everything = source.newest(stream, 9999, hidden=True)
        assert target.newest(stream, 9999, hidden=True) == everything
        for reader in (Reader(), Reader("ann"), MODERATOR):
            page = source.oldest(stream, 9999, START, reader=reader)
            assert target.oldest(stream, 9999, START, reader=reader) == page
            window = source.window(stream, T0 + 10_000, T0 + 2_000_000, 9999, reader=reader)
            found = target.window(stream, T0 + 10_000, T0 + 2_000_000, 9999, reader=reader)
            assert found == window
            stats = source.stats(stream, T0, T0 + 9_000_000, 60_000, reader=reader)
            assert target.stats(stream, T0, T0 + 9_000_000, 60_000, reader=reader) == stats
        assert target.standing(stream) == source.standing(stream)
        types = frozenset({"COMMENT_DELETED", "MODE"})
        assert target.acts(stream, types, 50) == source.acts(stream, types, 50)
        assert target.by_user(stream, "bob", 999) == source.by_user(stream, "bob", 999)
        for stored in everything:
            comment_id = stored.event.data.id
            assert target.comment(stream, comment_id) == source.comment(stream, comment_id)


def test_everything_arrives_as_it_was(source, store, monkeypatch):
    monkeypatch.setattr(move_module, "BATCH", 37)
    monkeypatch.setattr(move_module, "PAGE_MAX", 11)
    assert move(source, store) == 806
    assert_same(source, store)
    assert move(source, store) == 0
    # The new log goes on above.
    assert put(store, said(1, ts=T0), epoch="kafka-0", stream="a") == 3
    assert store.newest("a", 1)[0].era == 3


@pytest.mark.long
def test_an_interrupted_move_goes_on_and_a_later_one_brings_the_rest(source, store, monkeypatch):
    monkeypatch.setattr(move_module, "BATCH", 50)
    steps = []

    def told(epoch, at):
        steps.append(at)
        if len(steps) == 5:
            raise StoreUnavailable("the cluster went away")

    with pytest.raises(StoreUnavailable, match="went away"):
        move(source, store, told)
    assert store.position("e1") == steps[-1]
    assert move(source, store) == 806 - 250
    end = source.position("e2")
    put(source, said(end + 1, of=1), said(end + 2, of=2), epoch="e2", stream="c")
    assert move(source, store) == 2
    assert_same(source, store)


def test_a_target_with_another_history_is_refused(source, store):
    put(store, said(1), epoch="another log")
    with pytest.raises(MoveError, match="era 1 for epoch another log, which the source does not"):
        move(source, store)
    assert shown(store) == [1]


@pytest.mark.stack
def test_the_command_moves_a_data_directory(source, cassandra, tmp_path):
    settings = tmp_path / "new.toml"
    config = load(environ={}, flags={**cassandra.flags(), "data": str(tmp_path / "new")})
    settings.write_text(dump(config))
    arguments = ["move-history", str(tmp_path / "old"), "--config", str(settings)]
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == 0, ran.output
    assert f"copied 806 events; history stands in keyspace {cassandra.keyspace}" in ran.output
    settings.write_text(dump(load(environ={}, flags={"data": str(tmp_path)})))
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == 2
    assert 'set "cassandra"' in ran.output
