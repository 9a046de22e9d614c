"""What hostile and unlucky clients cost an engine: files, time, memory, last words."""

from __future__ import annotations

import resource
import socket
import struct
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.unit.engine_driver import ENGINES, MASK, WAIT_S, Client, Engine
from tests.unit.test_engine import fill
from uproar.frames import Close, Message, Opcode, Pong, Text, encode

HEAD = (
    b"GET /x HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture(scope="module", params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine(kind: str) -> Iterator[Engine]:
    running = Engine(kind, commands_per_second=2_000_000, fragments=70_000, handshake_s=0.5)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def hung_up(engine: Engine) -> Iterator[None]:
    """No connection outlives its test."""
    yield
    engine.hang_up()
    while engine.arrived("Opened"):
        pass


def dial(engine: Engine, said: bytes = b"") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", engine.port), WAIT_S)
    engine.clients.append(sock)
    sock.sendall(said)
    return sock


def status_of(sock: socket.socket, wait_s: float = WAIT_S) -> int:
    """Return the status that a request is answered with, 0 for none in time."""
    sock.settimeout(wait_s)
    try:
        return int(sock.recv(4096).split()[1])
    except TimeoutError:
        return 0
    finally:
        sock.settimeout(WAIT_S)


# -- files ----------------------------------------------------------------------------------------


def test_more_connections_than_files(kind: str) -> None:
    engine = Engine(kind, handshake_s=10.0)
    pid = engine.pid
    _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    room = psutil.Process(pid).num_fds() + 10
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (room, most))
    clients = [dial(engine, HEAD) for _ in range(30)]
    time.sleep(0.5)
    answers = [status_of(client, 0.01) for client in clients]
    assert 5 <= answers.count(101) <= 12
    # The reference lets the others wait until there is room.
    assert set(answers) == ({101, 503} if kind == "fast" else {101, 0})
    for client in clients:
        client.close()
    client = wait_for_room(engine)
    assert engine.tell("send", client.sid, "served") is True
    assert client.next() == Text("served")
    engine.close()


def test_without_any_file_an_engine_rests_and_recovers(kind: str) -> None:
    engine = Engine(kind, handshake_s=10.0)
    _, most = resource.prlimit(engine.pid, resource.RLIMIT_NOFILE)
    served = Client(engine)
    resource.prlimit(engine.pid, resource.RLIMIT_NOFILE, (3, most))
    waiting = [dial(engine, HEAD) for _ in range(3)]
    process = psutil.Process(engine.pid)
    before = process.cpu_times()
    time.sleep(1.0)
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    assert used < 0.4, f"{used:.2f} s of CPU in 1 s for nothing"
    served.send(Opcode.PING, b"still")
    assert served.next() == Pong(b"still")
    resource.prlimit(engine.pid, resource.RLIMIT_NOFILE, (most, most))
    assert [status_of(client) for client in waiting].count(101) >= 1
    engine.event("Opened")
    wait_for_room(engine)
    engine.close()


def wait_for_room(engine: Engine) -> Client:
    """Connect as soon as that is possible."""
    until = time.monotonic() + WAIT_S
    while status_of(dial(engine, HEAD), 1.0) != 101:
        assert time.monotonic() < until, "it does not recover"
        time.sleep(0.05)
    while engine.arrived("Opened"):
        pass
    return Client(engine)


# -- those who never send, and those who have said it all ------------------------------------------


def test_connects_that_never_send_are_told_and_let_go(engine: Engine) -> None:
    began = time.monotonic()
    silent = [dial(engine) for _ in range(40)]
    half = [dial(engine, HEAD[: 20 + number]) for number in range(20)]
    client = Client(engine)
    client.send(Opcode.PING, b"served")
    assert client.next() == Pong(b"served")
    assert {status_of(sock) for sock in silent + half} == {408}
    assert 0.3 < time.monotonic() - began < 5.0
    for sock in silent + half:
        sock.close()
    client.sock.close()
    until = time.monotonic() + WAIT_S
    while engine.tell("connections") != [0, 0]:
        assert time.monotonic() < until, engine.tell("connections")
        time.sleep(0.02)


