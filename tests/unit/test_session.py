"""Sessions: what a handshake asks for, who it is, and every way to be refused."""

import pytest

from gateway.engine import Request
from gateway.live import Live
from gateway.session import Refused, Session, claims_of, name_of, wish_of
from uproar.auth import AuthError, Claims, Verifier, make_token

KEY = b"k" * 32
MADE = make_token(KEY, sub="u", name="U", streams=("s",))


def request(path="/stream/s", query="", headers=None, subprotocol=None):
    return Request(path, query, headers or {}, "127.0.0.1", subprotocol)


def wish(*args, **kwargs):
    return wish_of(request(*args, **kwargs), 50, 100)


def test_a_bare_handshake_asks_for_the_defaults():
    assert wish()[:7] == ("s", "json", None, None, None, 50, "all")


def test_a_handshake_with_everything():
    found = wish(
        "/stream/a_b-9", "epoch=0a1b&offset=9007199254740991&backlog=7&rate=20&access_token=t",
        subprotocol="uproar.v1.msgpack",
    )  # fmt: skip
    assert found[:7] == ("a_b-9", "msgpack", "t", "0a1b", 9007199254740991, 7, "20")
    assert wish(query="backlog=0").backlog == 0
    assert wish(query="backlog=5000").backlog == 100
    assert wish(query="offset=9999999999999999").offset == 1 << 53


@pytest.mark.parametrize(
    "path",
    ["/", "/stream/", "/stream/A", "/stream/a b", "/stream/a/b", "/stream/" + "a" * 65,
     "/stream/é", "/stream/a%0a", "/stream/a\n", "/streams/a", "stream/a", ""],
)  # fmt: skip
def test_a_malformed_stream_is_unknown(path):
    with pytest.raises(Refused) as refusal:
        wish(path)
    assert refusal.value.code.code == 4004


@pytest.mark.parametrize(
    "query",
    [
        "offset=", "offset=-1", "offset=1.5", "offset=x", "offset=%D9%A1", "offset=1e3",
        "offset=12345678901234567", "backlog=", "backlog=-1", "backlog=all", "rate=10", "rate=-5",
        "&".join(f"a{number}=1" for number in range(1000)),
    ],
)  # fmt: skip
def test_a_malformed_parameter_is_a_bad_request(query):
    with pytest.raises(Refused) as refusal:
        wish(query=query)
    assert refusal.value.code.code == 4000 and len(refusal.value.reason.encode()) <= 123


@pytest.mark.parametrize("query", ["a=1;b=2", "&&&", "=", "%", "%ff%fe=%ff", "epoch=%00", "rate="])
def test_odd_queries_raise_nothing(query):
    assert wish(query=query).stream == "s"


def test_a_token_comes_by_header_query_or_subprotocol():
    offer = {"sec-websocket-protocol": "uproar.v1.json,  uproar.token.c "}
    assert wish(headers={"authorization": "Bearer a"}).token == "a"
    assert wish(headers={"authorization": "bearer  a "}).token == "a"
    assert wish(query="access_token=b").token == "b"
    assert wish(headers=offer).token == "c"
    assert wish(query="access_token=b", headers={"authorization": "Bearer a", **offer}).token == "a"
    assert wish(query="access_token=b", headers=offer).token == "b"
    for headers in ({"authorization": "Basic eDp5"}, {"authorization": "Bearer "}, {}):
        assert wish(headers=headers).token is None


def test_who_it_is_and_where_one_may_go():
    check = Verifier(KEY).check
    assert claims_of(wish(), check) is None
    assert claims_of(wish(query=f"access_token={MADE}"), check).sub == "u"
    with pytest.raises(Refused) as refusal:
        claims_of(wish("/stream/t", f"access_token={MADE}"), check)
    assert refusal.value.code.code == 4003
    with pytest.raises(Refused) as refusal:
        claims_of(wish(query="access_token=nonsense"), check)
    assert refusal.value.code.code == 4001 and isinstance(refusal.value.__cause__, AuthError)
    assert "nonsense" not in refusal.value.reason


def session(claims=None, **kwargs):
    return Session(1, "g1-x-", wish(**kwargs), claims, Live("s", keep_events=100, keep_ms=1))


def test_the_audience_is_what_decides_the_bytes():
    assert session().key() == ("s", "native", "json", "none", "all", "viewer")
    found = session(Claims("m", "M", "moderator"), query="rate=5", subprotocol="uproar.v1.msgpack")
    assert found.key() == ("s", "native", "msgpack", "none", "5", "moderator")
    assert found.moderates and not session(Claims("u", "U", "vip")).moderates


def test_what_a_session_keeps_of_its_wish_is_the_same_for_many():
    one = wish(query="access_token=a&epoch=e&offset=5&backlog=7&rate=20")
    other = wish(query="rate=20&access_token=b&backlog=7")
    assert one.kept() == other.kept() and one.kept().token is None and one.kept().backlog == 7


def test_names_say_where_a_session_is_and_have_one_length():
    assert session().name == name_of("g1-x-", 1) == "g1-x-000000000001"
    assert name_of("g1-x-", (1 << 48) - 1) == "g1-x-ffffffffffff"


def test_a_plain_viewer_is_made_again_from_its_audience():
    one = session(query="rate=20", subprotocol="uproar.v1.msgpack")
    assert not one.plain, "it has not joined yet"
    one.audience = one.key()
    assert one.plain
    again = Session.member(1, "g1-x-", one.key(), one.live)
    assert again.plain and again.key() == one.key() and again.name == one.name
    again.outgoing = [{"type": "ACK"}]
    assert not again.plain, "it is owed something"
    known = session(Claims("u", "U"))
    known.audience = known.key()
    assert not known.plain
