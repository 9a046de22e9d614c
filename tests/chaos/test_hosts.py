"""Two hosts with two gateways each behind HAProxy and behind nginx, with the files of `deploy/lb`.

The hosts are two loopback addresses: on one `uproar serve`, on the other `uproar gateway`. Bus and
state are a Valkey cluster, ingest is reached over TCP, and the second host reads the first one's
SQLite file by a link, which stands for the Cassandra that both would read.

load: one service sends 80 comments/s and 16 viewers watch, all through the balancer. fault:
SIGKILL of one gateway, then of everything on the second host. invariant: as in test_killed;
everybody is on the first host within seconds, and each reconnect was `recovered`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.test_killed import check
from tests.conformance import kafka
from tests.sender import Sender
from tests.system import ROOT, System, wait_until
from tests.valkey_cluster import ValkeyCluster, free_ports, running
from uproar.auth import load_key, make_token
from uproar.swarm import Member, Swarm

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.stack,
    pytest.mark.skipif(
        not os.environ.get("UPROAR_TEST_STACK"), reason="starts real balancers: make test-stack"
    ),
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="needs 127.0.0.2 and 127.0.0.3, as Linux has"
    ),
]

FIRST, SECOND, BALANCER = "127.0.0.2", "127.0.0.3", "127.0.0.1"
RATE = 80  # comments a second: what BACK_S brings can be resumed, 1,000 comments at most
VIEWERS = 16
GATEWAYS = 4
PER_ADDRESS = 25  # sessions of one address and gateway
BACK_S = 10.0  # from a fault to everybody watching again
SETTLE_S = 1.5
RECOVER_S = 30.0


class Hosts:
    """The two hosts and what they share."""

    def __init__(self, cluster: ValkeyCluster) -> None:
        self.port, self.admin_port, ingest = free_ports(3)
        shared = {
            "state__engine": "cluster", "state__nodes": json.dumps(cluster.addresses[:2]),
            "ingest__address": f"tcp:{FIRST}:{ingest}",
            "server__port": self.port, "server__admin_port": self.admin_port, "server__gateways": 2,
            "server__trusted_proxies": json.dumps([BALANCER]),
            "limits__connections_per_address": PER_ADDRESS,
        }  # fmt: skip
        self.first = System(
            **shared, server__host=FIRST, server__admin_host=FIRST, gateway__name="alpha"
        )
        self.first.command = ("serve",)
        key = self.first.data / "signing.key"
        self.second = System(
            **shared, server__host=SECOND, server__admin_host=SECOND, auth__key_file=str(key)
        )
        self.second.command = ("gateway", "--processes", "2", "--name", "beta")

    def start(self) -> None:
        """Start both, the one that the other needs first."""
        self.first.start()
        self.second.data.mkdir()
        (self.second.data / "store.db").symlink_to(self.first.data / "store.db")
        self.second.start()

    def stop(self) -> None:
        """Stop both and delete their data."""
        with ExitStack() as stack:
            for host in (self.first, self.second):
                stack.callback(host.remove)
                if hasattr(host, "process"):
                    stack.callback(host.stop)

    def green(self) -> bool:
        """Whether both are ready."""
        return self.ready(self.first) and self.ready(self.second)

    def red(self) -> bool:
        """Whether neither is."""
        return not self.ready(self.first) and not self.ready(self.second)

    def ready(self, host: System) -> bool:
        """Whether its admin port is green."""
        url = f"http://{host.settings['server__host']}:{self.admin_port}/readyz"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class Balancer:
    """HAProxy or nginx with its file of deploy/lb, where only addresses are changed."""

    def __init__(self, kind: str, hosts: Hosts, directory: Path) -> None:
        (self.port,) = free_ports(1)
        self.ws = f"ws://{BALANCER}:{self.port}"
        self._log = directory / "balancer.log"
        binary = shutil.which(kind, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if binary is None:
            pytest.skip(f"{kind} is not installed: apt-get install {kind}")
        arguments, environ = (self._haproxy if kind == "haproxy" else self._nginx)(hosts, directory)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [binary, *arguments], env={**os.environ, **environ}, stdout=log, stderr=log
            )
        try:
            wait_until(self._answers, 10, f"{kind} passes requests on")
        except AssertionError:
            self.stop()
            raise AssertionError(self._log.read_text()) from None

    def _haproxy(self, hosts: Hosts, directory: Path) -> tuple[list[str], dict[str, str]]:
        return ["-db", "-f", str(ROOT / "deploy/lb/haproxy.cfg")], {
            "CHAT_BIND": f"{BALANCER}:{self.port}", "CHAT_HOST_A": FIRST, "CHAT_HOST_B": SECOND,
            "CHAT_PORT": str(hosts.port), "CHAT_ADMIN_PORT": str(hosts.admin_port),
            "CHAT_CHECK": "300ms",
        }  # fmt: skip

    def _nginx(self, hosts: Hosts, directory: Path) -> tuple[list[str], dict[str, str]]:
        text = (ROOT / "deploy/lb/nginx.conf").read_text()
        own = "".join(
            f"{part}_temp_path {directory}/{part};\n"
            for part in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        for old, new, times in (
            ("10.0.0.11:8080", f"{FIRST}:{hosts.port}", 2),
            ("10.0.0.12:8080", f"{SECOND}:{hosts.port}", 2),
            ("        listen 80;", f"        listen {BALANCER}:{self.port};", 1),
            ("pid /run/nginx.pid;", f"pid {directory}/pid; daemon off;", 1),
            ("http {\n", f"http {{\n{own}", 1),
        ):
            assert text.count(old) == times, old
            text = text.replace(old, new)
        file = directory / "nginx.conf"
        file.write_text(text)
        return ["-p", str(directory), "-e", "stderr", "-c", str(file)], {}

    def _answers(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        return self.get("/openapi.json") == 200

    def get(self, path: str) -> int:
        """Return the status of a GET, 0 where there is no answer."""
        try:
            url = f"http://{BALANCER}:{self.port}{path}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refusal:
            refusal.close()
            return refusal.code
        except OSError:
            return 0

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with running(replicas=0) as found:
        yield found


@pytest.fixture(scope="module")
def hosts(cluster: ValkeyCluster) -> Iterator[Hosts]:
    found = Hosts(cluster)
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module", params=["haproxy", "nginx"])
def balancer(request: pytest.FixtureRequest, hosts: Hosts) -> Iterator[Balancer]:
    with tempfile.TemporaryDirectory(prefix="upl") as directory:
        found = Balancer(request.param, hosts, Path(directory))
        yield found
        found.stop()


def gateway_of(member: Member) -> str:
    """Return the gateway that a member is on: its session's name begins with it."""
    found = re.fullmatch(r"(.+)-[0-9a-f]{6}-[0-9a-f]+", member.session or "")
    return found[1] if found else ""