def test_one_that_has_said_it_all_is_gone(engine: Engine) -> None:
    client = Client(engine)
    client.send(Opcode.BINARY, b"last")
    client.sock.shutdown(socket.SHUT_WR)
    engine.event("Received", client.sid)
    assert engine.event("Closed", client.sid)[2:] == [1006, 0]
    assert client.next() is None
    assert status_of(half_closed(dial(engine, HEAD))) == 101
    engine.event("Opened")
    assert status_of(half_closed(dial(engine, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"))) == 200


def half_closed(sock: socket.socket) -> socket.socket:
    sock.shutdown(socket.SHUT_WR)
    return sock


def test_the_last_words_reach_one_that_lags_and_has_said_it_all(engine: Engine) -> None:
    client = Client(engine)
    audience = engine.tell("audience", "text")
    engine.tell("join", client.sid, audience)
    taken = fill(engine, audience)
    client.sock.sendall(b"\xff\xff")
    client.sock.shutdown(socket.SHUT_WR)
    assert engine.event("Closed", client.sid)[2:] == [1002, audience]
    time.sleep(0.2)  # its end is seen by now, and must not cost it what is on its way
    got: list[Message] = []
    while (message := client.next()) is not None:
        got.append(message)
    assert len(got) == taken + 1
    assert isinstance(got[-1], Close) and got[-1].code == 1002


# -- frames ---------------------------------------------------------------------------------------


def test_every_frame_split_at_every_byte(engine: Engine) -> None:
    client = Client(engine)
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    whole = [
        (encode(Opcode.TEXT, "é🎉".encode(), mask=b"mask"), 2),
        (encode(Opcode.BINARY, b"x" * 126, mask=b"mask"), 126),
        (encode(Opcode.BINARY, b"", mask=b"mask"), 0),
    ]
    ping = encode(Opcode.PING, b"ping", mask=b"mask")
    begun = encode(Opcode.TEXT, b"ab", mask=b"mask", fin=False)
    pieces = begun + ping + encode(0, b"cd", mask=b"mask")
    for data, size in [*whole, (pieces, 4)]:
        for cut in range(1, len(data)):
            client.sock.sendall(data[:cut])
            # Each part by itself: the second only when the engine has looked at the first.
            if cut % 16 == 0:
                time.sleep(0.002)
            client.sock.sendall(data[cut:])
            assert engine.event("Received", client.sid)[2] == size
            if data is pieces:
                assert client.next() == Pong(b"ping")
    assert engine.hears_nothing_of(client.sid)


def test_65535_fragments(engine: Engine) -> None:
    client = Client(engine)
    piece = encode(0, b"x", mask=MASK, fin=False)
    client.sock.sendall(encode(Opcode.BINARY, b"x", mask=MASK, fin=False) + piece * 65_533)
    client.sock.sendall(encode(0, b"x", mask=MASK))
    assert engine.event("Received", client.sid)[2:4] == [65_535, "bytes"]
    empty = encode(0, b"", mask=MASK, fin=False)
    client.sock.sendall(encode(Opcode.TEXT, b"", mask=MASK, fin=False) + empty * 69_998)
    client.sock.sendall(encode(0, b"", mask=MASK))
    assert engine.event("Received", client.sid)[2:4] == [0, "str"]
    client.sock.sendall(encode(Opcode.TEXT, b"", mask=MASK, fin=False) + empty * 70_000)
    last = client.next()
    assert isinstance(last, Close) and last.code == 1009


def test_a_flood_of_100_000_commands(engine: Engine) -> None:
    flooding, other = Client(engine), Client(engine)
    process = psutil.Process(engine.pid)
    before = process.memory_info().rss
    data = encode(Opcode.TEXT, b'{"type":"PING"}', mask=MASK) * 1000
    for number in range(100):
        flooding.sock.sendall(data)
        if number % 20 == 0:
            other.send(Opcode.PING, b"served")
            assert other.next() == Pong(b"served")
    for _ in range(100_000):
        assert engine.event("Received", flooding.sid)[2] == 15
    assert process.memory_info().rss - before < 64 << 20, "what comes is not piled up"


def test_a_reset_in_the_middle_of_everything(engine: Engine) -> None:
    audience = engine.tell("audience", "text")
    clients = [Client(engine) for _ in range(10)]
    for client in clients:
        engine.tell("join", client.sid, audience)
    for number, client in enumerate(clients):
        client.sock.sendall(encode(Opcode.TEXT, b"x" * 5000, mask=MASK)[: 500 * number + 1])
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sock.close()
        engine.tell("broadcast", audience, "to whoever is there")
    for client in clients:
        assert engine.event("Closed", client.sid)[2:] == [1006, audience]
        assert engine.hears_nothing_of(client.sid, 0.001)
    assert engine.tell("members", audience) == 0


# -- what is left ---------------------------------------------------------------------------------


# Of 10,000 more the fast engine keeps 4 KB; the reference's heap goes up and down by some MB.
LEFT_BYTES = {"fast": 256 << 10, "reference": 8 << 20}


def test_5000_connections_that_come_and_go_leave_nothing(kind: str) -> None:
    engine = Engine(kind, accepts_per_second=100_000)
    process = psutil.Process(engine.pid)
    audience = engine.tell("audience", "text", "window")

    def come_and_go(total: int) -> None:
        for number in range(0, total, 50):
            socks = [dial(engine, HEAD) for _ in range(50)]
            sids = [engine.event("Opened")[1] for _ in socks]
            engine.tell("admit", sids, audience, "welcome")
            for way, sock in enumerate(socks):
                if way % 3 == 0:
                    sock.sendall(encode(Opcode.CLOSE, b"\x03\xe8", mask=MASK))
                elif way % 3 == 1:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif number % 100:
                    sock.sendall(b"\x81\xfe")  # half a frame
                sock.close()
            engine.clients.clear()
            for sid in sids:
                engine.event("Closed", sid)
        until = time.monotonic() + WAIT_S
        while engine.tell("connections") != [0, 0]:
            assert time.monotonic() < until, engine.tell("connections")
            time.sleep(0.02)

    come_and_go(1000)
    files, memory = process.num_fds(), process.memory_info().rss
    come_and_go(5000)
    assert process.num_fds() == files
    assert engine.tell("members", audience) == 0
    assert process.memory_info().rss - memory < LEFT_BYTES[kind]
    engine.close()
