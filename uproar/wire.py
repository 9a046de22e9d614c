"""What a client reads and says: docs/protocol.md as functions of bytes, for both codecs.

Comes in: one server message. Goes out: its events in the JSON shape, whichever codec carried them;
and the other way, commands as bytes. The server's own encoder is `gateway.dialects.native`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from uproar import codes, ids
from uproar.events import DATA_OF, ROLES

Event: TypeAlias = dict[str, Any]
Command: TypeAlias = dict[str, Any]


class WireError(ValueError):
    """A message that is not of this protocol, or a command that can't be encoded."""


class Retry(Enum):
    """Whether a client connects again after a close; the values are the words of the docs."""

    YES = "yes"
    LATER = "yes, later"
    NEW_TOKEN = "with a new token"
    NEVER = "no"


_RETRIES: Final = {"no": Retry.NEVER, "yes": Retry.YES, "token": Retry.NEW_TOKEN}


def retry_of(code: int) -> Retry:
    """Return whether to connect again after a close code; unknown ones: yes."""
    if code == codes.TOO_MANY_COMMANDS.code:
        return Retry.LATER
    known = codes.CLOSE_CODES.get(code)
    return _RETRIES[known.again] if known else Retry.YES


# The types whose `offset` is their place in the stream's order.
PLACED: Final = frozenset(DATA_OF) - {"SAMPLING"}  # which is a BANNER on the wire, without one

PING: Final[Command] = {"type": "PING"}


def comment(text: str, nonce: str, **more: Any) -> Command:
    """Return a COMMENT command; `more` is reply_to, and user and ts of a service."""
    return {"type": "COMMENT", "text": text, "nonce": nonce, **more}


