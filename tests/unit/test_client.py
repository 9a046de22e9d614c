"""The client's core by bytes and clocks, and the Viewer against another implementation's server."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit import ws_peer
from tests.unit.ws_peer import Peer
from uproar import codes, wire
from uproar.client import ClientCore, Closed, Disconnected, State, Viewer, stream_url
from uproar.frames import Close, FrameParser, Opcode, Text, encode, encode_close
from uproar.wire import Retry

URL = "ws://chat.example:8080/stream/demo"
DEADLINE_S = 5.0


@pytest.fixture
def peer() -> Iterator[Peer]:
    with ws_peer.running() as running:
        yield running


def answer(request: bytes, *, protocol: str = "uproar.v1.json", accept: str = "") -> bytes:
    key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return (
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: keep-alive, Upgrade"
        f"\r\nSec-WebSocket-Accept: {accept or base64.b64encode(digest).decode()}"
        f"\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    ).encode()


def message(*events: dict[str, Any]) -> bytes:
    return encode(Opcode.TEXT, json.dumps(events).encode())


def welcome(offset: int, epoch: str = "e1", recovered: bool | None = None) -> dict[str, Any]:
    return {
        "type": "WELCOME",
        "offset": offset,
        "epoch": epoch,
        "session": "g1-1",
        "recovered": recovered,
        "ping_s": 30.0,
    }


def comment(offset: int, **more: Any) -> dict[str, Any]:
    return {"type": "COMMENT", "offset": offset, "text": "x", **more}


def opened(**options: Any) -> ClientCore:
    core = ClientCore(URL, **options)
    core.begin(0.0)
    assert core.receive(answer(core.outgoing()), 0.0) == []
    assert core.state is State.OPEN
    return core


def reopened(core: ClientCore, now: float = 0.0) -> ClientCore:
    core.begin(now)
    core.receive(answer(core.outgoing()), now)
    return core


def offsets(events: list[dict[str, Any]]) -> list[int]:
    return [event["offset"] for event in events if event["type"] == "COMMENT"]


def said(core: ClientCore) -> list[Any]:
    """What the core wrote, as a server reads it."""
    server = FrameParser(role="server", max_message=65536)
    messages = server.feed(core.outgoing())
    assert server.error is None
    return messages


# The handshake


def test_handshake_says_who_and_where() -> None:
    core = ClientCore(URL, codec="msgpack", token="t.o.k", backlog=7, rate=20)
    core.begin(0.0)
    head = core.outgoing().decode()
    assert head.startswith("GET /stream/demo?backlog=7&rate=20 HTTP/1.1\r\n")
    assert "\r\nHost: chat.example:8080\r\n" in head
    assert "\r\nAuthorization: Bearer t.o.k\r\n" in head
    assert "\r\nSec-WebSocket-Protocol: uproar.v1.msgpack\r\n" in head
    assert head.endswith("\r\n\r\n")


def test_token_goes_where_it_is_asked_to() -> None:
    by_query = ClientCore(URL, token="t.o.k", token_by="query")
    assert by_query.target() == "/stream/demo?access_token=t.o.k"
    by_protocol = ClientCore(URL, token="t.o.k", token_by="subprotocol")
    by_protocol.begin(0.0)
    head = by_protocol.outgoing().decode()
    assert "Protocol: uproar.v1.json, uproar.token.t.o.k\r\n" in head
    assert "Authorization" not in head


def test_urls() -> None:
    assert stream_url("http://h:1/", "DEMO") == "ws://h:1/stream/demo"
    assert stream_url("https://h", "a") == "wss://h/stream/a"
    assert stream_url("ws://h:1/base", "a/b") == "ws://h:1/base/stream/a%2Fb"
    secure = ClientCore("wss://h/stream/a")
    assert (secure.secure, secure.host, secure.port) == (True, "h", 443)
    with pytest.raises(ValueError, match="not a URL of a stream"):
        ClientCore("h:8080/stream/a")


@pytest.mark.parametrize(
    ("right", "wrong", "said_of_it"),
    [
        (b"upgrade: WebSocket", b"upgrade: h2c", "does not upgrade"),
        (b"keep-alive, Upgrade", b"keep-alive", "does not say Upgrade"),
        (b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: x\r\n\r\n", "not offered"),
    ],
)
def test_wrong_header_in_the_answer_is_final(right: bytes, wrong: bytes, said_of_it: str) -> None:
    core = ClientCore(URL)
    core.begin(0.0)
    core.receive(answer(core.outgoing()).replace(right, wrong), 0.0)
    assert core.closed is not None
    assert said_of_it in core.closed.reason
    assert core.retry_after() is None


@pytest.mark.parametrize(
    ("given", "said_of_it"),
    [
        ({"accept": "AAAA"}, "Accept does not fit"),
        ({"protocol": "uproar.v1.msgpack"}, "does not choose uproar.v1.json"),
    ],
)
def test_wrong_answer_to_the_handshake_is_final(given: dict[str, str], said_of_it: str) -> None:
    core = ClientCore(URL)
    core.begin(0.0)
    core.receive(answer(core.outgoing(), **given), 0.0)
    assert core.closed is not None
    assert said_of_it in core.closed.reason
    assert core.retry_after() is None


@pytest.mark.parametrize(
    ("head", "retry"),
    [
        (b"HTTP/1.1 503 Full\r\nRetry-After: 7\r\n\r\n", Retry.LATER),
        (b"HTTP/1.1 429 Slow\r\n\r\n", Retry.LATER),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", Retry.NEVER),
        (b"SSH-2.0-hello\r\n\r\n", Retry.NEVER),
        (b"x" * 20_000, Retry.NEVER),
    ],
)
def test_handshake_refused(head: bytes, retry: Retry) -> None:
    core = ClientCore(URL)
    core.begin(0.0)
    core.receive(head, 0.0)
    assert core.closed is not None
    assert core.closed.retry is retry
    if b"Retry-After" in head:
        delay = core.retry_after()
        assert delay is not None
        assert 7.0 <= delay <= 7.2


def test_handshake_and_first_message_at_every_cut() -> None:
    for cut in range(1, 400):
        core = ClientCore(URL)
        core.begin(0.0)
        data = answer(core.outgoing()) + message(welcome(5), comment(6))
        events = core.receive(data[:cut], 0.0) + core.receive(data[cut:], 0.0)
        assert [event["type"] for event in events] == ["WELCOME", "COMMENT"]


def test_handshake_without_an_answer_is_given_up() -> None:
    core = ClientCore(URL)
    core.begin(0.0)
    core.tick(9.0)
    assert core.closed is None
    core.tick(11.0)
    assert core.closed is not None
    assert core.closed.retry is Retry.YES


# Position and resume


def test_position_is_the_largest_of_what_the_docs_name() -> None:
    core = opened()
    steps: list[tuple[dict[str, Any], int]] = [
        (welcome(100), 100),
        (comment(103), 103),
        (comment(50, historical=True), 103),
        ({"type": "COMMENT_DELETED", "comment_id": "x", "offset": 107}, 107),
        ({"type": "USER_REMOVED", "user_id": "x", "offset": 110}, 110),
        ({"type": "CLEARED", "offset": 111}, 111),
        ({"type": "VIEWERS", "count": 1, "position": 120}, 120),
        ({"type": "PONG", "position": 118, "server_time": 0}, 120),
        ({"type": "ACK", "nonce": "n", "offset": 999}, 120),
        ({"type": "GAP", "from": 120, "to": 130, "reason": "too_slow"}, 130),
        ({"type": "NEW_THING", "offset": 5000}, 130),
    ]
    for event, position in steps:
        assert core.receive(message(event), 0.0) == [event]
        assert core.position == position
    core.lost("cut", 1.0)
    assert core.target() == "/stream/demo?epoch=e1&offset=130"


def test_resumed_events_at_or_below_the_position_are_dropped_and_counted() -> None:
    core = opened()
    core.receive(message(welcome(100), comment(103), comment(106)), 0.0)
    core.lost("cut", 1.0)
    reopened(core)
    resumed = message(welcome(106, recovered=True), comment(103), comment(106), comment(109))
    assert offsets(core.receive(resumed, 2.0)) == [109]
    assert core.repeats == 2
    assert offsets(core.receive(message(comment(109), comment(112)), 2.0)) == [112]
    assert core.repeats == 3


def test_what_is_folded_into_a_gap_is_kept() -> None:
    core = opened()
    deleted = {"type": "COMMENT_DELETED", "comment_id": "x", "offset": 105}
    gap = {"type": "GAP", "from": 100, "to": 200, "reason": "too_slow"}
    events = core.receive(message(welcome(100), gap, deleted, comment(203)), 0.0)
    assert deleted in events
    assert offsets(events) == [203]
    assert core.repeats == 0


@pytest.mark.parametrize("epoch", ["e1", "e2"])
def test_failed_recovery_begins_anew_below(epoch: str) -> None:
    core = opened()
    core.receive(message(welcome(1000), comment(1003)), 0.0)
    core.lost("cut", 1.0)
    reopened(core)
    events = core.receive(
        message(welcome(10, epoch, False), comment(8, historical=True), comment(13)), 2.0
    )
    assert offsets(events) == [8, 13]
    assert (core.epoch, core.position, core.repeats) == (epoch, 13, 0)


def test_cheap_following_refuses_what_needs_a_look() -> None:
    core = opened()
    core.receive(message(welcome(100)), 0.0)
    assert core.advance(103, 109)
    assert core.position == 109
    assert not core.advance(109, 112)
    assert core.position == 109


# Keeping alive, closing, trying again


def test_pings_are_answered_and_sent() -> None:
    core = opened()
    core.receive(message(welcome(1)) + encode(Opcode.PING, b"you?"), 0.0)
    assert [type(each).__name__ for each in said(core)] == ["Pong"]
    core.tick(23.0)
    assert said(core) == []
    core.tick(24.5)
    assert said(core) == [Text('{"type":"PING"}')]
    core.tick(60.0)
    assert core.closed is None
    core.tick(66.0)
    assert core.closed is not None
    assert "nothing came for 66 s" in core.closed.reason


@pytest.mark.parametrize("code", codes.CLOSE_CODES)
def test_every_close_code_is_obeyed(code: int) -> None:
    core = opened()
    core.receive(encode_close(code, "because"), 1.0)
    assert core.closed is not None
    assert core.closed[:3] == (code, "because", wire.retry_of(code))
    assert said(core) == [Close(code, "")]
    assert (core.retry_after() is None) == (codes.CLOSE_CODES[code].again in ("no", "token"))


def test_new_token_opens_the_way_again() -> None:
    core = opened(token="old")
    core.receive(encode_close(4001, "expired"), 1.0)
    assert core.retry_after() is None
    core.set_token("new")
    assert core.retry_after() is not None
    core.begin(2.0)
    assert b"Bearer new" in core.outgoing()


def test_back_off_is_jittered_doubles_and_is_bounded() -> None:
    spread: list[list[float]] = [[] for _ in range(10)]
    for seed in range(300):
        core = ClientCore(URL, backoff_s=1.0, backoff_max_s=20.0, chance=random.Random(seed))
        core.lost("refused", 0.0)
        for attempt in spread:
            delay = core.retry_after()
            assert delay is not None
            attempt.append(delay)
    for index, delays in enumerate(spread):
        bound = min(20.0, 2.0**index)
        assert max(delays) <= bound
        assert max(delays) > bound * 0.9
        assert min(delays) < bound * 0.1


def test_back_off_starts_anew_only_after_a_stable_connection() -> None:
    core = ClientCore(URL, chance=random.Random(1))
    for now, lived, attempts in ((0.0, 0.5, 1), (10.0, 0.5, 2), (20.0, 5.0, 1)):
        reopened(core, now)
        core.receive(message(welcome(1)), now)
        core.lost("cut", now + lived)
        core.retry_after()
        assert core._attempts == attempts


def test_reconnect_is_followed_at_its_time() -> None:
    core = opened()
    core.receive(message(welcome(1), {"type": "RECONNECT", "after_ms": 2000}), 10.0)
    core.tick(11.9)
    assert core.state is State.OPEN
    core.tick(12.1)
    assert core.closed == Closed(1000, "moved as the server asked", Retry.YES, 0.0)
    assert said(core) == [Close(1000, "")]


def test_close_before_the_time_of_a_reconnect_waits_for_the_rest() -> None:
    core = opened()
    core.receive(message(welcome(1), {"type": "RECONNECT", "after_ms": 2000}), 10.0)
    core.receive(encode_close(1001), 10.5)
    delay = core.retry_after()
    assert delay is not None
    assert 1.5 <= delay <= 1.7


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (encode(Opcode.TEXT, b"x", mask=b"abcd"), 1002),
        (encode(Opcode.TEXT, b"\xff"), 1007),
        (encode(Opcode.TEXT, b"{}"), 1007),
        (encode(Opcode.TEXT, b'[{"type":"COMMENT"}]'), 1007),
        (encode(Opcode.BINARY, b"x"), 1003),
    ],
)
def test_server_that_breaks_the_protocol_is_left(data: bytes, code: int) -> None:
    core = opened()
    core.receive(data, 0.0)
    assert core.closed is not None
    assert core.closed.code == code
    assert core.retry_after() is None
    assert [each.code for each in said(core) if isinstance(each, Close)] == [code]


# The Viewer, over real sockets


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_viewer_reads_writes_and_says_goodbye(peer: Peer, codec: Any) -> None:
    peer.add("from before")
    viewer = Viewer(peer.url, codec=codec, token="a.b.c")
    first = viewer.connect(DEADLINE_S)
    assert first["recovered"] is None
    assert peer.headers[0]["Authorization"] == "Bearer a.b.c"
    nonce = viewer.send_comment("hé 🎉", reply_to=peer.events[0]["id"])
    # COMMENT and ACK may come in any order; wait_for finds each.
    ack = viewer.wait_for(lambda event: event.get("nonce") == nonce, DEADLINE_S)
    own = viewer.wait_for(lambda event: event.get("id") == ack["id"], DEADLINE_S)
    assert own["text"] == "hé 🎉"
    old = viewer.recv(0)
    assert [(event["text"], event["historical"]) for event in old] == [("from before", True)]
    with pytest.raises(TimeoutError, match="came: nothing"):
        viewer.wait_for(lambda event: True, 0.05)
    connection = peer.connections[0]
    viewer.close()
    ws_peer.until(lambda: not peer.connections)
    assert connection.close_code == 1000
    with pytest.raises(Disconnected):
        viewer.send_comment("too late")


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_viewer_reads_messages_that_refer_to_earlier_ones(peer: Peer, codec: Any) -> None:
    viewer = Viewer(peer.url, codec=codec, deflate=True, reconnect=True)
    for number in range(3):  # a new connection begins anew
        viewer.connect(DEADLINE_S)
        assert viewer.core.deflated
        for index in range(20):
            own = peer.add(f"the same again {index % 3} {number}")
            found = viewer.wait_for(lambda event, own=own: event.get("id") == own["id"], DEADLINE_S)
            assert found["text"] == own["text"]
        viewer.cut()
    assert viewer.core.repeats == 0
    viewer.close()


def test_viewer_without_reconnect_tells_how_it_ended(peer: Peer) -> None:
    viewer = Viewer(peer.url)
    viewer.connect(DEADLINE_S)
    peer.close_all(4001, "the token has expired; get a new one")
    with pytest.raises(Disconnected, match="4001: the token has expired"):
        viewer.recv(DEADLINE_S)


def test_viewer_refused_at_the_door(peer: Peer) -> None:
    peer.on_connect = [(4004, "no such stream")]
    with pytest.raises(Disconnected, match="4004") as caught:
        Viewer(peer.url, reconnect=True).connect(DEADLINE_S)
    assert caught.value.closed.retry is Retry.NEVER


def test_viewer_that_finds_nobody() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, never listening
        url = f"ws://127.0.0.1:{taken.getsockname()[1]}/stream/demo"
        with pytest.raises(Disconnected, match="can't be reached"):
            Viewer(url).connect(DEADLINE_S)
        with pytest.raises(TimeoutError):
            Viewer(url, reconnect=True).connect(0.3)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("how", ["cut", "closed", "cut by us"])
def test_viewer_heals_a_cut_and_misses_nothing(peer: Peer, codec: Any, how: str) -> None:
    viewer = Viewer(peer.url, codec=codec, reconnect=True)
    viewer.connect(DEADLINE_S)
    for index in range(5):
        peer.add(f"{index}")
    got: list[str] = []
    while len(got) < 5:
        got += [event["text"] for event in viewer.recv(DEADLINE_S) if event["type"] == "COMMENT"]
    if how == "cut":
        peer.cut_all()
    elif how == "closed":
        peer.close_all(1001)
    else:
        viewer.cut()
    if how != "closed":  # there the viewer has to answer first
        ws_peer.until(lambda: not peer.connections)
    for index in range(5, 10):
        peer.add(f"{index}")
    again = viewer.wait_for(lambda event: event["type"] == "WELCOME", DEADLINE_S)
    assert again["recovered"] is True
    assert f"offset={peer.events[4]['offset']}" in peer.targets[1]
    while len(got) < 10:
        got += [event["text"] for event in viewer.recv(DEADLINE_S) if event["type"] == "COMMENT"]
    assert got == [f"{index}" for index in range(10)]
    assert viewer.core.repeats == 0
    viewer.close()


def test_viewer_keeps_the_connection_alive_by_itself(peer: Peer) -> None:
    viewer = Viewer(peer.url)  # the peer asks for a ping each second
    viewer.connect(DEADLINE_S)
    viewer.wait_for(lambda event: event["type"] == "PONG", DEADLINE_S)
    viewer.close()


def test_viewer_answers_protocol_pings(peer: Peer) -> None:
    viewer = Viewer(peer.url)
    viewer.connect(DEADLINE_S)
    ponged: threading.Event = peer.connections[0].ping("are you there")
    while not ponged.wait(0.01):
        viewer.recv(0.1)
    viewer.close()


GREENLETS = """
from gevent import monkey; monkey.patch_all()
import sys, gevent
from uproar.client import Viewer

def chat(number):
    viewer = Viewer(sys.argv[1], codec="msgpack", reconnect=True)
    viewer.connect(5)
    wanted = {f"{each}" for each in range(10)}
    viewer.send_comment(f"{number}")
    while wanted:
        wanted -= {each["text"] for each in viewer.recv(5) if each["type"] == "COMMENT"}
    viewer.close()

with gevent.Timeout(15):
    gevent.joinall([gevent.spawn(chat, number) for number in range(10)], raise_error=True)
"""


def test_viewers_in_greenlets(peer: Peer) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", GREENLETS, peer.url],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=30,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    assert len(peer.events) == 10
