"""Framing: every way to cut the bytes gives the same messages, every violation its code."""

from __future__ import annotations

import random
import struct
from typing import Literal

import pytest
from websockets.frames import Frame
from websockets.frames import Opcode as TheirOpcode
from websockets.protocol import CLIENT, SERVER, Protocol, State

from uproar.frames import (
    Binary,
    Close,
    FrameParser,
    Message,
    Opcode,
    Ping,
    Pong,
    ProtocolError,
    Text,
    apply_mask,
    encode,
    encode_close,
)

MASK = b"\x11\x22\x33\x44"


def parser(
    role: Literal["server", "client"] = "server", max_message: int = 65536, **more: int
) -> FrameParser:
    return FrameParser(role=role, max_message=max_message, **more)


def failure(data: bytes, role: Literal["server", "client"] = "server", **more: int) -> int:
    """Feed bytes that must be refused without any message; return the code."""
    one = parser(role, **more)
    assert one.feed(data) == []
    assert one.error is not None, "the bytes were taken"
    with pytest.raises(ProtocolError):
        one.feed(b"")
    return one.error.code


@pytest.mark.parametrize("size", [0, 1, 7, 125, 126, 127, 65535, 65536, 200_000])
@pytest.mark.parametrize("masked", [True, False])
def test_any_length_survives_the_way(size: int, masked: bool) -> None:
    payload = random.Random(size).randbytes(size)
    frame = encode(Opcode.BINARY, payload, mask=MASK if masked else None)
    one = parser("server" if masked else "client", max_message=200_000)
    assert one.feed(frame) == [Binary(payload)]
    assert one.error is None


def test_mask_is_what_rfc_6455_shows() -> None:
    # Section 5.7: a single-frame masked text message "Hello", and its unmasked form.
    masked = bytes.fromhex("818537fa213d7f9f4d5158")
    assert encode(Opcode.TEXT, b"Hello", mask=bytes.fromhex("37fa213d")) == masked
    assert parser().feed(masked) == [Text("Hello")]
    assert encode(Opcode.TEXT, b"Hello") == bytes.fromhex("810548656c6c6f")
    assert apply_mask(b"", MASK) == b""


def test_split_at_every_byte() -> None:
    emoji = "héllo 🎉".encode()
    data = b"".join(
        [
            encode(Opcode.TEXT, emoji, mask=MASK),
            encode(Opcode.TEXT, emoji[:9], fin=False, mask=MASK),  # cuts the emoji
            encode(Opcode.PING, b"between", mask=MASK),
            encode(Opcode.CONTINUATION, b"", fin=False, mask=MASK),
            encode(Opcode.CONTINUATION, emoji[9:], mask=MASK),
            encode(Opcode.BINARY, b"\xff" * 300, mask=MASK),
            encode(Opcode.PONG, b"", mask=MASK),
            encode_close(4001, "the token has expired", mask=MASK),
        ]
    )
    expected: list[Message] = [
        Text("héllo 🎉"),
        Ping(b"between"),
        Text("héllo 🎉"),
        Binary(b"\xff" * 300),
        Pong(b""),
        Close(4001, "the token has expired"),
    ]
    assert parser().feed(data) == expected
    for cut in range(1, len(data)):
        one = parser()
        assert one.feed(data[:cut]) + one.feed(data[cut:]) == expected
    one = parser()
    assert [message for byte in data for message in one.feed(bytes([byte]))] == expected


