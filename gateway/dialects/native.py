"""The native protocol's two codecs: the one place that decides how a tick is encoded.

Everything a viewer may be sent is first an object in the JSON shape of docs/protocol.md; JSON
writes it as it is, msgpack as positional arrays with differences to the message's base.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, TypeAlias

import msgspec

from uproar import ids
from uproar.events import ROLES, Comment, Event, Flagged, Pinned, Sampling, Visibility

Object: TypeAlias = dict[str, Any]

SUBPROTOCOLS: Final = ("uproar.v1.json", "uproar.v1.msgpack")
SHOWN_WORDS: Final = ("all", "sampled", "held")
BANNER_TEXT: Final = "Chat moving fast! Showing sampled comments"
# Events whose msgpack form is a map of the JSON fields, in the order of their codes from 11 on.
MAP_TYPES: Final = (
    "COMMENT_RESTORED", "COMMENT_APPROVED", "COMMENT_PINNED", "COMMENT_UNPINNED", "MODE", "BANNER",
    "STREAM_STARTED", "STREAM_ENDED", "FLAGGED", "HELD", "HELD_RESOLVED", "SANCTION", "TERMS",
    "REACTIONS",
)  # fmt: skip
_PLAIN_FIELDS: Final = 6  # of a COMMENT without rare ones: type, id, offset, user, text, ts
_RGB: Final = re.compile(r"#[0-9a-f]{6}")  # a color that msgpack writes as a number
_VISIBILITY_WORDS: Final = {Visibility.HELD: "held", Visibility.SHADOW: "shadow"}

_json = msgspec.json.Encoder().encode
_msgpack = msgspec.msgpack.Encoder().encode


def codec_of(subprotocol: str | None) -> str:
    """Return `json` or `msgpack`."""
    return "msgpack" if subprotocol == "uproar.v1.msgpack" else "json"


def comment_fields(comment: Comment) -> Object:
    """Return a comment without its place: what pins, approvals and restorations carry."""
    user = comment.user
    author: Object = {"id": user.id, "name": user.name, "role": user.role}
    if user.color is not None:
        author["color"] = user.color
    if user.badges is not None:
        author["badges"] = list(user.badges)
    shown: Object = {
        "id": ids.to_text(comment.id),
        "user": author,
        "text": comment.text,
        "ts": comment.ts,
    }
    if comment.reply_to is not None:
        shown["reply_to"] = ids.to_text(comment.reply_to)
    if comment.emotes:
        shown["emotes"] = [list(emote) for emote in comment.emotes]
    return shown


def comment_object(event: Event, *, historical: bool = False, moderator: bool = False) -> Object:
    """Return a COMMENT as viewers (or moderators) see it."""
    shown = {"type": "COMMENT", "offset": event.offset, **comment_fields(event.data)}
    if historical:
        shown["historical"] = True
    if moderator and event.visibility in _VISIBILITY_WORDS:
        shown["visibility"] = _VISIBILITY_WORDS[Visibility(event.visibility)]
    return shown


def event_object(event: Event, *, moderator: bool = False) -> Object:
    """Return any event of the log, or a GAP, as it is sent."""
    if event.type == "COMMENT":
        return comment_object(event, moderator=moderator)
    if event.type == "GAP":
        data = event.data
        return {"type": "GAP", "from": data["from"], "to": data["to"], "reason": data["reason"]}
    if event.type == "SAMPLING":  # ephemeral to viewers: the latest wins
        return {"type": "BANNER", **banner_fields(event.data)}
    form = _OBJECTS.get(event.type)
    if form is None:
        raise ValueError(f"no form for {event.type}")
    fields = {key: value for key, value in form(event.data).items() if value is not None}
    return {"type": event.type, "offset": event.offset, **fields}


def pinned_object(pinned: Pinned) -> Object:
    """Return the pinned comment as WELCOME and COMMENT_PINNED show it."""
    shown: Object = {
        "comment_id": ids.to_text(pinned.comment.id),
        "comment": comment_fields(pinned.comment),
    }
    if pinned.until is not None:
        shown["until"] = pinned.until
    return shown


def banner_fields(sampling: Sampling) -> Object:
    """Return what BANNER says of a sampling ratio; a text of None ends it."""
    sampled = sampling.ratio < 1
    return {
        "text": BANNER_TEXT if sampled else None,
        "sample_ratio": sampling.ratio if sampled else None,
    }


def _with_comment(comment: Comment) -> Object:
    return {"comment_id": ids.to_text(comment.id), "comment": comment_fields(comment)}


def _flagged(flagged: Flagged) -> Object:
    return {
        **_with_comment(flagged.comment),
        "rule": flagged.rule,
        "category": flagged.category,
        "score": flagged.score,
        "spans": [list(span) for span in flagged.spans],
    }


# What is left of each event's data on the wire; fields that are None are left out.
_OBJECTS: Final[dict[str, Callable[[Any], Object]]] = {
    "COMMENT_DELETED": lambda data: {"comment_id": ids.to_text(data.comment_id)},
    "COMMENT_RESTORED": _with_comment,
    "COMMENT_APPROVED": _with_comment,
    "USER_REMOVED": lambda data: {"user_id": data.user_id, "until": data.until},
    "CLEARED": lambda data: {},
    "COMMENT_PINNED": pinned_object,
    "COMMENT_UNPINNED": lambda data: {"comment_id": ids.to_text(data.comment_id)},
    "MODE": lambda data: dict(data.changes),
    "STREAM_STARTED": lambda data: {"title": data.title},
    "STREAM_ENDED": lambda data: {},
    "FLAGGED": _flagged,
    "HELD": _flagged,
    "HELD_RESOLVED": lambda data: {
        "comment_id": ids.to_text(data.comment_id), "action": data.action, "by": data.by,
    },
    "SANCTION": lambda data: {
        "user_id": data.user_id, "action": data.action, "by": data.by,
        "reason": data.reason, "until": data.until,
    },
    "TERMS": lambda data: {
        "blocked": list(data.blocked), "allowed": list(data.allowed), "by": data.by,
    },
}  # fmt: skip


def encode(codec: str, objects: list[Object]) -> tuple[bytes, bool]:
    """Return (payload, is text) of one message."""
    if codec == "json":
        return _json(objects), True
    return pack(objects), False


def encode_events(codec: str, events: list[Event], moderator: bool) -> tuple[bytes, bool]:
    """Return (payload, is text) of a tick, the same as `encode` of the events' objects.

    By `_fastpath.codec` where it is built: 60 comments cost it 19 us as JSON and 24 as msgpack, and
    104 and 250 here.
    """
    if _compiled is not None:
        if codec == "json":
            return _compiled.encode_json(events, moderator, _json_event), True
        packed = _compiled.encode_msgpack(events, moderator, _msgpack_event)
        if packed is not None:
            return packed, False
    return encode(codec, [event_object(event, moderator=moderator) for event in events])


def _json_event(event: Event, moderator: bool) -> bytes:
    return _json(event_object(event, moderator=moderator))


def _msgpack_event(event: Event, moderator: bool, base_ts: int, base_offset: int) -> bytes:
    """Return an event other than COMMENT in a message with this base."""
    packer = _Packer([])
    packer.base(base_ts, base_offset)
    shown = event_object(event, moderator=moderator)
    return _msgpack(_FORMS[shown["type"]](packer, shown))


def _fast() -> ModuleType | None:
    """Return the compiled encoder unless there is none or the reference was asked for."""
    if os.environ.get("UPROAR_ENGINE") == "reference":
        return None
    try:
        from _fastpath import codec
    except ImportError:
        return None
    return codec


_compiled: Final = _fast()


def pack(objects: list[Object]) -> bytes:
    """Return the msgpack form of a message (docs/protocol.md, "msgpack")."""
    return _msgpack(_Packer(objects).message())


class _Packer:
    def __init__(self, objects: list[Object]) -> None:
        self._objects = objects
        self._users: dict[str, list[tuple[Object, int]]] = {}
        self._count = 0
        self._node: bytes | None = None
        first = next((o for o in objects if o["type"] == "COMMENT"), None)
        if first is not None:
            self._node = ids.from_text(first["id"])[8:]
            self.base(first["ts"], first["offset"] - 1)
        else:
            places = (o[key] for o in objects if (key := _PLACE.get(o["type"])) is not None)
            times = (o["server_time"] for o in objects if o["type"] == "PONG")
            self.base(next(times, 0), next(places, 0))

    def base(self, ts: int, offset: int) -> None:
        """Let times and offsets count from these."""
        self._ts = ts
        self._offset = offset
        self._last = (ts, offset)  # of the comment before

    def message(self) -> list[Any]:
        events = [_FORMS[o["type"]](self, o) for o in self._objects]
        return [self._ts, self._offset, self._node, events]

    def _user(self, user: Object) -> Any:
        named = self._users.setdefault(user["id"], [])
        for known, index in named:
            if known == user:
                return index
        named.append((user, self._count))
        self._count += 1
        role = ROLES.index(user["role"])
        badges = user.get("badges")
        color = user.get("color")
        if color is not None and _RGB.fullmatch(color):
            color = int(color[1:], 16)
        return _trimmed([user["id"], user["name"], role or None, color, badges])

    def _comment(self, o: Object) -> list[Any]:
        raw = ids.from_text(o["id"])
        ts, sequence, node = ids.split(raw)
        short = ts == o["ts"] and node == self._node and raw[6] >> 4 == 1
        last_ts, last_offset = self._last
        self._last = (o["ts"], o["offset"])
        fields = [
            1,
            o["ts"] - last_ts,
            self._user(o["user"]),
            o["text"],
            sequence if short else raw,
            o["offset"] - last_offset - 1,
        ]
        if len(o) > _PLAIN_FIELDS:
            extra: Object = {}
            if "reply_to" in o:
                extra["reply_to"] = ids.from_text(o["reply_to"])
            for key in ("emotes", "historical", "visibility"):
                if key in o:
                    extra[key] = o[key]
            fields.append(extra)
        else:
            while fields[-1] == 0:  # at most two: a text is none
                fields.pop()
        return fields

    def _map(self, o: Object) -> list[Any]:
        return [_CODES[o["type"]], {key: value for key, value in o.items() if key != "type"}]

    def _deleted(self, o: Object) -> list[Any]:
        return [2, o["offset"] - self._offset, ids.from_text(o["comment_id"])]

    def _removed(self, o: Object) -> list[Any]:
        return _trimmed([3, o["offset"] - self._offset, o["user_id"], o.get("until")])

    def _cleared(self, o: Object) -> list[Any]:
        return [4, o["offset"] - self._offset]

    def _viewers(self, o: Object) -> list[Any]:
        return [5, o["count"], o["position"] - self._offset]

    def _ack(self, o: Object) -> list[Any]:
        limit = o["limit"] or {}
        return _trimmed(
            [
                6,
                o["nonce"],
                ids.from_text(o["id"]),
                o["offset"] - self._offset,
                SHOWN_WORDS.index(o["shown"]),
                limit.get("remaining"),
                limit.get("reset_ms"),
            ]
        )

    def _rejected(self, o: Object) -> list[Any]:
        return _trimmed([7, o["nonce"], o["code"], o["message"], o.get("retry_after_ms")])

    def _gap(self, o: Object) -> list[Any]:
        return [8, o["from"] - self._offset, o["to"] - self._offset, o["reason"]]

    def _reconnect(self, o: Object) -> list[Any]:
        return [9, o["after_ms"]]

    def _pong(self, o: Object) -> list[Any]:
        return [10, o["position"] - self._offset, o["server_time"] - self._ts]


# The field that places an object in the order, for base_offset where there is no comment.
_PLACE: Final = {
    "COMMENT_DELETED": "offset",
    "USER_REMOVED": "offset",
    "CLEARED": "offset",
    "VIEWERS": "position",
    "ACK": "offset",
    "GAP": "from",
    "PONG": "position",
}

_CODES: Final = {"WELCOME": 0, **{name: 11 + n for n, name in enumerate(MAP_TYPES)}}

_FORMS: Final[dict[str, Callable[[_Packer, Object], list[Any]]]] = {
    "WELCOME": _Packer._map,
    **dict.fromkeys(MAP_TYPES, _Packer._map),
    "COMMENT": _Packer._comment,
    "COMMENT_DELETED": _Packer._deleted,
    "USER_REMOVED": _Packer._removed,
    "CLEARED": _Packer._cleared,
    "VIEWERS": _Packer._viewers,
    "ACK": _Packer._ack,
    "REJECTED": _Packer._rejected,
    "GAP": _Packer._gap,
    "RECONNECT": _Packer._reconnect,
    "PONG": _Packer._pong,
}


def _trimmed(fields: list[Any]) -> list[Any]:
    while fields[-1] is None:
        fields.pop()
    return fields
