"""How an event's data lies in a row: msgpack, in the shape of its type."""

from __future__ import annotations

from typing import Final

import msgspec

from uproar.events import DATA_OF, Event
from uproar.store import StoreUnavailable

encode: Final = msgspec.msgpack.Encoder().encode
_decoders = {name: msgspec.msgpack.Decoder(shape) for name, shape in DATA_OF.items()}


def decode(
    where: object,
    offset: int,
    type_: str,
    ts: int,
    actor: str,
    mask: int,
    visibility: int,
    data: bytes,
) -> Event:
    """Return the event of a row that lies in `where`; raises StoreUnavailable for a bad one."""
    decoder = _decoders.get(type_)
    if decoder is None:
        raise StoreUnavailable(
            f"{where}: {type_} at offset {offset} comes from a later version; upgrade"
        )
    try:
        return Event(offset, type_, ts, actor, mask, visibility, decoder.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError) as error:
        raise StoreUnavailable(
            f"{where}: {type_} at offset {offset} is damaged: {error}"
        ) from error
