"""Records: what goes in comes out, and nothing that is no record is more than poisoned."""

import random

import msgspec
import pytest

from uproar import events, ids
from uproar.batch import decode_batch, encode_batch
from uproar.events import (
    Cleared,
    Comment,
    CommentDeleted,
    Flagged,
    HeldResolved,
    Mode,
    Pinned,
    PoisonedRecord,
    Sampling,
    Sanction,
    StreamEnded,
    StreamStarted,
    Terms,
    Unpinned,
    User,
    UserRemoved,
    Visibility,
    decode_record,
    encode_record,
    to_event,
)

T = 1_700_000_000_000
ID = ids.build(T, 0, ids.new_node())
USER = User("u", "U", "vip", "#fff", ("sub",))
COMMENT = Comment(ID, USER, "hej 👋", T, ID, (("kappa", 0, 5),))
SHAPES = {
    type(data): data
    for data in (
        COMMENT,
        CommentDeleted(ID, "m", "why"),
        UserRemoved("u", T),
        Cleared("m"),
        Pinned(COMMENT, "m", T),
        Unpinned(ID, "m"),
        Mode({"slow_s": 30, "frozen": None}, "m"),
        Sampling(0.2, 5000.0),
        StreamStarted("A title", "m"),
        StreamEnded("m"),
        Sanction("u", "timeout", "m", "why", T),
        Flagged(COMMENT, "rule", "category", 0.5, ((0, 3),)),
        HeldResolved(ID, "approve", "m"),
        Terms(("no",), ("yes",), "m"),
    )
}


@pytest.mark.parametrize("kind", sorted(events.DATA_OF))
def test_every_type_comes_out_as_it_went_in(kind):
    data = SHAPES[events.DATA_OF[kind]]
    raw = encode_record(kind, "s", T, "a", "n", data, mask=5, visibility=Visibility.SHADOW)
    record = decode_record(raw)
    assert (record.type, record.stream, record.ts) == (kind, "s", T)
    assert (record.actor, record.nonce, record.mask, record.visibility) == ("a", "n", 5, 2)
    assert to_event(7, record) == (7, kind, T, "a", 5, 2, data)


def packed(**changes):
    fields = {
        "version": 1, "type": "COMMENT", "stream": "s", "ts": T, "actor": "a", "nonce": "n",
        "mask": 15, "visibility": 0, "data": [ID, ["u", "U"], "text", T],
    }  # fmt: skip
    return msgspec.msgpack.encode(list({**fields, **changes}.values()))


POISON = {
    "empty": b"",
    "garbage": b"\xc1\x00garbage",
    "cut short": packed()[:-3],
    "a map": msgspec.msgpack.encode({"version": 1}),
    "no UTF-8": packed().replace(b"\xa4text", b"\xa4te\xff\xfe").replace(b"\xa1a", b"\xa1\xff"),
    "deep": b"\x91" * 100_000,
    "schema version": packed(version=2),
    "type": packed(type="DANCE"),
    "type of time": packed(ts="now"),
    "time before 1970": packed(ts=-1),
    "time beyond what a store holds": packed(ts=2**64 - 1),
    "mask": packed(mask=2**63),
    "visibility": packed(visibility=4),
}
POISONED_DATA = {
    "no data": packed(data=None),
    "short id": packed(data=[b"abc", ["u", "U"], "text", T]),
    "time": packed(data=[ID, ["u", "U"], "text", 2**64 - 1]),
    "no user": packed(data=[ID, None, "text", T]),
    "no UTF-8": packed().replace(b"\xa4text", b"\xa4te\xff\xfe"),
    "deleted: short id": packed(type="COMMENT_DELETED", data=[b"abc"]),
    "removed: until": packed(type="USER_REMOVED", data=["u", -5]),
}


def test_the_template_of_the_poisons_is_sound():
    assert to_event(1, decode_record(packed())).data.text == "text"


@pytest.mark.parametrize("name", sorted(POISON))
def test_what_is_no_record_is_poisoned(name):
    with pytest.raises(PoisonedRecord, match=r"\w+ \w+"):
        decode_record(POISON[name])


@pytest.mark.parametrize("name", sorted(POISONED_DATA))
def test_a_good_head_with_bad_data_is_poisoned_when_it_is_looked_at(name):
    record = decode_record(POISONED_DATA[name])
    with pytest.raises(PoisonedRecord, match="malformed data"):
        to_event(1, record)


def test_no_bytes_raise_anything_else():
    chance = random.Random(5)
    good = packed()
    for _ in range(3000):
        raw = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        try:
            event = to_event(1, decode_record(bytes(raw)))
        except PoisonedRecord:
            continue
        # What passes can be held by every consumer.
        assert 0 <= event.ts < 1 << 53 and len(event.data.id) == 16
        encode_batch(0, 1, [(1, bytes(raw))])


def test_a_batch_skips_what_is_poisoned_and_covers_its_place():
    records = [(3, packed()), (4, packed(type="DANCE")), (5, packed(data=None)), (6, packed())]
    batch = decode_batch(encode_batch(2, 9, records))
    assert (batch.prev, batch.last) == (2, 9)
    assert [event.offset for event in batch.events] == [3, 6]