def decode_json(data: str | bytes) -> list[Event]:
    """Return the events of a JSON message; raises WireError."""
    try:
        return _json_events(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WireError(f"not a JSON array of events: {error}") from error


def decode_msgpack(data: bytes) -> list[Event]:
    """Return the events of a msgpack message, in the JSON shape; raises WireError.

    Events with a code not known here are left out.
    """
    try:
        base_ts, base_offset, node, raw = _msgpack_message(data)
        message = _Message(base_ts, base_offset, node)
        return [_READERS[event[0]](message, event) for event in raw if event[0] in _READERS]
    except WireError:
        raise
    except (
        msgspec.DecodeError,
        UnicodeError,
        RecursionError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
    ) as error:
        raise WireError(f"not a msgpack message of events: {error}") from error


def encode_json(commands: Command | list[Command]) -> bytes:
    """Return commands as the payload of a text message; raises WireError."""
    return _encode(msgspec.json.encode, commands)


def encode_msgpack(commands: Command | list[Command]) -> bytes:
    """Return commands as the payload of a binary message; raises WireError."""
    return _encode(msgspec.msgpack.encode, commands)


class Codec(NamedTuple):
    """How messages of one subprotocol are read and written; `binary` tells the frame's opcode."""

    subprotocol: str
    binary: bool
    decode: Callable[[Any], list[Event]]
    encode: Callable[[Command | list[Command]], bytes]


CODECS: Final[dict[str, Codec]] = {
    "json": Codec("uproar.v1.json", False, decode_json, encode_json),
    "msgpack": Codec("uproar.v1.msgpack", True, decode_msgpack, encode_msgpack),
}


def _encode(encoder: Callable[[Any], bytes], commands: Command | list[Command]) -> bytes:
    try:
        return encoder(commands)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(f"the command can't be encoded: {error}") from error


_check_json = msgspec.json.Decoder(list[dict[str, Any]])
_msgpack_message = msgspec.msgpack.Decoder(tuple[int, int, bytes | None, list[list[Any]]]).decode


def _json_events(data: str | bytes) -> list[Event]:
    events = _check_json.decode(data)
    for event in events:
        if not isinstance(event.get("type"), str):
            raise WireError("not an event: it has no `type`")
    return events


class _Message:
    """What the events of one msgpack message share."""

    __slots__ = ("last_offset", "last_ts", "node", "offset", "ts", "users")

    def __init__(self, ts: int, offset: int, node: bytes | None) -> None:
        self.ts = ts
        self.offset = offset
        self.node = node
        self.last_ts = ts  # these two of the comment before
        self.last_offset = offset
        self.users: list[Event] = []

    def id(self, raw: int | bytes, ts: int) -> str:
        if isinstance(raw, bytes):
            return _id_text(raw)
        if self.node is None or len(self.node) != 8:
            raise WireError("a comment id needs the 8 bytes of `node`, which the message lacks")
        return ids.to_text(ids.build(ts, raw, self.node))

    def user(self, raw: int | list[Any]) -> Event:
        """An index of a user already named, or a user in full."""
        if isinstance(raw, int):
            if not 0 <= raw < len(self.users):
                raise WireError(f"user {raw} is not among the {len(self.users)} of the message")
            # A copy: two events never share a mutable part.
            return dict(self.users[raw])
        user_id, name, role, color, badges = _padded(raw, 5)
        user: Event = {"id": user_id, "name": name, "role": ROLES[role or 0]}
        if isinstance(color, int):
            if not 0 <= color <= 0xFFFFFF:
                raise WireError(f"a color has 24 bits, this is {color}")
            user["color"] = f"#{color:06x}"
        elif color is not None:
            user["color"] = color
        if badges is not None:
            user["badges"] = badges
        self.users.append(user)
        return user


def _padded(raw: list[Any], size: int) -> list[Any]:
    """The first `size` items, None for those left out."""
    return [*raw[:size], *[None] * (size - len(raw))]


def _id_text(raw: bytes) -> str:
    if len(raw) != 16:
        raise WireError(f"a comment id has 16 bytes, this has {len(raw)}")
    return ids.to_text(raw)


def _comment(message: _Message, raw: list[Any]) -> Event:
    _, ts, user, text, comment_id, skipped, extra = _padded(raw, 7)
    message.last_ts = ts = message.last_ts + ts
    message.last_offset = offset = message.last_offset + 1 + (0 if skipped is None else skipped)
    event = {
        "type": "COMMENT",
        "id": message.id(0 if comment_id is None else comment_id, ts),
        "offset": offset,
        "user": message.user(user),
        "text": text,
        "ts": ts,
    }
    if extra is not None:
        event.update(extra)
        if "reply_to" in extra:
            event["reply_to"] = _id_text(extra["reply_to"])
    return event


def _deleted(message: _Message, raw: list[Any]) -> Event:
    return {
        "type": "COMMENT_DELETED",
        "comment_id": _id_text(raw[2]),
        "offset": message.offset + raw[1],
    }


def _user_removed(message: _Message, raw: list[Any]) -> Event:
    _, offset, user_id, until = _padded(raw, 4)
    event = {"type": "USER_REMOVED", "user_id": user_id, "offset": message.offset + offset}
    if until is not None:
        event["until"] = until
    return event


def _ack(message: _Message, raw: list[Any]) -> Event:
    _, nonce, comment_id, offset, shown, remaining, reset_ms = _padded(raw, 7)
    return {
        "type": "ACK",
        "nonce": nonce,
        "id": _id_text(comment_id),
        "offset": message.offset + offset,
        "shown": SHOWN[shown],
        "limit": None if remaining is None else {"remaining": remaining, "reset_ms": reset_ms},
    }


def _rejected(_: _Message, raw: list[Any]) -> Event:
    _, nonce, code, text, retry_after_ms = _padded(raw, 5)
    event = {"type": "REJECTED", "nonce": nonce, "code": code, "message": text}
    if retry_after_ms is not None:
        event["retry_after_ms"] = retry_after_ms
    return event


def _gap(message: _Message, raw: list[Any]) -> Event:
    return {
        "type": "GAP",
        "from": message.offset + raw[1],
        "to": message.offset + raw[2],
        "reason": raw[3],
    }


SHOWN: Final = ("all", "sampled", "held")

# Codes from 11 on are maps of the JSON fields.
_MAPS: Final = (
    "COMMENT_RESTORED", "COMMENT_APPROVED", "COMMENT_PINNED", "COMMENT_UNPINNED", "MODE", "BANNER",
    "STREAM_STARTED", "STREAM_ENDED", "FLAGGED", "HELD", "HELD_RESOLVED", "SANCTION", "TERMS",
    "REACTIONS",
)  # fmt: skip


def _map_of(name: str) -> Callable[[_Message, list[Any]], Event]:
    return lambda _, raw: {"type": name, **raw[1]}


_READERS: Final[dict[int, Callable[[_Message, list[Any]], Event]]] = {
    **{11 + number: _map_of(name) for number, name in enumerate(_MAPS)},
    0: lambda _, raw: {"type": "WELCOME", **raw[1]},
    1: _comment,
    2: _deleted,
    3: _user_removed,
    4: lambda message, raw: {"type": "CLEARED", "offset": message.offset + raw[1]},
    5: lambda message, raw: {
        "type": "VIEWERS",
        "count": raw[1],
        "position": message.offset + raw[2],
    },
    6: _ack,
    7: _rejected,
    8: _gap,
    9: lambda _, raw: {"type": "RECONNECT", "after_ms": raw[1]},
    10: lambda message, raw: {
        "type": "PONG",
        "position": message.offset + raw[1],
        "server_time": message.ts + raw[2],
    },
}