VIOLATIONS = [
    ("unmasked", encode(Opcode.TEXT, b"x"), 1002),
    ("rsv1", b"\xc1\x80" + MASK, 1002),
    ("rsv2", b"\xa1\x80" + MASK, 1002),
    ("rsv3", b"\x91\x80" + MASK, 1002),
    ("unknown data opcode", b"\x83\x80" + MASK, 1002),
    ("unknown control opcode", b"\x8b\x80" + MASK, 1002),
    ("fragmented ping", b"\x09\x80" + MASK, 1002),
    ("long ping", b"\x89\xfe\x00\x7e" + MASK, 1002),
    ("continuation of nothing", b"\x80\x80" + MASK, 1002),
    ("text within a text", encode(1, b"a", fin=False, mask=MASK) * 2, 1002),
    ("length with the top bit", b"\x82\xff" + struct.pack("!Q", 1 << 63), 1002),
    ("close of one byte", encode(8, b"\x03", mask=MASK), 1002),
    ("close 999", encode(8, struct.pack("!H", 999), mask=MASK), 1002),
    ("close 1004", encode(8, struct.pack("!H", 1004), mask=MASK), 1002),
    ("close 1005", encode(8, struct.pack("!H", 1005), mask=MASK), 1002),
    ("close 1006", encode(8, struct.pack("!H", 1006), mask=MASK), 1002),
    ("close 1015", encode(8, struct.pack("!H", 1015), mask=MASK), 1002),
    ("close 2999", encode(8, struct.pack("!H", 2999), mask=MASK), 1002),
    ("close 5000", encode(8, struct.pack("!H", 5000), mask=MASK), 1002),
    ("close reason", encode(8, b"\x03\xe8\xff", mask=MASK), 1007),
    ("bad UTF-8", encode(1, b"ab\xff", mask=MASK), 1007),
    ("lone surrogate", encode(1, b"\xed\xa0\x80", mask=MASK), 1007),
    ("cut emoji", encode(1, "🎉".encode()[:3], mask=MASK), 1007),
    ("early bad UTF-8", encode(1, b"\xc0", fin=False, mask=MASK), 1007),
    ("late bad UTF-8", encode(1, b"\xf0", fin=False, mask=MASK) + b"\x80\x80" + MASK, 1007),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "code"), VIOLATIONS)
def test_violation_has_its_code(name: str, data: bytes, code: int) -> None:
    assert failure(data) == code, name


def test_masked_frame_to_a_client_is_refused() -> None:
    assert failure(encode(Opcode.TEXT, b"x", mask=MASK), "client") == 1002


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1013, 1014, 3000, 4999])
def test_close_codes_that_may_travel(code: int) -> None:
    assert parser("client").feed(encode_close(code, "why")) == [Close(code, "why")]


def test_close_without_a_code() -> None:
    assert parser("client").feed(encode_close()) == [Close(1005, "")]


@pytest.mark.parametrize("code", [0, 999, 1004, 1006, 1015, 2999, 5000])
def test_close_code_that_must_not_travel_is_not_sent(code: int) -> None:
    with pytest.raises(ValueError, match=str(code)):
        encode_close(code)


def test_close_reason_is_cut_between_characters() -> None:
    frame = encode_close(1000, "é" * 100)
    assert parser("client").feed(frame) == [Close(1000, "é" * 61)]


def test_too_big_is_refused_by_its_header_alone() -> None:
    assert failure(b"\x82\xff" + struct.pack("!Q", 10_000_000)) == 1009
    assert failure(b"\x82\xfe\x03\xe9", max_message=1000) == 1009
    at_the_bound = encode(Opcode.BINARY, bytes(1000), mask=MASK)
    assert parser(max_message=1000).feed(at_the_bound) == [Binary(bytes(1000))]


@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
def test_fragments_together_are_bounded(opcode: Opcode) -> None:
    one = parser(max_message=1000)
    assert one.feed(encode(opcode, bytes(600), fin=False, mask=MASK)) == []
    assert one.feed(b"\x80\xfe\x01\x91") == []  # the header of 401 more
    assert one.error is not None
    assert one.error.code == 1009


def test_fragments_without_end_are_refused() -> None:
    one = parser(max_fragments=10)
    assert one.feed(encode(Opcode.TEXT, b"", fin=False, mask=MASK)) == []
    one.feed(encode(Opcode.CONTINUATION, b"", fin=False, mask=MASK) * 9)
    assert one.error is None
    one.feed(encode(Opcode.CONTINUATION, b"", fin=False, mask=MASK))
    assert one.error is not None
    assert one.error.code == 1009


def test_bounds_begin_anew_with_each_message() -> None:
    one = parser(max_message=10, max_fragments=2)
    pieces = encode(1, b"12345", fin=False, mask=MASK) + encode(0, b"67890", mask=MASK)
    assert one.feed(pieces * 5) == [Text("1234567890")] * 5
    assert one.error is None


