"""The store on Cassandra: what `uproar.store.Store` promises, in partitions.

A batch counts when the position has come past it. Rows are written first, all acknowledged, then
the position; a read takes the positions first and looks at nothing above them. So a reader sees
whole batches or nothing of them, and what a killed archive left half written is written again.
"""

from __future__ import annotations

import heapq
import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from uproar.config import Store as Settings
from uproar.events import DATA_OF, STANDING_TYPES, Event
from uproar.store import (
    ANYBODY,
    Bucket,
    Epoch,
    Place,
    Reader,
    StoredComment,
    StoredEvent,
    StoreUnavailable,
)
from uproar.store.cassandra import layout
from uproar.store.cassandra.connection import Connection, Deadline, on_gevent
from uproar.store.cassandra.marks import NOWHERE, Marks, Snapshot
from uproar.store.encoding import decode

LIST_PAGE: Final = 256  # entries of a bucket list at a time
WAVE_MAX: Final = 32  # buckets asked at once, where one after the other gave too little
ROWS_MIN, ROWS_MAX = 20, 1000  # of one request
WRITE_S: Final = 60.0  # a whole batch; each request has store.timeout_s
IN_MAX: Final = 100  # keys of one IN

_MAX: Final = (1 << 63) - 1
_TOP: Final = Place(_MAX, _MAX)

Request = tuple[str, tuple[Any, ...]]
Rows = list[tuple[Any, ...]]
Placed = tuple[Any, ...]  # a row with its era before it


class Shelf(NamedTuple):
    """A run of partitions in order: their list's kind, and how their rows are asked for."""

    stream: str
    kind: str
    table: str  # the statements {table}_down, {table}_up and {table}_timed
    bits: int  # of an offset, below its bucket's number

    def key(self, era: int, bucket: int) -> tuple[Any, ...]:
        """Return the partition key of a bucket."""
        if self.kind == layout.HISTORY:
            return (self.stream, era, bucket)
        return (self.stream, self.kind, era, bucket)


class Range(NamedTuple):
    """Places above `low` and below `high`; `times` (from, to) in unix ms where only those count."""

    low: Place = Place(0, -1)
    high: Place = _TOP
    times: tuple[int, int] | None = None

    def overlaps(self, first_ts: int | None, last_ts: int | None) -> bool:
        """Whether a bucket may have rows of this time; an expired bound bounds nothing."""
        if self.times is None:
            return True
        from_ms, to_ms = self.times
        return (last_ts is None or last_ts >= from_ms) and (first_ts is None or first_ts < to_ms)


