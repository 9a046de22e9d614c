"""Lag of a consumer group: against a log of records that the test writes."""

import threading

import pytest

from uproar.lag import Lag
from uproar.log import LogUnavailable
from uproar.metrics import Metrics


class Records:
    """Just the two questions that are asked of a log: [partition][offset - 1] is a ts."""

    def __init__(self, *partitions):
        self.partitions = [list(stamps) for stamps in partitions]
        self.away = False

    def ends(self, partitions):
        if self.away:
            raise LogUnavailable("away")
        return {partition: len(self.partitions[partition]) for partition in partitions}

    def ts_at(self, partition, offset):
        return self.partitions[partition][offset - 1]


def test_lag_is_what_is_unread_and_how_old_that_is():
    log = Records([1_000, 2_000, 3_000], [])
    positions = {0: 0, 1: 0}
    lag = Lag(log, "archive", lambda: positions, threading.Event())
    lag.look(10.0)
    assert (lag.records, lag.seconds(10.0)) == (3, 9.0)
    assert lag.seconds(12.5) == 11.5, "nothing was read meanwhile: it grows between two looks"
    log.away = True
    with pytest.raises(LogUnavailable):
        lag.look(20.0)
    assert lag.seconds(20.0) == 19.0
    log.away = False

    positions[0] = 1
    assert lag.seconds(30.0) == 9.0, "the oldest was read: it was that old at the last look"
    lag.look(30.0)
    assert (lag.records, lag.seconds(30.0)) == (2, 28.0)
    log.partitions[1] += [500, 600]
    lag.look(30.0)
    assert (lag.records, lag.seconds(30.0)) == (4, 29.5)
    positions.update({0: 3, 1: 2})
    lag.look(31.0)
    assert (lag.records, lag.seconds(99.0)) == (0, 0.0)

    metrics = Metrics()
    lag.tell(metrics)
    assert 'uproar_log_position{group="archive"} 5\n' in metrics.text()
    assert 'uproar_log_lag_records{group="archive"} 0\n' in metrics.text()
    assert 'uproar_log_lag_seconds{group="archive"} 0.0\n' in metrics.text()


def test_the_thread_looks_by_itself_until_stopped():
    stop, looked = threading.Event(), threading.Event()
    log = Records([1_000, 2_000])

    class Looked(Lag):
        def look(self, now_s):
            super().look(now_s)
            looked.set()

    lag = Looked(log, "archive", lambda: {0: 1}, stop)
    lag.start()
    assert looked.wait(10)
    assert lag.records == 1
    stop.set()
    lag._thread.join(10)
    assert not lag._thread.is_alive()
