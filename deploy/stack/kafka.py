"""Apache Kafka in KRaft mode: one node that is broker and controller, or three of them.

With one, topics have one replica and an acknowledged record survives the death of the process
(the page cache has it), not that of the machine. With three, two replicas must have a record.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deploy.stack import jars
from deploy.stack.server import HOST, Group, Server, StackError

HEAP: Final = "512m"
CLUSTER_ID: Final = "MkU3OEVBNTcwNTJENDM2Qg"
READY: Final = b"Kafka Server started"
LOGGING: Final = """\
Configuration:
  Appenders:
    Console: {name: C, PatternLayout: {pattern: "%d %p %c{1} %m%n"}}
  Loggers:
    Root: {level: INFO, AppenderRef: [{ref: C}]}
"""


class Kafka(Server):
    """One node of `brokers`, each given by its (client port, controller port)."""

    ready_s = 90.0

    def __init__(
        self, cache: Path, directory: Path, brokers: Sequence[tuple[int, int]], number: int = 1
    ) -> None:
        super().__init__(f"kafka{number}", directory, brokers[number - 1][:1])
        self._cache = cache
        self._brokers = brokers
        self._number = number

    def command(self) -> list[str]:
        return [*self._java(HEAP), "kafka.Kafka", str(self.directory / "server.properties")]

    def prepare(self) -> None:
        properties = self.directory / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in self._settings()))
        (self.directory / "log4j2.yaml").write_text(LOGGING)
        if (self.directory / "data" / "meta.properties").exists():
            return
        formatted = subprocess.run(
            [*self._java("128m"), "kafka.tools.StorageTool", "format", "--ignore-formatted",
             "-t", CLUSTER_ID, "-c", properties],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=60, text=True, check=False,
        )  # fmt: skip
        if formatted.returncode:
            raise StackError(f"{self.name}: can't format its data:\n{formatted.stdout[-2000:]}")

    def serves(self) -> bool:
        return READY in self.log.read_bytes() and super().serves()

    def _java(self, heap: str) -> list[str]:
        libs = jars.fetched(self._cache, "kafka", jars.KAFKA)
        return [
            "java", f"-Xmx{heap}", "-Xms64m", "-XX:+UseSerialGC", "-Djava.awt.headless=true",
            "-Djava.net.preferIPv4Stack=true",
            f"-Dlog4j2.configurationFile={self.directory / 'log4j2.yaml'}", "-cp", f"{libs}/*",
        ]  # fmt: skip

    def _settings(self) -> list[tuple[str, object]]:
        port, control = self._brokers[self._number - 1]
        voters = [f"{number}@{HOST}:{at}" for number, (_, at) in enumerate(self._brokers, 1)]
        listeners = f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{control}"
        replicas, in_sync = (3, 2) if len(self._brokers) >= 3 else (1, 1)
        return [
            ("process.roles", "broker,controller"),
            ("node.id", self._number),
            ("controller.quorum.voters", ",".join(voters)),
            ("controller.listener.names", "CONTROLLER"),
            ("listeners", listeners),
            ("advertised.listeners", listeners),
            ("listener.security.protocol.map", "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT"),
            ("log.dirs", self.directory / "data"),
            ("auto.create.topics.enable", "false"),
            ("default.replication.factor", replicas),
            ("min.insync.replicas", in_sync),
            # The internal topics' own defaults are 3 replicas: on one node groups would hang.
            ("offsets.topic.replication.factor", replicas),
            ("offsets.topic.num.partitions", 8),
            ("transaction.state.log.replication.factor", replicas),
            ("transaction.state.log.min.isr", in_sync),
            ("transaction.state.log.num.partitions", 8),
            ("share.coordinator.state.topic.replication.factor", replicas),
            ("share.coordinator.state.topic.min.isr", in_sync),
            ("group.initial.rebalance.delay.ms", 0),
            # Static members with short sessions: the broker's own least is 6 s.
            ("group.min.session.timeout.ms", 1000),
            ("num.network.threads", 2),
            ("num.io.threads", 2),
            ("log.cleaner.dedupe.buffer.size", 16 << 20),
            # A killed broker that starts again waits out its old session: 9 s by default.
            ("broker.session.timeout.ms", 3000),
            ("broker.heartbeat.interval.ms", 500),
            ("replica.lag.time.max.ms", 5000),
            ("log.retention.hours", 24),
            ("log.segment.bytes", 128 << 20),
        ]


class Brokers(Group):
    """One node for two ports, three for six; `kafka1` and so on are their directories."""

    def __init__(self, cache: Path, directory: Path, ports: Sequence[int]) -> None:
        brokers = list(zip(ports[::2], ports[1::2], strict=True))
        super().__init__(
            [
                Kafka(cache, directory / f"kafka{number}", brokers, number)
                for number in range(1, len(brokers) + 1)
            ]
        )
