"""How the fast path was built, for `uproar doctor` and whoever asks which bytes run here."""

from __future__ import annotations


def describe() -> str | None:
    """Return compiler, switches and libraries in one line, None where nothing was compiled."""
    try:
        from _fastpath import deflate
    except ImportError:
        return None
    switches = deflate.SWITCHES.lower() or "portable"
    return f"{deflate.COMPILER}, {switches}, {deflate.LIBRARIES}"
