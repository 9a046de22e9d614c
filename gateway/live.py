"""One live stream of a gateway: its chain position, its recent events, what the next tick sends.

Sans-I/O. Comes in: batches from bus, ring and store. Goes out: the events of each tick in order,
and pieces of the recent past for those who join, resume or lagged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Final, NamedTuple

from uproar.batch import Batch
from uproar.events import CONTROL_TYPES, MASK_ALL, STANDING_TYPES, Event
from uproar.standing import Standing, standing_of

INBOX_EVENTS: Final = 50_000  # live events that may wait for a hole to be filled
BACKLOG_EVENTS: Final = 1000  # kept behind the recent ones, for those who join
# What decides which comments are shown.
SHOWING_TYPES: Final = frozenset(
    {
        "COMMENT",
        "COMMENT_DELETED",
        "COMMENT_RESTORED",
        "COMMENT_APPROVED",
        "USER_REMOVED",
        "CLEARED",
    }
)


class Past(NamedTuple):
    """What lies between a position and now: events in order, deletions applied."""

    events: list[Event]
    comments: int


class Live:
    """The events at offsets (start, position] of one stream, as far back as is kept.

    `position` is the end of what was received without a hole; `sent` the end of what the ticks have
    handed to the audiences. Batches that do not join wait in the inbox.
    """

    def __init__(self, stream: str, *, keep_events: int, keep_ms: int) -> None:
        self.stream = stream
        self.epoch = ""
        self.start = 0
        self.position = 0
        self.sent = 0
        self.ready = False
        self.standing = Standing()  # as received: at most one tick ahead of what was sent
        self.pending: list[Event] = []  # received, for the next tick
        self.backlog: deque[Event] = deque()  # at and before `start`, of SHOWING_TYPES
        self.inbox: deque[Batch] = deque()
        self._inbox_events = 0
        self._recent: deque[Event] = deque()
        self._written: dict[str, list[Event]] = {}  # the kept comments of each author, in order
        self._keep_events = keep_events
        self._keep_ms = keep_ms

    # -- in ---------------------------------------------------------------------------------------

    def open(
        self,
        epoch: str,
        position: int,
        past: list[Event],
        backlog: list[Event],
        standing: list[Event],
    ) -> None:
        """Begin at a position, with the ring's events below it and older comments."""
        self.epoch = epoch
        self.position = self.sent = position
        self._recent = deque(past)
        self.start = past[0].offset - 1 if past else position
        self.backlog = deque(event for event in backlog if event.offset <= self.start)
        self._written.clear()
        for event in chain(self.backlog, past):
            self._note(event)
        self.standing = Standing()
        # What the store has of the ring's events comes twice, in the same order: no harm.
        for event in [*standing, *past]:
            if event.type in STANDING_TYPES:
                self.standing.apply(event)
        self.ready = True

    def take(self, batch: Batch) -> bool:
        """Take a batch in; False when there is a hole before it and it waits in the inbox."""
        if self.inbox or batch.prev > self.position or not self.ready:
            self.inbox.append(batch)
            self._inbox_events += len(batch.events)
            if not self.ready and self.overfull:
                # Nobody watches yet: what is thrown away is a hole like any other.
                self.inbox.clear()
                self._inbox_events = 0
            return False
        self._extend(batch)
        return True

    @property
    def hole(self) -> tuple[int, int] | None:
        """The offsets (from, to] that are missing before the inbox can go on."""
        while self.inbox and self.inbox[0].prev <= self.position:
            batch = self.inbox.popleft()
            self._inbox_events -= len(batch.events)
            self._extend(batch)
        return (self.position, self.inbox[0].prev) if self.inbox else None

    @property
    def overfull(self) -> bool:
        """Whether more waits behind the hole than may."""
        return self._inbox_events > INBOX_EVENTS

    def fill(self, batch: Batch) -> None:
        """Take in a piece that begins at or before the position (from ring or store)."""
        if batch.prev <= self.position:
            self._extend(batch)

    def give_up(self, upto: int, reason: str) -> None:
        """Leave a hole: everybody is told by a GAP in its place."""
        data = {"from": self.position, "to": upto, "reason": reason}
        self.pending.append(Event(upto, "GAP", 0, "", MASK_ALL, 0, data))
        self.position = upto
        self._recent.clear()
        self.backlog.clear()  # what was deleted in the hole must not be shown to those who join
        self._written.clear()
        self.start = upto

    def restand(self, stored: list[Event]) -> None:
        """Know again what stands after a hole was given up: from the store, then from here."""
        recent = [event for event in self._recent if event.type in STANDING_TYPES]
        self.standing = standing_of([*stored, *recent])

    def _extend(self, batch: Batch) -> None:
        for event in batch.events:
            if event.offset > self.position:
                self.pending.append(event)
                self._recent.append(event)
                self._note(event)
                if event.type in STANDING_TYPES:
                    self.standing.apply(event)
        self.position = max(self.position, batch.last)

    def _trim(self) -> None:
        """Let go of what is too old or too much."""
        recent = self._recent
        while len(recent) > self._keep_events or (
            recent and recent[0].ts < recent[-1].ts - self._keep_ms
        ):
            old = recent.popleft()
            self.start = old.offset
            if old.type in SHOWING_TYPES:
                self.backlog.append(old)
                if len(self.backlog) > BACKLOG_EVENTS:
                    self._drop(self.backlog.popleft())

    def _note(self, event: Event) -> None:
        if event.type == "COMMENT":
            self._written.setdefault(event.actor, []).append(event)

    def _drop(self, event: Event) -> None:
        if event.type == "COMMENT":
            written = self._written[event.actor]
            del written[0]  # the oldest of all is the oldest of its author
            if not written:
                del self._written[event.actor]

    # -- out --------------------------------------------------------------------------------------

    def flush(self) -> tuple[list[Event], int]:
        """Return (the events of this tick, the position before them)."""
        events, before = self.pending, self.sent
        self.pending = []
        self.sent = self.position
        self._trim()  # not before: what waits for this tick is nobody's past yet
        return events, before

    def newest(self) -> Iterator[Event]:
        """Yield the kept comments up to `sent`, newest first, without what was removed."""
        kept = chain(reversed(self._recent), reversed(self.backlog))
        return comments_of(event for event in kept if event.offset <= self.sent)

    def latest(self, most: int, meant: Callable[[Event], bool]) -> list[Event]:
        """Return the newest comments that are meant for somebody, at most `most`, oldest first."""
        return list(islice(filter(meant, self.newest()), most))[::-1]

    def hides_some_of(self, author: str) -> bool:
        """Whether not everybody gets all kept comments of an author: to him they are shown."""
        written = self._written.get(author, ())
        return any(event.visibility or event.mask != MASK_ALL for event in written)

    @property
    def horizon(self) -> int:
        """Up to where what was sent has to be read from the store.

        It is `sent` while the end of a hole that was given up waits for its tick.
        """
        return min(self.start, self.sent)

    def since(self, offset: int) -> Past | None:
        """Return what lies in (offset, sent], None when it is not all kept."""
        if offset < self.horizon:
            return None
        return past_of([e for e in self._recent if offset < e.offset <= self.sent])

    def used(self, actor: str, since_ms: int) -> int:
        """Return how many comments of an author stand in the log since a time."""
        return sum(event.ts > since_ms for event in self._written.get(actor, ()))


