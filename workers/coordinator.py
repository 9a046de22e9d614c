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
from uproar.bus import BusLost, channel, open_bus
from uproar.consumer import Share
from uproar.lag import Lag
from uproar.log import open_log
from uproar.logs import event
from uproar.metrics import Histogram, Metrics
from uproar.state import RingWrite, StateLost, open_state
from workers.chain import Chain, Link
from workers.process import Process
from workers.totals import Teller

logger = logging.getLogger(__name__)

GROUP = "coordinator"
POLL_RECORDS = 4096
COMMIT_EVERY_S = 0.1
STOP_S = 1.0  # for the totals to finish their pass
SAY_LAST_EVERY_S = 0.5  # also when nothing happens: a state server that was emptied learns it again


class Coordinator:
    """The shell around `Chain`."""

    def __init__(self, process: Process) -> None:
        config = process.config
        self.stop = process.stop
        self.log = open_log(config)
        self.state = open_state(config)
        self.bus = open_bus(config)
        self.share = Share(self.log, GROUP, self.begin, self.end)
        self.chains: dict[int, Chain] = {}
        self.epochs: dict[int, str] = {}
        self._said: dict[int, int] = {}  # what STATE was told of each partition
        self.teller = Teller(open_state(config), open_bus(config), process.stop)
        self.config = config
        self.reason = "starting"
        self.published = 0
        self.hop = Histogram()  # from read to published, by record
        self.lag = Lag(self.log, GROUP, self.share.positions, self.stop)

    def begin(self, partition: int) -> int:
        """Find out where this group stands in a partition, and begin a chain there."""
        self.epochs[partition] = self.log.epoch(partition)
        position = self.log.position(GROUP, partition)
        self.chains[partition] = Chain(
            position, ring_s=self.config.state.ring_s, ring_bytes=self.config.state.ring_bytes
        )
        return position

    def end(self, partition: int) -> None:
        """Forget a partition that another coordinator has now."""
        self.chains.pop(partition, None)

    def run(self) -> None:
        """Publish until stopped."""
        commit_at, say_at = 0.0, 0.0
        committed = self.share.position
        self.reason = ""
        while not self.stop.is_set():
            now, wait_s = time.time(), 0.25
            for chain in self.chains.values():
                wait_s = chain.wait_s(now, wait_s)
            polls = self.share.poll(wait_s, POLL_RECORDS, self.stop)
            now = time.time()
            links = []
            for poll in polls:
                self.teller.saw(poll.records)
                links += self.chains[poll.partition].extend(poll, now)
            tails = [tail for chain in self.chains.values() for tail in chain.tails(now)]
            say = now >= say_at
            if links or tails or say:
                self._deliver(links, tails, say=say)
                if links:
                    records = sum(len(poll.records) for poll in polls)
                    self.hop.observe(time.time() - now, records)
                say_at = now + SAY_LAST_EVERY_S
            if self.share.position != committed and now >= commit_at:
                if self.share.commit():
                    committed = self.share.position
                commit_at = now + COMMIT_EVERY_S

    def _deliver(
        self, links: list[Link], tails: list[tuple[str, bytes]], *, say: bool = True
    ) -> None:
        """Ring, then publish; again until it is done: nothing behind it may overtake.

        With `say` STATE is told where every partition stands, else only of those that moved.
        """
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
                for partition, position in self.share.positions().items():
                    if say or position != self._said.get(partition):
                        self.state.set_last(partition, position, self.epochs[partition])
                        self._said[partition] = position
            except (StateLost, BusLost) as error:
                if not self.reason:
                    event(logger, "state_away", level=logging.WARNING, why=str(error))
                self.reason = str(error)
                self.stop.wait(0.05)
                continue
            if self.reason:
                self.reason = ""
                event(logger, "state_back", position=self.share.position)
            self.published += len(messages)
            return


def metrics_of(coordinator: Coordinator) -> Metrics:
    """Return the metrics of the coordinator, read when asked."""
    metrics = Metrics()
    metrics.read("uproar_comment_seconds", lambda: {"published": coordinator.hop})
    metrics.read("uproar_drops_total", lambda: {"poisoned": coordinator.share.poisoned})
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
            "reason": coordinator.reason or coordinator.share.reason,
            "metrics": metrics.text(),
        },
    )
    coordinator.share.start(process.stop)
    if not process.stop.is_set():
        coordinator._deliver([], [])
        coordinator.teller.start()
        coordinator.lag.start()
        process.ready()
        coordinator.run()
        coordinator.teller.join(STOP_S)
        coordinator.share.commit()
    coordinator.share.close()
    closer.close()
