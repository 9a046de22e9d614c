"""Both engines, fed the same bytes, say and hand up the same. The reference is the oracle.

Random handshakes, proper and not, with random frames behind them, whole and damaged. Of refusals
the status and the code are compared, of close frames the code: the sentences may differ.
"""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.unit.engine_driver import ENGINES, WAIT_S, Engine
from uproar import deflate
from uproar.frames import Close, FrameParser, Opcode, encode

SEEDS = 400
PAIR = ("reference", "fast")


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Engine, Engine]]:
    if "fast" not in ENGINES:
        pytest.skip("needs the compiled engine (make setup builds it)")
    one, two = (Engine(kind, message_bytes=2000, fragments=6) for kind in PAIR)
    yield one, two
    one.close()
    two.close()


class Outcome(NamedTuple):
    """What an engine made of one connection."""

    status: int  # 0: no answer
    answer: dict[str, str]  # of a handshake; of a refusal its code
    said: list[Any]
    events: list[list[Any]]


def handshake(chance: random.Random) -> bytes:
    """A request head: mostly right, with what browsers and other people send."""
    lines = {
        "Host": "a",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version": "13",
    }
    if chance.random() < 0.6:
        lines["Sec-WebSocket-Extensions"] = chance.choice(
            [
                "permessage-deflate", "permessage-deflate; client_max_window_bits", "x; y=z",
                "permessage-deflate; server_no_context_takeover", "permessage-deflate;", "a=b",
                "permessage-deflate; server_max_window_bits=10, permessage-deflate",
                'permessage-deflate; server_max_window_bits="15"', "permessage-deflate; x", ",,",
            ]
        )  # fmt: skip
    if chance.random() < 0.5:
        lines["Sec-WebSocket-Protocol"] = chance.choice(
            ["a.v1", "a.v2", "a.v2, a.v1", "x", "x,a.v1", " a.v1 ,", "A.V1"]
        )
    request = "GET /x?y=%20z HTTP/1.1"
    if chance.random() < 0.3:
        name, value = chance.choice(
            [
                ("Upgrade", "WebSocket"), ("Connection", "keep-alive, Upgrade"),
                ("Connection", "keep-alive,upgrade"), ("Connection", "close"),
                ("Sec-WebSocket-Version", "8"), ("Sec-WebSocket-Version", "013"),
                ("Sec-WebSocket-Key", "AAAA"), ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAAA="),
                ("Sec-WebSocket-Key", "*" * 24), ("Sec-WebSocket-Key", ""), ("Origin", "null"),
                ("X", "y" * 3000),
            ]
        )  # fmt: skip
        lines[name] = value
    if chance.random() < 0.05:
        del lines[chance.choice(["Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version"])]
    if chance.random() < 0.1:
        request = chance.choice(["POST /x HTTP/1.1", "GET /x HTTP/1.0", "PUT / HTTP/1.1"])
    if chance.random() < 0.2:
        lines = {name.lower(): value for name, value in lines.items()}
    return "\r\n".join([request, *(f"{k}: {v}" for k, v in lines.items()), "", ""]).encode()


