"""Moderation: reads what was published and deletes what matches, through ingest like anybody.

It never stands in a comment's way. A deletion's nonce is derived from its cause, so a redelivery
after a crash repeats nothing; the position is committed when ingest has acknowledged every
deletion.
"""

from __future__ import annotations

import logging
import os
import queue
import time
from functools import partial
from pathlib import Path

from uproar import ids, status
from uproar.consumer import Consumer, Counted
from uproar.events import Comment, CommentDeleted, PoisonedRecord, to_event
from uproar.ipc import Answer, IngestLink
from uproar.log import LogUnavailable
from uproar.log.valkey import ValkeyLog
from uproar.logs import event
from workers.ingest import address_of
from workers.moderation.terms import Terms
from workers.process import Process

logger = logging.getLogger(__name__)

GROUP = "moderation"
ACTOR = "moderation"
PARTITION = 0
POLL_RECORDS = 1024
COMMIT_EVERY_S = 0.5
TERMS_RETRY_S = 1.0  # after a list that was refused


class Moderation:
    """The loop and what it needs."""

    def __init__(self, process: Process) -> None:
        config = process.config
        self.stop = process.stop
        self.log = ValkeyLog(config)
        self.consumer = Consumer(self.log, GROUP, PARTITION)
        self.link = IngestLink(
            address_of(config.ingest.address, str(config.socket("ingest"))),
            deadline_s=config.ingest.ack_deadline_s,
            pending=POLL_RECORDS,
        )
        self.files = [config.data_dir / "terms.txt", *map(Path, config.moderation.terms_files)]
        self.terms = Terms([])
        self.terms_error = ""
        self.terms_retry_at = 0.0
        self.decided = 0
        self.deleted = 0

    def run(self) -> None:
        """Moderate until stopped."""
        self.link.start()
        committed, commit_at = self.consumer.position, 0.0
        while not self.stop.is_set():
            poll = self.consumer.poll(0.25, POLL_RECORDS, self.stop)
            self._load_terms()  # after the wait: what is decided now is decided by today's file
            self._delete([found for found in map(self._decide, poll.records) if found])
            now = time.monotonic()
            if self.consumer.position > committed and now >= commit_at:
                if self.consumer.commit():
                    committed = self.consumer.position
                commit_at = now + COMMIT_EVERY_S
        self.link.close()

    def _load_terms(self) -> None:
        if time.monotonic() < self.terms_retry_at:
            return
        try:
            if self.terms.changed(self.files):
                self.terms = Terms.load(self.files)
                self.terms_error = ""
                event(logger, "terms_loaded", terms=len(self.terms))
        except (OSError, ValueError) as error:
            # A file that is half written or wrong must not switch moderation off.
            if self.terms_error != str(error):
                event(logger, "terms_refused", level=logging.WARNING, why=str(error))
            self.terms_error = str(error)
            self.terms_retry_at = time.monotonic() + TERMS_RETRY_S

    def _decide(self, counted: Counted) -> tuple[str, bytes, str] | None:
        """Return (stream, comment id, term) for what is to be deleted."""
        if counted.record.type != "COMMENT":
            return None
        try:
            comment: Comment = to_event(counted.offset, counted.record).data
        except PoisonedRecord as error:
            self.consumer.set_aside(counted, error)
            return None
        self.decided += 1
        match = self.terms.match(comment.text)
        return (counted.record.stream, comment.id, match.term) if match else None

    def _delete(self, todo: list[tuple[str, bytes, str]]) -> None:
        """Have all of them in the log before going on; what is `unavailable` is said again."""
        while todo and not self.stop.is_set():
            answers: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
            for number, (stream, comment_id, term) in enumerate(todo):
                self.link.submit(
                    "COMMENT_DELETED",
                    stream,
                    ACTOR,
                    "service",
                    f"moderation:{ids.to_text(comment_id)}:delete",
                    CommentDeleted(comment_id, ACTOR, f"term: {term}"),
                    partial(_answered, answers, number),
                )
            again = []
            for _ in todo:
                number, answer = answers.get()  # the link answers everything by its deadline
                if answer.code == "unavailable":
                    again.append(todo[number])
                elif answer.code:
                    event(
                        logger,
                        "deletion_refused",
                        level=logging.ERROR,
                        code=answer.code,
                        why=answer.message,
                    )
                else:
                    self.deleted += 1
            todo = again
            if todo:
                self.stop.wait(0.1)


def _answered(answers: queue.SimpleQueue[tuple[int, Answer]], number: int, answer: Answer) -> None:
    answers.put((number, answer))


def work(process: Process) -> None:
    """The process: `python -m workers moderation`."""
    moderation = Moderation(process)
    closer = status.serve(
        process.config.socket("status-moderation"),
        lambda: {
            "name": "moderation",
            "pid": os.getpid(),
            "ready": True,
            "reason": moderation.terms_error,
            "metrics": (
                "# HELP uproar_moderation_decided_total Comments looked at.\n"
                "# TYPE uproar_moderation_decided_total counter\n"
                f"uproar_moderation_decided_total {moderation.decided}\n"
                "# HELP uproar_moderation_deleted_total Comments deleted.\n"
                "# TYPE uproar_moderation_deleted_total counter\n"
                f"uproar_moderation_deleted_total {moderation.deleted}\n"
            ),
        },
    )
    while not process.stop.is_set():
        try:
            position = moderation.log.position(GROUP, PARTITION)
            break
        except LogUnavailable:
            process.stop.wait(0.05)
    else:
        return
    moderation.consumer.start(position, process.stop)
    if not process.stop.is_set():
        process.ready()
        moderation.run()
        moderation.consumer.commit()
    closer.close()
