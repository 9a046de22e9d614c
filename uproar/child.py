"""One supervised process: how it is started, when it is ready, how it ends.

A child runs in a session of its own, so that Ctrl-C in a terminal reaches only the supervisor,
which then stops everything in order. It dies with its supervisor.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from uproar import logs
from uproar.listeners import Listener
from uproar.restarts import Restarts

LISTEN_FD: Final = "{listen-fd}"  # in argv: the number of the inherited listening socket
READY_FD: Final = "{ready-fd}"  # in argv: where the child writes `ready\n` once it serves
LOG_BYTES: Final = 16 << 20  # a log above this is moved away when its process starts
PR_SET_PDEATHSIG: Final = 1

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Spec:
    """What the supervisor has to know of a process.

    Steps are started in rising order of `start`, stopped in rising order of `stop`. A process is
    ready when it says so on READY_FD, or, having none in its argv, when `ready` returns True, or
    else at once. `gate` returns why the process must not be started now, None when it may.
    """

    name: str
    role: str
    argv: tuple[str, ...]
    log: Path
    start: int
    stop: int
    stop_s: float
    env: Mapping[str, str]
    listener: Listener | None = None
    ready: Callable[[], bool] | None = None
    gate: Callable[[], str | None] | None = None


class Phase(enum.Enum):
    """Where a child is in its life."""

    DOWN = "down"  # to be started at `due`
    STARTING = "starting"
    READY = "ready"
    STOPPED = "stopped"  # for good


@dataclass
class Child:
    """A spec and the process that runs it now. Times are `time.monotonic` seconds."""

    spec: Spec
    restarts: Restarts
    phase: Phase = Phase.STOPPED
    due: float = 0.0
    ready_fd: int = -1  # our end of the pipe while STARTING
    waiting: str = ""  # why the gate is closed, as last logged
    replacing: bool = False  # ended by us to be started anew: no death
    popen: subprocess.Popen[bytes] | None = None
    argv: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int | None:
        """The pid while it runs."""
        return self.popen.pid if self.popen else None

    def spawn(self) -> None:
        """Start it; raises OSError. Its output goes to the end of its log."""
        argv = list(self.spec.argv)
        pass_fds: list[int] = []
        with contextlib.ExitStack() as stack:
            if self.spec.listener is not None:
                number = self.spec.listener.fileno()
                pass_fds.append(number)
                argv = [str(number) if item == LISTEN_FD else item for item in argv]
            reader = -1
            if READY_FD in argv:
                reader, writer = os.pipe()
                stack.callback(os.close, writer)
                abandon = stack.enter_context(contextlib.ExitStack())
                abandon.callback(os.close, reader)
                os.set_blocking(reader, False)
                pass_fds.append(writer)
                argv = [str(writer) if item == READY_FD else item for item in argv]
            logs.rotate(self.spec.log, LOG_BYTES)
            output = os.open(
                self.spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            stack.callback(os.close, output)
            self.argv = argv
            self.popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(self.spec.env),
                pass_fds=pass_fds,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
            )
            if reader >= 0:
                abandon.pop_all()
                self.ready_fd = reader
        self.phase = Phase.STARTING
        self.restarts.started(time.monotonic())

    def said_ready(self) -> bool | None:
        """Read the pipe: True for `ready`, None when nothing more will come, False for not yet."""
        try:
            data = os.read(self.ready_fd, 64)
        except BlockingIOError:
            return False
        return True if data.startswith(b"ready") else None

    def close_pipe(self) -> None:
        """Close our end of the ready pipe."""
        if self.ready_fd >= 0:
            os.close(self.ready_fd)
            self.ready_fd = -1

    def send(self, signum: signal.Signals) -> None:
        """Signal the process while it runs."""
        if self.popen is not None:
            # `Popen.send_signal` would reap. Only `reap` may, so the number is still ours.
            os.kill(self.popen.pid, signum)

    def reap(self) -> str | None:
        """Return why the process ended, None while it runs."""
        if self.popen is None:
            return None
        pid = self.popen.pid
        # The dead leader still holds its number here, so the group can only be its own: what it
        # forked (a Valkey rewriting its file) goes too, before a successor starts.
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        code = self.popen.wait()
        self.popen = None
        self.close_pipe()
        if code >= 0:
            return f"exit code {code}"
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"


def _die_with(parent: int) -> Callable[[], None] | None:
    """Return what ties a child to its supervisor, run between fork and exec."""
    if _libc is None:
        return None
    prctl = _libc.prctl

    def tie() -> None:
        # The supervisor may have died before the call: then nobody would send the signal.
        if prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL)) != 0 or os.getppid() != parent:
            os._exit(127)

    return tie
