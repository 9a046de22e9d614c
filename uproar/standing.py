"""What stands in a stream: the sum of its control events, in the order of the log. Sans-I/O.

Comes in: events of STANDING_TYPES, first those of the store, then those of the log; one that comes
twice changes nothing the second time as long as the order is kept. Goes out: who may write, what is
pinned, which mode, which comments wait for a decision. Ingest decides by it, gateways show it.
"""

from __future__ import annotations

from typing import Any, Final

from uproar import mode as modes
from uproar.events import Event, Flagged, Pinned, Terms

HELD_MAX: Final = 10_000  # comments that may wait for a decision; the oldest give way


class Standing:
    """One stream. Times are unix ms."""

    __slots__ = (
        "bans", "ended", "held", "mode", "pinned", "ratio", "shadows", "started_at", "terms",
        "terms_at", "timeouts", "title",
    )  # fmt: skip

    def __init__(self) -> None:
        self.mode: dict[str, Any] = {}
        self.bans: set[str] = set()
        self.shadows: set[str] = set()
        self.timeouts: dict[str, int] = {}
        self.pinned: Pinned | None = None
        self.held: dict[bytes, Flagged] = {}
        self.terms = Terms((), ())
        self.terms_at = 0
        self.ratio = 1.0
        self.started_at: int | None = None
        self.title = ""
        self.ended = False

    def apply(self, event: Event) -> None:
        """Take one event in."""
        data = event.data
        if event.type == "MODE":
            self.mode = modes.applied(self.mode, data.changes)
        elif event.type == "SANCTION":
            self._sanction(data.user_id, data.action, data.until)
        elif event.type == "COMMENT_PINNED":
            self.pinned = data
        elif event.type == "COMMENT_UNPINNED":
            if self.pinned is not None and self.pinned.comment.id == data.comment_id:
                self.pinned = None
        elif event.type == "HELD":
            self.held[data.comment.id] = data
            while len(self.held) > HELD_MAX:
                del self.held[next(iter(self.held))]
        elif event.type == "HELD_RESOLVED":
            self.held.pop(data.comment_id, None)
        elif event.type == "TERMS":
            self.terms, self.terms_at = data, event.ts
        elif event.type == "SAMPLING":
            self.ratio = data.ratio
        elif event.type == "STREAM_STARTED":
            self.started_at, self.title, self.ended = event.ts, data.title, False
        elif event.type == "STREAM_ENDED":
            self.ended = True

    @property
    def opened(self) -> bool:
        """Whether the stream was ever opened; where not every id is a stream it exists by that."""
        return self.started_at is not None

    def pinned_at(self, now: int) -> Pinned | None:
        """Return what is pinned at a time."""
        pinned = self.pinned
        if pinned is None or (pinned.until is not None and pinned.until <= now):
            return None
        return pinned

    def timeout_until(self, user_id: str, now: int) -> int | None:
        """Return when a user's timeout ends, None without one."""
        until = self.timeouts.get(user_id)
        if until is not None and until <= now:
            del self.timeouts[user_id]
            return None
        return until

    def _sanction(self, user_id: str, action: str, until: int | None) -> None:
        if action == "timeout" and until is not None:
            self.timeouts[user_id] = until
        elif action == "ban":
            self.bans.add(user_id)
        elif action == "unban":
            self.bans.discard(user_id)
            self.timeouts.pop(user_id, None)
        elif action == "shadow_ban":
            self.shadows.add(user_id)
        elif action == "unshadow_ban":
            self.shadows.discard(user_id)


def standing_of(events: list[Event]) -> Standing:
    """Return what stands after some events."""
    standing = Standing()
    for event in events:
        standing.apply(event)
    return standing
