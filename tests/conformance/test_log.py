"""What every log promises: order, places, positions, durability, and sentences when it can't."""

from __future__ import annotations

import os
import random
import threading
import time

import confluent_kafka as ck
import pytest
from confluent_kafka import Producer

from tests.conformance import kafka
from tests.conformance.conftest import Server
from tests.system import wait_until
from uproar import log as logs
from uproar.consumer import Consumer
from uproar.events import Cleared, encode_record
from uproar.lag import Lag
from uproar.log import Log, LogBatch, LogFull, LogRefused, LogUnavailable, epoch_of
from uproar.valkey_client import connect

T = (int(time.time()) - 3600) * 1000
ADAPTERS = ["valkey", pytest.param("kafka", marks=pytest.mark.stack)]


def open_log(server):
    """One more log on a server, as another process would have."""
    return server.keep(logs.open_log(server.config))


@pytest.fixture(scope="session")
def three_brokers():
    """Three, so that one may go."""
    yield from kafka.started(3)


@pytest.fixture
def topic(kafka_address):
    """A topic on the broker that the environment names, or on ours."""
    topic = kafka.Topic(kafka_address)
    yield topic
    topic.remove()


@pytest.fixture
def replicated_topic(three_brokers):
    """A topic of which two brokers must have a record, and three should."""
    topic = kafka.Topic(three_brokers.address, three_brokers, log__replicas=3, log__min_insync=2)
    yield topic
    topic.remove()


@pytest.fixture
def valkey_server(shared_log_server):
    """The shared Valkey, empty."""
    shared_log_server.client().flushall()
    yield shared_log_server
    shared_log_server.close_opened()


@pytest.fixture(params=ADAPTERS)
def log_server(request):
    """An empty log of one adapter."""
    name = "topic" if request.param == "kafka" else "valkey_server"
    return request.getfixturevalue(name)


@pytest.fixture(params=ADAPTERS)
def mortal_log_server(request):
    """A log server of the test's own: to be killed, paused, restarted."""
    if request.param == "valkey":
        server = Server("log")
        server.start()
    else:
        brokers = request.getfixturevalue("brokers")
        server = kafka.Topic(brokers.address, brokers)
    yield server
    server.remove()


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
    assert (log.end(0), log.ends([0]), log.ends([])) == ((0, 0), {0: 0}, {})
    assert log.read(0, 0, 0.0, 100) == []
    assert (log.before_ts(0, T), log.ts_at(0, 5), log.position("g", 0)) == (0, 0, 0)
    assert log.partition_of("any") < log.partitions


def test_the_lag_of_a_group_is_what_it_has_not_read_and_how_old_that_is(log):
    *_, (last, _, _) = fill(log, [1, 1])
    positions = {0: last - 1}
    lag = Lag(log, "archive", lambda: positions, threading.Event())
    lag.look(T / 1000 + 60)
    assert lag.records == 1
    assert lag.seconds(T / 1000 + 70) == pytest.approx(70, abs=0.1)
    positions[0] = last
    lag.look(T / 1000 + 80)
    assert (lag.records, lag.seconds(T / 1000 + 90)) == (0, 0.0)


def test_records_come_back_as_they_are_at_rising_offsets(log):
    written = [(offset, record) for offset, record, _ in fill(log, [1, 3, 1, 100])]
    offsets = [offset for offset, _ in written]
    assert offsets == sorted(set(offsets)) and offsets[0] >= 1
    assert read_all(log) == written
    assert log.end(0) == (offsets[-1], T + 30)
    assert log.ends({0: "any"}) == {0: offsets[-1]}


def test_reading_goes_on_from_any_position_inside_batches_too(log, log_server):
    written = [(offset, record) for offset, record, _ in fill(log, [3, 1, 5, 2])]
    for after in range(written[-1][0] + 1):
        expected = [one for one in written if one[0] > after]
        assert read_all(log, after) == expected
        assert read_all(open_log(log_server), after, limit=1) == expected


def test_a_read_that_failed_in_the_middle_of_a_batch_loses_nothing(valkey_server):
    log = open_log(valkey_server)
    written = [(offset, record) for offset, record, _ in fill(log, [5, 2])]
    good = log._reader
    log._reader = valkey_server.keep(connect(valkey_server.config.data_dir / "nobody.sock", 0.1))
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
    reader = threading.Thread(target=lambda: found.extend(log.read(0, 0, 5.0, 100)))
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


