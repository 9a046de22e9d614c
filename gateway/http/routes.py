"""Routes: a path as people write it, as the pattern that finds it; and what names a request."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from gateway.http.wire import Response

Route: TypeAlias = tuple[str, str, Callable[..., Response]]

NONCE: Final = re.compile(r"[!-~]{1,64}")
Nonce: TypeAlias = Annotated[str, Meta(pattern=r"^[!-~]{1,64}$")]  # of a body

# A user id may hold a slash, and servers decode %2F before we see it.
_PARTS: Final = {
    "user": ".+",
    "action": "timeout|ban|unban|shadow_ban|unshadow_ban|kick",
}


def pattern_of(path: str) -> re.Pattern[str]:
    """Return the pattern of a path with parts in braces: `/stream/{stream}/mode`."""
    literal = re.split(r"\{(\w+)\}", path)
    pattern = ""
    for index, part in enumerate(literal):
        pattern += f"(?P<{part}>{_PARTS.get(part, '[^/]+')})" if index % 2 else re.escape(part)
    return re.compile(pattern)
