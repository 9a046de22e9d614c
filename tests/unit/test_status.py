"""The status socket: one document a connection, whoever reads or does not read it."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from uproar import status


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory(prefix="up") as directory:
        yield Path(directory) / "status-g1.sock"


def test_each_reader_gets_what_is_true_then(path):
    counts = iter(range(10))
    closer = status.serve(
        path, lambda: {"name": "g1", "ready": True, "reason": "", "metrics": f"n {next(counts)}\n"}
    )
    try:
        expected = {"name": "g1", "pid": os.getpid(), "ready": True, "reason": ""}
        assert status.read(path, 5.0) == {**expected, "metrics": "n 0\n"}
        assert status.read(path, 5.0) == {**expected, "metrics": "n 1\n"}
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        closer.close()
    assert status.read(path, 5.0) is None
    assert not path.exists()
    closer.close()


def test_a_collector_that_raises_is_told_as_not_ready(path, caplog):
    closer = status.serve(path, lambda: {"ready": 1 // 0})
    try:
        for _ in range(2):
            found = status.read(path, 5.0)
            assert (found["name"], found["ready"], found["metrics"]) == ("g1", False, "")
            assert "by zero" in found["reason"]
    finally:
        closer.close()
    assert {record.getMessage() for record in caplog.records} == {"status_failed"}


def test_a_reader_that_does_not_read_costs_the_next_one_a_second(path):
    closer = status.serve(path, lambda: {"ready": True, "metrics": "x" * (4 << 20)})
    try:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(path))
            began = time.monotonic()
            assert len(status.read(path, 10.0)["metrics"]) == 4 << 20
            assert time.monotonic() - began < 5.0
    finally:
        closer.close()


def test_what_a_killed_process_left_is_replaced(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert status.read(path, 1.0) is None
    closer = status.serve(path, lambda: {"ready": True})
    try:
        assert status.read(path, 5.0)["ready"] is True
    finally:
        closer.close()


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"a', b"\xff"])
def test_what_is_no_document_reads_as_none(path, answer):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        reader = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from pathlib import Path; from uproar import status\n"
                "print(status.read(Path(sys.argv[1]), 5.0))",
                str(path),
            ],
            stdout=subprocess.PIPE,
        )
        link, _ = server.accept()
        with link:
            link.sendall(answer)
        assert reader.communicate(timeout=20)[0] == b"None\n"


def test_a_process_that_says_nothing_is_given_up(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        began = time.monotonic()
        assert status.read(path, 0.2) is None
        assert 0.15 < time.monotonic() - began < 5.0


def test_it_works_in_a_process_that_gevent_has_patched(path):
    script = """
from gevent import monkey; monkey.patch_all()
import json, sys, gevent
from pathlib import Path
from uproar import status
path = Path(sys.argv[1])
closer = status.serve(path, lambda: {"ready": True, "metrics": "x" * 1000000})
found = [gevent.spawn(status.read, path, 5.0) for _ in range(5)]
gevent.joinall(found, timeout=20)
closer.close()
print(json.dumps([len(each.value["metrics"]) for each in found]))
print(path.exists())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(path)], capture_output=True, timeout=30
    )
    assert done.stderr == b""
    lengths, exists = done.stdout.splitlines()
    assert (json.loads(lengths), exists) == ([1_000_000] * 5, b"False")
