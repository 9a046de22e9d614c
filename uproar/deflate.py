"""permessage-deflate without sockets (RFC 7692): what is agreed on, and payloads small and large.

Comes in: the extension header of a handshake, and payloads. Goes out: the answer's header, and
payloads smaller or larger, or the reason why not. A client's messages never refer to one another. A
server's may, in a `Window`: one deflate stream that a whole audience shares, so the bytes of one
message are right for everybody who got all compressed messages since a keyframe. So a connection
costs the server no memory between messages, whatever was agreed on.
"""

from __future__ import annotations

import re
import zlib
from typing import Final, NamedTuple, TypeAlias

EXTENSION: Final = "permessage-deflate"
OFFER: Final = f"{EXTENSION}; client_no_context_takeover"
WINDOW_BITS: Final = 15  # of ours; a client that can't hold 32 KiB is answered without deflate

# Below this nothing is worth it: a tick of one comment as JSON (187 bytes) becomes 20 % smaller, as
# msgpack (69 bytes) 8 %, for 10 us here and an inflate at each viewer. `benchmarks bytes`.
MIN_BYTES: Final = 200
# In a window the same ticks become 36 and 28 bytes, and a VIEWERS or COMMENT_DELETED that came
# before 5. What is smaller than this (msgpack of those) grows by some bytes where it is new.
WINDOW_MIN_BYTES: Final = 32
# Level 6 makes 60 comments 10 % smaller than level 1 for 35 us more, and 5 or fewer no smaller; in
# a window, ticks of any size by 10 to 18 %. From so many viewers on, sending takes longer than
# that. Level 9 gained nothing (in a window 1 %) for twice the time.
MANY: Final = 16
LEVEL_FEW: Final = 1
LEVEL_MANY: Final = 6

Offer: TypeAlias = tuple[str, dict[str, str | None]]

_TAIL: Final = b"\x00\x00\xff\xff"  # what a sync flush ends with and no message carries
_LAST: Final = b"\x01\x00\x00\xff\xff"  # an empty final block: behind a whole message it is the end
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_QUOTED: Final = re.compile(r'"((?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*)"')
_SPACE: Final = re.compile(r"[ \t]*")
_BITS: Final = re.compile(r"[89]|1[0-5]")


class Agreement(NamedTuple):
    """What a handshake came to."""

    answer: str | None  # the header of the response; None: no such header
    # Of messages of the server: `none`, `each` (no message refers to another) or `window`.
    # `unused`: none, though the client may compress its own.
    compression: str


class DeflateError(Exception):
    """A compressed message that can't be had: malformed, or too large inflated."""


class TooBig(DeflateError):
    """It inflates to more than is taken."""


# -- the handshake --------------------------------------------------------------------------------


def parse(header: str) -> list[Offer]:
    """Return the extensions of a Sec-WebSocket-Extensions header in order (RFC 6455 section 9.1).

    Each is a name with its parameters. Raises ValueError for what does not follow the grammar, and
    for a parameter named twice.
    """
    offers: list[Offer] = []
    scan = _Scanner(header)
    while True:
        if scan.takes(","):  # an empty element of a list is allowed
            continue
        if scan.ended:
            return offers
        name = scan.token()
        parameters: dict[str, str | None] = {}
        while scan.takes(";"):
            parameter = scan.token()
            if parameter in parameters:
                raise ValueError(f"the parameter {parameter} stands twice")
            parameters[parameter] = scan.value() if scan.takes("=") else None
        offers.append((name, parameters))
        if not scan.ended and not scan.takes(","):
            raise ValueError(f"a comma is missing before {scan.rest}")


def negotiate(header: str) -> Agreement:
    """Return the server's answer to the offers of a client; the first that can be taken is.

    Those who want a smaller window than the one that all share get plain messages, unless they have
    another offer. Raises ValueError for a malformed header.
    """
    small: Agreement | None = None
    for name, parameters in parse(header):
        if name != EXTENSION or not _takes(parameters):
            continue
        alone = "server_no_context_takeover" in parameters
        answer = EXTENSION
        if alone:
            answer += "; server_no_context_takeover"
        answer += "; client_no_context_takeover"
        bits = parameters.get("server_max_window_bits")
        if bits is not None:  # one that names the server's window wants to read it in the answer
            answer += f"; server_max_window_bits={bits}"
        if bits is None or int(bits) == WINDOW_BITS:
            return Agreement(answer, "each" if alone else "window")
        small = small or Agreement(answer, "unused")
    return small or Agreement(None, "none")


def accepted(header: str) -> bool:
    """Return whether messages may refer to earlier ones by a server's answer to OFFER.

    Raises ValueError with what is wrong with the answer.
    """
    try:
        found = parse(header)
    except ValueError as error:
        raise ValueError(f"its extensions are malformed: {error}") from None
    if len(found) != 1 or found[0][0] != EXTENSION:
        raise ValueError("it chooses an extension that was not offered")
    parameters = found[0][1]
    if "client_max_window_bits" in parameters or not _takes(parameters):
        raise ValueError("its parameters of permessage-deflate are not what was offered")
    return "server_no_context_takeover" not in parameters