def test_trimming_forgets_only_what_it_may(valkey_server):
    log = open_log(valkey_server)
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
    others = isinstance(mortal_log_server, Server)
    other = Server("log") if others else kafka.Topic(mortal_log_server.address)
    try:
        if others:
            other.start()
        assert open_log(other).epoch(0) != epoch
    finally:
        other.remove()
    others = (("t", 0, 1), ("t", 0, 2), ("t", 1, 2), ("u", 0, 1))
    assert len({epoch_of(*other) for other in others}) == 4


def append_until_killed(log, server, chance, batches):
    """Append what `batches` gives until the server is gone; return the (first, batch) answered."""
    gone = threading.Event()
    killer = threading.Timer(0.05 + chance.random() * 0.2, lambda: (server.kill(), gone.set()))
    wait_until(lambda: _answers(log), 20, "the log answers")
    answered = []
    for batch, ts in batches:
        if gone.is_set():
            break
        try:
            answered.append((log.append(0, batch, ts), batch))
        except LogUnavailable:
            continue
        if len(answered) == 5:  # it is warm
            killer.start()
    killer.join(20)
    return answered


def test_what_was_answered_survives_kill_9_at_any_moment(mortal_log_server):
    """load: appends without pause. fault: SIGKILL, three times. invariant: what returned stands.

    Kafka once: it takes 5 s to come back, and the next test kills it too.
    """
    server, chance = mortal_log_server, random.Random(9)
    log = open_log(server)
    answered: dict[int, bytes] = {}
    number = 0

    def batches():
        nonlocal number
        while True:
            records = [body(number + one, 200) for one in range(chance.randint(1, 20))]
            number += len(records)
            yield records, T + number

    for _ in range(3 if isinstance(server, Server) else 1):
        for first, records in append_until_killed(log, server, chance, batches()):
            answered.update(enumerate(records, first))
        server.start()
        wait_until(lambda: _answers(log), 20, "the log answers again")
        found = dict(read_all(log))
        assert {offset: found.get(offset) for offset in answered} == answered
        assert sorted(found) == list(range(1, len(found) + 1)), "offsets were given twice or lost"
    assert len(answered) > 15


def test_what_is_sent_again_until_it_is_answered_counts_once_and_in_order(mortal_log_server):
    """load: records with keys, each batch sent until answered. fault: SIGKILL in mid-append."""
    server, chance = mortal_log_server, random.Random(5)
    log, stop = open_log(server), threading.Event()
    batches = [
        [
            encode_record("CLEARED", "s", T + at, "m", f"n{at}", Cleared())
            for at in range(start, start + 10)
        ]
        for start in range(0, 4000, 10)
    ]
    kills = iter([60, 200] if isinstance(server, Server) else [60])
    kill_at, killer = next(kills), None
    for number, batch in enumerate(batches):
        if number == kill_at:
            killer = threading.Timer(chance.random() * 0.02, server.kill)
            killer.start()
            kill_at = next(kills, -1)
        until = time.monotonic() + 60
        while True:
            try:
                log.append(0, batch, T + 4000)
                break
            except LogUnavailable:
                assert time.monotonic() < until
                killer.join(20)
                server.start()
    consumer = Consumer(log, "g")
    consumer.start(0, stop)
    counted = []
    while (poll := consumer.poll(0.0, 1000, stop)).last > poll.after:
        counted += [one.record.nonce for one in poll.records]
    assert counted == [f"n{at}" for at in range(4000)]


def calls(log):
    return [
        lambda: log.append(0, [b"x"], T), lambda: log.read(0, 0, 0.0, 10), lambda: log.end(0),
        lambda: log.read(0, 3, 0.1, 10), lambda: log.before_ts(0, T), lambda: log.ts_at(0, 1),
        lambda: log.position("g", 0), lambda: log.commit("g", 0, 1),
        lambda: log.read_any({0: 0}, 0.1, 10),
    ]  # fmt: skip


