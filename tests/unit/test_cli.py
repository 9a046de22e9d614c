"""The command: what it prints, and that every error is a sentence with exit code 2."""

import os
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from uproar.auth import Verifier, load_key
from uproar.cli import main
from uproar.config import load
from uproar.datadir import DataDir
from uproar.serve import child_env


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory and no settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("UPROAR_"):
            monkeypatch.delenv(name)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, arguments)


def refused(*arguments):
    """The sentence of a command that must fail; nothing is on stdout."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def serve_refused(*arguments):
    """The same for `serve`, in a process of its own: it sets up logging and limits."""
    done = subprocess.run(
        [sys.executable, "-m", "uproar", "serve", *arguments],
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (done.returncode, done.stdout) == (2, b""), done.stderr
    assert b"Traceback" not in done.stderr
    return done.stderr.decode()


def test_config_prints_the_effective_tree(here, monkeypatch):
    (here / "uproar.toml").write_text("[server]\nport = 1234\n")
    monkeypatch.setenv("UPROAR_GATEWAY__TICK_MS", "20")
    tree = tomllib.loads(run("config", "--data", "elsewhere").stdout)
    assert tree["server"]["port"] == 1234
    assert tree["gateway"]["tick_ms"] == 20.0
    assert tree["data"] == "elsewhere"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[server]\nprot = 1\n", "uproar: server.prot: unknown setting"),
        ("[server]\nport = 70000\n", "uproar: server.port: expected `int` <= 65535"),
        ("[server\n", "uproar: uproar.toml: not TOML"),
    ],
)
@pytest.mark.parametrize("command", [["config"], ["serve"], ["token", "--sub=a", "--name=A"]])
def test_a_bad_setting_is_refused_with_its_path(here, command, text, sentence):
    (here / "uproar.toml").write_text(text)
    assert refused(*command).startswith(sentence)
    assert [path.name for path in here.iterdir()] == ["uproar.toml"]


def test_a_token_is_one_that_the_system_takes(here):
    result = run("token", "--sub", "u1", "--name", "Ann", "--role", "moderator", "--ttl", "2h")
    claims = Verifier(load_key(here / "data" / "signing.key")).check(result.stdout.strip())
    assert (claims.sub, claims.name, claims.role, claims.streams) == (
        "u1",
        "Ann",
        "moderator",
        None,
    )
    assert abs(claims.expires - time.time() - 7200) < 60
    result = run("token", "--sub", "u", "--name", "U", "--stream", "a", "--stream", "B")
    claims = Verifier(load_key(here / "data" / "signing.key")).check(result.stdout.strip())
    assert claims.streams == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sub", "x" * 65, "--name", "A"], "the claim `sub` must be 1 to 64 characters"),
        (["--sub", "a", "--name", "A", "--ttl", "soon"], "'soon' is no duration; write 90s"),
        (["--sub", "a", "--name", "A", "--ttl", "0"], "'0' is no duration"),
        (["--sub", "a", "--name", "A", "--role", "king"], "'king' is not one of"),
        (["--sub", "a", "--name", "A", "--data", "uproar.toml/x"], "Not a directory"),
    ],
)
def test_a_token_that_can_not_be_made_is_a_sentence(here, arguments, sentence):
    (here / "uproar.toml").write_text("")
    assert sentence in refused("token", *arguments)


def test_replay_wants_a_token_a_file_and_a_speed(here, monkeypatch):
    assert "UPROAR_TOKEN is not set" in refused("replay", "x.jsonl", "--stream", "demo")
    monkeypatch.setenv("UPROAR_TOKEN", "t")
    assert "x.jsonl: no such file" in refused("replay", "x.jsonl", "--stream", "demo")
    arguments = ("replay", "x.jsonl", "--stream", "demo", "--speed")
    for speed in ("-1", "nan", "inf"):
        assert "is no speed" in refused(*arguments, speed)


def test_serve_names_a_taken_port(here, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as owner:
        port = owner.getsockname()[1]
        sentence = serve_refused("--port", str(port))
        assert sentence.startswith(f"uproar: port {port} on 127.0.0.1 is taken by another program;")
        monkeypatch.setenv("UPROAR_SERVER__ADMIN_PORT", str(port))
        assert "set server.admin_port to another port" in serve_refused("--port", "0")


def test_a_second_serve_on_a_directory_is_refused_with_the_pid(here):
    data = DataDir(load())
    try:
        assert f"in use by process {os.getpid()}; stop that one first" in serve_refused()
    finally:
        data.close()


def test_serve_names_a_directory_that_is_none(here):
    (here / "file").write_text("")
    assert "can't be used as data directory" in serve_refused("--data", "file")


def test_serve_waits_for_disk_space_and_says_so(here, monkeypatch):
    monkeypatch.setenv("UPROAR_SUPERVISOR__DISK_FREE_MB", str(10**9))
    monkeypatch.setenv("UPROAR_SUPERVISOR__READY_S", "0.5")
    monkeypatch.setenv("UPROAR_SERVER__ADMIN_PORT", "0")
    sentence = serve_refused("--port", "0").splitlines()[-1]
    assert sentence.startswith("uproar: log waits for disk space: ")
    assert "1000000000 MB are needed (supervisor.disk_free_mb)" in sentence


def test_the_module_runs_and_help_needs_none_of_the_big_libraries():
    script = (
        "import sys; sys.argv = ['uproar', '--help']; import runpy, atexit\n"
        "atexit.register(lambda: print(sorted({'redis', 'gevent', 'msgspec', 'jwt', 'psutil'} "
        "& set(sys.modules))))\n"
        "runpy.run_module('uproar', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"Usage: uproar ")
    assert done.stdout.endswith(b"\n[]\n")


def test_children_get_no_settings_and_no_token_from_the_environment():
    environ = {
        "PATH": "/bin",
        "UPROAR_SERVER__PORT": "1",
        "UPROAR_TOKEN": "secret",
        "UPROAR_ENGINE": "reference",
    }
    assert child_env(environ) == {"PATH": "/bin", "UPROAR_ENGINE": "reference"}
