"""Where a row lies: pure functions from events to the rows of every table.

Everything is a fact that stands at its place (era, offset) and is never changed: a comment, a
deletion, a removal, a clear. Writing one again, or an older one later, changes nothing, and the
last word is found when reading. Only three cells move, each in one direction, because their write
time is their value: the position, and a bucket's first and last `ts`.
"""

from __future__ import annotations

import uuid
import zlib
from typing import Any, Final, NamedTuple

from uproar import ids
from uproar.events import STANDING_TYPES, Event
from uproar.store.encoding import encode

BUCKET_BITS: Final = 16  # offsets of a bucket of history
# Offsets of a span, the bucket of what is rarer: of acts, two hours at 10,000 comments/s, because
# what stands is read whole; of users, seven minutes.
ACT_BITS: Final = 26
USER_BITS: Final = 22
# Partitions over which a span's users are spread: at most a million rows of 60 bytes in each. With
# 64, 200 streams made 2,850 requests of 2,048 comments, most of them of one row.
SLOTS: Final = 4
MINUTE_MS: Final = 60_000  # of `ids`: 600,000 rows at 10,000 comments/s
DAY_MS: Final = 86_400_000  # of `verdicts`: few rows, and few partitions under a page

# Kinds of bucket lists: of all history, of comments by span, and the type of an act by span.
HISTORY: Final = ""
COMMENTS: Final = "COMMENT"

ROW_BYTES: Final = 120  # of a row beside its data, for the size of a batch
_EARLIEST: Final = 1 << 62  # a smaller `first_ts` gets a later write time

COMMENT_TYPES: Final = frozenset({"COMMENT", "COMMENT_APPROVED"})


class Row(NamedTuple):
    """A statement with its values, and about how many bytes they take."""

    statement: str
    values: tuple[Any, ...]
    size: int


# Rows that may go in one batch: the table and the partition key.
Partition = tuple[str, tuple[Any, ...]]


def bucket_of(offset: int) -> int:
    """Return the bucket of history of an offset."""
    return offset >> BUCKET_BITS


def slot_of(user_id: str) -> int:
    """Return where a user's comments are listed."""
    return zlib.crc32(user_id.encode("utf-8", "surrogatepass")) % SLOTS


def minute_of(comment_id: bytes) -> int:
    """Return the partition of `ids`: the id's own time, whatever an odd id says."""
    return ids.split(comment_id)[0] // MINUTE_MS


def day_of(comment_id: bytes) -> int:
    """Return the partition of `verdicts`."""
    return ids.split(comment_id)[0] // DAY_MS


def rows_of(era: int, events: list[tuple[str, Event]], ttl_s: int) -> dict[Partition, list[Row]]:
    """Return the rows of a batch by partition; `ttl_s` = 0 keeps for good.

    What stands, removals and clears have no end: a ban outlives the comments of its day.
    """
    found: dict[Partition, list[Row]] = {}
    # (stream, kind, bucket) → first and last ts, and how long the entry lives
    buckets: dict[tuple[str, str, int], tuple[int, int, int]] = {}

    def add(put: str, table: str, key: tuple[Any, ...], *values: Any, size: int = 0) -> None:
        row = Row(put, (*key, *values), ROW_BYTES + size)
        found.setdefault((table, key), []).append(row)

    def cover(stream: str, kind: str, bucket: int, ts: int, keep_s: int) -> None:
        first, last, _ = buckets.get((stream, kind, bucket), (ts, ts, 0))
        buckets[stream, kind, bucket] = (min(first, ts), max(last, ts), keep_s)

    for stream, (offset, type_, ts, actor, mask, visibility, data) in events:
        blob = encode(data)
        size = len(blob)
        comment = type_ in COMMENT_TYPES
        comment_id = uuid.UUID(bytes=data.id) if comment else None
        head = (ts, actor, mask, int(visibility), blob)
        add(
            "put_history", "history", (stream, era, bucket_of(offset)), offset, comment_id, type_,
            *head, ttl_s, size=size,
        )  # fmt: skip
        cover(stream, HISTORY, bucket_of(offset), ts, ttl_s)
        if comment:
            approved = type_ == "COMMENT_APPROVED"
            add(
                "put_id",
                "ids",
                (stream, minute_of(data.id)),
                comment_id,
                era,
                offset,
                approved,
                ttl_s,
            )
            user, span = data.user.id, offset >> USER_BITS
            add("put_user", "users", (stream, slot_of(user), era, span), user, offset, ttl_s)
            cover(stream, COMMENTS, span, ts, ttl_s)
            continue
        span = offset >> ACT_BITS
        keep_s = 0 if type_ in STANDING_TYPES else ttl_s
        add("put_act", "acts", (stream, type_, era, span), offset, *head, keep_s, size=size)
        cover(stream, type_, span, ts, keep_s)
        if type_ == "COMMENT_DELETED":
            subject = data.comment_id
        elif type_ == "COMMENT_RESTORED":
            subject = data.id
        else:
            if type_ == "USER_REMOVED":
                add("put_removal", "removals", (stream,), data.user_id, era, offset)
            elif type_ == "CLEARED":
                add("put_clear", "clears", (stream,), era, offset)
            continue
        # A day more than the comment's, so that no comment outlives its deletion.
        add(
            "put_verdict", "verdicts", (stream, day_of(subject)), uuid.UUID(bytes=subject), era,
            offset, type_ == "COMMENT_DELETED", ttl_s and ttl_s + DAY_MS // 1000,
        )  # fmt: skip
    for (stream, kind, bucket), (first, last, keep_s) in buckets.items():
        add("put_first", "buckets", (stream,), kind, era, bucket, first, keep_s, _EARLIEST - first)
        add("put_last", "buckets", (stream,), kind, era, bucket, last, keep_s, last + 1)
    return found