def test_messages_before_an_error_are_not_lost() -> None:
    one = parser()
    good = encode(Opcode.TEXT, b"good", mask=MASK) + encode(Opcode.PING, b"p", mask=MASK)
    assert one.feed(good + encode(Opcode.TEXT, b"unmasked")) == [Text("good"), Ping(b"p")]
    assert one.error is not None
    with pytest.raises(ProtocolError, match="1002: a client's frame must be masked"):
        one.feed(encode(Opcode.TEXT, b"more", mask=MASK))


def test_nothing_after_a_close_is_looked_at() -> None:
    one = parser()
    assert one.feed(encode_close(1000, mask=MASK) + b"\xff" * 100) == [Close(1000, "")]
    assert one.feed(b"\xff" * 100) == []
    assert one.error is None


def test_memory_is_bounded_by_one_message_and_one_feed() -> None:
    one = parser(max_message=1000)
    one.feed(encode(Opcode.BINARY, bytes(900), fin=False, mask=MASK))
    for _ in range(3000):
        one.feed(encode(Opcode.CONTINUATION, b"", fin=False, mask=MASK))
    assert len(one._buffer) + len(one._parts) <= 1000


def test_random_traffic_equals_that_of_another_implementation() -> None:
    """Messages cut into random fragments and feeds, framed by `websockets`, parse the same."""
    for seed in range(200):
        chance = random.Random(seed)
        role: Literal["server", "client"] = chance.choice(["server", "client"])
        data, expected = b"", list[Message]()
        for _ in range(chance.randrange(1, 8)):
            size = chance.choice([0, 1, 5, 125, 126, 500, 70_000])
            if chance.random() < 0.5:
                text = "".join(chance.choices("aé漢🎉\U000e0000", k=size // 3))
                payload, opcode = text.encode(), TheirOpcode.TEXT
                message: Message = Text(text)
            else:
                payload, opcode = chance.randbytes(size), TheirOpcode.BINARY
                message = Binary(payload)
            count = chance.randrange(1, 5)
            cuts = sorted(chance.randrange(len(payload) + 1) for _ in range(count - 1))
            for index, (start, stop) in enumerate(
                zip([0, *cuts], [*cuts, len(payload)], strict=True)
            ):
                if chance.random() < 0.3:
                    probe = chance.randbytes(chance.randrange(126))
                    data += Frame(TheirOpcode.PING, probe).serialize(mask=role == "server")
                    expected.append(Ping(probe))
                frame = Frame(
                    opcode if index == 0 else TheirOpcode.CONT,
                    payload[start:stop],
                    fin=index == count - 1,
                )
                data += frame.serialize(mask=role == "server")
            expected.append(message)
        one = parser(role, max_message=1 << 20)
        got = list[Message]()
        position = 0
        while position < len(data):
            step = chance.choice([1, 2, 3, 10, 1000, 65536])
            got += one.feed(data[position : position + step])
            position += step
        assert one.error is None, f"seed {seed}"
        assert got == expected, f"seed {seed}"


def test_what_we_frame_another_implementation_reads() -> None:
    for seed in range(100):
        chance = random.Random(seed)
        masked = chance.random() < 0.5
        peer = Protocol(SERVER if masked else CLIENT, state=State.OPEN, max_size=None)
        payloads = [chance.randbytes(chance.choice([0, 125, 126, 65536])) for _ in range(4)]
        for payload in payloads:
            mask = chance.randbytes(4) if masked else None
            peer.receive_data(encode(Opcode.BINARY, payload, mask=mask))
        assert [event.data for event in peer.events_received()] == payloads


def test_noise_costs_only_an_error() -> None:
    """Random bytes end in messages or in a ProtocolError with a documented code, in one verdict
    with `websockets` about the first frame's header."""
    for seed in range(3000):
        chance = random.Random(seed)
        data = chance.randbytes(chance.randrange(2, 40))
        one = parser(max_message=1000)
        one.feed(data)
        peer = Protocol(SERVER, state=State.OPEN, max_size=1000)
        peer.receive_data(data)
        if one.error is None:
            assert peer.parser_exc is None, f"seed {seed}: {data.hex()}"
        else:
            assert one.error.code in (1002, 1007, 1009)
