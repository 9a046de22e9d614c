"""What bus and state promise on a cluster when a part of it is lost, silent, moved or locked."""

from __future__ import annotations

import logging
import signal
import threading
import time
from functools import partial

import pytest

from tests.conformance.conftest import TIMEOUT_S, open_bus, open_state
from tests.system import wait_until
from tests.valkey_cluster import running
from uproar import cluster_check
from uproar.bus import BusLost, channel
from uproar.state import Present, RingWrite, Seat, StateLost
from uproar.valkey_cluster import slot_of

pytestmark = pytest.mark.stack

FAILOVER_S = 15.0  # node timeout, vote and our own looks; 3.3 s on a quiet machine
STREAMS = [f"s{number}" for number in range(30)]  # on every master about ten


def subscribed(cluster, bus, channels):
    """A subscriber whose channels are all confirmed, or BusLost."""
    subscriber = cluster.keep(bus.subscriber())
    subscriber.subscribe(channels)
    confirmed = set()
    until = time.monotonic() + 5
    while confirmed != set(channels):
        message = subscriber.get(0.5)
        if message is not None:
            confirmed.add(message[0])
        assert time.monotonic() < until, f"{len(confirmed)} of {len(channels)} confirmed"
    return subscriber


def again(cluster, bus, channels):
    """A new subscriber, as soon as there can be one."""

    def attempt():
        try:
            return subscribed(cluster, bus, channels)
        except BusLost:
            return None

    return wait_until(attempt, FAILOVER_S, "a new subscriber")


def done(call):
    """Whether a call is answered."""
    try:
        call()
    except (StateLost, BusLost):
        return False
    return True


def lost_on(subscriber, within_s):
    """Read until BusLost; return what came before."""
    came = []
    until = time.monotonic() + within_s
    with pytest.raises(BusLost, match=r"the bus does not answer: .+"):
        while time.monotonic() < until:
            came.append(subscriber.get(0.2))
    return came


def sent(bus, subscriber, channels, payload):
    """Publish to all channels until it is done, and hear it on all of them."""
    wait_until(lambda: done(lambda: bus.publish([(c, payload) for c in channels])), 5, "sent")
    missing = {(where, payload) for where in channels}
    until = time.monotonic() + 5
    while missing and time.monotonic() < until:  # what failed half way comes twice
        missing.discard(subscriber.get(0.5))
    assert not missing


def lasts(state, stream):
    return [entry.last for entry in state.ring(stream, 0)]


class Writer(threading.Thread):
    """Rings and publishes a batch of every stream at a time, until each is done, as we do."""

    def __init__(self, cluster):
        super().__init__()
        self.state, self.bus = open_state(cluster), open_bus(cluster)
        self.stopped = threading.Event()
        self.written: list[tuple[float, int]] = []  # (when it was acknowledged, batch)
        self.longest_s = 0.0

    def run(self):
        last = 0
        while not self.stopped.wait(0.005):
            last += 1
            began = time.monotonic()
            while not self.stopped.is_set() and not done(partial(self._write, last)):
                self.stopped.wait(0.05)
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.written.append((time.monotonic(), last))

    def _write(self, last):
        now = time.time()
        shards = self.state.write_rings([RingWrite(s, last, b"%d" % last, 0) for s in STREAMS], now)
        self.bus.publish(
            [
                (channel(stream, shard), b"%d" % last)
                for stream, its in zip(STREAMS, shards, strict=True)
                for shard in its
            ]
        )


