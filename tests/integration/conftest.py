"""One running system for the tests of this folder, on the embedded engines or on real servers.

With UPROAR_TEST_STACK set they are all marked `stack`, and every system that they start stands on
Kafka, Cassandra and a Valkey cluster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.system import System

ON_STACK = bool(os.environ.get("UPROAR_TEST_STACK"))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark them for what they run on."""
    if ON_STACK:
        item.add_marker(pytest.mark.stack)


@pytest.fixture(scope="package", autouse=True)
def engines(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the systems of this folder stand on."""
    if not ON_STACK:
        yield
        return
    from tests.engines import Engines

    System.engines = Engines(
        request.getfixturevalue("kafka_address"), request.getfixturevalue("shared_cassandra")
    )
    yield
    System.engines = None


@pytest.fixture(scope="package")
def system() -> Iterator[System]:
    """A system with default settings, stopped at the end."""
    with System() as running:
        yield running
