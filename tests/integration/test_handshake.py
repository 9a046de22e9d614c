"""Handshakes that are late, endless, wrong or too many, each against a system with tight limits."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.integration.raw import (
    CLOSE,
    TEXT,
    Bystanders,
    Socket,
    dial,
    frame,
    http,
    read_answer,
    token_for,
    upgrade,
)
from tests.system import System, wait_until

STREAM = "handshake"
HANDSHAKE_S = 1.0
HEAD_BYTES = 16_384
ORIGIN = "https://chat.example"


@pytest.fixture(scope="module")
def strict() -> Iterator[System]:
    """One gateway, a second for a handshake, one origin, and tokens that expire to the second."""
    with System(
        server__gateways=1,
        server__origins=json.dumps([ORIGIN]),
        limits__handshake_s=HANDSHAKE_S,
        auth__leeway_s=0,
    ) as system:
        yield system


@pytest.fixture(scope="module")
def bystanders(strict: System) -> Iterator[Bystanders]:
    watching = Bystanders(strict, STREAM)
    yield watching
    watching.close()


@pytest.fixture(autouse=True)
def undisturbed(bystanders: Bystanders) -> Iterator[None]:
    """After each case viewers get the next comment, nothing has died and no file stays open."""
    gateway = psutil.Process(bystanders.pids["g1"])
    bystanders.check()
    before = gateway.num_fds()
    yield
    bystanders.check()
    # The store opens a file for each of its threads the first time.
    wait_until(lambda: gateway.num_fds() <= before + 12, 10, "the sockets are closed")


def cut_off(system: System, data: bytes) -> tuple[int, float]:
    """Send bytes one at a time until the server answers; return (status, seconds it took)."""
    with dial(system) as sock:
        began = time.monotonic()
        sock.settimeout(0.05)
        for at in range(len(data)):
            try:
                sock.sendall(data[at : at + 1])
                if sock.recv(1, socket.MSG_PEEK):
                    break
            except TimeoutError:
                pass
        took = time.monotonic() - began
        sock.settimeout(5)
        answer = read_answer(sock)
        answer.problem()
        assert sock.recv(1) == b"", "it must hang up"
        return answer.status, took


@pytest.mark.parametrize("head", [b"", b"GET /", upgrade(f"/stream/{STREAM}")])
def test_a_handshake_one_byte_at_a_time(strict: System, head: bytes) -> None:
    if not head:
        with dial(strict) as sock:  # never says anything
            began = time.monotonic()
            assert read_answer(sock).status == 408
            took = time.monotonic() - began
    else:
        status, took = cut_off(strict, head.ljust(200, b"x"))
        assert status == 408
    assert HANDSHAKE_S * 0.8 < took < HANDSHAKE_S + 2


def test_many_that_never_send(strict: System, bystanders: Bystanders) -> None:
    silent = [dial(strict) for _ in range(50)]
    bystanders.check()
    began = time.monotonic()
    for sock in silent:
        assert read_answer(sock).status == 408
        sock.close()
    assert time.monotonic() - began < HANDSHAKE_S + 3


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"a" * 100_000, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 90 + b"Y: " + b"a" * HEAD_BYTES, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 500 + b"\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xab" * 500 + b"\n", 400),
        (b"\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET / HTTP/x.y\r\n\r\n", 400),
        (b"NONSENSE\r\n\r\n", 400),
        (b"POST /session HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /session HTTP/1.1\r\nContent-Length: many\r\n\r\n", 400),
    ],
)
def test_a_head_that_is_none(strict: System, data: bytes, status: int) -> None:
    with dial(strict) as sock:
        sock.sendall(data)
        answer = read_answer(sock)
        assert answer.status == status
        answer.problem()


def test_an_endless_header(strict: System) -> None:
    with dial(strict) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n")
        sent = 0
        try:
            while sent < 64 << 20:
                sent += sock.send(b"X: " + b"a" * 65_533)
        except OSError:
            pass
        assert sent < 64 << 20, "it was read to the end"


@pytest.mark.parametrize(
    ("request_bytes", "status", "header"),
    [
        (upgrade("/stream/a", without="Sec-WebSocket-Key"), 400, None),
        (upgrade("/stream/a", "Sec-WebSocket-Key: !!", without="Sec-WebSocket-Key"), 400, None),
        (upgrade("/stream/a", "Sec-WebSocket-Key: YWJj", without="Sec-WebSocket-Key"), 400, None),
        (upgrade("/stream/a", without="Sec-WebSocket-Version"), 426, "sec-websocket-version"),
        (
            upgrade("/stream/a", "Sec-WebSocket-Version: 8", without="Sec-WebSocket-Version"),
            426,
            "sec-websocket-version",
        ),
        (upgrade("/stream/a", without="Connection"), 400, None),
        (upgrade("/stream/a", "Connection: close", without="Connection"), 400, None),
        (upgrade("/stream/a", method="POST"), 405, "allow"),
        (upgrade("/stream/a").replace(b"HTTP/1.1", b"HTTP/1.0"), 400, None),
    ],
)
def test_an_upgrade_that_is_none(
    strict: System, request_bytes: bytes, status: int, header: str | None
) -> None:
    with dial(strict) as sock:
        sock.sendall(request_bytes)
        answer = read_answer(sock)
        assert answer.status == status
        answer.problem()
        if header is not None:
            assert answer.headers[header] in ("13", "GET")
        assert sock.recv(1) == b"", "it must hang up"


def test_an_upgrade_with_a_body_hangs_nothing(strict: System) -> None:
    with dial(strict) as sock:
        sock.sendall(upgrade(f"/stream/{STREAM}", "Content-Length: 1000000000000"))
        assert sock.recv(4096).startswith(b"HTTP/1.1 101")
        sock.sendall(frame(CLOSE, b"\x03\xe8"))
        sock.settimeout(5)
        while sock.recv(65536):
            pass


def test_frames_in_one_segment_with_the_handshake(strict: System) -> None:
    token = token_for(strict, "hasty")
    said = json.dumps({"type": "COMMENT", "text": "hasty", "nonce": "h"}).encode()
    with dial(strict) as sock:
        head = upgrade(f"/stream/{STREAM}", f"Authorization: Bearer {token}")
        sock.sendall(head + frame(TEXT, said))
        data = b""
        while b'"ACK"' not in data:
            piece = sock.recv(65536)
            assert piece, data
            data += piece


def test_half_closed(strict: System) -> None:
    with dial(strict) as sock:  # in the middle of the head
        sock.sendall(b"GET / HT")
        sock.shutdown(socket.SHUT_WR)
        assert read_answer(sock).status == 400
    with dial(strict) as sock:  # behind a whole request: it is answered
        sock.sendall(b"GET /stream/handshake HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        assert read_answer(sock).status == 200
    with dial(strict) as sock:  # in the middle of a body
        sock.sendall(b"POST /session HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n{")
        sock.shutdown(socket.SHUT_WR)
        assert read_answer(sock).status == 400
    with Socket(strict, STREAM) as viewer:  # a WebSocket without a close frame: it is gone
        viewer.event("WELCOME")
        viewer.sock.shutdown(socket.SHUT_WR)
        while viewer._read(time.monotonic() + 5):
            pass


def test_a_token_that_expires_while_connected(strict: System) -> None:
    with Socket(strict, STREAM, token=token_for(strict, "brief", ttl_s=2.0)) as viewer:
        assert viewer.event("WELCOME")["user"]["id"] == "brief"
        began = time.monotonic()
        code, reason = viewer.closed()
        assert code == 4001
        assert "expired" in reason
        assert 0.2 < time.monotonic() - began < 5


def test_origins(strict: System) -> None:
    with Socket(strict, STREAM, f"Origin: {ORIGIN}") as viewer:
        viewer.event("WELCOME")
    with Socket(strict, STREAM, "Origin: https://elsewhere.example") as viewer:
        code, reason = viewer.closed()
        assert code == 4003
        assert "server.origins" in reason
    with Socket(strict, STREAM) as viewer:  # no browser
        viewer.event("WELCOME")
    ours = http(strict, "GET", f"/stream/{STREAM}", b"", f"Origin: {ORIGIN}").headers
    assert ours["access-control-allow-origin"] == ORIGIN
    assert "Origin" in ours["vary"]
    refused = http(strict, "GET", "/stream/NO", b"", f"Origin: {ORIGIN}")
    assert refused.status == 404
    assert refused.headers["access-control-allow-origin"] == ORIGIN, "a page reads problems too"
    theirs = http(strict, "GET", f"/stream/{STREAM}", b"", "Origin: https://elsewhere.example")
    assert "access-control-allow-origin" not in theirs.headers
    page = http(strict, "GET", "/", b"", "Accept: text/html").headers
    assert f"frame-ancestors {ORIGIN}" in page["content-security-policy"]


def test_no_token_is_logged(strict: System) -> None:
    token = token_for(strict, "secret", ttl_s=-60)
    for how in (
        (f"/stream/{STREAM}?access_token={token}", ()),
        (f"/stream/{STREAM}", (f"Sec-WebSocket-Protocol: uproar.token.{token}",)),
        (f"/stream/{STREAM}", (f"Authorization: Bearer {token}",)),
    ):
        with Socket(strict, STREAM, *how[1], path=how[0]) as viewer:
            assert viewer.closed()[0] == 4001
    with dial(strict) as sock:
        sock.sendall(f"GET /stream/a?access_token={token} HTTP/9.9\r\n\r\n".encode())
        assert read_answer(sock).status == 400
    assert http(strict, "POST", f"/stream/a/comments?access_token={token}", b"{").status == 401
    for file in (strict.data / "logs").iterdir():
        assert token not in file.read_text("utf-8", "replace"), file.name


def test_a_full_gateway(strict: System) -> None:
    with System(
        server__gateways=1, limits__connections=3, limits__connections_per_address=3
    ) as small:
        viewers = [Socket(small, STREAM) for _ in range(3)]
        for viewer in viewers:
            viewer.event("WELCOME")
        with dial(small) as sock:
            sock.sendall(upgrade(f"/stream/{STREAM}"))
            answer = read_answer(sock)
            assert answer.status == 503
            assert answer.problem()["code"] == "unavailable"
            assert int(answer.headers["retry-after"]) > 0
        assert small.call("GET", f"/stream/{STREAM}")[0] == 200, "REST goes on"
        viewers.pop().sock.close()

        def served() -> bool:
            with dial(small) as sock:
                sock.sendall(upgrade(f"/stream/{STREAM}"))
                return sock.recv(12) == b"HTTP/1.1 101"

        wait_until(served, 5, "there is room again")
        for viewer in viewers:
            viewer.sock.close()
