"""Server-sent events: the bytes of a tick, what a request asks for, and who hears a heartbeat."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.dialects import native, sse
from gateway.engine import Request
from gateway.session import Refused, Wish, wish_of
from tests.event_source import EventParser
from tests.unit.test_tick import Room, comment


def test_an_event_is_one_line_of_data_with_a_place() -> None:
    objects = [{"type": "COMMENT", "text": "line\nline\r\u2028 id: x"}, {"type": "CLEARED"}]
    parser = EventParser()
    told = parser.feed(sse.greeting(1500) + sse.encode(objects, sse.Place("0a1b", 77)))
    told += parser.feed(sse.encode([{"type": "RECONNECT"}], None))
    assert parser.retry_ms == 1500
    assert [(one.kind, json.loads(one.data)) for one in told] == [
        ("message", objects),
        ("message", [{"type": "RECONNECT"}]),
    ]
    assert [one.last_id for one in told] == ["0a1b-77", "0a1b-77"], "what is private has no place"


def test_the_data_is_what_the_native_dialect_says() -> None:
    objects = [native.comment_object(comment(5)), {"type": "VIEWERS", "count": 3, "position": 5}]
    data = sse.encode(objects, sse.Place("e", 5)).split(b"data: ")[1]
    assert data == native.encode("json", objects)[0] + b"\n\n"


def test_a_heartbeat_moves_the_place_and_is_no_event() -> None:
    parser = EventParser()
    assert parser.feed(sse.heartbeat(sse.Place("e", 9))) == []
    assert parser.last_id == "e-9"
    assert parser.comments == 1


def test_a_close_is_an_event_of_its_own() -> None:
    (told,) = EventParser().feed(sse.close(4001, 'it "expired"'))
    assert (told.kind, json.loads(told.data)) == ("close", {"code": 4001, "reason": 'it "expired"'})


@pytest.mark.parametrize("text", ["0a1b-0", "a-b-9007199254740991", "e-0007"])
def test_a_place_is_read(text: str) -> None:
    epoch, _, offset = text.rpartition("-")
    assert sse.Place.of(text) == (epoch, int(offset))


@pytest.mark.parametrize(
    "text",
    ["", "5", "-5", "e-", "e-x", "e--", "e-1.5", "e-\u0661", "e-12345678901234567", "e 1-2",
     "x" * 65 + "-1"],
)  # fmt: skip
def test_a_malformed_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="epoch"):
        sse.Place.of(text)


def wish(query: str = "", **headers: str) -> Wish:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    asked = Request("/stream/s/events", query, named, "a", None, dialect="sse")
    return wish_of(asked, 50, 100)


def test_a_request_asks_for_what_a_handshake_does() -> None:
    assert wish() == ("s", "json", None, None, None, 50, "all", "sse", "none")
    found = wish("epoch=e&offset=7&backlog=3&rate=5&access_token=t")
    assert found == ("s", "json", "t", "e", 7, 3, "5", "sse", "none")
    assert wish("access_token=t", authorization="Bearer u").token == "u"


def test_the_last_event_id_is_newer_than_the_query() -> None:
    found = wish("epoch=old&offset=7", last_event_id="new-9")
    assert (found.epoch, found.offset) == ("new", 9)
    found = wish("epoch=old&offset=7", last_event_id="")
    assert (found.epoch, found.offset) == ("old", 7)


@pytest.mark.parametrize(
    ("path", "dialect"),
    [("/stream/s", "sse"), ("/stream/s/events", "native"), ("/stream/S/events", "sse"),
     ("/stream/s/events/", "sse"), ("/stream//events", "sse")],
)  # fmt: skip
def test_each_dialect_has_its_path(path: str, dialect: str) -> None:
    with pytest.raises(Refused) as refusal:
        wish_of(Request(path, "", {}, "a", None, dialect=dialect), 50, 100)
    assert refusal.value.code.code == 4004


@pytest.mark.parametrize("last", ["x", "e-x", "7"])
def test_a_malformed_last_event_id_is_a_bad_request(last: str) -> None:
    with pytest.raises(Refused) as refusal:
        wish(last_event_id=last)
    assert refusal.value.code.code == 4000


# -- in a room ------------------------------------------------------------------------------------


class Mixed(Room):
    """A room whose viewers may join by event stream too; what those were sent is kept raw."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.arrivals.feed = SimpleNamespace(live={"s": self.live})

    def join_events(self, query: str = "backlog=0") -> int:
        return self.join(query=query, dialect="sse")

    def told(self, sid: int) -> tuple[EventParser, list[Any]]:
        """What a viewer who reads everything has been told: its parser and the native events."""
        parser = EventParser()
        told = parser.feed(b"".join(self.engine.queues[sid]))
        return parser, [event for one in told for event in json.loads(one.data)]