def connected(balancer: Balancer, source: str, *lines: str) -> tuple[socket.socket, int]:
    """Ask for a WebSocket from an address; return the connection and the status."""
    sock = socket.create_connection((BALANCER, balancer.port), 10, source_address=(source, 0))
    head = [
        "GET /stream/full?backlog=0 HTTP/1.1", "Host: a", "Upgrade: websocket",
        "Connection: Upgrade", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version: 13", *lines, "", "",
    ]  # fmt: skip
    sock.sendall("\r\n".join(head).encode())
    return sock, int(sock.recv(4096).split()[1])


def test_viewers_of_both_hosts_see_the_same_and_survive_either(
    hosts: Hosts, balancer: Balancer, request: pytest.FixtureRequest, capsys: Any
) -> None:
    stream = f"two-{request.node.callspec.params['balancer']}"
    url = f"{balancer.ws}/stream/{stream}"
    wait_until(hosts.green, 20, "both are green")
    table = []
    with Swarm(seed=11) as swarm:
        viewers = [
            swarm.add(
                url, codec="json" if number % 2 else "msgpack", backlog=0, backoff_s=0.05,
                backoff_max_s=0.5,
            )
            for number in range(VIEWERS)
        ]  # fmt: skip
        assert swarm.run(lambda: all(viewer.live for viewer in viewers), 20)
        sender = Sender(swarm, url, hosts.first.tokens["service"], RATE)
        assert swarm.run(lambda: sender.member.live, 10)

        def settled() -> bool:
            if sender.open:
                return False
            last = max(offset for _, offset in sender.acknowledged.values())
            return all(viewer.offsets and viewer.offsets[-1] >= last for viewer in viewers)

        def back() -> bool:
            sender.pump()
            return all(viewer.live for viewer in viewers)

        used = {gateway_of(viewer) for viewer in viewers}
        assert used <= {"alpha-g1", "alpha-g2", "beta-g1", "beta-g2"}
        assert {name.partition("-")[0] for name in used} == {"alpha", "beta"}, "both hosts serve"

        def strike(what: str, fault: Any) -> None:
            sender.play(swarm, SETTLE_S)
            for viewer in viewers:
                viewer.reset_silence()
            sessions = [viewer.session for viewer in viewers]
            fault()
            sender.play(swarm, 0.5)
            assert swarm.run(back, BACK_S), f"{what}: not everybody came back"
            moved = sum(
                old != viewer.session for old, viewer in zip(sessions, viewers, strict=True)
            )
            sender.play(swarm, 1.0)
            table.append((what, moved, max(viewer.silence_s for viewer in viewers)))
            assert moved, f"{what}: nobody was on it"
            assert swarm.run(settled, RECOVER_S), (what, sender.open)

        victim = next(name for name in sorted(used) if name.startswith("beta"))
        strike(victim, lambda: hosts.second.kill9(victim.removeprefix("beta-")))

        def host_dies() -> None:
            children = psutil.Process(hosts.second.process.pid).children(recursive=True)
            hosts.second.process.kill()
            hosts.second.process.communicate(timeout=5)
            assert not psutil.wait_procs(children, timeout=3)[1], "the host's gateways live on"

        try:
            strike("all of beta", host_dies)
            assert {gateway_of(viewer).partition("-")[0] for viewer in viewers} == {"alpha"}
        finally:
            hosts.second.start()
        told = [said for viewer in viewers for said in viewer.recovered[1:]]
        assert told and all(said is True for said in told), told
        check(hosts.first, stream, sender, viewers)
        assert not any(viewer.gaps for viewer in viewers)
        total = len(sender.acknowledged)
    with capsys.disabled():
        print(f"\n{stream}: {total} acknowledged, lost 0, {len(told)} reconnects recovered")
        for what, moved, silence in table:
            print(f"  {what:12} killed: {moved:2} moved, longest silence {silence:.2f} s")


