"""Blocked terms: what they catch, what they leave alone, and which lists are refused."""

from __future__ import annotations

import os
import random

import pytest

from workers.moderation.terms import Match, Terms, TermsError

# Mild words; what matters is their shape: doubled letters, one inside the other, a phrase.
LIST = """
# comment

darn
heck
boot
butt
poo*
*snark*
*wort
buy followers
Grüß Gott
死ね
"""
TERMS = Terms(LIST.splitlines())


def found(text):
    match = TERMS.match(text)
    return match and (match.term, text[match.start : match.end])


@pytest.mark.parametrize(
    ("text", "term", "part"),
    [
        ("darn", "darn", "darn"),
        ("well DARN it", "darn", "DARN"),
        ("darn!", "darn", "darn"),
        ("(heck)", "heck", "heck"),
        ("what_the_heck_man", "heck", "heck"),
        ("poodle", "poo*", "poo"),
        ("oh, snarky!", "*snark*", "snark"),
        ("unsnarkable", "*snark*", "snark"),
        ("liverwort", "*wort", "wort"),
        ("BUY   followers now", "buy followers", "BUY   followers"),
        ("buy-followers.example", "buy followers", "buy-followers"),
        ("gruss gott", "Grüß Gott", "gruss gott"),
        ("お前死ねよ", "死ね", "死ね"),
        ("darnお", "darn", "darn"),
        # disguised
        ("d\u200bar\u00adn", "darn", "d\u200bar\u00adn"),
        ("x d\u0430rn x", "darn", "d\u0430rn"),
        ("\uff44\uff41\uff52\uff4e", "darn", "\uff44\uff41\uff52\uff4e"),
        ("d4rn h3ck", "darn", "d4rn"),
        ("d@rn", "darn", "d@rn"),
        ("bu++", "butt", "bu++"),
        ("p0odle", "poo*", "p0o"),
        ("d*rn", "darn", "d*rn"),
        ("oh h#ck no", "heck", "h#ck"),
        ("d.a.r.n", "darn", "d.a.r.n"),
        ("oh D A R N  it", "darn", "D A R N"),
        ("h-3-c-k", "heck", "h-3-c-k"),
        ("\U000e0000darn\U000e0000", "darn", "darn"),
        ("d\u0336a\u0336r\u0336n\u0336", "darn", "d\u0336a\u0336r\u0336n"),
        # stretched
        ("DAAAAARN", "darn", "DAAAAARN"),
        ("ooh daaarrrnnnnn it", "darn", "daaarrrnnnnn"),
        ("buuuuutttttt", "butt", "buuuuutttttt"),
        ("booooot", "boot", "booooot"),
        ("d444rn", "darn", "d444rn"),
        ("daaa4444rn", "darn", "daaa4444rn"),
        ("pooooodle", "poo*", "poo"),
        ("p0000dle", "poo*", "p00"),
        ("so snaaaaarky", "*snark*", "snaaaaark"),
    ],
)
def test_what_is_caught(text, term, part):
    assert found(text) == (term, part)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello there",
        "darning socks",  # words that contain a term: the Scunthorpe problem
        "checking the deck",
        "Darnell",
        "rebooted", "button", "butter", "tribute",
        "shampoo", "wortless",
        "followers buy", "buy, my dear, followers",
        "bott", "but", "bot", "boott",  # one letter more or less is another word
        "boott yesss", "bott nooo", "but whyyy", "butttton", "booo boo tttt",
        "buttt0n",
        "boo hoo woooooot",
        "dar n", "da rn",
        "d a r",
        "b.o.o.t.h",
        "heckler", "h3ckler",
        "d**n",
        "死", "ね死",
        "\ud800", "\x00" * 9, "*" * 99, "!" * 500,
    ],
)  # fmt: skip
def test_what_is_left_alone(text):
    assert found(text) is None


def test_of_several_the_first_in_the_line_is_named():
    assert TERMS.match("oh heck, darn") == Match("heck", 3, 7)
    assert found("d4rn and heck") == ("heck", "heck")  # the line as it stands is read first


def test_a_longer_term_hides_no_shorter_one():
    terms = Terms(["foo bar baz", "bar", "*oba*", "foobarbaz"])
    assert terms.match("foo bar bay").term == "bar"
    assert terms.match("foobarbay").term == "*oba*"
    assert terms.match("fooooobar").term == "*oba*"
    assert Terms(["ab", "aab", "aabb"]).match("xx aaaabbb").term in ("ab", "aab", "aabb")


