"""WebSocket framing without sockets (RFC 6455 sections 5 to 7), for both roles.

Comes in: bytes as they arrive, in pieces of any size. Goes out: whole messages, or the one error
that ends the connection. The one extension spoken is permessage-deflate, where it was agreed on
(`uproar.deflate`); any other reserved bit is refused. A length in more bytes than it needs is
taken, as all browsers do.
"""

from __future__ import annotations

import codecs
from enum import IntEnum
from struct import Struct
from typing import Final, Literal, NamedTuple, TypeAlias

from uproar.deflate import DeflateError, Inflater, TooBig, inflate


class Opcode(IntEnum):
    """RFC 6455 section 5.2."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class Text(NamedTuple):
    """A complete text message."""

    text: str


class Binary(NamedTuple):
    """A complete binary message."""

    data: bytes


class Ping(NamedTuple):
    """To be answered by a pong with the same data (at most 125 bytes)."""

    data: bytes


class Pong(NamedTuple):
    """An answer to a ping, or unasked for."""

    data: bytes


class Close(NamedTuple):
    """The peer closes; `code` is 1005 where it gave none. Nothing after it is looked at."""

    code: int
    reason: str


Message: TypeAlias = Text | Binary | Ping | Pong | Close


class ProtocolError(Exception):
    """What the peer sent is refused: close with `code` and the sentence in `reason`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


NO_STATUS: Final = 1005
RSV1: Final = 0x40  # set on the first frame of a compressed message (RFC 7692 section 6)

# The codes that may stand in a close frame: RFC 6455 section 7.4 and the IANA registry, which has
# 1012 to 1014 as well. 1004, 1005, 1006 and 1015 never travel.
_CLOSE_CODES: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})

_U16: Final = Struct("!H")
_U64: Final = Struct("!Q")
_HEAD_16: Final = Struct("!BBH")
_HEAD_64: Final = Struct("!BBQ")


def may_travel(code: int) -> bool:
    """Whether a close frame may carry the code."""
    return code in _CLOSE_CODES or 3000 <= code <= 4999


def apply_mask(data: bytes, mask: bytes) -> bytes:
    """Return `data` XOR the four bytes of `mask`, over and over (its own inverse)."""
    # One XOR of two long integers: 0.2 ms for 64 KiB, where a loop over bytes takes 4 ms.
    size = len(data)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


def encode(
    opcode: int,
    payload: bytes,
    *,
    fin: bool = True,
    mask: bytes | None = None,
    compressed: bool = False,
) -> bytes:
    """Return one frame; `mask` is four random bytes for a client, None for a server.

    `compressed` says that the payload begins a message as `deflate.compress` gives it.
    """
    size = len(payload)
    first = opcode | 0x80 if fin else opcode
    if compressed:
        first |= RSV1
    second = 0 if mask is None else 0x80
    if size < 126:
        head = bytes((first, second | size))
    elif size < 65536:
        head = _HEAD_16.pack(first, second | 126, size)
    else:
        head = _HEAD_64.pack(first, second | 127, size)
    if mask is None:
        return head + payload
    return head + mask + apply_mask(payload, mask)


def encode_close(code: int = NO_STATUS, reason: str = "", *, mask: bytes | None = None) -> bytes:
    """Return a close frame; the reason is cut to the 123 bytes there is room for.

    1005 sends an empty one. Raises ValueError for a code that must not travel.
    """
    if code == NO_STATUS:
        return encode(Opcode.CLOSE, b"", mask=mask)
    if not may_travel(code):
        raise ValueError(f"{code} is no close code to send; take 1000 to 1014 or 3000 to 4999")
    room = reason.encode("utf-8", "replace")[:123].decode("utf-8", "ignore").encode()
    return encode(Opcode.CLOSE, _U16.pack(code) + room, mask=mask)


