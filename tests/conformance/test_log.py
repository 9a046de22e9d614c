"""What every log promises: order, places, positions, durability, and sentences when it can't."""

from __future__ import annotations

import random
import threading
import time

import pytest

from tests.conformance.conftest import TIMEOUT_S, Server, open_log
from tests.system import wait_until
from uproar.log import Log, LogBatch, LogFull, LogUnavailable, epoch_of
from uproar.valkey_client import connect

T = 1_700_000_000_000


@pytest.fixture
def log(log_server):
    return open_log(log_server)


def body(number, size=0):
    return f"r{number}".encode() + b"\0\xff" + b"x" * size


def fill(log, sizes, *, step_ms=10):
    """Append batches of so many records; return [(offset, record, ts of its batch)]."""
    written, number = [], 0
    for batch, size in enumerate(sizes):
        records = [body(number + one) for one in range(size)]
        ts = T + batch * step_ms
        first = log.append(0, records, ts)
        written += [(first + one, record, ts) for one, record in enumerate(records)]
        number += size
    return written


def placed(batches: list[LogBatch]):
    return [
        (offset, record)
        for batch in batches
        for offset, record in enumerate(batch.records, batch.first)
    ]


def read_all(log: Log, after=0, limit=100):
    found = []
    while batches := log.read(0, after, 0.0, limit):
        assert batches[0].first > after
        found += placed(batches)
        after = batches[-1].last
    return found


def test_an_empty_log(log):
    assert log.end(0) == (0, 0)
    assert log.read(0, 0, 0.0, 100) == []
    assert (log.before_ts(0, T), log.ts_at(0, 5), log.position("g", 0)) == (0, 0, 0)
    assert log.partition_of("any") < log.partitions


def test_records_come_back_as_they_are_at_rising_offsets(log):
    written = [(offset, record) for offset, record, _ in fill(log, [1, 3, 1, 100])]
    offsets = [offset for offset, _ in written]
    assert offsets == sorted(set(offsets)) and offsets[0] >= 1
    assert read_all(log) == written
    assert log.end(0) == (offsets[-1], T + 30)


def test_reading_goes_on_from_any_position_inside_batches_too(log, log_server):
    written = [(offset, record) for offset, record, _ in fill(log, [3, 1, 5, 2])]
    for after in range(written[-1][0] + 1):
        expected = [one for one in written if one[0] > after]
        assert read_all(log, after) == expected
        assert read_all(open_log(log_server), after, limit=1) == expected


def test_a_read_that_failed_in_the_middle_of_a_batch_loses_nothing(log, log_server):
    written = [(offset, record) for offset, record, _ in fill(log, [5, 2])]
    good = log._reader
    log._reader = log_server.keep(connect(log_server.config.data_dir / "nobody.sock", 0.1))
    with pytest.raises(LogUnavailable):
        log.read(0, 2, 0.0, 100)
    log._reader = good
    assert read_all(log, 2) == written[2:]


def test_a_read_waits_for_the_first_record_and_no_longer(log, log_server):
    began = time.monotonic()
    assert log.read(0, 0, 0.2, 100) == []
    assert 0.15 < time.monotonic() - began < 1.5
    other = open_log(log_server)
    found = []
    reader = threading.Thread(target=lambda: found.extend(log.read(0, 0, TIMEOUT_S, 100)))
    reader.start()
    other.append(0, [b"x"], T)
    reader.join(5)
    assert placed(found) == [(1, b"x")]


def test_a_read_brings_about_as_much_as_was_asked_for(log):
    written = fill(log, [100] * 60)
    after, sizes = 0, []
    while batches := log.read(0, after, 0.0, 500):
        sizes.append(sum(len(batch.records) for batch in batches))
        after = batches[-1].last
    assert sum(sizes) == len(written)
    assert max(sizes) <= 1000, "twice the limit at most, whatever the batches hold"
    assert log.read(0, 0, 0.0, 1) != [], "and never nothing"


