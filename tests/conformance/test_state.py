"""What every state promises: rings in order, leases that end, and nothing that can't be rebuilt."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from tests.conformance.conftest import TIMEOUT_S, open_state
from tests.system import wait_until
from uproar.state import ActiveStream, Present, RingEntry, RingWrite, Seat, StateLost

NOW = 1_700_000_000.0


@pytest.fixture
def state(state_server):
    return open_state(state_server)


def write(stream, last, payload=b"x", trim_to=0):
    return RingWrite(stream, last, payload, trim_to)


def lasts(state, stream="s", after=0):
    return [entry.last for entry in state.ring(stream, after)]


def test_an_empty_state_knows_nothing(state):
    assert state.ring("s", 0) == []
    assert state.interests(["s"], NOW)[0] == []
    assert state.last(0) is None
    assert (state.connections([]), state.connections(["s", "t"])) == ([], [0, 0])
    assert state.write_rings([], NOW) == []
    state.ping()


def test_a_ring_holds_batches_in_order_byte_for_byte(state, state_server):
    payloads = [b"", bytes(range(256)), b"x" * 65_536]
    state.write_rings(
        [write("s", 10 + number, payload) for number, payload in enumerate(payloads)], NOW
    )
    state.write_rings([write("t", 5), write("s", 10**15 + 1, b"far")], NOW)
    found = open_state(state_server).ring("s", 0)
    assert found == [
        *(RingEntry(10 + number, payload) for number, payload in enumerate(payloads)),
        RingEntry(10**15 + 1, b"far"),
    ]
    assert lasts(state, after=10) == [11, 12, 10**15 + 1]
    assert lasts(state, after=10**15 + 1) == []
    assert lasts(state, "t") == [5]


def test_an_older_holder_s_batch_is_refused_and_the_rest_of_the_call_stands(state):
    state.add_interest(["s", "t"], 0, NOW + 30)
    state.write_rings([write("s", 10, b"first"), write("s", 20, b"second")], NOW)
    shards = state.write_rings(
        [write("s", 10, b"again"), write("s", 15, b"older"), write("t", 3), write("s", 30)], NOW
    )
    assert shards == [[0]] * 4
    assert state.ring("s", 0)[:2] == [RingEntry(10, b"first"), RingEntry(20, b"second")]
    assert (lasts(state), lasts(state, "t")) == ([10, 20, 30], [3])


def test_trimming_drops_what_is_at_and_below(state):
    for last in range(1, 301):
        state.write_rings([write("s", last * 10, trim_to=max(0, last * 10 - 50))], NOW)
    assert lasts(state) == [2960, 2970, 2980, 2990, 3000]


def test_a_ring_that_is_not_written_to_is_forgotten(state_server):
    state = open_state(state_server, state__ring_s=0.2)
    state.write_rings([write("s", 1)], NOW)
    assert lasts(state) == [1]
    wait_until(lambda: lasts(state) == [], 5, "the ring is gone")


def test_interest_is_what_has_a_live_lease(state, state_server):
    other = open_state(state_server)
    assert state.add_interest(["a", "b"], 3, NOW + 30) == ["a", "b"], "both are new"
    assert other.add_interest(["a"], 1, NOW + 10) == ["a"]
    assert state.add_interest([], 1, NOW) == []
    assert state.add_interest(["a", "c"], 3, NOW + 30) == ["c"]
    assert (state.interests(["a"], NOW)[0], state.interests(["b"], NOW)[0]) == ([1, 3], [3])
    assert state.interests(["a"], NOW + 10.5)[0] == [3]
    other.add_interest(["a"], 1, NOW + 40)
    assert state.interests(["a"], NOW + 10.5)[0] == [1, 3]
    writes = [write("a", 1), write("b", 1), write("c", 1), write("a", 2)]
    assert state.write_rings(writes, NOW) == [[1, 3], [3], [3], [1, 3]]
    assert state.write_rings([write("a", 3), write("b", 2)], NOW + 35) == [[1], []]


def test_interest_that_nobody_renews_leaves_no_key_behind(state_server):
    state = open_state(state_server, state__interest_lease_s=0.1)
    state.add_interest(["s"], 0, time.time() + 0.1)
    assert state.interests(["s"], time.time())[0] == [0]
    wait_until(lambda: state_server.client().dbsize() == 0, 5, "the key is gone")


def test_the_last_position_is_what_was_said_last(state, state_server):
    state.set_last(0, 10**15 + 7, "e1")
    assert open_state(state_server).last(0) == (10**15 + 7, "e1")
    state.set_last(0, 5, "e2")
    assert (state.last(0), state.last(1)) == ((5, "e2"), None)


def test_connections_are_those_of_gateways_that_live(state_server):
    state = open_state(state_server, state__gateway_lease_s=0.4)
    lasting = open_state(state_server, state__gateway_lease_s=600)
    lasting.lease_gateway("g1", "i1", {"a": 3, "b": 1})
    state.lease_gateway("g2", "i2", {"a": 4})
    assert lasting.connections(["a", "b", "c"]) == [7, 1, 0]
    lasting.lease_gateway("g1", "i1", {"a": 2, "b": 0})
    assert lasting.connections(["a", "b"]) == [6, 0]
    # The dead one's viewers leave with its lease.
    wait_until(lambda: lasting.connections(["a"]) == [2], 5, "g2 is out of the count")
    # And a successor of its name does not take them over.
    lasting.lease_gateway("g2", "i3", {"b": 5})
    assert lasting.connections(["a", "b"]) == [2, 5]
    lasting.lease_gateway("g2", "i3", {"a": 1})
    assert lasting.connections(["a", "b"]) == [3, 5]


def test_emptied_in_the_middle_it_heals(state, state_server):
    state.add_interest(["s"], 0, NOW + 30)
    state.write_rings([write("s", 10), write("s", 20)], NOW)
    state.set_last(0, 20, "e")
    state.lease_gateway("g1", "i1", {"s": 3})
    state_server.client().flushall()
    assert (state.last(0), state.connections(["s"])) == (None, [0])
    # The chain goes on where it is: what is older comes from the store.
    assert state.write_rings([write("s", 30)], NOW) == [[]]
    assert state.add_interest(["s"], 0, NOW + 30) == ["s"], "a gateway learns that it missed some"
    assert state.write_rings([write("s", 40)], NOW) == [[0]]
    assert lasts(state) == [30, 40]
    state.set_last(0, 40, "e")
    state.lease_gateway("g1", "i1", {"s": 3})
    assert (state.last(0), state.connections(["s"])) == ((40, "e"), [3])


def test_a_lease_says_whether_it_stood(state, state_server):
    assert state.lease_gateway("g1", "i1", {}) is False
    assert state.lease_gateway("g1", "i1", {"s": 1}) is True
    assert state.leased(["g0", "g1", "b-g1"]) == ["g1"]
    # A successor: what its predecessor said does not count for it.
    assert state.lease_gateway("g1", "i2", {"s": 2}) is False
    assert state.connections(["s"]) == [2]
    state.end_lease("g1", "i1")
    assert state.connections(["s"]) == [2], "ended by one that does not hold it"
    state.end_lease("g1", "i2")
    assert state.connections(["s"]) == [0]
    assert state.leased(["g1"]) == []
    state.lease_gateway("g1", "i2", {"s": 2})
    state_server.client().flushall()
    assert state.lease_gateway("g1", "i2", {"s": 2}) is False


def test_interests_of_many_are_those_of_each(state):
    streams = [f"s{number}" for number in range(1100)]
    state.add_interest(streams[::2], 4, NOW + 30)
    assert state.interests(streams, NOW) == [[4], []] * 550
    assert state.interests([], NOW) == []


@pytest.mark.parametrize("members", [0, 1, 40, 700, 20_000])
def test_viewers_are_the_distinct_ones_within_2_percent(state, state_server, members):
    names = [f"u:{number}" for number in range(members)]
    other = open_state(state_server)
    for at in range(0, members, 500):
        state.add_present([Present("s", NOW, names[at : at + 500])])
    other.add_present([Present("s", NOW, names[: members // 2][:500]), Present("t", NOW, ["u:0"])])
    count, beside = state.viewers(["s", "t"], NOW)
    assert abs(count - members) <= 0.02 * members
    assert beside == 1


def test_the_minutes_of_presence(state):
    minute = NOW - NOW % 60
    state.add_present([Present("s", minute + 59.9, ["a", "b", "c"])])
    state.add_present([Present("s", minute + 60.0, ["a"])])
    # Larger of two minutes, not their sum nor their union.
    state.add_present([Present("s", minute + 61, ["d"])])
    assert state.viewers(["s"], minute + 59.9) == [3]
    assert state.viewers(["s"], minute + 119.9) == [3]
    assert state.viewers(["s"], minute + 120.0) == [2]
    assert state.viewers(["s"], minute + 180.0) == [0]


def test_presence_leaves_no_key_behind(state, state_server):
    state.add_present([Present("s", NOW, ["a"])])
    (key,) = state_server.client().scan_iter("stream:viewers:*")
    assert 60 <= state_server.client().ttl(key) <= 180


def test_reactions_add_up_by_stream_and_kind(state, state_server):
    state.add_reactions({"s": {"fire": 3, "clap": 1}, "t": {"fire": 10**9}})
    open_state(state_server).add_reactions({"s": {"fire": 4}})
    assert state.reactions(["s", "u", "t"]) == [{"fire": 7, "clap": 1}, {}, {"fire": 10**9}]
    assert state.reactions([]) == []


def test_totals_are_raised_and_never_lowered(state):
    state.add_reactions({"s": {"fire": 5, "clap": 5}})
    for _ in range(2):  # twice said changes nothing
        state.raise_reactions({"s": {"fire": 9, "clap": 2, "wow": 1}, "t": {"sad": 10**15}})
        assert state.reactions(["s", "t"]) == [{"fire": 9, "clap": 5, "wow": 1}, {"sad": 10**15}]
    state.raise_reactions({})


def seat(session, gateway="g1", incarnation="i1", user="ann", stream="s"):
    return Seat(user, session, gateway, incarnation, stream)


def test_the_seats_of_a_user_are_those_on_living_gateways(state, state_server):
    state.lease_gateway("g1", "i1", {})
    state.lease_gateway("g2", "i2", {})
    here, there = seat("g1-1"), seat("g2-7", "g2", "i2", stream="t")
    before, dead = seat("g2-3", "g2", "i1"), seat("g3-1", "g3", "i3")
    state.seat([here, there, before, dead, seat("g1-2", user="Bob Ö")], [])
    assert sorted(state.seats("ann")) == sorted([here, there])
    assert state_server.client().hlen("conn:user:ann") == 2, "the others are dropped"
    assert state.seats("Bob Ö") == [seat("g1-2", user="Bob Ö")]
    state.seat([], [here, dead])
    assert state.seats("ann") == [there]
    state.seat([], [there])
    assert (state.seats("ann"), state_server.client().exists("conn:user:ann")) == ([], 0)


def test_a_user_with_very_many_seats(state):
    state.lease_gateway("g1", "i1", {})
    seats = [seat(f"g1-{number}") for number in range(2500)]
    state.seat(seats, [])
    assert sorted(state.seats("ann")) == sorted(seats)
    state.seat([], seats[1:])
    assert state.seats("ann") == seats[:1]


def test_seats_are_kept_for_26_hours(state, state_server):
    state.seat([seat("g1-1")], [])
    assert 25 * 3600 < state_server.client().ttl("conn:user:ann") <= 26 * 3600


def test_active_streams_are_those_marked_within_5_minutes(state):
    state.mark_active(["a", "b"], NOW)
    state.mark_active(["b"], NOW + 200)
    state.mark_active(["b"], NOW + 100)  # late, from another gateway: nothing goes back
    state.mark_active([], NOW)
    assert state.active(NOW + 299) == ["a", "b"]
    assert state.active(NOW + 301) == state.active(NOW + 499) == ["b"]
    assert state.active(NOW + 501) == []


def test_the_list_of_active_streams(state):
    state.mark_active(["quiet", "busy", "new"], NOW)
    state.lease_gateway("g1", "i1", {"busy": 3, "gone": 4})
    state.add_present([Present("busy", NOW, ["a", "b"])])
    state.describe_streams({"busy": ("A title", 1000), "quiet": ("", 2000), "gone": ("x", 1)})
    assert state.active_streams(NOW) == [
        ActiveStream("busy", 2, 3, 1000, "A title"),
        ActiveStream("new", 0, 0, None, ""),
        ActiveStream("quiet", 0, 0, 2000, ""),
    ]
    state.describe_streams({"busy": None})
    assert state.active_streams(NOW)[0] == ActiveStream("busy", 2, 3, None, "")
    state.mark_active([f"s{number}" for number in range(1200)], NOW)
    assert len(state.active_streams(NOW)) == 1203


def test_very_many_callers_share_some_connections(state_server):
    """Each caller at a time used to have a connection of its own."""
    state = open_state(state_server, state__timeout_s=20)
    state.set_last(0, 7, "e")
    with ThreadPoolExecutor(200) as pool:
        assert set(pool.map(state.last, [0] * 2000)) == {(7, "e")}
    client = state_server.client()
    (node,) = [client] if not isinstance(client, redis.RedisCluster) else [
        client.get_redis_connection(client.get_node_from_key("coordinator:0"))
    ]  # fmt: skip
    ours = [one for one in node.client_list() if one["cmd"] == "hmget"]
    assert 1 <= len(ours) <= 32


def calls(state):
    return [
        lambda: state.interests(["s"], NOW), lambda: state.end_lease("g", "i"),
        lambda: state.add_present([Present("s", NOW, ["a"])]), lambda: state.viewers(["s"], NOW),
        lambda: state.add_reactions({"s": {"fire": 1}}), lambda: state.reactions(["s"]),
        lambda: state.raise_reactions({"s": {"fire": 1}}), lambda: state.seats("ann"),
        lambda: state.seat([seat("1")], [seat("2")]), lambda: state.mark_active(["s"], NOW),
        lambda: state.active(NOW), lambda: state.describe_streams({"s": None}),
        lambda: state.active_streams(NOW),
        lambda: state.write_rings([write("s", int(time.time() * 1000))], NOW),
        lambda: state.ring("s", 0), lambda: state.interests(["s"], NOW)[0],
        lambda: state.add_interest(["s"], 0, NOW), lambda: state.set_last(0, 1, "e"),
        lambda: state.last(0), lambda: state.lease_gateway("g", "i", {"s": 1}),
        lambda: state.connections(["s"]), state.ping,
    ]  # fmt: skip


@pytest.mark.parametrize("fault", ["killed", "paused"])
def test_a_state_that_is_away_says_so_in_bounded_time(mortal_state_server, fault):
    server = mortal_state_server
    state = open_state(server)
    for call in calls(state):
        call()
    server.kill() if fault == "killed" else server.pause()
    try:
        with ThreadPoolExecutor() as pool:  # each waits for its deadline: together, not in turn
            took = list(pool.map(_refused, calls(state)))
        assert max(took) < TIMEOUT_S + 1.0
    finally:
        server.start() if fault == "killed" else server.resume()
    wait_until(lambda: _answers(state), 5, "the state answers again")
    for call in calls(state):
        call()


def _refused(call):
    """The seconds until a call said that the state is away."""
    began = time.monotonic()
    with pytest.raises(StateLost, match=r"the state server does not answer: \w+"):
        call()
    return time.monotonic() - began


def _answers(state):
    try:
        state.ping()
    except StateLost:
        return False
    return True


def test_a_full_state_says_so(mortal_state_server):
    state = open_state(mortal_state_server)
    operator = mortal_state_server.client()
    operator.config_set("maxmemory", 1000)
    with pytest.raises(StateLost, match=r"the state server refused: .*memory"):
        state.write_rings([write("s", 1)], NOW)
    operator.config_set("maxmemory", "64mb")
    assert state.write_rings([write("s", 1)], NOW) == [[]]