def test_stretched_letters_are_told_from_doubled_ones():
    terms = Terms(["bot", "boot"])  # the same but for the length of a run
    assert terms.match("bootttt").term == "boot"
    assert terms.match("botttt").term == "bot"
    assert terms.match("boottttt and bottttt").term == "boot"
    assert Terms(["gate 100"]).match("gate 10000 yesss") is None  # no letters


def test_an_empty_list_matches_nothing():
    for lines in ([], ["", "  ", "# only", "#comments"]):
        terms = Terms(lines)
        assert len(terms) == 0
        assert terms.match("anything 0f th3 k1nd") is None


def test_terms_that_fold_to_the_same_are_one():
    terms = Terms(["darn", "DARN ", "d\u0430rn", "heck*"])
    assert len(terms) == 2
    assert terms.match("DARN").term == "darn"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("*", "only wildcards"),
        ("***", "only wildcards"),
        ("* *", "only wildcards"),
        ("a", "shorter than 2 letters"),
        ("a*", "shorter than 2 letters"),
        ("!!!", "shorter than 2 letters"),
        ("\u200b\u200bx", "shorter than 2 letters"),
        ("d*rn", "only at the beginning or the end"),
        ("x" * 501, "501 characters; at most 500"),
    ],
)
def test_a_line_that_is_no_term_is_refused_with_its_number(line, sentence):
    with pytest.raises(TermsError, match=sentence) as caught:
        Terms(["fine", "", line], "list.txt")
    assert str(caught.value).startswith("list.txt:3: ")


def test_the_number_of_terms_is_bounded():
    lines = [f"term{n}x" for n in range(100_000)]
    terms = Terms(lines)
    assert len(terms) == 100_000
    assert terms.match("here is term99999x").term == "term99999x"
    with pytest.raises(TermsError, match=r"terms:100002: more than 100,000 terms"):
        Terms([*lines, "term0x", "one more"])  # the repeated one does not count


def test_files_are_read_together_and_watched(tmp_path):
    one, two, absent = tmp_path / "one.txt", tmp_path / "two.txt", tmp_path / "absent.txt"
    one.write_bytes(b"\xef\xbb\xbfdarn\r\n# no\r\n")
    two.write_text("heck\n")
    files = [one, two, absent]
    assert Terms([]).changed(files)
    terms = Terms.load(files)
    assert len(terms) == 2
    assert terms.match("darn")
    assert terms.match("heck")
    assert not terms.changed(files)
    assert terms.changed([one, two])
    os.utime(two, ns=(1, 1))
    assert terms.changed(files)
    terms = Terms.load(files)
    assert not terms.changed(files)
    absent.write_text("boot\n")
    assert terms.changed(files)
    assert Terms.load(files).match("boot")
    one.unlink()
    assert len(Terms.load(files)) == 2


def test_a_file_that_is_no_list_is_refused(tmp_path):
    file = tmp_path / "terms.txt"
    file.write_text("fine\na\n")
    with pytest.raises(TermsError, match=r"terms\.txt:2: 'a' is shorter"):
        Terms.load([file])
    file.write_bytes(b"fine\nfi\xff\n")
    with pytest.raises(TermsError, match=r"terms\.txt:2: not UTF-8"):
        Terms.load([file])
    with pytest.raises(OSError, match="directory"):
        Terms.load([tmp_path])
    with file.open("wb") as out:
        out.truncate((64 << 20) + 1)
    with pytest.raises(TermsError, match="a list has at most"):
        Terms.load([file])


def test_any_text_is_matched_without_error_and_spans_lie_inside():
    rng = random.Random(23)
    terms = Terms(["ab", "aab*", "*bba*", "a b", "*ba", "\u30ac\u30d1", "\u0440\u0430"])
    seeds = list(
        "aAbB48@*#|._- \x1a\u200b\u0301\u0e49\u30ac\u30d1\u3099\u0440\u0430\U000e0000\ud800\ufdfa"
    )
    hits = 0
    for _ in range(20_000):
        text = "".join(
            chr(rng.randrange(0x110000)) if rng.random() < 0.1 else rng.choice(seeds)
            for _ in range(rng.randrange(30))
        )
        match = terms.match(text)
        if match:
            hits += 1
            assert 0 <= match.start < match.end <= len(text)
    assert hits > 2000
