"""Adapters under test. Every fixture here is parametrised over the adapters of its role."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from uproar.store import Store
from uproar.store.sqlite import SqliteStore


class StoreOpener:
    """Opens stores on one place, as several processes would; closes them after the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.opened: list[Store] = []

    def __call__(self, *, writer: bool = False) -> Store:
        """Open one more."""
        store = SqliteStore(self.path, writer=writer)
        self.opened.append(store)
        return store

    @property
    def code(self) -> str:
        """Python that opens the same place for writing as `store`, for a process of its own."""
        return (
            "from pathlib import Path\n"
            "from uproar.store.sqlite import SqliteStore\n"
            f"store = SqliteStore(Path({str(self.path)!r}), writer=True)\n"
        )


@pytest.fixture(params=["sqlite"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreOpener]:
    """Open stores of one adapter on an empty place."""
    assert request.param == "sqlite"
    opener = StoreOpener(tmp_path / "store.db")
    yield opener
    for store in opener.opened:
        store.close()


@pytest.fixture
def store(open_store: StoreOpener) -> Store:
    """A store open for writing, empty."""
    return open_store(writer=True)
