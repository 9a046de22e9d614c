"""What every worker process does around its work: arguments, logging, stop, lock, readiness."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uproar import collector
from uproar.config import Config
from uproar.log import LogRefused
from uproar.logs import event

logger = logging.getLogger(__name__)


class RoleTaken(Exception):
    """Another process holds this role."""


class Process:
    """One worker process: `stop` is set on SIGTERM and SIGINT."""

    def __init__(self, role: str, config: Config, ready_fd: int | None) -> None:
        self.role = role
        self.config = config
        self.stop = threading.Event()
        self._ready_fd = ready_fd
        self._lock_file: Any = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop.set())

    def hold_role(self, deadline_s: float = 10.0) -> None:
        """Take the role's file lock, waiting for a predecessor to go; raises RoleTaken.

        The kernel frees the lock of a killed process, so a successor never waits for a lease.
        """
        path = self.config.run_dir / f"{self.role}.lock"
        self._lock_file = Path.open(path, "a")
        until = time.monotonic() + deadline_s
        while not self.stop.is_set():
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    raise RoleTaken(f"another process is {self.role}: {path} is locked") from None
                self.stop.wait(0.05)

    def ready(self) -> None:
        """Tell the supervisor that this process serves."""
        collector.settle()
        event(logger, "ready", role=self.role)
        if self._ready_fd is not None:
            os.write(self._ready_fd, b"ready\n")
            os.close(self._ready_fd)
            self._ready_fd = None


def run(role: str, config: Config, ready_fd: int | None, work: Callable[[Process], None]) -> int:
    """Run a worker's `work` and return the exit code."""
    process = Process(role, config, ready_fd)
    try:
        process.hold_role()
        work(process)
    except (RoleTaken, LogRefused) as error:
        print(error, file=sys.stderr)
        return 3
    event(logger, "stopped", role=role)
    return 0
