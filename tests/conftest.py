"""The servers of a scaled-out system, started once and shared by all tests that want them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from deploy.stack.kafka import Brokers
    from tests.cassandra_node import Node


@pytest.fixture(scope="session")
def brokers() -> Iterator[Brokers]:
    """One broker that tests may do harm to; all of them leave it serving."""
    from tests.conformance import kafka

    yield from kafka.started(1)


@pytest.fixture(scope="session")
def kafka_address(request: pytest.FixtureRequest) -> str:
    """The broker that the environment names, or ours."""
    return os.environ.get("UPROAR_TEST_KAFKA") or request.getfixturevalue("brokers").address


@pytest.fixture(scope="session")
def shared_cassandra() -> Iterator[Node]:
    """A node for all tests that do no harm to it."""
    from tests.cassandra_node import any_node

    with any_node() as node:
        yield node


@pytest.fixture(scope="session")
def shared_mortal_cassandra(shared_cassandra: Node) -> Iterator[Node]:
    """A node that tests may kill and pause; all of them leave it serving."""
    from tests.cassandra_node import own_node

    if shared_cassandra.server is not None:
        yield shared_cassandra
    else:
        with own_node() as node:
            yield node