class CassandraStore:
    """The store in one keyspace. Safe to call from several threads, or greenlets of one hub.

    The archive opens it with `writer=True` and makes keyspace and tables. Before that, and with a
    schema of another version, readers get StoreUnavailable: an empty history would be a guess.
    """

    def __init__(self, settings: Settings, *, writer: bool = False) -> None:
        self._settings = settings
        self._may_write = writer
        self._connection = Connection(settings, writer=writer)
        self._eras: dict[str, int] = {}  # an epoch's era never changes
        self.blocks = not on_gevent()

    # Eras and positions

    def open_epoch(self, epoch: str) -> int:
        """Return the era of an epoch; only the writer makes a new one (the highest)."""
        if epoch in self._eras and not self._connection.closed:
            return self._eras[epoch]
        deadline = self._deadline()
        while True:
            eras = self._read_eras(deadline)
            if epoch in eras:
                return eras[epoch]
            if not self._may_write:
                raise StoreUnavailable(
                    f"{self._connection.place}: epoch {epoch} is not known yet; the archive "
                    "opens it"
                )
            # Whoever comes first gets the number; the other finds it taken and reads again.
            self._connection.read(
                [("claim_era", (max(eras.values(), default=0) + 1, epoch))], deadline
            )

    def position(self, epoch: str) -> int:
        """Return the last offset archived of an epoch, 0 for none."""
        deadline = self._deadline()
        era = self._eras.get(epoch) or self._read_eras(deadline).get(epoch)
        return self._snapshot(deadline).positions.get(era, 0) if era else 0

    def epochs(self) -> list[Epoch]:
        """Return all epochs with their positions, in the order of their eras."""
        deadline = self._deadline()
        eras = self._read_eras(deadline)
        positions = self._snapshot(deadline).positions
        return [
            Epoch(era, epoch, positions.get(era, 0))
            for epoch, era in sorted(eras.items(), key=lambda item: item[1])
        ]

    def write(self, era: int, events: list[tuple[str, Event]], position: int) -> None:
        """Write (stream, event) in log order, then the position: all or nothing, idempotently.

        Events at or below the stored position are left out. Raises ValueError for an era that
        `open_epoch` never gave and for an event type without a shape.
        """
        if not self._may_write:
            raise StoreUnavailable(
                f"{self._connection.place} is open for reading; only the archive writes"
            )
        for _, event in events:
            if event.type not in DATA_OF:
                raise ValueError(f"{event.type[:40]!r} at offset {event.offset} is no event type")
        # A batch over many streams is thousands of requests. A slow cluster must get through them:
        # a repeat would begin anew. One that is silent is found out by any of them.
        deadline = Deadline(WRITE_S, self._settings.timeout_s)
        known = era in self._eras.values() or era in self._read_eras(deadline).values()
        if not known:
            raise ValueError(f"era {era} is not in {self._connection.place}; call open_epoch first")
        stored = self._snapshot(deadline).positions.get(era, 0)
        if position <= stored:
            return
        new = [item for item in events if item[1].offset > stored]
        self._connection.write(layout.rows_of(era, new, self._settings.ttl_s), deadline)
        # Only now, with every row acknowledged. Its write time is its value: it never goes back.
        self._connection.read([("put_position", (era, position, position))], deadline)

    # Comments

    def newest(
        self,
        stream: str,
        limit: int,
        before: Place | None = None,
        *,
        reader: Reader = ANYBODY,
        hidden: bool = False,
    ) -> list[StoredComment]:
        """Return up to `limit` comments, newest first, below `before`."""
        within = Range(high=_clamped(before) if before else _TOP)
        return self._page(stream, limit, within, None if hidden else reader, up=False)

    def oldest(
        self, stream: str, limit: int, after: Place, *, reader: Reader = ANYBODY
    ) -> list[StoredComment]:
        """Return up to `limit` comments above `after`, oldest first, as `reader` sees them."""
        return self._page(stream, limit, Range(_clamped(after)), reader, up=True)

    def window(
        self,
        stream: str,
        from_ms: int,
        to_ms: int,
        limit: int,
        after: Place | None = None,
        *,
        reader: Reader = ANYBODY,
    ) -> list[StoredComment]:
        """Return up to `limit` comments with from_ms <= ts < to_ms, in order, for `reader`."""
        times = _clamp(from_ms), _clamp(to_ms)
        within = Range(_clamped(after) if after else Range().low, times=times)
        return self._page(stream, limit, within, reader, up=True)

    def comment(self, stream: str, comment_id: bytes) -> StoredComment | None:
        """Return one comment, deleted or not, None when the stream has none of that id."""
        if len(comment_id) != 16:
            return None
        deadline = self._deadline()
        snapshot = self._snapshot(deadline)
        wanted = (stream, layout.minute_of(comment_id), [uuid.UUID(bytes=comment_id)])
        [found, clears] = self._connection.read(
            [("ids", wanted), ("clears", (stream, 10))], deadline
        )
        places = [Place(era, offset) for _, era, offset, _ in found if snapshot.holds(era, offset)]
        if not places:
            return None
        era, offset = max(places)
        rows = self._at(stream, [Place(era, offset)], deadline)
        marks = Marks(self._cleared(stream, clears, snapshot, deadline))
        self._mark(marks, stream, rows, snapshot, deadline, approvals=False)
        return next((StoredComment(*row, marks.gone(*row)) for row in rows), None)

    def by_user(
        self, stream: str, user_id: str, limit: int, before: Place | None = None
    ) -> list[StoredComment]:
        """Return up to `limit` comments of one user, newest first, deleted and hidden ones too."""
        deadline = self._deadline()
        snapshot = self._snapshot(deadline)
        marks = Marks(self._cleared(stream, None, snapshot, deadline))
        moderator = Reader(moderator=True)
        found: list[StoredComment] = []
        for places in self._places_of(stream, user_id, limit, before, snapshot, deadline):
            if len(found) >= limit:
                break
            rows = self._at(stream, places, deadline)
            self._mark(marks, stream, rows, snapshot, deadline)
            found += [
                StoredComment(era, event, marks.gone(era, event))
                for era, event in rows
                if marks.shows(event, moderator)
            ]
        return found[: max(limit, 0)]

    # Other events

    def standing(self, stream: str) -> list[Event]:
        """Return the events of STANDING_TYPES of a stream, over all eras, in order."""
        acts = self._acts(stream, STANDING_TYPES, Range(), up=True, size=ROWS_MAX)
        return [event for _, event in acts]

    def acts(
        self, stream: str, types: frozenset[str], limit: int, before: Place | None = None
    ) -> list[StoredEvent]:
        """Return up to `limit` events of some types, newest first, below `before`."""
        if limit <= 0:
            return []
        within = Range(high=_clamped(before) if before else _TOP)
        acts = self._acts(stream, types & DATA_OF.keys(), within, up=False, size=_size(limit))
        return [StoredEvent(*act) for act in itertools.islice(acts, min(limit, _MAX))]

    def events(self, stream: str, era: int, after: int, upto: int, limit: int) -> list[Event]:
        """Return up to `limit` events of every kind at offsets (after, upto], in order."""
        deadline = self._deadline()
        snapshot = self._snapshot(deadline)
        era = _clamp(era)
        within = Range(Place(era, _clamp(after)), Place(era, min(_clamp(upto), _MAX - 1) + 1))
        found: list[Event] = []
        shelf = _history(stream)
        for rows in self._walk(shelf, within, snapshot, deadline, up=True, size=_size(limit)):
            if len(found) >= limit:
                break
            found += [self._event(*row)[1] for row in rows]
        return found[: max(limit, 0)]

    # Figures

    def stats(
        self, stream: str, from_ms: int, to_ms: int, bucket_ms: int, *, reader: Reader = ANYBODY
    ) -> list[Bucket]:
        """Return the buckets of [from_ms, to_ms) in which something happened, in order."""
        bucket_ms = max(bucket_ms, 1)
        within = Range(times=(_clamp(from_ms), _clamp(to_ms)))
        counts: dict[int, int] = {}
        authors: dict[int, set[str]] = {}
        for _, event, _ in self._comments(stream, within, reader, up=True, size=ROWS_MAX):
            n = (event.ts - from_ms) // bucket_ms
            counts[n] = counts.get(n, 0) + 1
            authors.setdefault(n, set()).add(event.data.user.id)
        deletions: dict[int, int] = {}
        types = frozenset({"COMMENT_DELETED"})
        for _, event in self._acts(stream, types, within, up=True, size=ROWS_MAX):
            n = (event.ts - from_ms) // bucket_ms
            deletions[n] = deletions.get(n, 0) + 1
        return [
            Bucket(
                from_ms + n * bucket_ms,
                counts.get(n, 0),
                len(authors.get(n, ())),
                deletions.get(n, 0),
            )
            for n in sorted(counts.keys() | deletions.keys())
        ]

    def count(self, stream: str) -> int:
        """Return how many comments of a stream are visible; reads them all."""
        return sum(1 for _ in self._comments(stream, Range(), ANYBODY, up=True, size=ROWS_MAX))

    def streams(self) -> list[str]:
        """Return the names of all streams with history; goes through the whole cluster."""
        found = self._connection.read([("streams", ())], self._deadline())[0]
        return sorted(stream for (stream,) in found)

    def close(self) -> None:
        """Close the connections; calls under way end with StoreUnavailable."""
        self._connection.close()

    # How it is read

    def _deadline(self) -> Deadline:
        return Deadline(self._settings.timeout_s)

    def _read_eras(self, deadline: Deadline) -> dict[str, int]:
        rows = self._connection.read([("eras", ())], deadline)[0]
        self._eras = {epoch: era for era, epoch in rows}
        return self._eras

    def _snapshot(self, deadline: Deadline) -> Snapshot:
        return Snapshot(dict(self._connection.read([("positions", ())], deadline)[0]))

    def _page(
        self, stream: str, limit: int, within: Range, reader: Reader | None, *, up: bool
    ) -> list[StoredComment]:
        if limit <= 0:
            return []
        comments = self._comments(stream, within, reader, up=up, size=_size(limit))
        return list(itertools.islice(comments, min(limit, _MAX)))

    def _comments(
        self, stream: str, within: Range, reader: Reader | None, *, up: bool, size: int
    ) -> Iterator[StoredComment]:
        """Yield what `reader` sees, all there is for None, in order."""
        deadline = self._deadline()
        snapshot = self._snapshot(deadline)
        shelf = _history(stream)
        [clears, listed] = self._connection.read(
            [("clears", (stream, 10)), _list(shelf, within, up)], deadline
        )
        cleared = self._cleared(stream, clears, snapshot, deadline)
        first_page: Rows | None = listed
        if reader is not None and cleared > within.low:
            within = within._replace(low=cleared)
            first_page = None if up else listed
        for rows in self._walk(shelf, within, snapshot, deadline, up, size, first_page):
            comments = [self._event(*row) for row in rows if row[2] in layout.COMMENT_TYPES]
            marks = Marks(cleared)
            self._mark(marks, stream, comments, snapshot, deadline, approvals=reader is not None)
            for era, event in comments:
                gone = marks.gone(era, event)
                if reader is None or (gone is None and marks.shows(event, reader)):
                    yield StoredComment(era, event, gone)

    def _acts(
        self, stream: str, types: Iterable[str], within: Range, *, up: bool, size: int
    ) -> Iterator[tuple[int, Event]]:
        """Yield the events of some types with their eras, in order; asks all types at once."""
        deadline = self._deadline()
        snapshot = self._snapshot(deadline)
        shelves = [Shelf(stream, type_, "acts", layout.ACT_BITS) for type_ in sorted(types)]
        lists = self._connection.read([_list(shelf, within, up) for shelf in shelves], deadline)

        def of(shelf: Shelf, listed: Rows) -> Iterator[tuple[int, Event]]:
            for rows in self._walk(shelf, within, snapshot, deadline, up, size, listed):
                for era, offset, *rest in rows:
                    yield era, decode(self._connection.place, offset, shelf.kind, *rest)

        runs = [of(*pair) for pair in zip(shelves, lists, strict=True) if pair[1]]
        yield from heapq.merge(*runs, key=lambda act: Place(act[0], act[1].offset), reverse=not up)

    def _walk(
        self,
        shelf: Shelf,
        within: Range,
        snapshot: Snapshot,
        deadline: Deadline,
        up: bool,
        size: int,
        listed: Rows | None = None,
    ) -> Iterator[list[Placed]]:
        """Yield rows in order, in portions; `listed` is the first page of the bucket list.

        Begins with one bucket, and asks more at once each time that was not enough: a dense stream
        costs one request, a thin one some.
        """
        wave = 1
        while True:
            page = (
                self._connection.read([_list(shelf, within, up)], deadline)[0]
                if listed is None
                else listed
            )
            listed = None
            lowest = _first(within.low, shelf.bits)  # a clear found since the list was read
            entries = [
                (era, bucket)
                for era, bucket, first_ts, last_ts in page
                if (era, bucket) >= lowest
                and era in snapshot.positions
                and within.overlaps(first_ts, last_ts)
            ]
            while entries:
                chunk, entries = entries[:wave], entries[wave:]
                wave = min(wave * 2, WAVE_MAX)
                asks = [_Ask(shelf, within, snapshot, era, bucket) for era, bucket in chunk]
                answers = self._connection.read([ask.request(up, size) for ask in asks], deadline)
                found: list[Placed] = []
                for ask, rows in zip(asks, answers, strict=True):
                    found += [(ask.era, *row) for row in rows]
                    while len(rows) == size:
                        yield found
                        again = ask.request(up, size, beyond=rows[-1][0])
                        rows = self._connection.read([again], deadline)[0]
                        found = [(ask.era, *row) for row in rows]
                yield found
            if len(page) < LIST_PAGE:
                return
            era, bucket = page[-1][:2]
            if up:
                within = within._replace(low=Place(era, ((bucket + 1) << shelf.bits) - 1))
            else:
                within = within._replace(high=Place(era, bucket << shelf.bits))

    def _places_of(
        self,
        stream: str,
        user_id: str,
        limit: int,
        before: Place | None,
        snapshot: Snapshot,
        deadline: Deadline,
    ) -> Iterator[list[Place]]:
        """Yield where a user's comments stand, newest first, in portions."""
        shelf = Shelf(stream, layout.COMMENTS, "user", layout.USER_BITS)
        high = _clamped(before) if before else _TOP
        slot, size = layout.slot_of(user_id), _size(limit)
        wave = 1
        while True:
            page = self._connection.read([_list(shelf, Range(high=high), False)], deadline)[0]
            spans = [(era, span) for era, span, *_ in page if era in snapshot.positions]
            while spans:
                chunk, spans = spans[:wave], spans[wave:]
                wave = min(wave * 2, WAVE_MAX)
                tops = [
                    min(snapshot.positions[era] + 1, high.offset if era == high.era else _MAX)
                    for era, _ in chunk
                ]
                found: list[Place] = []
                while chunk:
                    answers = self._connection.read(
                        [
                            ("user_down", (stream, slot, era, span, user_id, top, size))
                            for (era, span), top in zip(chunk, tops, strict=True)
                        ],
                        deadline,
                    )
                    # In order up to the first span that has more than it gave.
                    for n, ((era, _), rows) in enumerate(zip(chunk, answers, strict=True)):
                        found += [Place(era, offset) for (offset,) in rows]
                        if len(rows) == size:
                            yield found
                            found = []
                            chunk, tops = chunk[n:], [rows[-1][0], *tops[n + 1 :]]
                            break
                    else:
                        chunk = []
                yield found
            if len(page) < LIST_PAGE:
                return
            era, span = page[-1][:2]
            high = Place(era, span << layout.USER_BITS)

    def _at(self, stream: str, places: list[Place], deadline: Deadline) -> list[tuple[int, Event]]:
        """Return the events at some places, in the order of the places."""
        keys: dict[tuple[int, int], list[int]] = {}
        for era, offset in places:
            keys.setdefault((era, layout.bucket_of(offset)), []).append(offset)
        requests: list[tuple[int, Request]] = [
            (era, ("history_at", (stream, era, bucket, portion)))
            for (era, bucket), offsets in keys.items()
            for portion in _portions(offsets)
        ]
        answers = self._connection.read([request for _, request in requests], deadline)
        found = {
            Place(era, row[0]): self._event(era, *row)
            for (era, _), rows in zip(requests, answers, strict=True)
            for row in rows
        }
        return [found[place] for place in places if place in found]  # the others have expired

    def _mark(
        self,
        marks: Marks,
        stream: str,
        comments: list[tuple[int, Event]],
        snapshot: Snapshot,
        deadline: Deadline,
        *,
        approvals: bool = True,
    ) -> None:
        """Find the last words on some comments and their authors."""
        if not comments:
            return
        days = _grouped(layout.day_of, (event.data.id for _, event in comments))
        users = sorted({event.data.user.id for _, event in comments})
        hidden = (event.data.id for _, event in comments if approvals and event.visibility)
        minutes = _grouped(layout.minute_of, hidden)
        kinds: list[tuple[Callable[[Rows], None], Request]] = []

        def verdicts(rows: Rows) -> None:
            for comment_id, era, offset, deleted in rows:
                if snapshot.holds(era, offset):
                    marks.say(comment_id.bytes, Place(era, offset), deleted)

        def removals(rows: Rows) -> None:
            for user_id, era, offset in rows:
                if snapshot.holds(era, offset):
                    marks.remove(user_id, Place(era, offset))

        def approved(rows: Rows) -> None:
            for comment_id, era, offset, is_approved in rows:
                if is_approved and snapshot.holds(era, offset):
                    marks.approved.add(comment_id.bytes)

        for day, found in days.items():
            kinds += [(verdicts, ("verdicts", (stream, day, part))) for part in _portions(found)]
        kinds += [(removals, ("removals", (stream, part))) for part in _portions(users)]
        for minute, found in minutes.items():
            kinds += [(approved, ("ids", (stream, minute, part))) for part in _portions(found)]
        answers = self._connection.read([request for _, request in kinds], deadline)
        for (take, _), rows in zip(kinds, answers, strict=True):
            take(rows)

    def _cleared(
        self, stream: str, clears: Rows | None, snapshot: Snapshot, deadline: Deadline
    ) -> Place:
        """Return the last clear that counts; `clears` are the newest ten."""
        if clears is None:
            clears = self._connection.read([("clears", (stream, 10))], deadline)[0]
        found = [Place(*row) for row in clears if snapshot.holds(*row)]
        if not found and len(clears) == 10:  # all of them in a batch that is being written
            clears = self._connection.read([("clears", (stream, 10_000))], deadline)[0]
            found = [Place(*row) for row in clears if snapshot.holds(*row)]
        return max(found, default=NOWHERE)

    def _event(
        self, era: int, offset: int, type_: str, ts: int, actor: str, mask: int, visibility: int,
        data: bytes,
    ) -> tuple[int, Event]:  # fmt: skip
        return era, decode(self._connection.place, offset, type_, ts, actor, mask, visibility, data)


