"""The rules: blocked and allowed terms, links, capitals, repetition and duplicates."""

from __future__ import annotations

import pytest

from uproar import events
from uproar.config import Moderation
from workers.moderation.lists import Lists
from workers.moderation.pipeline import Judged
from workers.moderation.rules import Rules, caps, repeated
from workers.moderation.terms import Terms, TermsError


def rules(installation=(), streams=(), **settings):
    """A rules stage; `streams` are (stream, blocked, allowed)."""
    lists = Lists(Terms(installation))
    for stream, blocked, allowed in streams:
        lists.set(stream, events.Terms(tuple(blocked), tuple(allowed)), 1)
    stage = Rules(Moderation(**settings), lists)

    def judge(text, **about):
        about = {"stream": "s", "user": "u", **about}
        return stage.judge(Judged(text, protected=lists.covered, **about))

    return judge


def test_a_blocked_term_is_deleted_with_its_place_in_the_original():
    verdict = rules(["darn"])("oh D\u0430RN it")
    assert verdict[:5] == ("delete", "term: darn", "term", 1.0, ((3, 7),))


def test_a_streams_own_terms_hold_there_alone():
    judge = rules(streams=[("a", ["snark*"], [])])
    assert judge("snarky", stream="a").rule == "term: snark*"
    assert judge("snarky", stream="b") is None


@pytest.mark.parametrize("role", ["viewer", "vip", "moderator", "broadcaster", "service"])
def test_blocked_terms_are_for_everybody(role):
    assert rules(["darn"])("darn", role=role).action == "delete"


@pytest.mark.parametrize(
    ("text", "deleted"),
    [
        ("Heckthorpe United", False),
        ("HECKTHORPE", False),
        ("h3ckthorpe", False),
        ("heck", True),
        ("Heckthorpe, heck", True),
        ("heckler", True),
        ("my Heckler & Koch", False),
        ("unheckable", False),
    ],
)
def test_allowed_terms_protect_what_they_cover(text, deleted):
    judge = rules(["*heck*"], [("s", [], ["Heckthorpe", "heckler & koch", "unheck*"])])
    verdict = judge(text)
    assert bool(verdict) is deleted
    assert bool(judge(text, stream="other"))  # nothing is allowed there


def test_allowed_terms_protect_from_a_streams_own_list_too():
    judge = rules(streams=[("s", ["*boot*"], ["reboot"])])
    assert judge("reboot") is None
    assert judge("reboot boot").spans == ((7, 11),)


def test_a_protected_term_hides_no_other_that_overlaps_it():
    judge = rules(["heck*", "heckler koch"], [("s", [], ["heckler"])])
    assert judge("my heckler") is None
    assert judge("my heckler koch").rule == "term: heckler koch"


def test_a_list_replaces_the_one_before_and_an_older_one_does_not():
    lists = Lists()
    lists.set("s", events.Terms(("darn",)), 10)
    lists.set("s", events.Terms(("heck",)), 5)
    assert lists.match(Judged("darn", stream="s"))
    lists.set("s", events.Terms(()), 11)
    assert not lists.match(Judged("darn heck", stream="s"))


def test_a_list_that_can_not_be_used_leaves_the_one_before():
    lists = Lists()
    lists.set("s", events.Terms(("darn",)), 1)
    with pytest.raises(TermsError, match="s: blocked:2: only wildcards"):
        lists.set("s", events.Terms(("heck", "***")), 2)
    assert lists.match(Judged("darn", stream="s"))


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("see example.com now", "example.com"),
        ("http://10.0.0.1/x", "10.0.0.1"),
        ("HTTPS://Example.Org/path?q=1", "example.org"),
        ("www.whatever.museum", "whatever.museum"),
        ("https://friends.example@evil.com/", "evil.com"),
        ("https://friends.example.evil.com", "friends.example.evil.com"),
        ("notfriends.tv", "notfriends.tv"),
        ("\u0435xample.com", "example.com"),
        ("exam\u200bple.com", "example.com"),
        ("\uff45xample\uff0ecom", "example.com"),
        ("see clips.friends.tv", None),
        ("https://friends.tv/x", None),
        ("https://FRIENDS.TV.", None),
        ("https://fri\u0435nds.tv", "friends.tv"),  # a look-alike is another domain
        ("wait.what", None),
        ("e.g. this, 3.5, v1.2.3 ...", None),
        ("mail me@example.com", None),
        ("ok.cool", None),
    ],
)
def test_links(text, host):
    verdict = rules(link_domains=["friends.tv"])(text)
    assert (verdict and verdict.rule) == (host and f"link: {host}")
    if verdict:
        assert verdict.action == "flag"


