"""Which of several records with one key counts: the first. One function for every consumer.

The key is (stream, event type, actor, nonce). A record counts when no record with its key stands
within the 2 minutes before it, measured by the records' own `ts`, so all consumers agree whatever
their clocks say. A repeat starts the two minutes anew: so reading back 2 minutes is enough to agree
on what counts, and 4 minutes to name the first of a chain of repeats as well.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Generic, TypeVar

from uproar.events import Record

WINDOW_MS = 120_000
READ_BACK_MS = 2 * WINDOW_MS
_BUCKET_MS = 10_000

V = TypeVar("V")


def key_of(stream: str, type_: str, actor: str, nonce: str) -> bytes:
    """Return 16 bytes that stand for the key; no field can hold a NUL."""
    return blake2b(f"{stream}\0{type_}\0{actor}\0{nonce}".encode(), digest_size=16).digest()


def key_of_record(record: Record) -> bytes:
    """Return the key of a record."""
    return key_of(record.stream, record.type, record.actor, record.nonce)


class Deduplicator(Generic[V]):
    """Remembers the keys of the last two minutes, in buckets that are dropped whole.

    Bound: 230 bytes (ingest, with places: 310) for every record of the last 130 s.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, dict[bytes, tuple[int, V]]] = {}
        self._newest = -1

    def admit(self, key: bytes, ts: int, value: V) -> V | None:
        """Return None when a record with this key counts, else the value of the first."""
        number = ts // _BUCKET_MS
        if number > self._newest:
            self._newest = number
            oldest = (ts - WINDOW_MS) // _BUCKET_MS
            for gone in [n for n in self._buckets if n < oldest]:
                del self._buckets[gone]
        seen = self.find(key, ts)
        bucket = self._buckets.setdefault(number, {})
        if seen is None:
            bucket[key] = (ts, value)
            return None
        bucket[key] = (ts, seen)
        return seen

    def find(self, key: bytes, ts: int) -> V | None:
        """Return the value of the first record with this key in the two minutes before `ts`."""
        for bucket in reversed(self._buckets.values()):
            found = bucket.get(key)
            if found is not None and ts - found[0] <= WINDOW_MS:
                return found[1]
        return None

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())