@pytest.mark.parametrize("fault", ["killed", pytest.param("paused", marks=pytest.mark.long)])
def test_a_log_that_is_away_says_so_in_bounded_time(mortal_log_server, fault):
    server = mortal_log_server
    log = open_log(server)
    log.append(0, [b"x"], T)
    for call in calls(log):
        call()
    server.kill() if fault == "killed" else server.pause()
    try:
        for call in calls(log):
            began = time.monotonic()
            with pytest.raises(LogUnavailable, match=r"the log does not answer: \w+"):
                call()
            # A blocking read waits for the server a little longer than for a record.
            assert time.monotonic() - began < server.config.log.timeout_s + 2.0 + 1.5
    finally:
        server.start() if fault == "killed" else server.resume()
    wait_until(lambda: _answers(log), 20, "the log answers again")
    for call in calls(log):
        call()


def _answers(log):
    try:
        log.end(0)
    except LogUnavailable:
        return False
    return True


def test_a_full_log_takes_nothing_says_so_and_goes_on_when_there_is_room(valkey_server):
    log = open_log(valkey_server)
    written = [(offset, record) for offset, record, _ in fill(log, [10])]
    operator = valkey_server.client()
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
    operator.config_set("maxmemory", "1gb")
    assert log.append(0, [b"yes"], T) == end[0] + 1


@pytest.mark.parametrize("last", [10**15, 5 * 10**15 + 1, 2**53 - 100])
def test_large_offsets_are_exact(valkey_server, last):
    log = open_log(valkey_server)
    valkey_server.client().set("log:0:next", last)
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
def test_an_entry_that_no_append_made_covers_its_place_and_stops_nothing(valkey_server, fields):
    log, operator = open_log(valkey_server), valkey_server.client()
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
    patient = log_server.settings(log__timeout_s=20)  # a first append waits for its producer

    def work(name):
        log = log_server.keep(logs.open_log(patient))
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


@pytest.mark.stack
def test_several_partitions_are_read_at_once_each_in_its_order(topic):
    log = open_log(topic)
    written = {}
    for number in range(30):
        partition = number % 3
        first = log.append(partition, [body(number), body(1000 + number)], T + number)
        written.setdefault(partition, []).extend(
            [(first, body(number)), (first + 1, body(1000 + number))]
        )
    after, found = dict.fromkeys(range(3), 0), {0: [], 1: [], 2: []}
    while batches := log.read_any(after, 0.0, 7):
        for batch in batches:
            found[batch.partition] += placed([batch])
            after[batch.partition] = batch.last
    assert found == written
    assert placed(log.read_any({1: 18}, 0.0, 100)) == written[1][18:]
    assert [batch.partition for batch in log.read_any({0: 20, 1: 20, 2: 19}, 0.0, 9)] == [2]


def test_what_a_valkey_has_is_read_as_any(valkey_server):
    log = open_log(valkey_server)
    written = [(offset, record) for offset, record, _ in fill(log, [3, 2])]
    assert placed(log.read_any({0: 1}, 0.0, 100)) == written[1:]


@pytest.mark.stack
def test_streams_lie_where_other_clients_would_put_them(topic):
    """librdkafka's `consistent` partitioner, by which kcat and others find a stream."""
    log = open_log(topic)
    producer = Producer({"bootstrap.servers": topic.address, "partitioner": "consistent"})
    places = {}

    def landed(error, message):
        places[message.key().decode()] = message.partition()

    streams = ["a", "lobby", "stream-42", "x" * 64, *(f"s{number}" for number in range(50))]
    for stream in streams:
        producer.produce(topic.name, b"", stream.encode(), on_delivery=landed)
    assert producer.flush(10) == 0
    assert places == {stream: log.partition_of(stream) for stream in streams}
    raw = encode_record("CLEARED", "lobby", T, "m", "n", Cleared())
    log.append(log.partition_of("lobby"), [raw], T)
    reader = ck.Consumer({"bootstrap.servers": topic.address, "group.id": "look"})
    reader.assign([ck.TopicPartition(topic.name, places["lobby"], ck.OFFSET_BEGINNING)])
    try:
        found = wait_until(lambda: _with_value(reader.poll(1.0), raw), 10, "the record is seen")
        assert found.key() == b"lobby"
    finally:
        reader.close()


def _with_value(message, raw):
    return message if message is not None and message.value() == raw else None


