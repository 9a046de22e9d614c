"""Kafka, Cassandra and a Valkey cluster for whole systems: the table of roles on real servers.

Kafka and Cassandra take seconds to start and are shared. What a system must have alone is its
topic, its keyspace, and a cluster: that has no names to keep two systems apart.
"""

from __future__ import annotations

import json
import uuid
from contextlib import ExitStack
from typing import Any

from confluent_kafka.admin import AdminClient

from tests import valkey_cluster
from tests.cassandra_node import Node

PARTITIONS = 12  # as in production, so streams lie on several


class Engines:
    """The servers that systems share: HOST:PORT of a broker, and a Cassandra node."""

    def __init__(self, kafka: str, cassandra: Node) -> None:
        self._kafka = kafka
        self._cassandra = cassandra

    def settings(self, until: ExitStack) -> dict[str, Any]:
        """Return what leads one system there; with the end of `until` it is gone."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        cluster = until.enter_context(valkey_cluster.running(replicas=0))
        until.callback(self._remove, name)
        return {
            "log__engine": "kafka", "log__brokers": self._kafka, "log__topic": name,
            "log__partitions": PARTITIONS, "log__replicas": 1, "log__min_insync": 1,
            "store__engine": "cassandra", "store__hosts": json.dumps([self._cassandra.host]),
            "store__port": self._cassandra.port, "store__keyspace": name, "store__replication": 1,
            "state__engine": "cluster", "state__nodes": json.dumps(cluster.addresses),
        }  # fmt: skip

    def _remove(self, name: str) -> None:
        operator = AdminClient({"bootstrap.servers": self._kafka, "log_level": 0})
        operator.delete_topics([name])[name].result(10)
        with self._cassandra.session() as session:
            session.execute(f"DROP KEYSPACE IF EXISTS {name}")