def test_a_killed_master_costs_seconds_and_at_most_what_it_had_not_passed_on(mortal_cluster):
    """Load: 30 streams over 3 masters. Fault: kill -9 of one. What was written stays, bounded."""
    cluster = mortal_cluster
    bus, state = open_bus(cluster), open_state(cluster)
    channels = [channel(stream, 7) for stream in STREAMS]
    subscriber = subscribed(cluster, bus, channels)
    state.add_interest(STREAMS, 7, time.time() + 600)
    writer = Writer(cluster)
    writer.start()
    wait_until(lambda: len(writer.written) > 100, 10, "writing")
    victim = cluster.owner(f"stream:{STREAMS[0]}:ring")
    killed_at = time.monotonic()
    victim.kill()
    lost_on(subscriber, 2.0)
    subscriber.close()
    subscriber = again(cluster, bus, channels)
    upto = len(writer.written)
    wait_until(lambda: len(writer.written) > upto + 50, FAILOVER_S, "writing goes on")
    writer.stopped.set()
    writer.join(10)
    assert writer.longest_s < FAILOVER_S
    # The new subscriber hears every stream, those of the lost master as well, in order.
    heard: dict[str, list[int]] = {}
    while (message := subscriber.get(0.3)) is not None:
        heard.setdefault(message[0], []).append(int(message[1]))
    assert set(heard) == set(channels)
    final = writer.written[-1][1]
    for numbers in heard.values():
        once = list(dict.fromkeys(numbers))  # what failed half way is said again
        assert once == list(range(numbers[0], numbers[-1] + 1))
        assert numbers[-1] >= final - 1  # the last one may have been stopped half way
    # Between what came before and what comes now stands the ring: with a hole of a second at most.
    old = {last for at, last in writer.written if at < killed_at - 1.0}
    young = {last for at, last in writer.written if at > killed_at}
    for stream in STREAMS:
        assert (old | young) - {final} <= set(lasts(state, stream)), stream
    assert cluster.owner(f"stream:{STREAMS[0]}:ring") is not victim


def test_a_gateway_is_told_to_say_everything_again_after_a_failover(mortal_cluster):
    cluster = mortal_cluster
    state = open_state(cluster, state__gateway_lease_s=600)
    counts = dict.fromkeys(STREAMS, 1)
    state.lease_gateway("g1", "i1", counts)
    assert state.lease_gateway("g1", "i1", counts) is True
    # One that does not hold the lease: the lease stands, and still what we told may be lost.
    holder = cluster.owner("gateway:g1")
    next(node for node in cluster.masters() if node is not holder).kill()
    said = []

    def renewed():
        said.append(done(lambda: said.append(state.lease_gateway("g1", "i1", counts))))
        return said[-1]

    wait_until(renewed, FAILOVER_S, "the lease is renewed")
    assert said[-2] is False
    assert state.lease_gateway("g1", "i1", counts) is True
    assert state.connections(STREAMS) == [1] * len(STREAMS)


def test_a_silent_master_is_noticed_and_replaced(mortal_cluster):
    cluster = mortal_cluster
    bus, state = open_bus(cluster), open_state(cluster)
    channels = [channel(stream, 0) for stream in STREAMS]
    subscriber = subscribed(cluster, bus, channels)
    assert state.ring(STREAMS[0], 0) == []
    victim = cluster.owner(channels[0])
    victim.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        lost_on(subscriber, 10.0)
        assert time.monotonic() - began < 1.0 + TIMEOUT_S + 1.0  # a ping after 1 s of silence
        for call in (
            lambda: bus.publish([(where, b"x") for where in channels]),
            lambda: state.write_rings([RingWrite(s, 1, b"x", 0) for s in STREAMS], 0.0),
            lambda: state.ping(),
        ):
            began = time.monotonic()
            done(call)
            assert time.monotonic() - began < TIMEOUT_S + 1.0
        subscriber = again(cluster, bus, channels)
        # Who comes back thinks for a moment that it is still the master.
        victim.signal(signal.SIGCONT)
        wait_until(lambda: victim not in cluster.masters(), FAILOVER_S, "it has noticed")
        sent(bus, subscriber, channels, b"after")
    finally:
        victim.signal(signal.SIGCONT)


def test_a_reader_that_is_held_up_loses_nothing(state_server_cluster):
    """A busy process used to take its own silence for the master's."""
    cluster = state_server_cluster
    bus = open_bus(cluster)
    subscriber = subscribed(cluster, bus, [channel(stream, 0) for stream in STREAMS])
    for _ in range(3):
        time.sleep(1.2)
        assert subscriber.get(0.0) is None  # it asks for a sign of life
        time.sleep(TIMEOUT_S + 0.2)
    bus.publish([(channel("s0", 0), b"x")])
    assert subscriber.get(2.0) == (channel("s0", 0), b"x")


