"""Where a stream lies: a function of its id alone, without a client of any server."""

import subprocess
import sys
from collections import Counter

import pytest

from uproar.config import load
from uproar.log import open_log, partition_of, partitions_of

KAFKA = {"log.engine": "kafka", "log.brokers": "127.0.0.1:1", "log.partitions": 7}


def test_a_stream_lies_where_it_always_did():
    """These never change: every stream's order lies in its partition."""
    known = {"lobby": 11, "stream-42": 8, "a": 3, "x" * 64: 2}
    assert {stream: partition_of(stream, 12) for stream in known} == known


def test_streams_spread_over_all_partitions():
    counts = Counter(partition_of(f"stream-{number}", 12) for number in range(6000))
    assert len(counts) == 12 and max(counts.values()) < 1.3 * min(counts.values())


def test_the_embedded_log_has_one_partition():
    config = load(environ={})
    assert partitions_of(config) == 1
    assert {partition_of(stream, 1) for stream in ("a", "b", "c")} == {0}
    assert partitions_of(load(environ={}, flags=KAFKA)) == 7


def test_a_log_is_opened_without_its_server():
    log = open_log(load(environ={}, flags=KAFKA))
    try:
        assert (log.partitions, log.partition_of("lobby")) == (7, partition_of("lobby", 7))
    finally:
        log.close()


@pytest.mark.parametrize("module", ["gateway.server", "uproar.serve", "uproar.admin"])
def test_what_has_gevent_or_forks_loads_no_kafka_client(module):
    code = f"import sys, {module}; sys.exit('confluent_kafka' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
