"""A running `uproar serve` for tests: started as anybody would, asked over its ports."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import redis

from uproar.config import Config, load
from uproar.valkey_cluster import Cluster

if TYPE_CHECKING:
    from tests.engines import Engines

ROOT = Path(__file__).parents[1]
READY_S = 60.0
STOP_S = 20.0


def wait_until(condition: Callable[[], Any], deadline_s: float, what: str) -> Any:
    """Return the condition's first true value; fails with `what` at the deadline."""
    until = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"{what}: not within {deadline_s} s")
        time.sleep(0.02)


class System:
    """One `uproar serve --json` with a data directory of its own on free ports.

    On the embedded engines, or where `engines` stands on those servers: on a topic, a keyspace and
    a cluster of its own.
    """

    engines: Engines | None = None

    command = ("serve", "--port", "0")

    def __init__(self, data: Path | None = None, **settings: Any) -> None:
        self._own = data is None
        # Short, because Unix sockets lie below it.
        self.data = data or Path(tempfile.mkdtemp(prefix="upr-")) / "d"
        self._servers = ExitStack()
        more = self.engines.settings(self._servers) if self.engines else {}
        self.settings = {"server__admin_port": 0, **more, **settings}
        self.process: subprocess.Popen[bytes]
        self.info: dict[str, Any] = {}

    def start(self) -> System:
        """Start and wait for the JSON line."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "uproar", *self.command, "--json", "--data", str(self.data)],
            cwd=ROOT,
            env=self.environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if selector.select(READY_S) else b""
        if not line:
            self.process.kill()
            _, stderr = self.process.communicate()
            raise AssertionError(f"{self.command[0]} did not start: {stderr.decode()}")
        self.info = json.loads(line)
        if self.engines:
            wait_until(self._has_store, READY_S, "the archive has made the keyspace")
        return self

    def _has_store(self) -> bool:
        # Several times, as it is another gateway's turn each time.
        path = "/stream/nowhere/comments"
        return all(self.call("GET", path)[0] != 503 for _ in range(6))

    def environ(self) -> dict[str, str]:
        """The environment of the system's processes."""
        settings = {f"UPROAR_{key.upper()}": str(value) for key, value in self.settings.items()}
        return {**os.environ, **settings}

    def stop(self) -> None:
        """Stop as a person would, and fail if that hangs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise AssertionError("serve did not stop on SIGTERM") from None

    def remove(self) -> None:
        """Delete the data directory, and what lies on servers."""
        self._servers.close()
        if self._own:
            shutil.rmtree(self.data.parent, ignore_errors=True)

    def __enter__(self) -> System:
        return self.start()

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.remove()

    @property
    def config(self) -> Config:
        """The configuration of the running processes."""
        return load(self.data / "run" / "effective.toml", environ={})

    # -- asking -----------------------------------------------------------------------------------

    @property
    def tokens(self) -> dict[str, str]:
        """Tokens by role."""
        return self.info["tokens"]

    def stream(self, stream: str) -> str:
        """The WebSocket URL of a stream."""
        return self.info["ws"].rstrip("/") + f"/stream/{stream}"

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        role: str | None = None,
        token: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Return (status, decoded body) of a REST call, refusals too."""
        token = self.tokens[role] if role else token
        request = urllib.request.Request(
            self.info["http"].rstrip("/") + path,
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={
                "Content-Type": "application/json",
                **({"Authorization": f"Bearer {token}"} if token else {}),
                **(headers or {}),
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, json.loads(refusal.read() or b"null")

    def history(self, stream: str) -> list[dict[str, Any]]:
        """Return all of a stream's visible comments, oldest first, read page by page."""
        comments: list[dict[str, Any]] = []
        cursor = ""
        while True:
            status, page = self.call("GET", f"/stream/{stream}/comments?limit=1000{cursor}")
            assert status == 200, page
            comments += page["comments"]
            if page["next"] is None:
                return comments[::-1]
            cursor = f"&before={page['next']}"

    def empty_state(self) -> None:
        """Have bus and state forget everything, as servers do that are lost with their data."""
        config = self.config
        if config.state.engine == "cluster":
            with closing(Cluster(config.state)) as cluster:
                answers = cluster.on_masters(("FLUSHALL", "SYNC"))
            assert set(answers.values()) == {b"OK"}, answers
            return
        with redis.Redis(unix_socket_path=str(config.socket("state"))) as client:
            client.flushall()

    # -- processes --------------------------------------------------------------------------------

    def pid_of(self, name: str) -> int:
        """Return the pid that runs as `name` now (g1, ingest, log …), 0 while there is none."""
        try:
            listed = json.loads((self.data / "run" / "pids.json").read_text())["processes"]
        except (OSError, ValueError):
            return 0
        for entry in listed:
            if entry["name"] == name and psutil.pid_exists(entry["pid"]):
                return int(entry["pid"])
        return 0

    def kill9(self, name: str) -> int:
        """Kill a process of the system; return the pid it had."""
        pid = wait_until(lambda: self.pid_of(name), 10, f"{name} runs")
        os.kill(pid, signal.SIGKILL)
        return int(pid)
