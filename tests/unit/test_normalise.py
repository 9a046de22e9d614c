"""Folding: what becomes of each disguise, and that every reading points into its text."""

from __future__ import annotations

import random
import time

import pytest

from workers.moderation import normalise as module
from workers.moderation.normalise import MASK, normalise, readings


def texts(text):
    return [reading.text for reading in readings(text)]


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("Hello, World!", "hello world"),
        ("  one\t two\r\nthree ", "one two three"),
        ("it's a-b_c", "it s a b c"),
        ("", ""),
        ("?!", ""),
        ("pick\u200ble", "pickle"),  # zero-width space
        ("p\u00adi\u2060c\ufeffk\u034fle", "pickle"),
        ("pickle\U000e0000", "pickle"),  # the tag that beats duplicate filters
        ("\U000e0070pickle\ufe0f", "pickle"),
        ("pi\u202eckle\u202c", "pickle"),  # bidi overrides
        ("p\u0335\u0321i\u0336\u0300c\u20ddkl\u0e49e", "pickle"),  # stacked marks, Thai ones too
        ("\uff30\uff49\uff23\uff2b\uff2c\uff25", "pickle"),  # full width
        ("\U0001d4f9\U0001d4f2\U0001d4ec\U0001d4f4\U0001d4f5\U0001d4ee", "pickle"),  # script
        ("\u24df\u24d8\u24d2\u24da\u24db\u24d4", "pickle"),  # circled
        ("\U0001f17f\U0001f178\U0001f172\U0001f17a\U0001f17b\U0001f174", "pickle"),  # squared
        ("\u1d18\u026a\u1d04\u1d0b\u029f\u1d07", "pickle"),  # small capitals
        ("\u0440i\u0441kl\u0435", "pickle"),  # Cyrillic
        ("\u03c1\u03b9ckl\u03b5", "pickle"),  # Greek
        ("Stra\xdfe \ufb03 \xc9\xe6", "strasse ffi eae"),
        ("a\U0001f346b", "a b"),
        ("\u0663 \uff14", "3 4"),
        ("\x1a\x00a\x7f", "a"),
        ("\ud800x\udfff", "x"),
        ("\u30ac\u30d1\u3002foo\u30ac", "\u30ac\u30d1 foo \u30ac"),  # kana keep their marks
        ("\ud55c\uad6d", "\ud55c\uad6d"),
        ("\u0e01\u0e34\u0e19", "\u0e01\u0e34\u0e19"),  # Thai vowels are letters
        ("\u0915\u093f\u0928", "\u0915\u093f\u0928"),  # and so are Hindi ones
    ],
)
def test_what_a_line_folds_to(text, folded):
    assert normalise(text).text == folded
    assert texts(text)[0] == folded


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("p1ckle", ["pickle", "plckle"]),
        ("p!ck1e", ["pickie", "plckle"]),
        ("P1CKL3", ["pickle", "plckle"]),
        ("@pple", ["apple"]),
        ("bo$$", ["boss"]),
        ("8anana5", ["bananas"]),
        ("+oas+", ["oast"]),  # `+` begins no word
        ("p*ckle", [f"p{MASK}ckle"]),
        ("p#ck*e", [f"p{MASK}ck{MASK}e"]),
        ("p.i.c.k.l.e", ["pickle"]),
        ("p i c k l e!", ["pickle"]),
        ("p_-_i_-_c", ["pic"]),
        ("so p.1.c.k.l.e s0", ["so pickle so", "so plckle so"]),
        ("p\u2022i\u2022c", ["pic"]),
        ("\u0440.\u0456.\u0441", ["pic"]),
        # What stays as it is.
        ("pickle!", []),
        ("wow!!!", []),
        ("*pickle*", []),
        ("1.000 + 2", []),
        ("a b", []),
        ("p-i.c", []),
        ("100% of 24", []),
    ],
)
def test_more_readings_of_disguised_words(text, more):
    assert texts(text)[1:] == more


def test_spans_point_to_where_a_character_came_from():
    text = "Hi \u200bp.1.c!  \ufb03"
    plain, spelled, _ = readings(text)
    assert plain.text == "hi p 1 c ffi"
    assert [text[index] for index in plain.spans] == list("Hi p.1.c!") + ["\ufb03"] * 3
    assert spelled.text == "hi pic ffi"
    start = spelled.text.index("pic")
    assert spelled.span(start, start + 3) == (4, 9)
    assert text[4:9] == "p.1.c"
    assert spelled.span(len("hi pic "), len("hi pic ffi")) == (len(text) - 1, len(text))
    assert normalise("  so, what").span(3, 7) == (6, 10)


def check(text):
    found = readings(text)
    assert 1 <= len(found) <= 4
    assert found[0].text == normalise(text).text
    for reading in found:
        assert len(reading.spans) == len(reading.text)
        assert reading.spans == sorted(reading.spans)
        assert all(0 <= index < len(text) for index in reading.spans)
        assert reading.text == " ".join(reading.text.split(" ")).strip(" ")
        assert "  " not in reading.text
        reading.text.encode()  # no lone surrogates are left
    return found


def test_any_text_has_readings():
    rng = random.Random(11)
    seeds = list("aAzZ019@$!|+*#._- \t\x00\x1a\u200b\u0301\u0e49\u30ac\u3099\u0440\U000e0000\ud800")
    for _ in range(4000):
        chars = [
            chr(rng.randrange(0x110000)) if rng.random() < 0.2 else rng.choice(seeds)
            for _ in range(rng.randrange(40))
        ]
        check("".join(chars))


def test_every_code_point_folds():
    for first in range(0, 0x110000, 64):
        check("".join(map(chr, range(first, first + 64))))
    assert len(module._folds) <= module.CACHE


def test_plain_ascii_takes_the_short_way_only_where_it_says_the_same():
    rng = random.Random(5)
    short = 0
    for _ in range(20_000):
        text = "".join(rng.choices("abAB01 .,!-_*$@#+|\t", k=rng.randrange(12)))
        long = readings(text + "\u200b")  # an invisible character forces the long way
        assert texts(text) == [reading.text for reading in long], text
        assert [r.spans for r in readings(text)] == [r.spans for r in long], text
        short += len(long) == 1
    assert short > 2000


@pytest.mark.parametrize(
    "unit", ["a", "1", "a1", "a ", "1 ", "a.b", "a!", "!", "*a", "@", "\u0301", "+1"]
)
def test_cost_grows_with_length_only(unit):
    """A tenfold line may take tenfold, not a hundredfold; measured with room for noise."""

    def cost(length):
        text = "\u200b" + (unit * length)[:length]  # the long way even where it is plain
        best = 1.0
        for _ in range(5):
            start = time.thread_time()
            readings(text)
            best = min(best, time.thread_time() - start)
        return best

    assert cost(40_000) < 40 * cost(4000)
