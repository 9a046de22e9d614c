"""Admission: which submission becomes a record, and what its sender is told. Sans-I/O.

Comes in: submissions with the time, and batches read back from the log. Goes out: records to
append, and answers. All it knows of the past (nonces, rates) it has from reading the log, so a new
incarnation that has read back a few minutes decides as the last one would have.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import deque
from typing import Any, Final, NamedTuple

import msgspec

from uproar import ids
from uproar.auth import printable
from uproar.config import Limits
from uproar.events import (
    DATA_OF,
    ROLES,
    Comment,
    Event,
    PoisonedRecord,
    Record,
    decode_record,
    encode_record,
    to_event,
)
from uproar.idempotency import Deduplicator, key_of, key_of_record
from uproar.ipc import Answer, Draft, Submission, unavailable
from uproar.log import LogBatch
from uproar.logs import event

logger = logging.getLogger(__name__)

MINUTE_MS: Final = 60_000
# Letters and symbols that show as nothing: fillers of Hangul, the empty Braille pattern.
BLANKS: Final = frozenset("\u115f\u1160\u3164\uffa0\u2800")
_decode_draft = msgspec.msgpack.Decoder(Draft).decode


class Place(NamedTuple):
    """Where the record that counts stands; `id` is empty for events that are no comments."""

    offset: int
    id: bytes
    shown: int


class Refusal(NamedTuple):
    """Why a submission does not become a record."""

    code: str
    message: str
    retry_after_ms: int | None = None


class _Pending:
    """A record on its way through the log, and who waits for it: (link, ref, rate key or None)."""

    __slots__ = ("deadline_ms", "rate", "waiters")

    def __init__(self, deadline_ms: int, rate: tuple[str, str] | None) -> None:
        self.deadline_ms = deadline_ms
        self.rate = rate
        self.waiters: list[tuple[Any, int, str]] = []


class Rates:
    """Comments of the last minute per (stream, user), from the log, and those on their way."""

    def __init__(self) -> None:
        self._landed: dict[tuple[str, str], deque[int]] = {}
        self._coming: dict[tuple[str, str], int] = {}

    def used(self, key: tuple[str, str], now: int) -> tuple[int, int]:
        """Return (comments that count against the limit now, ms until the oldest leaves)."""
        landed = self._landed.get(key)
        while landed and landed[0] <= now - MINUTE_MS:
            landed.popleft()
        count = len(landed) if landed else 0
        reset = landed[0] + MINUTE_MS - now if landed else MINUTE_MS
        return count + self._coming.get(key, 0), reset

    def coming(self, key: tuple[str, str], change: int) -> None:
        """Count a comment that is on its way (+1), or no more (-1)."""
        count = self._coming.get(key, 0) + change
        if count > 0:
            self._coming[key] = count
        else:
            self._coming.pop(key, None)

    def landed(self, key: tuple[str, str], ts: int) -> None:
        """Count a comment that stands in the log."""
        self._landed.setdefault(key, deque()).append(ts)

    def sweep(self, now: int) -> None:
        """Forget who has not written for a minute."""
        gone = [k for k, times in self._landed.items() if not times or times[-1] <= now - MINUTE_MS]
        for key in gone:
            del self._landed[key]


class Admission:
    """The decisions of one ingest incarnation for one partition."""

    def __init__(self, limits: Limits, *, ack_deadline_ms: int, pending_max: int) -> None:
        self._limits = limits
        self._per_minute: dict[str, int] = msgspec.to_builtins(limits.per_minute)
        self._ack_deadline_ms = ack_deadline_ms
        self._pending_max = pending_max
        self._ids = ids.IdMaker()
        self._ts = 0
        self._seen: Deduplicator[Place] = Deduplicator()
        self._rates = Rates()
        self._pending: dict[bytes, _Pending] = {}
        self._outbox: deque[bytes] = deque()
        self._swept = 0
        self.position = 0
        self.poisoned = 0

    @property
    def pending(self) -> int:
        """How many records are on their way through the log."""
        return len(self._pending)

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
            if rate:
                self._rates.coming(rate, 1)
        pending.waiters.append((link, submission.ref, role))
        return None

    def take(self, count: int) -> tuple[list[bytes], int]:
        """Return up to `count` records to append, in order, and the ts of the newest."""
        records = [self._outbox.popleft() for _ in range(min(count, len(self._outbox)))]
        return records, self._ts

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
        self.position = batch.last
        return answers

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
        if now - self._swept > MINUTE_MS:
            self._swept = now
            self._rates.sweep(now)
        return answers

    def _land(self, record: Record, found: Event, now: int) -> list[tuple[Any, Answer]]:
        key = key_of_record(record)
        comment = isinstance(found.data, Comment)
        shown = 2 if record.visibility == 1 else 0 if record.mask & 1 else 1
        place = Place(found.offset, found.data.id if comment else b"", shown)
        first = self._seen.admit(key, record.ts, place)
        self._ts = max(self._ts, record.ts)
        if first is None:
            if comment and record.nonce.startswith(":"):
                self._rates.landed((record.stream, record.actor), record.ts)
            first = place
        pending = self._pending.pop(key, None)
        if pending is None:
            return []
        if pending.rate:
            self._rates.coming(pending.rate, -1)
        return [
            (link, self._accepted(ref, first, pending.rate, role, now))
            for link, ref, role in pending.waiters
        ]

    def _accepted(
        self, ref: int, place: Place, rate: tuple[str, str] | None, role: str, now: int
    ) -> Answer:
        remaining = reset = None
        if rate:
            used, reset = self._rates.used(rate, now)
            remaining = max(0, self._per_minute[role] - used)
        return Answer(
            ref, "", place.id, place.offset, place.shown, remaining=remaining, reset_ms=reset
        )

    def _rate_key(self, submission: Submission) -> tuple[str, str] | None:
        if submission.type != "COMMENT" or not self._per_minute.get(submission.role, 0):
            return None
        return submission.stream, submission.actor

    def _admit(
        self, submission: Submission, nonce: str, rate: tuple[str, str] | None, now: int
    ) -> bytes | Refusal:
        """Return the record to append, or why there is none."""
        if max(len(self._pending), len(self._outbox)) >= self._pending_max:
            return Refusal("unavailable", "too much is waiting for the log; send it again", 1000)
        try:
            if submission.type != "COMMENT":
                return self._admit_event(submission, nonce, now)
            draft = _decode_draft(submission.data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            return Refusal("bad_request", f"malformed {submission.type}: {error}")
        refusal = check_text(draft.text, self._limits) or check_author(draft)
        if refusal:
            return refusal
        if rate:
            used, reset = self._rates.used(rate, now)
            allowed = self._per_minute[submission.role]
            if used >= allowed:
                return Refusal("rate_limited", f"at most {allowed} comments a minute", reset)
        self._ts, comment_id = self._ids.make(max(now, self._ts))
        ts = self._ts
        shown_ts = ts if draft.ts is None else draft.ts
        comment = Comment(comment_id, draft.user, draft.text, shown_ts, draft.reply_to)
        return encode_record("COMMENT", submission.stream, ts, submission.actor, nonce, comment)

    def _admit_event(self, submission: Submission, nonce: str, now: int) -> bytes | Refusal:
        if submission.type not in DATA_OF:
            return Refusal("bad_request", f"unknown event type {submission.type[:40]!r}")
        data: Any = msgspec.msgpack.decode(submission.data, type=DATA_OF[submission.type])
        self._ts = max(now, self._ts)
        return encode_record(
            submission.type, submission.stream, self._ts, submission.actor, nonce, data
        )


def check_text(text: str, limits: Limits) -> Refusal | None:
    """Return why a text is refused, None when it is fine (code points and UTF-8 bytes)."""
    if len(text) > limits.max_chars:
        return Refusal("too_long", f"{len(text)} characters; the limit is {limits.max_chars}")
    if not _clean(text):
        return Refusal("bad_request", "control characters and lone surrogates are refused")
    size = len(text.encode())
    if size > limits.max_bytes:
        return Refusal("too_long", f"{size} bytes; the limit is {limits.max_bytes}")
    # Invisible: separators (Z*), format characters and the like (C*), and marks without a base.
    if all(c in BLANKS or unicodedata.category(c)[0] in "ZCM" for c in text):
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
