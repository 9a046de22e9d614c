"""Whose terms hold where: the installation's list and those of the streams.

Comes in: files of blocked terms, and TERMS events, which hold a stream's own blocked and allowed
terms. Goes out: the blocked term in a comment. An allowed term protects the words it matches, from
the installation's list as well and from the linear model: that is how a stream lets a name stand
that a wildcard would take (the Scunthorpe problem).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from uproar import events
from uproar.config import Config
from workers.moderation.normalise import Normalised
from workers.moderation.pipeline import Judged
from workers.moderation.terms import Match, Spans, Terms

_NONE: Final = Terms([])


def files_of(config: Config) -> list[Path]:
    """Return the installation's files of blocked terms."""
    return [config.data_dir / "terms.txt", *map(Path, config.moderation.terms_files)]


class _Own(NamedTuple):
    """A stream's lists and since when they hold (unix ms)."""

    blocked: Terms
    allowed: Terms
    ts: int


_NOTHING: Final = _Own(_NONE, _NONE, -1)


class Lists:
    """All terms. One owner."""

    def __init__(self, installation: Terms = _NONE) -> None:
        self.installation = installation
        self._own: dict[str, _Own] = {}

    def set(self, stream: str, terms: events.Terms, ts: int) -> None:
        """Take a stream's lists of time `ts`, unless newer ones stand; raises TermsError."""
        if ts < self._own.get(stream, _NOTHING).ts:
            return
        if not terms.blocked and not terms.allowed:
            self._own.pop(stream, None)
            return
        blocked = Terms(terms.blocked, f"{stream}: blocked")
        self._own[stream] = _Own(blocked, Terms(terms.allowed, f"{stream}: allowed"), ts)

    def refresh(self, files: list[Path]) -> bool:
        """Read the files again where they changed; return whether. Raises TermsError, OSError."""
        if not self.installation.changed(files):
            return False
        self.installation = Terms.load(files)
        return True

    def match(self, comment: Judged) -> Match | None:
        """Return the first blocked term that no allowed one protects, the stream's own first."""
        own = self._own.get(comment.stream, _NOTHING)
        for terms in (own.blocked, self.installation):
            found = terms.search(comment.readings, comment.covered)
            if found:
                return found
        return None

    def covered(self, stream: str, reading: Normalised) -> Spans:
        """Return what the stream's allowed terms protect of a reading."""
        own = self._own.get(stream)
        return own.allowed.cover(reading) if own else ()
