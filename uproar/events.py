"""The vocabulary: every event of a stream, as it stands in the log, the ring and the store.

A `Record` is what the log holds: a versioned msgpack array whose head (stream, time, who, nonce,
mask, visibility) every consumer reads and whose `data` only those decode that need it. An `Event`
is a record with its place in the order: its offset. What viewers see of an event is made from it by
`gateway.dialects`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta

SCHEMA: Final = 1


class Visibility(IntEnum):
    """Who may see an event. Moderators see all; an author always sees an own comment."""

    ALL = 0
    HELD = 1
    SHADOW = 2
    MODERATORS = 3


# The mask stamped by ingest: shown at all, and in which of the nested rate classes.
SHOWN: Final = 1
RATE_50: Final = 2
RATE_20: Final = 4
RATE_5: Final = 8
MASK_ALL: Final = SHOWN | RATE_50 | RATE_20 | RATE_5

ROLES: Final = ("viewer", "vip", "moderator", "broadcaster", "service")
SOVEREIGN_ROLES: Final = frozenset({"broadcaster", "service"})  # out of moderators' reach
MODERATING_ROLES: Final = frozenset({"moderator", "broadcaster", "service"})

# What the store, the codecs and every consumer can hold; a record with other values is poisoned.
Millis: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 53)]
CommentId: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]


# gc=False on what there is one of per comment: frozen, so never part of a cycle, and a collector
# that had to look at the last minutes' of them took 8 % of a busy gateway.
class User(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True, gc=False):
    """An author as shown to others."""

    id: str
    name: str
    role: str = "viewer"
    color: str | None = None
    badges: tuple[str, ...] | None = None


class Comment(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True, gc=False):
    """Data of COMMENT, COMMENT_RESTORED and COMMENT_APPROVED. `ts` is unix ms."""

    id: CommentId
    user: User
    text: str
    ts: Annotated[int, Meta(ge=0, lt=1 << 62)]  # a service may say when
    reply_to: CommentId | None = None
    emotes: tuple[tuple[str, int, int], ...] | None = None


class CommentDeleted(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Data of COMMENT_DELETED; `by` is a user id, or `moderation` for the worker."""

    comment_id: CommentId
    by: str = ""
    reason: str = ""


