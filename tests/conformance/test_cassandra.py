"""What only the Cassandra store has: nodes that die, hang or refuse, and what a cluster must be."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cassandra.auth import PlainTextAuthProvider

from tests.cassandra_node import Guarded, Node, own_node
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
from uproar.events import Mode, Sanction, Terms
from uproar.store import Place, Store, StoreUnavailable, open_store
from uproar.store.cassandra import layout, schema
from uproar.store.cassandra.connection import Deadline
from uproar.store.cassandra.store import LIST_PAGE

pytestmark = pytest.mark.stack

ROOT = Path(__file__).parents[2]
BATCH = 40


@contextmanager
def opened(node: Node, *, writer: bool = True, **settings: Any) -> Iterator[Store]:
    store = open_store(node.config(**settings), writer=writer)
    try:
        yield store
    finally:
        store.close()


def eventually(call: Callable[[], Any], within_s: float = 20.0) -> Any:
    """What `call` returns once the store answers again."""
    until = time.monotonic() + within_s
    while True:
        try:
            return call()
        except StoreUnavailable:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def write_until(store: Store, done: threading.Event, acknowledged: list[int]) -> None:
    """Do what the archive does: batch after batch, each until it is acknowledged."""
    era = store.open_epoch("e1")
    at = store.position("e1")
    while not done.is_set():
        events = [said(at + n) for n in range(1, BATCH)] + [deleted(at + BATCH, at + 1)]
        try:
            store.write(era, [("demo", event) for event in events], at + BATCH)
        except StoreUnavailable:
            time.sleep(0.05)
            continue
        at += BATCH
        acknowledged.append(at)


# Nodes that die and hang


def test_a_killed_node_loses_nothing_it_acknowledged(mortal_cassandra):
    """kill -9 of the node in the middle of writing; the archive goes on by itself."""
    node, server = mortal_cassandra, mortal_cassandra.server
    done, acknowledged = threading.Event(), []
    with opened(node, timeout_s=2) as store, opened(node, writer=False, timeout_s=2) as reader:
        eventually(lambda: store.open_epoch("e1"))
        writer = threading.Thread(target=write_until, args=(store, done, acknowledged))
        writer.start()
        try:
            while len(acknowledged) < 50:
                time.sleep(0.01)
            server.kill9()
            kept = acknowledged[-1]
            with pytest.raises(StoreUnavailable, match=r"can't be reached|did not answer"):
                reader.newest("demo", 1)
            server.start()
            assert eventually(lambda: reader.position("e1")) >= kept
            events = eventually(lambda: reader.events("demo", 1, 0, 1 << 53, 1 << 20))
            offsets = [event.offset for event in events]
            assert offsets == list(range(1, len(offsets) + 1))
            assert len(offsets) >= kept
        finally:
            done.set()
            writer.join(30)
            server.start()
        assert not writer.is_alive()
        position = eventually(lambda: reader.position("e1"))
        assert position == acknowledged[-1] == BATCH * len(acknowledged)
        assert eventually(lambda: reader.count("demo")) == position // BATCH * (BATCH - 2)


def test_a_hung_node_costs_a_call_its_deadline_and_the_next_ones_nothing(mortal_cassandra):
    node, server = mortal_cassandra, mortal_cassandra.server
    with opened(node, timeout_s=1) as store, opened(node, writer=False, timeout_s=1) as late:
        era = put(store, said(1))
        time.sleep(0.6)  # SILENCE_S: an answer just before proves nothing
        server.pause()
        try:
            start = time.monotonic()
            with pytest.raises(StoreUnavailable, match="did not answer within 1 s; try again"):
                store.write(era, [("demo", said(2))], 2)
            assert 0.9 < time.monotonic() - start < 2
            start = time.monotonic()
            with pytest.raises(StoreUnavailable, match="did not answer"):
                store.newest("demo", 1)
            assert time.monotonic() - start < 0.2
            start = time.monotonic()
            with pytest.raises(StoreUnavailable, match="did not answer"):
                late.newest("demo", 1)  # it had no connection yet
            assert time.monotonic() - start < 4
        finally:
            server.resume()
        eventually(lambda: store.write(era, [("demo", said(2))], 2))
        assert eventually(lambda: shown(late)) == [1, 2]


def test_a_node_that_would_forget_is_refused_and_a_restarted_one_found_again(mortal_cassandra):
    """With `periodic` the kill test above finds acknowledged rows missing."""
    node, server = mortal_cassandra, mortal_cassandra.server
    with opened(node, writer=False) as reader:
        with opened(node) as store:
            put(store, said(1), said(2), deleted(3, 1), said(4), removed(5, "bob"))
        assert shown(reader) == [2, 4]
        server.stop()
        server._sync = "periodic"
        try:
            with pytest.raises(StoreUnavailable, match=r"store\.hosts and store\.port"):
                reader.newest("demo", 1)
            server.start()
            match = "has commitlog_sync: periodic.*commitlog_sync: group"
            with opened(node) as store, pytest.raises(StoreUnavailable, match=match):
                put(store, said(6))
            assert eventually(lambda: shown(reader)) == [2, 4]  # reading does no harm
        finally:
            server.stop()
            server._sync = "group"
            server.start()
        with opened(node) as store:
            eventually(lambda: put(store, said(6)))
        assert eventually(lambda: shown(reader)) == [2, 4, 6]


# What is refused


def refused(node: Node, match: str, **settings: Any) -> None:
    with opened(node, **settings) as store, pytest.raises(StoreUnavailable, match=match):
        store.open_epoch("e1")


def test_nobody_there(cassandra):
    with opened(cassandra, hosts=["127.0.0.1"], port=1) as store:
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="port 1, can't be reached; is it up"):
                store.open_epoch("e1")
    refused(cassandra, r"check store.hosts|can't be reached", hosts=["no-such-host.invalid"])
    refused(cassandra, r"is store.datacenter right", datacenter="nowhere")


def test_too_few_copies(cassandra):
    with opened(cassandra) as store:
        put(store, said(1))
    refused(cassandra, r"keeps 1 copies in .*ALTER KEYSPACE", replication=3)


def test_fewer_nodes_than_copies(cassandra):
    absent = f"{cassandra.keyspace}_absent"
    refused(cassandra, r"fewer nodes \(1\) than store.replication", keyspace=absent, replication=2)
    two = f"{cassandra.keyspace}_two"
    with cassandra.session() as session:
        session.execute(
            f"CREATE KEYSPACE {two} WITH replication = "
            "{'class': 'NetworkTopologyStrategy', 'datacenter1': 2}"
        )
    refused(cassandra, "has too few replicas up", keyspace=two, replication=2)


def test_a_later_schema(cassandra):
    with opened(cassandra) as store:
        put(store, said(1))
    table = f"{cassandra.keyspace}.schema_versions"
    with cassandra.session() as session:
        session.execute(f"INSERT INTO {table} (part, version) VALUES ('all', 99)")
        try:
            for writer in (True, False):
                with opened(cassandra, writer=writer) as store:
                    match = r"schema version 99, this code knows 1; run"
                    with pytest.raises(StoreUnavailable, match=match):
                        store.position("e1")
        finally:
            session.execute(f"DELETE FROM {table} WHERE part = 'all' AND version = 99")


def test_it_migrates_forward_and_keeps_the_rows(cassandra, monkeypatch):
    keyspace = f"{cassandra.keyspace}_later"
    with opened(cassandra, keyspace=keyspace) as old:
        put(old, said(1))
    later = [*schema.MIGRATIONS, ("ALTER TABLE {ks}.eras ADD IF NOT EXISTS title text",)]
    monkeypatch.setattr(schema, "MIGRATIONS", later)
    with (
        opened(cassandra, writer=False, keyspace=keyspace) as reader,
        opened(cassandra, keyspace=keyspace) as writer,
    ):
        with pytest.raises(StoreUnavailable, match="schema version 1, 2 is needed"):
            reader.count("demo")
        put(writer, said(2))
        assert shown(reader) == [1, 2]


def test_a_refused_write_says_why_and_what_follows_goes_on(cassandra):
    # Above the largest mutation (half a commit log segment), below the largest frame.
    huge = other(2, "TERMS", Terms(("x" * (10 << 20),)))
    with opened(cassandra) as store:
        era = put(store, said(1))
        with pytest.raises(
            StoreUnavailable, match=r"Cassandra at .*(refused|failed|can't be used)"
        ):
            store.write(era, [("demo", said(3)), ("demo", huge)], 3)
        assert (shown(store), store.position("e1")) == ([1], 1)
        put(store, said(2), said(3))
        assert shown(store) == [1, 2, 3]


@pytest.mark.long
def test_login_and_certificate(tmp_path):
    """A node that wants both, with users who may do all, only read, or nothing."""
    secret, wrong = tmp_path / "secret", tmp_path / "wrong"
    secret.write_text("cassandra\n")
    wrong.write_text("guess\n")
    with own_node(Guarded) as node:
        at = node.server.directory
        login = {"user": "cassandra", "password_file": str(secret)}
        tls = {"ca_file": str(at / "ca.pem")}
        with opened(node, **login, **tls) as store:
            eventually(lambda: put(store, said(1)))  # the node makes its first user late
            assert shown(store) == [1]
        badly = {"user": "cassandra", "password_file": str(wrong)}
        refused(node, "refused the login; check store.user and store.password_file", **badly, **tls)
        refused(node, "store.password_file: .*nowhere can't be read", **tls, user="cassandra",
                password_file=str(tmp_path / "nowhere"))  # fmt: skip
        refused(node, "refused the login", **tls)
        foreign = {"ca_file": str(at / "other.pem")}
        refused(node, "has a certificate that store.ca_file does not vouch for", **login, **foreign)
        refused(node, "store.ca_file: .* has no certificates", **login, ca_file=str(secret))
        refused(node, "can't be reached", **login)
        as_admin = {
            "auth_provider": PlainTextAuthProvider("cassandra", "cassandra"),
            "ssl_context": ssl.create_default_context(cafile=str(at / "ca.pem")),
        }
        with node.session(**as_admin) as session:
            for role, right in (("reader", "SELECT"), ("archive", "ALL PERMISSIONS")):
                session.execute(f"CREATE ROLE {role} WITH PASSWORD = 'cassandra' AND LOGIN = true")
                session.execute(f"GRANT {right} ON KEYSPACE {node.keyspace} TO {role}")
            session.execute("GRANT SELECT ON KEYSPACE system_views TO archive")
        reader = {"user": "reader", "password_file": str(secret), **tls}
        with opened(node, writer=False, **reader) as store:
            assert shown(store) == [1]
        refused(node, "GRANT SELECT ON KEYSPACE system_views TO reader", **reader)
        with node.session(**as_admin) as session:
            session.execute("GRANT SELECT ON KEYSPACE system_views TO reader")
        time.sleep(2.1)  # a node remembers for 2 s what somebody may do
        refused(node, "does not let store.user do that; GRANT", **reader)
        with opened(node, **{**reader, "user": "archive"}) as store:
            put(store, said(2))


# Batches and eras without a transaction


def test_what_was_not_written_whole_is_not_there(cassandra):
    """The rows of a batch lie there, all or some, and the position does not."""
    with opened(cassandra) as store:
        era = put(
            store,
            said(1),
            said(2, "bob"),
            other(
                3,
                "MODE",
                Mode({"slow_s": 5}),
            ),
        )
        torn = [
            said(4), deleted(5, 1), removed(6, "bob"), cleared(7), said(8, "bob"),
            other(9, "MODE", Mode({"slow_s": 9})), *[cleared(10 + n) for n in range(12)],
        ]  # fmt: skip
        rows = layout.rows_of(era, [("demo", event) for event in torn], 0)
        store._connection.write(rows, Deadline(5))
        assert shown(store) == [1, 2]
        assert store.comment("demo", said(4).data.id) is None
        assert len(store.events("demo", era, 0, 99, 99)) == 3
        assert len(store.standing("demo")) == len(store.acts("demo", frozenset({"MODE"}), 9)) == 1
        assert len(store.by_user("demo", "bob", 9)) == 1
        assert store.stats("demo", 0, T0 * 2, T0 * 2)[0][1:] == (2, 2, 0)
        put(store, *torn)
        assert shown(store) == []
        assert len(store.events("demo", era, 0, 99, 99)) == 3 + len(torn)


def test_every_epoch_gets_an_era_of_its_own(cassandra):
    """Eight archives at once, each on partitions of its own and on one of somebody else's."""
    found: dict[str, set[int]] = {}
    with opened(cassandra) as store:
        store.open_epoch("p0")

    def start(n: int) -> None:
        with opened(cassandra) as store:
            for name in (f"p{n}", f"p{n + 1}", f"p{n}"):
                era = eventually(lambda name=name: store.open_epoch(name))
                found.setdefault(name, set()).add(era)

    threads = [threading.Thread(target=start, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(len(eras) == 1 for eras in found.values())
    assert sorted(era for eras in found.values() for era in eras) == list(range(1, 10))


def test_a_position_never_goes_back(cassandra):
    with opened(cassandra) as store:
        era = put(store, said(9))
        store._connection.read([("put_position", (era, 5, 5))], Deadline(5))
        assert store.position("e1") == 9


# Many partitions


def test_pages_go_over_many_buckets(cassandra):
    """Three pages of the bucket list and of the list of spans, read from both ends."""
    step = 1 << layout.ACT_BITS
    count = LIST_PAGE * 2 + 50
    with opened(cassandra) as store:
        events = []
        for n in range(count):
            events += [said(n * step + 1, ts=T0 + n), other(n * step + 2, "MODE", Mode({"n": n}))]
        era = store.open_epoch("e1")
        for first in range(0, len(events), 200):
            part = events[first : first + 200]
            store.write(era, [("demo", event) for event in part], part[-1].offset)
        expected = [n * step + 1 for n in range(count)]
        assert [found.event.offset for found in store.newest("demo", count * 2)] == expected[::-1]
        assert [found.event.offset for found in store.oldest("demo", 600, START)] == expected
        below = Place(1, 300 * step)
        assert store.newest("demo", 2, below)[1].event.offset == expected[298]
        assert store.oldest("demo", 2, below)[1].event.offset == expected[301]
        assert [found.event.ts for found in store.window("demo", T0 + 400, T0 + 402, 9)] == [
            T0 + 400, T0 + 401
        ]  # fmt: skip
        assert [event.data.changes["n"] for event in store.standing("demo")] == list(range(count))
        modes = store.acts("demo", frozenset({"MODE"}), 3, below)
        assert [found.event.data.changes["n"] for found in modes] == [299, 298, 297]
        assert len(store.by_user("demo", "ann", 1000)) == count
        assert [found.event.offset for found in store.by_user("demo", "ann", 2, below)] == [
            expected[299], expected[298]
        ]  # fmt: skip
        assert store.events("demo", 1, 0, 1 << 53, 5000) == events


def test_reading_stops_at_a_clear(cassandra, monkeypatch):
    """What was cleared costs nothing: neither in the clear's era nor in those before it."""
    step = 1 << layout.BUCKET_BITS
    with opened(cassandra) as store:
        put(store, *[said(n * step + 1, of=n) for n in range(100)])
        old = [said(n * step + 1, of=n + 100) for n in range(50)]
        put(store, *old, cleared(50 * step), said(51 * step, of=200), epoch="e2")
        asked: list[str] = []
        read = store._connection.read

        def counted(requests: Any, deadline: Deadline) -> Any:
            requests = list(requests)
            asked.extend(name for name, _ in requests)
            return read(requests, deadline)

        monkeypatch.setattr(store._connection, "read", counted)
        assert [found.event.offset for found in store.newest("demo", 50)] == [51 * step]
        assert len([name for name in asked if name.startswith("history")]) <= 2
        assert shown(store) == [51 * step]


def test_a_busy_bucket_is_read_in_portions(cassandra):
    with opened(cassandra) as store:
        era = store.open_epoch("e1")
        events = [said(n, f"user{n % 3}") for n in range(1, 3001)]
        store.write(era, [("demo", event) for event in events], 3000)
        assert store.count("demo") == 3000
        assert len(store.newest("demo", 2500)) == 2500
        assert [found.event.offset for found in store.by_user("demo", "user1", 990)] == list(
            range(2998, 28, -3)
        )
        assert store.events("demo", era, 500, 2600, 5000) == events[500:2600]


def test_comments_expire_and_what_stands_does_not(cassandra):
    ban = other(2, "SANCTION", Sanction("bob", "ban", "mod"))
    with opened(cassandra, ttl_s=2) as store:
        era = put(store, said(1), ban, said(3), deleted(4, 1))
        assert shown(store) == [3]
        assert len(store.events("demo", era, 0, 9, 9)) == 4
        eventually_gone(lambda: store.newest("demo", 9, hidden=True))
        assert shown(store) == []
        assert store.standing("demo") == [ban]
        assert store.position("e1") == 4


def eventually_gone(call: Callable[[], list[Any]]) -> None:
    until = time.monotonic() + 10
    while call():
        assert time.monotonic() < until
        time.sleep(0.1)


# Under gevent

# Many answers at once, so that reads of the socket end anywhere: see PROTOCOL.
GREENLETS = """
from gevent import monkey
monkey.patch_all()
import gevent, time
from uproar.config import load
from uproar.store import open_store
store = open_store(load(environ={{}}, flags={flags!r}))
assert not store.blocks
late = 0.0
def watch():
    global late
    while True:
        start = time.monotonic()
        gevent.sleep(0.005)
        late = max(late, time.monotonic() - start - 0.005)
store.position("e1")
watcher = gevent.spawn(watch)
jobs = [gevent.spawn(store.newest, "demo", 50) for _ in range(120)]
gevent.joinall(jobs, timeout=25, raise_error=True)
assert all(len(job.value) == 50 for job in jobs), [job.value for job in jobs]
print(late)
store.close()
"""


def test_greenlets_share_a_store_and_the_hub_goes_on(cassandra):
    with opened(cassandra) as store:
        assert store.blocks
        put(store, *[said(n) for n in range(1, 61)])
    code = GREENLETS.format(flags=cassandra.flags(timeout_s=30))
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) < 2.0