def _takes(parameters: dict[str, str | None]) -> bool:
    """Whether parameters are known and well formed (RFC 7692 section 7.1)."""
    for name, value in parameters.items():
        if name in ("server_no_context_takeover", "client_no_context_takeover"):
            sound = value is None
        elif name == "server_max_window_bits":
            sound = bool(_BITS.fullmatch(value or ""))
        elif name == "client_max_window_bits":
            # A hint, or leave to be told: any window of theirs can be read.
            sound = value is None or bool(_BITS.fullmatch(value))
        else:
            sound = False
        if not sound:
            return False
    return True


class _Scanner:
    """Reads a header from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._skip()

    @property
    def ended(self) -> bool:
        return self._at == len(self._text)

    @property
    def rest(self) -> str:
        """What stands here, for a sentence."""
        return f'"{self._text[self._at : self._at + 20]}"' if not self.ended else "the end"

    def takes(self, sign: str) -> bool:
        """Step over a sign if it stands here."""
        if not self._text.startswith(sign, self._at):
            return False
        self._at += 1
        self._skip()
        return True

    def token(self) -> str:
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            raise ValueError(f"a name is missing before {self.rest}")
        self._at = found.end()
        self._skip()
        return found[0]

    def value(self) -> str:
        """A token, quoted or not."""
        found = _QUOTED.match(self._text, self._at)
        if found is None:
            return self.token()
        self._at = found.end()
        self._skip()
        value = re.sub(r"\\(.)", r"\1", found[1])
        if not _TOKEN.fullmatch(value):
            raise ValueError("a quoted value must be a token")
        return value

    def _skip(self) -> None:
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at


# -- messages -------------------------------------------------------------------------------------


def compress(payload: bytes, level: int = LEVEL_MANY) -> bytes:
    """Return a message's payload compressed by itself, for a frame with RSV1."""
    # A smaller window or hash for small payloads gained no time: the allocator has the memory.
    deflater = zlib.compressobj(level, zlib.DEFLATED, -WINDOW_BITS)
    return deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)[:-4]


class Window:
    """One deflate stream whose messages many connections get.

    Who starts reading at a keyframe, and gets every message from there on, reads them all; whatever
    else comes to it compressed in between spoils that. The first message is a keyframe always. The
    compiled twin is `_fastpath/deflate.h`.
    """

    __slots__ = ("_deflater",)

    def __init__(self) -> None:
        self._deflater: zlib._Compress | None = None

    def message(self, payload: bytes, level: int, *, keyframe: bool = False) -> bytes:
        """Return the next message's payload, for a frame with RSV1.

        A keyframe refers to nothing before it. `level` counts from a keyframe to the next: Python's
        zlib can't change it in between.
        """
        deflater = self._deflater
        if keyframe or deflater is None:
            # A new stream goes on where the last sync flush ended, at a whole byte. It is a full
            # flush without the 5 bytes that say so.
            deflater = zlib.compressobj(level, zlib.DEFLATED, -WINDOW_BITS)
            self._deflater = deflater
        return deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)[:-4]


def level_for(sharing: int) -> int:
    """Return the level for a message that so many viewers get."""
    return LEVEL_MANY if sharing >= MANY else LEVEL_FEW


def inflate(data: bytes, limit: int) -> bytes:
    """Return the payload of a compressed message, of at most `limit` bytes.

    Never makes more than one byte above the limit. Raises TooBig, and DeflateError for what is no
    whole deflate stream or has bytes behind its end.
    """
    inflater = zlib.decompressobj(-WINDOW_BITS)
    try:
        # zlib does not say whether it stands between two blocks. It stands there if it takes a
        # final one for its end: so a message that was cut off is found out.
        payload = inflater.decompress(data + _TAIL + _LAST, limit + 1)
    except zlib.error as error:
        raise DeflateError(f"a compressed message that can't be inflated ({error})") from None
    if len(payload) > limit:
        raise TooBig(f"a message that inflates to more than {limit} bytes")
    # A sender may close its stream with a final block of its own, and must then add one empty
    # octet, whose rest is the tail (RFC 7692 section 7.2.3.4).
    if not inflater.eof or inflater.unused_data not in (b"", b"\x00" + _TAIL + _LAST):
        raise DeflateError("a compressed message that is cut off or goes on behind its end")
    return payload


class Inflater:
    """Reads the compressed messages of one sender, which may refer to earlier ones."""

    __slots__ = ("_inflater",)

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(-WINDOW_BITS)

    def message(self, data: bytes, limit: int) -> bytes:
        """Return the next message's payload, as `inflate` does; after an error nothing is right."""
        inflater = self._inflater
        try:
            payload = inflater.decompress(data + _TAIL, limit + 1)
            if len(payload) > limit:
                raise TooBig(f"a message that inflates to more than {limit} bytes")
            if inflater.eof:
                # It closes its stream; a new one, which knows nothing of this, follows.
                if inflater.unused_data != b"\x00" + _TAIL:
                    raise DeflateError("a compressed message that goes on behind its end")
                self._inflater = zlib.decompressobj(-WINDOW_BITS)
            else:
                # Only a copy may be told that the stream ends here. It costs 3 us.
                probe = inflater.copy()
                if probe.decompress(_LAST, 1) or not probe.eof:
                    raise DeflateError("a compressed message that is cut off")
        except zlib.error as error:
            raise DeflateError(f"a compressed message that can't be inflated ({error})") from None
        return payload
