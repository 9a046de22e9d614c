"""Commands: from a client's message to what it asks for. Sans-I/O, both codecs.

One bad command in an array costs itself only; a message that can't be read at all is one refusal.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

import msgspec

from uproar.events import User

COMMANDS_MAX: Final = 100
NONCE_MAX: Final = 64
MESSAGE_MAX: Final = 200  # characters of a refusal; it may quote what was sent

Millis: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class Author(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An author named by a service."""

    id: str
    name: str
    role: str = "viewer"
    color: str | None = None

    def user(self) -> User:
        """The author as it goes into the log."""
        return User(self.id, self.name, self.role, self.color)


class CommentCommand(
    msgspec.Struct, tag_field="type", tag="COMMENT", forbid_unknown_fields=True, frozen=True
):
    """Write a comment."""

    text: str
    nonce: str | None = None
    reply_to: str | None = None
    user: Author | None = None
    ts: Millis | None = None


class ReactCommand(
    msgspec.Struct, tag_field="type", tag="REACT", forbid_unknown_fields=True, frozen=True
):
    """Add to a stream's reactions."""

    kind: str
    count: int = 1


class PingCommand(
    msgspec.Struct, tag_field="type", tag="PING", forbid_unknown_fields=True, frozen=True
):
    """Ask for a PONG."""


Command: TypeAlias = CommentCommand | ReactCommand | PingCommand


class BadCommand(msgspec.Struct, frozen=True):
    """A command that can't be read: why, and its nonce where it has one."""

    message: str
    nonce: str | None = None


_json = msgspec.json.Decoder(Command)
_json_list = msgspec.json.Decoder(list[msgspec.Raw])
_msgpack = msgspec.msgpack.Decoder(Command)
_msgpack_list = msgspec.msgpack.Decoder(list[msgspec.Raw])


def parse(data: str | bytes) -> list[Command | BadCommand]:
    """Return the commands of one message, text as JSON and bytes as msgpack, in order."""
    whole: Any
    one: Any
    if isinstance(data, str):
        array = data.lstrip(" \t\r\n")[:1] == "["
        whole, one = _json_list, _json
    else:
        # The first byte of a msgpack array: fixarray, array 16, array 32.
        array = bool(data) and (0x90 <= data[0] <= 0x9F or data[0] in (0xDC, 0xDD))
        whole, one = _msgpack_list, _msgpack
    if not array:
        return [_command(one, data)]
    try:
        parts = whole.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return [BadCommand(f"not a list of commands: {_plain(error)}")]
    if len(parts) > COMMANDS_MAX:
        return [BadCommand(f"{len(parts)} commands in one message; at most {COMMANDS_MAX}")]
    return [_command(one, part) for part in parts]


def _command(decoder: Any, data: Any) -> Command | BadCommand:
    try:
        command: Command = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return BadCommand(_plain(error), _nonce_of(decoder, data))
    if isinstance(command, CommentCommand):
        nonce = command.nonce
        if nonce is not None and (not 1 <= len(nonce) <= NONCE_MAX or not nonce.isprintable()):
            return BadCommand(f"nonce must be 1 to {NONCE_MAX} printable characters")
    return command


def _nonce_of(decoder: Any, data: Any) -> str | None:
    """The nonce of a command that was refused for something else, so its sender can match it."""
    module = msgspec.json if decoder is _json else msgspec.msgpack
    try:
        loose = module.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    nonce = loose.get("nonce") if isinstance(loose, dict) else None
    return nonce if isinstance(nonce, str) and len(nonce) <= NONCE_MAX else None


def _plain(error: Exception) -> str:
    text = str(error).replace("`", "")
    return text if len(text) <= MESSAGE_MAX else text[: MESSAGE_MAX - 1] + "…"
