"""The stack's servers: started, found again by others, ended by their own pid and no other."""

import subprocess
import sys
import time

import pytest

from deploy.stack.server import Group, Server, StackError, free_ports, is_open

SERVE = """
import signal, socket, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in sys.argv else signal.SIG_DFL)
if "dies" in sys.argv:
    sys.exit("no memory for it")
time.sleep(0.1)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    if "mute" in sys.argv:
        listener.close()
    time.sleep(0.05)
"""


class Small(Server):
    ready_s = 5.0
    stop_s = 0.3

    def __init__(self, directory, port, *words):
        super().__init__("small", directory, [port])
        self.words = words

    def command(self):
        return [sys.executable, "-c", SERVE, str(self.ports[0]), *self.words]


@pytest.fixture
def make(tmp_path):
    made = []

    def one(*words, directory=None, port=0):
        server = Small(directory or tmp_path / "s", port or free_ports(1)[0], *words)
        made.append(server)
        return server

    yield one
    for server in made:
        server.kill9()


def test_it_serves_when_it_has_started_and_is_gone_when_it_was_stopped(make):
    server = make()
    server.start()
    pid = server.pid
    assert pid and is_open(server.ports[0])
    server.start()
    assert server.pid == pid, "one that runs stays"
    server.stop()
    assert server.pid is None and not is_open(server.ports[0])
    server.stop()


def test_another_process_finds_it_by_its_directory_and_may_end_it(make):
    server = make()
    server.start()
    other = make(directory=server.directory, port=server.ports[0])
    assert other.pid == server.pid
    other.kill9()
    assert server.pid is None
    server.start()
    assert server.pid


def test_a_number_that_went_to_somebody_else_is_left_alone(make):
    server = make()
    server.directory.mkdir()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (server.directory / "pid").write_text(f"{stranger.pid} 1\n")
        assert server.pid is None
        server.stop()
        (server.directory / "pid").write_text(f"{stranger.pid} 1\n")
        server.kill9()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait(10)


def test_one_that_does_not_listen_to_term_is_killed(make):
    server = make("deaf")
    server.start()
    began = time.monotonic()
    server.stop()
    assert server.pid is None and 0.25 < time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("word", "why"),
    [("dies", r"(?s)small died while it started:.*no memory"), ("mute", "did not serve within")],
)
def test_one_that_does_not_come_up_says_why(make, word, why):
    server = make(word)
    server.ready_s = 1.0
    with pytest.raises(StackError, match=why):
        server.start()


def test_a_port_that_somebody_has_is_named(make, tmp_path):
    first = make()
    first.start()
    second = make(directory=tmp_path / "t", port=first.ports[0])
    with pytest.raises(StackError, match=f"port {first.ports[0]} is taken .* choose another"):
        second.start()


def test_a_group_starts_and_stops_all_of_its_own(make, tmp_path):
    servers = [make(directory=tmp_path / name) for name in "ab"]
    group = Group(servers)
    group.start()
    assert all(server.pid for server in servers)
    assert group.address == f"127.0.0.1:{servers[0].ports[0]}"
    group.stop()
    assert not any(server.pid for server in servers)
