"""What a message says to a member of the compiled swarm: the same in both codecs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import facts
from gateway.dialects import native
from uproar import ids
from uproar.swarm import stamp

NODE = ids.new_node()
TS = 1_763_836_800_000


def comment(offset: int, text: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "COMMENT",
        "id": ids.to_text(ids.build(TS, offset, NODE)),
        "offset": offset,
        "user": {"id": "u1", "name": "Ada", "role": "viewer"},
        "text": text,
        "ts": TS,
        **more,
    }


STAMPED = comment(7, stamp("hi"))
EVENTS: list[tuple[dict[str, Any], tuple[int, int, int]]] = [
    (comment(5, "no stamp"), (facts.COMMENT, 5, 0)),
    (comment(4, "old", historical=True), (facts.HISTORICAL, 4, 0)),
    ({"type": "CLEARED", "offset": 8}, (facts.PLACED, 8, 0)),
    ({"type": "MODE", "offset": 9, "slow_s": 5}, (facts.PLACED, 9, 0)),
    ({"type": "VIEWERS", "count": 3, "position": 10}, (facts.POSITION, 10, 0)),
    ({"type": "PONG", "position": 11, "server_time": TS}, (facts.POSITION, 11, 0)),
    ({"type": "GAP", "from": 11, "to": 20, "reason": "too_slow"}, (facts.GAP, 11, 20)),
    ({"type": "WELCOME", "offset": 3}, (facts.WELCOME, 3, 0)),
    ({"type": "REACTIONS", "totals": {"fire": 4, "wow": 2}}, (facts.TOTALS, 6, 0)),
    ({"type": "BANNER", "text": None, "sample_ratio": None}, (facts.OTHER, 0, 0)),
    (
        {"type": "REJECTED", "nonce": None, "code": "bad_request", "message": "no"},
        (facts.REJECTED, 0, 0),
    ),
]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_every_event_is_one_fact(codec: str) -> None:
    for event, wanted in EVENTS:
        payload, text = native.encode(codec, [event])
        assert facts.look(payload, not text) == [(*wanted, 0)]
    payload, text = native.encode(codec, [event for event, _ in EVENTS])
    found = facts.look(payload, not text)
    assert found is not None
    assert [fact[:3] for fact in found] == [wanted for _, wanted in EVENTS]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_stamp_is_read_in_nanoseconds(codec: str) -> None:
    payload, text = native.encode(codec, [STAMPED])
    found = facts.look(payload, not text)
    assert found is not None
    (kind, offset, _, sent) = found[0]
    assert (kind, offset) == (facts.COMMENT, 7)
    digits = STAMPED["text"].rpartition("~")[2]
    assert abs(sent - int(digits, 16)) < 1000


@pytest.mark.parametrize(
    ("payload", "binary"),
    [
        (b"", False),
        (b"{}", False),
        (json.dumps([{"type": "COMMENT", "text": "no offset"}]).encode(), False),
        (json.dumps([{"type": "GAP", "from": 1}]).encode(), False),
        (b"\xc1", True),
        (b"\x94\x00\x00\xc0\x91\x91\x01", True),
    ],
)
def test_what_is_malformed_is_none(payload: bytes, binary: bool) -> None:
    assert facts.look(payload, binary) is None
