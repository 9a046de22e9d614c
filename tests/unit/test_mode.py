"""Modes: what a change may be, and what stands after it."""

from __future__ import annotations

import pytest

from uproar import mode


@pytest.mark.parametrize(
    "changes",
    [
        {"slow_s": 0}, {"slow_s": 120}, {"followers_only": True}, {"followers_only": 0},
        {"followers_only": 129_600}, {"subscribers_only": False}, {"emote_only": True},
        {"unique": True}, {"min_chars": 500}, {"min_account_age_s": 315_360_000},
        {"frozen": True}, {"hold": "flagged"}, {"hold": True, "slow_s": 5},
    ],
)  # fmt: skip
def test_changes_that_can_be_made(changes):
    assert mode.checked(changes) == changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "name at least one setting: slow_s"),
        ({"volume": 11}, "volume: unknown setting; there are slow_s"),
        ({"x" * 500: 1}, "unknown setting"),
        ({"slow_s": -1}, "slow_s: must be a whole number from 0 to 120"),
        ({"slow_s": 121}, "slow_s: must be"),
        ({"slow_s": True}, "slow_s: must be"),
        ({"slow_s": 5.0}, "slow_s: must be"),
        ({"slow_s": "5"}, "slow_s: must be"),
        ({"slow_s": None}, "slow_s: must be"),
        ({"frozen": 1}, "frozen: must be true or false"),
        ({"frozen": 0}, "frozen: must be"),
        ({"followers_only": -1}, "followers_only: must be true or false or a whole number"),
        ({"hold": "all"}, 'hold: must be true or false or "flagged"'),
        ({"hold": []}, "hold: must be"),
        ({"slow_s": 5, "hold": {}}, "hold: must be"),
    ],
)
def test_changes_that_are_refused_by_name(changes, words):
    with pytest.raises(mode.ModeError) as refusal:
        mode.checked(changes)
    assert words in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_a_setting_at_its_default_is_as_if_it_were_not_there():
    stands = mode.applied({}, {"slow_s": 5, "hold": True})
    assert stands == {"slow_s": 5, "hold": True}
    stands = mode.applied(stands, {"hold": False, "min_chars": 2})
    assert stands == {"slow_s": 5, "min_chars": 2}
    assert mode.applied(stands, {"slow_s": 0, "min_chars": 0}) == {}


def test_followers_for_any_time_is_not_the_default():
    assert mode.full(mode.applied({}, {"followers_only": 0}))["followers_only"] == 0
    assert mode.applied({}, {"followers_only": 0}) == {"followers_only": 0}


def test_the_full_mode_names_every_setting():
    assert mode.full({"slow_s": 3}) == {
        "slow_s": 3, "followers_only": False, "subscribers_only": False, "emote_only": False,
        "unique": False, "min_chars": 0, "min_account_age_s": 0, "frozen": False, "hold": False,
    }  # fmt: skip
    # What a later version may have written is left out.
    assert mode.applied({"volume": 11}, {"slow_s": 3}) == {"slow_s": 3}
