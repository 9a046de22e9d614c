"""What became of comments: the last words on them, laid over the rows when reading.

The same rules as in the SQLite adapter, in Python: a restored comment counts from its restoration,
so that an earlier removal of its author is over for it; a clear is final.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from uproar.events import Event
from uproar.store import Place, Reader

NOWHERE: Final = Place(0, 0)  # eras begin at 1


class Snapshot:
    """Up to where each era is complete: what lies above a position is not there yet."""

    def __init__(self, positions: Mapping[int, int]) -> None:
        self.positions = positions

    def holds(self, era: int, offset: int) -> bool:
        """Whether what stands at a place was written whole."""
        return offset <= self.positions.get(era, 0)


class Marks:
    """The last words on some comments and their authors."""

    def __init__(self, cleared: Place = NOWHERE) -> None:
        self.cleared = cleared
        self.verdicts: dict[bytes, tuple[Place, bool]] = {}  # True: deleted
        self.removals: dict[str, Place] = {}
        self.approved: set[bytes] = set()  # held comments that got a second row

    def say(self, comment_id: bytes, place: Place, deleted: bool) -> None:
        """Take in a deletion or restoration."""
        known = self.verdicts.get(comment_id)
        if known is None or place > known[0]:
            self.verdicts[comment_id] = (place, deleted)

    def remove(self, user_id: str, place: Place) -> None:
        """Take in a USER_REMOVED."""
        if place > self.removals.get(user_id, NOWHERE):
            self.removals[user_id] = place

    def gone(self, era: int, event: Event) -> int | None:
        """Return the offset of what took a comment from view, None when nothing did."""
        here = Place(era, event.offset)
        said, deleted = self.verdicts.get(event.data.id, (here, False))
        if deleted:
            return said.offset
        removed = self.removals.get(event.data.user.id, NOWHERE)
        if removed > said:
            return removed.offset
        return self.cleared.offset if here < self.cleared else None

    def shows(self, event: Event, reader: Reader) -> bool:
        """Whether a comment is for `reader` as far as its visibility says."""
        if not event.visibility:
            return True
        # An approved comment has a second row, and its first is for nobody.
        mine = reader.moderator or event.data.user.id == reader.reader
        return mine and event.data.id not in self.approved
