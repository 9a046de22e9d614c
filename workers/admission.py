"""Admission: which submission becomes a record, and what its sender is told. Sans-I/O.

Comes in: submissions with the time, and batches read back from the log. Goes out: records to
append, and answers. All it knows of the past (nonces, rates, what stands) it has from reading the
log, and from the store for what is older; so a new incarnation that has read back a few minutes
decides as the last one would have (but for unique chat: texts are remembered from its start on).
"""

from __future__ import annotations

import logging
import secrets
import unicodedata
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec

from uproar import ids
from uproar import mode as modes
from uproar.auth import printable
from uproar.config import Limits, Sampling
from uproar.emotes import ranges
from uproar.events import (
    DATA_OF,
    MODERATING_ROLES,
    ROLES,
    SHOWN,
    STANDING_TYPES,
    Comment,
    CommentDeleted,
    Data,
    Event,
    Flagged,
    HeldResolved,
    PoisonedRecord,
    Record,
    Terms,
    Unpinned,
    UserRemoved,
    Visibility,
    decode_record,
    encode_record,
    to_event,
)
from uproar.events import Sampling as SamplingEvent
from uproar.idempotency import READ_BACK_MS, Deduplicator, key_of, key_of_record
from uproar.ipc import Answer, Draft, Submission, unavailable
from uproar.log import LogBatch
from uproar.logs import event
from uproar.metrics import Histogram
from uproar.standing import Standing, standing_of
from uproar.store import StoreUnavailable
from workers.rates import Rates, Who
from workers.room import Refusal, Room

logger = logging.getLogger(__name__)