def test_lost_connections_cost_a_subscriber_and_nothing_else(state_server_cluster):
    cluster = state_server_cluster
    bus, state = open_bus(cluster), open_state(cluster)
    channels = [channel(stream, 0) for stream in STREAMS]
    subscriber = subscribed(cluster, bus, channels)
    state.write_rings([RingWrite(stream, 1, b"x", 0) for stream in STREAMS], 0.0)
    node = cluster.owner(channels[0])
    assert cluster.ask(node, "CLIENT", "KILL", "TYPE", "pubsub") >= 1
    lost_on(subscriber, 2.0)
    with pytest.raises(BusLost):
        subscriber.subscribe([channel("t", 0)])
    for node in cluster.masters():
        assert cluster.ask(node, "CLIENT", "KILL", "TYPE", "normal") >= 1
    state.write_rings([RingWrite(stream, 2, b"x", 0) for stream in STREAMS], 0.0)
    bus.publish([(where, b"x") for where in channels])
    subscriber = subscribed(cluster, bus, channels)
    bus.publish([(where, b"y") for where in channels])
    assert {subscriber.get(2.0) for _ in channels} == {(where, b"y") for where in channels}


@pytest.fixture
def state_server_cluster(shared_cluster):
    """The shared cluster, emptied."""
    shared_cluster.client().flushall()
    yield shared_cluster
    shared_cluster.close_opened()


def test_a_slot_that_moves_takes_its_keys_along_and_loses_its_subscribers(mortal_cluster):
    cluster = mortal_cluster
    bus, state = open_bus(cluster), open_state(cluster)
    where = channel("s", 0)
    beside = next(c for c in (channel(s, 0) for s in STREAMS) if slot_of(c) != slot_of(where))
    subscriber = subscribed(cluster, bus, [where, beside])
    state.write_rings([RingWrite("s", 1, b"one", 0)], 0.0)
    ring = slot_of("stream:s:ring")
    assert ring != slot_of(where)
    source = cluster.owner("stream:s:ring")
    target = next(node for node in cluster.masters() if node is not source)
    ids = {node: cluster.ask(node, "CLUSTER", "MYID").decode() for node in (source, target)}
    cluster.ask(target, "CLUSTER", "SETSLOT", ring, "IMPORTING", ids[source])
    cluster.ask(source, "CLUSTER", "SETSLOT", ring, "MIGRATING", ids[target])
    # Half way: what is at the source is read there, what has gone is asked for at the target.
    assert lasts(state, "s") == [1]
    cluster.ask(source, "MIGRATE", "127.0.0.1", target.port, "stream:s:ring", 0, 5000)
    assert lasts(state, "s") == [1]
    state.write_rings([RingWrite("s", 2, b"two", 0)], 0.0)
    for node in (target, source):
        cluster.ask(node, "CLUSTER", "SETSLOT", ring, "NODE", ids[target])
    state.write_rings([RingWrite("s", 3, b"three", 0), RingWrite("t", 1, b"x", 0)], 0.0)
    assert lasts(state, "s") == lasts(open_state(cluster), "s") == [1, 2, 3]
    assert cluster.owner("stream:s:ring") is target
    # The channel's own slot: its subscriber is told by the master that gives it up.
    source = cluster.owner(where)
    target = next(node for node in cluster.masters() if node is not source)
    target_id = cluster.ask(target, "CLUSTER", "MYID").decode()
    for node in (target, source):
        cluster.ask(node, "CLUSTER", "SETSLOT", slot_of(where), "NODE", target_id)
    lost_on(subscriber, 2.0)
    subscriber = again(cluster, bus, [where, beside])
    bus.publish([(where, b"a"), (beside, b"b")])
    assert {subscriber.get(2.0), subscriber.get(2.0)} == {(where, b"a"), (beside, b"b")}


