"""Comment ids: time UUIDs (RFC 9562 version 1) whose time is the comment's own `ts`.

The time field holds `ts` in 100 ns steps plus a sequence number within the millisecond, and the
last eight bytes (clock sequence and node) are drawn once per ingest incarnation. So an id is unique
without asking anybody, and on the wire it is one small integer beside the `ts` it belongs to
(docs/protocol.md, "Comment ids"). Ids never order anything: offsets do.
"""

from __future__ import annotations

import secrets
import struct

# 100 ns steps between the UUID epoch (1582-10-15) and the Unix epoch.
GREGORIAN_OFFSET_MS = 12_219_292_800_000
PER_MS = 10_000

_TIME = struct.Struct(">IHH")  # time_low, time_mid, version and time_high (RFC 9562 section 5.1)


def new_node() -> bytes:
    """Return 8 random bytes: variant bits, clock sequence and a multicast (= not hardware) node."""
    raw = bytearray(secrets.token_bytes(8))
    raw[0] = (raw[0] & 0x3F) | 0x80
    raw[2] |= 0x01
    return bytes(raw)


def build(ts: int, sequence: int, node: bytes) -> bytes:
    """Return the 16 bytes of the id number `sequence` (0…9,999) of millisecond `ts`."""
    ticks = (ts + GREGORIAN_OFFSET_MS) * PER_MS + sequence
    low = ticks & 0xFFFFFFFF
    mid = (ticks >> 32) & 0xFFFF
    high = ((ticks >> 48) & 0x0FFF) | 0x1000
    return _TIME.pack(low, mid, high) + node


def split(comment_id: bytes) -> tuple[int, int, bytes]:
    """Return (ts in ms, sequence, node), the inverse of `build`."""
    low, mid, high = _TIME.unpack_from(comment_id)
    ms, sequence = divmod(low | mid << 32 | (high & 0x0FFF) << 48, PER_MS)
    return ms - GREGORIAN_OFFSET_MS, sequence, comment_id[8:16]


def to_text(comment_id: bytes) -> str:
    """Return the canonical 36-character form."""
    h = comment_id.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def from_text(text: str) -> bytes:
    """Return the 16 bytes of a canonical id; raises ValueError for anything else."""
    if len(text) != 36:
        raise ValueError(f"a comment id has 36 characters, this has {len(text)}")
    # A quarter of the time of uuid.UUID; fromhex skips white space, so the length is looked at.
    found = bytes.fromhex(text.replace("-", ""))
    if len(found) != 16 or not text[8] == text[13] == text[18] == text[23] == "-":
        raise ValueError("a comment id is hexadecimal in groups of 8-4-4-4-12")
    return found


class IdMaker:
    """Makes ids for one ingest incarnation; `ts` must never go back (ingest sees to it)."""

    def __init__(self, node: bytes | None = None) -> None:
        self.node = node or new_node()
        self._ts = -1
        self._sequence = 0

    def make(self, ts: int) -> tuple[int, bytes]:
        """Return (ts, id); ts is one later than asked when a millisecond's 10,000 ids are used."""
        if ts > self._ts:
            self._ts, self._sequence = ts, 0
        else:
            self._sequence += 1
            if self._sequence == PER_MS:
                self._ts, self._sequence = self._ts + 1, 0
        return self._ts, build(self._ts, self._sequence, self.node)
