"""The modes of a stream: which settings there are, and what each may be.

A change is a dict of some of them; a setting at its default is as if it were not there.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple


class ModeError(ValueError):
    """A change that can't be made; the message names the setting and what it may be."""


class _Setting(NamedTuple):
    default: Any
    least: int  # for whole numbers
    most: int
    words: tuple[Any, ...]  # other values allowed beside


# Slow mode ends at two minutes, because that is how far back ingest knows everybody's last comment.
SETTINGS: Final[dict[str, _Setting]] = {
    "slow_s": _Setting(0, 0, 120, ()),
    # Followers: for at least so many minutes; true: for any time.
    "followers_only": _Setting(False, 0, 129_600, (True, False)),
    "subscribers_only": _Setting(False, 0, -1, (True, False)),
    "emote_only": _Setting(False, 0, -1, (True, False)),
    "unique": _Setting(False, 0, -1, (True, False)),
    "min_chars": _Setting(0, 0, 500, ()),
    "min_account_age_s": _Setting(0, 0, 315_360_000, ()),
    "frozen": _Setting(False, 0, -1, (True, False)),
    # Every comment of viewers waits for a moderator; "flagged": those that moderation finds.
    "hold": _Setting(False, 0, -1, (True, False, "flagged")),
}


def checked(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the changes when all of them can be made; raises ModeError."""
    if not changes:
        raise ModeError(f"name at least one setting: {', '.join(SETTINGS)}")
    for name, value in changes.items():
        setting = SETTINGS.get(name)
        if setting is None:
            raise ModeError(f"{name[:40]}: unknown setting; there are {', '.join(SETTINGS)}")
        if any(value is word for word in setting.words) or (
            isinstance(value, str) and value in setting.words
        ):
            continue
        if type(value) is int and setting.least <= value <= setting.most:
            continue
        raise ModeError(f"{name}: {_allowed(setting)}")
    return changes


def applied(mode: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the mode after a change, without what stands at its default."""
    after = {**mode, **changes}
    return {
        name: value
        for name, value in after.items()
        if name in SETTINGS and not _is_default(value, SETTINGS[name].default)
    }


def full(mode: dict[str, Any]) -> dict[str, Any]:
    """Return all settings with their values."""
    return {name: mode.get(name, setting.default) for name, setting in SETTINGS.items()}


def _is_default(value: Any, default: Any) -> bool:
    """0 minutes of following is not the same as False."""
    return type(value) is type(default) and bool(value == default)


def _allowed(setting: _Setting) -> str:
    words = [str(word).lower() if isinstance(word, bool) else f'"{word}"' for word in setting.words]
    if setting.most >= setting.least:
        words.append(f"a whole number from {setting.least} to {setting.most}")
    return "must be " + " or ".join(words)
