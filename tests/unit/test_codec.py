"""The compiled encoder and the plain one write the same bytes for the same events."""

from __future__ import annotations

import json
import os
import random
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.dialects import native
from uproar import chatgen, events, ids, wire
from uproar.events import MASK_ALL, ROLES, Comment, Event, User, Visibility

fast = pytest.importorskip("_fastpath.codec", reason="the fast path is not built")

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "protocol.json").read_text("utf-8"))
CODECS = pytest.mark.parametrize("codec", ["json", "msgpack"])
TS = 1_763_836_800_000
NODE = bytes.fromhex("9f3c8b1d52e7a604")
ALPHABET = "ab zéß\u07ff日本\uffff🎉\U0010ffff\"\\/<>&'\x00\x01\x08\t\n\x0b\x0c\r\x1f\x7f\x80\u2028"


@pytest.fixture(params=[None, fast], ids=["reference", "fast"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of `encode_events`."""
    monkeypatch.setattr(native, "_compiled", request.param)


def reference(codec: str, tick: list[Event], moderator: bool) -> tuple[bytes, bool]:
    return native.encode(codec, [native.event_object(event, moderator=moderator) for event in tick])


def check(codec: str, tick: list[Event], moderator: bool = False) -> bytes:
    payload, text = native.encode_events(codec, tick, moderator)
    assert (payload, text) == reference(codec, tick, moderator)
    return payload


def comment(offset: int, user: User, text: str, ts: int = TS, **more: Any) -> Event:
    comment_id = more.pop("id", None) or ids.build(ts, 0, NODE)
    visibility = more.pop("visibility", 0)
    data = Comment(comment_id, user, text, ts, **more)
    return Event(offset, "COMMENT", ts, user.id, MASK_ALL, visibility, data)


def of_object(shown: dict[str, Any]) -> Event:
    """Return the event behind a COMMENT in the JSON shape."""
    user = dict(shown["user"])
    if "badges" in user:
        user["badges"] = tuple(user["badges"])
    more: dict[str, Any] = {}
    if "reply_to" in shown:
        more["reply_to"] = ids.from_text(shown["reply_to"])
    if "emotes" in shown:
        more["emotes"] = tuple(tuple(emote) for emote in shown["emotes"])
    if "visibility" in shown:
        more["visibility"] = Visibility[shown["visibility"].upper()]
    comment_id = ids.from_text(shown["id"])
    return comment(shown["offset"], User(**user), shown["text"], shown["ts"], id=comment_id, **more)


@pytest.mark.parametrize(
    "vector",
    [
        vector
        for vector in VECTORS
        if vector["events"]
        and all(o["type"] == "COMMENT" and "historical" not in o for o in vector["events"])
    ],
    ids=lambda vector: vector["name"],
)
def test_vectors_of_comments(vector: dict[str, Any]) -> None:
    tick = [of_object(shown) for shown in vector["events"]]
    assert native.encode_events("msgpack", tick, True) == (bytes.fromhex(vector["msgpack"]), False)
    payload, text = native.encode_events("json", tick, True)
    assert (json.loads(payload), text) == (vector["events"], True)


@CODECS
@pytest.mark.parametrize("count", [1, 5, 16, 60, 3000])
def test_real_chat(codec: str, count: int) -> None:
    folder = os.environ.get("UPROAR_CHAT_DATA")
    if folder:
        with (Path(folder) / "chat_vod.jsonl").open(encoding="utf-8") as file:
            lines = [json.loads(line) for line in islice(file, 3000)]
    else:
        lines = list(chatgen.generate(seed=1, count=3000, kind="burst"))
    maker = ids.IdMaker()
    tick: list[Event] = []
    for number, line in enumerate(lines):
        ts, comment_id = maker.make(TS + line["t_ms"])
        tick.append(
            comment(900 + number, User(line["user"], line["user"]), line["text"], ts, id=comment_id)
        )
        if len(tick) == count:
            read = wire.CODECS[codec].decode(check(codec, tick))
            assert [event["text"] for event in read] == [event.data.text for event in tick]
            tick = []


class Chance:
    """Draws events of every type, with every kind of value that an event can have."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._users = [self.user() for _ in range(4)]
        self._offset = self._random.choice([0, 1, 100, 70_000, 2**32 - 1, 2**53 - 100])

    def text(self) -> str:
        size = self._random.choice([0, 3, 5, 5, 5, 5, 5, 5, 5, 15, 16, 31, 32, 255, 256])
        if self._random.random() < 0.001:
            size = 40_000
        return "".join(self._random.choices(ALPHABET, k=size))

    def maybe(self, value: Any) -> Any:
        return value if self._random.random() < 0.4 else None

    def user(self) -> User:
        colors = ["#000000", "#00ff7f", "#FFFFFF", "#ffffff", "#12345g", "#12345/", "#12345:", ""]
        badges = tuple(self.text() for _ in range(self._random.choice([0, 1, 2, 16])))
        color = self.maybe(self._random.choice([*colors, "red", "#éééa", self.text()]))
        return User(self.text(), self.text(), self._random.choice(ROLES), color, self.maybe(badges))

    def ts(self) -> int:
        return self._random.choice(
            [TS, TS, TS + 1, TS - 1, TS + 9_000, TS - 40, TS - 80_000_000, 0, 2**40, 2**61]
        )

    def id(self, ts: int) -> bytes:
        node = self._random.choice([NODE, NODE, NODE, bytes(8)])
        made = ids.build(min(ts, 2**44), self._random.choice([0, 0, 1, 9_999]), node)
        return self._random.choice([made, made, made, self._random.randbytes(16)])

    def comment(self) -> Comment:
        ts = self.ts()
        emotes = tuple(
            (self.text(), self._random.randrange(500), self._random.randrange(70_000))
            for _ in range(self._random.choice([0, 1, 20]))
        )
        return Comment(
            self.id(ts),
            self._random.choice([*self._users, self.user()]),
            self.text(),
            ts,
            self.maybe(self.id(ts)),
            self.maybe(emotes),
        )

    def event(self) -> Event:
        kind = self._random.choice(["COMMENT"] * 12 + ["GAP", *events.DATA_OF])
        draw = self._random.randrange
        data: Any = {
            "COMMENT_DELETED": lambda: events.CommentDeleted(self.id(TS)),
            "COMMENT_UNPINNED": lambda: events.Unpinned(self.id(TS)),
            "USER_REMOVED": lambda: events.UserRemoved(self.text(), self.maybe(TS)),
            "CLEARED": lambda: events.Cleared("m"),
            "COMMENT_PINNED": lambda: events.Pinned(self.comment(), "m", self.maybe(TS)),
            "MODE": lambda: events.Mode({"slow_s": draw(9), "frozen": True}, "m"),
            "SAMPLING": lambda: events.Sampling(self._random.choice([0.2, 1.0]), 6_000.5),
            "STREAM_STARTED": lambda: events.StreamStarted(self.text()),
            "STREAM_ENDED": lambda: events.StreamEnded(),
            "SANCTION": lambda: events.Sanction(self.text(), "ban", "m", self.text()),
            "FLAGGED": lambda: events.Flagged(self.comment(), "caps", "x", 0.7, ((0, 2),)),
            "HELD": lambda: events.Flagged(self.comment()),
            "HELD_RESOLVED": lambda: events.HeldResolved(self.id(TS), "deny", "m"),
            "TERMS": lambda: events.Terms((self.text(),), (), "m"),
            "GAP": lambda: {"from": draw(9), "to": 2**40, "reason": "too_slow"},
        }.get(kind, self.comment)()
        self._offset += self._random.choice([1, 1, 1, 2, 300, 70_000, -5])
        return Event(max(self._offset, 0), kind, TS, "a", MASK_ALL, draw(4), data)

    def tick(self) -> list[Event]:
        return [self.event() for _ in range(self._random.choice([0, 1, 1, 2, 5, 15, 16, 40]))]


@CODECS
@pytest.mark.parametrize("seed", range(4))
def test_whatever_events_there_are(codec: str, seed: int) -> None:
    for number in range(50):
        tick = Chance(seed * 1000 + number).tick()
        for moderator in (False, True):
            payload = check(codec, tick, moderator)
            assert len(wire.CODECS[codec].decode(payload)) == len(tick)


@CODECS
def test_lengths_and_numbers_at_the_edges_of_their_forms(codec: str) -> None:
    edges = [(1 << bits) + more for bits in (4, 5, 7, 8, 15, 16) for more in (-1, 0, 1)]
    ann = User("u1", "Ann")
    for edge in edges:
        check(codec, [comment(5, ann, "x" * edge)])
        check(codec, [comment(5, User("u1", "Ann", badges=("b",) * (edge % 70_000)), "hi")])
        check(codec, [comment(5 + number, ann, "") for number in range(min(edge, 300))])
        check(codec, [comment(edge, ann, "", 0)])
        for wide in (edge, edge << 16, edge << 32):
            check(codec, [comment(5, ann, "", TS), comment(6 + wide, ann, "", TS + wide)])
            check(codec, [comment(5 + wide, ann, "", TS + wide), comment(4, ann, "", TS)])


@CODECS
def test_what_can_not_be_encoded_is_an_error_and_leaves_nothing_behind(codec: str) -> None:
    ann = User("u1", "Ann")
    good = comment(5, ann, "hi")
    for bad in (
        comment(6, ann, "lone \ud800 surrogate"),
        comment(6, User("u2", "\udfff"), "hi"),
        good._replace(type="NO_SUCH_TYPE"),
        good._replace(data=None),
    ):
        with pytest.raises((ValueError, AttributeError)):
            native.encode_events(codec, [good, bad], False)
    check(codec, [good])


def test_the_reference_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(native._fast(), ModuleType)
    monkeypatch.setenv("UPROAR_ENGINE", "reference")
    assert native._fast() is None
