"""Audiences: the sessions of this process that receive the same bytes.

The key holds everything that decides what those bytes are. A session belongs to none (it joins, it
lags), to one, or to several.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple, TypeAlias

from gateway.engine import Engine, Form
from uproar.events import MASK_ALL, RATE_5, RATE_20, RATE_50, SHOWN, Event, Visibility

RATES: Final = {"all": SHOWN, "50": RATE_50, "20": RATE_20, "5": RATE_5}
FRAMINGS: Final = {("native", "json"): "text", ("native", "msgpack"): "binary"}


# What audiences are told apart by in metrics: dialect, codec, compression.
Kind: TypeAlias = tuple[str, str, str]


class AudienceKey(NamedTuple):
    """What its members have in common."""

    stream: str
    dialect: str  # native, later irc, mqtt, sse
    codec: str  # json or msgpack
    compression: str  # none, each or window
    rate: str  # all, 50, 20 or 5 comments a second at most
    visibility: str  # viewer or moderator

    @property
    def form(self) -> Form:
        """How the engine sends to it; a dialect that is no WebSocket goes out as it is."""
        return Form(FRAMINGS.get((self.dialect, self.codec), "raw"), self.compression)

    @property
    def kind(self) -> Kind:
        """What it has in common with audiences of other streams."""
        return self.dialect, self.codec, self.compression

    @property
    def moderates(self) -> bool:
        """Whether its members see what only moderators see."""
        return self.visibility == "moderator"


def sees(key: AudienceKey, event: Event) -> bool:
    """Whether an audience gets an event at all."""
    if key.visibility == "moderator":
        return True
    if event.visibility != Visibility.ALL:
        return False
    return event.mask == MASK_ALL or bool(event.mask & SHOWN and event.mask & RATES[key.rate])


class Audiences:
    """The engine's number of each audience, and those of a stream."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._keys: dict[int, AudienceKey] = {}
        self._by_stream: dict[str, dict[AudienceKey, int]] = {}
        self._forgotten_bytes: Counter[Kind] = Counter()  # sent to audiences that are no more

    def number(self, key: AudienceKey) -> int:
        """Return the engine's number of an audience, a new one for a new key."""
        numbers = self._by_stream.setdefault(key.stream, {})
        number = numbers.get(key)
        if number is None:
            number = numbers[key] = self.engine.audience(key.form)
            self._keys[number] = key
        return number

    def key(self, number: int) -> AudienceKey | None:
        """Return what an audience is of, None for a forgotten one."""
        return self._keys.get(number)

    def of(self, stream: str) -> list[tuple[AudienceKey, int]]:
        """Return the audiences of a stream."""
        return list(self._by_stream.get(stream, {}).items())

    def forget(self, stream: str) -> None:
        """Drop the audiences of a stream that nobody watches."""
        for key, number in self._by_stream.pop(stream, {}).items():
            self._forgotten_bytes[key.kind] += self.engine.sent_to(number)
            del self._keys[number]
            self.engine.forget(number)

    def bytes_by_kind(self) -> dict[Kind, int]:
        """Return how many bytes all audiences of a kind were sent, of all times."""
        found = self._forgotten_bytes.copy()
        for number, key in self._keys.items():
            found[key.kind] += self.engine.sent_to(number)
        return found

    def members_by_kind(self) -> dict[Kind, int]:
        """Return how many sessions are in the audiences of a kind."""
        # A kind that there was once goes on as 0.
        found: Counter[Kind] = Counter(dict.fromkeys(self._forgotten_bytes, 0))
        for number, key in self._keys.items():
            found[key.kind] += self.engine.members(number)
        return found
