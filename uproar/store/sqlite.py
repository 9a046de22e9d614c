"""STORE in one SQLite file: WAL, one writer, any number of readers in any number of processes.

What a comment *is* and what became of it are kept apart. `comments` holds rows as the log gave
them and is only ever inserted into. Deletions, removed users and clears are marks of their own that
move forward only, and a read lays them over the rows. So writing a comment again can't touch its
deletion, a deletion may be there before its comment, and the order within a batch does not matter.

Files: `{path}`, and beside it `-wal` and `-shm` while somebody has it open. Readers open it with
`mode=ro`. Connections are made at the first call, never shared between two calls at a time, and
must not cross a fork.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

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
from uproar.store.encoding import decode, encode

BUSY_S: Final = 2.0  # waiting for a lock: readers need one only while a killed writer's WAL heals
READ_S: Final = 5.0  # one read; a page costs 0.1 ms, counting a million comments 0.2 s
IDLE_READERS: Final = 16  # connections kept for the next call; gevent's pool has 10 threads
BUCKET_BITS: Final = 16  # offsets of a bucket
WAL_KEEP_BYTES: Final = 64 << 20  # the WAL is cut back to this after a burst
STREAM_IDS: Final = 10_000  # names the writer remembers

_MAX: Final = (1 << 63) - 1
_CHECK_OPS: Final = 100_000  # virtual machine steps between two looks at the clock: about 5 ms

_STANDING: Final = "(" + ", ".join(f"'{name}'" for name in sorted(STANDING_TYPES)) + ")"

# The schema, one entry a version; `user_version` counts how many were applied. Only ever append.
_MIGRATIONS: Final[list[tuple[str, ...]]] = [
    (
        """CREATE TABLE epochs (
            epoch TEXT PRIMARY KEY, era INTEGER NOT NULL UNIQUE, position INTEGER NOT NULL
        ) WITHOUT ROWID""",
        # Comments below the cleared place are gone; eras begin at 1, so (0, 0) clears nothing.
        """CREATE TABLE streams (
            id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
            cleared_era INTEGER NOT NULL DEFAULT 0, cleared_offset INTEGER NOT NULL DEFAULT 0
        )""",
        """CREATE TABLE comments (
            stream INTEGER NOT NULL, era INTEGER NOT NULL, offset INTEGER NOT NULL,
            comment_id BLOB NOT NULL, user_id TEXT NOT NULL, ts INTEGER NOT NULL,
            actor TEXT NOT NULL, mask INTEGER NOT NULL, visibility INTEGER NOT NULL,
            approved INTEGER NOT NULL, data BLOB NOT NULL,
            PRIMARY KEY (stream, era, offset)
        ) WITHOUT ROWID""",
        "CREATE INDEX comments_id ON comments (stream, comment_id)",
        "CREATE INDEX comments_user ON comments (stream, user_id, era, offset)",
        # Every event that is no COMMENT and no COMMENT_APPROVED: that one is a comment's new place.
        """CREATE TABLE events (
            stream INTEGER NOT NULL, era INTEGER NOT NULL, offset INTEGER NOT NULL,
            type TEXT NOT NULL, ts INTEGER NOT NULL, actor TEXT NOT NULL, mask INTEGER NOT NULL,
            visibility INTEGER NOT NULL, data BLOB NOT NULL,
            PRIMARY KEY (stream, era, offset)
        ) WITHOUT ROWID""",
        "CREATE INDEX events_type ON events (stream, type, era, offset)",
        # The last word on a comment: deleted (1) or restored (0), and where that was said.
        """CREATE TABLE verdicts (
            stream INTEGER NOT NULL, comment_id BLOB NOT NULL,
            era INTEGER NOT NULL, offset INTEGER NOT NULL, deleted INTEGER NOT NULL,
            PRIMARY KEY (stream, comment_id)
        ) WITHOUT ROWID""",
        # The last USER_REMOVED of a user: comments at lower places are gone.
        """CREATE TABLE removals (
            stream INTEGER NOT NULL, user_id TEXT NOT NULL,
            era INTEGER NOT NULL, offset INTEGER NOT NULL,
            PRIMARY KEY (stream, user_id)
        ) WITHOUT ROWID""",
        """CREATE TABLE buckets (
            stream INTEGER NOT NULL, era INTEGER NOT NULL, bucket INTEGER NOT NULL,
            first_ts INTEGER NOT NULL, last_ts INTEGER NOT NULL,
            PRIMARY KEY (stream, era, bucket)
        ) WITHOUT ROWID""",
    ),
]

# A restored comment counts from its restoration: an earlier removal of its author is over for it.
# A clear is final, so that reading stops at it.
_REMOVED: Final = "(r.era, r.offset) > (coalesce(v.era, c.era), coalesce(v.offset, c.offset))"
_CLEARED: Final = "(c.era, c.offset) < (s.cleared_era, s.cleared_offset)"
_GONE: Final = f"""CASE WHEN v.deleted THEN v.offset WHEN {_REMOVED} THEN r.offset
    WHEN {_CLEARED} THEN s.cleared_offset END"""
_COLUMNS: Final = f"c.era, c.offset, c.ts, c.actor, c.mask, c.visibility, c.data, {_GONE}"
_MARKS: Final = """
    LEFT JOIN verdicts v ON v.stream = c.stream AND v.comment_id = c.comment_id
    LEFT JOIN removals r ON r.stream = c.stream AND r.user_id = c.user_id"""

# Era by era, newest or oldest first, so that offsets are bounded on both sides by the index. With
# row values, (era, offset) < (?, ?), SQLite bounds one side only and reads all that was cleared
# (8 ms for 60,000 comments instead of 0.1). `+` keeps the bounds of e.era from being applied to
# c.era as well, which spoils the plan in the same way.
_ERAS: Final = f"""FROM streams s CROSS JOIN epochs e
    CROSS JOIN comments c ON c.stream = s.id AND c.era = e.era {_MARKS}"""
_FROM_HERE: Final = "CASE e.era WHEN :era THEN :offset ELSE -1 END"
_FROM_CLEAR: Final = "CASE e.era WHEN s.cleared_era THEN s.cleared_offset ELSE -1 END"
_BELOW: Final = (
    f"""+e.era <= :era AND c.offset < CASE e.era WHEN :era THEN :offset ELSE {_MAX} END"""
)
_ABOVE: Final = f"""+e.era >= max(:era, s.cleared_era)
    AND c.offset > max({_FROM_HERE}, {_FROM_CLEAR})"""
_UNCLEARED: Final = f"+e.era >= s.cleared_era AND c.offset > {_FROM_CLEAR}"
# Held and shadowed comments are for their author and for moderators; an approved one has a second
# row, and its first is for nobody.
_UNAPPROVED: Final = """NOT EXISTS (SELECT 1 FROM comments a INDEXED BY comments_id
    WHERE a.stream = c.stream AND a.comment_id = c.comment_id AND a.approved)"""
_FOR: Final = f"""(c.visibility = 0
    OR (:moderator OR c.user_id = :reader) AND {_UNAPPROVED})"""
_SHOWN: Final = f"{_FOR} AND v.deleted IS NOT 1 AND ({_REMOVED}) IS NOT 1"

_NEWEST_HIDDEN: Final = f"""SELECT {_COLUMNS} {_ERAS} WHERE s.name = :stream AND {_BELOW}
    ORDER BY e.era DESC, c.offset DESC LIMIT :limit"""
_NEWEST: Final = f"""SELECT {_COLUMNS} {_ERAS}
    WHERE s.name = :stream AND {_BELOW} AND {_UNCLEARED} AND {_SHOWN}
    ORDER BY e.era DESC, c.offset DESC LIMIT :limit"""
_OLDEST: Final = f"""SELECT {_COLUMNS} {_ERAS}
    WHERE s.name = :stream AND {_ABOVE} AND {_SHOWN}
    ORDER BY e.era, c.offset LIMIT :limit"""
_WINDOW: Final = f"""SELECT {_COLUMNS} FROM streams s
    CROSS JOIN buckets e ON e.stream = s.id
    CROSS JOIN comments c ON c.stream = s.id AND c.era = e.era
        AND c.offset < ((e.bucket + 1) << {BUCKET_BITS}) {_MARKS}
    WHERE s.name = :stream AND e.last_ts >= :from_ms AND e.first_ts < :to_ms
        AND +e.era >= max(:era, s.cleared_era) AND c.offset > max((e.bucket << {BUCKET_BITS}) - 1,
            {_FROM_HERE}, {_FROM_CLEAR})
        AND c.ts >= :from_ms AND c.ts < :to_ms AND {_SHOWN}
    ORDER BY e.era, e.bucket, c.offset LIMIT :limit"""
_BY_ID: Final = f"""SELECT {_COLUMNS}
    FROM streams s CROSS JOIN comments c INDEXED BY comments_id ON c.stream = s.id {_MARKS}
    WHERE s.name = :stream AND c.comment_id = :comment_id
    ORDER BY c.era DESC, c.offset DESC LIMIT 1"""
_BY_USER: Final = f"""SELECT {_COLUMNS} FROM streams s CROSS JOIN epochs e
    CROSS JOIN comments c INDEXED BY comments_user
        ON c.stream = s.id AND c.user_id = :user AND c.era = e.era {_MARKS}
    WHERE s.name = :stream AND {_BELOW} AND (c.visibility = 0 OR {_UNAPPROVED})
    ORDER BY e.era DESC, c.offset DESC LIMIT :limit"""
_STANDING_EVENTS: Final = f"""
    SELECT offset, type, ts, actor, mask, visibility, data
    FROM events INDEXED BY events_type
    WHERE stream = (SELECT id FROM streams WHERE name = :stream) AND type IN {_STANDING}
    ORDER BY era, offset"""
_COMMENTS_BY_TIME: Final = f"""
    SELECT (c.ts - :from_ms) / :bucket_ms, count(*), count(DISTINCT c.user_id) FROM streams s
    CROSS JOIN buckets e ON e.stream = s.id
    CROSS JOIN comments c ON c.stream = s.id AND c.era = e.era
        AND c.offset < ((e.bucket + 1) << {BUCKET_BITS}) {_MARKS}
    WHERE s.name = :stream AND e.last_ts >= :from_ms AND e.first_ts < :to_ms
        AND +e.era >= s.cleared_era
        AND c.offset > max((e.bucket << {BUCKET_BITS}) - 1, {_FROM_CLEAR})
        AND c.ts >= :from_ms AND c.ts < :to_ms AND {_SHOWN} GROUP BY 1"""
_DELETIONS_BY_TIME: Final = """
    SELECT (ts - :from_ms) / :bucket_ms, count(*) FROM events INDEXED BY events_type
    WHERE stream = (SELECT id FROM streams WHERE name = :stream) AND type = 'COMMENT_DELETED'
        AND ts >= :from_ms AND ts < :to_ms GROUP BY 1"""
_COUNT: Final = f"""SELECT count(*) {_ERAS}
    WHERE s.name = :stream AND {_UNCLEARED} AND {_SHOWN}"""
_EVENTS: Final = """
    SELECT offset, CASE WHEN approved THEN 'COMMENT_APPROVED' ELSE 'COMMENT' END, ts, actor, mask,
        visibility, data FROM comments
    WHERE stream = (SELECT id FROM streams WHERE name = :stream)
        AND era = :era AND offset > :after AND offset <= :upto
    UNION ALL
    SELECT offset, type, ts, actor, mask, visibility, data FROM events
    WHERE stream = (SELECT id FROM streams WHERE name = :stream)
        AND era = :era AND offset > :after AND offset <= :upto
    ORDER BY 1 LIMIT :limit"""

_PUT_COMMENT: Final = """INSERT INTO comments VALUES (?,?,?,?,?,?,?,?,?,?,?)
    ON CONFLICT DO NOTHING"""
_PUT_EVENT: Final = "INSERT INTO events VALUES (?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING"
_PUT_VERDICT: Final = """INSERT INTO verdicts VALUES (?,?,?,?,?) ON CONFLICT DO UPDATE
    SET era = excluded.era, offset = excluded.offset, deleted = excluded.deleted
    WHERE (excluded.era, excluded.offset) > (era, offset)"""
_PUT_REMOVAL: Final = """INSERT INTO removals VALUES (?,?,?,?) ON CONFLICT DO UPDATE
    SET era = excluded.era, offset = excluded.offset
    WHERE (excluded.era, excluded.offset) > (era, offset)"""
_PUT_CLEAR: Final = """UPDATE streams SET cleared_era = ?1, cleared_offset = ?2
    WHERE id = ?3 AND (?1, ?2) > (cleared_era, cleared_offset)"""
_PUT_BUCKET: Final = """INSERT INTO buckets VALUES (?,?,?,?,?) ON CONFLICT DO UPDATE
    SET first_ts = min(first_ts, excluded.first_ts), last_ts = max(last_ts, excluded.last_ts)"""


class SqliteStore:
    """The store as one file. Safe to call from several threads; every call is one transaction.

    The archive opens it with `writer=True` and makes the file. Before that, and with a file of
    another schema version, readers get StoreUnavailable: an empty history would be a guess.
    """

    blocks = True

    def __init__(self, path: Path, *, writer: bool = False) -> None:
        self._path = path
        self._may_write = writer
        self._closed = False
        self._idle: deque[sqlite3.Connection] = deque()  # read connections nobody uses now
        self._lock = threading.Lock()  # guards what follows
        self._writer: sqlite3.Connection | None = None
        self._stream_ids: dict[str, int] = {}

    def open_epoch(self, epoch: str) -> int:
        """Return the era of an epoch; only the writer makes a new one (the highest)."""
        if not self._may_write:
            rows = self._read("SELECT era FROM epochs WHERE epoch = :epoch", {"epoch": epoch})
            if not rows:
                raise StoreUnavailable(
                    f"{self._path}: epoch {epoch} is not known yet; the archive opens it"
                )
            return self._int(rows[0])
        with self._writing() as db:
            db.execute(
                "INSERT INTO epochs SELECT ?, coalesce(max(era), 0) + 1, 0 FROM epochs WHERE true"
                " ON CONFLICT DO NOTHING",
                (epoch,),
            )
            row = db.execute("SELECT era FROM epochs WHERE epoch = ?", (epoch,)).fetchone()
            return self._int(row)

    def position(self, epoch: str) -> int:
        """Return the last offset archived of an epoch, 0 for none."""
        rows = self._read("SELECT position FROM epochs WHERE epoch = :epoch", {"epoch": epoch})
        return self._int(rows[0]) if rows else 0

    def epochs(self) -> list[Epoch]:
        """Return all epochs with their positions, in the order of their eras."""
        if self._may_write:
            with self._writing():
                pass  # makes the file where there is none
        rows = self._read("SELECT era, epoch, position FROM epochs ORDER BY era", {})
        return [Epoch(*row) for row in rows]

    def streams(self) -> list[str]:
        """Return the names of all streams with history, sorted."""
        return [name for (name,) in self._read("SELECT name FROM streams ORDER BY name", {})]

    def write(self, era: int, events: list[tuple[str, Event]], position: int) -> None:
        """Write (stream, event) in log order and the position, all or nothing, idempotently.

        Events at or below the stored position are left out. Raises ValueError for an era that
        `open_epoch` never gave and for an event type without a shape.
        """
        with self._writing() as db:
            row = db.execute("SELECT position FROM epochs WHERE era = ?", (era,)).fetchone()
            if row is None:
                raise ValueError(f"era {era} is not in {self._path}; call open_epoch first")
            stored = self._int(row)
            if position > stored:
                self._insert(db, era, [item for item in events if item[1].offset > stored])
                db.execute("UPDATE epochs SET position = ? WHERE era = ?", (position, era))

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
        era, offset = before or (_MAX, _MAX)
        values = {"stream": stream, "era": era, "offset": offset, "limit": max(limit, 0)}
        if hidden:
            return self._comments(_NEWEST_HIDDEN, values)
        return self._comments(_NEWEST, {**values, **reader._asdict()})

    def oldest(
        self, stream: str, limit: int, after: Place, *, reader: Reader = ANYBODY
    ) -> list[StoredComment]:
        """Return up to `limit` comments above `after`, oldest first, as `reader` sees them."""
        era, offset = after
        values = {"stream": stream, "era": era, "offset": offset, "limit": max(limit, 0)}
        return self._comments(_OLDEST, {**values, **reader._asdict()})

    def by_user(
        self, stream: str, user_id: str, limit: int, before: Place | None = None
    ) -> list[StoredComment]:
        """Return up to `limit` comments of one user, newest first, deleted and hidden ones too."""
        era, offset = before or (_MAX, _MAX)
        values = {"stream": stream, "user": user_id, "era": era, "offset": offset}
        return self._comments(_BY_USER, {**values, "limit": max(limit, 0)})

    def standing(self, stream: str) -> list[Event]:
        """Return the events of STANDING_TYPES of a stream, over all eras, in order."""
        return [self._event(*row) for row in self._read(_STANDING_EVENTS, {"stream": stream})]

    def acts(
        self, stream: str, types: frozenset[str], limit: int, before: Place | None = None
    ) -> list[StoredEvent]:
        """Return up to `limit` events of some types, newest first, below `before`."""
        era, offset = before or (_MAX, _MAX)
        names = ", ".join(f"'{name}'" for name in sorted(types & DATA_OF.keys()))
        sql = f"""SELECT era, offset, type, ts, actor, mask, visibility, data FROM events
            WHERE stream = (SELECT id FROM streams WHERE name = :stream) AND type IN ({names})
            AND (era, offset) < (:era, :offset) ORDER BY era DESC, offset DESC LIMIT :limit"""
        values = {"stream": stream, "era": era, "offset": offset, "limit": max(limit, 0)}
        return [StoredEvent(era, self._event(*row)) for era, *row in self._read(sql, values)]

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
        era, offset = after or (0, 0)
        values = {
            "stream": stream, "era": era, "offset": offset,
            "from_ms": from_ms, "to_ms": to_ms, "limit": max(limit, 0), **reader._asdict(),
        }  # fmt: skip
        return self._comments(_WINDOW, values)

    def events(self, stream: str, era: int, after: int, upto: int, limit: int) -> list[Event]:
        """Return up to `limit` events of every kind at offsets (after, upto], in order."""
        values = {
            "stream": stream, "era": era, "after": after, "upto": upto, "limit": max(limit, 0)
        }  # fmt: skip
        return [self._event(*row) for row in self._read(_EVENTS, values)]

    def comment(self, stream: str, comment_id: bytes) -> StoredComment | None:
        """Return one comment, deleted or not, None when the stream has none of that id."""
        found = self._comments(_BY_ID, {"stream": stream, "comment_id": comment_id})
        return found[0] if found else None

    def stats(
        self, stream: str, from_ms: int, to_ms: int, bucket_ms: int, *, reader: Reader = ANYBODY
    ) -> list[Bucket]:
        """Return the buckets of [from_ms, to_ms) in which something happened, in order."""
        values = {
            "stream": stream, "from_ms": from_ms, "to_ms": to_ms, "bucket_ms": max(bucket_ms, 1)
        }  # fmt: skip
        comments = {
            n: (count, authors)
            for n, count, authors in self._read(_COMMENTS_BY_TIME, {**values, **reader._asdict()})
        }
        deletions = dict(self._read(_DELETIONS_BY_TIME, values))
        return [
            Bucket(from_ms + n * bucket_ms, *comments.get(n, (0, 0)), deletions.get(n, 0))
            for n in sorted(comments.keys() | deletions.keys())
        ]

    def count(self, stream: str) -> int:
        """Return how many comments of a stream are visible; reads them all (0.2 s a million)."""
        return self._int(self._read(_COUNT, {"stream": stream, **ANYBODY._asdict()})[0])

    def close(self) -> None:
        """Close the connections; calls under way in other threads end with their own."""
        self._closed = True
        with self._lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
        while self._idle:
            self._idle.pop().close()

    # Reading

    def _comments(self, sql: str, values: dict[str, Any]) -> list[StoredComment]:
        return [
            StoredComment(
                era, self._event(offset, "COMMENT", ts, actor, mask, visibility, data), gone
            )
            for era, offset, ts, actor, mask, visibility, data, gone in self._read(sql, values)
        ]

    def _event(
        self, offset: int, type_: str, ts: int, actor: str, mask: int, visibility: int, data: bytes
    ) -> Event:
        return decode(self._path, offset, type_, ts, actor, mask, visibility, data)

    def _read(self, sql: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Run one SELECT on a connection of its own; it ends after READ_S."""
        for name, value in values.items():
            # A cursor made up by a client may hold what no 64-bit column can.
            if isinstance(value, int) and not -_MAX <= value <= _MAX:
                values[name] = _MAX if value > 0 else -_MAX
        try:
            db = self._idle.pop()
        except IndexError:
            db = self._open(write=False)
        deadline = time.monotonic() + READ_S
        try:
            db.set_progress_handler(lambda: time.monotonic() > deadline, _CHECK_OPS)
            rows = db.execute(sql, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            db.close()
            raise self._unavailable(error) from error
        except BaseException:
            db.close()
            raise
        if self._closed or len(self._idle) >= IDLE_READERS:
            db.close()
        else:
            self._idle.append(db)
        return rows

    # Writing

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One write transaction; after any error the connection is opened anew."""
        if not self._may_write:
            raise StoreUnavailable(f"{self._path} is open for reading; only the archive writes")
        with self._lock:
            if self._writer is None:
                self._writer = self._open(write=True)
            db = self._writer
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except BaseException as error:
                self._writer = None
                self._stream_ids.clear()  # the transaction may have made some of them
                db.close()  # rolls back
                if isinstance(error, (sqlite3.Error, UnicodeDecodeError)):
                    raise self._unavailable(error) from error
                raise

    def _insert(self, db: sqlite3.Connection, era: int, events: list[tuple[str, Event]]) -> None:
        comments: list[tuple[Any, ...]] = []
        others: list[tuple[Any, ...]] = []
        verdicts: list[tuple[Any, ...]] = []
        removals: list[tuple[Any, ...]] = []
        clears: list[tuple[Any, ...]] = []
        buckets: dict[tuple[int, int], tuple[int, int]] = {}
        known = self._stream_ids
        for name, (offset, type_, ts, actor, mask, visibility, data) in events:
            stream = known.get(name) or self._stream_id(db, name)
            blob = encode(data)
            if type_ in ("COMMENT", "COMMENT_APPROVED"):
                comments.append(
                    (stream, era, offset, data.id, data.user.id, ts, actor, mask,
                     int(visibility), type_ == "COMMENT_APPROVED", blob)
                )  # fmt: skip
                key = (stream, offset >> BUCKET_BITS)
                first, last = buckets.get(key, (ts, ts))
                buckets[key] = (min(first, ts), max(last, ts))
                continue
            if type_ not in DATA_OF:
                raise ValueError(f"{type_[:40]!r} at offset {offset} is no event type")
            others.append((stream, era, offset, type_, ts, actor, mask, int(visibility), blob))
            if type_ == "COMMENT_DELETED":
                verdicts.append((stream, data.comment_id, era, offset, 1))
            elif type_ == "COMMENT_RESTORED":
                verdicts.append((stream, data.id, era, offset, 0))
            elif type_ == "USER_REMOVED":
                removals.append((stream, data.user_id, era, offset))
            elif type_ == "CLEARED":
                clears.append((era, offset, stream))
        db.executemany(_PUT_COMMENT, comments)
        db.executemany(
            _PUT_BUCKET,
            [(stream, era, bucket, *span) for (stream, bucket), span in buckets.items()],
        )
        if others:
            db.executemany(_PUT_EVENT, others)
            db.executemany(_PUT_VERDICT, verdicts)
            db.executemany(_PUT_REMOVAL, removals)
            db.executemany(_PUT_CLEAR, clears)

    def _stream_id(self, db: sqlite3.Connection, name: str) -> int:
        db.execute("INSERT INTO streams (name) VALUES (?) ON CONFLICT DO NOTHING", (name,))
        row = db.execute("SELECT id FROM streams WHERE name = ?", (name,)).fetchone()
        if len(self._stream_ids) >= STREAM_IDS:
            self._stream_ids.clear()
        self._stream_ids[name] = self._int(row)
        return self._stream_ids[name]

    # Opening

    def _open(self, *, write: bool) -> sqlite3.Connection:
        if self._closed:
            raise StoreUnavailable(f"{self._path}: this store was closed")
        if not write and not self._path.exists():
            raise StoreUnavailable(
                f"{self._path} does not exist yet; the archive makes it at its first start"
            )
        uri = f"{self._path.absolute().as_uri()}?mode={'rwc' if write else 'ro'}"
        try:
            db = sqlite3.connect(
                uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._unavailable(error) from error
        try:
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            if version > len(_MIGRATIONS):
                raise StoreUnavailable(
                    f"{self._path} has schema version {version}, this code knows "
                    f"{len(_MIGRATIONS)}; run the version of uproar that wrote it, or a later one"
                )
            if write:
                self._prepare(db)
            elif version < len(_MIGRATIONS):
                raise StoreUnavailable(
                    f"{self._path} has schema version {version}, {len(_MIGRATIONS)} is needed; "
                    "the archive brings it there when it starts"
                )
        except (sqlite3.Error, UnicodeDecodeError) as error:
            db.close()
            raise self._unavailable(error) from error
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Set the writer's pragmas and bring the schema up to date, in one transaction."""
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StoreUnavailable(
                f"{self._path}: its file system can't hold a write-ahead log (got {mode}); "
                "move the data directory to a local disk"
            )
        db.execute("PRAGMA synchronous = FULL")  # a returned write survives a power cut
        db.execute(f"PRAGMA journal_size_limit = {WAL_KEEP_BYTES}")
        db.execute("PRAGMA cache_size = -16384")  # KiB: the indexes' hot ends stay in memory
        db.execute("BEGIN IMMEDIATE")
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        for statements in _MIGRATIONS[version:]:
            for statement in statements:
                db.execute(statement)
        if version < len(_MIGRATIONS):
            db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
        db.execute("COMMIT")

    def _int(self, row: tuple[Any, ...]) -> int:
        """The row's one integer; a damaged file may give anything."""
        if not isinstance(row[0], int):
            raise StoreUnavailable(f"{self._path} {_SENTENCES['SQLITE_CORRUPT']}")
        return row[0]

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        # A damaged schema may come back as an error message that is not even UTF-8.
        code = getattr(error, "sqlite_errorname", None) or "SQLITE_CORRUPT"
        for prefix, sentence in _SENTENCES.items():
            if code.startswith(prefix):
                return StoreUnavailable(f"{self._path} {sentence} ({error})")
        return StoreUnavailable(f"{self._path} can't be used: {error}")


_SENTENCES: Final = {
    "SQLITE_BUSY": f"was locked by another process for more than {BUSY_S:.0f} s; try again",
    "SQLITE_INTERRUPT": f"took more than {READ_S:.0f} s to answer; ask for less",
    "SQLITE_FULL": "can't grow: its disk is full; free some space",
    "SQLITE_CORRUPT": "is damaged; stop uproar and restore it from a backup",
    "SQLITE_NOTADB": "is damaged or no SQLite file; stop uproar and restore it from a backup",
    "SQLITE_CANTOPEN": "can't be opened; is its directory there, and may we write to it?",
    "SQLITE_READONLY": "may not be written; check owner and mode of file and directory",
    "SQLITE_IOERR": "can't be read or written: its disk reports an error",
}