@pytest.mark.stack
def test_records_that_no_append_made_are_set_aside_and_stop_nothing(topic):
    """2 MB of garbage, nothing at all, and a version to come, from a stranger's producer."""
    log, stop = open_log(topic), threading.Event()

    def good(nonce):
        return encode_record("CLEARED", "s", T, "m", nonce, Cleared())

    log.append(0, [good("a")], T)
    stranger = Producer({"bootstrap.servers": topic.address, "message.max.bytes": 3 << 20})
    for value in (os.urandom(2_000_000), None, b"", good("x").replace(b"\x99\x01", b"\x99\x02", 1)):
        stranger.produce(topic.name, value, partition=0)
        assert stranger.flush(10) == 0
    log.append(0, [good("b")], T)
    consumer = Consumer(log, "g")
    consumer.start(0, stop)
    counted = []
    while (poll := consumer.poll(0.0, 100, stop)).last > poll.after:
        counted += [(one.offset, one.record.nonce) for one in poll.records]
    assert counted == [(1, "a"), (6, "b")]
    assert (consumer.position, consumer.poisoned) == (6, 4)


@pytest.mark.stack
def test_a_record_may_be_as_large_as_the_terms_of_a_stream(topic):
    log = open_log(topic)
    large = os.urandom(2_200_000)
    first = log.append(0, [b"a", large, b"b"], T)
    assert read_all(log) == [(first, b"a"), (first + 1, large), (first + 2, b"b")]


@pytest.mark.stack
def test_what_retention_has_removed_is_passed_over(topic):
    log = open_log(topic)
    written = [(offset, record) for offset, record, _ in fill(log, [10, 10])]
    topic.forget(0, 15)
    log.trim(0, 18)
    assert read_all(log, 0) == read_all(log, 7) == written[15:]
    assert read_all(log, 17) == written[17:]
    assert (log.ts_at(0, 3), log.ts_at(0, 16), log.end(0)) == (0, T + 10, (20, T + 10))
    assert log.before_ts(0, T) <= 15 and log.before_ts(0, T + 11) == 20
    topic.forget(0, 20)
    assert (log.end(0), read_all(log, 3)) == ((20, 0), [])
    assert log.append(0, [b"next"], T) == 21


