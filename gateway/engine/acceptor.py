"""The listening socket of the reference engine: so many connections a second, or none for a while.

What may not be accepted yet waits in the kernel's listen queue.
"""

from __future__ import annotations

import time
from typing import Any

from gevent import pywsgi


class Acceptor(pywsgi.WSGIServer):  # type: ignore[misc]
    """pywsgi's server with a bucket of tokens: one a connection, a second's worth at most."""

    def __init__(self, *arguments: Any, per_second: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._per_second = per_second
        self._tokens = float(per_second)
        self._filled_at = time.monotonic()
        self._held_until = 0.0
        self._ended = False

    def hold_off(self, seconds: float) -> None:
        """Accept nobody for so long."""
        self._held_until = max(self._held_until, time.monotonic() + seconds)
        if not self._ended:
            self._pause(seconds)

    def end(self) -> None:
        """Accept nobody any more."""
        self._ended = True
        self.stop_accepting()

    def do_read(self) -> Any:
        """Called by the hub where somebody has connected."""
        now = time.monotonic()
        new = (now - self._filled_at) * self._per_second
        self._tokens = min(float(self._per_second), self._tokens + new)
        self._filled_at = now
        wait = max(self._held_until - now, (1.0 - self._tokens) / self._per_second)
        if wait > 0:
            self._pause(wait)
            return None
        accepted = super().do_read()
        if accepted:
            self._tokens -= 1.0
        return accepted

    def _pause(self, seconds: float) -> None:
        self.stop_accepting()
        self._timer = self.loop.timer(seconds)
        self._timer.start(self._start_accepting_if_started)