def test_positions_only_move_forward(log, log_server):
    log.commit("g", 0, 7)
    log.commit("g", 0, 5)
    assert (log.position("g", 0), log.position("other", 0)) == (7, 0)
    log.commit("g", 0, 10**15 + 3)
    log.commit("g", 0, 10**15 + 1)
    assert open_log(log_server).position("g", 0) == 10**15 + 3


@pytest.mark.parametrize("seed", range(4))
def test_times_lead_to_offsets_and_back(log, seed):
    chance = random.Random(seed)
    written = fill(log, [chance.randint(1, 5) for _ in range(60)])
    end = written[-1][0]
    for ts in [0, T - 1, T, T + 600, 2 * T, *(T + chance.randrange(620) for _ in range(30))]:
        below = log.before_ts(0, ts)
        assert all(offset > below for offset, _, at in written if at >= ts)
        # And not far below: reading back two minutes reads little more than two minutes.
        assert below == max((offset for offset, _, at in written if at < ts), default=0)
    for offset, _, ts in chance.sample(written, 30):
        assert log.ts_at(0, offset) == ts
    assert log.ts_at(0, end + 100) == written[-1][2]


def test_trimming_forgets_only_what_it_may(log):
    written = [(offset, record) for offset, record, _ in fill(log, [10] * 400)]
    for keep_after in (0, 5, 1234, 1235, 3990):
        log.trim(0, keep_after)
        left = read_all(log, 0)
        assert left == written[-len(left) :]
        assert left[0][0] <= keep_after + 1
        assert read_all(log, keep_after) == written[keep_after:]
    assert len(left) < 1500, "nothing was forgotten"
    log.trim(0, 10**9)
    assert log.end(0)[0] == 4000
    assert log.append(0, [b"next"], T) == 4001


def test_the_epoch_is_the_log_s_own_and_lasts(mortal_log_server):
    log = open_log(mortal_log_server)
    epoch = log.epoch(0)
    assert len(epoch) == 12 and int(epoch, 16) >= 0
    log.append(0, [b"x"], T)
    log.commit("g", 0, 1)
    assert open_log(mortal_log_server).epoch(0) == epoch
    mortal_log_server.kill()
    mortal_log_server.start()
    again = open_log(mortal_log_server)
    assert (again.epoch(0), again.position("g", 0), read_all(again)) == (epoch, 1, [(1, b"x")])
    other = Server("log")
    try:
        other.start()
        assert open_log(other).epoch(0) != epoch
    finally:
        other.remove()
    others = (("t", 0, 1), ("t", 0, 2), ("t", 1, 2), ("u", 0, 1))
    assert len({epoch_of(*other) for other in others}) == 4


def test_what_was_answered_survives_kill_9_at_any_moment(mortal_log_server):
    """load: appends without pause. fault: SIGKILL, three times. invariant: what returned stands."""
    server, chance = mortal_log_server, random.Random(9)
    log = open_log(server)
    answered: dict[int, bytes] = {}
    number = 0
    for _ in range(3):
        killer = threading.Timer(0.05 + chance.random() * 0.2, server.kill)
        killer.start()
        with pytest.raises(LogUnavailable):
            while True:
                records = [body(number + one, 200) for one in range(chance.randint(1, 20))]
                number += len(records)
                first = log.append(0, records, T + number)
                answered.update(enumerate(records, first))
        killer.join(10)
        server.start()
        found = dict(read_all(log))
        assert {offset: found.get(offset) for offset in answered} == answered
        assert sorted(found) == list(range(1, len(found) + 1)), "offsets were given twice or lost"
    assert len(answered) > 50


def calls(log):
    return [
        lambda: log.append(0, [b"x"], T), lambda: log.read(0, 0, 0.0, 10), lambda: log.end(0),
        lambda: log.read(0, 3, 0.1, 10), lambda: log.before_ts(0, T), lambda: log.ts_at(0, 1),
        lambda: log.position("g", 0), lambda: log.commit("g", 0, 1), lambda: log.trim(0, 1),
        lambda: log.epoch(0),
    ]  # fmt: skip


