"""Reactions: counted, and added to STATE's totals every 500 ms, only what changed.

The engine counts what it can by itself, at one counter a stream; the rest is counted here. While
STATE is away the counts stay here and are tried again; one whose answer was lost may count twice,
so totals are exact without faults and close to it with them.
"""

from __future__ import annotations

import logging
from typing import Final

import gevent

from gateway.commands import ReactCommand
from gateway.engine import Engine
from gateway.live import Live
from uproar.auth import Claims
from uproar.config import Config
from uproar.logs import event
from uproar.state import State, StateLost

logger = logging.getLogger(__name__)

FLUSH_S: Final = 0.5
STREAMS_MAX: Final = 10_000  # with counts that wait for STATE; more are dropped and counted


class Reactions:
    """The reactions of this gateway's viewers that are not in STATE yet."""

    def __init__(self, config: Config, state: State, engine: Engine) -> None:
        self.state = state
        self.engine = engine
        engine.count_reactions(tuple(config.reactions.kinds), config.limits.reactions_per_message)
        self.counted = 0  # since the start
        self.dropped = 0
        self._most = config.limits.reactions_per_message
        self._kinds = frozenset(config.reactions.kinds)
        self._refusal = f"kind must be one of {', '.join(config.reactions.kinds)}"
        self._waiting: dict[str, dict[str, int]] = {}
        self._away = False
        self._counters: dict[str, int] = {}
        self._streams: dict[int, str] = {}
        self._emptied: set[str] = set()  # their counters are taken back with the next flush
        self._free: list[int] = []

    def react(
        self, live: Live, claims: Claims | None, command: ReactCommand
    ) -> tuple[str, str] | None:
        """Count a command; (code, message) of the refusal when it can't be."""
        if claims is None:
            return "read_only", "connect with a token to react; POST /session gives one"
        if claims.sub in live.standing.bans:
            return "banned", "you are banned from this stream"
        kind, count = command.kind, command.count
        if kind not in self._kinds:
            return "bad_request", self._refusal
        if not 1 <= count <= self._most:
            return "bad_request", f"count must be 1 to {self._most}"
        self._add(live.stream, kind, count)
        self.counted += count
        return None

    def run(self) -> None:
        """Flush for ever."""
        while True:
            gevent.sleep(FLUSH_S)
            self.flush()

    def flush(self) -> bool:
        """Add what waits to STATE; False when STATE is away, and it waits on."""
        self._collect()
        if not self._waiting:
            return True
        counts, self._waiting = self._waiting, {}
        try:
            self.state.add_reactions(counts)
        except StateLost as error:
            if not self._away:
                event(logger, "reactions_wait", level=logging.WARNING, why=str(error))
            self._away = True
            for stream, kinds in counts.items():
                for kind, count in kinds.items():
                    self._add(stream, kind, count)
            return False
        self._away = False
        return True

    def counter(self, stream: str) -> int:
        """Return the engine's counter of a stream."""
        self._emptied.discard(stream)
        number = self._counters.get(stream)
        if number is None:
            number = self._free.pop() if self._free else len(self._counters) + 1
            self._counters[stream] = number
            self._streams[number] = stream
        return number

    def emptied(self, stream: str) -> None:
        """Take a stream's counter back, once what it has counted is told."""
        if stream in self._counters:
            self._emptied.add(stream)

    def _collect(self) -> None:
        """Take over what the engine has counted."""
        for number, kinds in self.engine.reactions().items():
            for kind, count in kinds.items():
                self._add(self._streams[number], kind, count)
                self.counted += count
        for stream in self._emptied:
            number = self._counters.pop(stream)
            del self._streams[number]
            self._free.append(number)
        self._emptied.clear()

    def _add(self, stream: str, kind: str, count: int) -> None:
        kinds = self._waiting.get(stream)
        if kinds is None:
            if len(self._waiting) >= STREAMS_MAX:
                self.dropped += count
                return
            kinds = self._waiting[stream] = {}
        kinds[kind] = kinds.get(kind, 0) + count
