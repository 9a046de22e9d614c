"""Whatever a connection sends costs that connection alone, with the documented answer."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import jwt
import msgpack
import pytest
from websockets.sync.client import connect

from tests.integration.raw import (
    BINARY,
    CLOSE,
    PING,
    TEXT,
    Bystanders,
    Socket,
    dial,
    frame,
    read_answer,
    token_for,
    upgrade,
)
from tests.system import System

STREAM = "bad-input"
MESSAGE_BYTES = 65_536


@pytest.fixture(scope="module")
def bystanders(system: System) -> Iterator[Bystanders]:
    watching = Bystanders(system, STREAM)
    yield watching
    watching.close()


@pytest.fixture(autouse=True)
def undisturbed(bystanders: Bystanders) -> Iterator[None]:
    """After each case viewers of the same stream get the next comment, and nothing has died."""
    yield
    bystanders.check()


def comment(text: Any, **more: Any) -> str:
    """A COMMENT in plain ASCII; lone surrogates become escapes."""
    return json.dumps({"type": "COMMENT", "text": text, "nonce": "n1", **more})


# What is said in a message that can be read: (message, code, nonce that comes back).
REFUSED = {
    "not JSON": ("hello", "bad_request", None),
    "nothing": ("", "bad_request", None),
    "cut off": ('{"type":"COMM', "bad_request", None),
    "no object": ("null", "bad_request", None),
    "no type": ('{"text":"a","nonce":"n1"}', "bad_request", "n1"),
    "unknown type": ('{"type":"DANCE","nonce":"n1"}', "bad_request", "n1"),
    "unknown field": (comment("a", volume=11), "bad_request", "n1"),
    "unknown field, long": (comment("a", **{"x" * 60_000: 1}), "bad_request", "n1"),
    "text is a number": (comment(5), "bad_request", "n1"),
    "no text": ('{"type":"COMMENT","nonce":"n1"}', "bad_request", "n1"),
    "501 code points": (comment("é" * 501), "too_long", "n1"),
    "64 KB of text": (comment("x" * 65_000), "too_long", "n1"),
    "only spaces": (comment("   \u3000"), "empty", "n1"),
    "empty": (comment(""), "empty", "n1"),
    "only invisible": (comment("\u200b\u200d\u2060\ufeff\u00ad"), "empty", "n1"),
    "only marks": (comment("\u0301\ufe0f"), "empty", "n1"),
    "NUL": (comment("a\0b"), "bad_request", "n1"),
    "line feed": (comment("a\nb"), "bad_request", "n1"),
    "C1 control": (comment("a\u0085b"), "bad_request", "n1"),
    "lone surrogate": (comment("a\ud800b"), "bad_request", None),
    "nested arrays": ("[" * 60_000, "bad_request", None),
    "nested objects": ('{"a":' * 10_000, "bad_request", None),
    "nested text": ('{"type":"COMMENT","text":' + "[" * 60_000, "bad_request", None),
    "empty nonce": (comment("a", nonce=""), "bad_request", None),
    "long nonce": (comment("a", nonce="n" * 65), "bad_request", None),
    "control in nonce": (comment("a", nonce="a\nb"), "bad_request", None),
    "reply to nothing": (comment("a", reply_to="that one"), "bad_request", "n1"),
    "huge number": (comment("a", ts=10**30), "bad_request", "n1"),
    "another author": (comment("a", user={"id": "x", "name": "y"}), "not_allowed", "n1"),
    "101 commands": (json.dumps([{"type": "PING"}] * 101), "bad_request", None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_message_that_is_refused(system: System, case: str) -> None:
    message, code, nonce = REFUSED[case]
    with Socket(system, STREAM, token=token_for(system, "refused")) as viewer:
        viewer.raw(frame(TEXT, message.encode()))
        rejected = viewer.event("REJECTED")
        assert (rejected["code"], rejected["nonce"]) == (code, nonce)
        assert 5 < len(rejected["message"]) < 300
        viewer.send({"type": "PING"})
        viewer.event("PONG")  # the connection stays open


def test_one_bad_command_costs_itself_only(system: System) -> None:
    with Socket(system, STREAM, token=token_for(system, "mixed")) as viewer:
        good = [{"type": "COMMENT", "text": f"good {n}", "nonce": f"g{n}"} for n in (1, 2)]
        bad = [7, {"type": "COMMENT", "text": " ", "nonce": "b1"}, {"type": "NO", "nonce": "b2"}]
        viewer.raw(frame(TEXT, json.dumps([good[0], *bad, good[1]]).encode()))
        assert viewer.event("ACK", nonce="g1")["offset"] < viewer.event("ACK", nonce="g2")["offset"]
        viewer.event("REJECTED", nonce=None, code="bad_request")
        viewer.event("REJECTED", nonce="b1", code="empty")
        viewer.event("REJECTED", nonce="b2", code="bad_request")


def test_500_code_points_of_four_bytes_are_fine(system: System, bystanders: Bystanders) -> None:
    with Socket(system, STREAM, token=token_for(system, "long")) as viewer:
        viewer.raw(frame(TEXT, comment("🎉" * 500).encode()))
        viewer.event("ACK", nonce="n1")
        for other in bystanders.viewers.values():
            other.event("COMMENT", text="🎉" * 500)


def test_a_service_can_not_break_the_log_with_a_time(system: System) -> None:
    with Socket(system, STREAM, token=system.tokens["service"]) as service:
        for ts in (-1, 1 << 53, 1 << 64, 10**30):
            service.raw(frame(TEXT, comment("a", ts=ts, nonce=f"t{ts}"[:40]).encode()))
            service.event("REJECTED", code="bad_request", nonce=f"t{ts}"[:40])


def test_anonymous_may_only_read(system: System) -> None:
    with Socket(system, STREAM) as viewer:
        viewer.raw(frame(TEXT, comment("hello").encode()))
        viewer.event("REJECTED", code="read_only", nonce="n1")


@pytest.mark.parametrize(
    "message",
    [
        b"\xc1",
        b"",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 60_000,
        b"\x81\xa1a" * 20_000,
        b"\x81\x80\x01",
        b"\xc7\x0c\xff" + b"\xff" * 12,
        msgpack.packb({"type": "COMMENT", "text": b"\xff\xfe"}),
        b"\x82\xa4type\xa7COMMENT\xa4text\xa3\xed\xa0\x80",  # a lone surrogate
        msgpack.packb({"type": "COMMENT", "text": "a", "ts": (1 << 64) - 1}),
    ],
)
def test_garbage_on_msgpack(system: System, message: bytes) -> None:
    with Socket(system, STREAM, token=token_for(system, "packed"), codec="msgpack") as viewer:
        viewer.raw(frame(BINARY, message))
        assert viewer.until(lambda event: event[0] == 7)[1:3] == [None, "bad_request"]
        viewer.send({"type": "PING"})
        viewer.until(lambda event: event[0] == 10)


HELLO = comment("hello").encode()
# What ends a connection: (codec, bytes, close code).
VIOLATIONS = {
    "invalid UTF-8": ("json", frame(TEXT, b'{"a":"\xff"}'), 1007),
    "surrogate in UTF-8": ("json", frame(TEXT, b'"\xed\xa0\x80"'), 1007),
    "unmasked": ("json", frame(TEXT, HELLO, masked=False), 1002),
    "RSV1": ("json", frame(TEXT, HELLO, reserved=4), 1002),
    "RSV2": ("json", frame(TEXT, HELLO, reserved=2), 1002),
    "RSV3 on a ping": ("json", frame(PING, b"", reserved=1), 1002),
    "opcode 3": ("json", frame(3, HELLO), 1002),
    "opcode 15": ("json", frame(15, b""), 1002),
    "ping in pieces": ("json", frame(PING, b"a", fin=False), 1002),
    "ping of 126 bytes": ("json", frame(PING, b"a" * 126), 1002),
    "continuation of nothing": ("json", frame(0, HELLO), 1002),
    "message within a message": ("json", frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
    "close of one byte": ("json", frame(CLOSE, b"\x03"), 1002),
    "close with 1005": ("json", frame(CLOSE, b"\x03\xed"), 1002),
    "close reason not UTF-8": ("json", frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "above 64 KB": ("json", frame(TEXT, b"a" * (MESSAGE_BYTES + 1)), 1009),
    "10 MB announced": ("json", frame(TEXT, b"", size=10 << 20), 1009),
    "10 MB sent": ("json", frame(TEXT, b"a" * (10 << 20)), 1009),
    "2^63 announced": ("json", frame(TEXT, b"", size=(1 << 63) - 1), 1009),
    "64 KB in pieces": (
        "json",
        frame(TEXT, b"a" * 40_000, fin=False) + frame(0, b"a" * 40_000),
        1009,
    ),
    "5,000 pieces": ("json", frame(TEXT, b"", fin=False) + frame(0, b"", fin=False) * 5000, 1009),
    "binary on JSON": ("json", frame(BINARY, HELLO), 1003),
    "binary without a subprotocol": (None, frame(BINARY, HELLO), 1003),
    "text on msgpack": ("msgpack", frame(TEXT, HELLO), 1003),
}  # fmt: skip


@pytest.mark.parametrize("case", VIOLATIONS)
def test_a_frame_that_ends_the_connection(system: System, case: str) -> None:
    codec, data, code = VIOLATIONS[case]
    with Socket(system, STREAM, token=token_for(system, "violates"), codec=codec) as viewer:
        viewer.raw(data)
        assert viewer.closed()[0] == code


def test_nothing_is_taken_after_a_close_frame(system: System, bystanders: Bystanders) -> None:
    # The 1003 is ours; a comment behind its cause must not count, in whichever segment it comes.
    with Socket(system, STREAM, token=token_for(system, "late"), codec="json") as viewer:
        viewer.event("WELCOME")
        late = frame(TEXT, comment("too late", nonce="late").encode())
        viewer.raw(frame(BINARY, b"x") + late)
        viewer.raw(late)
        assert viewer.closed()[0] == 1003
    bystanders.check()
    assert "too late" not in [found["text"] for found in system.history(STREAM)]


def test_close_is_answered_with_the_same_code(system: System) -> None:
    for payload, code in ((b"\x03\xe8bye", 1000), (b"\x03\xe9", 1001), (b"\x0f\xa0", 4000)):
        with Socket(system, STREAM) as viewer:
            viewer.event("WELCOME")
            viewer.raw(frame(CLOSE, payload))
            with pytest.raises(AssertionError, match="a reason"):
                viewer.closed()
            assert viewer.close_frame == (code, "")


def test_more_than_fifty_commands_a_second(system: System) -> None:
    with Socket(system, STREAM, token=token_for(system, "floods")) as viewer:
        viewer.raw(frame(TEXT, b'{"type":"PING"}') * 200)
        assert viewer.closed()[0] == 4029


def test_a_flood_that_does_not_stop(system: System, bystanders: Bystanders) -> None:
    with Socket(system, STREAM, token=token_for(system, "floods")) as viewer:
        began = time.monotonic()
        viewer.raw(frame(TEXT, b'{"type":"PING"}') * 500_000)
        assert viewer.closed()[0] == 4029
        assert time.monotonic() - began < 10
        bystanders.check()


def test_a_flood_of_pings_ends_its_sender_and_delays_nobody(
    system: System, bystanders: Bystanders
) -> None:
    with Socket(system, STREAM) as viewer:
        viewer.raw(frame(PING, b"") * 2000)
        bystanders.check()
        assert viewer.closed()[0] == 4029


# -- tokens ----------------------------------------------------------------------------------------


def bad_token(system: System, kind: str) -> tuple[str, int]:
    """Return (token, close code)."""
    claims = {"sub": "eve", "name": "Eve", "role": "moderator", "streams": "*"}
    soon = int(time.time()) + 600
    if kind == "expired":
        return token_for(system, "eve", ttl_s=-60), 4001
    if kind == "another stream":
        return token_for(system, "eve", streams=("elsewhere",)), 4003
    if kind == "alg none":
        return jwt.encode({**claims, "exp": soon}, None, algorithm="none"), 4001
    if kind == "another key":
        return jwt.encode({**claims, "exp": soon}, "k" * 64, algorithm="HS256"), 4001
    if kind == "another algorithm":
        key = (system.data / "signing.key").read_bytes().strip()
        return jwt.encode({**claims, "exp": soon}, key, algorithm="HS512"), 4001
    if kind == "role nobody has":
        key = (system.data / "signing.key").read_bytes().strip()
        return jwt.encode({**claims, "role": "king"}, key, algorithm="HS256"), 4001
    if kind == "deep":
        nested = base64.urlsafe_b64encode(b"[" * 3000).rstrip(b"=").decode()
        return f"{nested}.e30.AA", 4001
    return "garbage", 4001


WAYS = ("header", "query", "subprotocol")
KINDS = (
    "expired", "another stream", "alg none", "another key", "another algorithm",
    "role nobody has", "deep", "garbage",
)  # fmt: skip


def passed(token: str, by: str) -> dict[str, Any]:
    """Return the arguments of Socket that pass a token in one of the three ways."""
    if by == "header":
        return {"token": token}
    if by == "query":
        return {"query": f"access_token={token}"}
    return {"lines": (f"Sec-WebSocket-Protocol: uproar.v1.json, uproar.token.{token}",)}


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_token(system: System, kind: str, by: str) -> None:
    token, code = bad_token(system, kind)
    how = passed(token, by)
    with Socket(system, STREAM, *how.pop("lines", ()), **how) as viewer:
        found, reason = viewer.closed()
        assert found == code
        assert token not in reason
        assert not viewer.seen, "nothing is shown to it"
        assert b"uproar.token" not in viewer.head


@pytest.mark.parametrize("by", WAYS)
def test_a_good_token_in_each_way(system: System, by: str) -> None:
    how = passed(token_for(system, f"by-{by}"), by)
    with Socket(system, STREAM, *how.pop("lines", ()), **how) as viewer:
        assert viewer.event("WELCOME")["user"]["id"] == f"by-{by}"
        assert b"uproar.token" not in viewer.head


@pytest.mark.parametrize(("by", "status"), [("header", 431), ("query", 414), ("subprotocol", 431)])
def test_a_token_of_100_kb(system: System, by: str, status: int) -> None:
    how = passed("x" * 100_000, by)
    lines = how.get("lines", ()) or (f"Authorization: Bearer {'x' * 100_000}",)
    target = f"/stream/{STREAM}?{how['query']}" if by == "query" else f"/stream/{STREAM}"
    with dial(system) as sock:
        sock.sendall(upgrade(target, *(lines if by != "query" else ())))
        answer = read_answer(sock)
        assert answer.status == status
        assert "xxx" not in json.dumps(answer.problem())


def test_a_token_that_fits_but_is_too_long(system: System) -> None:
    with Socket(system, STREAM, token="x" * 9000) as viewer:
        assert viewer.closed()[0] == 4001


# -- the address -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "offset=abc", "offset=-1", "offset=1.5", "offset=%C2%B2", "offset=", "backlog=x",
        "offset=99999999999999999", "rate=7", "rate=", "&".join(f"a{n}=1" for n in range(60)),
    ],
)  # fmt: skip
def test_a_malformed_query(system: System, query: str) -> None:
    with Socket(system, STREAM, query=f"epoch=x&{query}") as viewer:
        if query == "rate=":
            viewer.event("WELCOME")  # as if it were not there
        else:
            assert viewer.closed()[0] == 4000


@pytest.mark.parametrize(
    "path",
    [
        "/stream/UPPER", "/stream/" + "a" * 65, "/stream/a%2Fb", "/stream/a%20b", "/stream/%C3%A9",
        "/stream/a%0A", "/stream/%2562ad-input", "/stream/", "/elsewhere", "/", "/stream/a/b",
        "/stream/..%2Fsession",
    ],
)  # fmt: skip
def test_a_stream_that_can_not_be(system: System, path: str) -> None:
    with Socket(system, STREAM, path=path) as viewer:
        assert viewer.closed()[0] == 4004


@pytest.mark.parametrize("beyond", [False, True])
def test_a_resume_that_can_not_be_had(system: System, bystanders: Bystanders, beyond: bool) -> None:
    bystanders.check()  # there is something to be history
    epoch = system.info["epoch"] if beyond else "another"
    offset = (1 << 53) - 1 if beyond else 1
    with Socket(system, STREAM, query=f"epoch={epoch}&offset={offset}&backlog=3") as viewer:
        welcome = viewer.event("WELCOME")
        assert welcome["recovered"] is False
        assert welcome["offset"] < offset or not beyond
        first = viewer.event("COMMENT")
        assert first["historical"] is True
        assert first["offset"] <= welcome["offset"]


def test_an_offset_without_an_epoch_is_not_recovered(system: System) -> None:
    with Socket(system, STREAM, query="offset=1") as viewer:
        assert viewer.event("WELCOME")["recovered"] is False


# -- limits and nonces -----------------------------------------------------------------------------


def test_the_eleventh_comment_in_a_minute(system: System) -> None:
    token = token_for(system, "eager")
    with Socket(system, STREAM, token=token) as viewer:
        assert viewer.event("WELCOME")["limits"]["remaining"] == 10
        for number in range(11):
            viewer.raw(frame(TEXT, comment(f"eager {number}", nonce=f"e{number}").encode()))
        for number in range(10):
            viewer.event("ACK", nonce=f"e{number}")
        rejected = viewer.event("REJECTED", nonce="e10", code="rate_limited")
        assert 0 < rejected["retry_after_ms"] <= 60_000
        # The same comment again is no twelfth: a repeat costs nothing.
        viewer.raw(frame(TEXT, comment("eager 3", nonce="e3").encode()))
        viewer.until(lambda _: sum(e.get("nonce") == "e3" for e in viewer.seen) == 2)
    answer = system.call("POST", f"/stream/{STREAM}/comments", {"text": "12"}, token=token)
    assert (answer[0], answer[1]["code"]) == (429, "rate_limited")


def test_the_same_nonce_is_the_same_comment(system: System, bystanders: Bystanders) -> None:
    token = token_for(system, "twice")
    with Socket(system, STREAM, token=token) as viewer:
        viewer.raw(frame(TEXT, comment("once", nonce="same").encode()) * 2)
        first = viewer.event("ACK", nonce="same")
        viewer.until(lambda _: sum(e["type"] == "ACK" for e in viewer.seen) == 2)
        acks = [e for e in viewer.seen if e["type"] == "ACK"]
        assert {(e["id"], e["offset"]) for e in acks} == {(first["id"], first["offset"])}
        # And over HTTP, whichever gateway takes it.
        for _ in range(4):
            status, answer = system.call(
                "POST",
                f"/stream/{STREAM}/comments",
                {"text": "other", "nonce": "same"},
                token=token,
            )
            assert (status, answer["id"]) == (201, first["id"])
    bystanders.check()
    for other in bystanders.viewers.values():
        shown = [e for e in other.seen if e["type"] == "COMMENT" and e["id"] == first["id"]]
        assert len(shown) == 1
        assert "nonce" not in shown[0]
    assert [found["text"] for found in system.history(STREAM)].count("once") == 1


# -- a client that is not ours ---------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_the_websockets_library(system: System, bystanders: Bystanders, codec: str) -> None:
    decode = json.loads if codec == "json" else lambda data: msgpack.unpackb(data)[3]
    encode = json.dumps if codec == "json" else msgpack.packb
    token = token_for(system, f"lib-{codec}")
    with connect(
        system.stream(STREAM),
        subprotocols=[f"uproar.v1.{codec}"],
        additional_headers={"Authorization": f"Bearer {token}"},
        open_timeout=10,
        close_timeout=5,
    ) as client:
        assert client.subprotocol == f"uproar.v1.{codec}"
        welcome = decode(client.recv(10))[0]
        assert (welcome["type"] if codec == "json" else welcome[0]) in ("WELCOME", 0)
        client.ping(b"are you there").wait(10)
        client.send(encode([{"type": "COMMENT", "text": f"by {codec}", "nonce": "lib"}]))
        kinds: set[Any] = set()
        while not kinds >= ({"ACK", "COMMENT"} if codec == "json" else {6, 1}):
            kinds |= {e["type"] if codec == "json" else e[0] for e in decode(client.recv(10))}
    assert client.close_code == 1000
    for other in bystanders.viewers.values():
        other.event("COMMENT", text=f"by {codec}")
