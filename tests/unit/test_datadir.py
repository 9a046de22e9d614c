"""The data directory: its parts, its lock, and the sentences of those that can't be used."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from uproar.config import load
from uproar.datadir import DataDir, make_run_dir
from uproar.errors import ServeError

NOBODY = 65534


def config_for(path):
    return load(environ={}, flags={"data": str(path)})


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_made_for_the_owner_alone(tmp_path):
    config = config_for(tmp_path / "a" / "data")
    data = DataDir(config)
    try:
        parts = [data.path, data.logs, data.path / "log", data.path / "state", config.run_dir]
        assert [mode(part) for part in parts] == [0o700] * 5
        assert (data.path / "lock").read_text() == f"{os.getpid()}\n"
        assert sorted(path.name for path in data.path.iterdir()) == [
            "lock",
            "log",
            "logs",
            "run",
            "state",
        ]
    finally:
        data.close()


def test_a_second_holder_is_refused_with_the_pid_of_the_first(tmp_path):
    script = (
        "import sys; from uproar.config import load; from uproar.datadir import DataDir\n"
        "data = DataDir(load(environ={}, flags={'data': sys.argv[1]}))\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(ServeError, match=rf"in use by process {holder.pid}; .*--data"):
            DataDir(config_for(tmp_path))
        holder.kill()
        holder.wait(10)
        DataDir(config_for(tmp_path)).close()  # the kernel dropped the lock with its holder


def test_close_unlocks(tmp_path):
    DataDir(config_for(tmp_path)).close()
    data = DataDir(config_for(tmp_path))
    data.close()
    data.close()


def test_a_longer_pid_of_an_earlier_holder_leaves_no_digits(tmp_path):
    (tmp_path / "lock").write_text("99999999999999\n")
    data = DataDir(config_for(tmp_path))
    data.close()
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_path_below_a_file_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ServeError, match=r"can't be used as data directory: Not a directory"):
        DataDir(config_for(tmp_path / "file" / "data"))


@pytest.mark.parametrize("part", [".", "logs"])
def test_a_directory_that_is_not_writable_is_a_sentence(part):
    # Not pytest's tmp_path: somebody else could not get into it.
    with tempfile.TemporaryDirectory(prefix="up") as parent:
        data = Path(parent) / "data"
        DataDir(config_for(data)).close()
        (data / part).chmod(0o500)
        root = os.geteuid() == 0
        if root:  # rights mean nothing to root: become somebody else for a moment
            for path in [Path(parent), data, *data.rglob("*")]:
                os.chown(path, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            with pytest.raises(ServeError, match=r"Permission denied.*make it writable"):
                DataDir(config_for(data))
        finally:
            if root:
                os.seteuid(0)
            (data / part).chmod(0o700)


def test_a_run_directory_that_others_can_write_to_is_refused(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(0o777)
    with pytest.raises(ServeError, match="mode 0700"):
        make_run_dir(run)
    with pytest.raises(ServeError, match="mode 0700"):
        DataDir(config_for(tmp_path))
    run.chmod(0o700)
    DataDir(config_for(tmp_path)).close()  # the refusal gave the lock up


def test_a_run_directory_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ServeError, match="directory of your own"):
        make_run_dir(tmp_path / "run")
