"""Who owns which slot, as the cluster says it; and what the errors of its client mean."""

from __future__ import annotations

import pytest
import redis
from redis.exceptions import ClusterDownError

from uproar import cluster_check
from uproar.bus import open_bus, shard_of
from uproar.bus.cluster import ClusterBus
from uproar.bus.valkey import ValkeyBus
from uproar.config import Config, ConfigError, load
from uproar.state import open_state
from uproar.state.cluster import ClusterState
from uproar.state.valkey import ValkeyState
from uproar.valkey_client import sentence
from uproar.valkey_cluster import Cluster, address_of, parse_slots, slot_of

# As `CLUSTER SLOTS` of Valkey 9.1 and Redis 7.0 answers: id and metadata behind host and port.
SLOTS = [
    [0, 5460, [b"10.0.0.1", 7000, b"a", []], [b"10.0.0.4", 7003, b"d", []]],
    [5461, 5461, [b"10.0.0.2", 7001, b"b", [b"hostname", b"b.example"]]],
    [5463, 16383, [b"", 7002, b"c", []], [b"?", 7005, b"f", []], [None, 7006, b"g", []]],
]


def settings(**more):
    flags = {"state.engine": "cluster", "state.nodes": ["127.0.0.1:7000"], **more}
    return load(environ={}, flags=flags)


def test_the_answer_of_cluster_slots_is_read():
    topology = parse_slots(SLOTS, ("asked", 1))
    assert topology.owner(0) == topology.owner(5460) == ("10.0.0.1", 7000)
    assert topology.owner(5461) == ("10.0.0.2", 7001)
    assert topology.owner(16383) == ("asked", 7002), "it does not know its own address"
    assert topology.masters == [("10.0.0.1", 7000), ("10.0.0.2", 7001), ("asked", 7002)]
    assert ("asked", 7005) in topology.nodes and ("asked", 7006) in topology.nodes
    assert topology.alone == (("10.0.0.2", 7001),)
    with pytest.raises(ClusterDownError, match="no master owns slot 5462"):
        topology.owner(5462)


def test_keys_and_channels_lie_where_the_servers_put_them():
    assert slot_of("foo") == slot_of(b"foo") == 12182  # CLUSTER KEYSLOT foo
    assert slot_of("stream:{a}:x") == slot_of("a"), "braces are a hash tag to servers"


@pytest.mark.parametrize(
    ("node", "address"),
    [("host:7000", ("host", 7000)), ("[::1]:7000", ("::1", 7000)), ("10.0.0.1:1", ("10.0.0.1", 1))],
)
def test_addresses_of_nodes(node, address):
    assert address_of(node) == address


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (redis.ConnectionError("refused"), "the bus does not answer: refused"),
        (redis.TimeoutError("late"), "the bus does not answer: late"),
        (redis.ResponseError("OOM"), "the bus refused: OOM"),
        (redis.AuthenticationError("WRONGPASS"), "the bus refused: WRONGPASS; look at its user"),
    ],
)
def test_errors_become_sentences(error, said):
    assert sentence(error, "the bus").startswith(said)


def test_engines_are_chosen_by_configuration_and_connect_to_nothing():
    assert type(open_bus(Config())) is ValkeyBus
    assert type(open_state(Config())) is ValkeyState
    assert type(open_bus(settings())) is ClusterBus
    assert type(open_state(settings())) is ClusterState


def test_a_gateway_keeps_its_shard_and_gateways_spread():
    shards = [shard_of(f"host{number}-g1", 100) for number in range(100)]
    assert shards == [shard_of(f"host{number}-g1", 100) for number in range(100)]
    assert len(set(shards)) > 50 and all(0 <= shard < 100 for shard in shards)
    assert {shard_of(f"g{number}", 1) for number in range(9)} == {0}
    assert (Config().shards, settings().shards) == (1, 100)
    assert settings(**{"bus.shards": 7}).shards == 7


def test_shards_lie_evenly_on_even_masters():
    even = [[n * 5461, n * 5461 + 5460 + n // 2, [b"h", n, b""]] for n in range(3)]
    shares = cluster_check.spread(parse_slots(even, ("h", 0)), 100)
    assert sorted(shares) == ["h:0", "h:1", "h:2"]
    assert all(0.9 < share < 1.1 for share in shares.values())


def test_a_cluster_that_is_nowhere_answers_every_command_within_its_deadline():
    cluster = Cluster(settings(**{"state.nodes": ["127.0.0.1:1"], "state.timeout_s": 0.3}).state)
    answers = cluster.run([("GET", "a"), ("GET", "b")], [("EVAL", "return 1", 1, "c")], [])
    assert len(answers) == 3
    assert all(isinstance(answer, redis.ConnectionError) for answer in answers)
    assert "127.0.0.1:1" in str(answers[0])
    assert cluster.run([], []) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"state.engine": "redis"}, 'state.engine: "redis" is none; take valkey or cluster'),
        ({"state.nodes": []}, "state.nodes: name some of the cluster's nodes"),
        ({"state.nodes": ["a:1", "b"]}, 'state.nodes[1]: "b" is no HOST:PORT'),
        ({"state.nodes": ["a:0"]}, 'state.nodes[0]: "a:0" is no HOST:PORT'),
        ({"state.nodes": [":7000"]}, 'state.nodes[0]: ":7000" is no HOST:PORT'),
        ({"state.user": "u"}, "state.user: goes together with state.password_file"),
        ({"state.key_file": "k"}, "state.key_file: goes together with state.cert_file"),
        (
            {"state.key_file": "k", "state.cert_file": "c"},
            "state.ca_file: goes together with state.cert_file",
        ),
    ],
)
def test_settings_that_fit_nothing_are_refused(flags, said):
    with pytest.raises(ConfigError) as found:
        settings(**flags)
    assert str(found.value).startswith(said)