def test_a_viewer_is_counted_not_the_balancer(hosts: Hosts, balancer: Balancer) -> None:
    wait_until(hosts.green, 20, "both are green")
    socks, statuses = [], []
    try:
        for number in range(GATEWAYS * PER_ADDRESS + 20):
            spoofed = f"X-Forwarded-For: 198.51.100.{number}"
            sock, status = connected(balancer, "127.0.1.1", spoofed)
            socks.append(sock)
            statuses.append(status)
        assert statuses.count(101) <= GATEWAYS * PER_ADDRESS
        assert statuses.count(503) >= 20, "one address may not take it all, whatever it says"
        for number in range(2, 22):
            sock, status = connected(balancer, f"127.0.1.{number}")
            socks.append(sock)
            assert status == 101, f"127.0.1.{number} pays for 127.0.1.1"
    finally:
        for sock in socks:
            sock.close()


def test_server_sent_events_come_at_once(hosts: Hosts, balancer: Balancer) -> None:
    with socket.create_connection((BALANCER, balancer.port), 5) as sock:
        sock.sendall(b"GET /stream/sse/events HTTP/1.1\r\nHost: a\r\n\r\n")
        data = b""
        while b"WELCOME" not in data:
            data += sock.recv(65_536)
        began = time.monotonic()
        body = {"text": "through the balancer", "nonce": f"n{began}"}
        status, _ = hosts.first.call("POST", "/stream/sse/comments", body, role="service")
        assert status == 201
        while b"through the balancer" not in data:
            data += sock.recv(65_536)
        assert time.monotonic() - began < 2.0


