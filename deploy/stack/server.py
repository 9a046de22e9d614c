"""One server process on loopback: started, awaited, stopped and killed by its own pid only."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
POLL_S: Final = 0.05
TAIL_BYTES: Final = 3000  # of a log, shown when its server does not come up
PORTS: Final = range(20_000, 22_000)  # and their sum with 10,000, for a cluster's bus

_turns = itertools.count(os.getpid() * 16)


class StackError(Exception):
    """A server can't be fetched, started or stopped; the message says what to do."""


class Server:
    """A server with a directory: `pid`, `server.log`, and what the subclass puts there.

    Several processes may hold one of these for the same directory: the pid file tells them what
    runs. Its second word is the process's start time, so a number that was given away again to
    somebody else's process is never taken for ours.
    """

    ready_s: float = 60.0  # from the start to serving
    stop_s: float = 30.0  # from SIGTERM to SIGKILL

    def __init__(self, name: str, directory: Path, ports: Sequence[int]) -> None:
        self.name = name
        self.directory = directory.resolve()
        self.ports = list(ports)
        self._child: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Return the command line; its files lie in the directory."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Write the configuration."""

    def serves(self) -> bool:
        """Whether it answers now."""
        return all(is_open(port) for port in self.ports)

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.directory / "server.log"

    @property
    def pid(self) -> int | None:
        """Its pid while it runs."""
        try:
            pid, started = (self.directory / "pid").read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if _start_of(int(pid)) == started else None

    def start(self) -> None:
        """Start it unless it runs, and wait until it serves; raises StackError."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it unless it runs; raises StackError where somebody else has its port."""
        if self.pid is not None:
            return
        for port in self.ports:
            if is_open(port):
                raise StackError(
                    f"{self.name}: port {port} is taken by a server that is not ours; stop it or "
                    "choose another port (python -m deploy.stack --help names the variables)"
                )
        self._forget()  # another process may have ended it
        self.directory.mkdir(parents=True, exist_ok=True)
        self.prepare()
        with self.log.open("wb") as log:
            self._child = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal is for whoever asked, not for it
            )
        pid = self._child.pid
        (self.directory / "pid").write_text(f"{pid} {_start_of(pid)}\n")

    def wait(self) -> None:
        """Wait until it serves; raises StackError, with the end of its log, when it does not."""
        until = time.monotonic() + self.ready_s
        while not self.serves():
            if self.pid is None:
                raise StackError(f"{self.name} died while it started:\n{self._tail()}")
            if time.monotonic() > until:
                raise StackError(
                    f"{self.name} did not serve within {self.ready_s:g} s; its log ends:\n"
                    f"{self._tail()}"
                )
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End it cleanly; with force when that takes too long."""
        self._signal(signal.SIGTERM)
        if not self._gone(self.stop_s):
            self.kill9()
        self._forget()

    def kill9(self) -> None:
        """End it as a crash does."""
        self._signal(signal.SIGKILL)
        if not self._gone(10.0):
            raise StackError(f"{self.name}: process {self.pid} does not go away")
        self._forget()

    def pause(self) -> None:
        """Let it neither answer nor go away."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is not None:
            os.kill(pid, number)

    def _gone(self, within_s: float) -> bool:
        until = time.monotonic() + within_s
        while self.pid is not None:
            if time.monotonic() > until:
                return False
            time.sleep(POLL_S)
        return True

    def _forget(self) -> None:
        if self._child is not None:
            self._child.wait(10)
            self._child = None
        (self.directory / "pid").unlink(missing_ok=True)

    def _tail(self) -> str:
        try:
            return self.log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
        except FileNotFoundError:
            return "(no log)"


class Group:
    """Servers that are one to their clients."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = list(servers)

    @property
    def address(self) -> str:
        """HOST:PORT of the first, through which clients find the others."""
        return f"{HOST}:{self.servers[0].ports[0]}"

    def start(self) -> None:
        """Start what does not run and wait until all serve; raises StackError."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start what does not run."""
        for server in self.servers:
            server.launch()

    def wait(self) -> None:
        """Wait until all serve."""
        for server in self.servers:
            server.wait()

    def stop(self) -> None:
        """Stop all."""
        for server in reversed(self.servers):
            server.stop()


def is_open(port: int) -> bool:
    """Whether something listens on a port of loopback."""
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex((HOST, port)) == 0


def free_ports(count: int) -> list[int]:
    """Return ports that are free now, below the range that outgoing connections take.

    The same process never gets one twice, and processes begin at different ones.
    """
    found: list[int] = []
    while len(found) < count:
        port = PORTS.start + next(_turns) % len(PORTS)
        with socket.socket() as sock:
            try:
                sock.bind((HOST, port))
            except OSError:
                continue
            found.append(port)
    return found


def _start_of(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None for one that is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state == "Z" else rest[18]
