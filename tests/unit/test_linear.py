"""The linear model: the original's scores, what it makes of disguises, and damaged files."""

from __future__ import annotations

from importlib import resources

import pytest

from workers.moderation.linear import MAGIC, Linear, LinearModel, ModelError
from workers.moderation.pipeline import Judged

MODEL = LinearModel.load()
DATA = (resources.files("workers.moderation") / "linear.bin").read_bytes()
STAGE = Linear(MODEL, flag_at=0.9, delete_at=0.98)

# predict_prob of alt-profanity-check 1.9.1 with scikit-learn 1.9.1.
ORIGINAL = [
    ("", 0.036375752016469504),
    ("hello everyone", 0.02432774335051725),
    ("you are stupid", 0.9999818254267551),
    ("what a stupid idea, stupid stupid game", 0.9998805669870645),
    ("this boss is killing me", 0.7151479731948923),
    ("I hate this", 0.9053626745015985),
    ("Great play! GG wp", 0.09488117935119303),
    ("shut up, idiot", 0.999998867485824),
    ("don't be a loser", 0.9854225885130251),
    ("Scunthorpe United won 3-1", 0.028544715415675142),
    ("he is a moron and a liar", 0.9999152597127299),
    ("42 _under_score_ x y z", 0.10702226607793316),
    ("ICH LIEBE DICH über alles", 0.036375752016469504),
    ("damn that was close", 0.7930748178113171),
    ("go to hell", 0.9913861357105456),
    ("so sweet of you", 0.08299416691418389),
]


@pytest.mark.parametrize(("text", "expected"), ORIGINAL)
def test_scores_are_those_of_the_original(text, expected):
    assert MODEL.score(text) == pytest.approx(expected, abs=1e-5)


def test_the_file_says_where_it_is_from_and_is_small():
    assert MODEL.source == "alt-profanity-check 1.9.1"
    assert len(MODEL) == 15_442
    assert len(DATA) < 1 << 20


def judged(text, **about):
    return STAGE.judge(Judged(text, **about))


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("hello everyone", "allow"),
        ("you are stupid", "delete"),
        ("you stupid idiot", "delete"),
        ("that was a stupid move by an idiot", "flag"),  # at nobody
        ("stupid! you see?", "flag"),  # punctuation parts the word from the `you`
        ("not your day. idiot play", "flag"),
        ("you are so good", "allow"),
        ("y o u  are  s t u p i d", "delete"),
        ("you are stuuuuupid", "delete"),
        ("you are st*pid", "delete"),
        ("you are 5tup1d", "delete"),
        ("you are \u0455tup\u0456d", "delete"),
    ],
)
def test_deletes_only_what_is_said_to_somebody(text, action):
    assert judged(text).action == action


def test_spans_are_the_words_that_speak_for_it_in_the_original_text():
    text = "well \U0001f600 you are ST\u00adUPID, my friend"
    verdict = judged(text)
    assert verdict.category == "toxic"
    assert [text[start:end] for start, end in verdict.spans] == ["ST\u00adUPID"]


def test_what_is_allowed_has_no_spans():
    assert judged("hello everyone").spans == ()


@pytest.mark.parametrize("role", ["moderator", "broadcaster", "service"])
def test_who_moderates_is_exempt(role):
    assert judged("you are stupid", role=role) is None


def test_protected_words_do_not_count():
    def protected(stream, reading):
        at = reading.text.find("idiot")
        return [(at, at + 5)] if stream == "the-idiot" and at >= 0 else []

    assert judged("reading The Idiot", stream="the-idiot", protected=protected).score < 0.1
    assert judged("reading The Idiot", stream="other", protected=protected).score > 0.9


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        DATA[:-1000],
        DATA[:-5] + b"12345",
        b"pickle" + DATA,
        MAGIC + b"{}\n",
        DATA.replace(b'"words": 15442', b'"words": 15443'),
    ],
)
def test_a_damaged_file_is_refused_with_what_to_do(damage):
    with pytest.raises(ModelError, match="make models"):
        LinearModel(damage)


def test_no_text_is_too_much():
    for text in ("\x1a" * 500, "*" * 4000, "a" * 4000, "1" * 4000, "\u0301" * 4000, "f*" * 250):
        verdict = judged(text)
        assert 0 <= verdict.score <= 1
        assert all(0 <= start < end <= len(text) for start, end in verdict.spans)