SWEEP_MS: Final = 10_000
STORE_AWAY: Final = Refusal("unavailable", "the store does not answer; send it again", 1000)
BLANKS: Final = "\u115f\u1160\u2800\u3164\uffa0"  # Hangul fillers and the empty Braille cell
# For moderators' eyes: the audit list, and what waits for them.
MODERATORS_ONLY: Final = frozenset({"SANCTION", "FLAGGED", "HELD", "HELD_RESOLVED", "TERMS"})
_decode_draft = msgspec.msgpack.Decoder(Draft).decode
_decoders = {name: msgspec.msgpack.Decoder(shape).decode for name, shape in DATA_OF.items()}


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where the record that counts stands; `id` is empty for events that are no comments.

    Two minutes' worth of them are kept, a million at 10,000 a second: the collector needn't look.
    """

    offset: int
    id: bytes
    shown: int


class _Pending:
    """A record on its way through the log, and who waits for it: (link, ref, role)."""

    __slots__ = ("deadline_ms", "rate", "waiters")

    def __init__(self, deadline_ms: int, rate: Who | None) -> None:
        self.deadline_ms = deadline_ms
        self.rate = rate
        self.waiters: list[tuple[Any, int, str]] = []


class Admission:
    """The decisions of one ingest incarnation for one partition.

    `load(stream)` returns the store's standing events of a stream, or raises StoreUnavailable;
    `flags(stream, text)` says whether moderation finds a text, for streams that hold those.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        ack_deadline_ms: int,
        pending_max: int,
        sampling: Sampling | None = None,
        emotes: Collection[str] = (),
        streams_open: bool = True,
        load: Callable[[str], list[Event]] = lambda stream: [],
        flags: Callable[[str, str], bool] = lambda stream, text: False,
    ) -> None:
        self._limits = limits
        self._per_minute: dict[str, int] = msgspec.to_builtins(limits.per_minute)
        self._ack_deadline_ms = ack_deadline_ms
        self._pending_max = pending_max
        self._sampling = sampling or Sampling()
        self._sampling_key = secrets.token_bytes(16)
        self._emotes = emotes
        self._streams_open = streams_open
        self._load = load
        self._flags = flags
        self._ids = ids.IdMaker()
        self._ts = 0
        self._seen: Deduplicator[Place] = Deduplicator()
        self._rates = Rates()
        self._rooms: dict[str, Room] = {}
        self._controls: dict[str, list[Event]] = {}  # since this incarnation began to read
        self._pending: dict[bytes, _Pending] = {}
        # Records that only stand together, as groups: an append takes a group whole or not at all.
        self._outbox: deque[list[bytes]] = deque()
        self._sampled: set[str] = set()  # streams that are not shown whole
        self._swept = 0
        self.position = 0
        self.poisoned = 0
        self.logged = Histogram()  # from accepted to read back, by comment
        self._landed: list[int] = []  # their ts, of one batch

    @property
    def pending(self) -> int:
        """How many records are on their way through the log."""
        return len(self._pending)

    @property
    def waiting(self) -> int:
        """How many records wait to be appended."""
        return len(self._outbox)

    def ratios(self) -> list[float]:
        """Return the share of comments shown of each stream that is sampled."""
        return [self._rooms[stream].standing.ratio for stream in list(self._sampled)]

    def terms(self, stream: str) -> tuple[Terms, int]:
        """Return a stream's own terms and since when they stand (unix ms)."""
        standing = self._rooms[stream].standing
        return standing.terms, standing.terms_at

    # -- submissions ------------------------------------------------------------------------------

    def submit(self, link: Any, submission: Submission, now: int) -> Answer | None:
        """Return the answer when it is known at once, else None: it comes out of `landed`."""
        stream, role = submission.stream, submission.role
        # A service's nonces are a space of their own, so no user's can stand in their way; and
        # what a service wrote in a user's name does not count against the user's rate.
        nonce = ("s:" if role == "service" else ":") + submission.nonce
        key = key_of(stream, submission.type, submission.actor, nonce)
        seen = self._seen.find(key, max(now, self._ts))
        rate = self._rate_key(submission)
        if seen is not None:
            return self._accepted(submission.ref, seen, rate, role, now)
        pending = self._pending.get(key)
        if pending is None:
            admitted = self._admit(submission, nonce, rate, now)
            if isinstance(admitted, Refusal):
                return Answer(
                    submission.ref,
                    admitted.code,
                    message=admitted.message,
                    retry_after_ms=admitted.retry_after_ms,
                )
            self._outbox.append(admitted)
            pending = self._pending[key] = _Pending(now + self._ack_deadline_ms, rate)
            if submission.type == "COMMENT" and role != "service":
                self._rates.wrote((stream, submission.actor), now)
            if rate:
                self._rates.coming(rate, 1)
        pending.waiters.append((link, submission.ref, role))
        return None

    def take(self, count: int) -> tuple[list[bytes], int]:
        """Return about `count` records to append, in order, and the ts of the newest.

        What follows from a record is taken with it: a held comment never stands without its HELD.
        """
        records: list[bytes] = []
        while self._outbox and (not records or len(records) + len(self._outbox[0]) <= count):
            records += self._outbox.popleft()
        return records, self._ts

    def expire(self, now: int, *, everything: bool = False) -> list[tuple[Any, Answer]]:
        """Answer `unavailable` to those who have waited too long; forget what is old.

        With `everything` (a full log) nobody waits on, and nothing more is to be appended.
        """
        if everything:
            self._outbox.clear()
        late = []
        for key, pending in self._pending.items():
            if pending.deadline_ms > now and not everything:
                break
            late.append(key)
        answers = []
        for key in late:
            pending = self._pending.pop(key)
            if pending.rate:
                self._rates.coming(pending.rate, -1)
            for link, ref, _ in pending.waiters:
                answers.append(
                    (link, unavailable(ref, "the log did not take it in time; send it again"))
                )
        if now - self._swept > SWEEP_MS:
            self._swept = now
            self._rates.sweep(now, READ_BACK_MS)
        if late:
            for room in self._rooms.values():
                room.resolving.clear()  # a decision that did not land may be made again
                room.sampler.ratio = room.standing.ratio  # and so may a change of sampling
        for stream in list(self._sampled):
            room = self._rooms[stream]
            self._resample(stream, room, room.sampler.idle(now), now)
        return answers

    def _admit(
        self, submission: Submission, nonce: str, rate: Who | None, now: int
    ) -> list[bytes] | Refusal:
        """Return the records to append, the acknowledged one first, or why there is none."""
        if max(len(self._pending), len(self._outbox)) >= self._pending_max:
            return Refusal("unavailable", "too much is waiting for the log; send it again", 1000)
        try:
            if submission.type == "COMMENT":
                return self._admit_comment(submission, nonce, rate, now)
            decode = _decoders.get(submission.type)
            if decode is None:
                return Refusal("bad_request", f"unknown event type {submission.type[:40]!r}")
            data = decode(submission.data)
            room = self._room(submission.stream)
            if room is None:
                return STORE_AWAY
            return self._admit_event(room, submission, nonce, data, now)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            return Refusal("bad_request", f"malformed {submission.type}: {error}")

    def _admit_comment(
        self, submission: Submission, nonce: str, rate: Who | None, now: int
    ) -> list[bytes] | Refusal:
        draft = _decode_draft(submission.data)
        stream, author = submission.stream, (submission.stream, submission.actor)
        refusal = check_text(draft.text, self._limits) or check_author(draft)
        if refusal:  # before the room, which costs a look into the store
            return refusal
        room = self._room(stream)
        if room is None:
            return STORE_AWAY
        if not (self._streams_open or room.standing.opened):
            return Refusal("not_allowed", "this stream was never opened")
        refusal = room.refuses(submission, draft, self._rates.last(author), now, self._emotes)
        if refusal:
            return refusal
        if rate:
            used, _ = self._rates.used(rate, now)
            allowed = self._per_minute[submission.role]
            if used >= allowed:
                wait = self._rates.wait(rate, now, used - allowed)
                return Refusal("rate_limited", f"at most {allowed} comments a minute", wait)
        self._resample(stream, room, room.sampler.offered(now), now)
        self._ts, comment_id = self._ids.make(max(now, self._ts))
        ts = self._ts
        comment = Comment(
            comment_id,
            draft.user,
            draft.text,
            ts if draft.ts is None else draft.ts,
            draft.reply_to,
            ranges(draft.text, self._emotes),
        )
        holds_flagged = room.standing.mode.get("hold") == "flagged"
        visibility = room.visibility(
            submission, flagged=holds_flagged and self._flags(stream, draft.text)
        )
        privileged = draft.user.role in MODERATING_ROLES
        mask = room.sampler.mask(comment_id, ts, privileged=privileged)
        records = [
            encode_record(
                "COMMENT", stream, ts, submission.actor, nonce, comment,
                mask=mask, visibility=visibility,
            )
        ]  # fmt: skip
        if visibility is Visibility.HELD:
            held = Flagged(comment, rule="flagged" if holds_flagged else "hold")
            records.append(self._follow(stream, "HELD", submission.actor, nonce, held))
        return records

    def _admit_event(
        self, room: Room, submission: Submission, nonce: str, data: Any, now: int
    ) -> list[bytes] | Refusal:
        """An event that is no comment, with what follows from it."""
        type_, stream, actor = submission.type, submission.stream, submission.actor
        standing = room.standing
        follows: list[tuple[str, Data]] = []
        if type_ == "MODE":
            try:
                modes.checked(data.changes)
            except modes.ModeError as error:
                return Refusal("bad_request", str(error))
        elif type_ == "SANCTION" and data.action in ("timeout", "ban"):
            follows.append(("USER_REMOVED", UserRemoved(data.user_id, data.until)))
            follows += _unpins(standing, actor, lambda pin: pin.user.id == data.user_id)
        elif type_ == "CLEARED":
            follows += _unpins(standing, actor, lambda pin: True)
        elif type_ == "HELD_RESOLVED":
            held = standing.held.get(data.comment_id)
            if held is None or data.comment_id in room.resolving:
                return Refusal("conflict", "this comment does not wait for a decision (any more)")
            room.resolving.add(data.comment_id)
            follows.append(_resolved(data, held))
        elif type_ == "COMMENT_DELETED":
            follows += _unpins(standing, actor, lambda pin: pin.id == data.comment_id)
            if data.comment_id in standing.held:
                follows.append(("HELD_RESOLVED", HeldResolved(data.comment_id, "deny", actor)))
        self._ts = max(now, self._ts)
        only = type_ in MODERATORS_ONLY
        visibility = Visibility.MODERATORS if only else Visibility.ALL
        first = encode_record(type_, stream, self._ts, actor, nonce, data, visibility=visibility)
        if type_ == "HELD_RESOLVED":
            # One consequence a comment, whoever decides and however often: the first counts.
            actor, nonce = "ingest", f"resolved:{data.comment_id.hex()}"
        return [first, *(self._follow(stream, name, actor, nonce, what) for name, what in follows)]

    def _follow(self, stream: str, type_: str, actor: str, nonce: str, data: Data) -> bytes:
        """A record that follows from another: its nonce is the cause's, so it repeats with it."""
        only = type_ in MODERATORS_ONLY
        visibility = Visibility.MODERATORS if only else Visibility.ALL
        return encode_record(type_, stream, self._ts, actor, nonce, data, visibility=visibility)

    def _resample(self, stream: str, room: Room, ratio: float | None, now: int) -> None:
        """Log a new sampling ratio; it holds for what is admitted from here on."""
        if ratio is None:
            return
        room.sampler.ratio = ratio
        (self._sampled.add if ratio < 1 else self._sampled.discard)(stream)
        self._ts = max(now, self._ts)
        data = SamplingEvent(ratio, room.sampler.rate)
        nonce = f"sampling:{self._ts}"
        self._outbox.append([encode_record("SAMPLING", stream, self._ts, "ingest", nonce, data)])

    # -- the log ----------------------------------------------------------------------------------

    def landed(self, batch: LogBatch, now: int) -> list[tuple[Any, Answer]]:
        """Take in what the log holds; return the answers that it settles, as (link, answer)."""
        answers: list[tuple[Any, Answer]] = []
        for offset, raw in enumerate(batch.records, batch.first):
            try:
                record = decode_record(raw)
                found = to_event(offset, record)
            except PoisonedRecord as error:
                self.poisoned += 1
                event(
                    logger, "record_poisoned", level=logging.WARNING,
                    offset=offset, size=len(raw), head=raw[:48].hex(), why=str(error),
                )  # fmt: skip
                continue
            answers += self._land(record, found, now)
        self.logged.observe_since(now, self._landed)
        self._landed.clear()
        self.position = batch.last
        return answers

    def _land(self, record: Record, found: Event, now: int) -> list[tuple[Any, Answer]]:
        key = key_of_record(record)
        comment = record.type == "COMMENT"
        place = Place(found.offset, found.data.id if comment else b"", _shown(record))
        first = self._seen.admit(key, record.ts, place)
        self._ts = max(self._ts, record.ts)
        if first is None:
            first = place
            self._count(record, found)
        pending = self._pending.pop(key, None)
        if pending is None:
            return []
        if comment:
            self._landed.append(record.ts)
        if pending.rate:
            self._rates.coming(pending.rate, -1)
        return [
            (link, self._accepted(ref, first, pending.rate, role, now))
            for link, ref, role in pending.waiters
        ]

    def _count(self, record: Record, found: Event) -> None:
        """Let a record that counts take effect on what is decided next."""
        stream = record.stream
        room = self._rooms.get(stream)
        if record.type == "COMMENT":
            if not is_by_service(record):
                self._rates.landed((stream, record.actor), record.ts)
            if room is not None:
                room.wrote(found.data.text, record.ts)
        elif record.type in STANDING_TYPES:
            if room is None:
                self._controls.setdefault(stream, []).append(found)
                return
            room.standing.apply(found)
            if record.type == "SAMPLING":
                room.sampler.ratio = room.standing.ratio
            if record.type == "HELD_RESOLVED":
                room.resolving.discard(found.data.comment_id)

    def _room(self, stream: str) -> Room | None:
        """Return a stream's room, loading what stands at its first event; None without a store."""
        room = self._rooms.get(stream)
        if room is None:
            try:
                stored = self._load(stream)
            except StoreUnavailable as error:
                event(
                    logger, "standing_not_loaded", level=logging.WARNING,
                    stream=stream, why=str(error),
                )  # fmt: skip
                return None
            standing = standing_of(stored + self._controls.pop(stream, []))
            room = self._rooms[stream] = Room(standing, self._sampling, self._sampling_key)
            if standing.ratio < 1:
                self._sampled.add(stream)
        return room

    def _accepted(self, ref: int, place: Place, rate: Who | None, role: str, now: int) -> Answer:
        remaining = reset = None
        if rate:
            used, reset = self._rates.used(rate, now)
            remaining = max(0, self._per_minute[role] - used)
        return Answer(
            ref, "", place.id, place.offset, place.shown, remaining=remaining, reset_ms=reset
        )

    def _rate_key(self, submission: Submission) -> Who | None:
        if submission.type != "COMMENT" or not self._per_minute.get(submission.role, 0):
            return None
        return submission.stream, submission.actor


