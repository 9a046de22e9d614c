"""Ephemeral: what viewers are told without a place in the order: reactions and how many they are.

Comes in: the coordinator's totals from the bus, and what STATE knows when a stream is opened or
nothing came for a while. Goes out: REACTIONS and VIEWERS, only what changed, the same bytes to
every audience of a stream. Latest wins: who can't take one now gets the next.
"""

from __future__ import annotations

import time
from typing import Final

from gateway.audiences import Audiences
from gateway.dialects import native, sse
from gateway.engine import Engine
from gateway.live import Live
from gateway.tick import ENCODERS
from uproar.ephemeral import Said
from uproar.state import State, StateLost

REFRESH_S: Final = 10.0  # without news of a stream: then STATE is asked, a message may be lost


class _Known:
    __slots__ = ("at", "reactions", "viewers")

    def __init__(self) -> None:
        self.at = 0.0  # of the last news, monotonic
        self.reactions: dict[str, int] = {}
        self.viewers: int | None = None


class Ephemeral:
    """What this gateway's viewers have been told last, per watched stream."""

    def __init__(
        self, state: State, engine: Engine, audiences: Audiences, live: dict[str, Live]
    ) -> None:
        self.state = state
        self.engine = engine
        self.audiences = audiences
        self.live = live
        self._known: dict[str, _Known] = {}

    def viewers(self, stream: str) -> int | None:
        """Return the last known number of viewers, None before the first of them was counted."""
        known = self._known.get(stream)
        return (known.viewers or None) if known is not None else None

    def reactions(self, stream: str) -> dict[str, int]:
        """Return the last known totals by kind."""
        known = self._known.get(stream)
        return dict(known.reactions) if known is not None else {}

    def take(self, stream: str, said: Said) -> None:
        """Take news in and tell the stream's audiences what changed by it."""
        live = self.live.get(stream)
        if live is None:
            return
        known = self._known.setdefault(stream, _Known())
        known.at = time.monotonic()
        told: list[native.Object] = []
        # Totals only rise: lower ones are of a STATE that has lost some and will be told them.
        risen = {
            kind: total
            for kind, total in (said.reactions or {}).items()
            if total > known.reactions.get(kind, 0)
        }
        if risen:
            known.reactions.update(risen)
            told.append({"type": "REACTIONS", "totals": risen})
        if said.viewers is not None and said.viewers != known.viewers:
            known.viewers = said.viewers
            told.append({"type": "VIEWERS", "count": said.viewers, "position": live.sent})
        if told and live.ready:
            self._tell(live, told)

    def refresh(self, streams: list[str] | None = None) -> None:
        """Ask STATE about streams, by default those without news; raises StateLost.

        What is known of streams that nobody watches any more is dropped.
        """
        for gone in self._known.keys() - self.live.keys():
            del self._known[gone]
        if streams is None:
            late = time.monotonic() - REFRESH_S
            streams = [
                stream
                for stream in self.live
                if (known := self._known.get(stream)) is None or known.at < late
            ]
        if not streams:
            return
        reactions = self.state.reactions(streams)
        viewers = self.state.viewers(streams, time.time())
        lost: dict[str, dict[str, int]] = {}
        for stream, totals, count in zip(streams, reactions, viewers, strict=True):
            before = self.reactions(stream)
            self.take(stream, Said(totals, count))
            if any(totals.get(kind, 0) < total for kind, total in before.items()):
                lost[stream] = before
        if lost:
            self.state.raise_reactions(lost)

    def opened(self, live: Live) -> None:
        """Learn what WELCOME is to say of a stream that has just been opened."""
        try:
            self.refresh([live.stream])
        except StateLost:
            return  # the next refresh makes it good

    def _tell(self, live: Live, told: list[native.Object]) -> None:
        payloads: dict[tuple[str, str], bytes] = {}
        for key, number in self.audiences.of(live.stream):
            form = key.dialect, key.codec
            payload = payloads.get(form)
            if payload is None:
                place = sse.Place(live.epoch, live.sent)
                payload = payloads[form] = ENCODERS[key.dialect](key.codec, told, place)
            self.engine.broadcast(number, payload)
