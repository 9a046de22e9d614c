"""The log on Apache Kafka: a topic, one event a record, its key the stream's id.

An offset of ours is Kafka's plus one: offsets begin at 1, 0 means *before everything*, and the
position that a group has committed is the number that Kafka's own tools show. Records carry the
`ts` of their append as CreateTime. librdkafka runs threads of its own: never in a gevent process.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Final

from confluent_kafka import (
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from uproar.config import Config
from uproar.events import PoisonedRecord, decode_record
from uproar.log import LogBatch, LogUnavailable, access, epoch_of, partition_of, topic
from uproar.log.group import Bookkeeper, KafkaMember

LINGER_MS: Final = 1  # ingest gathers; this only keeps one append together
POLL_S: Final = 0.1
GRACE_S: Final = 1.0  # beyond librdkafka's own deadline, before we stop waiting for its word
FETCH_KB: Final = 16_384  # read ahead by a reader, at most

# A leader is being found; the next answer comes from the right one.
TRANSIENT: Final = frozenset(
    {
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
    }
)

_EARLIEST: Final = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: Final = OffsetSpec.latest()  # type: ignore[no-untyped-call]


class KafkaLog:
    """`uproar.log.Log` on the topic `log.topic` of `log.brokers`."""

    def __init__(self, config: Config) -> None:
        self._settings = config.log
        self.partitions = config.log.partitions
        self._topic = config.log.topic
        self._timeout_s = config.log.timeout_s
        # One process a role on a host and data directory (its lock sees to that).
        place = hashlib.blake2b(os.fsencode(config.data_dir), digest_size=4).hexdigest()
        self._member = f"{config.log.member or socket.gethostname()}-{place}"
        timeout_ms = int(self._timeout_s * 1000)
        self._common: dict[str, Any] = {
            "bootstrap.servers": config.log.brokers,
            "client.id": "uproar",
            "socket.timeout.ms": timeout_ms,
            "socket.connection.setup.timeout.ms": max(1000, timeout_ms),
            "reconnect.backoff.ms": 20,
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,  # a line per refused connection; what is wrong is said by exceptions
            **access.options(config.log),
        }
        self._admin = AdminClient(self._common)
        self._lock = threading.Lock()  # of what is made when first used, and of the asker
        self._producing: _Producing | None = None
        self._reader: _Reader | None = None
        self._reader_of_any: _Reader | None = None
        self._asker: _Reader | None = None
        self._members: dict[str, KafkaMember] = {}
        self._bookkeepers: dict[str, Bookkeeper] = {}
        self._topic_id = ""

    def prepare(self, *, appending: bool = False) -> None:
        try:
            self._prepare()
        except LogUnavailable as error:
            access.knock(self._common, self._settings)
            listener = self._common["security.protocol"].upper()
            raise LogUnavailable(
                f"{error}; are the brokers up, and do log.brokers name {listener} listeners, as "
                "log.ca_file and log.user ask for?"
            ) from error

    def _prepare(self) -> None:
        topic.create(self._admin, self._settings, self._answers)
        topic.check(self._admin, self._settings, self._answers)
        self._offsets(
            list(range(self.partitions)), _LATEST
        )  # a new topic's partitions have no leaders yet

    def join(self, group: str, role: str) -> KafkaMember:
        with self._lock:
            member = self._members[group] = KafkaMember(
                self._common,
                self._topic,
                f"{self._topic}.{group}",
                f"{role}-{self._member}",
                self._settings.session_s,
            )
        return member

    def epoch(self, partition: int) -> str:
        if not self._topic_id:
            named = TopicCollection([self._topic])
            found = self._ask(lambda: self._admin.describe_topics(named))
            self._topic_id = str(found[self._topic].topic_id)
        return epoch_of(self._topic_id, partition, self.partitions)

    def partition_of(self, stream: str) -> int:
        return partition_of(stream, self.partitions)

    def append(self, partition: int, records: list[bytes], ts: int) -> int:
        return self._producer().append(self._topic, partition, records, ts)

    def read(self, partition: int, after: int, wait_s: float, limit: int) -> list[LogBatch]:
        if self._reader is None:
            self._reader = _Reader(self._common, self._topic, 50)
        return self._read(self._reader, {partition: after}, wait_s, limit)

    def read_any(self, after: Mapping[int, int], wait_s: float, limit: int) -> list[LogBatch]:
        if self._reader is not None:  # what reads back has done so; it would go on fetching
            self._reader.close()
            self._reader = None
        if self._reader_of_any is None:
            self._reader_of_any = _Reader(self._common, self._topic, 250)
        return self._read(self._reader_of_any, after, wait_s, limit)

    def _read(
        self, reader: _Reader, after: Mapping[int, int], wait_s: float, limit: int
    ) -> list[LogBatch]:
        found = reader.take(after, min(wait_s, self._timeout_s), limit)
        if not found:
            # Nothing came: because there is nothing, or because nobody answers?
            ends = self._offsets(list(after), _LATEST)
            if any(ends[partition] > position for partition, position in after.items()):
                found = reader.take(after, self._timeout_s, limit)
                if not found and not reader.out_of_range:
                    raise LogUnavailable(
                        "the log does not answer: it has records and does not give them"
                    )
        if reader.out_of_range:
            return self._beyond(reader, after, wait_s, limit)
        return _batches(found)

    def _beyond(
        self, reader: _Reader, after: Mapping[int, int], wait_s: float, limit: int
    ) -> list[LogBatch]:
        """Read on after positions that are no longer, or not yet, in the log."""
        starts = self._offsets(list(after), _EARLIEST)
        moved = {partition: max(at, starts[partition]) for partition, at in after.items()}
        if moved == dict(after):  # above the end: there is nothing until somebody appends
            time.sleep(min(wait_s, self._timeout_s))
            return []
        return self._read(reader, moved, wait_s, limit)

    def end(self, partition: int) -> tuple[int, int]:
        last = self._offsets([partition], _LATEST)[partition]
        return (last, self._ts_of(partition, last)) if last else (0, 0)

    def ends(self, partitions: Collection[int]) -> dict[int, int]:
        return self._offsets(list(partitions), _LATEST) if partitions else {}

    def ts_at(self, partition: int, offset: int) -> int:
        last = min(offset, self._offsets([partition], _LATEST)[partition])
        return self._ts_of(partition, last) if last else 0

    def before_ts(self, partition: int, ts: int) -> int:
        found = self._offsets([partition], OffsetSpec.for_timestamp(max(0, ts)))[partition]
        return found if found >= 0 else self._offsets([partition], _LATEST)[partition]

    def position(self, group: str, partition: int) -> int:
        with self._lock:
            return self._bookkeeper(group).position(partition, self._timeout_s)

    def commit(self, group: str, partition: int, offset: int) -> None:
        member = self._members.get(group)
        if member is not None:
            member.commit(partition, offset)
            return
        with self._lock:  # nobody has joined: an operator, a test
            bookkeeper = self._bookkeeper(group)
            if offset > bookkeeper.position(partition, self._timeout_s):
                bookkeeper.commit(partition, offset)

    def trim(self, partition: int, keep_after: int) -> None:
        """Do nothing: the topic forgets by its retention."""

    def close(self) -> None:
        for member in self._members.values():
            member.close()
        for bookkeeper in self._bookkeepers.values():
            bookkeeper.close()
        for reader in (self._reader, self._reader_of_any, self._asker):
            if reader is not None:
                reader.close()
        if self._producing is not None:
            self._producing.close()

    def _producer(self) -> _Producing:
        with self._lock:
            if self._producing is None or self._producing.dead:
                self._producing = _Producing(self._common, self._timeout_s)
            return self._producing

    def _bookkeeper(self, group: str) -> Bookkeeper:
        if group not in self._bookkeepers:
            self._bookkeepers[group] = Bookkeeper(
                self._common, self._topic, f"{self._topic}.{group}", self._timeout_s
            )
        return self._bookkeepers[group]

    def _offsets(self, partitions: list[int], spec: Any) -> dict[int, int]:
        """Return an offset of each partition, as Kafka counts: its next one is our newest."""
        asked = {TopicPartition(self._topic, partition): spec for partition in partitions}
        found = self._ask(lambda: self._admin.list_offsets(asked))
        offsets = {at.partition: info.offset for at, info in found.items()}
        if OFFSET_INVALID in offsets.values():  # what it says of a broker that did not answer
            raise LogUnavailable("the log does not answer: a partition's leader says nothing")
        return offsets

    def _ts_of(self, partition: int, offset: int) -> int:
        """The `ts` of a record that is in the log; 0 when retention has removed it."""
        with self._lock:
            if self._asker is None:
                self._asker = _Reader(self._common, self._topic, 10)
            found = self._asker.take({partition: offset - 1}, self._timeout_s, 1)
            gone = self._asker.out_of_range
            self._asker.rest()
        if not found and not gone:
            raise LogUnavailable("the log does not answer: it has a record and does not give it")
        return int(found[0].timestamp()[1]) if found else 0

    def _ask(self, call: Callable[[], Mapping[Any, Future[Any]]]) -> dict[Any, Any]:
        """The results of an administrative call; raises LogUnavailable."""
        try:
            return self._answers(call)
        except KafkaException as error:
            raise LogUnavailable(f"the log does not answer: {error.args[0].str()}") from error

    def _answers(self, call: Callable[[], Mapping[Any, Future[Any]]]) -> dict[Any, Any]:
        """The same, with KafkaException for what a broker refuses for good."""
        until = time.monotonic() + self._timeout_s
        while True:
            try:
                return {
                    key: future.result(self._timeout_s + GRACE_S) for key, future in call().items()
                }
            except FutureTimeout as error:
                raise LogUnavailable(
                    f"the log does not answer: nothing within {self._timeout_s:g} s"
                ) from error
            except KafkaException as error:
                reason: KafkaError = error.args[0]
                if reason.code() < 0:  # librdkafka's own: nobody said a word
                    raise LogUnavailable(f"the log does not answer: {reason.str()}") from error
                if reason.code() not in TRANSIENT or time.monotonic() > until:
                    raise
            self._look_again()

    def _look_again(self) -> None:
        """Ask who leads: after a restart the admin client goes on with old epochs by itself."""
        time.sleep(0.02)
        try:
            self._admin.list_topics(self._topic, timeout=self._timeout_s)
        except KafkaException as error:
            raise LogUnavailable(f"the log does not answer: {error.args[0].str()}") from error


class _Reader:
    """A consumer that reads partitions from given positions on. For one thread."""

    def __init__(self, common: Mapping[str, Any], name: str, patience_ms: int) -> None:
        self._topic = name
        self.out_of_range = False
        self._at: dict[int, int] = {}  # where the consumer stands
        self._consumer = Consumer(
            {
                **common,
                "group.id": f"{name}.readers",  # of no account: nothing is committed under it
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "queued.max.messages.kbytes": FETCH_KB,
                # What is asked behind a fetch that waits is answered after it.
                "fetch.wait.max.ms": patience_ms,
                "fetch.queue.backoff.ms": 20,
                "fetch.error.backoff.ms": 50,
            }
        )

    def take(self, after: Mapping[int, int], wait_s: float, limit: int) -> list[Any]:
        """Return up to `limit` records, waiting for the first; none when nobody answers too."""
        self.out_of_range = False
        try:
            if self._at != after:
                self._at = {}
                self._consumer.assign([TopicPartition(self._topic, *one) for one in after.items()])
                self._at = dict(after)
            found: list[Any] = self._consumer.consume(1, wait_s)
            if found and limit > 1:
                found += self._consumer.consume(limit - 1, 0.0)
        except KafkaException as error:
            self._at = {}
            raise LogUnavailable(f"the log does not answer: {error.args[0].str()}") from error
        good: list[Any] = []
        for message in found:
            failed = message.error()
            if failed is not None:
                self._at = {}  # what came behind this is read again
                self.out_of_range = not good and failed.code() == KafkaError._AUTO_OFFSET_RESET
                break
            self._at[message.partition()] = message.offset() + 1
            good.append(message)
        return good

    def rest(self) -> None:
        """Fetch nothing until asked again."""
        self._at = {}
        self._consumer.unassign()

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()


class _Producing:
    """An idempotent producer, and the thread that hears what became of its records.

    librdkafka keeps the order and repeats what a broker may have lost; a report only appends.
    """

    def __init__(self, common: Mapping[str, Any], timeout_s: float) -> None:
        self.dead = False  # after a fatal error only a new producer helps
        self._timeout_s = timeout_s
        self._closing = False
        self._deliveries: list[_Delivery] = []
        self._lock = threading.Lock()
        self._producer = Producer(
            {
                **common,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": LINGER_MS,
                "compression.type": "lz4",
                "delivery.timeout.ms": int(timeout_s * 1000),
                "message.max.bytes": topic.RECORD_BYTES,
            }
        )
        self._thread = threading.Thread(target=self._hear, name="deliveries", daemon=True)
        self._thread.start()

    def append(self, name: str, partition: int, records: list[bytes], ts: int) -> int:
        """Return the first offset once every record has all its acknowledgements."""
        delivery = _Delivery(len(records))
        with self._lock:
            self._deliveries.append(delivery)
        try:
            for raw in records:  # produce_batch takes no timestamps (confluent-kafka 2.16)
                self._producer.produce(
                    name, raw, _key(raw), partition=partition, timestamp=ts,
                    on_delivery=delivery.report,
                )  # fmt: skip
            if not delivery.done.wait(self._timeout_s + GRACE_S):
                raise LogUnavailable(
                    f"the log does not answer: no acknowledgement within {self._timeout_s:g} s"
                )
        except (BufferError, KafkaException) as error:
            raise LogUnavailable(f"the log does not answer: {error}") from error
        finally:
            with self._lock:
                self._deliveries.remove(delivery)
        for failed, _ in delivery.reports:
            if failed is not None:
                self.dead = failed.fatal() or failed.code() == KafkaError._FATAL
                raise LogUnavailable(_why(failed, self._timeout_s))
        return int(delivery.reports[0][1].offset()) + 1

    def close(self) -> None:
        """End the thread; what is on its way is not waited for."""
        self._closing = True
        self._thread.join()
        self._producer.purge()
        self._producer.flush(GRACE_S)

    def _hear(self) -> None:
        while not self._closing:
            self._producer.poll(POLL_S)
            with self._lock:
                for delivery in self._deliveries:
                    if len(delivery.reports) == delivery.count:
                        delivery.done.set()


class _Delivery:
    """One append on its way."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.reports: list[tuple[KafkaError | None, Any]] = []
        self.done = threading.Event()

    def report(self, error: KafkaError | None, message: Any) -> None:
        self.reports.append((error, message))


def _batches(messages: list[Any]) -> list[LogBatch]:
    """Group records that follow each other, per partition."""
    batches: list[LogBatch] = []
    newest: dict[int, LogBatch] = {}
    for message in messages:
        partition, offset = message.partition(), message.offset() + 1
        value = message.value() or b""  # a record without a value is none of ours: it is poisoned
        batch = newest.get(partition)
        if batch is not None and offset == batch.first + len(batch.records):
            batch.records.append(value)
            continue
        newest[partition] = batch = LogBatch(partition, offset, offset, [value])
        batches.append(batch)
    return [batch._replace(last=batch.first + len(batch.records) - 1) for batch in batches]


def _key(raw: bytes) -> bytes | None:
    try:
        return decode_record(raw).stream.encode()
    except PoisonedRecord:
        return None


def _why(error: KafkaError, within_s: float) -> str:
    if error.code() in (KafkaError._MSG_TIMED_OUT, KafkaError.NOT_ENOUGH_REPLICAS):
        return (
            f"the log does not answer: no acknowledgement within {within_s:g} s; is the "
            "partition's leader up, and as many replicas in sync as min.insync.replicas asks for?"
        )
    return f"the log does not answer: {error.str()}"