class FrameParser:
    """Turns the bytes of one connection into messages.

    `role` is ours: a `server` takes masked frames only, a `client` unmasked ones only. A message,
    whole or in fragments, has at most `max_message` bytes; a larger one is refused as soon as a
    header announces it. So no more is held than one message and the bytes of one `feed`. With
    `deflate` a message may come compressed; inflated it has at most `max_message` bytes as well.
    With `context` it may refer to the compressed ones before it, which costs some 40 KB; what comes
    uncompressed in between is not among them.

    The first error stands in `error`: the `feed` that met it returns the messages before it, and
    every later `feed` raises it. After a Close input is ignored.
    """

    __slots__ = (
        "_buffer",
        "_closed",
        "_compressed",
        "_decoder",
        "_deflate",
        "_fragments",
        "_inflater",
        "_max_fragments",
        "_max_message",
        "_need",
        "_opcode",
        "_parts",
        "_server",
        "_texts",
        "_total",
        "error",
    )

    def __init__(
        self,
        *,
        role: Literal["server", "client"],
        max_message: int,
        max_fragments: int = 4096,
        deflate: bool = False,
        context: bool = False,
    ) -> None:
        self.error: ProtocolError | None = None
        self._server = role == "server"
        self._max_message = max_message
        self._max_fragments = max_fragments
        self._deflate = deflate
        self._inflater = Inflater() if deflate and context else None
        self._buffer = bytearray()
        self._need = 2  # bytes that the buffer must hold before looking again is worth it
        self._closed = False
        # The fragmented message under way: its opcode (0: none), size and pieces so far.
        self._opcode = 0
        self._compressed = False
        self._fragments = 0
        self._total = 0
        self._parts = bytearray()
        self._texts: list[str] = []
        self._decoder: codecs.IncrementalDecoder | None = None

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages completed by `data`; raises the ProtocolError of an earlier feed."""
        if self.error is not None:
            raise self.error
        if self._closed:
            return []
        buffer = self._buffer
        source: bytes | bytearray = data
        if buffer:
            buffer += data
            source = buffer
        messages: list[Message] = []
        position = 0
        try:
            if len(source) >= self._need:
                position = self._parse(source, messages)
        except ProtocolError as error:
            self.error = error
            self._forget()
            return messages
        if messages and isinstance(messages[-1], Close):
            self._closed = True
            self._forget()
        elif source is buffer:
            del buffer[:position]
        elif position < len(data):
            buffer += data[position:]
        return messages

    def _parse(self, source: bytes | bytearray, messages: list[Message]) -> int:
        """Append the messages in `source`; return how many of its bytes are used up."""
        position, end = 0, len(source)
        masked_bit = 0x80 if self._server else 0
        mask_size = 4 if self._server else 0
        while True:
            if end - position < 2:
                self._need = 2
                break
            first, second = source[position], source[position + 1]
            opcode = first & 0x0F
            if first & 0x70:
                self._check_reserved(first)
            if second & 0x80 != masked_bit:
                raise ProtocolError(
                    1002,
                    "a client's frame must be masked"
                    if self._server
                    else "a server's frame must not be masked",
                )
            size = second & 0x7F
            start = position + 2
            if opcode & 0x08:
                if opcode > Opcode.PONG:
                    raise ProtocolError(1002, f"opcode {opcode:#x} is unknown")
                if not first & 0x80:
                    raise ProtocolError(1002, "a control frame must not be fragmented")
                if size > 125:
                    raise ProtocolError(1002, "a control frame has at most 125 bytes")
            else:
                if size == 126:
                    start += 2
                    if end < start:
                        self._need = start - position
                        break
                    size = _U16.unpack_from(source, start - 2)[0]
                elif size == 127:
                    start += 8
                    if end < start:
                        self._need = start - position
                        break
                    size = _U64.unpack_from(source, start - 8)[0]
                self._check_data(opcode, size)
            start += mask_size
            stop = start + size
            if end < stop:
                self._need = stop - position
                break
            payload = bytes(source[start:stop])
            if mask_size and size:
                payload = apply_mask(payload, bytes(source[start - 4 : start]))
            position = stop
            if opcode & 0x08:
                messages.append(_control(opcode, payload))
                if opcode == Opcode.CLOSE:
                    break
            elif first & 0x80 and opcode:
                if first & RSV1:
                    payload = self._inflate(payload)
                messages.append(Text(_text(payload)) if opcode == 1 else Binary(payload))
            else:
                if opcode:
                    self._compressed = bool(first & RSV1)
                message = self._fragment(opcode, payload, bool(first & 0x80))
                if message is not None:
                    messages.append(message)
        return position

    def _check_reserved(self, first: int) -> None:
        """Refuse a reserved bit where it has no meaning: RSV1 has one at a message's beginning."""
        if not self._deflate:
            raise ProtocolError(1002, "a reserved bit is set, but no extension was agreed on")
        if first & 0x30:
            raise ProtocolError(1002, "RSV2 or RSV3 is set; permessage-deflate has only RSV1")
        if first & 0x08 or not first & 0x0F:
            raise ProtocolError(1002, "RSV1 is for the first frame of a message, text or binary")

    def _inflate(self, payload: bytes) -> bytes:
        try:
            if self._inflater is not None:
                return self._inflater.message(payload, self._max_message)
            return inflate(payload, self._max_message)
        except TooBig as error:
            raise ProtocolError(1009, str(error)) from None
        except DeflateError as error:
            raise ProtocolError(1007, str(error)) from None

    def _check_data(self, opcode: int, size: int) -> None:
        """Refuse a data frame that its header alone condemns."""
        if opcode > Opcode.BINARY:
            raise ProtocolError(1002, f"opcode {opcode:#x} is unknown")
        if opcode and self._opcode:
            raise ProtocolError(1002, "a new message begins before the fragmented one has ended")
        if not opcode and not self._opcode:
            raise ProtocolError(1002, "a continuation frame without a message to continue")
        if size >> 63:
            raise ProtocolError(1002, "a length with its top bit set")
        if self._total + size > self._max_message:
            raise ProtocolError(
                1009,
                f"a message of at least {self._total + size} bytes; at most "
                f"{self._max_message} are taken",
            )

    def _fragment(self, opcode: int, payload: bytes, fin: bool) -> Message | None:
        """Take a piece of a fragmented message; return the message with its last piece."""
        if opcode:
            self._opcode = opcode
            text = opcode == Opcode.TEXT and not self._compressed
            self._decoder = _incremental("strict") if text else None
        self._fragments += 1
        if self._fragments > self._max_fragments:
            raise ProtocolError(1009, f"a message in more than {self._max_fragments} fragments")
        self._total += len(payload)
        message: Message | None = None
        if self._decoder is not None:
            try:
                self._texts.append(self._decoder.decode(payload, fin))
            except UnicodeDecodeError:
                raise ProtocolError(1007, "a text message that is not UTF-8") from None
            if fin:
                message = Text("".join(self._texts))
        else:
            self._parts += payload
            if fin and self._compressed:
                whole = self._inflate(bytes(self._parts))
                message = Text(_text(whole)) if self._opcode == Opcode.TEXT else Binary(whole)
            elif fin:
                message = Binary(bytes(self._parts))
        if fin:
            self._drop_fragments()
        return message

    def _drop_fragments(self) -> None:
        self._opcode = self._fragments = self._total = 0
        self._compressed = False
        self._parts = bytearray()
        self._texts = []
        self._decoder = None

    def _forget(self) -> None:
        """Free what is held: nothing of it will be looked at again."""
        self._drop_fragments()
        self._buffer = bytearray()
        self._inflater = None


_incremental: Final = codecs.getincrementaldecoder("utf-8")


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise ProtocolError(1007, "a text message that is not UTF-8") from None


def _control(opcode: int, payload: bytes) -> Message:
    if opcode == Opcode.PING:
        return Ping(payload)
    if opcode == Opcode.PONG:
        return Pong(payload)
    if not payload:
        return Close(NO_STATUS, "")
    if len(payload) == 1:
        raise ProtocolError(1002, "a close frame with one byte; a code has two")
    code = _U16.unpack_from(payload)[0]
    if not may_travel(code):
        raise ProtocolError(1002, f"{code} is no close code that may be sent")
    try:
        reason = payload[2:].decode()
    except UnicodeDecodeError:
        raise ProtocolError(1007, "a close reason that is not UTF-8") from None
    return Close(code, reason)
