"""The embedded bus: sharded publish and subscribe on the second Valkey.

The sharded commands (SPUBLISH, SSUBSCRIBE) work the same on one server and on a cluster.
"""

from __future__ import annotations

from typing import Any

from redis.client import PubSub

from uproar.bus import BusLost
from uproar.config import Config
from uproar.valkey_client import connect, errors_as


class ValkeySubscriber:
    """One dedicated connection. redis-py's object does not heal by itself: on BusLost drop it."""

    def __init__(self, pubsub: PubSub) -> None:
        self._pubsub = pubsub

    def subscribe(self, channels: list[str]) -> None:
        with errors_as(BusLost, "the bus"):
            self._pubsub.ssubscribe(*channels)

    def unsubscribe(self, channels: list[str]) -> None:
        with errors_as(BusLost, "the bus"):
            self._pubsub.sunsubscribe(*channels)  # type: ignore[no-untyped-call]

    def get(self, wait_s: float) -> tuple[str, bytes | None] | None:
        while True:
            with errors_as(BusLost, "the bus"):
                message: Any = self._pubsub.get_message(timeout=wait_s)
            if message is None:
                return None
            kind = message["type"]
            if kind == "smessage":
                return message["channel"].decode(), message["data"]
            if kind == "ssubscribe":
                return message["channel"].decode(), None
            wait_s = 0.0  # a channel given up: what is behind it may be here already

    def close(self) -> None:
        try:
            self._pubsub.close()
        except OSError:
            pass


class ValkeyBus:
    """`uproar.bus.Bus` on the Valkey behind `config.socket("state")`."""

    def __init__(self, config: Config) -> None:
        self._client = connect(config.socket("state"), config.state.timeout_s)

    def publish(self, messages: list[tuple[str, bytes]]) -> None:
        with errors_as(BusLost, "the bus"):
            pipe = self._client.pipeline(transaction=False)
            for channel, payload in messages:
                pipe.execute_command("SPUBLISH", channel, payload)  # type: ignore[no-untyped-call]
            pipe.execute()

    def subscriber(self) -> ValkeySubscriber:
        return ValkeySubscriber(self._client.pubsub())  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._client.close()
