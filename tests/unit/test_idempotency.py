"""Which record of a key counts: repeats, chains of them, and what a late reader knows."""

import random

import pytest

from uproar.events import Cleared, decode_record, encode_record
from uproar.idempotency import (
    READ_BACK_MS,
    WINDOW_MS,
    Deduplicator,
    key_of,
    key_of_record,
)

T = 1_700_000_000_000
K = key_of("s", "COMMENT", "u", "n")


def test_the_first_counts_and_names_its_repeats():
    seen = Deduplicator()
    assert seen.admit(K, T, "first") is None
    assert seen.admit(K, T + 5, "second") == "first"
    assert seen.find(K, T + 6) == "first"
    assert seen.admit(key_of("s", "COMMENT", "u", "m"), T, "other") is None


@pytest.mark.parametrize(
    ("after_ms", "counts"),
    [(0, False), (1, False), (WINDOW_MS - 1, False), (WINDOW_MS, False), (WINDOW_MS + 1, True)],
)
def test_a_repeat_is_one_within_two_minutes_of_the_records_own_time(after_ms, counts):
    for start in (T, T + 1, T + 9_999):  # wherever the edges of the buckets lie
        seen = Deduplicator()
        seen.admit(K, start, "first")
        assert (seen.find(K, start + after_ms) is None) is counts
        assert (seen.admit(K, start + after_ms, "again") is None) is counts


def test_a_repeat_starts_the_two_minutes_anew():
    seen = Deduplicator()
    assert seen.admit(K, T, "first") is None
    for number in range(1, 6):
        assert seen.admit(K, T + number * (WINDOW_MS - 1), f"repeat {number}") == "first"
    late = T + 5 * (WINDOW_MS - 1) + WINDOW_MS
    assert seen.admit(K, late, "still") == "first"
    assert seen.admit(K, late + WINDOW_MS + 1, "new") is None


def test_each_field_tells_keys_apart():
    fields = ("s", "COMMENT", "u", "n")
    others = {key_of(*fields[:i], "x", *fields[i + 1 :]) for i in range(4)}
    # And no field runs into the next.
    others |= {key_of("sC", "OMMENT", "u", "n"), key_of("s", "COMMENT", "un", "")}
    assert len(others | {K}) == 7
    record = decode_record(encode_record("CLEARED", "s", T, "u", "n", Cleared()))
    assert key_of_record(record) == key_of("s", "CLEARED", "u", "n")


@pytest.mark.parametrize("seed", range(12))
def test_a_late_reader_agrees_with_one_that_never_stopped(seed):
    chance = random.Random(seed)
    keys = [key_of("s", "COMMENT", f"u{number}", "n") for number in range(6)]
    ts, log = T, []
    for offset in range(1, 1500):
        # Steps from the same millisecond to beyond the window, most of them small.
        ts += chance.choice([0, 1, 700, 5_000, 5_000, 30_000, WINDOW_MS - 1, WINDOW_MS + 1])
        log.append((offset, ts, chance.choice(keys)))
    steady = Deduplicator()
    truth = [steady.admit(key, ts, offset) for offset, ts, key in log]
    last = {}
    for (offset, ts, key), verdict in zip(log, truth, strict=True):  # by the definition itself
        repeat = key in last and ts - last[key][0] <= WINDOW_MS
        assert verdict == (last[key][1] if repeat else None)
        last[key] = (ts, verdict or offset)
    assert None in truth and any(truth)
    for start in chance.sample(range(len(log)), 60):
        late = Deduplicator()
        back = log[start - 1][1] - READ_BACK_MS if start else 0
        for offset, ts, key in log[:start]:
            if ts >= back:
                late.admit(key, ts, offset)
        for (offset, ts, key), verdict in zip(log[start:], truth[start:], strict=True):
            assert (late.admit(key, ts, offset) is None) == (verdict is None), (start, offset)


def test_memory_is_that_of_two_minutes():
    seen = Deduplicator()
    for number in range(20_000):
        seen.admit(key_of("s", "COMMENT", "u", str(number)), T + number * 100, number)
    # 100 ms a record: two minutes are 1,200, and a bucket holds 100 more.
    assert 1200 <= len(seen) <= 1400