def test_the_span_of_a_link_is_in_the_original():
    text = "\U0001f600 se\u00ade https://a.example/path"
    ((start, end),) = rules()(text).spans
    assert text[start:end] == "https://a.example"


@pytest.mark.parametrize(
    ("role", "found"), [("viewer", True), ("vip", False), ("moderator", False)]
)
def test_links_by_role(role, found):
    assert bool(rules(links="delete")("example.com", role=role)) is found


def test_capitals():
    assert caps("HELLO there", 8) == 0.5
    assert caps("WHAT", 8) == 0.0
    assert caps("\u6b7b\u306d" * 8, 8) == 0.0
    assert rules()("WHY IS EVERYBODY SHOUTING") is None  # by default: joy is capitals
    assert rules(caps="flag")("WHY IS EVERYBODY SHOUTING").category == "caps"
    assert rules(caps="flag")("WHY is everybody shouting") is None
    assert rules(caps="flag")("WHY IS EVERYBODY SHOUTING", role="moderator") is None


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("", 0),
        ("one", 1),
        ("a a a", 3),
        ("x a b a b a b y", 3),
        ("a b c d e a b c d e", 2),
        ("a b a c a d", 1),
    ],
)
def test_repetition_is_counted_in_a_row(text, times):
    assert repeated(text.split()) == times


def test_repetition():
    wave = "otterHype " * 12
    assert rules()(wave) is None
    assert rules(repetition="flag")(wave).rule == "repeated: 12 times in a row"
    assert rules(repetition="flag")("no no no no no no no") is None  # short: laughter


def test_duplicates_are_per_user_and_stream_and_time():
    judge = rules(duplicates="delete", duplicates_times=3)
    said = [
        judge(text, user=user, stream=stream, ts=ts)
        for text, user, stream, ts in [
            ("come to my stream", "u", "s", 0),
            ("come to my stream", "v", "s", 1),
            ("come to my stream", "u", "t", 2),
            ("Come to my stream! \U000e0000", "u", "s", 1000),
            ("come to my stream", "w", "s", 2000),
            ("come  to my stream", "u", "s", 29_000),
            ("come to my stream", "u", "s", 31_500),
            ("come to my stream", "u", "s", 70_000),
        ]
    ]
    assert [verdict is not None for verdict in said] == [False] * 5 + [True, False, False]


def test_duplicates_are_flagged_once_and_deleted_every_time():
    flags, deletes = rules(duplicates_times=3), rules(duplicates_times=3, duplicates="delete")
    times = range(1, 7)
    assert [bool(flags("come to my stream", ts=ts)) for ts in times].count(True) == 1
    assert [bool(deletes("come to my stream", ts=ts)) for ts in times].count(True) == 4


def test_laughter_is_no_duplicate():
    judge = rules(duplicates_times=2)
    assert not any(judge("LUL", ts=ts) for ts in range(9))


def test_what_many_write_is_no_duplicate():
    judge = rules(duplicates_times=2)
    assert not any(judge("the same long copypasta", user=f"u{n}", ts=n) for n in range(99))


def test_the_strongest_finding_wins():
    verdict = rules(["darn"], caps="flag")("DARN THIS EXAMPLE.COM")
    assert (verdict.action, verdict.category) == ("delete", "term")
