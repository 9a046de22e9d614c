"""A process's share of a group: what it is given it reads, what it loses it leaves."""

import threading

import pytest

from tests.unit.test_consumer import T, record
from uproar.consumer import Share
from uproar.log import LogBatch, LogRefused, LogUnavailable


class PartedLog:
    """Four partitions in memory; calling it says which of them the group gives to us."""

    partitions = 4

    def __init__(self):
        self.records: dict[int, list[bytes]] = {number: [] for number in range(4)}
        self.committed: dict[int, int] = {}
        self.owned = frozenset()
        self.away = 0
        self.refused = ""
        self.prepared = self.closed = 0

    def prepare(self):
        if self.refused:
            raise LogRefused(self.refused)
        self.answers()
        self.prepared += 1

    def answers(self):
        if self.away:
            self.away -= 1
            raise LogUnavailable("the log does not answer: gone for now")

    def __call__(self, *owned):
        self.owned = frozenset(owned)

    def join(self, group, role):
        return Member(self)

    def read_any(self, after, wait_s, limit):
        self.answers()
        found = []
        for partition, position in after.items():
            rest = self.records[partition][position : position + 2]
            if rest:
                found.append(LogBatch(partition, position + 1, position + len(rest), rest))
        return found

    def ts_at(self, partition, offset):
        return 0

    def end(self, partition):
        count = len(self.records[partition])
        return count, T + 1000 * count

    def commit(self, group, partition, offset):
        self.answers()
        self.committed[partition] = offset


class Member:
    def __init__(self, log):
        self.log = log

    def partitions(self):
        self.log.answers()
        return self.log.owned

    def close(self):
        self.log.closed += 1


@pytest.fixture
def log():
    log = PartedLog()
    for partition, records in log.records.items():
        records += [record(T, f"{partition}-{number}") for number in range(5)]
    return log


@pytest.fixture
def stop():
    return threading.Event()


@pytest.fixture
def share(log):
    begun, ended = [], []

    def begin(partition):
        log.answers()
        begun.append(partition)
        return log.committed.get(partition, 0)

    share = Share(log, "g", begin, ended.append)
    share.begun, share.ended = begun, ended
    return share


def nonces(polls):
    return {poll.partition: [one.record.nonce for one in poll.records] for poll in polls}


def test_each_partition_is_read_on_from_its_own_position(log, share, stop):
    log(0, 2)
    log.committed = {2: 3}
    share.start(stop)
    assert share.positions() == {0: 0, 2: 3}
    assert nonces(share.poll(0.0, 10, stop)) == {0: ["0-0", "0-1"], 2: ["2-3", "2-4"]}
    assert nonces(share.poll(0.0, 10, stop)) == {0: ["0-2", "0-3"]}
    assert share.commit() and log.committed == {0: 4, 2: 5}
    assert share.position == 9


def test_what_is_given_is_begun_and_what_is_taken_away_is_left(log, share, stop):
    log(0, 1)
    share.start(stop)
    share.poll(0.0, 10, stop)
    share.commit()
    log(1, 3)
    assert nonces(share.poll(0.0, 10, stop)) == {1: ["1-2", "1-3"], 3: ["3-0", "3-1"]}
    assert (share.begun, share.ended) == ([0, 1, 3], [0])
    share.commit()
    assert log.committed == {0: 2, 1: 4, 3: 2}, "what another has now is not committed by us"
    log(0, 1)
    assert nonces(share.poll(0.0, 10, stop)) == {0: ["0-2", "0-3"], 1: ["1-4"]}


def test_one_without_partitions_waits_as_long_as_a_poll(log, share, stop):
    share.start(stop)
    assert share.poll(0.01, 10, stop) == [] and share.position == 0
    log(3)
    assert nonces(share.poll(0.01, 10, stop)) == {3: ["3-0", "3-1"]}


def test_the_log_away_is_waited_for_and_said_once(log, share, stop, caplog):
    caplog.set_level("INFO")
    log(0)
    log.away = 2
    share.start(stop)
    assert log.prepared == 1 and share.reason
    log.away = 2
    assert share.poll(0.0, 10, stop) == [] == share.poll(0.0, 10, stop)
    assert nonces(share.poll(0.0, 10, stop)) == {0: ["0-0", "0-1"]} and not share.reason
    log.away = 1
    assert not share.commit()
    said = [entry.getMessage() for entry in caplog.records]
    assert said == ["log_away", "log_back"]


def test_a_log_that_promises_too_little_is_no_start(log, share, stop):
    log.refused = "topic: set it right"
    with pytest.raises(LogRefused, match="set it right"):
        share.start(stop)


def test_poison_is_counted_beyond_the_loss_of_its_partition(log, share, stop):
    log.records[0][0] = log.records[1][1] = b"\xc1"
    log(0, 1)
    share.start(stop)
    share.poll(0.0, 10, stop)
    assert share.poisoned == 2
    log(1)
    share.poll(0.0, 10, stop)
    assert share.poisoned == 2


def test_lag_is_in_records_and_in_seconds(log, share, stop):
    log(0)
    share.start(stop)
    log.ts_at = lambda partition, offset: T + 1000 * offset
    share.consumers[0].position = 2
    assert share.consumers[0].lag() == (3, 3.0)
    share.consumers[0].position = 5
    assert share.consumers[0].lag() == (0, 0.0)
    share.close()
    assert log.closed == 1
