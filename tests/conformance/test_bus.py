"""What every bus promises: what is confirmed is delivered as it was sent, and a loss is said."""

from __future__ import annotations

import time

import pytest

from tests.conformance.conftest import TIMEOUT_S, open_bus
from tests.system import wait_until
from uproar.bus import BusLost, channel, control_channel


@pytest.fixture
def bus(state_server):
    return open_bus(state_server)


def subscribed(server, bus, *channels):
    """A subscriber whose channels are all confirmed."""
    subscriber = server.keep(bus.subscriber())
    subscriber.subscribe(list(channels))
    confirmed = set()
    while confirmed != set(channels):
        message = subscriber.get(2.0)
        assert message is not None and message[1] is None, message
        confirmed.add(message[0])
    return subscriber


def test_channels_have_their_names():
    assert channel("abc", 7) == "stream:abc:comments:shard7"
    assert control_channel("g1") == "gateway:g1"


def test_what_is_published_after_the_confirmation_arrives_byte_for_byte_in_order(bus, state_server):
    where = channel("s", 0)
    subscriber = subscribed(state_server, bus, where)
    payloads = [b"", b"\0", bytes(range(256)), b"x" * 65_536, *(b"%d" % n for n in range(500))]
    bus.publish([(where, payload) for payload in payloads])
    assert [subscriber.get(2.0) for _ in payloads] == [(where, payload) for payload in payloads]
    assert subscriber.get(0.05) is None


def test_each_gets_what_it_asked_for(bus, state_server):
    one, two = channel("a", 0), channel("a", 1)
    first = subscribed(state_server, bus, one)
    both = subscribed(state_server, open_bus(state_server), one, two)
    bus.publish([(two, b"1"), (one, b"2"), (channel("b", 0), b"3")])
    assert first.get(2.0) == (one, b"2")
    # The order is that of each channel: on a cluster two channels may come from two servers.
    assert {both.get(2.0), both.get(2.0)} == {(two, b"1"), (one, b"2")}
    assert first.get(0.02) is None and both.get(0.02) is None
    first.subscribe([two])
    assert first.get(2.0) == (two, None)
    first.unsubscribe([one])
    wait_until(lambda: first.get(0.01) is None, 2, "it is quiet")
    bus.publish([(one, b"4"), (two, b"5")])
    assert first.get(2.0) == (two, b"5")
    assert both.get(2.0) == (one, b"4")


def test_a_wait_is_as_long_as_it_says(bus, state_server):
    subscriber = subscribed(state_server, bus, "gateway:g1")
    began = time.monotonic()
    assert subscriber.get(0.2) is None
    assert 0.15 < time.monotonic() - began < 1.0
    bus.publish([])
    bus.publish([("gateway:nobody", b"x")])


def test_giving_up_very_many_channels_at_once_is_no_trouble(bus, state_server):
    """Each confirmation used to cost a level of recursion."""
    channels = [channel(f"s{number}", 0) for number in range(3000)]
    subscriber = subscribed(state_server, bus, "gateway:g1", *channels)
    subscriber.unsubscribe(channels)
    bus.publish([("gateway:g1", b"alive")])
    end = time.monotonic() + 10
    while (message := subscriber.get(0.5)) is None:
        assert time.monotonic() < end
    assert message == ("gateway:g1", b"alive")


def test_a_killed_server_is_a_loss_and_a_new_subscriber_works(mortal_state_server):
    server = mortal_state_server
    bus = open_bus(server)
    where = channel("s", 0)
    subscriber = subscribed(server, bus, where)
    bus.publish([(where, b"before")])
    assert subscriber.get(2.0) == (where, b"before")
    server.kill()
    began = time.monotonic()
    with pytest.raises(BusLost, match="the bus does not answer"):
        subscriber.get(5.0)
    with pytest.raises(BusLost, match="the bus does not answer"):
        bus.publish([(where, b"lost")])
    assert time.monotonic() - began < 3.0
    with pytest.raises(BusLost):
        subscriber.subscribe([channel("t", 0)])
    subscriber.close()
    server.start()
    again = subscribed(server, bus, where)
    bus.publish([(where, b"after")])
    assert again.get(2.0) == (where, b"after")


def test_a_paused_server_is_a_loss_in_bounded_time(mortal_state_server):
    bus = open_bus(mortal_state_server)
    bus.publish([("gateway:g1", b"x")])
    mortal_state_server.pause()
    try:
        began = time.monotonic()
        with pytest.raises(BusLost):
            bus.publish([("gateway:g1", b"x")])
        assert time.monotonic() - began < TIMEOUT_S + 1.0
    finally:
        mortal_state_server.resume()
    bus.publish([("gateway:g1", b"x")])