@pytest.mark.parametrize("fault", ["killed", "paused"])
def test_a_log_that_is_away_says_so_in_bounded_time(mortal_log_server, fault):
    server = mortal_log_server
    log = open_log(server)
    log.append(0, [b"x"], T)
    server.kill() if fault == "killed" else server.pause()
    try:
        for call in calls(log):
            began = time.monotonic()
            with pytest.raises(LogUnavailable, match=r"the log does not answer: \w+"):
                call()
            # A blocking read waits for the server a little longer than for a record.
            assert time.monotonic() - began < TIMEOUT_S + 2.0 + 1.5
    finally:
        server.start() if fault == "killed" else server.resume()
    wait_until(lambda: _answers(log), 5, "the log answers again")
    for call in calls(log):
        call()


def _answers(log):
    try:
        log.end(0)
    except LogUnavailable:
        return False
    return True


def test_a_full_log_takes_nothing_says_so_and_goes_on_when_there_is_room(mortal_log_server):
    log = open_log(mortal_log_server)
    written = [(offset, record) for offset, record, _ in fill(log, [10])]
    operator = mortal_log_server.client()
    operator.config_set("maxmemory", 100_000)
    with pytest.raises(LogFull, match=r"memory bound.*raise it"):
        for _ in range(1000):
            log.append(0, [body(0, 1000)], T)
    end = log.end(0)
    for _ in range(3):
        with pytest.raises(LogFull):
            log.append(0, [b"no"], T)
    assert log.end(0) == end
    assert read_all(log)[:10] == written, "reading goes on"
    operator.config_set("maxmemory", "64mb")
    assert log.append(0, [b"yes"], T) == end[0] + 1


@pytest.mark.parametrize("last", [10**15, 5 * 10**15 + 1, 2**53 - 100])
def test_large_offsets_are_exact(log, log_server, last):
    log_server.client().set("log:0:next", last)
    assert log.append(0, [b"a", b"b"], T) == last + 1
    assert log.append(0, [b"c"], T + 1) == last + 3
    assert read_all(log, last + 1) == [(last + 2, b"b"), (last + 3, b"c")]
    assert log.end(0) == (last + 3, T + 1)
    log.commit("g", 0, last + 3)
    assert log.position("g", 0) == last + 3
    assert log.before_ts(0, T + 1) == last + 2


@pytest.mark.parametrize(
    "fields",
    [
        {"x": "y"},
        {"n": "2", "t": "soon", "b": b"\xc1"},
        {"n": "-5", "t": "1", "b": b"\x91\x05"},
        {"n": "two", "t": "", "b": ""},
    ],
)
def test_an_entry_that_no_append_made_covers_its_place_and_stops_nothing(log, log_server, fields):
    operator = log_server.client()
    log.append(0, [b"a"], T)
    operator.xadd("log:0", fields, id="2-0")
    operator.set("log:0:next", 5)
    log.append(0, [b"b"], T + 1)
    for after in range(6):
        assert [one for one in read_all(log, after) if one[0] == 6] == [(6, b"b")]
    assert log.end(0) == (6, T + 1)
    for ts in (T, T + 1, T + 2):
        assert log.before_ts(0, ts) <= 6
    log.ts_at(0, 2)
    log.trim(0, 2)
    assert read_all(log, 5) == [(6, b"b")]


def test_many_who_append_at_once_never_share_an_offset(log_server):
    got: list[tuple[int, bytes]] = []

    def work(name):
        log = open_log(log_server)
        for number in range(100):
            records = [f"{name}-{number}-{one}".encode() for one in range(3)]
            first = log.append(0, records, T)
            got.extend(enumerate(records, first))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(got) == read_all(open_log(log_server)) and len(got) == 900
