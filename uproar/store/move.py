"""Moving history: every event of one store, in the log's order, into another.

The target's positions say how far it got, so a move that was interrupted goes on where it stood,
and one that is repeated brings only what was added meanwhile: the bulk while the old system still
serves, the rest when it has stopped. Eras stay what they are, so cursors, marks and the order of
history do too.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Final

from uproar.events import Event
from uproar.store import Epoch, Store

BATCH: Final = 2000  # events of one write
IN_MEMORY: Final = 200_000  # events read ahead, over all streams
PAGE_MIN, PAGE_MAX = 20, 2000  # events of one read


class MoveError(Exception):
    """The target holds another history; the message says which and what to do."""


def move(source: Store, target: Store, told: Callable[[Epoch, int], None] = lambda *_: None) -> int:
    """Copy what the target lacks and return how many events that were.

    `told` is called after each write with the epoch and the offset it has come to. Raises
    MoveError, and StoreUnavailable of either.
    """
    epochs = source.epochs()
    _check(epochs, target.epochs())
    streams = source.streams()
    copied = 0
    for epoch in epochs:
        if target.open_epoch(epoch.epoch) != epoch.era:
            raise MoveError(
                f"somebody else has opened an era in the target meanwhile, before {epoch.epoch}; "
                "stop its archives, drop its keyspace and start again"
            )
        at = target.position(epoch.epoch)
        batch: list[tuple[str, Event]] = []
        for item in _merged(source, streams, epoch, at):
            batch.append(item)
            if len(batch) == BATCH:
                target.write(epoch.era, batch, batch[-1][1].offset)
                copied += len(batch)
                told(epoch, batch[-1][1].offset)
                batch = []
        if at < epoch.position:
            # The position may lie above the last event: what was there counted for nothing.
            target.write(epoch.era, batch, epoch.position)
            copied += len(batch)
            told(epoch, epoch.position)
    return copied


def _check(source: list[Epoch], target: list[Epoch]) -> None:
    """Refuse a target whose eras are not the first of the source's."""
    known = {epoch.epoch: epoch.era for epoch in source}
    for epoch in target:
        if known.get(epoch.epoch) != epoch.era:
            raise MoveError(
                f"the target has era {epoch.era} for epoch {epoch.epoch}, which the source does "
                "not have there; move history before the first start on the new log, into a "
                "keyspace of its own"
            )


def _merged(
    source: Store, streams: list[str], epoch: Epoch, after: int
) -> Iterator[tuple[str, Event]]:
    """Yield (stream, event) of an era above `after`, by offset."""
    page = min(max(IN_MEMORY // max(len(streams), 1), PAGE_MIN), PAGE_MAX)
    runs = [_events(source, stream, epoch, after, page) for stream in streams]
    return heapq.merge(*runs, key=lambda item: item[1].offset)


def _events(
    source: Store, stream: str, epoch: Epoch, after: int, page: int
) -> Iterator[tuple[str, Event]]:
    while True:
        events = source.events(stream, epoch.era, after, epoch.position, page)
        for event in events:
            yield stream, event
        if len(events) < page:
            return
        after = events[-1].offset
