"""The compiled swarm: what it says of a server must be so, and a wrong server must move it.

A server of sockets alone plays what no right server would: events out of order, holes, compressed
messages beside plain ones, frames in single bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from _fastpath import bare
from _fastpath.swarm import Swarm
from benchmarks.crowd import GUID, NONCE, STAMP, Crowd, Seen, percentile_ms
from benchmarks.facts import look
from tests.unit import ws_peer
from tests.unit.ws_peer import Peer
from uproar import swarm as plain
from uproar.swarm import stamp, stamp_of

DEADLINE_S = 20.0
KEY = base64.b64encode(b"k" * 16).decode()
ACCEPT = base64.b64encode(hashlib.sha1((KEY + GUID).encode()).digest())
LOOPBACK = 0x7F000001


def head(protocol: str = "uproar.v1.json", query: str = "", more: str = "") -> bytes:
    return (
        f"GET /stream/demo?{query} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: {protocol}\r\n{more}\r\n"
    ).encode()


def comment(offset: int, text: str = "x") -> dict[str, Any]:
    return {"type": "COMMENT", "offset": offset, "text": text, "user": {"id": "u"}}


def frame(payload: bytes, *, opcode: int = 1, rsv1: bool = False, fin: bool = True) -> bytes:
    first = opcode | (0x40 if rsv1 else 0) | (0x80 if fin else 0)
    if len(payload) < 126:
        return bytes([first, len(payload)]) + payload
    if len(payload) < 1 << 16:
        return bytes([first, 126]) + len(payload).to_bytes(2, "big") + payload
    return bytes([first, 127]) + len(payload).to_bytes(8, "big") + payload


def said(*events: dict[str, Any]) -> bytes:
    return frame(json.dumps(events).encode())


WELCOME = said({"type": "WELCOME", "offset": 0})


class Wrong:
    """A server of one listening socket that sends what it is told, right or not."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.listener.settimeout(DEADLINE_S)
        self.taken: list[socket.socket] = []

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def accept(self, swarm: Swarm, *, answer: str = "101 Switching Protocols", more: str = "",
               accept: bytes = ACCEPT) -> socket.socket:  # fmt: skip
        """Take a connection and shake hands while the swarm runs."""
        found: list[socket.socket] = []

        def work() -> None:
            one, _ = self.listener.accept()
            one.settimeout(DEADLINE_S)
            request = b""
            while b"\r\n\r\n" not in request:
                request += one.recv(4096)
            one.sendall(
                f"HTTP/1.1 {answer}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"sec-websocket-accept: {accept.decode()}\r\n{more}\r\n".encode()
            )
            found.append(one)

        thread = threading.Thread(target=work)
        thread.start()
        run(swarm, lambda: bool(found))
        thread.join()
        self.taken.append(found[0])
        return found[0]

    def close(self) -> None:
        for one in [self.listener, *self.taken]:
            one.close()


