"""A bare C loop of `send` in a process of its own: the floor that a server's CPU is held against.

`Bare` listens, a crowd's `raw` members connect, and `run` sends them frames of a given size at the
pace of the server. It runs between two stretches of the measurement it is compared with, because
on a shared machine only ratios of one and the same minute hold.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import time
from typing import Any, Final

from benchmarks.child import Child, serve
from benchmarks.crowd import Crowd, files

ACCEPT_S: Final = 60.0


class Bare:
    """The sender, seen from the benchmark. Use it as a context."""

    def __init__(self, cores: tuple[int, ...] = ()) -> None:
        self.child = Child("benchmarks.bare", cores=cores)

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.close()

    def connect(self, crowd: Crowd, count: int) -> int:
        """Connect a crowd's raw members; return their group."""
        port = self.child.ask(do="listen")
        group = crowd.add(f"ws://127.0.0.1:{port}/", count, raw=True, decode_every=0, at_once=256)
        self.child.ask(ACCEPT_S + 10, do="accept", count=count)
        return group

    def run(self, size: int, rate: float, rounds: int) -> dict[str, int]:
        """Send `size` bytes to all, `rounds` times, `rate` a second; see bare.h."""
        found: dict[str, int] = self.child.ask(
            2 * rounds / (rate or rounds) + 120, do="run", size=size, rate=rate, rounds=rounds
        )
        return found


def main() -> None:
    """The process."""
    from _fastpath.bare import run

    resource.setrlimit(resource.RLIMIT_NOFILE, (files(), files()))
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    taken: list[socket.socket] = []

    def accept(count: int) -> int:
        until = time.monotonic() + ACCEPT_S
        while len(taken) < count:
            if not select.select([listener], [], [], max(0.0, until - time.monotonic()))[0]:
                raise RuntimeError(f"only {len(taken)} of {count} connected")
            one, _ = listener.accept()
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            taken.append(one)
        return len(taken)

    def handle(command: dict[str, Any]) -> Any:
        if command["do"] == "listen":
            return listener.getsockname()[1]
        if command["do"] == "accept":
            return accept(command["count"])
        numbers = [one.fileno() for one in taken]
        return run(numbers, os.urandom(command["size"]), command["rate"], command["rounds"])

    serve(handle)


if __name__ == "__main__":
    main()
