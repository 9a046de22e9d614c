"""The native protocol's two codecs: the one place that decides how a tick is encoded.

Everything a viewer may be sent is first an object in the JSON shape of docs/protocol.md; JSON
writes it as it is, msgpack as positional arrays with differences to the message's base.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

from uproar import ids
from uproar.events import ROLES, Comment, Event, Visibility

Object: TypeAlias = dict[str, Any]

SUBPROTOCOLS: Final = ("uproar.v1.json", "uproar.v1.msgpack")
SHOWN_WORDS: Final = ("all", "sampled", "held")
_VISIBILITY_WORDS: Final = {Visibility.HELD: "held", Visibility.SHADOW: "shadow"}

_json = msgspec.json.Encoder().encode
_msgpack = msgspec.msgpack.Encoder().encode


def codec_of(subprotocol: str | None) -> str:
    """Return `json` or `msgpack`."""
    return "msgpack" if subprotocol == "uproar.v1.msgpack" else "json"


def comment_object(event: Event, *, historical: bool = False, moderator: bool = False) -> Object:
    """Return a COMMENT as viewers (or moderators) see it."""
    comment: Comment = event.data
    user = comment.user
    author: Object = {"id": user.id, "name": user.name, "role": user.role}
    if user.color is not None:
        author["color"] = user.color
    if user.badges is not None:
        author["badges"] = list(user.badges)
    shown: Object = {
        "type": "COMMENT",
        "id": ids.to_text(comment.id),
        "offset": event.offset,
        "user": author,
        "text": comment.text,
        "ts": comment.ts,
    }
    if comment.reply_to is not None:
        shown["reply_to"] = ids.to_text(comment.reply_to)
    if comment.emotes:
        shown["emotes"] = [list(emote) for emote in comment.emotes]
    if historical:
        shown["historical"] = True
    if moderator and event.visibility in _VISIBILITY_WORDS:
        shown["visibility"] = _VISIBILITY_WORDS[Visibility(event.visibility)]
    return shown


def event_object(event: Event, *, moderator: bool = False) -> Object:
    """Return any event of the log, or a GAP, as it is sent."""
    if event.type == "COMMENT":
        return comment_object(event, moderator=moderator)
    data = event.data
    if event.type == "COMMENT_DELETED":
        return {
            "type": "COMMENT_DELETED",
            "comment_id": ids.to_text(data.comment_id),
            "offset": event.offset,
        }
    if event.type == "USER_REMOVED":
        removed: Object = {
            "type": "USER_REMOVED", "user_id": data.user_id, "offset": event.offset,
        }  # fmt: skip
        if data.until is not None:
            removed["until"] = data.until
        return removed
    if event.type == "CLEARED":
        return {"type": "CLEARED", "offset": event.offset}
    if event.type == "GAP":
        return {"type": "GAP", "from": data["from"], "to": data["to"], "reason": data["reason"]}
    raise ValueError(f"no form for {event.type}")


def encode(codec: str, objects: list[Object]) -> tuple[bytes, bool]:
    """Return (payload, is text) of one message."""
    if codec == "json":
        return _json(objects), True
    return pack(objects), False


def pack(objects: list[Object]) -> bytes:
    """Return the msgpack form of a message (docs/protocol.md, "msgpack")."""
    return _msgpack(_Packer(objects).message())


class _Packer:
    def __init__(self, objects: list[Object]) -> None:
        self._objects = objects
        first = next((o for o in objects if o["type"] == "COMMENT"), None)
        if first is not None:
            self._ts = first["ts"]
            self._node: bytes | None = ids.from_text(first["id"])[8:]
        else:
            self._ts = next((o["server_time"] for o in objects if o["type"] == "PONG"), 0)
            self._node = None
        self._offset = next(
            (o[key] for o in objects if (key := _PLACE.get(o["type"])) is not None), 0
        )
        self._users: dict[str, list[tuple[Object, int]]] = {}
        self._count = 0

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
        return _trimmed([user["id"], user["name"], role or None, user.get("color"), badges])

    def _comment(self, o: Object) -> list[Any]:
        raw = ids.from_text(o["id"])
        ts, sequence, node = ids.split(raw)
        short = ts == o["ts"] and node == self._node and raw[6] >> 4 == 1
        extra: Object = {}
        if "reply_to" in o:
            extra["reply_to"] = ids.from_text(o["reply_to"])
        for key in ("emotes", "historical", "visibility"):
            if key in o:
                extra[key] = o[key]
        return _trimmed(
            [
                1,
                o["offset"] - self._offset,
                o["ts"] - self._ts,
                sequence if short else raw,
                self._user(o["user"]),
                o["text"],
                extra or None,
            ]
        )

    def _welcome(self, o: Object) -> list[Any]:
        return [0, {key: value for key, value in o.items() if key != "type"}]

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


# The field that places an object in the order, for base_offset: the first one mentioned.
_PLACE: Final = {
    "COMMENT": "offset",
    "COMMENT_DELETED": "offset",
    "USER_REMOVED": "offset",
    "CLEARED": "offset",
    "VIEWERS": "position",
    "ACK": "offset",
    "GAP": "from",
    "PONG": "position",
}

_FORMS: Final[dict[str, Callable[[_Packer, Object], list[Any]]]] = {
    "WELCOME": _Packer._welcome,
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
