"""A batch as it travels from the coordinator to the gateways, over the bus and in the ring.

msgpack: `[prev, last, [[offset, record], …]]`, on the bus with a fourth field: when it was
published (unix ms). It covers the offsets (prev, last] of its stream's partition: what is not in it
did not happen. With prev = last it says "nothing more up to here".
"""

from __future__ import annotations

import msgspec

from uproar.events import Event, PoisonedRecord, Record, to_event


class _Wire(msgspec.Struct, array_like=True, frozen=True):
    prev: int
    last: int
    records: list[tuple[int, Record]]
    published_ms: int = 0


class Batch(msgspec.Struct, frozen=True):
    """The events of one stream at offsets (prev, last], in order."""

    prev: int
    last: int
    events: list[Event]
    published_ms: int = 0  # 0: it did not come over the bus


_ARRAY_OF_4 = b"\x94"

_decode = msgspec.msgpack.Decoder(_Wire).decode
_encode = msgspec.msgpack.Encoder().encode


def encode_batch(prev: int, last: int, records: list[tuple[int, bytes]]) -> bytes:
    """Return the payload for records that are encoded already."""
    return _encode((prev, last, [(offset, msgspec.Raw(raw)) for offset, raw in records]))


def stamped(payload: bytes, published_ms: int) -> bytes:
    """Return the payload of `encode_batch` with the time at which it is published."""
    return _ARRAY_OF_4 + payload[1:] + _encode(published_ms)


def decode_batch(payload: bytes) -> Batch:
    """Return a batch; raises PoisonedRecord when it is none."""
    try:
        wire = _decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise PoisonedRecord(f"not a batch: {error}") from error
    events = []
    for offset, record in wire.records:
        try:
            events.append(to_event(offset, record))
        except (PoisonedRecord, KeyError):
            continue  # the coordinator counts and logs it; its place is covered all the same
    return Batch(wire.prev, wire.last, events, wire.published_ms)
