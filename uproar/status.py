"""Every process says on a Unix socket how it is: one JSON document per connection.

    {"name": "g1", "pid": 4711, "ready": true, "reason": "", "metrics": "# HELP …"}

`serve` runs in one daemon thread (a greenlet where gevent has patched threads), one connection at a
time with a deadline each, so a reader that hangs delays the next one and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from uproar.logs import event

log = logging.getLogger(__name__)

CONNECTION_S: Final = 1.0  # to take the whole document
DOCUMENT_BYTES: Final = 8 << 20  # what `read` takes at most; a gateway's metrics are some 50 KB
BACKLOG: Final = 16


class Closer:
    """A status socket that is being served; `close` ends it and removes the socket's file."""

    def __init__(self, listener: socket.socket, path: Path) -> None:
        self._listener, self._path = listener, path

    def close(self) -> None:
        """Stop answering; may be called twice."""
        try:
            # Closing alone would not wake a thread that waits in accept().
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self._path.unlink(missing_ok=True)


def serve(path: Path, collect: Callable[[], dict[str, Any]]) -> Closer:
    """Answer every connection to `path` with what `collect` returns then; raises OSError.

    `collect` is called in the serving thread. When it raises, the document says `ready: false` and
    why; `name` defaults to the socket's own and `pid` to this process.
    """
    path.unlink(missing_ok=True)  # left behind by a process that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    name = path.stem.removeprefix("status-")
    thread = threading.Thread(
        target=_answer, args=(listener, name, collect), name=f"status-{name}", daemon=True
    )
    thread.start()
    return Closer(listener, path)


def read(path: Path, deadline_s: float) -> dict[str, Any] | None:
    """Return a process's document, None when it gave no sound one within `deadline_s`."""
    end = time.monotonic() + deadline_s
    parts: list[bytes] = []
    size = 0
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(deadline_s)
            link.connect(str(path))
            while size <= DOCUMENT_BYTES:
                left_s = end - time.monotonic()
                if left_s <= 0:
                    return None
                link.settimeout(left_s)
                part = link.recv(65_536)
                if not part:
                    document = json.loads(b"".join(parts))
                    return document if isinstance(document, dict) else None
                parts.append(part)
                size += len(part)
    except (OSError, ValueError):
        pass
    return None


def _answer(listener: socket.socket, name: str, collect: Callable[[], dict[str, Any]]) -> None:
    while True:
        try:
            link, _ = listener.accept()
        except OSError:
            if listener.fileno() < 0 or not _listening(listener):
                return
            time.sleep(0.1)  # out of descriptors: the next accept would fail as fast
            continue
        with link:
            try:
                link.settimeout(CONNECTION_S)
                link.sendall(_document(name, collect))
            except OSError:
                pass  # the reader went away or does not read: its loss


def _listening(listener: socket.socket) -> bool:
    try:
        return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def _document(name: str, collect: Callable[[], dict[str, Any]]) -> bytes:
    status: dict[str, Any] = {"name": name, "pid": os.getpid()}
    try:
        status.update(collect())
        return json.dumps(status).encode()
    except Exception as error:
        event(log, "status_failed", level=logging.ERROR, exc_info=True)
        reason = f"its status can't be told: {error}"
        status = {"name": name, "pid": os.getpid(), "ready": False, "reason": reason, "metrics": ""}
        return json.dumps(status).encode()
