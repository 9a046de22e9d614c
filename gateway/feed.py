"""The feed: from the bus to the live streams, with every hole filled or named.

Opening a stream: SUBSCRIBE confirmed → interest written → last offset and ring read → live. The
coordinator writes the ring, *then* reads interest, then publishes: so every batch is either in what
was read or comes to us. A broken chain is filled from the ring, then the store; live batches wait
for it, at most `gateway.fill_s`, then a GAP stands in its place.
"""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event as Flag

from gateway.ephemeral import Ephemeral
from gateway.figures import Figures
from gateway.live import Live
from uproar import ephemeral
from uproar.batch import Batch, decode_batch
from uproar.bus import Bus, BusLost, Subscriber, channel, control_channel, shard_of
from uproar.config import Config
from uproar.ephemeral import BadEphemeral, Kick, Said, is_ephemeral
from uproar.events import CONTROL_TYPES, Event, PoisonedRecord
from uproar.log import partition_of, partitions_of
from uproar.logs import event
from uproar.state import RingEntry, State, StateLost
from uproar.store import Reader, Store, StoreUnavailable

logger = logging.getLogger(__name__)

PROBE = ephemeral.encode("probe", None)
PROBE_EVERY_S = 1.0
PROBE_LATE_S = 3.0
STORE_EVENTS = 5000  # one fill from the store; a longer hole is a GAP
RESTAND_S = 0.5  # between two looks whether the archive has come past a hole
FAR_PAGES = 20  # of so many events a slow viewer may be behind; further, it is closed


