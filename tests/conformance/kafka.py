"""Real Kafka for the conformance tests: brokers of the stack, and a topic of each test's own."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from deploy.stack.__main__ import cache_dir
from deploy.stack.kafka import Brokers
from deploy.stack.server import free_ports
from uproar.config import Config, load
from uproar.log.kafka import KafkaLog

TIMEOUT_S = 4.0  # a new idempotent producer takes half a second and more for its first record


class Topic:
    """What `Server` is for Valkey: a log that is empty, and the brokers under it."""

    def __init__(self, address: str, brokers: Brokers | None = None, **more: Any) -> None:
        self.address = address
        self.brokers = brokers
        self.name = f"t-{uuid.uuid4().hex[:12]}"
        self.opened: list[Any] = []
        # A plain client, for what only an operator does.
        self.operator = AdminClient({"bootstrap.servers": address, "log_level": 0})
        self._directory = tempfile.TemporaryDirectory(prefix="up")
        self.more = more
        self.config = self.settings()
        log = KafkaLog(self.config)
        try:
            log.prepare()
        finally:
            log.close()

    def settings(self, **more: Any) -> Config:
        """The configuration that leads here, with more settings (log__partitions=1)."""
        flags = {
            "data": self._directory.name, "log.engine": "kafka", "log.brokers": self.address,
            "log.topic": self.name, "log.timeout_s": TIMEOUT_S, "log.partitions": 3,
            "log.replicas": 1, "log.min_insync": 1,
        }  # fmt: skip
        both = {**self.more, **more}
        flags |= {key.replace("__", "."): value for key, value in both.items()}
        return load(environ={}, flags=flags)

    def start(self) -> None:
        """Start the brokers that do not run."""
        assert self.brokers is not None
        self.brokers.start()

    def kill(self) -> None:
        """End all brokers as a crash does."""
        assert self.brokers is not None
        for broker in self.brokers.servers:
            broker.kill9()

    def pause(self) -> None:
        """Let them neither answer nor go away."""
        assert self.brokers is not None
        for broker in self.brokers.servers:
            broker.pause()

    def resume(self) -> None:
        """Let them go on after `pause`."""
        assert self.brokers is not None
        for broker in self.brokers.servers:
            broker.resume()

    def alter(self, **settings: Any) -> None:
        """Change settings of the topic, as `kafka-configs` does (retention_ms=1)."""
        entries = [
            ConfigEntry(
                name.replace("_", "."),
                str(value),
                incremental_operation=AlterConfigOpType.SET,
            )
            for name, value in settings.items()
        ]
        resource = ConfigResource(ConfigResource.Type.TOPIC, self.name, incremental_configs=entries)
        self.operator.incremental_alter_configs([resource])[resource].result(10)

    def forget(self, partition: int, upto: int) -> None:
        """Remove records up to an offset of ours, as retention does."""
        at = TopicPartition(self.name, partition, upto)
        self.operator.delete_records([at])[at].result(10)

    def keep(self, opened: Any) -> Any:
        """Close something with the end of the test."""
        self.opened.append(opened)
        return opened

    def close_opened(self) -> None:
        """Close what was opened on it."""
        for opened in self.opened:
            opened.close()
        self.opened.clear()

    def remove(self) -> None:
        """Leave the brokers running and empty."""
        if self.brokers is not None:
            self.brokers.start()
        self.close_opened()
        self.operator.delete_topics([self.name])[self.name].result(10)
        self._directory.cleanup()


def wanted() -> None:
    """Skip where nobody asked for real servers."""
    if not os.environ.get("UPROAR_TEST_STACK"):
        pytest.skip("starts a real Kafka: make test-stack")


def started(nodes: int) -> Iterator[Brokers]:
    """Brokers of the tests' own."""
    wanted()
    with tempfile.TemporaryDirectory(prefix="up") as directory:
        brokers = Brokers(cache_dir(), Path(directory), free_ports(2 * nodes))
        try:
            brokers.start()
            yield brokers
        finally:
            for broker in brokers.servers:
                broker.kill9()
