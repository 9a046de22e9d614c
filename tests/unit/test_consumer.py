"""The consumer: what counts, from any position on, with the log away and with poison in it."""

import random
import threading

import pytest

from uproar.consumer import READ_BACK_RECORDS, Consumer
from uproar.events import Cleared, encode_record
from uproar.idempotency import WINDOW_MS
from uproar.log import LogBatch, LogUnavailable

T = 1_700_000_000_000


class MemoryLog:
    """A log in memory, in batches; away for as many calls as `away` says."""

    partitions = 1

    def __init__(self):
        self.batches: list[tuple[LogBatch, int]] = []
        self.positions = {}
        self.away = 0

    def _answers(self):
        if self.away:
            self.away -= 1
            raise LogUnavailable("the log does not answer: gone for now")

    def append(self, partition, records, ts):
        first = self.batches[-1][0].last + 1 if self.batches else 1
        self.batches.append((LogBatch(0, first, first + len(records) - 1, records), ts))
        return first

    def read(self, partition, after, wait_s, limit):
        self._answers()
        found = []
        for batch, _ in self.batches:
            if batch.last > after and sum(len(one.records) for one in found) < limit:
                skip = max(0, after + 1 - batch.first)
                found.append(batch._replace(first=batch.first + skip, records=batch.records[skip:]))
        return found

    def ts_at(self, partition, offset):
        self._answers()
        return max((ts for batch, ts in self.batches if batch.first <= offset), default=0)

    def before_ts(self, partition, ts):
        self._answers()
        return max((batch.last for batch, newest in self.batches if newest < ts), default=0)

    def commit(self, group, partition, offset):
        self._answers()
        self.positions[group] = offset


@pytest.fixture
def stop():
    return threading.Event()


def record(ts, nonce):
    return encode_record("CLEARED", "s", ts, "m", nonce, Cleared())


def everything(consumer, stop):
    found = []
    while (poll := consumer.poll(0.0, 50, stop)).last > poll.after:
        assert all(poll.after < one.offset <= poll.last for one in poll.records)
        found += [one.offset for one in poll.records]
    return found


@pytest.mark.parametrize("seed", range(6))
def test_one_that_starts_anywhere_agrees_with_one_that_read_all(seed, stop):
    chance = random.Random(seed)
    log, ts = MemoryLog(), T
    for _ in range(150):
        # Time passes between batches; within one, as long as an append may take.
        ts += chance.choice([0, 10, 2000, 15_000, WINDOW_MS])
        records = []
        for _ in range(chance.randint(1, 9)):
            ts += chance.choice([0, 10, 2000])
            records.append(record(ts, f"n{chance.randrange(12)}"))
        log.append(0, records, ts)
    steady = Consumer(log, "g")
    steady.start(0, stop)
    truth = everything(steady, stop)
    end = log.batches[-1][0].last
    assert steady.position == end and 0 < len(truth) < end
    for position in chance.sample(range(end), 25):
        late = Consumer(log, "g")
        late.start(position, stop)
        assert late.position == position
        assert everything(late, stop) == [offset for offset in truth if offset > position]


def test_the_log_away_is_waited_for_and_said_once(stop, caplog):
    caplog.set_level("INFO")
    log = MemoryLog()
    log.append(0, [record(T, "a"), record(T, "b")], T)
    consumer = Consumer(log, "g")
    log.away = 2
    consumer.start(1, stop)
    assert everything(consumer, stop) == [2]
    log.away = 2
    for _ in range(2):
        poll = consumer.poll(0.0, 10, stop)
        assert (poll.after, poll.last, poll.records) == (2, 2, [])
    log.append(0, [record(T, "c")], T)
    assert everything(consumer, stop) == [3]
    log.away = 1
    assert not consumer.commit() and not log.positions
    assert consumer.commit() and log.positions == {"g": 3}
    said = [entry.getMessage() for entry in caplog.records]
    assert said == ["log_away", "log_back", "log_away", "log_back"]


def test_a_start_ends_when_it_is_told_to_stop(stop):
    log = MemoryLog()
    log.away = 10**9
    stop.set()
    Consumer(log, "g").start(5, stop)


def test_poison_is_set_aside_counted_and_covered(stop, caplog):
    log = MemoryLog()
    log.append(0, [record(T, "a"), b"\xc1garbage", record(T, "b")], T)
    log.batches.append((LogBatch(0, 4, 6, []), T))  # unreadable as a whole
    log.append(0, [record(T, "c")], T)
    consumer = Consumer(log, "g")
    consumer.start(0, stop)
    assert everything(consumer, stop) == [1, 3, 7]
    assert (consumer.position, consumer.poisoned) == (7, 2)
    assert [entry.getMessage() for entry in caplog.records] == ["record_poisoned"] * 2


def test_reading_back_takes_more_than_one_read_where_there_is_more(stop):
    log = MemoryLog()
    size = READ_BACK_RECORDS // 4
    for start in range(0, 6 * size, size):
        log.append(0, [record(T, f"n{start + number}") for number in range(size)], T)
    log.append(0, [record(T + 1, "n1"), record(T + 1, f"n{6 * size - 1}"), record(T + 1, "x")], T)
    consumer = Consumer(log, "g")
    consumer.start(6 * size, stop)
    assert everything(consumer, stop) == [6 * size + 3]