class Feed:
    """Owns the subscriber and all live streams of this process."""

    def __init__(
        self,
        config: Config,
        name: str,
        bus: Bus,
        state: State,
        store: Store,
        in_pool: Callable[..., Any],
        on_ready: Callable[[Live], None],
        on_events: Callable[[Live], None],
    ) -> None:
        self.config = config
        self.name = name
        self.shard = shard_of(name, config.shards)
        self.bus = bus
        self.state = state
        self.store = store
        self.in_pool = in_pool  # runs a store call where it may wait: in_pool(function, *args)
        self.on_ready = on_ready
        self.on_events = on_events
        self.ephemeral: Ephemeral
        self.kick: Callable[[str, str | None], object]  # of a user, on one stream or on all
        self.restood: Callable[[Live], object] = lambda live: None  # after a hole was given up
        self.live: dict[str, Live] = {}
        self.figures = Figures()
        self.gaps = 0
        self.fills = 0
        self.reconnects = -1  # to the bus: the first one is none
        self.probe_at = 0.0  # when the last probe of ours came back, monotonic
        self._subscriber: Subscriber | None = None
        self._confirmed: dict[str, Flag] = {}
        self._filling: set[str] = set()
        self._unwatched: dict[str, float] = {}

    def start(self) -> None:
        """Start the reader, the leases and the probe."""
        for loop in (self._read, self._probe, self._renew):
            gevent.spawn(loop)

    @property
    def delivers(self) -> bool:
        """Whether a probe came through the bus to us lately."""
        return self.probe_age_s < PROBE_LATE_S

    @property
    def probe_age_s(self) -> float:
        """How long ago the last probe came back."""
        return time.monotonic() - self.probe_at

    def watch(self, stream: str) -> Live:
        """Return a stream's live state, opening it when it is new; `on_ready` says when it is."""
        self._unwatched.pop(stream, None)
        live = self.live.get(stream)
        if live is None:
            live = self.live[stream] = Live(
                stream,
                keep_events=self.config.gateway.recent_events,
                keep_ms=int(self.config.gateway.recent_s * 1000),
            )
            gevent.spawn(self._open, live)
        return live

    def unwatch(self, stream: str) -> None:
        """Say that nobody watches a stream now; it is kept for a lease's time."""
        self._unwatched[stream] = time.monotonic()

    def partition(self, stream: str) -> int:
        """Return the partition of a stream."""
        return partition_of(stream, partitions_of(self.config))

    def last(self, stream: str) -> tuple[int, str] | None:
        """Up to where a stream's partition is published, and its epoch; raises StateLost."""
        return self.state.last(self.partition(stream))

    # -- the bus ----------------------------------------------------------------------------------

    def _read(self) -> None:
        """Hold a subscriber; make a new one, with everything on it, whenever it is lost."""
        while True:
            try:
                subscriber = self.bus.subscriber()
                subscriber.subscribe([control_channel(self.name)])
                self.reconnects += 1
                self._subscriber = subscriber
                for live in list(self.live.values()):
                    gevent.spawn(self._open if not live.ready else self._reopen, live)
                while True:
                    message = subscriber.get(1.0)
                    if message is not None:
                        self._on_message(*message)
            except BusLost as error:
                event(logger, "bus_lost", level=logging.WARNING, why=str(error))
            lost, self._subscriber = self._subscriber, None
            if lost is not None:
                lost.close()
            gevent.sleep(0.05 + random.random() * 0.05)

    def _on_message(self, where: str, payload: bytes | None) -> None:
        if payload is None:
            flag = self._confirmed.get(where)
            if flag is not None:
                flag.set()
            return
        if is_ephemeral(payload):
            self._on_ephemeral(where, payload)
            return
        live = self.live.get(where.split(":", 2)[1])
        if live is None:
            return
        try:
            batch = decode_batch(payload)
        except PoisonedRecord as error:
            event(logger, "batch_poisoned", level=logging.WARNING, where=where, why=str(error))
            return
        self._take(live, batch)

    def _on_ephemeral(self, where: str, payload: bytes) -> None:
        """Take what is no batch: totals on a stream's channel, probes and kicks on our own."""
        try:
            _, body = ephemeral.decode(payload)
        except BadEphemeral as error:
            event(logger, "message_dropped", level=logging.WARNING, where=where, why=str(error))
            return
        if isinstance(body, Said):
            self.ephemeral.take(where.split(":", 2)[1], body)
        elif isinstance(body, Kick):
            self.kick(body.user, body.stream)
        else:
            self.probe_at = time.monotonic()
            self.figures.probed()

    def _take(self, live: Live, batch: Batch) -> None:
        if live.take(batch):
            self.figures.came(batch.published_ms, batch.events)
            if live.pending:
                self.on_events(live)
        elif live.ready:
            self._start_fill(live)

    def _subscribed(self, stream: str) -> bool:
        """Subscribe and wait for the confirmation."""
        where = channel(stream, self.shard)
        subscriber = self._subscriber
        if subscriber is None:
            return False
        flag = self._confirmed[where] = Flag()
        try:
            subscriber.subscribe([where])
        except BusLost:
            return False
        return bool(flag.wait(1.0))

    # -- opening ----------------------------------------------------------------------------------

    def _open(self, live: Live) -> None:
        """Bring a stream up; tries until it is, or nobody wants it any more."""
        while self.live.get(live.stream) is live and not live.ready:
            try:
                if self._subscribed(live.stream):
                    self._interest([live.stream])
                    self._begin(live)
                    break
            except (StateLost, StoreUnavailable) as error:
                event(
                    logger, "open_delayed", level=logging.WARNING,
                    stream=live.stream, why=str(error),
                )  # fmt: skip
            gevent.sleep(0.1)
        else:
            return
        self.on_ready(live)
        if live.hole is not None:
            self._start_fill(live)
        if live.pending:
            self.on_events(live)

    def _begin(self, live: Live) -> None:
        known = self.last(live.stream)
        if known is None:
            raise StateLost("the coordinator has not said yet where it stands")
        last, epoch = known
        past, position = _chained(self.state.ring(live.stream, 0), last)
        # Hidden ones too: their authors and moderators see them.
        rows = self.in_pool(
            functools.partial(self.store.newest, reader=Reader(moderator=True)),
            live.stream,
            self.config.gateway.backlog_max,
        )
        standing = self.in_pool(self.store.standing, live.stream)
        era = self._era(epoch)
        below = past[0].offset if past else position + 1
        backlog = [
            # A comment of an earlier epoch has an offset of that epoch: it precedes all of ours.
            row.event if row.era == era else row.event._replace(offset=0)
            for row in reversed(rows)
            if row.era != era or row.event.offset < below
        ]
        self.ephemeral.opened(live)
        if live.ready:  # another opener was faster: viewers may stand where it put them
            self.hear(live)
            return
        live.open(epoch, position, past, backlog, standing)

    def _reopen(self, live: Live) -> None:
        """After a lost bus: subscribe again, then fill what was missed meanwhile."""
        while self.live.get(live.stream) is live and self._subscriber is not None:
            try:
                if self._subscribed(live.stream):
                    self._interest([live.stream])
                    self.hear(live)
                    return
            except StateLost as error:
                event(logger, "reopen_delayed", stream=live.stream, why=str(error))
            gevent.sleep(0.1)

    def hear(self, live: Live) -> None:
        """Ask STATE how far everything has come, and fill up to there; raises StateLost."""
        known = self.last(live.stream)
        if live.ready and known is not None and known[0] > live.position:
            self._take(live, Batch(known[0], known[0], []))

    def come_up(self, live: Live) -> None:
        """Have a quiet stream stand where its partition does, by the store alone.

        No live batch waits for this: what a client says of its place must cost nobody else.
        """
        known = self.last(live.stream)
        after = live.position
        if not live.ready or known is None or known[0] <= after:
            return
        found = self.stored(live, after, known[0])
        if found is not None:
            live.fill(Batch(after, known[0], found))
            self.on_events(live)

    def forgotten(self) -> None:
        """STATE was emptied: what was published since has gone past us. Raises StateLost."""
        self.renew()
        for live in list(self.live.values()):
            self.hear(live)

    # -- holes ------------------------------------------------------------------------------------

    def _start_fill(self, live: Live) -> None:
        if live.stream not in self._filling:
            self._filling.add(live.stream)
            gevent.spawn(self._fill, live)

    def _fill(self, live: Live) -> None:
        self.fills += 1
        began = time.monotonic()
        try:
            while (hole := live.hole) is not None:
                late = time.monotonic() - began > self.config.gateway.fill_s
                if not (self._from_ring(live, hole[1]) or self._from_store(live, hole[1])):
                    if late or live.overfull:
                        self.gaps += 1
                        event(
                            logger, "gap", level=logging.WARNING,
                            stream=live.stream, after=hole[0], upto=hole[1],
                        )  # fmt: skip
                        live.give_up(hole[1], "not_available")
                        gevent.spawn(self._restand, live, hole[1])
                    else:
                        gevent.sleep(0.02 + random.random() * 0.03)
                if live.pending:
                    self.on_events(live)
        finally:
            self._filling.discard(live.stream)
        self.on_events(live)  # also when nothing was in the hole: the position has moved on

    def _restand(self, live: Live, upto: int) -> None:
        """Learn from the store what the hole said about what stands, once it is archived."""
        while self.live.get(live.stream) is live:
            try:
                if self.in_pool(self.store.position, live.epoch) >= upto:
                    live.restand(self.in_pool(self.store.standing, live.stream))
                    self.restood(live)
                    return
            except StoreUnavailable:
                pass
            gevent.sleep(RESTAND_S)

    def _from_ring(self, live: Live, upto: int) -> bool:
        """Fill as far as the ring's chain joins; True when that is far enough."""
        try:
            entries = self.state.ring(live.stream, live.position)
        except StateLost:
            return False
        for entry in entries:
            try:
                batch = decode_batch(entry.payload)
            except PoisonedRecord:
                return False
            if batch.prev > live.position:
                return False
            live.fill(batch)
            if live.position >= upto:
                return True
        return False

    def _from_store(self, live: Live, upto: int) -> bool:
        """Fill from the store where the archive has come past the hole."""
        after = live.position
        try:
            events = self.in_pool(self._stored, live.stream, live.epoch, after, upto)
        except StoreUnavailable:
            return False
        if events is None:
            return False
        live.fill(Batch(after, upto, events))
        return True

    def _stored(self, stream: str, epoch: str, after: int, upto: int) -> list[Event] | None:
        """Return the events at (after, upto], None when the store does not have them all (yet)."""
        if self.store.position(epoch) < upto:
            return None
        events = self.store.events(
            stream, self.store.open_epoch(epoch), after, upto, STORE_EVENTS + 1
        )
        return events if len(events) <= STORE_EVENTS else None

    def stored(self, live: Live, after: int, upto: int) -> list[Event] | None:
        """Return a stream's events at (after, upto], None when they are not (all) to be had."""
        try:
            events: list[Event] | None = self.in_pool(
                self._stored, live.stream, live.epoch, after, upto
            )
        except StoreUnavailable:
            return None
        return events

    def stored_controls(self, live: Live, after: int, upto: int) -> list[Event] | None:
        """Return the control events at (after, upto]; None when not to be had, or too many."""
        controls: list[Event] = []
        for _ in range(FAR_PAGES):
            try:
                page = self.in_pool(self._page, live.stream, live.epoch, after, upto)
            except StoreUnavailable:
                return None
            if page is None:
                return None
            controls += [found for found in page if found.type in CONTROL_TYPES]
            if len(page) < STORE_EVENTS:
                return controls if len(controls) <= STORE_EVENTS else None
            after = page[-1].offset
        return None

    def _page(self, stream: str, epoch: str, after: int, upto: int) -> list[Event] | None:
        if self.store.position(epoch) < upto:
            return None
        era = self.store.open_epoch(epoch)
        return self.store.events(stream, era, after, upto, STORE_EVENTS)

    def _era(self, epoch: str) -> int:
        try:
            return int(self.in_pool(self.store.open_epoch, epoch))
        except StoreUnavailable:
            return -1

    # -- leases and the probe ---------------------------------------------------------------------

    def _interest(self, streams: list[str]) -> list[str]:
        """Lease the streams; return those that had no lease of ours."""
        if not streams:
            return []
        until = time.time() + self.config.state.interest_lease_s
        return self.state.add_interest(streams, self.shard, until)

    def renew(self) -> None:
        """Say again which streams are watched here; raises StateLost.

        Where the lease was lost, with a master of a cluster for example, batches have gone past us.
        """
        for stream in self._interest(list(self.live)):
            live = self.live.get(stream)
            if live is not None:
                self.hear(live)

    def _renew(self) -> None:
        lease_s = self.config.state.interest_lease_s
        while True:
            gevent.sleep(lease_s / 6)
            self._forget_unwatched(lease_s)
            try:
                self.renew()
            except StateLost:
                continue

    def _forget_unwatched(self, lease_s: float) -> None:
        now = time.monotonic()
        for stream, since in list(self._unwatched.items()):
            if self._unwatched.get(stream) != since:
                continue  # watched again while the last one was unsubscribed
            if now - since > lease_s:
                del self._unwatched[stream]
                self.live.pop(stream, None)
                self._confirmed.pop(channel(stream, self.shard), None)
                try:
                    if self._subscriber is not None:
                        self._subscriber.unsubscribe([channel(stream, self.shard)])
                except BusLost:
                    continue

    def _probe(self) -> None:
        while True:
            if self.probe_at:  # the first ones may leave before anybody hears them
                self.figures.probe()
            try:
                self.bus.publish([(control_channel(self.name), PROBE)])
            except BusLost:
                pass  # it shows by not coming back
            gevent.sleep(PROBE_EVERY_S)


def _chained(entries: list[RingEntry], last: int) -> tuple[list[Event], int]:
    """Return the ring's newest events that join without a hole, and the position after them."""
    batches: list[Batch] = []
    for entry in entries:
        try:
            batch = decode_batch(entry.payload)
        except PoisonedRecord:
            batches.clear()
            continue
        if batches and batch.prev > batches[-1].last:
            batches.clear()
        batches.append(batch)
    events: list[Event] = []
    for batch in batches:
        after = events[-1].offset if events else 0
        events += [found for found in batch.events if found.offset > after]
    return events, max(last, batches[-1].last if batches else 0)