class UserRemoved(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Data of USER_REMOVED: what viewers see of a ban or timeout (`until` in unix ms)."""

    user_id: str
    until: Millis | None = None


class Cleared(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Data of CLEARED: all comments at lower offsets are gone from view."""

    by: str = ""


class Pinned(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Data of COMMENT_PINNED; at most one stands in a stream. `until` is unix ms."""

    comment: Comment
    by: str = ""
    until: Millis | None = None


class Unpinned(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Data of COMMENT_UNPINNED."""

    comment_id: CommentId
    by: str = ""


class Mode(msgspec.Struct, array_like=True, frozen=True):
    """Data of MODE: the settings that changed, with their new values."""

    changes: dict[str, Any]
    by: str = ""


class Sampling(msgspec.Struct, array_like=True, frozen=True):
    """Data of SAMPLING: the share of comments shown from here on; 1.0 ends it."""

    ratio: float
    rate: float  # comments a second, as measured


class StreamStarted(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Data of STREAM_STARTED."""

    title: str = ""
    by: str = ""


class StreamEnded(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Data of STREAM_ENDED."""

    by: str = ""


class Sanction(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Data of SANCTION, for moderators only: the audit list.

    `action` is one of ACTIONS; `until` (unix ms) is the end of a timeout.
    """

    user_id: str
    action: str
    by: str
    reason: str = ""
    until: Millis | None = None


class Flagged(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Data of FLAGGED and HELD, for moderators only: why a comment stands out.

    `spans` are (start, end) in code points of the comment's text.
    """

    comment: Comment
    rule: str = ""
    category: str = ""
    score: float = 0.0
    spans: tuple[tuple[int, int], ...] = ()


class HeldResolved(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Data of HELD_RESOLVED, for moderators only: `action` is approve or deny."""

    comment_id: CommentId
    action: str
    by: str = ""


class Terms(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Data of TERMS, for moderators only: the stream's own lists, whole."""

    blocked: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    by: str = ""


ACTIONS: Final = ("timeout", "ban", "unban", "shadow_ban", "unshadow_ban", "strike", "kick")

Data: TypeAlias = (
    Comment
    | CommentDeleted
    | UserRemoved
    | Cleared
    | Pinned
    | Unpinned
    | Mode
    | Sampling
    | StreamStarted
    | StreamEnded
    | Sanction
    | Flagged
    | HeldResolved
    | Terms
)

# The log's event types and the shape of their data. What is not here is set aside as poisoned.
DATA_OF: Final[dict[str, type[msgspec.Struct]]] = {
    "COMMENT": Comment,
    "COMMENT_DELETED": CommentDeleted,
    "COMMENT_RESTORED": Comment,
    "COMMENT_APPROVED": Comment,
    "USER_REMOVED": UserRemoved,
    "CLEARED": Cleared,
    "COMMENT_PINNED": Pinned,
    "COMMENT_UNPINNED": Unpinned,
    "MODE": Mode,
    "SAMPLING": Sampling,
    "STREAM_STARTED": StreamStarted,
    "STREAM_ENDED": StreamEnded,
    "FLAGGED": Flagged,
    "HELD": Flagged,
    "HELD_RESOLVED": HeldResolved,
    "SANCTION": Sanction,
    "TERMS": Terms,
}

# Events that a gap must never swallow: they are folded and sent with it (promise 5).
CONTROL_TYPES: Final = frozenset(DATA_OF) - {"COMMENT"}

# What decides about later events, and is loaded from the store at a stream's first event.
STANDING_TYPES: Final = frozenset(
    {
        "MODE",
        "SANCTION",
        "COMMENT_PINNED",
        "COMMENT_UNPINNED",
        "SAMPLING",
        "STREAM_STARTED",
        "STREAM_ENDED",
        "HELD",
        "HELD_RESOLVED",
        "TERMS",
    }
)


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One event as the log holds it. (stream, type family, actor, nonce) makes it idempotent."""

    version: int
    type: str
    stream: str
    ts: Millis
    actor: str
    nonce: str
    mask: Annotated[int, Meta(ge=0, le=255)]
    visibility: Annotated[int, Meta(ge=0, le=3)]  # a Visibility
    data: msgspec.Raw


class PoisonedRecord(ValueError):
    """A record that no version of this code wrote: set aside, counted, never fatal."""


_encode = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(Record).decode
_decoders = {name: msgspec.msgpack.Decoder(shape) for name, shape in DATA_OF.items()}


def encode_record(
    type_: str,
    stream: str,
    ts: int,
    actor: str,
    nonce: str,
    data: Data,
    *,
    mask: int = MASK_ALL,
    visibility: Visibility = Visibility.ALL,
) -> bytes:
    """Return the bytes of a record for the log."""
    return _encode((SCHEMA, type_, stream, ts, actor, nonce, mask, int(visibility), data))


def decode_record(raw: bytes) -> Record:
    """Return the head of a record; raises PoisonedRecord with what is wrong."""
    try:
        record = _decode_record(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise PoisonedRecord(f"not a record: {error}") from error
    if record.version != SCHEMA:
        raise PoisonedRecord(f"schema version {record.version}, this code reads {SCHEMA}")
    if record.type not in DATA_OF:
        raise PoisonedRecord(f"unknown event type {record.type[:40]!r}")
    return record


class Event(NamedTuple):
    """An event in its place: `offset` is the log's, `data` decoded."""

    offset: int
    type: str
    ts: int
    actor: str
    mask: int
    visibility: int
    data: Any


def to_event(offset: int, record: Record) -> Event:
    """Return the record as an event; raises PoisonedRecord when its data is malformed."""
    try:
        data = _decoders[record.type].decode(record.data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise PoisonedRecord(f"{record.type} with malformed data: {error}") from error
    return Event(offset, record.type, record.ts, record.actor, record.mask, record.visibility, data)