def past_of(events: list[Event]) -> Past:
    """Return events with deletions applied, and how many comments are among them."""
    kept = without_removed(events)
    return Past(kept, sum(event.type == "COMMENT" for event in kept))


def without_removed(events: list[Event]) -> list[Event]:
    """Return events in order without the comments that later ones among them remove."""
    if not any(event.type in CONTROL_TYPES for event in events):
        return events
    return list(_not_removed(reversed(events)))[::-1]


def _not_removed(events: Iterable[Event]) -> Iterator[Event]:
    """Yield events, newest first, without the comments that those before remove.

    The control events stay: they may be about older comments.
    """
    deleted: set[bytes] = set()
    restored: set[bytes] = set()
    users: set[str] = set()
    cleared = False
    for event in events:
        data = event.data
        kind = event.type
        if kind in ("COMMENT", "COMMENT_APPROVED"):
            if cleared or data.id in deleted or (data.user.id in users and data.id not in restored):
                continue
        elif kind == "COMMENT_DELETED":
            if data.comment_id not in restored:
                deleted.add(data.comment_id)
        elif kind == "COMMENT_RESTORED":
            if data.id not in deleted and data.user.id not in users:
                restored.add(data.id)
        elif kind == "USER_REMOVED":
            users.add(data.user_id)
        elif kind == "CLEARED":
            cleared = True
        yield event


def comments_of(events: Iterable[Event]) -> Iterator[Event]:
    """Yield the comments that are left of events, newest first; an approved one at its approval."""
    approved: set[bytes] = set()
    for event in _not_removed(events):
        if event.type == "COMMENT_APPROVED":
            approved.add(event.data.id)
            yield event._replace(type="COMMENT")
        elif event.type == "COMMENT" and event.data.id not in approved:
            yield event


def fold(past: Past, comments: int) -> tuple[list[Event], int | None]:
    """Return (events to send, end of the gap) for one who lagged: controls and newest comments.

    Everything, and None, where no more than `comments` are among them. Else the control events of
    the gap, and behind it the newest comments with everything between them; the gap ends before
    the first of these.
    """
    if past.comments <= comments:
        return past.events, None
    seen = 0
    cut = len(past.events)
    while seen < comments:
        cut -= 1
        seen += past.events[cut].type == "COMMENT"
    upto = past.events[cut].offset - 1 if cut < len(past.events) else past.events[-1].offset
    controls = [event for event in past.events[:cut] if event.type in CONTROL_TYPES]
    return [*controls, *past.events[cut:]], upto
