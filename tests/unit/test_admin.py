"""The admin port in a process of its own, over status sockets that the test serves."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from uproar import exposition, leftovers, status
from uproar.config import load
from uproar.datadir import DataDir
from uproar.exposition import Origin
from uproar.serve import write_effective

NAMES = ("g1", "g2", "ingest", "coordinator", "archive")


def metrics_of(name):
    registry = CollectorRegistry()
    Counter("uproar_things", "Things\nseen.", ["kind"], registry=registry).labels('a"}{\\').inc(3)
    Gauge("uproar_level", "A level.", registry=registry).set(len(name))
    Histogram("uproar_wait_seconds", "A wait.", registry=registry, buckets=[1]).observe(0.5)
    return generate_latest(registry).decode()


@pytest.fixture
def machine():
    """A configuration with a made data directory, and a dict of what each process says."""
    with tempfile.TemporaryDirectory(prefix="up") as path:
        config = load(environ={}, flags={"data": path})
        data = DataDir(config)
        says = {name: {"ready": True, "reason": "", "metrics": metrics_of(name)} for name in NAMES}
        closers = {
            name: status.serve(
                config.socket(f"status-{name}"), lambda name=name: {"name": name, **says[name]}
            )
            for name in NAMES
        }
        yield config, says, closers
        for closer in closers.values():
            closer.close()
        data.close()


@contextmanager
def admin(config, *options):
    listener = socket.create_server(("127.0.0.1", 0))
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "uproar.admin", "--config", str(write_effective(config))]
    command += ["--listen-fd", str(listener.fileno()), "--ready-fd", str(writer), *options]
    with (
        listener,
        subprocess.Popen(
            command, pass_fds=[listener.fileno(), writer], stderr=subprocess.PIPE
        ) as process,
    ):
        os.close(writer)
        try:
            with os.fdopen(reader, "rb") as pipe:
                assert pipe.read() == b"ready\n"
            yield process, listener.getsockname()[1]
        finally:
            process.kill()


def ask(port, path, method="GET"):
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        link.request(method, path)
        answer = link.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        link.close()


def test_ready_is_what_every_gateway_says_of_itself(machine):
    config, says, closers = machine
    with admin(config) as (process, port):
        assert ask(port, "/healthz")[0] == 200
        code, _, body = ask(port, "/readyz")
        assert (code, json.loads(body)) == (200, {"ready": True, "not_ready": {}})

        says["g2"] |= {"ready": False, "reason": "the probe through the bus is late"}
        closers["archive"].close()
        code, _, body = ask(port, "/readyz?verbose")
        assert code == 503
        assert json.loads(body) == {
            "ready": False,
            "not_ready": {
                "g2": "the probe through the bus is late",
                "archive": "gave no status within 2 s",
            },
        }
        assert ask(port, "/healthz")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_metrics_of_all_processes_are_one_valid_text(machine):
    config, _, closers = machine
    leftovers.write(
        config.run_dir / "pids.json", [leftovers.entry("g1", "gateway", os.getpid(), [], 3)]
    )
    closers["coordinator"].close()
    with admin(config) as (_, port):
        code, content_type, body = ask(port, "/metrics")
    assert (code, content_type) == (200, exposition.CONTENT_TYPE)
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    names = [line.split()[2] for line in body.decode().splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    things = families["uproar_things"].samples
    assert {(s.labels["process"], s.labels["role"]) for s in things} == {
        ("g1", "gateway"), ("g2", "gateway"), ("ingest", "ingest"), ("archive", "archive"),
    }  # fmt: skip
    assert {sample.labels["kind"] for sample in things} == {'a"}{\\'}
    answers = {s.labels["process"]: s.value for s in families["uproar_process_answers"].samples}
    assert answers == {**dict.fromkeys(NAMES, 1.0), "coordinator": 0.0, "moderation": 0.0}
    [restarts] = families["uproar_process_restarts"].samples
    assert restarts.labels == {"process": "g1", "role": "gateway"}
    assert restarts.value == 3.0
    assert families["uproar_wait_seconds"].type == "histogram"
    # Of the two Valkeys that this test does not run.
    valkeys = {s.labels["server"]: s.value for s in families["uproar_valkey_up"].samples}
    assert valkeys == {"log": 0.0, "state": 0.0}
    assert "uproar_valkey_memory_bytes" not in families


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/", 404),
        ("GET", "/metrics/x", 404),
        ("POST", "/metrics", 501),
        ("HEAD", "/healthz", 200),
    ],
)
def test_everything_else_is_a_problem_object(machine, method, path, code):
    with admin(machine[0]) as (_, port):
        status_code, content_type, body = ask(port, path, method)
        assert status_code == code
        if code >= 400:
            assert content_type == "application/problem+json"
            assert json.loads(body)["status"] == code
        else:
            assert body == b""


def test_clients_that_hang_leave_room_for_others(machine):
    with admin(machine[0]) as (_, port):
        silent = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(15)]
        try:
            assert ask(port, "/healthz")[0] == 200
            silent.append(socket.create_connection(("127.0.0.1", port), timeout=20))
            with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
                # The 17th at a time is closed at once instead of waiting for a thread.
                ask(port, "/healthz")
            for link in silent:
                assert link.recv(1) == b""  # and the silent ones are cut off
            assert ask(port, "/healthz")[0] == 200
        finally:
            for link in silent:
                link.close()


def test_merge_keeps_families_together_and_drops_what_is_no_metric():
    first = "# HELP a_total Help.\n# TYPE a_total counter\na_total 1\nloose 5\nno metric!\n\n"
    second = '# HELP a_total Other.\n# TYPE a_total counter\na_total{x="1"} 2\nloose{} 6\n<html>\n'
    assert exposition.merge([(Origin("p", "r"), first), (Origin('q"', "r"), second)]) == (
        "# HELP a_total Help.\n"
        "# TYPE a_total counter\n"
        'a_total{process="p",role="r"} 1\n'
        'a_total{process="q\\"",role="r",x="1"} 2\n'
        'loose{process="p",role="r"} 5\n'
        'loose{process="q\\"",role="r"} 6\n'
    )
