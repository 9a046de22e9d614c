"""Presence: how many connections each stream has, over all gateways with a live lease."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent

from gateway.audiences import Audiences
from gateway.dialects import native
from gateway.engine import Engine
from gateway.live import Live
from uproar.state import State, StateLost

EVERY_S = 1.0


class Presence:
    """Renews this gateway's lease with its counts, and tells viewers when a count changes."""

    def __init__(
        self,
        state: State,
        engine: Engine,
        audiences: Audiences,
        gateway: str,
        incarnation: str,
        count: Callable[[], dict[str, int]],
        live: dict[str, Live],
    ) -> None:
        self.state = state
        self.engine = engine
        self.audiences = audiences
        self.gateway = gateway
        self.incarnation = incarnation
        self.count = count
        self.live = live
        self.known: dict[str, int] = {}
        self._written: dict[str, int] = {}

    def run(self) -> None:
        """Renew for ever; while STATE is away counts stay as last known."""
        while True:
            began = time.monotonic()
            try:
                self._renew()
            except StateLost:
                self._written = {}
            gevent.sleep(max(0.1, EVERY_S - (time.monotonic() - began)))

    def viewers(self, stream: str) -> int | None:
        """Return the last known count, None before the first."""
        return self.known.get(stream)

    def _renew(self) -> None:
        mine = self.count()
        gone = dict.fromkeys(self._written.keys() - mine.keys(), 0)
        self.state.lease_gateway(self.gateway, self.incarnation, {**mine, **gone})
        self._written = mine
        streams = list(mine)
        counts = self.state.connections(streams) if streams else []
        fresh = dict(zip(streams, counts, strict=True))
        for stream, count in fresh.items():
            if count != self.known.get(stream):
                self._tell(stream, count)
        self.known = fresh

    def _tell(self, stream: str, count: int) -> None:
        live = self.live.get(stream)
        if live is None or not live.ready:
            return
        told = {"type": "VIEWERS", "count": count, "position": live.sent}
        for key, number in self.audiences.of(stream):
            payload, text = native.encode(key.codec, [told])
            # Latest wins: who can't take it now gets the next one.
            self.engine.broadcast(number, self.engine.frame(payload, text=text))