def is_by_service(record: Record) -> bool:
    """Whether a service wrote a comment: by its nonce, see `Admission.submit`."""
    return record.nonce.startswith("s:")


def _shown(record: Record) -> int:
    """What the author is told: 0 all, 1 sampled, 2 held. A shadow is told what anyone would be."""
    if record.visibility == Visibility.HELD:
        return 2
    return 0 if record.mask & SHOWN else 1


def _unpins(standing: Standing, by: str, goes: Callable[[Comment], bool]) -> list[tuple[str, Data]]:
    """What is taken from view is pinned no longer."""
    pinned = standing.pinned
    if pinned is None or not goes(pinned.comment):
        return []
    return [("COMMENT_UNPINNED", Unpinned(pinned.comment.id, by))]


def _resolved(decision: HeldResolved, held: Flagged) -> tuple[str, Data]:
    if decision.action == "approve":
        return "COMMENT_APPROVED", held.comment
    return "COMMENT_DELETED", CommentDeleted(decision.comment_id, decision.by, "denied")


def check_text(text: str, limits: Limits) -> Refusal | None:
    """Return why a text is refused, None when it is fine (code points and UTF-8 bytes)."""
    if len(text) > limits.max_chars:
        return Refusal("too_long", f"{len(text)} characters; the limit is {limits.max_chars}")
    if not _clean(text):
        return Refusal("bad_request", "control characters and lone surrogates are refused")
    size = len(text.encode())
    if size > limits.max_bytes:
        return Refusal("too_long", f"{size} bytes; the limit is {limits.max_bytes}")
    # Invisible: separators (Z*), format characters and the like (C*), marks without a base, and
    # the fillers that Unicode counts as letters or symbols.
    if not any(unicodedata.category(c)[0] not in "ZCM" and c not in BLANKS for c in text):
        return Refusal("empty", "there is nothing visible in this comment")
    return None


def check_author(draft: Draft) -> Refusal | None:
    """Return why an author (as a service may name one) is refused."""
    user = draft.user
    for field, value in (("id", user.id), ("name", user.name)):
        if not 1 <= len(value) <= 64 or not _clean(value):
            return Refusal("bad_request", f"user.{field} must be 1 to 64 characters, no controls")
    if user.role not in ROLES:
        return Refusal("bad_request", f"user.role must be one of {', '.join(ROLES)}")
    if user.color is not None and (len(user.color) > 32 or not _clean(user.color)):
        return Refusal("bad_request", "user.color must be at most 32 characters, no controls")
    if draft.ts is not None and not 0 <= draft.ts < 1 << 53:
        return Refusal("bad_request", "ts must be unix milliseconds")
    return None


def _clean(text: str) -> bool:
    """Whether a text has no controls and lone surrogates; `isprintable` says yes to most in C."""
    return text.isprintable() or printable(text)


__all__ = ["Admission", "Place", "Refusal", "check_author", "check_text"]
