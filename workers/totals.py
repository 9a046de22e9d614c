"""Totals: what the coordinator tells of reactions and viewers, and keeps from being lost.

Comes in: twice a second, from STATE, the totals of the active streams. Goes out: those that
changed, on the streams' channels, reactions at most twice and viewers at most once a second.
`Totals` is the Sans-I/O core; `Teller` runs it in a thread of its own, so that nothing here ever
delays a comment.

Totals only rise. Where STATE has less than was told before, it has lost some (flushed, or killed
within the second that its file lags): it is raised to what is known, at once where the stream is
active and within a minute otherwise.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from typing import Final

from uproar import ephemeral
from uproar.bus import Bus, BusLost, channel
from uproar.consumer import Counted
from uproar.ephemeral import Said
from uproar.events import PoisonedRecord, to_event
from uproar.logs import event
from uproar.state import State, StateLost

logger = logging.getLogger(__name__)

PASS_S: Final = 0.5  # from the end of one pass to the next: reactions at most twice a second
SNAPSHOT_S: Final = 60.0
STREAMS_MAX: Final = 50_000  # that are remembered; the ones that were active longest ago give way


class _Stream:
    __slots__ = ("about", "reactions", "told", "viewers")

    def __init__(self) -> None:
        self.reactions: dict[str, int] = {}  # the highest that were seen
        self.told: dict[str, int] = {}
        self.viewers: int | None = None  # as told
        self.about: tuple[str, int] | None = None


class Totals:
    """What was seen and told of each stream, as one coordinator incarnation knows it."""

    def __init__(self) -> None:
        self._streams: OrderedDict[str, _Stream] = OrderedDict()

    def see(self, stream: str, reactions: dict[str, int], viewers: int | None) -> Said | None:
        """Take in what STATE has; return what is to be told of it.

        `viewers` of None: not counted in this pass. All totals of a stream are told when one has
        changed, for the message before may have been lost.
        """
        known = self._of(stream)
        for kind, total in reactions.items():
            if total > known.reactions.get(kind, 0):
                known.reactions[kind] = total
        risen = dict(known.reactions) if known.reactions != known.told else None
        counted = viewers if viewers != known.viewers else None
        return Said(risen, counted) if risen is not None or counted is not None else None

    def told(self, stream: str, said: Said) -> None:
        """Note that this was published."""
        known = self._of(stream)
        if said.reactions is not None:
            known.told = said.reactions
        if said.viewers is not None:
            known.viewers = said.viewers

    def lost(self, stream: str, reactions: dict[str, int]) -> dict[str, int] | None:
        """Return the stream's totals where STATE has less of one, None where all is well."""
        known = self._of(stream).reactions
        less = any(reactions.get(kind, 0) < total for kind, total in known.items())
        return dict(known) if less else None

    def describe(self, stream: str, about: tuple[str, int] | None) -> None:
        """Remember (title, start in unix ms) of a stream that was started; None: it has ended."""
        self._of(stream).about = about

    def known(self) -> dict[str, dict[str, int]]:
        """Return all reactions that are known, by stream."""
        return {name: dict(one.reactions) for name, one in self._streams.items() if one.reactions}

    def described(self) -> dict[str, tuple[str, int] | None]:
        """Return (title, start) of the streams that were started and have not ended."""
        return {name: one.about for name, one in self._streams.items() if one.about is not None}

    def _of(self, stream: str) -> _Stream:
        known = self._streams.get(stream)
        if known is None:
            known = self._streams[stream] = _Stream()
            if len(self._streams) > STREAMS_MAX:
                self._streams.popitem(last=False)
        else:
            self._streams.move_to_end(stream)
        return known


class Teller:
    """The shell around `Totals`: a thread with clients of its own."""

    def __init__(self, state: State, bus: Bus, stop: threading.Event) -> None:
        self.state = state
        self.bus = bus
        self.stop = stop
        self.totals = Totals()
        self.published = 0
        self._lock = threading.Lock()
        self._commented: set[str] = set()
        self._described: dict[str, tuple[str, int] | None] = {}
        self._passes = 0
        self._snapshot_at = 0.0
        self._away = False
        self._thread = threading.Thread(target=self._run, name="totals", daemon=True)

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the thread to see that `stop` is set."""
        self._thread.join(seconds)

    def saw(self, records: list[Counted]) -> None:
        """Take note of what the log says: which streams are active, begin or end."""
        if not records:
            return
        with self._lock:
            for counted in records:
                record = counted.record
                if record.type == "COMMENT":
                    self._commented.add(record.stream)
                elif record.type == "STREAM_ENDED":
                    self._described[record.stream] = None
                elif record.type == "STREAM_STARTED":
                    try:
                        title = to_event(counted.offset, record).data.title
                    except PoisonedRecord:
                        continue  # the gateways show it no more than we do
                    self._described[record.stream] = (title, record.ts)

    def _run(self) -> None:
        while not self.stop.is_set():
            try:
                self.step(time.time())
                self._away = False
            except (StateLost, BusLost) as error:
                if not self._away:
                    event(logger, "totals_wait", level=logging.WARNING, why=str(error))
                self._away = True
            except Exception:
                # A fault in one pass must not end all telling: nobody else would say so.
                event(logger, "totals_failed", level=logging.ERROR, exc_info=True)
            self.stop.wait(PASS_S)

    def step(self, now: float) -> None:
        """One pass (`now` in unix seconds); raises StateLost or BusLost and may be run again."""
        self._note(now)
        streams = self.state.active(now)
        reactions = self.state.reactions(streams)
        self._passes += 1
        counts: list[int] | list[None] = [None] * len(streams)
        if self._passes % 2:
            counts = self.state.viewers(streams, now)
        due: dict[str, Said] = {}
        lost: dict[str, dict[str, int]] = {}
        for stream, found, viewers in zip(streams, reactions, counts, strict=True):
            said = self.totals.see(stream, found, viewers)
            if said is not None:
                due[stream] = said
            more = self.totals.lost(stream, found)
            if more is not None:
                lost[stream] = more
        if due:
            self._tell(due, now)
        if now >= self._snapshot_at:
            self.state.raise_reactions(self.totals.known())
            self.state.describe_streams(self.totals.described())
            self._snapshot_at = now + SNAPSHOT_S
        elif lost:
            self.state.raise_reactions(lost)

    def _tell(self, due: dict[str, Said], now: float) -> None:
        shards = self.state.interests(list(due), now)
        messages = [
            (channel(stream, shard), ephemeral.encode("totals", said))
            for (stream, said), interested in zip(due.items(), shards, strict=True)
            for shard in interested
        ]
        if messages:
            self.bus.publish(messages)
        for (stream, said), interested in zip(due.items(), shards, strict=True):
            if interested:  # else said again: interest may be lost with a flushed STATE
                self.totals.told(stream, said)
        self.published += len(messages)

    def _note(self, now: float) -> None:
        """Pass on to STATE what the log has said since the last pass."""
        with self._lock:
            commented, self._commented = self._commented, set()
            described, self._described = self._described, {}
        try:
            self.state.mark_active(sorted(commented), now)
            self.state.describe_streams(described)
        except StateLost:
            with self._lock:
                self._commented |= commented
                self._described = {**described, **self._described}
            raise
        for stream, about in described.items():
            self.totals.describe(stream, about)
