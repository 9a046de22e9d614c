"""One running system for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system import System


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """A system with default settings, stopped at the end."""
    with System() as running:
        yield running