def test_both_dialects_say_the_same_and_the_place_follows() -> None:
    room = Mixed()
    by_socket, by_events = room.join(), room.join_events()
    room.ticker.tick()
    for offset in (1, 2, 5):
        room.feed(comment(offset))
        room.ticker.tick()
    room.feed(comment(8, visibility=2))  # hidden: nothing is sent, the place stays
    room.ticker.tick()
    parser, told = room.told(by_events)
    assert told == room.seen(by_socket)
    assert parser.last_id == "e-5"
    room.ticker.private(room.sessions[by_events], {"type": "RECONNECT", "after_ms": 5})
    room.ticker.tick()
    parser, told = room.told(by_events)
    assert told[-1]["type"] == "RECONNECT"
    assert parser.last_id == "e-5"


def test_all_event_streams_share_the_same_bytes() -> None:
    room = Mixed()
    one, two = room.join_events(), room.join_events()
    room.ticker.tick()
    room.feed(comment(1))
    room.ticker.tick()
    assert room.engine.queues[one][-1] is room.engine.queues[two][-1]


def test_silence_is_broken_by_a_heartbeat_that_moves_the_place() -> None:
    room = Mixed()
    by_socket, by_events = room.join(), room.join_events()
    room.ticker.tick()
    room.ticker.hearten(100.0)
    room.feed(comment(7, visibility=2))
    room.ticker.tick()
    room.ticker.hearten(114.0)
    parser, told = room.told(by_events)
    assert (parser.comments, parser.last_id) == (0, "e-0")
    room.ticker.hearten(115.0)
    room.ticker.hearten(129.0)
    parser, again = room.told(by_events)
    assert (parser.comments, parser.last_id) == (1, "e-7")
    assert again == told
    assert len(room.engine.queues[by_socket]) == 1, "a WebSocket has pings"
    room.ticker.hearten(130.0)
    assert room.told(by_events)[0].comments == 2


def test_who_hears_something_needs_no_heartbeat() -> None:
    room = Mixed()
    sid = room.join_events()
    clock = [100.0]
    room.ticker._now = lambda: clock[0]
    room.ticker.tick()
    for second in range(100, 160):
        clock[0] = second
        if second % 10 == 0:
            room.feed(comment(second))
            room.ticker.tick()
        room.ticker.hearten(second)
    assert room.told(sid)[0].comments == 0


def test_one_that_lags_is_caught_up_like_anyone() -> None:
    room = Mixed(bound=2000, backlog_default=2)
    sid = room.join_events()
    room.ticker.tick()
    for offset in range(1, 60):
        room.feed(comment(offset, text="x" * 50))
        room.ticker.tick()
    assert sid in room.engine.full
    early = room.told(sid)[1]
    room.engine.queues[sid] = []
    room.engine.full.discard(sid)
    room.arrivals.drained(sid)
    room.ticker.tick()
    parser, late = room.told(sid)
    assert [event["type"] for event in late] == ["GAP", "COMMENT", "COMMENT"]
    assert (late[0]["from"], late[0]["to"]) == (early[-1]["offset"], 57)
    assert parser.last_id == "e-59"
