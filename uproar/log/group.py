"""Membership in a Kafka consumer group: which partitions are ours, and their positions' commits.

Nothing is read here: the members' consumer has every partition paused, and `uproar.log.kafka`
reads. So however long a worker is busy, or waits for a server, the group does not mistake it for
dead; that is told by the heartbeat, within `log.session_s`. The consumer belongs to one thread
(confluent-kafka lets callers from two wait for each other); others leave positions with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from uproar.log import LogUnavailable
from uproar.logs import event

logger = logging.getLogger(__name__)

POLL_S: Final = 0.1
# librdkafka fences itself when the answer to a join is lost with the broker: the next try brings an
# old member id. So a fenced member joins anew, but a second time only after this: by then it is
# another process with our name.
REJOIN_S: Final = 60.0
COORDINATOR_SOON: Final = frozenset(
    {
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    }
)


class Bookkeeper:
    """Reads a group's positions, and stores them while nobody has joined. For one thread at a time.

    Not the admin client's calls for the same: librdkafka 2.16 dies of a segmentation fault when
    their answer is that another broker coordinates the group.
    """

    def __init__(
        self, settings: Mapping[str, Any], topic: str, group: str, timeout_s: float
    ) -> None:
        self._topic = topic
        self._consumer = Consumer(
            {
                **settings,
                "group.id": group,
                "enable.auto.commit": False,
                # How long a commit waits for a coordinator.
                "session.timeout.ms": int(timeout_s * 1000),
                "heartbeat.interval.ms": int(timeout_s * 200),
            }
        )

    def position(self, partition: int, within_s: float) -> int:
        """Return the last offset committed, 0 when there is none; raises LogUnavailable."""
        until = time.monotonic() + within_s
        while True:
            try:
                asked = TopicPartition(self._topic, partition)
                (found,) = self._consumer.committed([asked], timeout=within_s)
                if found.error is not None:
                    raise KafkaException(found.error)
                return max(0, found.offset)
            except KafkaException as error:
                reason: KafkaError = error.args[0]
                if reason.code() not in COORDINATOR_SOON or time.monotonic() > until:
                    raise LogUnavailable(f"the log does not answer: {reason.str()}") from error
            time.sleep(0.02)

    def commit(self, partition: int, offset: int) -> None:
        """Store a position; raises LogUnavailable."""
        at = TopicPartition(self._topic, partition, offset)
        try:
            self._consumer.commit(offsets=[at], asynchronous=False)
        except KafkaException as error:
            raise LogUnavailable(f"the log does not answer: {error.args[0].str()}") from error

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()


class KafkaMember:
    """One static member: a process that comes back under its name keeps its partitions."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        topic: str,
        group: str,
        name: str,
        session_s: float,
    ) -> None:
        self.group = group
        self.lost = ""  # why this member can't go on
        self._topic = topic
        self._name = name
        self._owned: frozenset[int] = frozenset()
        self._closing = threading.Event()
        self._settings = {
            **settings,
            "group.id": group,
            "group.instance.id": name,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": int(session_s * 1000),
            "heartbeat.interval.ms": max(1, int(session_s * 200)),
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
        self._lock = threading.Lock()
        self._to_commit: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._commit_error = ""
        self._consumer = self._joined()
        self._thread = threading.Thread(target=self._run, name=f"group-{group}", daemon=True)
        self._thread.start()

    def partitions(self) -> frozenset[int]:
        """Return the partitions that are this process's own now; raises LogUnavailable."""
        if self.lost:
            raise LogUnavailable(self.lost)
        return self._owned

    def commit(self, partition: int, offset: int) -> None:
        """Have a position stored within a moment; raises LogUnavailable when the last was not."""
        with self._lock:
            newest = self._to_commit.get(partition, self._committed.get(partition, -1))
            if offset > newest:
                self._to_commit[partition] = offset
        if self._commit_error:
            raise LogUnavailable(self._commit_error)

    def close(self) -> None:
        """End this incarnation. The group waits for the next one as long as a session lasts."""
        self._closing.set()
        self._thread.join()
        if not self._commit_error:
            self._store()
        self._consumer.close()

    def _joined(self) -> Consumer:
        consumer = Consumer(self._settings)
        consumer.subscribe(
            [self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
        )
        return consumer

    def _run(self) -> None:
        fenced_at = -REJOIN_S
        while (error := self._serve()) is not None:
            self._owned = frozenset()
            self._say_lost(error)
            self._consumer.close()
            if time.monotonic() < fenced_at + REJOIN_S:
                self._closing.wait(REJOIN_S)
            fenced_at = time.monotonic()
            self._consumer = self._joined()

    def _serve(self) -> KafkaError | None:
        """Be a member until told to close; return what ended that before."""
        while not self._closing.is_set():
            try:
                message = self._consumer.poll(POLL_S)
                error = message.error() if message is not None else None
            except KafkaException as raised:
                error = raised.args[0]
            if error is not None and (error.fatal() or error.code() == KafkaError._FATAL):
                return error
            self._store()
        return None

    def _store(self) -> None:
        """Commit what was left to commit; what fails stays for the next time."""
        with self._lock:
            todo = dict(self._to_commit)
        if not todo:
            return
        try:
            self._consumer.commit(
                offsets=[TopicPartition(self._topic, *one) for one in todo.items()],
                asynchronous=False,
            )
        except KafkaException as error:
            self._commit_error = f"the log took no position: {error.args[0].str()}"
            return
        self._commit_error = ""
        with self._lock:
            self._committed.update(todo)
            for partition, offset in todo.items():
                if self._to_commit.get(partition) == offset:
                    del self._to_commit[partition]

    def _say_lost(self, error: KafkaError) -> None:
        why = error.str()
        if "group.instance.id" in why:  # its code says no more than *fatal*
            why = (
                f'another process joined as "{self._name}"; give each host a name of its own '
                "(log.member)"
            )
        self.lost = f"the group {self.group} has no place for us: {why}"
        event(logger, "group_left", level=logging.ERROR, group=self.group, why=self.lost)

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            partition.offset = 0  # nothing is read from here, so none need be looked up
        consumer.incremental_assign(partitions)
        if partitions:
            consumer.pause(partitions)
        self._owned |= {one.partition for one in partitions}
        self.lost = ""
        self._changed("partitions_assigned", partitions)

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        gone = {one.partition for one in partitions}
        self._owned -= gone
        self._store()  # so that the next owner repeats little
        with self._lock:  # and knows its position; ours may be old when a partition comes back
            for partition in gone:
                self._to_commit.pop(partition, None)
                self._committed.pop(partition, None)
        consumer.incremental_unassign(partitions)
        self._changed("partitions_revoked", partitions)

    def _changed(self, what: str, partitions: list[TopicPartition]) -> None:
        numbers = sorted(one.partition for one in partitions)
        event(logger, what, group=self.group, partitions=numbers, owned=sorted(self._owned))
