"""The data directory: made, checked and locked before anything is started in it.

    {data}/lock         flock; holds the pid of the `uproar serve` that owns the directory
    {data}/signing.key  made by uproar.auth
    {data}/log, state   the two Valkeys' append-only files
    {data}/logs         one file per process
    {data}/run          sockets, pids.json, effective.toml (elsewhere where the path is too long)

The kernel drops the lock with its holder, so a `kill -9` leaves nothing to clean up.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from uproar.config import Config
from uproar.errors import ServeError

PARTS = ("log", "state", "logs")


class DataDir:
    """A locked data directory. `close` gives the lock up."""

    def __init__(self, config: Config) -> None:
        """Make and lock it; raises ServeError with the remedy."""
        self.path = config.data_dir
        self.logs = self.path / "logs"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(self.path / "lock")
        except OSError as error:
            raise _unusable(self.path, error) from error
        try:
            for part in PARTS:
                (self.path / part).mkdir(mode=0o700, exist_ok=True)
            _check_writable(self.path)
            make_run_dir(config.run_dir)
        except OSError as error:
            self.close()
            raise _unusable(self.path, error) from error
        except ServeError:
            self.close()
            raise

    def close(self) -> None:
        """Unlock. The lock file stays: removing it would let two holders each have their own."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def make_run_dir(path: Path) -> None:
    """Make the directory of sockets, or refuse one that others could put things into."""
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ServeError(
            f"{path}: the directory of sockets must be a directory of your own with mode 0700; "
            "remove it and start again"
        )


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "another"
        os.close(fd)
        raise ServeError(
            f"{path.parent}: in use by process {holder}; stop that one first, "
            "or take another directory with --data"
        ) from None
    except OSError:
        os.close(fd)
        raise
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _check_writable(path: Path) -> None:
    """Raise OSError where a file can't be made: an existing lock file proves nothing."""
    for directory in (path, *(path / part for part in PARTS)):
        probe = directory / f".probe-{os.getpid()}"
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT, 0o600))
        probe.unlink()


def _unusable(path: Path, error: OSError) -> ServeError:
    return ServeError(
        f"{path}: can't be used as data directory: {error.strerror or error}"
        f"{f' ({error.filename})' if error.filename else ''}; "
        "make it writable, or take another with --data"
    )
