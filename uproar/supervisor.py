"""The supervisor: starts the processes of one machine in order, keeps them, stops them in order.

Comes in: specs, and signals. SIGINT and SIGTERM stop everything in order, a second SIGINT at once.
SIGHUP starts those that listen anew, one after the other; from a terminal that closed it stops too.
Goes out: running processes, `pids.json`, and a log line for every start, death and stop. One
thread, no gevent: forking stays safe, and PR_SET_PDEATHSIG is bound to the thread that forked.
"""

from __future__ import annotations

import logging
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

from uproar import leftovers, logs
from uproar.child import Child, Phase, Spec
from uproar.config import Supervisor as Settings
from uproar.errors import ServeError
from uproar.logs import event
from uproar.restarts import Restarts

log = logging.getLogger(__name__)

POLL_S: Final = 0.02  # between two probes of a process that does not say itself when it is ready
GATE_S: Final = 1.0  # between two looks at a closed gate
IDLE_S: Final = 1.0  # a turn at least this often: a safety net, everything has its own wake-up
EARLY_DEATHS: Final = 3  # deaths before it was ever ready that make a start fail
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Runs `specs` until it is told to stop. `run` is called once, in the main thread."""

    def __init__(self, specs: list[Spec], settings: Settings, run_dir: Path) -> None:
        self._settings = settings
        self._pid_file = run_dir / "pids.json"
        self._children = [
            Child(spec, Restarts(settings.backoff_s, settings.backoff_max_s, settings.stable_s))
            for spec in specs
        ]
        self._selector = selectors.DefaultSelector()
        self._stop_asked = False
        self._stopping = False
        self._hurry = False
        self._reload_asked = False
        self._reloading: list[Child] = []

    def run(self, on_ready: Callable[[], None]) -> None:
        """Start everything, call `on_ready`, keep everything, and stop it when asked.

        Raises ServeError when something does not come up; everything is stopped then too.
        """
        with self._signals():
            leftovers.end(self._pid_file)
            try:
                self._start()
                if not self._stop_asked:
                    on_ready()
                while not self._stop_asked:
                    self._turn()
            finally:
                self._stop()

    def pids(self) -> dict[str, list[int]]:
        """Return the pids of what runs now, by role."""
        pids: dict[str, list[int]] = {}
        for child in self._children:
            if child.pid is not None:
                pids.setdefault(child.spec.role, []).append(child.pid)
        return pids

    # -- start and stop --

    def _start(self) -> None:
        deadline = time.monotonic() + self._settings.ready_s
        for step in sorted({child.spec.start for child in self._children}):
            members = [child for child in self._children if child.spec.start == step]
            for child in members:
                child.phase, child.due = Phase.DOWN, time.monotonic()
            while not self._stop_asked:
                # Those of earlier steps may have died meanwhile: they are waited for as well.
                late = [
                    child
                    for child in self._children
                    if child.spec.start <= step and child.phase is not Phase.READY
                ]
                if not late:
                    break
                for child in late:
                    if child.restarts.count >= EARLY_DEATHS:
                        raise ServeError(_start_failed(child, "died again and again"))
                if time.monotonic() >= deadline:
                    why = late[0].waiting or f"was not ready within {self._settings.ready_s:g} s"
                    raise ServeError(_start_failed(late[0], why))
                self._turn(deadline)

    def _stop(self) -> None:
        self._stopping = True
        began = time.monotonic()
        for child in self._children:
            if child.popen is None:
                child.phase = Phase.STOPPED
        for step in sorted({child.spec.stop for child in self._children}):
            members = [child for child in self._children if child.spec.stop == step]
            for child in members:
                if child.spec.listener is not None:
                    child.spec.listener.close()  # new clients are refused instead of left waiting
                child.send(signal.SIGTERM)
            asked = time.monotonic()
            while running := [child for child in members if child.popen]:
                now = time.monotonic()
                late = [c for c in running if self._hurry or now >= asked + c.spec.stop_s]
                for child in late:
                    if not self._hurry:
                        _tell(child, "process_killed", after_s=child.spec.stop_s)
                    child.send(signal.SIGKILL)
                self._turn(now + IDLE_S if late else asked + min(c.spec.stop_s for c in running))
        self._selector.close()
        self._pid_file.unlink(missing_ok=True)
        event(log, "stopped", took_s=round(time.monotonic() - began, 2))

    # -- one turn of the loop --

    def _turn(self, deadline: float = float("inf")) -> None:
        """Wait for the next thing to do and do it."""
        wait_s = max(0.0, min(self._next_due(), deadline) - time.monotonic())
        for key, _ in self._selector.select(min(wait_s, IDLE_S)):
            if isinstance(key.data, Child):
                self._read_pipe(key.data)
            else:
                key.data()
        changed = False
        for child in self._children:
            reason = self._reap(child)
            if reason is not None:
                self._ended(child, reason)
                changed = True
        if not self._stopping:
            now = time.monotonic()
            self._reload(now)
            for child in self._children:
                if child.phase is Phase.DOWN and child.due <= now:
                    changed |= self._spawn(child)
                elif child.phase is Phase.STARTING and child.ready_fd < 0:
                    if child.spec.ready is None or child.spec.ready():
                        self._is_ready(child)
                elif child.phase is Phase.READY and child.replacing and child.due <= now:
                    child.send(signal.SIGKILL)
                elif child.phase is Phase.READY:
                    self._end_quarantine(child, now)
        if changed:
            self._write_pids()

    def _next_due(self) -> float:
        now = time.monotonic()
        due = now + IDLE_S
        for child in self._children:
            if child.phase is Phase.DOWN:
                due = min(due, child.due)
            elif child.phase is Phase.STARTING and child.ready_fd < 0:
                due = min(due, now + POLL_S)
        return due

    def _spawn(self, child: Child) -> bool:
        """Start a child whose time has come; return whether a process was started."""
        reason = child.spec.gate() if child.spec.gate else None
        if reason is not None:
            if not child.waiting:
                _tell(child, "process_waits", level=logging.WARNING, reason=reason)
            child.waiting, child.due = reason, time.monotonic() + GATE_S
            return False
        child.waiting = ""
        try:
            child.spawn()
        except (OSError, ServeError) as error:
            self._ended(child, f"can't be started: {error}")
            return False
        if child.ready_fd >= 0:
            self._selector.register(child.ready_fd, selectors.EVENT_READ, child)
        _tell(child, "process_started", pid=child.pid)
        return True

    def _read_pipe(self, child: Child) -> None:
        said = child.said_ready()
        if said is False:
            return
        self._selector.unregister(child.ready_fd)
        if said:
            child.close_pipe()
            self._is_ready(child)
        # Otherwise the child closed its end in silence: `ready_fd` stays, so it is never polled,
        # and it counts as starting until it dies.

    def _is_ready(self, child: Child) -> None:
        child.phase = Phase.READY
        _tell(child, "process_ready", pid=child.pid)

    def _reap(self, child: Child) -> str | None:
        if child.popen is None:
            return None
        pipe = child.ready_fd
        reason = child.reap()
        if reason is not None and pipe >= 0 and pipe in self._selector.get_map():
            self._selector.unregister(pipe)
        return reason

    def _ended(self, child: Child, reason: str) -> None:
        """Decide what follows from the end of a process."""
        now = time.monotonic()
        if self._stopping:
            child.phase = Phase.STOPPED
            _tell(child, "process_stopped", reason=reason)
            return
        child.phase = Phase.DOWN
        if child.replacing:
            child.replacing, child.due = False, now
            return
        verdict = child.restarts.died(now)
        child.due = now + verdict.delay_s
        _tell(
            child,
            "process_died",
            level=logging.WARNING,
            reason=reason,
            restart_in_s=round(verdict.delay_s, 2),
        )
        if verdict.quick:
            self._quarantine(child)

    # -- gateways that die twice in a row --

    def _quarantine(self, child: Child) -> None:
        """Give a gateway's new connections to the others, if there are any to take them."""
        listener = child.spec.listener
        if listener is None or not listener.serving:
            return
        others = [
            other
            for other in self._children
            if other is not child
            and other.spec.role == child.spec.role
            and other.phase is Phase.READY
            and other.spec.listener is not None
            and other.spec.listener.serving
        ]
        if others:
            try:
                listener.quarantine()
            except ServeError as error:
                _tell(child, "quarantine_failed", level=logging.ERROR, reason=str(error))
                return
            _tell(child, "quarantined", level=logging.WARNING)

    def _end_quarantine(self, child: Child, now: float) -> None:
        """Start a gateway that proved itself anew, on the port."""
        listener = child.spec.listener
        if listener is None or not listener.quarantined or not child.restarts.stable(now):
            return
        try:
            listener.release()
        except ServeError as error:
            _tell(child, "quarantine_stays", level=logging.ERROR, reason=str(error))
            child.restarts.started(now)  # try again after another stable time
            return
        _tell(child, "quarantine_ended")
        self._replace(child, now)

    # -- starting anew what runs well --

    def _reload(self, now: float) -> None:
        """Start the next of a chain anew once all are up: one that can't start breaks the chain."""
        listening = [child for child in self._children if child.spec.listener is not None]
        if self._reload_asked:
            self._reload_asked, self._reloading = False, listening
        if self._reloading and all(c.phase is Phase.READY and not c.replacing for c in listening):
            child, *self._reloading = self._reloading
            _tell(child, "process_reloads")
            self._replace(child, now)

    def _replace(self, child: Child, now: float) -> None:
        """End a process to start it anew: by SIGTERM, and by SIGKILL when that takes too long."""
        child.replacing, child.due = True, now + child.spec.stop_s
        child.send(signal.SIGTERM)

    # -- plumbing --

    def _write_pids(self) -> None:
        entries = [
            leftovers.entry(
                child.spec.name, child.spec.role, child.pid, child.argv, child.restarts.count
            )
            for child in self._children
            if child.pid is not None
        ]
        try:
            leftovers.write(self._pid_file, entries)
        except OSError as error:
            # A full disk must not end the system; the children still die with this process.
            event(log, "pids_not_written", level=logging.WARNING, reason=str(error))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn signals into bytes on a socket that the selector watches."""
        wake, woken = socket.socketpair()
        wake.setblocking(False)
        woken.setblocking(False)
        self._selector.register(woken, selectors.EVENT_READ, lambda: _drain(woken))
        old = {each: signal.signal(each, self._on_signal) for each in SIGNALS}
        old[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _no_op)
        old_wake = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(old_wake)
            for each, handler in old.items():
                signal.signal(each, handler)
            wake.close()
            woken.close()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP and not sys.stdin.isatty():
            self._reload_asked = True
            return
        if self._stop_asked and signum == signal.SIGINT:
            self._hurry = True
        self._stop_asked = True


def _no_op(signum: int, frame: FrameType | None) -> None:
    """Make SIGCHLD write to the wake-up descriptor, which only Python handlers do."""


def _drain(woken: socket.socket) -> None:
    try:
        while woken.recv(4096):
            pass
    except BlockingIOError:
        pass


def _tell(child: Child, name: str, *, level: int = logging.INFO, **fields: Any) -> None:
    event(log, name, level=level, process=child.spec.name, **fields)


def _start_failed(child: Child, why: str) -> str:
    end = logs.tail(child.spec.log)
    text = f"{child.spec.name} {why}; its log is {child.spec.log}"
    if end:
        text += " and ends with\n" + "\n".join(f"    {line}" for line in end.splitlines())
    return text
