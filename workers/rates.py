"""How often somebody has written: comments of the last minute, from the log and on their way."""

from __future__ import annotations

from collections import deque
from typing import Final, TypeAlias

MINUTE_MS: Final = 60_000

Who: TypeAlias = tuple[str, str]  # stream and user id


class Rates:
    """Comments per (stream, user). Times are unix ms.

    The last comment is known for as long as ingest reads back (`idempotency.READ_BACK_MS`), which
    is longer than the longest slow mode.
    """

    def __init__(self) -> None:
        self._landed: dict[Who, deque[int]] = {}
        self._coming: dict[Who, int] = {}
        self._last: dict[Who, int] = {}

    def used(self, who: Who, now: int) -> tuple[int, int]:
        """Return (comments that count against the limit now, ms until the oldest leaves)."""
        landed = self._landed.get(who)
        while landed and landed[0] <= now - MINUTE_MS:
            landed.popleft()
        count = len(landed) if landed else 0
        reset = landed[0] + MINUTE_MS - now if landed else MINUTE_MS
        return count + self._coming.get(who, 0), reset

    def wait(self, who: Who, now: int, over: int) -> int:
        """Return the ms until one more than `over` of those that count have left."""
        landed = self._landed.get(who)
        return landed[over] + MINUTE_MS - now if landed and over < len(landed) else MINUTE_MS

    def last(self, who: Who) -> int:
        """Return when somebody's newest comment was admitted, 0 for never."""
        return self._last.get(who, 0)

    def wrote(self, who: Who, now: int) -> None:
        """Remember when somebody's newest comment was admitted."""
        self._last[who] = now

    def coming(self, who: Who, change: int) -> None:
        """Count a comment that is on its way (+1), or no more (-1)."""
        count = self._coming.get(who, 0) + change
        if count > 0:
            self._coming[who] = count
        else:
            self._coming.pop(who, None)

    def landed(self, who: Who, ts: int) -> None:
        """Count a comment that stands in the log."""
        self._landed.setdefault(who, deque()).append(ts)
        self._last[who] = max(ts, self._last.get(who, 0))

    def sweep(self, now: int, keep_ms: int) -> None:
        """Forget who has not written for a minute, and last comments older than `keep_ms`."""
        # A look at `used` may have emptied a deque already.
        gone = [w for w, t in self._landed.items() if not t or t[-1] <= now - MINUTE_MS]
        for who in gone:
            del self._landed[who]
        for who in [w for w, ts in self._last.items() if ts <= now - keep_ms]:
            del self._last[who]