@pytest.mark.stack
def test_a_topic_is_made_once_by_however_many(topic):
    """Six processes come up at once on an empty broker."""
    other = topic.settings(log__topic=f"{topic.name}-new")
    failures = []

    def come_up():
        log = logs.open_log(other)
        try:
            log.prepare()
            log.append(0, [b"x"], T)
        except Exception as error:
            failures.append(error)
        finally:
            log.close()

    threads = [threading.Thread(target=come_up) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    log = topic.keep(logs.open_log(other))
    assert not failures and len(read_all(log)) == 6


@pytest.mark.stack
@pytest.mark.parametrize(
    ("settings", "promised", "why"),
    [
        ({}, {"log__partitions": 4}, r"3 partitions where log.partitions says 4.*set log.part"),
        ({}, {"log__partitions": 2}, r"3 partitions where log.partitions says 2"),
        ({}, {"log__replicas": 2}, r"1 replicas where log.replicas promises 2.*lower log.repl"),
        (
            {"min_insync_replicas": 1},
            {"log__replicas": 1, "log__min_insync": 1, "log__retention_s": 86_400 * 7},
            r"retention.ms = 86400000 is less than log.retention_s.*archive.*ms=604800000",
        ),
        ({"retention_ms": 599_000}, {}, r"retention.ms = 599000 is less than log.retention_s"),
        ({"retention_bytes": 1 << 30}, {}, r"retention.bytes = .*may not have read"),
        ({"cleanup_policy": "compact"}, {}, r"cleanup.policy = compact removes.*=delete"),
        ({"cleanup_policy": "compact,delete"}, {}, r"cleanup.policy = compact,delete removes"),
        ({"unclean_leader_election_enable": "true"}, {}, r"lacks acknowledged records"),
        ({"message_timestamp_type": "LogAppendTime"}, {}, r"hides the records' own times"),
        (
            {"max_message_bytes": 1_000_000},
            {},
            r"than a record may have; kafka-configs --alter",
        ),
    ],
)
def test_a_topic_that_promises_less_is_refused_with_the_remedy(topic, settings, promised, why):
    if settings:
        topic.alter(**settings)
    log = topic.keep(logs.open_log(topic.settings(**promised)))
    with pytest.raises(LogRefused, match=f'topic "{topic.name}": .*{why}'):
        log.prepare()


@pytest.mark.stack
def test_a_topic_that_can_t_be_made_is_refused(topic):
    config = topic.settings(log__topic=f"{topic.name}-big", log__replicas=9)
    log = topic.keep(logs.open_log(config))
    with pytest.raises(LogRefused, match=r"can't be made: .*lower log.replicas"):
        log.prepare()


@pytest.mark.stack
@pytest.mark.long
def test_too_few_replicas_in_sync_refuse_a_write_and_one_may_go(replicated_topic):
    """load: appends. fault: a leader killed, then a second broker. invariant: nothing is lost."""
    topic = replicated_topic
    log, answered = open_log(topic), []

    def append():
        try:
            first = log.append(0, [body(len(answered))], T)
        except LogUnavailable:
            return False
        answered.append((first, body(len(answered))))
        return True

    assert append()
    described = topic.operator.describe_topics(ck.TopicCollection([topic.name]))
    leader = described[topic.name].result(10).partitions[0].leader.id
    first, *others = [one for one in topic.brokers.servers if one.name == f"kafka{leader}"] + [
        one for one in topic.brokers.servers if one.name != f"kafka{leader}"
    ]
    first.kill9()
    wait_until(append, 30, "the next leader takes records")
    for _ in range(20):
        assert append()
    others[0].kill9()
    refused = 0
    until = time.monotonic() + 30
    while refused < 2:  # a record may still slip in while the broken majority is found out
        assert time.monotonic() < until
        refused += not append()
    with pytest.raises(LogUnavailable, match=r"leader up, and as many replicas in sync as"):
        log.append(0, [b"refused"], T)
    topic.start()
    wait_until(append, 60, "records are taken again")
    found = read_all(log)
    assert [one for one in found if one in set(answered)] == answered


@pytest.mark.stack
def test_a_group_shares_the_partitions_and_takes_over_what_a_dead_member_had(topic):
    first = open_log(topic)
    one = first.join("g", "a")
    wait_until(lambda: one.partitions() == {0, 1, 2}, 20, "the first has all")
    first.commit("g", 1, 5)
    second = open_log(topic)
    two = second.join("g", "b")
    wait_until(
        lambda: (
            one.partitions()
            and two.partitions()
            and not one.partitions() & two.partitions()
            and one.partitions() | two.partitions() == {0, 1, 2}
        ),
        20,
        "both have some, and nobody the same",
    )
    assert second.position("g", 1) == 5
    one.close()  # as a process that ended: its session runs out
    first._members.clear()
    wait_until(lambda: two.partitions() == {0, 1, 2}, 20, "the second has all")
    second.commit("g", 1, 4)
    second.commit("g", 2, 7)
    wait_until(lambda: second.position("g", 2) == 7, 5, "a member's commit stands")
    second.commit("g", 1, 9)
    wait_until(lambda: second.position("g", 1) == 9, 5, "a member's commit stands")


@pytest.mark.stack
def test_one_that_comes_back_under_its_name_has_its_partitions_at_once(topic):
    first = open_log(topic)
    one = first.join("g", "a")
    second = open_log(topic)
    two = second.join("g", "b")
    wait_until(
        lambda: one.partitions() | two.partitions() == {0, 1, 2} and two.partitions(), 20, "shared"
    )
    before = one.partitions()
    one.close()
    first._members.clear()
    again = open_log(topic).join("g", "a")
    wait_until(lambda: again.partitions() == before, 3, "its own are back before a session's end")
    assert two.partitions() == {0, 1, 2} - before


@pytest.mark.stack
def test_two_of_one_name_don_t_both_stay(topic):
    one = open_log(topic).join("g", "a")
    wait_until(one.partitions, 20, "the first has some")
    two = open_log(topic).join("g", "a")
    names = [one, two]

    def told():
        for number, member in enumerate(names):
            try:
                member.partitions()
            except LogUnavailable as error:
                if names[1 - number].partitions() == {0, 1, 2}:
                    return str(error)
        return None

    since = time.monotonic()

    def told_for_a_while():
        nonlocal since
        if told() is None:
            since = time.monotonic()
        return time.monotonic() - since > 2.0

    wait_until(told_for_a_while, 40, "one has all, the other is told, and so it stays")
    assert "another process joined as" in told() and "(log.member)" in told()


def test_a_group_of_one_has_all_there_is(valkey_server):
    assert open_log(valkey_server).join("g", "a").partitions() == {0}
