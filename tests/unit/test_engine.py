"""An engine by itself: queues, audiences, windows, closes and floods, over real sockets.

What the compiled engine is proven with: every test runs on both where both are there.
"""

from __future__ import annotations

import json
import queue
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import pytest

from gateway.engine import HURRY_MEMBERS, HURRY_S, KEYFRAME_S
from tests.unit import test_deflate, test_frames
from tests.unit.engine_driver import (
    EACH,
    ENGINES,
    MASK,
    WAIT_S,
    WINDOW,
    Client,
    Engine,
)
from uproar import deflate
from uproar.frames import Binary, Close, Message, Opcode, Ping, Pong, Text, encode

FIRST = "Sec-WebSocket-Protocol: a.v1"
SECOND = "Sec-WebSocket-Protocol: a.v2"
SLACK_S = 0.02  # between two clocks


@pytest.fixture(scope="module", params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine(kind: str) -> Iterator[Engine]:
    running = Engine(kind)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def hung_up(engine: Engine) -> Iterator[None]:
    """No connection outlives its test."""
    yield
    engine.hang_up()


def test_whole_messages_go_up_and_frames_go_down(engine: Engine) -> None:
    client = Client(engine, "/a/b?c=d", "Sec-WebSocket-Protocol: x, a.v2, a.v1")
    assert b"Sec-WebSocket-Protocol: a.v2\r\n" in client.head
    client.send(Opcode.TEXT, "é".encode())
    client.send(Opcode.BINARY, b"\0\1\2")
    assert engine.event("Received", client.sid)[2:4] == [1, "str"]
    assert engine.event("Received", client.sid)[2:4] == [3, "bytes"]
    assert engine.tell("send", client.sid, "hello") is True
    assert client.next() == Binary(b"hello"), "the subprotocol is not the engine's first"
    client.send(Opcode.PING, b"are you")
    assert client.next() == Pong(b"are you")
    client.sock.close()
    assert engine.event("Closed", client.sid)[2:] == [1006, 0]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [((), Text("é")), ((FIRST,), Text("é")), ((SECOND,), Binary("é".encode()))],
)
def test_what_is_for_one_is_text_or_binary_by_its_subprotocol(
    engine: Engine, lines: tuple[str, ...], expected: Message
) -> None:
    client = Client(engine, "/x", *lines)
    engine.tell("send", client.sid, "é")
    assert client.next() == expected


def test_audiences(engine: Engine) -> None:
    one, two, other = (Client(engine) for _ in range(3))
    seven, eight = engine.tell("audience", "text"), engine.tell("audience", "binary", "none")
    assert 0 < seven != eight > 0
    for client in (one, two):
        engine.tell("join", client.sid, seven)
        assert engine.tell("audience_of", client.sid) == seven
    engine.tell("join", two.sid, eight)
    assert engine.tell("audience_of", other.sid) == 0
    assert sorted(engine.tell("sids", seven)) == sorted([one.sid, two.sid])
    assert engine.tell("members", seven) == 2
    assert engine.tell("broadcast", seven, "seven") == []
    assert engine.tell("broadcast", seven, "but one", [one.sid]) == []
    assert engine.tell("broadcast", eight, "eight") == []
    engine.tell("leave", two.sid, seven)
    assert engine.tell("audience_of", two.sid) == eight
    assert engine.tell("broadcast", seven, "again") == []
    assert engine.tell("broadcast", 99_999, "nobody") == []
    # Two bytes of a frame's head before each payload.
    assert engine.tell("sent_to", seven) == 2 * (2 + 5) + (2 + 7) + (2 + 5)
    assert engine.tell("sent_to", eight) == 2 + 5
    assert engine.tell("sent_to", 99_999) == 0
    for client in (one, two, other):
        assert engine.tell("send", client.sid, "end") is True
    told = {client.sid: [client.next() for _ in range(3)] for client in (one,)}
    told[two.sid] = [two.next() for _ in range(4)]
    assert told[one.sid] == [Text("seven"), Text("again"), Text("end")]
    assert told[two.sid] == [Text("seven"), Text("but one"), Binary(b"eight"), Text("end")]
    assert other.next() == Text("end")
    for client in (one, two, other):
        client.sock.close()
        engine.event("Closed", client.sid)
    assert engine.tell("broadcast", seven, "gone") == []
    assert engine.tell("members", seven) == 0
    assert engine.tell("sids", seven) == []


def test_an_audience_that_is_forgotten_has_nobody(engine: Engine) -> None:
    client = Client(engine)
    audience = engine.tell("audience", "text")
    engine.tell("join", client.sid, audience)
    engine.tell("forget", audience)
    assert engine.tell("broadcast", audience, "not for it") == []
    assert engine.tell("members", audience) == 0
    assert engine.tell("audience_of", client.sid) == 0
    assert engine.tell("audience", "text") != audience
    engine.tell("send", client.sid, "end")
    assert client.next() == Text("end")
    client.sock.close()
    assert engine.event("Closed", client.sid)[3] == 0


def fill(engine: Engine, audience: int, size: int = 20_000) -> int:
    """Broadcast until somebody's queue is full; return how many frames were taken."""
    for count in range(10_000):
        if engine.tell("broadcast", audience, f"{count} ".ljust(size, "x")):
            return count
    raise AssertionError("the queue has no bound")


