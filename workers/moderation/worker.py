"""Moderation: reads what was published and takes away what must not stay, through ingest.

It never stands in a comment's way. What it does has nonces derived from the comment that caused it,
so a redelivery after a crash repeats nothing; the position is committed when ingest has
acknowledged everything up to it. What it must know of the past (strikes, sanctions, the streams'
terms) it has from the log's last minutes, and from the store for what is older.
"""

from __future__ import annotations

import logging
import os
import queue
import time
from functools import partial
from typing import Final, NamedTuple

from uproar import events, status
from uproar.config import Config
from uproar.consumer import Counted, Share
from uproar.events import (
    Comment,
    CommentDeleted,
    Event,
    Flagged,
    PoisonedRecord,
    Sanction,
    Visibility,
    decode_record,
    to_event,
)
from uproar.ipc import Answer, IngestLink
from uproar.lag import Lag
from uproar.log import Log, open_log
from uproar.logs import event
from uproar.store import Store, StoreUnavailable, open_store
from workers.admission import is_by_service
from workers.ingest import address_of
from workers.moderation.figures import Figures
from workers.moderation.lists import files_of
from workers.moderation.moderator import Moderator, nonce_of
from workers.moderation.pipeline import Decision
from workers.moderation.reputation import ACTOR
from workers.process import Process

logger = logging.getLogger(__name__)

GROUP: Final = "moderation"
POLL_RECORDS: Final = 1024
ACTS: Final = 3  # that one comment leads to at most: deletion, strike, sanction
COMMIT_EVERY_S: Final = 0.5
TERMS_RETRY_S: Final = 1.0  # after a list that was refused
STORE_RETRY_S: Final = 1.0
PAST_TYPES: Final = frozenset({"TERMS", "SANCTION"})


class Act(NamedTuple):
    """Something to be put into the log because of a comment."""

    type: str
    stream: str
    nonce: str
    data: events.Data


def acts(stream: str, comment: Comment, decision: Decision, visibility: int) -> list[Act]:
    """Return what a decision on a published comment leads to.

    What only its author sees (shadow ban) is deleted like anybody's, and flagged to nobody.
    """
    found: list[Act] = []

    def act(kind: str, name: str, data: events.Data) -> None:
        found.append(Act(kind, stream, nonce_of(comment.id, name), data))

    if decision.removal:
        act("COMMENT_DELETED", "delete", CommentDeleted(comment.id, ACTOR, decision.removal.rule))
        user, why = comment.user.id, decision.removal.rule
        if decision.strike or decision.sanction:
            act("SANCTION", "strike", Sanction(user, "strike", ACTOR, why))
        sanction = decision.sanction
        if sanction:
            reason = f"{sanction.rule}; the last: {why}"
            data = Sanction(user, sanction.action, ACTOR, reason, sanction.until)
            act("SANCTION", sanction.action, data)
    elif decision.action in ("flag", "hold") and visibility == Visibility.ALL:
        details = decision.rule, decision.category, decision.score, decision.spans
        act("FLAGGED", "flag", Flagged(comment, *details))
    return found


class Past:
    """What happened before the position: the log's last minutes first, the store when asked.

    `since` (unix ms, by partition) divides them: what is older is the store's, the rest is read
    from the log, so nothing counts twice.
    """

    def __init__(self, store: Store, moderator: Moderator) -> None:
        self._store = store
        self._moderator = moderator
        self._known: dict[str, int] = {}  # stream: partition
        self._retry_at = 0.0
        self._since: dict[int, int] = {}

    def read_log(self, log: Log, partition: int, position: int, keep_ms: int) -> None:
        """Take in TERMS and SANCTION of the log's last `keep_ms`, and of what is not archived yet.

        Raises LogUnavailable.
        """
        try:
            archived = min(position, self._store.position(log.epoch(partition)))
        except StoreUnavailable:  # not made yet: nothing is older than the log
            archived = position
        newest = log.ts_at(partition, position)
        since = min(newest - keep_ms, log.ts_at(partition, archived))
        self._since[partition] = since
        at = log.before_ts(partition, since)
        while at < position:
            batches = log.read(partition, at, 0.0, POLL_RECORDS * 8)
            if not batches:
                return
            for batch in batches:
                for offset, raw in enumerate(batch.records, batch.first):
                    if offset <= position:
                        self._take(offset, raw, since)
            at = batches[-1].last

    def forget(self, partition: int) -> None:
        """Know nothing of a partition's streams: while another worker has it, things happen."""
        gone = {stream for stream, number in self._known.items() if number == partition}
        for stream in gone:
            del self._known[stream]
        self._moderator.reputation.forget(gone)

    def of(self, stream: str, partition: int) -> None:
        """See to it that a stream's older past is known, as far as the store answers."""
        if stream in self._known or time.monotonic() < self._retry_at:
            return
        try:
            standing = self._store.standing(stream)
        except StoreUnavailable as error:
            event(logger, "past_unknown", level=logging.WARNING, stream=stream, why=str(error))
            self._retry_at = time.monotonic() + STORE_RETRY_S
            return
        for found in standing:
            if found.ts < self._since[partition]:
                learn(self._moderator, stream, found, "")
        self._known[stream] = partition

    def _take(self, offset: int, raw: bytes, since: int) -> None:
        try:
            record = decode_record(raw)
            if record.type in PAST_TYPES and record.ts >= since:
                learn(self._moderator, record.stream, to_event(offset, record), record.nonce)
        except PoisonedRecord:
            pass  # counted when it was first read


