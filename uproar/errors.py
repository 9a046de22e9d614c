"""What keeps a command from doing its work, as one sentence for the person who typed it."""

from __future__ import annotations


class ServeError(Exception):
    """The system can't be started here; the message says why and what to do."""