def test_a_slow_viewer_is_named_gets_nothing_half_and_is_told_of_when_it_drains(
    engine: Engine,
) -> None:
    slow, quick = Client(engine), Client(engine)
    audience = engine.tell("audience", "text")
    engine.tell("join", slow.sid, audience)
    taken = fill(engine, audience)
    assert engine.tell("send", slow.sid, "more") is False
    engine.tell("join", quick.sid, audience)
    assert engine.tell("broadcast", audience, "for the quick") == [slow.sid]
    assert quick.next() == Text("for the quick")
    numbers = []
    while len(numbers) < taken:
        message = slow.next()
        assert isinstance(message, Text)
        numbers.append(int(message.text.split()[0]))
    assert numbers == list(range(taken)), "whole frames, in order, none that was refused"
    engine.event("Drained", slow.sid)
    assert engine.tell("send", slow.sid, "more") is True
    assert slow.next() == Text("more")


def test_old_bytes_are_too_much_as_well(kind: str) -> None:
    engine = Engine(kind, queue_s=0.2, queue_bytes=1 << 30)
    slow = Client(engine)
    audience = engine.tell("audience", "text")
    engine.tell("join", slow.sid, audience)
    began = time.monotonic()
    fill(engine, audience)
    assert time.monotonic() - began > 0.2
    engine.close()


def test_a_close_stands_behind_what_is_queued(engine: Engine) -> None:
    client = Client(engine)
    audience = engine.tell("audience", "text")
    engine.tell("join", client.sid, audience)
    taken = fill(engine, audience)
    engine.tell("close", client.sid, 4008, "too slow")
    assert engine.tell("members", audience) == 0
    assert engine.tell("broadcast", audience, "not for it") == []
    engine.tell("join", client.sid, audience)
    assert engine.tell("broadcast", audience, "nor this") == []
    engine.tell("send", client.sid, "nor this")
    got = [client.next() for _ in range(taken + 1)]
    assert got[-1] == Close(4008, "too slow")
    assert all(isinstance(message, Text) for message in got[:-1])
    assert client.next() is None, "and nothing after it"
    assert engine.event("Closed", client.sid)[3] == audience, "the one it was in"


def test_a_violation_is_told_to_a_viewer_that_lags(engine: Engine) -> None:
    client = Client(engine)
    audience = engine.tell("audience", "text")
    engine.tell("join", client.sid, audience)
    fill(engine, audience)
    client.sock.sendall(b"\xff\xff")
    assert engine.event("Closed", client.sid)[2:] == [1002, audience]
    last: Message | None = None
    while (message := client.next()) is not None:
        last = message
    assert isinstance(last, Close)
    assert last.code == 1002


def test_the_last_words_reach_one_that_is_still_sending(engine: Engine) -> None:
    client = Client(engine)
    client.sock.sendall(struct.pack("!BBQ", 0x82, 0xFF, 8 << 20))
    client.sock.sendall(MASK + bytes(8 << 20))
    last = client.next()
    assert isinstance(last, Close)
    assert last.code == 1009


def test_nothing_goes_up_behind_a_close(engine: Engine) -> None:
    client = Client(engine)
    engine.tell("close", client.sid, 4001, "expired")
    client.send(Opcode.TEXT, b"too late")
    client.send(Opcode.PING, b"too late")
    client.send(Opcode.CLOSE, b"\x0f\xa1")
    assert client.next() == Close(4001, "expired")
    assert client.next() is None
    assert engine.event("Closed", client.sid)[2] == 4001
    assert engine.hears_nothing_of(client.sid)


def test_one_that_does_not_answer_a_close_is_hung_up_on(engine: Engine) -> None:
    client = Client(engine)
    began = time.monotonic()
    engine.tell("close", client.sid, 4001, "expired")
    assert client.next() == Close(4001, "expired")
    assert client.next() is None
    assert time.monotonic() - began < 5
    engine.event("Closed", client.sid)


def test_a_flood_is_handed_up_while_it_lasts(engine: Engine) -> None:
    client, other = Client(engine), Client(engine)
    stop = threading.Event()

    def flood() -> None:
        data = encode(Opcode.TEXT, b"x" * 100, mask=MASK) * 100
        try:
            while not stop.is_set():
                client.sock.sendall(data)
        except OSError:
            pass

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        engine.event("Received", client.sid)
        for number in range(20):  # others are served between
            assert engine.tell("send", other.sid, str(number)) is True
            assert other.next() == Text(str(number))
        engine.tell("close", client.sid, 4029, "too many")
        engine.event("Closed", client.sid)
    finally:
        stop.set()
        try:
            client.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # hung up on already
        flooding.join(WAIT_S)


def test_a_silent_client_is_asked_once_and_then_gone(kind: str) -> None:
    engine = Engine(kind, idle_s=0.4)
    answers, silent = Client(engine), Client(engine)
    began = time.monotonic()
    assert answers.next() == Ping(b"")
    answers.send(Opcode.PONG)
    assert answers.next() == Ping(b"")
    assert silent.next() == Ping(b"")
    assert silent.next() is None
    assert 0.3 < time.monotonic() - began < 5
    assert engine.event("Closed", silent.sid)[2] == 1006
    engine.close()


def test_a_fault_above_costs_a_batch_not_the_process(engine: Engine) -> None:
    client = Client(engine)
    client.send(Opcode.TEXT, b"raise")
    client.send(Opcode.PING, b"alive?")
    assert client.next() == Pong(b"alive?")
    client.send(Opcode.BINARY, b"12345")
    assert engine.event("Received", client.sid)[2:4] == [5, "bytes"]
    client.sock.close()


