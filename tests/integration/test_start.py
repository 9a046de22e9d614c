"""What `uproar serve` refuses to start with: exit code 2, one sentence on stderr, nothing left."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.system import ROOT, System


@pytest.fixture
def here() -> Iterator[Path]:
    """An empty directory with a short path: Unix sockets may lie below it."""
    path = Path(tempfile.mkdtemp(prefix="upr-"))
    yield path
    shutil.rmtree(path)


def refused(here: Path, *arguments: str, **env: str) -> str:
    """Run `serve` in `here` and return its sentence."""
    arguments = ("--data", str(here / "d"), "--port", "0", *arguments)
    done = subprocess.run(
        [sys.executable, "-m", "uproar", "serve", "--json", *arguments],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("uproar: ")
    assert done.stderr.count("\n") == 1, "one line"
    left = [
        process.info["pid"]
        for process in psutil.process_iter(["pid", "cmdline"])
        if str(here / "d") in " ".join(process.info["cmdline"] or [])
    ]
    assert not left, "a process was left behind"
    return done.stderr


BAD_FILES = {
    "servr": "[servr]\nport = 1\n",
    "limits.max_charz": "[limits]\nmax_charz = 5\n",
    "limits.per_minute.king": "[limits.per_minute]\nking = 5\n",
    "limits.max_chars": "[limits]\nmax_chars = 0\n",
    "limits.handshake_s": '[limits]\nhandshake_s = "soon"\n',
    "server.admin_port": "[server]\nadmin_port = 70000\n",
    "gateway.overflow": '[gateway]\noverflow = "panic"\n',
    "limits": "limits = 5\n",
    "uproar.toml": "[server\n",
}


@pytest.mark.parametrize("path", BAD_FILES)
def test_a_bad_setting_in_the_file(here: Path, path: str) -> None:
    (here / "uproar.toml").write_text(BAD_FILES[path])
    assert refused(here).startswith(f"uproar: {path}: ")


def test_a_file_given_by_name(here: Path) -> None:
    (here / "other.toml").write_text(BAD_FILES["limits.max_charz"])
    assert "limits.max_charz" in refused(here, "--config", "other.toml")
    assert "missing.toml" in refused(here, "--config", "missing.toml")


@pytest.mark.parametrize(
    ("name", "text", "path"),
    [
        ("UPROAR_LIMITS__MAX_CHARZ", "5", "limits.max_charz"),
        ("UPROAR_LIMITS__MAX_CHARS", "many", "limits.max_chars"),
        ("UPROAR_SERVER__ADMIN_PORT", "-1", "server.admin_port"),
        ("UPROAR_NONSENSE", "1", "nonsense"),
    ],
)
def test_a_bad_setting_in_the_environment(here: Path, name: str, text: str, path: str) -> None:
    assert path in refused(here, **{name: text})


def test_a_bad_flag(here: Path) -> None:
    assert "server.port" in refused(here, "--port", "70000")
    assert "server.gateways" in refused(here, "--gateways", "0")


def test_a_data_directory_that_can_not_be(here: Path) -> None:
    # Below a regular file: not even root can make it.
    (here / "file").write_text("")
    data = here / "file" / "d"
    sentence = refused(here, "--data", str(data), UPROAR_SERVER__ADMIN_PORT="0")
    assert str(data) in sentence
    assert "--data" in sentence


@pytest.mark.parametrize("setting", ["server.port", "server.admin_port"])
def test_a_taken_port(here: Path, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        if setting == "server.port":
            sentence = refused(here, "--port", str(port), UPROAR_SERVER__ADMIN_PORT="0")
        else:
            sentence = refused(here, UPROAR_SERVER__ADMIN_PORT=str(port))
        assert f"{port}" in sentence
        assert setting in sentence


def test_a_second_serve_on_the_same_data(here: Path, system: System) -> None:
    sentence = refused(here, "--data", str(system.data), UPROAR_SERVER__ADMIN_PORT="0")
    assert f"process {system.process.pid}" in sentence
    assert system.call("GET", "/stream/start")[0] == 200, "the first goes on"


def test_a_second_serve_on_the_same_port(here: Path, system: System) -> None:
    port = system.info["http"].rpartition(":")[2]
    assert "server.port" in refused(here, "--port", port, UPROAR_SERVER__ADMIN_PORT="0")