def learn(moderator: Moderator, stream: str, found: Event, nonce: str) -> None:
    """Take an event in; terms that are none leave those before them in force."""
    try:
        moderator.learn(stream, found, nonce)
    except ValueError as error:
        event(logger, "terms_refused", level=logging.WARNING, stream=stream, why=str(error))


class Worker:
    """The loop and what it needs."""

    def __init__(self, process: Process) -> None:
        config: Config = process.config
        self.stop = process.stop
        self.log = open_log(config)
        self.share = Share(self.log, GROUP, self.begin, lambda gone: self.past.forget(gone))
        self.link = IngestLink(
            address_of(config.ingest.address, str(config.socket("ingest"))),
            deadline_s=config.ingest.ack_deadline_s,
            pending=POLL_RECORDS * ACTS,
        )
        self.store = open_store(config)
        self.moderator = Moderator(config.moderation)
        self.past = Past(self.store, self.moderator)
        self.keep_ms = int(config.moderation.strikes_s * 1000)
        self.files = files_of(config)
        self.terms_error = ""
        self.terms_retry_at = 0.0
        self.lag = Lag(self.log, GROUP, self.share.positions, self.stop)
        self.figures = Figures(self.lag)
        self.figures.metrics.read("uproar_drops_total", lambda: {"poisoned": self.share.poisoned})
        self._todo: list[Act] = []
        self._decided: list[tuple[str, str, int]] = []

    def begin(self, partition: int) -> int:
        """Return where the log says that this group stands, with the past known again."""
        position = self.log.position(GROUP, partition)
        self.past.read_log(self.log, partition, position, self.keep_ms)
        return position

    def run(self) -> None:
        """Moderate until stopped."""
        self.link.start()
        committed, commit_at = self.share.position, 0.0
        while not self.stop.is_set():
            polls = self.share.poll(0.25, POLL_RECORDS, self.stop)
            self._load_terms()  # after the wait: what is decided now is decided by today's file
            for poll in polls:
                for counted in poll.records:
                    self._see(counted, poll.partition)
            self._submit()
            now = time.monotonic()
            self.figures.terms = len(self.moderator.lists.installation)
            if self.share.position != committed and now >= commit_at:
                if self.share.commit():
                    committed = self.share.position
                commit_at = now + COMMIT_EVERY_S
        self.link.close()
        self.store.close()

    def _load_terms(self) -> None:
        if time.monotonic() < self.terms_retry_at:
            return
        try:
            if self.moderator.lists.refresh(self.files):
                self.terms_error = ""
                event(logger, "terms_loaded", terms=len(self.moderator.lists.installation))
        except (OSError, ValueError) as error:
            # A file that is half written or wrong must not switch moderation off.
            if self.terms_error != str(error):
                event(logger, "terms_refused", level=logging.WARNING, why=str(error))
            self.terms_error = str(error)
            self.terms_retry_at = time.monotonic() + TERMS_RETRY_S

    def _see(self, counted: Counted, partition: int) -> None:
        """Learn from an event, or decide on a comment and queue what follows."""
        record = counted.record
        if record.type not in PAST_TYPES and record.type != "COMMENT":
            return  # what people restored or approved is decided
        try:
            found = to_event(counted.offset, record)
        except PoisonedRecord as error:
            self.share.set_aside(partition, counted, error)
            return
        if record.type in PAST_TYPES:
            learn(self.moderator, record.stream, found, record.nonce)
            return
        if record.visibility == Visibility.HELD:
            return  # not published; it waits for a person
        self.past.of(record.stream, partition)
        comment: Comment = found.data
        decision = self.moderator.decide(
            record.stream, comment, record.ts, vouched=is_by_service(record)
        )
        self._todo += acts(record.stream, comment, decision, record.visibility)
        self._decided.append((decision.action, decision.stage, record.ts))

    def _submit(self) -> None:
        """Have all of it in the log before going on; what is `unavailable` is said again."""
        todo, self._todo = self._todo, []
        while todo and not self.stop.is_set():
            answers: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
            for number, act in enumerate(todo):
                self.link.submit(
                    act.type, act.stream, ACTOR, "service", act.nonce, act.data,
                    partial(_answered, answers, number),
                )  # fmt: skip
            again = []
            for _ in todo:
                number, answer = answers.get()  # the link answers everything by its deadline
                act = todo[number]
                if answer.code == "unavailable":
                    again.append(act)
                elif answer.code:
                    event(
                        logger, "act_refused", level=logging.ERROR,
                        act=act.type, nonce=act.nonce, code=answer.code, why=answer.message,
                    )  # fmt: skip
            todo = again
            if todo:
                self.stop.wait(0.1)
        if not todo:
            for decided in self._decided:
                self.figures.decided(*decided)
        self._decided.clear()


def _answered(answers: queue.SimpleQueue[tuple[int, Answer]], number: int, answer: Answer) -> None:
    answers.put((number, answer))


def work(process: Process) -> None:
    """The process: `python -m workers moderation`."""
    worker = Worker(process)
    closer = status.serve(
        process.config.socket("status-moderation"),
        lambda: {
            "name": "moderation",
            "pid": os.getpid(),
            "ready": True,
            "reason": worker.terms_error or worker.share.reason,
            "metrics": worker.figures.text(),
        },
    )
    worker.share.start(process.stop)
    if not process.stop.is_set():
        worker.lag.start()
        process.ready()
        worker.run()
        worker.share.commit()
    worker.share.close()
    closer.close()