def frame(chance: random.Random) -> bytes:
    """One frame, or the fragments of a message; damaged now and then."""
    mask = chance.randbytes(4)
    size = chance.choice([0, 1, 5, 125, 126, 200, 1999, 2000, 2001])
    payload = chance.choice(
        ["é🎉 chat ".encode() * 200, b"x" * 2001, chance.randbytes(2001), "漢".encode() * 700]
    )[:size]
    opcode = chance.choice([Opcode.TEXT, Opcode.BINARY])
    if opcode == Opcode.TEXT and chance.random() < 0.9:
        payload = payload.decode(errors="ignore").encode()
    kind = chance.choices(
        ["whole", "pieces", "small", "ping", "close", "odd", "noise"], [8, 6, 4, 4, 1, 1, 1]
    )[0]
    if kind == "whole":
        data = encode(opcode, payload, mask=mask)
    elif kind == "small":
        small = deflate.compress(payload)
        small = small[: len(small) - chance.choice([0, 0, 0, 0, 0, 1])]
        data = encode(opcode, small, mask=mask, compressed=True)
    elif kind == "pieces":
        count = chance.choice([2, 3, 6, 7])
        step = len(payload) // count + 1
        parts = [payload[at * step : (at + 1) * step] for at in range(count)]
        data = b""
        for number, part in enumerate(parts):
            last = number == count - 1
            data += encode(0 if number else opcode, part, mask=mask, fin=last)
            if chance.random() < 0.2:
                data += encode(Opcode.PING, b"between", mask=mask)
    elif kind == "ping":
        opcode = chance.choice([Opcode.PING, Opcode.PONG])
        data = encode(opcode, payload[: chance.choice([0, 9, 125])], mask=mask)
    elif kind == "close":
        code = chance.choice([999, 1000, 1001, 1005, 1006, 1011, 1015, 2000, 3000, 4999, 5000])
        reason = chance.choice([b"", b"why", b"\xff", "é".encode() * 61, b"r" * 123])
        data = encode(Opcode.CLOSE, struct.pack("!H", code) + reason, mask=mask)
    elif kind == "odd":
        first, second = chance.randrange(256), chance.choice([0, 5, 126, 127]) | 0x80
        data = bytes((first, second)) + chance.randbytes(chance.randrange(20))
    else:
        data = chance.randbytes(chance.randrange(1, 30))
    if chance.random() < 0.05:
        at = chance.randrange(min(len(data), 14))
        data = data[:at] + bytes((data[at] ^ 1 << chance.randrange(8),)) + data[at + 1 :]
    return data


def outcome(engine: Engine, pieces: list[bytes]) -> Outcome:
    """Send the pieces, say no more, and look at everything that comes of it."""
    sock = socket.create_connection(("127.0.0.1", engine.port), WAIT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    received = b""
    try:
        for piece in pieces:
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        while data := sock.recv(65_536):
            received += data
    except (ConnectionResetError, BrokenPipeError):
        pass  # it had said its last words before we had said ours
    finally:
        sock.close()
    if not received:
        return Outcome(0, {}, [], [])
    head, _, rest = received.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    status = int(lines[0].split()[1])
    fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    if status != 101:
        problem = fields.get("content-type") == "application/problem+json"
        return Outcome(status, {"code": json.loads(rest)["code"]} if problem else {}, [], [])
    answer = {k: v for k, v in fields.items() if k.startswith("sec-websocket")}
    parser = FrameParser(role="client", max_message=1 << 20)
    said = [one.code if isinstance(one, Close) else one for one in parser.feed(rest)]
    assert parser.error is None
    events = [engine.event("Opened")]
    sid = events[0][1]
    while events[-1][0] != "Closed":
        events.append(engine.event_of(sid))
    return Outcome(status, answer, said, [[kind, *fields] for kind, _, *fields in events])


def connection(seed: int) -> list[bytes]:
    """What a client sends in its life, in the pieces it sends it in."""
    chance = random.Random(seed)
    head = handshake(chance)
    data = b"".join(frame(chance) for _ in range(chance.randrange(10)))
    if chance.random() < 0.5:
        data += encode(Opcode.CLOSE, b"\x03\xe8", mask=b"mask")
    if chance.random() < 0.3:
        return [head + data]
    pieces = [head]
    while data:
        size = chance.choice([1, 2, 5, 100, 5000])
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def test_the_same_bytes_have_the_same_outcome(engines: tuple[Engine, Engine]) -> None:
    seen = {101: 0, 400: 0}
    received = closes = 0
    for seed in range(SEEDS):
        pieces = connection(seed)
        one, two = (outcome(engine, pieces) for engine in engines)
        assert two == one, f"seed {seed}: {b''.join(pieces)[:2000]!r}"
        seen[one.status] = seen.get(one.status, 0) + 1
        received += sum(event[0] == "Received" for event in one.events)
        closes += sum(isinstance(each, int) and each != 1000 for each in one.said)
    assert seen[101] > SEEDS / 2 and seen[400] > 10 and len(seen) > 3
    assert received > SEEDS / 2 and closes > SEEDS / 4