@pytest.mark.long
def test_all_hosts_are_kept_when_none_is_green(
    hosts: Hosts, balancer: Balancer, cluster: ValkeyCluster
) -> None:
    cluster.pause()
    try:
        wait_until(hosts.red, 20, "all are red")
        until = time.monotonic() + 15  # three checks of 3 s at most, and some
        while time.monotonic() < until:
            assert balancer.get("/openapi.json") == 200
            time.sleep(0.3)
    finally:
        cluster.resume()
    wait_until(hosts.green, 30, "both are green")


@pytest.mark.long
def test_a_second_host_of_one_name_is_refused(hosts: Hosts) -> None:
    twin = System(**{**hosts.second.settings, "server__port": 0, "server__admin_port": 0})
    twin.command = hosts.second.command
    twin.data.mkdir()
    (twin.data / "store.db").symlink_to(hosts.first.data / "store.db")
    try:
        with pytest.raises(AssertionError, match=r'gateway\.name: "beta" is another host\'s'):
            twin.start()
    finally:
        twin.remove()


def test_workers_and_gateways_on_hosts_of_their_own(
    cluster: ValkeyCluster,
) -> None:
    brokers = next(made := kafka.started(1))
    port, ingest = free_ports(2)
    shared = {
        "state__engine": "cluster", "state__nodes": json.dumps(cluster.addresses[:2]),
        "log__engine": "kafka", "log__brokers": brokers.address, "log__replicas": 1,
        "log__min_insync": 1, "log__topic": "hosts", "bus__shards": 7,
        "ingest__address": f"tcp:127.0.0.1:{ingest}", "supervisor__ready_s": 60,
    }  # fmt: skip
    workers, gateway = System(**shared), System(**shared, server__port=port, gateway__name="solo")
    workers.command = ("worker", "ingest", "coordinator", "archive", "moderation")
    gateway.command = ("gateway", "--processes", "1")
    try:
        for host in (workers, gateway):
            host.data.mkdir()
        (workers.data / "store.db").touch()
        (gateway.data / "store.db").symlink_to(workers.data / "store.db")
        key = load_key(gateway.data / "signing.key")
        token = make_token(key, sub="s", name="S", role="service", ttl_s=600)
        workers.start()
        assert workers.info["http"] is None
        assert set(workers.info["pids"]) == {*workers.command[1:], "admin"}
        gateway.start()
        with Swarm(seed=1) as swarm:
            viewer = swarm.add(gateway.stream("apart"), backlog=0)
            sender = Sender(swarm, gateway.stream("apart"), token, 50)
            assert swarm.run(lambda: viewer.live and sender.member.live, 20)
            for name in ("ingest", "coordinator"):
                sender.play(swarm, 1.0)
                old = workers.kill9(name)
                wait_until(lambda n=name, o=old: workers.pid_of(n) not in (0, o), 10, "it is back")

            def settled() -> bool:
                known = sender.acknowledged.values()
                return not sender.open and {offset for _, offset in known} <= set(viewer.offsets)

            sender.play(swarm, 1.0)
            if not swarm.run(settled, 15):
                sender.resend_late()  # what was answered `unavailable` meanwhile
                assert swarm.run(settled, 60), (sender.open, sender.refused)
            ids = {known[0] for known in sender.acknowledged.values()}
        wait_until(
            lambda: {comment["id"] for comment in gateway.history("apart")} == ids, 20, "history"
        )
    finally:
        for host in (gateway, workers):
            if hasattr(host, "process"):
                host.stop()
            host.remove()
        made.close()


def test_a_host_that_is_told_to_reloads_its_gateways_one_by_one(hosts: Hosts) -> None:
    names = ("g1", "g2")
    old = {name: hosts.second.pid_of(name) for name in names}
    assert all(old.values())
    hosts.second.process.send_signal(signal.SIGHUP)
    seen = set()

    def anew() -> bool:
        now = {name: hosts.second.pid_of(name) for name in names}
        seen.add(sum(pid != 0 for pid in now.values()))
        return all(now[name] not in (0, old[name]) for name in names)

    wait_until(anew, 20, "both gateways are new")
    assert 0 not in seen, "one of them was there all the time"
