"""Audiences: the sessions of this process that receive the same bytes.

The key holds everything that decides what those bytes are. A session belongs to none (it joins, it
lags), to one, or to several.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from uproar.events import MASK_ALL, RATE_5, RATE_20, RATE_50, SHOWN, Event, Visibility

RATES: Final = {"all": SHOWN, "50": RATE_50, "20": RATE_20, "5": RATE_5}


class AudienceKey(NamedTuple):
    """What its members have in common."""

    stream: str
    dialect: str  # native, later irc, mqtt, sse
    codec: str  # json or msgpack
    compression: str  # none, each or window
    rate: str  # all, 50, 20 or 5 comments a second at most
    visibility: str  # viewer or moderator


def sees(key: AudienceKey, event: Event) -> bool:
    """Whether an audience gets an event at all."""
    if key.visibility == "moderator":
        return True
    if event.visibility != Visibility.ALL:
        return False
    return event.mask == MASK_ALL or bool(event.mask & SHOWN and event.mask & RATES[key.rate])


class Audiences:
    """Numbers the audiences for the engine, and lists those of a stream."""

    def __init__(self) -> None:
        self._numbers: dict[AudienceKey, int] = {}
        self._by_stream: dict[str, dict[AudienceKey, int]] = {}
        self._next = 0

    def number(self, key: AudienceKey) -> int:
        """Return the engine's number of an audience, a new one for a new key."""
        number = self._numbers.get(key)
        if number is None:
            self._next += 1
            number = self._numbers[key] = self._next
            self._by_stream.setdefault(key.stream, {})[key] = number
        return number

    def of(self, stream: str) -> list[tuple[AudienceKey, int]]:
        """Return the audiences of a stream."""
        return list(self._by_stream.get(stream, {}).items())

    def forget(self, stream: str) -> None:
        """Drop the audiences of a stream that nobody watches."""
        for key in self._by_stream.pop(stream, {}):
            del self._numbers[key]
