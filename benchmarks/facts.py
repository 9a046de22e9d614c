"""What does a server message say to a member of the compiled swarm? Both codecs, a pure function.

The swarm asks once for each message, however many members got the same bytes; the codecs are those
of the clients (`uproar.wire`), so a change of the wire format is a change there alone.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from uproar import wire
from uproar.swarm import stamp_of

# As in _fastpath/swarm.h.
COMMENT, HISTORICAL, PLACED, POSITION, GAP, WELCOME, TOTALS, ACK, REJECTED, OTHER = range(1, 11)

Fact: TypeAlias = tuple[int, int, int, int]  # kind, offset, to, stamp in ns

_PLAIN: Final = {"ACK": ACK, "REJECTED": REJECTED}


def look(payload: bytes, binary: bool) -> list[Fact] | None:
    """Return the facts of a message in order, None where it is malformed."""
    try:
        events = wire.decode_msgpack(payload) if binary else wire.decode_json(payload)
        return [_fact(event) for event in events]
    except (wire.WireError, KeyError, TypeError, AttributeError, ValueError, OverflowError):
        return None


def _fact(event: wire.Event) -> Fact:
    kind = event["type"]
    if kind == "COMMENT":
        if event.get("historical"):
            return (HISTORICAL, event["offset"], 0, 0)
        sent = stamp_of(event["text"])
        return (COMMENT, event["offset"], 0, 0 if sent is None else int(sent * 1e9))
    if kind in wire.PLACED:
        return (OTHER if event.get("historical") else PLACED, event["offset"], 0, 0)
    if kind in ("VIEWERS", "PONG"):
        return (POSITION, event["position"], 0, 0)
    if kind == "GAP":
        return (GAP, event["from"], event["to"], 0)
    if kind == "WELCOME":
        return (WELCOME, event["offset"], 0, 0)
    if kind == "REACTIONS":
        return (TOTALS, sum(event["totals"].values()), 0, 0)
    return (_PLAIN.get(kind, OTHER), 0, 0, 0)