def test_stop_accepting(kind: str) -> None:
    engine = Engine(kind)
    client = Client(engine)
    engine.tell("stop_accepting")
    assert engine.tell("send", client.sid, "still served") is True
    assert client.next() == Text("still served")
    client.send(Opcode.BINARY, b"x")
    engine.event("Received", client.sid)
    late = socket.create_connection(("127.0.0.1", engine.port), WAIT_S)
    engine.clients.append(late)
    late.settimeout(0.3)
    late.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with pytest.raises(TimeoutError):
        late.recv(1)
    engine.close()


def test_sockets_are_let_go(engine: Engine) -> None:
    clients = [Client(engine) for _ in range(10)]
    for number, client in enumerate(clients):
        if number % 2:
            client.sock.close()
        else:
            client.send(Opcode.CLOSE, b"\x03\xe8")
            assert client.next() == Close(1000, "")
            client.sock.close()
        engine.event("Closed", client.sid)
    until = time.monotonic() + WAIT_S
    while engine.tell("connections") != [0, 0]:
        assert time.monotonic() < until, engine.tell("connections")


# -- what comes in --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_messages_come_in_pieces_of_any_size(engine: Engine, seed: int) -> None:
    chance = random.Random(seed)
    client = Client(engine, "/x", WINDOW)
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    expected: list[list[Any]] = []
    pings: list[bytes] = []
    data = b""
    for _ in range(60):
        compressed = chance.random() < 0.3
        largest = 60_000 if compressed else 65_536  # noise grows when it is compressed
        size = chance.choice([0, 1, 3, 4, 17, 125, 126, 127, 300, 5000, 65_535, largest])
        size = min(size, largest)
        if chance.random() < 0.5:
            text = "".join(chance.choices("ab é漢🎉", k=size // 4))
            payload, opcode = text.encode(), Opcode.TEXT
            expected.append([len(text), "str", crc32(payload)])
        else:
            payload, opcode = chance.randbytes(size), Opcode.BINARY
            expected.append([size, "bytes", crc32(payload)])
        if compressed:
            payload = deflate.compress(payload)
        count = chance.choice([1, 1, 2, 5])
        cuts = sorted(chance.randrange(len(payload) + 1) for _ in range(count - 1))
        ends = zip([0, *cuts], [*cuts, len(payload)], strict=True)
        for number, (start, stop) in enumerate(ends):
            if chance.random() < 0.2:
                pings.append(chance.randbytes(chance.choice([0, 1, 125])))
                data += encode(Opcode.PING, pings[-1], mask=chance.randbytes(4))
            data += encode(
                Opcode.CONTINUATION if number else opcode, payload[start:stop],
                fin=number == count - 1, mask=chance.randbytes(4),
                compressed=compressed and number == 0,
            )  # fmt: skip
    while data:
        size = chance.choice([1, 2, 3, 7, 100, 1000, 70_000])
        client.sock.sendall(data[:size])
        data = data[size:]
    for each in expected:
        assert engine.event("Received", client.sid)[2:] == each
    for ping in pings:
        assert client.next() == Pong(ping)
    assert engine.hears_nothing_of(client.sid)


PLAIN = {name: (data, code) for name, data, code in test_frames.VIOLATIONS}
DEFLATED = {f"{name} (deflate)": found for name, found in test_deflate.VIOLATIONS.items()}
DEFLATED["RSV1 without an agreement"] = test_deflate.VIOLATIONS["not deflate"][0], 1002


@pytest.mark.parametrize("name", [*PLAIN, *DEFLATED])
def test_a_violation_closes_with_its_code_and_costs_its_sender_only(
    engine: Engine, name: str
) -> None:
    data, code = {**PLAIN, **DEFLATED}[name]
    offers = [WINDOW] if name in DEFLATED and "without" not in name else []
    client, other = Client(engine, "/x", *offers), Client(engine)
    before = encode(Opcode.BINARY, b"before", mask=MASK)
    client.sock.sendall(before + data + before)
    assert engine.event("Received", client.sid)[2:4] == [6, "bytes"]
    last = client.next()
    assert isinstance(last, Close)
    assert last.code == code
    assert last.reason, "it says why"
    assert client.next() is None
    assert engine.event("Closed", client.sid)[2:] == [code, 0]
    assert engine.hears_nothing_of(client.sid, 0.005)
    assert engine.tell("send", other.sid, "served") is True
    assert other.next() == Text("served")


# -- what is agreed on and how it goes out --------------------------------------------------------


@pytest.mark.parametrize(
    ("offer", "compression", "answer"),
    [
        (None, "none", None),
        (WINDOW, "window", b"permessage-deflate; client_no_context_takeover\r\n"),
        (
            EACH, "each",
            b"permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n",
        ),
        (
            WINDOW + "; server_max_window_bits=15", "window",
            b"permessage-deflate; client_no_context_takeover; server_max_window_bits=15\r\n",
        ),
        (
            WINDOW + "; server_max_window_bits=14", "unused",
            b"permessage-deflate; client_no_context_takeover; server_max_window_bits=14\r\n",
        ),
        (WINDOW + "; unknown, permessage-deflate", "window", b"; client_no_context_takeover\r\n"),
    ],
)  # fmt: skip
def test_what_is_agreed_on(
    engine: Engine, offer: str | None, compression: str, answer: bytes | None
) -> None:
    client = Client(engine, "/x", *([offer] if offer else []))
    assert client.compression == compression
    assert (b"Sec-WebSocket-Extensions: " in client.head) is (answer is not None)
    assert answer is None or answer in client.head
    # A client's own messages are inflated one by one, whatever the server's may do.
    if compression != "none":
        small = deflate.compress(b"from the client " * 20)
        for _ in range(2):
            client.sock.sendall(encode(Opcode.TEXT, small, mask=MASK, compressed=True))
            assert engine.event("Received", client.sid)[2:4] == [320, "str"]


PROSE = (
    "Whoever is first to see the ball behind the post shall shout so; nobody believed that jumping "
    "backwards over six boxes would work, yet quickly it did. GG! My dog watches as well, he likes "
    "the zebra on your mug, and what is that song? Vote in five minutes, please be kind meanwhile. "
)


def talk(number: int, size: int = 280) -> str:
    """A message that is worth compressing, and much smaller after others like it."""
    return (f"{number} " + PROSE * (size // 100))[:size]


@pytest.mark.parametrize("framing", ["text", "binary"])
def test_each_message_by_itself(engine: Engine, framing: str) -> None:
    clients = [Client(engine, "/x", EACH), Client(engine, "/x", WINDOW)]
    audience = engine.tell("audience", framing, "each")
    for client in clients:
        engine.tell("join", client.sid, audience)
    for number in range(5):
        assert engine.tell("broadcast", audience, talk(number)) == []
        assert engine.tell("broadcast", audience, "small") == []
    for client in clients:
        for number in range(5):
            message = client.next()
            assert isinstance(message, Text if framing == "text" else Binary)
            assert message[0] in (talk(number), talk(number).encode())
            assert client.frame.compressed
            assert client.frame.alone == talk(number).encode()
            assert len(client.frame.payload) < 230
            assert client.next() in (Text("small"), Binary(b"small"))
            assert not client.frame.compressed


def test_what_compressing_does_not_make_smaller_goes_as_it_is(engine: Engine) -> None:
    client = Client(engine, "/x", EACH)
    audience = engine.tell("audience", "text", "each")
    engine.tell("join", client.sid, audience)
    noise = "".join(map(chr, random.Random(1).choices(range(128), k=250)))
    assert len(deflate.compress(noise.encode())) > 250
    for text, worth in ((noise, False), (talk(1), True)):
        engine.tell("broadcast", audience, text)
        assert client.next() == Text(text)
        assert client.frame.compressed is worth
    prepared = engine.tell("prepare", audience, noise)
    engine.tell("admit", [client.sid], audience, "hello", -1, prepared)
    assert [client.next(), client.next()] == [Text("hello"), Text(noise)]
    assert not client.frame.compressed


def test_an_audience_without_compression_gets_none(engine: Engine) -> None:
    client = Client(engine, "/x", WINDOW)
    audience = engine.tell("audience", "text", "none")
    engine.tell("join", client.sid, audience)
    engine.tell("broadcast", audience, talk(1))
    engine.tell("send", client.sid, talk(2))
    for number in (1, 2):
        assert client.next() == Text(talk(number))
        assert not client.frame.compressed


# -- the window -----------------------------------------------------------------------------------


class Room:
    """An audience with a window, and members of it."""

    def __init__(self, engine: Engine, size: int) -> None:
        self.engine = engine
        self.number: int = engine.tell("audience", "text", "window")
        self.clients: list[Client] = []
        self.said = 0
        for _ in range(size):
            self.join()

    def join(self) -> Client:
        client = Client(self.engine, "/x", WINDOW)
        self.engine.tell("join", client.sid, self.number)
        self.clients.append(client)
        return client

    def say(self, *skip: Client, text: str = "") -> list[Client]:
        """Send one message to all but `skip`; return who got it as a part of the window."""
        self.said += 1
        text = text or talk(self.said)
        sids = [client.sid for client in skip]
        assert self.engine.tell("broadcast", self.number, text, sids) == []
        got = [client for client in self.clients if client not in skip]
        for client in got:
            assert client.next() == Text(text)
        # The bytes of the window are the same for all on it. Of those who are not, each alone.
        return [client for client in got if client.frame.compressed and not alone(client, text)]


def alone(client: Client, text: str) -> bool:
    """Whether the last message can be read by one that knows nothing before it."""
    return client.frame.alone == text.encode()


def test_the_first_message_is_a_keyframe_for_all_and_the_next_refers_to_it(engine: Engine) -> None:
    room = Room(engine, 3)
    assert room.say() == []
    assert len({client.frame for client in room.clients}) == 1
    first = len(room.clients[0].frame.payload)
    for _ in range(3):
        assert room.say() == room.clients
        assert len({client.frame for client in room.clients}) == 1
        assert len(room.clients[0].frame.payload) < first / 2


def wait_for_a_keyframe(room: Room, on: list[Client], began: float, age_s: float) -> None:
    """Say something until all are on the window: not before the last keyframe is so old, and then
    at once. That keyframe was made since `began`, and before this is called."""
    ended = time.monotonic()
    while True:
        said_at = time.monotonic()
        got = room.say()
        if not got:
            assert time.monotonic() - began > age_s - SLACK_S, "a keyframe too early"
            assert len({client.frame for client in room.clients}) == 1
            return
        assert got == on, "the window goes on for those on it, and not for who waits"
        assert said_at - ended < age_s + SLACK_S, "no keyframe in time"
        time.sleep(0.05)


def test_some_who_wait_get_a_keyframe_in_time(engine: Engine) -> None:
    room = Room(engine, 2)
    old = room.clients[:]
    began = time.monotonic()
    room.say()
    new = [room.join() for _ in range(HURRY_MEMBERS - 1)]  # one more, and they need not wait
    room.say()
    assert all(client.frame.compressed and client.frame.alone is not None for client in new)
    wait_for_a_keyframe(room, old, began, KEYFRAME_S)
    # Nobody waits: nothing is spent on keyframes.
    assert room.say() == room.clients
    assert len({client.frame for client in room.clients}) == 1


def test_many_who_wait_need_not_wait_long(engine: Engine) -> None:
    room = Room(engine, 3)
    old = room.clients[:]
    began = time.monotonic()
    room.say()
    for _ in range(HURRY_MEMBERS):
        room.join()
    wait_for_a_keyframe(room, old, began, HURRY_S)
    assert room.say() == room.clients


def test_what_is_small_goes_beside_the_window(engine: Engine) -> None:
    room = Room(engine, 2)
    room.say()
    new = room.join()
    for text in ("x", "y" * (deflate.WINDOW_MIN_BYTES - 1)):
        assert room.say(text=text) == []
        assert not any(client.frame.compressed for client in room.clients)
        assert room.say() == room.clients[:2], "and the window goes on"
    # Larger than that it is worth it in the window, but not for one that waits.
    text = "a comment as they all are, LUL a comment"
    room.say(text=text)
    assert [client.frame.compressed for client in room.clients] == [True, True, False]
    assert new.frame.payload == text.encode()


def test_one_that_is_skipped_drops_off_and_what_it_gets_instead_is_right(engine: Engine) -> None:
    room = Room(engine, 3)
    room.say()
    assert room.say() == room.clients
    one, *others = room.clients
    assert room.say(one) == others
    engine.tell("send", one.sid, talk(room.said))
    assert one.next() == Text(talk(room.said))
    assert not one.frame.compressed
    for _ in range(3):
        assert room.say() == others
        assert one.frame.compressed, "not on the window, but compressed by itself"
    # Everybody is skipped: whoever comes next begins anew.
    assert engine.tell("broadcast", room.number, talk(0), engine.tell("sids", room.number)) == []
    assert room.say() == []
    assert len({client.frame for client in room.clients}) == 1
    assert room.say() == room.clients


def test_what_is_for_one_alone_leaves_it_on_the_window(engine: Engine) -> None:
    room = Room(engine, 2)
    room.say()
    for number in range(3):
        engine.tell("send", room.clients[0].sid, talk(number))
        assert room.clients[0].next() == Text(talk(number))
        assert not room.clients[0].frame.compressed
        assert room.say() == room.clients


def test_one_that_leaves_and_comes_back_waits(engine: Engine) -> None:
    room = Room(engine, 3)
    room.say()
    one, *others = room.clients
    engine.tell("leave", one.sid, room.number)
    room.clients = others
    assert room.say() == others
    engine.tell("join", one.sid, room.number)
    room.clients = [one, *others]
    assert room.say() == others
    # Gone and back between two messages is gone as well; joined twice is joined once.
    two = others[0]
    engine.tell("leave", two.sid, room.number)
    for _ in range(2):
        engine.tell("join", two.sid, room.number)
    assert room.say() == others[1:]
    assert engine.tell("members", room.number) == 3


def test_one_with_two_windows_reads_both(engine: Engine) -> None:
    rooms = [Room(engine, 2) for _ in range(2)]
    both = Client(engine, "/x", WINDOW)
    for room in rooms:
        engine.tell("join", both.sid, room.number)
        room.clients.append(both)
    for number in range(40):
        rooms[number * 7 % 3 % 2].say()
    # Another's message that refers to nothing disturbs its memory as much.
    third = engine.tell("audience", "text", "each")
    engine.tell("join", both.sid, third)
    for number in range(3):
        engine.tell("broadcast", third, talk(number))
        assert both.next() == Text(talk(number))
        for room in rooms:
            room.say()


@pytest.mark.parametrize("compression", ["none", "each", "window"])
def test_admitted_with_greeting_and_backlog(engine: Engine, compression: str) -> None:
    room = Room(engine, 2)
    room.number = engine.tell("audience", "text", compression)
    for client in room.clients:
        engine.tell("join", client.sid, room.number)
    room.say()
    clients = [Client(engine, "/x", WINDOW) for _ in range(3)]
    backlog = engine.tell("prepare", room.number, talk(7, 2000))
    small = engine.tell("prepare", room.number, "small")
    greeting = "your number is ############, welcome " + "é" * 300
    sids = [client.sid for client in clients]
    long = talk(7, 2000)
    # The second and third time they are members, on the window where there is one.
    for number, (chosen, text) in enumerate([(backlog, long), (small, "small"), (backlog, long)]):
        assert engine.tell("admit", sids[:2], room.number, greeting, 15, chosen) == []
        assert engine.tell("admit", sids[2:], room.number, "hello", -1, 0) == []
        for client in clients[:2]:
            assert client.next() == Text(greeting.replace("#" * 12, f"{client.sid:012x}"))
            assert not client.frame.compressed
            assert client.next() == Text(text)
            assert client.frame.compressed is (compression != "none" and chosen == backlog)
            assert client.frame.alone == text.encode()
        assert clients[2].next() == Text("hello")
        assert engine.tell("members", room.number) == 5
        assert engine.tell("audience_of", clients[0].sid) == room.number
        if number == 0:
            room.clients += clients
        room.say()
        for client in clients[: 2 if chosen == backlog else 0]:
            assert client.frame.alone is not None, "it waits"
        engine.tell("broadcast", room.number, talk(0), engine.tell("sids", room.number))
        room.say()  # a keyframe where there is a window


def test_one_whose_queue_is_full_is_not_admitted(engine: Engine) -> None:
    slow, quick = Client(engine), Client(engine)
    other, audience = engine.tell("audience", "text"), engine.tell("audience", "text")
    engine.tell("join", slow.sid, other)
    taken = fill(engine, other)
    backlog = engine.tell("prepare", audience, "backlog")
    sids = [slow.sid, 99_999, quick.sid]
    assert engine.tell("admit", sids, audience, "hello", -1, backlog) == [slow.sid]
    assert engine.tell("sids", audience) == [quick.sid]
    assert [quick.next(), quick.next()] == [Text("hello"), Text("backlog")]
    for _ in range(taken):
        slow.next()
    engine.event("Drained", slow.sid)
    assert engine.tell("admit", [slow.sid], audience, "hello", -1, backlog) == []
    assert [slow.next(), slow.next()] == [Text("hello"), Text("backlog")]


class Walk:
    """A random schedule over one window, and what each client must have read by its end."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self.chance = random.Random(seed)
        self.audience: int = engine.tell("audience", "text", "window")
        self.expected: dict[Client, list[str]] = {}
        self.got: dict[Client, list[str]] = {}
        self.members: list[Client] = []
        self.slow: Client | None = None
        self.overflown: set[Client] = set()
        self.number = 0
        self.overflows = 0

    def text(self) -> str:
        """Chat mostly; now and then what is tiny, huge, or can't be compressed."""
        self.number += 1
        chance = self.chance
        kind = chance.choices(["chat", "tiny", "noise", "huge"], [12, 3, 2, 1])[0]
        if kind == "tiny":
            return f"{self.number}".ljust(chance.randrange(6, 40), "é")
        if kind == "noise":
            return f"{self.number} {chance.randbytes(chance.randrange(20, 2000)).hex()}"
        words = ["schöner", "Stream", "🎉", "LUL", "hello", "everybody", "what", "a", "save"]
        size = chance.randrange(5, 60) if kind == "chat" else 5000
        return f"{self.number} " + " ".join(chance.choices(words, k=size))

    def broadcast(self, text: str, skip: list[Client]) -> None:
        full = self.engine.tell("broadcast", self.audience, text, [one.sid for one in skip])
        for client in self.members:
            if client in skip:
                continue
            if client.sid in full:
                assert client is self.slow, "only one that does not read may have a full queue"
                self.overflown.add(client)
            else:
                assert client not in self.overflown, "it gets nothing until it has drained"
                self.expected[client].append(text)

    def step(self) -> None:
        chance, members = self.chance, self.members
        what = chance.choices(
            ["say", "render", "private", "join", "leave", "back", "end", "slow", "quick"],
            [30, 12, 4, 3, 2, 3, 1, 1, 2],
        )[0]
        if what == "join" and len(self.expected) < 40:
            client = Client(self.engine, "/x", WINDOW)
            self.expected[client], self.got[client] = [], []
            greeting, backlog = self.text(), self.text()
            prepared = self.engine.tell("prepare", self.audience, backlog)
            self.engine.tell("admit", [client.sid], self.audience, greeting, -1, prepared)
            self.expected[client] += [greeting, backlog]
            members.append(client)
        elif what in ("leave", "end") and len(members) > 6:
            client = chance.choice([one for one in members if one is not self.slow])
            members.remove(client)
            if what == "leave":
                self.engine.tell("leave", client.sid, self.audience)
            else:
                self.read(client)
                client.sock.close()
                self.engine.event("Closed", client.sid)
                assert self.got[client] == self.expected[client]
                del self.expected[client]
        elif what == "back":
            away = [one for one in self.expected if one not in members]
            if away:
                client = chance.choice(away)
                self.engine.tell("join", client.sid, self.audience)
                members.append(client)
        elif what == "private" and members:
            client = chance.choice(members)
            text = self.text()
            if self.engine.tell("send", client.sid, text):
                self.expected[client].append(text)
        elif what == "slow" and self.slow is None and members:
            self.slow = chance.choice(members)
            while self.slow not in self.overflown:  # the kernel takes up to some MB of it
                self.broadcast(f"{self.number} {chance.randbytes(30_000).hex()}", [])
                self.number += 1
                self.read_all()
            self.overflows += 1
        elif what == "quick" and self.slow is not None:
            slow, self.slow = self.slow, None
            until = time.monotonic() + WAIT_S
            while len(self.got[slow]) < len(self.expected[slow]):
                self.read(slow)
                assert time.monotonic() < until
            self.engine.event("Drained", slow.sid)
            self.overflown.discard(slow)
        elif members:
            text = self.text()
            apart = []
            if what == "render":
                most = chance.choice([1, 2, len(members)])
                apart = chance.sample(members, min(most, chance.randrange(len(members) + 1)))
            self.broadcast(text, apart)
            for client in apart:
                own = f"for one {text}"
                if chance.random() < 0.8 and self.engine.tell("send", client.sid, own):
                    self.expected[client].append(own)
        self.read_all()

    def read(self, client: Client) -> None:
        """Read what is here, each message by the client's own inflater."""
        self.got[client] += [one.text for one in client.drain() if isinstance(one, Text)]

    def read_all(self) -> None:
        for client in self.expected:
            if client is not self.slow:
                self.read(client)


@pytest.mark.parametrize("seed", range(2))
def test_everybody_reads_exactly_what_it_should(engine: Engine, seed: int) -> None:
    walk = Walk(engine, seed)
    began = time.monotonic()
    # So long that keyframes come by the clock as well, and at least one overflows.
    while time.monotonic() - began < 2.5 or walk.number < 300 or walk.overflows == 0:
        walk.step()
        assert time.monotonic() - began < 60.0
    while walk.slow is not None:
        walk.step()
    until = time.monotonic() + WAIT_S
    for client, expected in walk.expected.items():
        while len(walk.got[client]) < len(expected):
            walk.read(client)
            assert time.monotonic() < until, "something did not come"
        assert walk.got[client] == expected
    referring = sum(client.referring for client in walk.expected)
    assert referring > 200, "most messages of a window refer to others"


# -- what a connection may cost -------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(kind: str) -> Iterator[Engine]:
    """An engine with low limits."""
    running = Engine(kind, commands_per_second=5, fragments=10)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def strict_hung_up(strict: Engine) -> Iterator[None]:
    yield
    strict.hang_up()


def a_second_begins(engine: Engine, client: Client) -> None:
    """Wait until commands are counted anew; one is counted then."""
    until = time.monotonic() + 3.0
    while engine.tell("charge", client.sid):
        pass
    while not engine.tell("charge", client.sid):
        assert time.monotonic() < until, "it is never let off"
        time.sleep(0.002)


def test_commands_are_counted_by_the_second(strict: Engine) -> None:
    client, other = Client(strict), Client(strict)
    a_second_begins(strict, client)
    assert strict.tell("charged", client.sid, 6) == [True] * 4 + [False] * 2
    assert strict.tell("charge", other.sid) is True, "it has a count of its own"
    assert strict.tell("charge", 99_999) is True, "one that has gone costs nothing"


def test_pings_and_pongs_count_and_a_flood_is_told_once(strict: Engine) -> None:
    for _ in range(5):
        client = Client(strict)
        a_second_begins(strict, client)
        began = time.monotonic()
        for _ in range(3):
            client.send(Opcode.PING, b"1")
            assert client.next() == Pong(b"1")
        client.send(Opcode.PONG, b"unasked")  # the fifth
        assert strict.hears_nothing_of(client.sid)
        charged = strict.tell("charge", client.sid)
        if time.monotonic() - began < 0.9:
            break  # all of it was in one second
    assert charged is False
    client.send(Opcode.PING, b"2")
    assert strict.event("Flooded", client.sid) == ["Flooded", client.sid]
    for _ in range(20):
        client.send(Opcode.PING, b"3")
    client.send(Opcode.TEXT, b"behind them")
    strict.event("Received", client.sid)
    assert strict.hears_nothing_of(client.sid)
    assert strict.tell("send", client.sid, "what to do is not the engine's to say") is True


def test_an_exempt_session_may_send_what_it_likes(strict: Engine) -> None:
    client = Client(strict)
    strict.tell("exempt", client.sid)
    assert strict.tell("charged", client.sid, 50) == [True] * 50
    for _ in range(50):
        client.send(Opcode.PING, b"")
        assert client.next() == Pong(b"")
    assert strict.hears_nothing_of(client.sid)


def test_messages_are_handed_up_uncounted(strict: Engine) -> None:
    client = Client(strict)
    for number in range(20):
        client.send(Opcode.BINARY, bytes(number))
    for number in range(20):
        assert strict.event("Received", client.sid)[2:4] == [number, "bytes"]


def test_fragments_are_bounded(strict: Engine) -> None:
    client = Client(strict)
    piece = encode(Opcode.CONTINUATION, b"x", mask=MASK, fin=False)
    begun = encode(Opcode.BINARY, b"x", mask=MASK, fin=False)
    client.sock.sendall(begun + piece * 8 + encode(Opcode.CONTINUATION, b"x", mask=MASK))
    assert strict.event("Received", client.sid)[2:4] == [10, "bytes"]
    client.sock.sendall(begun + piece * 10)
    message = client.next()
    assert isinstance(message, Close)
    assert message.code == 1009
    assert strict.event("Closed", client.sid)[2] == 1009


def connecting(engine: Engine, count: int) -> list[float]:
    """Connect so often at once; return after how long each handshake was answered."""
    head = (
        b"GET /x HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    began = time.monotonic()
    socks = []
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", engine.port), WAIT_S)
        engine.clients.append(sock)
        sock.sendall(head)
        socks.append(sock)
    took = []
    for sock in socks:
        assert sock.recv(4096).startswith(b"HTTP/1.1 101 ")
        took.append(time.monotonic() - began)
        engine.event("Opened")
    return took


def test_held_off_nobody_is_accepted_and_afterwards_all_who_waited(engine: Engine) -> None:
    client = Client(engine)
    held_at = time.monotonic()
    engine.tell("hold_off", 0.6)
    engine.tell("hold_off", 0.1)  # the longer one holds
    engine.tell("send", client.sid, "served all the same")
    assert client.next() == Text("served all the same")
    began = time.monotonic()
    took = connecting(engine, 5)
    assert began + min(took) - held_at > 0.6 - SLACK_S
    assert max(took) < 3.0
    assert max(connecting(engine, 2)) < 2.0


def test_so_many_are_accepted_a_second(kind: str) -> None:
    engine = Engine(kind, accepts_per_second=20)
    took = connecting(engine, 50)
    # A second's worth at once at most, the others as the time for them comes.
    assert sum(each < 0.5 for each in took) <= 31
    assert 1.3 < max(took) < 5.0
    engine.close()


def test_stopped_it_does_not_accept_again_when_the_time_comes(kind: str) -> None:
    engine = Engine(kind)
    engine.tell("hold_off", 0.1)
    engine.tell("stop_accepting")
    engine.tell("hold_off", 0.1)
    late = socket.create_connection(("127.0.0.1", engine.port), WAIT_S)
    engine.clients.append(late)
    late.settimeout(0.4)
    late.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with pytest.raises(TimeoutError):
        late.recv(1)
    engine.close()


# -- what an engine may do by itself --------------------------------------------------------------


def test_a_reaction_is_counted_or_handed_up(engine: Engine) -> None:
    client = Client(engine, "/x", FIRST)
    engine.tell("reacts", client.sid, 7)
    payload = b'{"type":"REACT","kind":"fire","count":3}'
    for _ in range(5):
        client.send(Opcode.TEXT, payload)
    seen = 0
    until = time.monotonic() + WAIT_S
    while seen < 15:
        assert time.monotonic() < until, f"{seen} of 15 were counted or handed up"
        for counter, kind, total in engine.tell("reactions"):
            assert (counter, kind) == (7, "fire")
            seen += total
        try:
            size, form = engine.event("Received", client.sid, 0.02)[2:4]
        except queue.Empty:
            continue
        assert (size, form) == (len(payload), "str")
        seen += 3
    assert seen == 15
    assert engine.tell("reactions") == []
    engine.tell("reacts", client.sid, 0)
    client.send(Opcode.TEXT, payload)
    assert engine.event("Received", client.sid)[2] == len(payload)
    assert engine.tell("reactions") == []


def test_a_ping_command_is_answered_or_handed_up(engine: Engine) -> None:
    client = Client(engine, "/x", FIRST)
    audience = engine.tell("audience", "text")
    engine.tell("join", client.sid, audience)
    engine.tell("stands", audience, 4711)
    client.send(Opcode.TEXT, b'{"type":"PING"}')
    try:
        assert engine.event("Received", client.sid, 0.5)[2:4] == [15, "str"]
    except queue.Empty:
        message = client.next()
        assert isinstance(message, Text)
        pong = json.loads(message.text)[0]
        assert (pong["type"], pong["position"]) == ("PONG", 4711)


# -- what the application hands over --------------------------------------------------------------


def handed_over(engine: Engine) -> tuple[socket.socket, int]:
    """Return a connection past its head and greeting, and its sid."""
    sock = socket.create_connection(("127.0.0.1", engine.port), WAIT_S)
    engine.clients.append(sock)
    sock.sendall(b"GET /raw HTTP/1.1\r\nHost: a\r\n\r\n")
    data = b""
    while not data.endswith(b"welcome\n"):
        data += sock.recv(1)
    assert data.startswith(b"HTTP/1.1 200 ")
    opened = engine.event("Opened")
    assert opened[2:] == ["/raw", None, "none", "127.0.0.1"]
    return sock, opened[1]


def receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := sock.recv(size - len(data))):
        data += piece
    return data


def test_one_that_was_handed_over_gets_the_bytes_as_they_are(engine: Engine) -> None:
    sock, sid = handed_over(engine)
    audience = engine.tell("audience", "raw")
    backlog = engine.tell("prepare", audience, "backlog\n")
    assert engine.tell("admit", [sid], audience, "I am ############\n", 5, backlog) == []
    assert engine.tell("broadcast", audience, talk(1, 3000)) == []
    assert engine.tell("send", sid, "yours\n") is True
    expected = f"I am {sid:012x}\nbacklog\n{talk(1, 3000)}yours\n".encode()
    assert receive(sock, len(expected)) == expected
    sock.sendall(b"nobody listens")
    engine.tell("close", sid, 4001, "the end")
    assert engine.tell("broadcast", audience, "not for it") == []
    assert receive(sock, 1000) == b"4001 the end\n"
    sock.close()
    assert engine.event("Closed", sid)[3] == audience
    assert engine.hears_nothing_of(sid)


def test_one_that_was_handed_over_is_bounded_as_well(engine: Engine) -> None:
    sock, sid = handed_over(engine)
    audience = engine.tell("audience", "raw")
    engine.tell("join", sid, audience)
    taken = fill(engine, audience)
    assert engine.tell("send", sid, "more") is False
    receive(sock, taken * 20_000)
    engine.event("Drained", sid)
    assert engine.tell("send", sid, "more") is True
    assert receive(sock, 4) == b"more"
