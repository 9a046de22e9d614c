"""Emotes: words from the configuration, and Unicode emoji. Ranges are code points, both ends in."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from typing import Final

_WORD: Final = re.compile(r"\S+")
# What joins and modifies emoji: ZWJ, variation selectors, keycap, skin tones, tags.
_JOINERS: Final = frozenset(
    {0x200D, 0xFE0E, 0xFE0F, 0x20E3, *range(0x1F3FB, 0x1F400), *range(0xE0020, 0xE0080)}
)


def ranges(text: str, codes: Collection[str]) -> tuple[tuple[str, int, int], ...] | None:
    """Return (code, first, last) for every word of `text` that is an emote, None for none."""
    if not codes:
        return None
    found = tuple(
        (word[0], word.start(), word.end() - 1) for word in _WORD.finditer(text) if word[0] in codes
    )
    return found or None


def emotes_only(text: str, codes: Collection[str]) -> bool:
    """Whether a text consists of emotes and emoji alone."""
    return all(word[0] in codes or _is_emoji(word[0]) for word in _WORD.finditer(text))


def _is_emoji(word: str) -> bool:
    return all(
        ord(char) in _JOINERS
        or 0x1F1E6 <= ord(char) <= 0x1F1FF
        or (ord(char) >= 0x203C and unicodedata.category(char) in ("So", "Sk"))
        for char in word
    )
