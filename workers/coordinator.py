"""Coordinator: log → ring and bus. One batch per poll and stream, to the shards that want it.

Beside it, in a thread of its own, what is no event of the log: `workers.totals`.

Effects in this order: ring, interest, publish, last, commit. So a gateway that has written its
interest and then read the ring has every batch, from the one or from the other.
"""

from __future__ import annotations

import logging
import os
import time

from uproar import status
from uproar.batch import stamped
from uproar.bus import BusLost, channel
from uproar.bus.valkey import ValkeyBus
from uproar.consumer import Consumer
from uproar.lag import Lag
from uproar.log import LogUnavailable
from uproar.log.valkey import ValkeyLog
from uproar.logs import event
from uproar.metrics import Histogram, Metrics
from uproar.state import RingWrite, StateLost
from uproar.state.valkey import ValkeyState
from workers.chain import Chain, Link
from workers.process import Process
from workers.totals import Teller

logger = logging.getLogger(__name__)

GROUP = "coordinator"
PARTITION = 0
POLL_RECORDS = 4096
COMMIT_EVERY_S = 0.1
STOP_S = 1.0  # for the totals to finish their pass
SAY_LAST_EVERY_S = 0.5  # also when nothing happens: a state server that was emptied learns it again


class Coordinator:
    """The shell around `Chain`."""

    def __init__(self, process: Process) -> None:
        config = process.config
        self.stop = process.stop
        self.log = ValkeyLog(config)
        self.state = ValkeyState(config)
        self.bus = ValkeyBus(config)
        self.consumer = Consumer(self.log, GROUP, PARTITION)
        self.teller = Teller(ValkeyState(config), ValkeyBus(config), process.stop)
        self.config = config
        self.epoch = ""
        self.reason = "starting"
        self.published = 0
        self.hop = Histogram()  # from read to published, by record
        self.lag = Lag(self.log, GROUP, lambda: {PARTITION: self.consumer.position}, self.stop)

    def start(self) -> Chain:
        """Find out where this group stands and take up reading there."""
        position = 0
        while not self.stop.is_set():
            try:
                self.epoch = self.log.epoch(PARTITION)
                position = self.log.position(GROUP, PARTITION)
                break
            except LogUnavailable as error:
                self.reason = str(error)
                self.stop.wait(0.05)
        self.consumer.start(position, self.stop)
        return Chain(
            position, ring_s=self.config.state.ring_s, ring_bytes=self.config.state.ring_bytes
        )

    def run(self, chain: Chain) -> None:
        """Publish until stopped."""
        committed, commit_at, say_at = self.consumer.position, 0.0, 0.0
        self.reason = ""
        while not self.stop.is_set():
            poll = self.consumer.poll(chain.wait_s(time.time(), 0.25), POLL_RECORDS, self.stop)
            now = time.time()
            self.teller.saw(poll.records)
            links = chain.extend(poll, now)
            tails = chain.tails(now)
            if links or tails or now >= say_at:
                self._deliver(links, tails)
                if poll.records:
                    self.hop.observe(time.time() - now, len(poll.records))
                say_at = now + SAY_LAST_EVERY_S
            if self.consumer.position > committed and now >= commit_at:
                if self.consumer.commit():
                    committed = self.consumer.position
                commit_at = now + COMMIT_EVERY_S

    def _deliver(self, links: list[Link], tails: list[tuple[str, bytes]]) -> None:
        """Ring, then publish; again until it is done: nothing behind it may overtake."""
        writes = [RingWrite(*link) for link in links]
        while not self.stop.is_set():
            try:
                now = time.time()
                shards = self.state.write_rings(writes, now) if writes else []
                stamp = time.time_ns() // 1_000_000
                messages = [
                    (channel(link.stream, shard), stamped(link.payload, stamp))
                    for link, interested in zip(links, shards, strict=True)
                    for shard in interested
                ]
                wanted = self.state.interests([stream for stream, _ in tails], now)
                messages += [
                    (channel(stream, shard), payload)
                    for (stream, payload), interested in zip(tails, wanted, strict=True)
                    for shard in interested
                ]
                if messages:
                    self.bus.publish(messages)
                self.state.set_last(PARTITION, self.consumer.position, self.epoch)
            except (StateLost, BusLost) as error:
                if not self.reason:
                    event(logger, "state_away", level=logging.WARNING, why=str(error))
                self.reason = str(error)
                self.stop.wait(0.05)
                continue
            if self.reason:
                self.reason = ""
                event(logger, "state_back", position=self.consumer.position)
            self.published += len(messages)
            return


def metrics_of(coordinator: Coordinator) -> Metrics:
    """Return the metrics of the coordinator, read when asked."""
    metrics = Metrics()
    metrics.read("uproar_comment_seconds", lambda: {"published": coordinator.hop})
    metrics.read("uproar_drops_total", lambda: {"poisoned": coordinator.consumer.poisoned})
    metrics.read("uproar_coordinator_published_total", lambda: coordinator.published)
    metrics.read("uproar_coordinator_totals_total", lambda: coordinator.teller.published)
    coordinator.lag.tell(metrics)
    return metrics


def work(process: Process) -> None:
    """The process: `python -m workers coordinator`."""
    coordinator = Coordinator(process)
    metrics = metrics_of(coordinator)
    closer = status.serve(
        process.config.socket("status-coordinator"),
        lambda: {
            "name": "coordinator",
            "pid": os.getpid(),
            "ready": not coordinator.reason,
            "reason": coordinator.reason,
            "metrics": metrics.text(),
        },
    )
    chain = coordinator.start()
    if not process.stop.is_set():
        coordinator._deliver([], [])
        coordinator.teller.start()
        coordinator.lag.start()
        process.ready()
        coordinator.run(chain)
        coordinator.teller.join(STOP_S)
        coordinator.consumer.commit()
    closer.close()
