"""What travels on the bus beside batches and has no place in the order: totals, probes, kicks.

msgpack `[kind, body]`, an array of two, where a batch is one of three: the first byte tells them
apart. At most once and latest wins: a lost one is made good by the next, or by what STATE knows.

| kind | channel | body |
|---|---|---|
| `totals` | of the stream | `{"reactions": {kind: total}, "viewers": count}`, or one of them |
| `probe` | of a gateway | nil: it came back to its sender |
| `kick` | of a gateway | `{"user": id, "stream": id or nil}` |
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta

_PAIR: Final = 0x92  # the first byte of a msgpack array of two

Total: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 53)]


class BadEphemeral(ValueError):
    """A message that no version of this code wrote: dropped, logged, never fatal."""


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """Body of `totals`: all reactions of a stream, and its viewers; None: nothing new."""

    reactions: dict[str, Total] | None = None
    viewers: Total | None = None


class Kick(msgspec.Struct, frozen=True):
    """Body of `kick`: whose sessions are to be closed, on one stream or on all."""

    user: str
    stream: str | None = None


Body: TypeAlias = Said | Kick | None

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw]).decode
_BODIES: Final[dict[str, msgspec.msgpack.Decoder[Any]]] = {
    "totals": msgspec.msgpack.Decoder(Said),
    "probe": msgspec.msgpack.Decoder(None),
    "kick": msgspec.msgpack.Decoder(Kick),
}


def is_ephemeral(payload: bytes) -> bool:
    """Whether a payload of the bus is none of a batch."""
    return payload[:1] == bytes((_PAIR,))


def encode(kind: str, body: Body) -> bytes:
    """Return the payload of a message."""
    return _encode((kind, body))


def decode(payload: bytes) -> tuple[str, Body]:
    """Return (kind, body); raises BadEphemeral with what is wrong."""
    try:
        kind, raw = _decode(payload)
        body: Body = _BODIES[kind].decode(raw)
    except KeyError as error:
        raise BadEphemeral(f"unknown kind {str(error)[:40]}") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEphemeral(f"not [kind, body]: {error}") from error
    return kind, body
