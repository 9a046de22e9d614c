"""`uproar moderate < LINES`: what the moderation stages say of text lines, one JSON decision each.

Each line is a comment by somebody without a past, so duplicates and reputation have nothing to say.
A decision: {"action", "stage", "categories" (the highest score of each that was looked at), "spans"
(of what decided, [start, end] in code points), "rule"}.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from uproar.config import Config
from workers.moderation.moderator import Moderator
from workers.moderation.pipeline import Decision


def moderator_of(config: Config) -> Moderator:
    """Return a moderator with the installation's terms; raises ValueError and OSError."""
    moderator = Moderator(config.moderation)
    files = [config.data_dir / "terms.txt", *map(Path, config.moderation.terms_files)]
    moderator.lists.refresh(files)
    return moderator


def decisions(moderator: Moderator, lines: Iterable[bytes], role: str) -> Iterator[bytes]:
    """Yield one line of JSON for each line; what is no UTF-8 is read with replacements."""
    for line in lines:
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        yield encode(moderator.decide_text(text, role=role)) + b"\n"


def encode(decision: Decision) -> bytes:
    """Return a decision as JSON."""
    return msgspec.json.encode(
        {
            "action": decision.action,
            "stage": decision.stage or None,
            "categories": {name: round(score, 4) for name, score in decision.categories.items()},
            "spans": decision.spans,
            "rule": decision.rule or None,
        }
    )
