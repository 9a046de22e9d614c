"""The admin port: `/healthz`, `/readyz` and `/metrics` of the whole machine, for operators.

Comes in: HTTP requests on an inherited listening socket, and every process's status document
(`uproar.status`). A process of its own, so that a slow scrape never delays supervision or delivery.

    python -m uproar.admin --config FILE --listen-fd N [--ready-fd N] [--roles ROLE,…]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any, Final

import uproar
from uproar import exposition, leftovers, logs, status
from uproar.config import Config, ConfigError, load
from uproar.exposition import Origin
from uproar.logs import event
from uproar.valkey_info import Servers

log = logging.getLogger(__name__)

THREADS: Final = 16  # requests at a time; one more is closed unanswered
REQUEST_S: Final = 5.0  # for a client to say what it wants and to take the answer
STATUS_S: Final = 2.0  # for one process to tell its status
NEEDED: Final = ("ingest", "coordinator", "archive")  # beside the gateways, for /readyz
WORKERS: Final = (*NEEDED, "moderation")


def gateway_names(config: Config) -> list[str]:
    """Return the names of this machine's gateways: g1, g2 …"""
    return [f"g{number}" for number in range(1, config.server.gateways + 1)]


class Machine:
    """The processes of one machine, seen through their status sockets."""

    def __init__(self, config: Config, roles: Collection[str] = ()) -> None:
        """Where it is one host of a cluster, `roles` are what runs here: all of it is needed."""
        self._config = config
        self._gateways = gateway_names(config) if not roles or "gateway" in roles else []
        self._workers = list(WORKERS)
        self._needed = list(NEEDED)
        if roles:
            self._workers = self._needed = sorted(set(roles) - {"gateway", "admin"})
        elif config.webhooks.targets:
            self._workers.append("webhooks")
        self._readers = ThreadPoolExecutor(THREADS, thread_name_prefix="status")
        self._valkeys = Servers(config, embedded=not roles)

    def statuses(self, names: list[str]) -> dict[str, dict[str, Any] | None]:
        """Return each process's document, None for one that gave none within 2 s; in parallel."""

        def read(name: str) -> dict[str, Any] | None:
            return status.read(self._config.socket(f"status-{name}"), STATUS_S)

        return dict(zip(names, self._readers.map(read, names), strict=True))

    def not_ready(self) -> dict[str, str]:
        """Return why which process keeps the machine from being ready; empty when it is."""
        found = self.statuses([*self._gateways, *self._needed])
        reasons: dict[str, str] = {}
        for name, document in found.items():
            if document is None:
                reasons[name] = f"gave no status within {STATUS_S:g} s"
            elif name in self._gateways and document.get("ready") is not True:
                reasons[name] = str(document.get("reason") or "says that it is not ready")
        return reasons

    def metrics(self) -> str:
        """Return every process's metrics, and what is known of the processes and the Valkeys."""
        servers = self._readers.submit(self._valkeys.text)
        found = self.statuses([*self._gateways, *self._workers])
        origins = {
            name: Origin(name, "gateway" if name in self._gateways else name.rstrip("0123456789"))
            for name in found
        }
        texts = [
            (origins[name], str(doc.get("metrics") or "")) for name, doc in found.items() if doc
        ]
        texts.append((Origin("admin", "admin"), servers.result()))
        restarts = [
            (Origin(str(item.get("name")), str(item.get("role"))), float(item.get("restarts", 0)))
            for item in leftovers.read(self._config.run_dir / "pids.json")
        ]
        answers = [(origins[name], 1.0 if doc else 0.0) for name, doc in found.items()]
        return (
            exposition.merge(texts)
            + exposition.each("uproar_process_answers", answers)
            + exposition.each("uproar_process_restarts_total", restarts)
        )


class AdminServer(ThreadingHTTPServer):
    """A server on an inherited socket, with bounded threads."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, machine: Machine) -> None:
        """Serve on `listener`, which is taken over."""
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_address = listener.getsockname()
        self.machine = machine
        self._free = threading.BoundedSemaphore(THREADS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the request a thread, or close it when all are busy."""
        if not self._free.acquire(blocking=False):
            event(log, "admin_busy", level=logging.WARNING)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer in a thread and give its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong; a client that left is nothing."""
        if not isinstance(sys.exception(), OSError):
            event(log, "admin_request_failed", level=logging.ERROR, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of three paths; everything else is a problem object (RFC 9457)."""

    timeout = REQUEST_S
    server: AdminServer
    server_version = f"uproar/{uproar.__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer by the path; a query is ignored."""
        path = self.path.partition("?")[0]
        if path == "/healthz":
            self._send(200, "application/json", b'{"status":"ok"}\n')
        elif path == "/readyz":
            reasons = self.server.machine.not_ready()
            body = {"ready": not reasons, "not_ready": reasons}
            self._send(503 if reasons else 200, "application/json", _json(body))
        elif path == "/metrics":
            text = self.server.machine.metrics()
            self._send(200, exposition.CONTENT_TYPE, text.encode())
        else:
            self.send_error(404, "Not found", "This port has /healthz, /readyz and /metrics.")

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send a problem object, for what http.server refuses by itself too."""
        title = message or self.responses.get(code, ("Error", ""))[0]
        problem = {"type": "about:blank", "title": title, "status": code}
        if explain:
            problem["detail"] = explain
        self._send(code, "application/problem+json", _json(problem))

    def _send(self, code: int, content_type: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: probes come every second."""


def _json(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m uproar.admin")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--roles", default="")
    options = parser.parse_args(arguments)
    logs.configure("admin")
    try:
        config = load(options.config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _leave)
    machine = Machine(config, [role for role in options.roles.split(",") if role])
    server = AdminServer(socket.socket(fileno=options.listen_fd), machine)
    event(log, "admin_serves", address=list(server.server_address))
    if options.ready_fd is not None:
        os.write(options.ready_fd, b"ready\n")
        os.close(options.ready_fd)
    began = time.monotonic()
    try:
        server.serve_forever(poll_interval=1.0)
    finally:
        event(log, "admin_stopped", up_s=round(time.monotonic() - began, 1))
    return 0


def _leave(signum: int, frame: FrameType | None) -> None:
    # Requests run in daemon threads: nothing is worth waiting for.
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
