"""STORE: every comment, for good: history, backlog, replay windows, and what fills a hole.

Comes in: events in log order from the archive, with the archive's position in the same
transaction. Goes out: pages of comments with deletions applied, and raw events for backfill.
Rows sort by (era, offset); the era is a rising integer that the store gives each new epoch, so that
history survives a move to another log.

Adapters: `uproar.store.sqlite` and `uproar.store.cassandra`; `open_store` takes the configured one.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from msgspec.structs import replace

from uproar.config import Config
from uproar.events import Event


class StoreUnavailable(Exception):
    """The store did not answer or refused a write; nothing of the call took effect."""


class StoredComment(NamedTuple):
    """A comment's event with where it stands.

    `deleted` is the offset of what took it from view: its deletion, else its author's removal, else
    a clear; None when nothing did. A restoration undoes the first two, a clear is final.
    """

    era: int
    event: Event
    deleted: int | None


class StoredEvent(NamedTuple):
    """An event that is no comment, with its era."""

    era: int
    event: Event


class Reader(NamedTuple):
    """For whom history is read: a moderator sees held and shadowed comments, an author own ones."""

    reader: str = ""  # a user id
    moderator: bool = False


ANYBODY = Reader()


class Place(NamedTuple):
    """A position in a stream's history over all eras; sorts as history does."""

    era: int
    offset: int


class Epoch(NamedTuple):
    """A log that was archived, and up to where."""

    era: int
    epoch: str
    position: int


class Bucket(NamedTuple):
    """What happened in a stream from `ts` (unix ms) on, for one step of time."""

    ts: int
    comments: int
    authors: int
    deletions: int


class Store(Protocol):
    """Calls wait for their answer. One archive of each epoch writes; any number of processes read.

    `blocks` says whether waiting holds up the thread. Under gevent such a call belongs on a thread
    of the pool; one that does not block belongs in a greenlet of the main hub, never on a thread.
    """

    blocks: bool

    def open_epoch(self, epoch: str) -> int:
        """Return the era of an epoch, a new one (the highest) for an epoch not seen before."""

    def position(self, epoch: str) -> int:
        """Return the last offset archived of an epoch, 0 for none."""

    def epochs(self) -> list[Epoch]:
        """Return all epochs with their positions, in the order of their eras."""

    def streams(self) -> list[str]:
        """Return the names of all streams with history, sorted."""

    def write(self, era: int, events: list[tuple[str, Event]], position: int) -> None:
        """Write (stream, event) in log order and the position, all or nothing, idempotently.

        When it returns, a killed process, and in a cluster a killed node, loses none of it. Readers
        see the batch whole or not at all: what a failed write left behind shows only once a repeat
        has brought it to its end. A repeat must say the same at the same offsets, as a log does.
        Writing a comment again never touches its deletion. A position at or below the stored one
        changes nothing.
        """

    def newest(
        self,
        stream: str,
        limit: int,
        before: Place | None = None,
        *,
        reader: Reader = ANYBODY,
        hidden: bool = False,
    ) -> list[StoredComment]:
        """Return up to `limit` comments, newest first, below `before`.

        As `reader` sees them: without deleted and cleared ones, and held and shadowed ones only for
        moderators and their author. With `hidden` all of them.
        """

    def oldest(
        self, stream: str, limit: int, after: Place, *, reader: Reader = ANYBODY
    ) -> list[StoredComment]:
        """Return up to `limit` comments above `after`, oldest first, as `reader` sees them."""

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

    def by_user(
        self, stream: str, user_id: str, limit: int, before: Place | None = None
    ) -> list[StoredComment]:
        """Return up to `limit` comments of one user, newest first, deleted and hidden ones too."""

    def standing(self, stream: str) -> list[Event]:
        """Return the events of STANDING_TYPES of a stream, over all eras, in order."""

    def acts(
        self, stream: str, types: frozenset[str], limit: int, before: Place | None = None
    ) -> list[StoredEvent]:
        """Return up to `limit` events of some types, newest first, below `before`."""

    def events(self, stream: str, era: int, after: int, upto: int, limit: int) -> list[Event]:
        """Return up to `limit` events of every kind at offsets (after, upto], in order.

        Comments come as they were written, deleted ones too: the deletions are events here.
        """

    def comment(self, stream: str, comment_id: bytes) -> StoredComment | None:
        """Return one comment, deleted or not, None when the stream has none of that id."""

    def stats(
        self, stream: str, from_ms: int, to_ms: int, bucket_ms: int, *, reader: Reader = ANYBODY
    ) -> list[Bucket]:
        """Return the buckets of [from_ms, to_ms) in which something happened, in order.

        Counts the comments that `reader` sees, their authors, and deletions of single comments.
        """

    def count(self, stream: str) -> int:
        """Return how many comments of a stream are visible in history."""

    def close(self) -> None:
        """Close the connections."""


def open_store(config: Config, *, writer: bool = False, timeout_s: float | None = None) -> Store:
    """Return the configured store; it connects at its first call. Only the archive writes.

    `timeout_s` is for who can't wait as long as `store.timeout_s`; a local file needs neither.
    """
    if config.store.engine == "cassandra":
        # Here, because the driver takes 0.2 s to import and picks its reactor while it does.
        from uproar.store.cassandra import CassandraStore

        settings = config.store
        if timeout_s is not None:
            settings = replace(settings, timeout_s=min(timeout_s, settings.timeout_s))
        return CassandraStore(settings, writer=writer)
    from uproar.store.sqlite import SqliteStore

    return SqliteStore(config.data_dir / "store.db", writer=writer)
