"""A process beside the benchmark that is asked with a line of JSON and answers with one.

The load must not share a core, or an interpreter, with what is measured: each generator is a child
of its own, bound to a core where one is named.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
STOP_S: Final = 10.0


class ChildLost(RuntimeError):
    """A child ended, or did not answer in time."""


def pin(pid: int, cores: Iterable[int]) -> None:
    """Bind all threads of a process to some cores; threads that it starts later inherit them."""
    chosen = set(cores)
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            os.sched_setaffinity(int(task.name), chosen)
        except ProcessLookupError:
            continue  # a thread that has just ended


class Child:
    """Runs `python -m MODULE` and asks it. Use it as a context."""

    def __init__(self, module: str, *arguments: str, cores: Iterable[int] = ()) -> None:
        self._name = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(
                    [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
                ),
            },
        )
        if cores:
            pin(self._process.pid, cores)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, deadline_s: float = 60.0, **command: Any) -> Any:
        """Return the answer to a command; raises ChildLost, and RuntimeError for a refusal."""
        self.tell(**command)
        return self.answer(deadline_s)

    def tell(self, **command: Any) -> None:
        """Give a command whose answer is fetched later."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ChildLost(f"{self._name} has ended; see what it printed above") from error

    def answer(self, deadline_s: float = 60.0) -> Any:
        """Return the answer to the command given last."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(deadline_s):
                raise ChildLost(f"{self._name} did not answer within {deadline_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise ChildLost(f"{self._name} has ended; see what it printed above")
        found = json.loads(line)
        if "error" in found:
            raise RuntimeError(f"{self._name}: {found['error']}")
        return found["answer"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def serve(handle: Callable[[dict[str, Any]], Any], idle: Callable[[], None] | None = None) -> None:
    """Answer commands until the parent goes; `idle` runs between them and must return soon."""
    waiting = b""
    os.set_blocking(0, idle is None)
    while True:
        try:
            data = os.read(0, 1 << 20)
            if not data:
                return
            waiting += data
        except BlockingIOError:
            pass
        *lines, waiting = waiting.split(b"\n")
        for line in lines:
            try:
                answer: dict[str, Any] = {"answer": handle(json.loads(line))}
            except (ValueError, KeyError, TypeError, OSError, RuntimeError, MemoryError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        if idle is not None:
            idle()