@pytest.mark.long
def test_without_replicas_a_master_takes_its_keys_with_it_and_brings_them_back(caplog):
    with running(replicas=0) as cluster:
        caplog.set_level(logging.INFO)
        cluster_check.check(cluster.config)
        short = [r.fields["why"] for r in caplog.records if r.getMessage() == "cluster_short"]
        assert len(short) == 3 and all("has no replica" in why for why in short)
        bus, state = open_bus(cluster), open_state(cluster)
        state.add_reactions({stream: {"fire": 1} for stream in STREAMS})
        victim = cluster.owner(f"reactions:stream:{STREAMS[0]}")
        time.sleep(1.2)  # what is older than a second is on disk
        victim.kill()
        gone = {s for s in STREAMS if cluster.owner(f"reactions:stream:{s}") is victim}
        assert 0 < len(gone) < len(STREAMS)
        counts = {stream: {"fire": 1, "clap": 2} for stream in STREAMS}
        for _ in range(3):  # as a gateway does: what was counted is not said again
            with pytest.raises(
                StateLost, match=f"the state server does not answer: .*{victim.port}"
            ):
                state.add_reactions(counts)
            assert set(counts) == gone
        assert state.reactions(sorted(set(STREAMS) - gone)) == [
            {"fire": 2, "clap": 2} for _ in set(STREAMS) - gone
        ]
        with pytest.raises(BusLost):
            bus.subscriber()
        victim.start()
        cluster.wait_ready()
        wait_until(lambda: done(lambda: state.add_reactions(counts)), FAILOVER_S, "it is back")
        assert counts == {}
        assert state.reactions(STREAMS) == [{"fire": 2, "clap": 2}] * len(STREAMS)
        assert subscribed(cluster, bus, [channel(s, 0) for s in STREAMS])


def test_interest_is_read_after_the_ring_is_written_though_their_masters_differ(
    state_server_cluster,
):
    """A gateway writes its interest, then reads the ring: one of both has the batch."""
    cluster = state_server_cluster
    state, other = open_state(cluster, state__timeout_s=5.0), open_state(cluster)
    stream = next(
        stream
        for stream in STREAMS
        if cluster.owner(f"stream:{stream}:ring") is not cluster.owner(f"stream:{stream}:interest")
    )
    state.write_rings([RingWrite(stream, 1, b"x", 0)], time.time())
    shards: list[list[list[int]]] = []
    writing = threading.Thread(
        target=lambda: shards.append(
            state.write_rings([RingWrite(stream, 2, b"x", 0)], time.time())
        )
    )
    owner = cluster.owner(f"stream:{stream}:ring")
    owner.signal(signal.SIGSTOP)
    try:
        writing.start()
        writing.join(0.3)
        assert writing.is_alive()
        other.add_interest([stream], 9, time.time() + 30)
    finally:
        owner.signal(signal.SIGCONT)
    writing.join(10)
    assert shards == [[[9]]]


def test_no_command_grows_with_viewers_and_keys_lie_on_all_masters(state_server_cluster):
    cluster = state_server_cluster
    state = open_state(cluster)
    for node in cluster.masters():
        cluster.ask(node, "CONFIG", "RESETSTAT")
        cluster.ask(node, "CONFIG", "SET", "slowlog-log-slower-than", 0)
        cluster.ask(node, "SLOWLOG", "RESET")
    members = [f"u:{number}" for number in range(12_000)]
    state.add_present([Present("s", 60.0, members)])
    state.seat([Seat(member, f"g1-{member}", "g1", "i1", "s") for member in members], [])
    longest, keys = 0, []
    for node in cluster.masters():
        cluster.ask(node, "CONFIG", "SET", "slowlog-log-slower-than", 10_000)
        stats = cluster.ask(node, "INFO", "commandstats").decode()
        if "cmdstat_pfadd" in stats:
            calls = stats.split("cmdstat_pfadd:calls=")[1].split(",")[0]
            assert int(calls) == 24  # 12,000 in 500s
        longest = max(
            longest, *(len(entry[3]) for entry in cluster.ask(node, "SLOWLOG", "GET", 128))
        )
        keys.append(cluster.ask(node, "DBSIZE"))
    assert longest <= 502
    assert sum(keys) == 12_001 and max(keys) < 1.1 * 4_000
