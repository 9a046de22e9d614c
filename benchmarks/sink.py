"""Gateways for the benchmark of the bus: a process that holds a subscriber for each and counts.

Each has its own connection to every master, its shard and its leases on all streams, as a gateway
has; what it receives is counted, and timed by what stands in front of the payload.
"""

from __future__ import annotations

import multiprocessing
import random
import struct
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Final

from uproar.bus import BusLost, channel, open_bus, shard_of
from uproar.config import Config
from uproar.state import open_state

STAMP: Final = struct.Struct("d")  # time.monotonic of the sender: one clock for the machine
SAMPLES: Final = 20_000  # latencies kept by a gateway
READY_S: Final = 120.0


class Sink:
    """So many gateways in a process of its own."""

    def __init__(self, config: Config, gateways: int, streams: list[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._counts: Any = context.Array("q", gateways, lock=False)
        self._stop: Any = context.Value("b", 0, lock=False)
        self._process = context.Process(
            target=_serve, args=(config, streams, self._counts, self._stop, theirs), daemon=True
        )
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid or 0

    @property
    def received(self) -> int:
        """Messages so far, over all gateways."""
        return sum(self._counts)

    def wait_ready(self) -> None:
        """Wait until all gateways are subscribed; raises RuntimeError with what went wrong."""
        self._told()

    def close(self) -> list[float]:
        """Stop; return latencies in seconds, a sample of each gateway's."""
        self._stop.value = 1
        try:
            found: list[float] = self._told()
        finally:
            self._process.join(10)
            if self._process.is_alive():
                self._process.kill()
        return found

    def _told(self) -> Any:
        if not self._pipe.poll(READY_S):
            raise RuntimeError("the simulated gateways do not answer")
        wrong, found = self._pipe.recv()
        if wrong:
            raise RuntimeError(wrong)
        return found


def _serve(
    config: Config, streams: list[str], counts: Any, stop: Synchronized[int], pipe: Connection
) -> None:
    gateways = [_Gateway(config, number, streams, counts, stop) for number in range(len(counts))]
    try:
        state = open_state(config)
        for gateway in gateways:
            gateway.subscribe()
            state.add_interest(streams, gateway.shard, time.time() + 3600)
        for gateway in gateways:
            gateway.start()
        pipe.send(("", None))
        for gateway in gateways:
            gateway.join()
        wrong = next((gateway.wrong for gateway in gateways if gateway.wrong), "")
        pipe.send((wrong, [one for gateway in gateways for one in gateway.latencies]))
    except Exception as error:
        pipe.send((f"a simulated gateway: {error}", None))


class _Gateway(threading.Thread):
    def __init__(
        self, config: Config, number: int, streams: list[str], counts: Any, stop: Synchronized[int]
    ) -> None:
        super().__init__(daemon=True)
        self.shard = shard_of(f"g{number}", config.shards)
        self.latencies: list[float] = []
        self.wrong = ""
        self._channels = [channel(stream, self.shard) for stream in streams]
        self._bus = open_bus(config)
        self._number, self._counts, self._stop_flag = number, counts, stop

    def subscribe(self) -> None:
        """Subscribe to all streams and wait for the confirmations."""
        self._subscriber = self._bus.subscriber()
        self._subscriber.subscribe(self._channels)
        left = len(self._channels)
        until = time.monotonic() + READY_S
        while left:
            if self._subscriber.get(1.0) is not None:
                left -= 1
            if time.monotonic() > until:
                raise RuntimeError(f"{left} channels are not confirmed")

    def run(self) -> None:
        """Receive until told to stop."""
        try:
            while not self._stop_flag.value:
                message = self._subscriber.get(0.2)
                while message is not None:
                    self._take(message[1] or b"")
                    message = self._subscriber.get(0.0)
        except BusLost as error:
            self.wrong = f"a simulated gateway lost the bus: {error}"

    def _take(self, payload: bytes) -> None:
        took = time.monotonic() - STAMP.unpack_from(payload)[0]
        seen = self._counts[self._number]
        self._counts[self._number] = seen + 1
        if seen < SAMPLES:
            self.latencies.append(took)
        elif (at := random.randrange(seen)) < SAMPLES:
            self.latencies[at] = took