def run(swarm: Swarm, until: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not until():
        assert time.monotonic() < end, "the condition did not come true in time"
        swarm.run(2)


@pytest.fixture
def swarm() -> Iterator[Swarm]:
    one = Swarm(look)
    yield one
    one.close()


@pytest.fixture
def wrong() -> Iterator[Wrong]:
    server = Wrong()
    yield server
    server.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    with ws_peer.running() as running:
        yield running


def add(swarm: Swarm, port: int, count: int = 1, **more: Any) -> int:
    more.setdefault("decode_every", 1)
    heads = more.pop("heads", [head()])
    return swarm.add(LOOPBACK, port, count, heads, ACCEPT, **more)


def port_of(peer: Peer) -> int:
    return urlsplit(peer.url).port or 0


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def latencies(swarm: Swarm, group: int) -> int:
    return sum(count for _, count in swarm.latencies(group))


# -- a right server -------------------------------------------------------------------------------


def test_it_sees_what_the_plain_swarm_sees(peer: Peer, swarm: Swarm) -> None:
    peer.add("from before")
    groups = [
        add(swarm, port_of(peer), 30, heads=[head(f"uproar.v1.{codec}")], binary=codec == "msgpack",
            decode_every=2)
        for codec in ("json", "msgpack")
    ]  # fmt: skip
    with plain.Swarm(seed=1) as other:
        member = other.add(peer.url, measure=True)
        assert other.run(lambda: member.live, DEADLINE_S)
        run(swarm, lambda: all(swarm.counts(group)["live"] == 30 for group in groups))
        writer = threading.Thread(target=lambda: [peer.add(stamp(f"{i}")) for i in range(50)])
        writer.start()
        for group in groups:
            run(swarm, lambda group=group: swarm.counts(group)["messages_least"] == 51)  # type: ignore[misc]
        writer.join()
        assert other.run(lambda: member.comments == 50, DEADLINE_S)
        for group in groups:
            counts = swarm.counts(group)
            assert counts["position_least"] == counts["position_most"] == member.position
            assert counts["messages_least"] == counts["messages_most"] == member.messages == 51
            assert counts["comments"] == 15 * member.comments == 15 * 50
            assert counts["historical"] == 15 * len(member.historical) == 15
            assert (counts["repeats"], counts["missing"], counts["malformed"]) == (0, 0, 0)
            assert latencies(swarm, group) == 15 * len(member.latencies)
        assert swarm.offsets() == len(member.offsets) == 50


def test_members_send_in_turn_and_stamps_are_filled(peer: Peer, swarm: Swarm) -> None:
    group = add(swarm, port_of(peer), 4)
    run(swarm, lambda: swarm.counts(group)["live"] == 4)
    text = json.dumps({"type": "COMMENT", "text": "hi ~", "nonce": "@"})
    text = text.replace("~", f"~{STAMP}").replace("@", NONCE)
    began = time.monotonic()
    job = swarm.send(group, 1, text.encode(), 100.0, total=30,
                     stamp_at=text.index(STAMP), nonce_at=text.index(NONCE))  # fmt: skip
    run(swarm, lambda: swarm.counts(group)["acks"] == 30)
    assert 0.25 <= time.monotonic() - began < DEADLINE_S
    assert swarm.stop(group, job) == 30
    assert len({command["nonce"] for command in peer.commands}) == 30
    for command in peer.commands:
        sent = stamp_of(command["text"])
        assert sent is not None
        assert began <= sent <= time.monotonic()
    counts = swarm.counts(group)
    assert counts["comments"] == 4 * 30
    assert latencies(swarm, group) == 4 * 30
    swarm.reset()
    swarm.send(group, 1, b'{"type":"PING"}', 200.0, total=8)
    run(swarm, lambda: swarm.counts(group)["messages"] == 8)
    assert swarm.counts(group)["messages_most"] == 2


def test_protocol_pings_go_out_at_their_rate(peer: Peer, swarm: Swarm) -> None:
    group = add(swarm, port_of(peer), 3)
    run(swarm, lambda: swarm.counts(group)["live"] == 3)
    job = swarm.send(group, 9, b"", 50.0)
    swarm.run(500)
    assert 20 <= swarm.stop(group, job) <= 27
    run(swarm, lambda: swarm.counts(group)["pongs"] == swarm.counts(group)["sent"])


def test_members_that_churn_close_in_three_ways_and_stop_at_their_number(
    peer: Peer, swarm: Swarm
) -> None:
    before = open_files()
    group = add(swarm, port_of(peer), 5, churn=40, decode_every=0)
    run(swarm, lambda: swarm.counts(group)["left"] == 40)
    run(swarm, lambda: swarm.counts(group)["open"] == 0 and not peer.connections)
    counts = swarm.counts(group)
    assert counts["connects"] == counts["welcomed"] == 40
    assert (counts["failed"], counts["refused"], counts["cut"]) == (0, 0, 0)
    run(swarm, lambda: open_files() <= before)


def test_members_that_leave_do_it_politely(peer: Peer, swarm: Swarm) -> None:
    group = add(swarm, port_of(peer), 3)
    run(swarm, lambda: swarm.counts(group)["live"] == 3)
    connection = peer.connections[2]
    swarm.close_members(group, 1)
    run(swarm, lambda: len(peer.connections) == 1)
    assert connection.close_code in (1000, None)
    assert swarm.counts(group)["open"] == 1


# -- a wrong server -------------------------------------------------------------------------------


def test_wrong_order_and_repeats_are_seen(swarm: Swarm, wrong: Wrong) -> None:
    group = add(swarm, wrong.port)
    one = wrong.accept(swarm)
    one.sendall(WELCOME + said(comment(5), comment(3)) + said(comment(5)) + said(comment(6)))
    run(swarm, lambda: swarm.counts(group)["messages"] == 4)
    counts = swarm.counts(group)
    assert (counts["repeats"], counts["comments"]) == (2, 2)


def test_a_comment_that_only_others_got_is_missing_unless_a_gap_names_it(
    swarm: Swarm, wrong: Wrong
) -> None:
    whole = add(swarm, wrong.port)
    wrong.accept(swarm).sendall(WELCOME + said(comment(2), comment(4)) + said(comment(7)))
    lacks = add(swarm, wrong.port)
    wrong.accept(swarm).sendall(WELCOME + said(comment(2)) + said(comment(7)))
    told = add(swarm, wrong.port)
    gap = said({"type": "GAP", "from": 2, "to": 5, "reason": "too_slow"}, comment(7))
    wrong.accept(swarm).sendall(WELCOME + said(comment(2)) + gap)
    behind = add(swarm, wrong.port)
    wrong.accept(swarm).sendall(WELCOME + said(comment(2)))
    late = add(swarm, wrong.port)
    wrong.accept(swarm).sendall(said({"type": "WELCOME", "offset": 4}) + said(comment(7)))
    groups = (whole, lacks, told, behind, late)
    run(swarm, lambda: sum(swarm.counts(group)["messages"] for group in groups) == 13)
    assert [swarm.counts(group)["missing"] for group in groups] == [0, 1, 0, 0, 0]
    assert swarm.counts(told)["gaps"] == 1
    assert swarm.offsets() == 3
    # One that says it stands where it does not.
    wrong.taken[3].sendall(said({"type": "VIEWERS", "count": 1, "position": 7}))
    run(swarm, lambda: swarm.counts(behind)["messages"] == 3)
    assert swarm.counts(behind)["missing"] == 2


@pytest.mark.parametrize("piece", [1, 3, 4096])
def test_a_shared_window_with_plain_and_fragmented_messages_in_it(
    swarm: Swarm, wrong: Wrong, piece: int
) -> None:
    group = add(swarm, wrong.port)
    one = wrong.accept(swarm, more="Sec-WebSocket-Extensions: permessage-deflate\r\n")
    assert swarm.counts(group)["deflated"] == 1
    window = zlib.compressobj(6, zlib.DEFLATED, -15)

    def packed(*events: dict[str, Any]) -> bytes:
        data = window.compress(json.dumps(events).encode())
        return (data + window.flush(zlib.Z_SYNC_FLUSH))[:-4]

    sent = WELCOME
    text = "the same words again and again, so that messages refer to earlier ones"
    for offset in range(1, 30, 3):
        sent += frame(packed(comment(offset, text)), rsv1=True)
        sent += said(comment(offset + 1, "plain"))
        data = packed(comment(offset + 2, text + "!" * 300 * offset))
        sent += frame(data[:5], rsv1=True, fin=False) + frame(b"p", opcode=9)
        sent += frame(data[5:], opcode=0)
    for at in range(0, len(sent), piece):
        one.sendall(sent[at : at + piece])
        if piece < 4096 and at % 50 == 0:
            swarm.run(0)
    run(swarm, lambda: swarm.counts(group)["comments"] == 30)
    counts = swarm.counts(group)
    assert counts["repeats"] == counts["uninflatable"] == counts["malformed"] == 0
    assert counts["pings"] == 10
    assert counts["frames"] == counts["messages"] + 10 == 41
    one.sendall(frame(b"\xff\xff\xff\xff", rsv1=True))
    run(swarm, lambda: swarm.counts(group)["open"] == 0)
    assert swarm.counts(group)["uninflatable"] == 1


@pytest.mark.parametrize(
    "sent",
    [
        said({"type": "COMMENT", "text": "without an offset"}),
        frame(b"[", opcode=1),
        frame(b"\x91\xc0", opcode=2),
        frame(b"x" * 126, opcode=9),
        frame(b"x", opcode=0),
        frame(b"x", opcode=3),
        bytes([0x91, 1]) + b"x",
        bytes([0x81, 0x81]) + b"keys" + b"x",
        bytes([0x81, 127]) + b"\x7f" * 8,
    ],
)
def test_what_is_no_proper_message_ends_the_member(swarm: Swarm, wrong: Wrong, sent: bytes) -> None:
    group = add(swarm, wrong.port)
    wrong.accept(swarm).sendall(WELCOME + sent)
    run(swarm, lambda: swarm.counts(group)["malformed"] == 1)
    assert swarm.counts(group)["open"] == 0


def test_refusals_closes_and_cuts_are_told_apart(swarm: Swarm, wrong: Wrong) -> None:
    group = add(swarm, wrong.port, 4, at_once=1)
    wrong.accept(swarm, answer="503 Full")
    run(swarm, lambda: swarm.counts(group)["refused"] == 1)
    assert swarm.counts(group)["last_status"] == 503
    wrong.accept(swarm, accept=base64.b64encode(b"another key's accept"))
    run(swarm, lambda: swarm.counts(group)["refused"] == 2)
    wrong.accept(swarm).sendall(WELCOME + frame((4008).to_bytes(2, "big"), opcode=8))
    run(swarm, lambda: swarm.counts(group)["ended"] == 1)
    assert swarm.counts(group)["last_close"] == 4008
    one = wrong.accept(swarm)
    one.sendall(WELCOME)
    run(swarm, lambda: swarm.counts(group)["live"] == 1)
    one.close()
    run(swarm, lambda: swarm.counts(group)["cut"] == 1)
    assert swarm.counts(group)["open"] == 0


def test_slow_readers_read_at_their_pace_and_others_never(swarm: Swarm, wrong: Wrong) -> None:
    slow = add(swarm, wrong.port, read_bytes_s=20_000, receive_buffer=4096)
    one = wrong.accept(swarm)
    never = add(swarm, wrong.port, never_reads=True)
    two = wrong.accept(swarm)
    for each in (one, two):
        each.setblocking(False)
        each.send(WELCOME + frame(b"[" + b" " * 100_000 + b"]"))
    run(swarm, lambda: swarm.counts(slow)["live"] == swarm.counts(never)["live"] == 1)
    swarm.reset()
    swarm.run(1000)
    assert 14_000 <= swarm.counts(slow)["bytes"] <= 24_000
    assert swarm.counts(never)["bytes"] == 0
    assert swarm.counts(never)["open"] == 1


def test_a_dead_port_is_counted(swarm: Swarm) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        group = add(swarm, taken.getsockname()[1], 3)
        run(swarm, lambda: swarm.counts(group)["failed"] == 3)
    assert os.strerror(swarm.counts(group)["last_errno"]) == "Connection refused"


def test_what_the_digest_raises_comes_out(wrong: Wrong) -> None:
    def broken(payload: bytes, binary: bool) -> None:
        raise LookupError("no digest today")

    swarm = Swarm(broken)
    add(swarm, wrong.port)
    with pytest.raises(LookupError, match="no digest"):
        wrong.accept(swarm).sendall(WELCOME)
        run(swarm, lambda: False)
    swarm.close()
    with pytest.raises(ValueError, match="closed"):
        swarm.run(0)


# -- the processes --------------------------------------------------------------------------------


def test_a_crowd_is_the_same_in_a_process_of_its_own(peer: Peer) -> None:
    with Crowd() as crowd:
        group = crowd.add(peer.url, 20, codec="json", decode_every=4)
        crowd.join(group, 20, DEADLINE_S)
        crowd.reset()
        for number in range(10):
            peer.add(stamp(f"{number}"))
        assert crowd.wait(lambda seen: seen.comments == 5 * 10, group, deadline_s=DEADLINE_S)
        seen = crowd.seen(group)
        assert seen.messages == 20 * 10
        assert 0 < seen.latency_ms(0.5) <= seen.latency_ms(0.99) < DEADLINE_S * 1000
        assert crowd.offsets() == 10
        with pytest.raises(RuntimeError, match="there is no group 7"):
            crowd.leave(7)
        share, lag_ms, said_so = crowd.limit()
        assert (share < 0.9) == (said_so == "")
        assert lag_ms > 0


def test_percentiles_of_merged_histograms() -> None:
    groups = [{"latencies": [[1_000_000, 98]]}, {"latencies": [[1_000_000, 1], [9_000_000, 1]]}]
    seen = Seen(groups)
    assert seen.buckets == [(1_000_000, 99), (9_000_000, 1)]
    assert seen.latency_ms(0.99) == 1.0
    assert seen.latency_ms(0.991) == 9.0
    assert percentile_ms([], 0.5) != percentile_ms([], 0.5)  # NaN


def test_the_bare_sender_sends_what_it_says() -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    try:
        began = time.monotonic()
        found = bare.run([one.fileno() for one, _ in pairs], b"x" * 100, 50.0, 10)
        assert time.monotonic() - began >= 0.17
        assert (found["sends"], found["blocked"], found["partial"]) == (30, 0, 0)
        assert 0 < found["cpu_ns"] < found["wall_ns"]
        for _, other in pairs:
            assert len(other.recv(10_000)) == 1000
        pairs[0][0].setblocking(False)
        full = bare.run([pairs[0][0].fileno()], b"x" * 60_000, 0.0, 200)
        assert full["blocked"] > 0
    finally:
        for one, other in pairs:
            one.close()
            other.close()
