"""Makes tests/vectors/protocol.json: messages in the JSON shape and their exact msgpack bytes.

The encoder here is written from docs/protocol.md alone, with the `msgpack` library, so that it can
contradict the encoder of the gateway and the decoders of the clients. What the document leaves to
the encoder is fixed as follows:

- `base_ts` is the `ts` of the first COMMENT, else `server_time` of the first PONG, else 0.
- `base_offset` is one less than the `offset` of the first COMMENT, without one the first `offset`,
  `position` or `from` among the events, else 0. WELCOME and what else is a map does not count.
- `node` is the tail of the first COMMENT's id, nil without a COMMENT.
- A user is an index only when exactly the same user, name, colour and badges too, was named before.
- Role `viewer` is absent.

    python tests/vectors/make.py          writes the file
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import msgpack

FILE = Path(__file__).with_name("protocol.json")

TS = 1_763_836_800_123
NODE = "9f3c8b1d52e7a604"
OTHER_NODE = "a1b2c3d4e5f60718"


MAPS = [
    "COMMENT_RESTORED", "COMMENT_APPROVED", "COMMENT_PINNED", "COMMENT_UNPINNED", "MODE", "BANNER",
    "STREAM_STARTED", "STREAM_ENDED", "FLAGGED", "HELD", "HELD_RESOLVED", "SANCTION", "TERMS",
    "REACTIONS",
]  # fmt: skip


def comment_id(ts: int, sequence: int, node: str = NODE) -> str:
    """RFC 9562 section 5.1, by arithmetic on the 100 ns ticks since 1582."""
    ticks = f"{(ts + 12_219_292_800_000) * 10_000 + sequence:015x}"
    return f"{ticks[-8:]}-{ticks[-12:-8]}-1{ticks[-15:-12]}-{node[:4]}-{node[4:]}"


def without_tail(items: list[Any]) -> list[Any]:
    while items and items[-1] is None:
        items.pop()
    return items


def encode(events: list[dict[str, Any]]) -> bytes:
    comments = [event for event in events if event["type"] == "COMMENT"]
    pongs = [event["server_time"] for event in events if event["type"] == "PONG"]
    base_ts = ([event["ts"] for event in comments] + pongs + [0])[0]
    base_offset = 0
    for event in events if not comments else []:
        if event["type"] == "WELCOME" or event["type"] in MAPS:
            continue
        named = [event[key] for key in ("offset", "position", "from") if key in event]
        if named:
            base_offset = named[0]
            break
    node = uuid.UUID(comments[0]["id"]).bytes[8:] if comments else None
    if comments:
        base_offset = comments[0]["offset"] - 1
    users: list[dict[str, Any]] = []
    before = [base_ts, base_offset]
    packed = [encode_event(event, base_ts, base_offset, node, users, before) for event in events]
    return msgpack.packb([base_ts, base_offset, node, packed])


def encode_event(
    event: dict[str, Any],
    base_ts: int,
    base_offset: int,
    node: bytes | None,
    users: list[dict[str, Any]],
    before: list[int],
) -> list[Any]:
    def place(key: str = "offset") -> int:
        return event[key] - base_offset

    kind = event["type"]
    if kind == "WELCOME":
        return [0, {key: value for key, value in event.items() if key != "type"}]
    if kind == "COMMENT":
        raw: Any = uuid.UUID(event["id"]).bytes
        for sequence in range(10_000):
            if comment_id(event["ts"], sequence, (node or b"").hex()) == event["id"]:
                raw = sequence
                break
        known = {"type", "id", "offset", "user", "text", "ts"}
        extra = {key: value for key, value in event.items() if key not in known}
        if "reply_to" in extra:
            extra["reply_to"] = uuid.UUID(extra["reply_to"]).bytes
        author = encode_user(event["user"], users)
        row = [1, event["ts"] - before[0], author, event["text"]]
        last = [raw, event["offset"] - before[1] - 1, extra or 0]
        while last and last[-1] == 0:
            last.pop()
        before[:] = [event["ts"], event["offset"]]
        return row + last
    if kind == "COMMENT_DELETED":
        return [2, place(), uuid.UUID(event["comment_id"]).bytes]
    if kind == "USER_REMOVED":
        return without_tail([3, place(), event["user_id"], event.get("until")])
    if kind == "CLEARED":
        return [4, place()]
    if kind == "VIEWERS":
        return [5, event["count"], place("position")]
    if kind == "ACK":
        shown = ["all", "sampled", "held"].index(event["shown"])
        limit = event["limit"] or {"remaining": None, "reset_ms": None}
        raw = uuid.UUID(event["id"]).bytes
        fields = [event["nonce"], raw, place(), shown, limit["remaining"], limit["reset_ms"]]
        return without_tail([6, *fields])
    if kind == "REJECTED":
        return without_tail(
            [7, event["nonce"], event["code"], event["message"], event.get("retry_after_ms")]
        )
    if kind == "GAP":
        return [8, place("from"), place("to"), event["reason"]]
    if kind == "RECONNECT":
        return [9, event["after_ms"]]
    if kind == "PONG":
        return [10, place("position"), event["server_time"] - base_ts]
    if kind in MAPS:
        return [
            11 + MAPS.index(kind),
            {key: value for key, value in event.items() if key != "type"},
        ]
    raise ValueError(f"no row for {kind} in the msgpack table")


def encode_user(user: dict[str, Any], users: list[dict[str, Any]]) -> Any:
    if user in users:
        return users.index(user)
    users.append(user)
    role = ["viewer", "vip", "moderator", "broadcaster", "service"].index(user["role"])
    color: Any = user.get("color")
    if color and len(color) == 7 and color[0] == "#" and set(color[1:]) <= set("0123456789abcdef"):
        color = int(color[1:], 16)
    return without_tail([user["id"], user["name"], role or None, color, user.get("badges")])


ADA = {"id": "u1", "name": "Ada", "role": "viewer"}
BEN = {"id": "u2", "name": "Ben", "role": "moderator", "color": "#1e90ff", "badges": ["mod", "og"]}
CYD = {"id": "u3", "name": "Cyd 🐙", "role": "viewer", "color": "#ff7f50"}
DEE = {"id": "u4", "name": "Dee", "role": "vip", "badges": ["founder"]}
EVA = {"id": "u5", "name": "Eva", "role": "broadcaster"}
BOT = {"id": "bot", "name": "Bot", "role": "service"}


def comment(
    offset: int, user: dict[str, Any], text: str, ts: int = TS, sequence: int = 0, **more: Any
) -> dict[str, Any]:
    given = more.pop("id", None) or comment_id(ts, sequence)
    return {
        "type": "COMMENT",
        "id": given,
        "offset": offset,
        "user": user,
        "text": text,
        "ts": ts,
        **more,
    }


def welcome(**more: Any) -> dict[str, Any]:
    return {
        "type": "WELCOME",
        "stream": "demo",
        "epoch": "5f1c0a9be233",
        "offset": 812_345,
        "session": "g1-8a2f-77",
        "user": None,
        "mode": {},
        "pinned": None,
        "viewers": 12,
        "reactions": {},
        "sampling": None,
        "limits": {"max_chars": 500, "per_minute": 10, "remaining": 10},
        "ping_s": 30.0,
        "recovered": None,
        "server_time": TS + 5,
        **more,
    }


def messages() -> dict[str, list[dict[str, Any]]]:
    """Every message of the file by its name."""
    return {
        "no events": [],
        "welcome, anonymous": [
            welcome(limits={"max_chars": 500, "per_minute": None, "remaining": None})
        ],
        "welcome, recovered": [
            welcome(
                user=BEN, recovered=True, mode={"slow_s": 5}, reactions={"fire": 15_000}, viewers=0
            )
        ],
        "welcome, with a pinned comment": [
            welcome(user=ADA, recovered=False, pinned=comment(812_000, EVA, "Rules: be kind"))
        ],
        "one comment": [comment(812_346, ADA, "hello")],
        "one comment, the tenth of its millisecond": [comment(812_346, ADA, "hi", sequence=9)],
        "one comment, the last of its millisecond": [comment(812_346, ADA, "hi", sequence=9999)],
        "comments of one author": [
            comment(10, ADA, "one"),
            comment(11, ADA, "two", sequence=1),
            comment(15, ADA, "three", ts=TS + 3),
        ],
        "comments of two authors in turns": [
            comment(10, ADA, "one"),
            comment(11, BEN, "two", sequence=1),
            comment(12, ADA, "three", sequence=2),
            comment(13, BEN, "four", ts=TS + 9),
        ],
        "users with all kinds of absent fields": [
            comment(10, ADA, "viewer"),
            comment(11, BEN, "role, color, badges", sequence=1),
            comment(12, CYD, "color alone", sequence=2),
            comment(13, DEE, "badges alone", sequence=3),
            comment(14, EVA, "role alone", sequence=4),
            comment(15, BOT, "service", sequence=5),
            comment(16, CYD, "index 2", sequence=6),
        ],
        "an author who changed name and color": [
            comment(10, ADA, "one"),
            comment(11, {**ADA, "name": "Ada L.", "color": "#abcdef"}, "two", sequence=1),
            comment(12, ADA, "three", sequence=2),
        ],
        "colors": [
            comment(10 + number, {**ADA, "color": color}, "hi", sequence=number)
            for number, color in enumerate(
                ("#000000", "#00007f", "#ffffff", "#FFFFFF", "#fff", "#12345g", "#1234567", "teal")
            )
        ],
        "ids that do not follow from ts and node": [
            comment(10, ADA, "the message's node"),
            comment(11, ADA, "another node", id=comment_id(TS, 1, OTHER_NODE)),
            comment(12, ADA, "another time", id=comment_id(TS - 60_000, 2)),
            comment(13, ADA, "version 4", id=comment_id(TS, 3).replace("-1", "-4", 1)),
            comment(14, ADA, "the next millisecond", id=comment_id(TS, 10_000)),
            comment(15, ADA, "back to a number", sequence=4),
        ],
        "a first id that does not follow from its ts": [
            comment(10, ADA, "node from here", id=comment_id(TS - 1, 7, OTHER_NODE)),
            comment(11, ADA, "same node", id=comment_id(TS, 8, OTHER_NODE)),
            comment(12, ADA, "other node", sequence=9),
        ],
        "backlog after the welcome": [
            welcome(),
            comment(812_300, ADA, "old", ts=TS - 90_000, historical=True),
            comment(812_311, CYD, "older than now", ts=TS - 60_000, historical=True),
            comment(812_345, ADA, "newest", ts=TS - 1000, historical=True),
        ],
        "backlog with negative differences": [
            {"type": "PONG", "position": 5_000, "server_time": TS + 40},
            comment(4_000, ADA, "this ts is the base", ts=TS, historical=True),
            comment(3_900, BEN, "of an earlier era", ts=TS - 86_400_000, historical=True),
            comment(4_001, ADA, "again", ts=TS - 1, historical=True),
        ],
        "offsets from zero to the largest": [
            comment(0, ADA, "first"),
            comment(1, ADA, "second", sequence=1),
            comment(9_007_199_254_740_991, ADA, "2**53 - 1", sequence=2),
        ],
        "texts": [
            comment(10, ADA, "🎉🎊 👩‍🚀 family"),
            comment(11, ADA, "日本語 العربية", sequence=1),
            comment(12, ADA, 'quotes " and \\ and </script>', sequence=2),
            comment(13, ADA, "copy\U000e0000", sequence=3),
            comment(14, ADA, "x" * 500, sequence=4),
            comment(15, ADA, "🎉" * 500, sequence=5),
        ],
        "rare fields": [
            comment(10, ADA, "a reply", reply_to=comment_id(TS - 5000, 3)),
            comment(11, BEN, "Wave hi", sequence=1, emotes=[["Wave", 0, 3]]),
            comment(12, CYD, "shh", sequence=2, visibility="shadow"),
            comment(
                13,
                DEE,
                "Wave",
                sequence=3,
                reply_to=comment_id(TS, 0),
                emotes=[["Wave", 0, 3]],
                historical=True,
                visibility="held",
            ),
        ],
        "a deletion": [
            {"type": "COMMENT_DELETED", "comment_id": comment_id(TS, 0), "offset": 812_400}
        ],
        "a comment and its deletion": [
            comment(812_399, ADA, "oops"),
            {"type": "COMMENT_DELETED", "comment_id": comment_id(TS, 0), "offset": 812_400},
        ],
        "users removed": [
            {"type": "USER_REMOVED", "user_id": "u1", "offset": 812_401},
            {"type": "USER_REMOVED", "user_id": "u2", "offset": 812_402, "until": TS + 600_000},
        ],
        "maps": [
            {
                "type": "COMMENT_RESTORED",
                "offset": 9,
                "comment_id": comment_id(TS, 0),
                "comment": {"id": comment_id(TS, 0), "user": ADA, "text": "back", "ts": TS},
            },
            {
                "type": "COMMENT_APPROVED",
                "offset": 10,
                "comment_id": comment_id(TS, 1),
                "comment": {"id": comment_id(TS, 1), "user": BEN, "text": "fine", "ts": TS},
            },
            {
                "type": "COMMENT_PINNED",
                "offset": 11,
                "comment_id": comment_id(TS, 1),
                "comment": {"id": comment_id(TS, 1), "user": BEN, "text": "fine", "ts": TS},
                "until": TS + 60_000,
            },
            {"type": "COMMENT_UNPINNED", "offset": 12, "comment_id": comment_id(TS, 1)},
            {"type": "MODE", "offset": 13, "slow_s": 5, "emote_only": True},
            {"type": "BANNER", "text": "Chat moving fast!", "sample_ratio": 0.2},
            {"type": "BANNER", "text": None, "sample_ratio": None},
            {"type": "STREAM_STARTED", "offset": 16, "title": "Launch"},
            {"type": "STREAM_ENDED", "offset": 17},
            {
                "type": "HELD_RESOLVED",
                "offset": 18,
                "comment_id": comment_id(TS, 1),
                "action": "deny",
                "by": "mod",
            },
            {
                "type": "SANCTION",
                "offset": 19,
                "user_id": "u1",
                "action": "timeout",
                "by": "mod",
                "reason": "spam",
                "until": TS + 600_000,
            },
            {"type": "TERMS", "offset": 20, "blocked": ["foo*"], "allowed": [], "by": "mod"},
            {
                "type": "FLAGGED",
                "offset": 21,
                "comment_id": comment_id(TS, 1),
                "comment": {"id": comment_id(TS, 1), "user": BEN, "text": "hm", "ts": TS},
                "rule": "caps",
                "category": "spam",
                "score": 0.7,
                "spans": [[0, 2]],
            },
            {
                "type": "HELD",
                "offset": 22,
                "comment_id": comment_id(TS, 1),
                "comment": {"id": comment_id(TS, 1), "user": BEN, "text": "hm", "ts": TS},
                "rule": "hold",
                "category": "",
                "score": 0.0,
                "spans": [],
            },
            {"type": "REACTIONS", "totals": {"fire": 15_000}},
        ],
        "cleared": [{"type": "CLEARED", "offset": 812_403}],
        "viewers": [{"type": "VIEWERS", "count": 123_456, "position": 812_403}],
        "viewers of an empty stream": [{"type": "VIEWERS", "count": 0, "position": 0}],
        "acknowledged": [
            {
                "type": "ACK",
                "nonce": "n-1",
                "id": comment_id(TS, 0),
                "offset": 812_404,
                "shown": shown,
                "limit": {"remaining": remaining, "reset_ms": reset_ms},
            }
            for shown, remaining, reset_ms in (
                ("all", 9, 60_000),
                ("sampled", 1, 1),
                ("held", 0, 0),
            )
        ],
        "acknowledged without a limit": [
            {
                "type": "ACK",
                "nonce": "ü" * 64,
                "id": comment_id(TS, 0),
                "offset": 812_404,
                "shown": "all",
                "limit": None,
            }
        ],
        "an acknowledgement, then earlier comments": [
            {
                "type": "ACK",
                "nonce": "n-2",
                "id": comment_id(TS, 2),
                "offset": 812_410,
                "shown": "all",
                "limit": {"remaining": 8, "reset_ms": 45_000},
            },
            comment(812_408, BEN, "before", sequence=1),
            comment(812_410, ADA, "acknowledged above", sequence=2),
        ],
        "rejected": [
            {
                "type": "REJECTED",
                "nonce": "n-3",
                "code": "rate_limited",
                "message": "10 comments a minute; wait 12 s.",
                "retry_after_ms": 12_000,
            },
            {
                "type": "REJECTED",
                "nonce": "n-4",
                "code": "too_long",
                "message": "501 characters; at most 500.",
            },
            {
                "type": "REJECTED",
                "nonce": None,
                "code": "bad_request",
                "message": "not JSON",
            },
        ],
        "a gap": [{"type": "GAP", "from": 812_000, "to": 812_500, "reason": "too_slow"}],
        "a gap, what was folded, and what follows": [
            {"type": "GAP", "from": 812_000, "to": 812_500, "reason": "not_available"},
            {"type": "COMMENT_DELETED", "comment_id": comment_id(TS, 0), "offset": 812_020},
            comment(812_501, ADA, "live again"),
        ],
        "reconnect": [{"type": "RECONNECT", "after_ms": 1500}],
        "pong": [{"type": "PONG", "position": 812_500, "server_time": TS + 77}],
        "pong beside a comment": [
            {"type": "PONG", "position": 812_500, "server_time": TS + 77},
            comment(812_501, ADA, "base_ts is mine"),
        ],
        "everything in one tick": [
            {"type": "VIEWERS", "count": 3, "position": 100},
            comment(101, ADA, "one"),
            {"type": "COMMENT_DELETED", "comment_id": comment_id(TS - 9, 0), "offset": 102},
            comment(103, CYD, "two", ts=TS + 2),
            {"type": "USER_REMOVED", "user_id": "u3", "offset": 104},
            {"type": "CLEARED", "offset": 105},
            comment(106, ADA, "three", ts=TS + 2, sequence=1),
            {"type": "RECONNECT", "after_ms": 0},
        ],
    }


def document() -> str:
    """The file's text: one vector a line, so that a change shows as the vectors it touches."""
    lines = [
        json.dumps(
            {"name": name, "events": events, "msgpack": encode(events).hex()}, ensure_ascii=False
        )
        for name, events in messages().items()
    ]
    return "[\n" + ",\n".join(lines) + "\n]\n"


if __name__ == "__main__":
    FILE.write_text(document(), "utf-8")
    print(f"{FILE.name}: {len(messages())} messages")
