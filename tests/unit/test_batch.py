"""Batches: the coordinator's payload comes out as it went in; anything else is poisoned."""

import random

import pytest

from uproar.batch import Batch, decode_batch, encode_batch, stamped
from uproar.events import (
    Cleared,
    PoisonedRecord,
    UserRemoved,
    decode_record,
    encode_record,
    to_event,
)

T = 1_700_000_000_000


def test_events_come_out_at_their_offsets():
    raws = [
        (10**15 + 1, encode_record("CLEARED", "s", T, "m", "n", Cleared("m"))),
        (10**15 + 9, encode_record("USER_REMOVED", "s", T, "m", "o", UserRemoved("u"))),
    ]
    batch = decode_batch(encode_batch(10**15, 10**15 + 20, raws))
    assert (batch.prev, batch.last) == (10**15, 10**15 + 20)
    assert batch.events == [to_event(offset, decode_record(raw)) for offset, raw in raws]


def test_last_alone_says_that_nothing_more_came():
    assert decode_batch(encode_batch(7, 7, [])) == Batch(7, 7, [])
    for ms in (0, 1, 1_764_088_000_123):
        assert decode_batch(stamped(encode_batch(7, 7, []), ms)) == Batch(7, 7, [], ms)


def test_nothing_but_a_batch_is_taken_for_one():
    good = encode_batch(1, 2, [(2, encode_record("CLEARED", "s", T, "möd", "n", Cleared("m")))])
    no_text = good.replace(b"m\xc3\xb6d", b"m\xff\xffd")
    for payload in (b"", b"probe", good[:-1], b"\x91" * 100_000, no_text):
        with pytest.raises(PoisonedRecord, match="not a batch"):
            decode_batch(payload)
    chance = random.Random(2)
    for _ in range(2000):
        payload = bytearray(good)
        for _ in range(3):
            payload[chance.randrange(len(payload))] = chance.randrange(256)
        try:
            decode_batch(bytes(payload))
        except PoisonedRecord:
            pass