class _Ask(NamedTuple):
    """One bucket within a range and a snapshot."""

    shelf: Shelf
    within: Range
    snapshot: Snapshot
    era: int
    bucket: int

    def request(self, up: bool, size: int, beyond: int | None = None) -> Request:
        """Return the request for its rows, from the one at `beyond` on."""
        within, era = self.within, self.era
        low = within.low.offset if era == within.low.era else -1
        high = within.high.offset if era == within.high.era else _MAX
        high = min(high, self.snapshot.positions[era] + 1)
        if beyond is not None:
            low, high = (beyond, high) if up or within.times else (low, beyond)
        bounds = (*self.shelf.key(era, self.bucket), low, high)
        if within.times is not None:
            return f"{self.shelf.table}_timed", (*bounds, *within.times, size)
        return f"{self.shelf.table}_{'up' if up else 'down'}", (*bounds, size)


def _history(stream: str) -> Shelf:
    return Shelf(stream, layout.HISTORY, "history", layout.BUCKET_BITS)


def _list(shelf: Shelf, within: Range, up: bool) -> Request:
    """Return the request for a page of a bucket list."""
    era, high = within.high
    bounds = (*_first(within.low, shelf.bits), era, high - 1 >> shelf.bits)
    return f"buckets_{'up' if up else 'down'}", (shelf.stream, shelf.kind, *bounds, LIST_PAGE)


def _first(low: Place, bits: int) -> tuple[int, int]:
    """Return the era and number of the first bucket that has a place above `low`."""
    return low.era, min(low.offset, _MAX - 1) + 1 >> bits


def _grouped(
    partition: Callable[[bytes], int], found: Iterable[bytes]
) -> dict[int, list[uuid.UUID]]:
    groups: dict[int, list[uuid.UUID]] = {}
    for comment_id in found:
        groups.setdefault(partition(comment_id), []).append(uuid.UUID(bytes=comment_id))
    return groups


def _portions(found: list[Any]) -> Iterator[list[Any]]:
    for first in range(0, len(found), IN_MAX):
        yield found[first : first + IN_MAX]


def _size(limit: int) -> int:
    """Rows of one request: somewhat more than asked for, since some are not shown."""
    return min(max(limit + limit // 4, ROWS_MIN), ROWS_MAX)


def _clamp(value: int) -> int:
    """A cursor made up by a client may hold what no 64-bit column can."""
    return max(-_MAX, min(value, _MAX))


def _clamped(place: Place) -> Place:
    return Place(_clamp(place.era), _clamp(place.offset))
