"""Types of `codec.pyx`."""

from collections.abc import Callable

from uproar.events import Event

def encode_json(
    events: list[Event], moderator: bool, other: Callable[[Event, bool], bytes]
) -> bytes: ...
def encode_msgpack(
    events: list[Event], moderator: bool, other: Callable[[Event, bool, int, int], bytes]
) -> bytes | None: ...
