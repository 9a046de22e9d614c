"""permessage-deflate: which offers are taken, what a message may be, what a frame may say."""

from __future__ import annotations

import json
import random
import tracemalloc
import zlib

import pytest
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame
from websockets.frames import Opcode as TheirOpcode

from tests.unit.test_client import URL, answer, welcome
from uproar import deflate
from uproar.client import ClientCore, State
from uproar.frames import Binary, FrameParser, Opcode, Text, encode

MASK = b"\x11\x22\x33\x44"
ANSWER = "permessage-deflate; client_no_context_takeover"
ALONE = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    ("header", "answer"),
    [
        ("", None),
        ("permessage-deflate", ANSWER),
        # Chromium, Firefox, websockets and ws offer it so.
        ("permessage-deflate; client_max_window_bits", ANSWER),
        ("permessage-deflate; client_no_context_takeover", ANSWER),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", ALONE),
        ("permessage-deflate; client_max_window_bits; server_no_context_takeover", ALONE),
        (
            "permessage-deflate; server_max_window_bits=15; server_no_context_takeover",
            ALONE + "; server_max_window_bits=15",
        ),
        ("permessage-deflate; server_no_context_takeover, permessage-deflate", ALONE),
        ("permessage-deflate ;\tclient_max_window_bits = 9 ", ANSWER),
        ('permessage-deflate; client_max_window_bits="1\\0"', ANSWER),
        ("permessage-deflate; server_max_window_bits=15", ANSWER + "; server_max_window_bits=15"),
        ("permessage-deflate; server_max_window_bits=14", ANSWER + "; server_max_window_bits=14"),
        ("permessage-deflate; server_max_window_bits=8", ANSWER + "; server_max_window_bits=8"),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=7", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits=015", None),
        ("permessage-deflate; server_max_window_bits=x", None),
        ("permessage-deflate; client_max_window_bits=16", None),
        ("permessage-deflate; client_max_window_bits=08", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; client_no_context_takeover=true", None),
        ("permessage-deflate; fast", None),
        ("Permessage-Deflate", None),
        ("x-webkit-deflate-frame, foo; bar=1; baz", None),
        ("foo; bar, permessage-deflate; server_max_window_bits=9, , permessage-deflate", ANSWER),
        (
            "permessage-deflate; server_max_window_bits=15, permessage-deflate",
            ANSWER + "; server_max_window_bits=15",
        ),
        ("permessage-deflate; unknown, permessage-deflate; client_max_window_bits", ANSWER),
    ],
)
def test_the_first_offer_that_can_be_met_is_taken(header: str, answer: str | None) -> None:
    found = deflate.negotiate(header)
    assert found.answer == answer
    if answer is None:
        assert found.compression == "none"
    elif answer.endswith(("bits=14", "bits=8")):
        assert found.compression == "unused", "what goes out has one window for all"
    else:
        assert found.compression == ("each" if answer.startswith(ALONE) else "window")


@pytest.mark.parametrize(
    "header",
    [
        ";", "permessage-deflate;", "permessage-deflate; =", "permessage-deflate; a=",
        "permessage-deflate a", "a; b=c d", 'a; b="c', 'a; b="c d"', 'a; b=""', "a; b; b",
        "permessage-deflate; client_max_window_bits; client_max_window_bits=10",
        "a/b", "é", "a; b=c=d", "a\x00", "@",
    ],
)  # fmt: skip
def test_a_malformed_header_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        deflate.negotiate(header)


def test_noise_is_parsed_or_refused() -> None:
    chance = random.Random(1)
    parts = [
        "permessage-deflate",
        ";",
        ",",
        "=",
        " ",
        '"',
        "\\",
        "15",
        "a",
        "server_max_window_bits",
    ]
    taken = refused = 0
    for _ in range(20_000):
        header = "".join(chance.choice(parts) for _ in range(chance.randrange(8)))
        try:
            deflate.negotiate(header)
            taken += 1
        except ValueError:
            refused += 1
    assert taken > 500 < refused


@pytest.mark.parametrize("level", [deflate.LEVEL_FEW, deflate.LEVEL_MANY])
@pytest.mark.parametrize("size", [0, 1, 200, 65_535, 65_536, 300_000])
def test_any_payload_survives_the_way(size: int, level: int) -> None:
    chance = random.Random(size)
    for payload in (bytes(size), chance.randbytes(size), (b"chat chat! " * size)[:size]):
        small = deflate.compress(payload, level)
        assert not small.endswith(b"\x00\x00\xff\xff")
        assert deflate.inflate(small, size) == payload


def test_messages_are_what_rfc_7692_shows() -> None:
    # Section 7.2.3: one block, one with context, one stored, a final block, two blocks.
    hello = b"Hello"
    assert deflate.compress(hello) == bytes.fromhex("f248cdc9c90700")
    for shown in (
        "f248cdc9c90700",
        "000500faff48656c6c6f00",
        "f348cdc9c9070000",
        "f24805000000ffffcac9c90700",
    ):
        assert deflate.inflate(bytes.fromhex(shown), 5) == hello
    assert deflate.inflate(b"\x00", 0) == b""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes.fromhex("f348cdc9c90700"),  # a final block without the octet that must follow it
        bytes.fromhex("f348cdc9c907000000"),
        bytes.fromhex("f348cdc9c9070000") + b"more",
        bytes.fromhex("f348cdc9c9070000f248cdc9c90700"),
        deflate.compress(b"cut off, cut off, cut off")[:-4],
        deflate.compress(b"cut off, cut off, cut off")[:5],
        b"\xff" * 20,
        b"plain text",
        zlib.compress(b"with a zlib header"),
    ],
)
def test_what_is_no_whole_deflate_stream_is_refused(data: bytes) -> None:
    with pytest.raises(deflate.DeflateError) as refusal:
        deflate.inflate(data, 1000)
    assert not isinstance(refusal.value, deflate.TooBig)


def test_every_cut_of_a_message_is_found() -> None:
    whole = deflate.compress(b"a comment, and another comment, and one more " * 20)
    for size in range(len(whole)):
        with pytest.raises(deflate.DeflateError):
            deflate.inflate(whole[:size], 10_000)


def test_a_bomb_costs_no_more_than_the_limit() -> None:
    bomb = deflate.compress(bytes(50 << 20))
    assert len(bomb) < 60_000
    tracemalloc.start()
    try:
        with pytest.raises(deflate.TooBig):
            deflate.inflate(bomb, 65_536)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert len(deflate.inflate(deflate.compress(bytes(65_536)), 65_536)) == 65_536
    with pytest.raises(deflate.TooBig):
        deflate.inflate(deflate.compress(bytes(65_537)), 65_536)


# -- the window -----------------------------------------------------------------------------------


def chat(chance: random.Random) -> bytes:
    """A message like a tick, now and then one that nothing can be made of."""
    if chance.random() < 0.1:
        return chance.randbytes(chance.choice([0, 1, 300, 70_000]))
    words = ["schöner", "Stream", "🎉", "LUL", "hello", "everybody", "what", "a", "save"]
    return json.dumps(
        [
            {"type": "COMMENT", "offset": chance.randrange(10**6), "text": chance.choice(words)}
            for _ in range(chance.choice([1, 1, 5, 60, 600]))
        ]
    ).encode()


@pytest.mark.parametrize("seed", range(5))
def test_who_joins_at_a_keyframe_reads_everything_from_there_on(seed: int) -> None:
    chance = random.Random(seed)
    window, readers, theirs = deflate.Window(), [], []
    referring = 0
    for number in range(150):
        keyframe = chance.random() < 0.1
        payload, level = chat(chance), chance.choice([1, 6])
        if keyframe or number == 0:
            readers.append(deflate.Inflater())
            theirs.append(PerMessageDeflate(False, True, 15, 15))
        small = window.message(payload, level, keyframe=keyframe)
        assert not small.endswith(b"\x00\x00\xff\xff")
        for reader in readers:
            assert reader.message(small, 1 << 20) == payload
        for other in theirs:
            frame = Frame(TheirOpcode.BINARY, small, rsv1=True)
            assert other.decode(frame).data == payload
        try:
            alone = deflate.inflate(small, 1 << 20) == payload
        except deflate.DeflateError:
            alone = False
        assert alone or not (keyframe or number == 0), "a keyframe refers to nothing"
        referring += not alone
    assert referring > 50, "others do"


def test_a_window_makes_what_came_before_small() -> None:
    window = deflate.Window()
    payload = random.Random(1).randbytes(300)
    sizes = [len(window.message(payload, 6, keyframe=number == 2)) for number in range(4)]
    assert sizes[0] >= 300 > 20 > sizes[1]
    assert sizes[2] >= 300 > 20 > sizes[3]


def test_messages_of_one_sender_are_as_strictly_read_as_single_ones() -> None:
    whole = deflate.Window()
    whole.message(b"before", 6)
    small = whole.message(b"a comment, and another comment, and one more " * 20, 6)

    def inflater() -> deflate.Inflater:
        one = deflate.Inflater()
        assert one.message(deflate.compress(b"before"), 100) == b"before"
        return one

    for size in range(len(small)):
        with pytest.raises(deflate.DeflateError):
            inflater().message(small[:size], 10_000)
    with pytest.raises(deflate.TooBig):
        inflater().message(small, 899)
    assert len(inflater().message(small, 900)) == 900
    for data in (b"\xff" * 20, b"plain text", bytes.fromhex("f348cdc9c9070000") + b"more"):
        with pytest.raises(deflate.DeflateError):
            inflater().message(data, 10_000)
    # One that ends its stream is read (RFC 7692 section 7.2.3.4), and so is what comes after it.
    one = inflater()
    for _ in range(2):
        assert one.message(bytes.fromhex("f348cdc9c9070000"), 5) == b"Hello"


def test_a_bomb_for_a_context_costs_no_more_than_the_limit() -> None:
    bomb = deflate.compress(bytes(50 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(deflate.TooBig):
            deflate.Inflater().message(bomb, 65_536)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


# -- frames ---------------------------------------------------------------------------------------


def parser(**more: bool) -> FrameParser:
    return FrameParser(role="server", max_message=65_536, **{"deflate": True, **more})


def frames(payload: bytes, pieces: int, opcode: int = Opcode.TEXT) -> list[bytes]:
    """A compressed message in so many frames."""
    step = -(-len(payload) // pieces)
    parts = [payload[at : at + step] for at in range(0, len(payload), step)]
    return [
        encode(
            opcode if number == 0 else Opcode.CONTINUATION, part, mask=MASK,
            fin=number == len(parts) - 1, compressed=number == 0,
        )
        for number, part in enumerate(parts)
    ]  # fmt: skip


@pytest.mark.parametrize("pieces", [1, 2, 7, 1000])
def test_compressed_messages_come_whole_or_in_fragments(pieces: int) -> None:
    text = "schöner Stream 🎉 " * 30
    small = deflate.compress(text.encode())
    one = parser()
    found = one.feed(b"".join(frames(small, pieces)))
    found += one.feed(b"".join(frames(small, pieces, Opcode.BINARY)))
    found += one.feed(encode(Opcode.TEXT, b"plain", mask=MASK))
    assert found == [Text(text), Binary(text.encode()), Text("plain")]
    for byte in b"".join(frames(small, pieces)):
        found += one.feed(bytes((byte,)))
    assert found[3:] == [Text(text)]
    assert one.error is None


def test_control_frames_may_stand_between_fragments() -> None:
    first, second = frames(deflate.compress(b"in two parts"), 2)
    found = parser().feed(first + encode(Opcode.PING, b"?", mask=MASK) + second)
    assert found[1] == Text("in two parts")


def reserved(frame: bytes, bits: int) -> bytes:
    """The frame with other reserved bits."""
    return bytes((frame[0] & 0x8F | bits << 4,)) + frame[1:]


PLAIN = encode(Opcode.TEXT, b"x", mask=MASK)
SMALL = deflate.compress(b"text")
BEGUN, ENDED = frames(SMALL, 2)
VIOLATIONS = {
    "rsv2": (reserved(PLAIN, 2), 1002),
    "rsv3": (reserved(PLAIN, 1), 1002),
    "rsv1 and rsv2": (reserved(PLAIN, 6), 1002),
    "a compressed ping": (reserved(encode(Opcode.PING, b"x", mask=MASK), 4), 1002),
    "a compressed close": (reserved(encode(Opcode.CLOSE, b"\x03\xe8", mask=MASK), 4), 1002),
    "rsv1 on a later fragment": (BEGUN + reserved(ENDED, 4), 1002),
    "rsv1 on a later fragment only": (
        encode(Opcode.TEXT, b"te", mask=MASK, fin=False) + reserved(ENDED, 4),
        1002,
    ),
    "not deflate": (encode(Opcode.TEXT, b"plain", mask=MASK, compressed=True), 1007),
    "no payload": (encode(Opcode.TEXT, b"", mask=MASK, compressed=True), 1007),
    "cut off": (b"".join(frames(SMALL[:-2], 2)), 1007),
    "no UTF-8": (b"".join(frames(deflate.compress(b"\xff\xfe"), 1)), 1007),
    "no UTF-8, in fragments": (b"".join(frames(deflate.compress(b"\xff\xfe"), 2)), 1007),
    "a bomb": (b"".join(frames(deflate.compress(bytes(65_537)), 1)), 1009),
    "a bomb in fragments": (b"".join(frames(deflate.compress(bytes(1 << 20)), 9)), 1009),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violation_has_its_code(name: str) -> None:
    data, code = VIOLATIONS[name]
    one = parser()
    assert one.feed(data) == []
    assert one.error is not None
    assert one.error.code == code


def test_nothing_compressed_is_taken_unless_it_was_agreed_on() -> None:
    one = parser(deflate=False)
    assert one.feed(b"".join(frames(SMALL, 1))) == []
    assert one.error is not None
    assert one.error.code == 1002


def test_random_traffic_equals_that_of_another_implementation() -> None:
    chance = random.Random(4)
    theirs = PerMessageDeflate(True, True, 15, 15)
    one, expected, data = parser(), [], b""
    for _ in range(200):
        text = chance.choice(["a", "hello ", "ü", "🎉"]) * chance.randrange(200)
        frame = theirs.encode(Frame(TheirOpcode.TEXT, text.encode()))
        data += encode(Opcode.TEXT, frame.data, mask=MASK, compressed=frame.rsv1)
        expected.append(Text(text))
    found = []
    while data:
        size = chance.randrange(1, 5000)
        found += one.feed(data[:size])
        data = data[size:]
    assert found == expected


def test_what_we_compress_another_implementation_reads() -> None:
    theirs = PerMessageDeflate(True, True, 15, 15)
    for payload in (b"x" * 300, "grüße".encode() * 100, random.Random(2).randbytes(500)):
        frame = Frame(TheirOpcode.BINARY, deflate.compress(payload), rsv1=True)
        assert theirs.decode(frame).data == payload


# -- the client -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "fault"),
    [
        (ANSWER, ""),
        (ALONE, ""),
        ("permessage-deflate; server_no_context_takeover; server_max_window_bits=10", ""),
        ("permessage-deflate", ""),
        (ANSWER + "; client_max_window_bits=10", "not what was offered"),
        (ANSWER + "; server_max_window_bits=20", "not what was offered"),
        (ANSWER + "; x", "not what was offered"),
        ("x", "not offered"),
        (f"{ANSWER}, {ANSWER}", "not offered"),
        ("", "not offered"),
        ("permessage-deflate;", "malformed"),
    ],
)
def test_a_client_takes_what_it_offered_and_nothing_else(chosen: str, fault: str) -> None:
    if fault:
        with pytest.raises(ValueError, match=fault):
            deflate.accepted(chosen)
    else:
        assert deflate.accepted(chosen) == ("server_no" not in chosen)


def core(chosen: str, **options: bool) -> ClientCore:
    """A client whose handshake was answered with this choice."""
    one = ClientCore(URL, **options)
    one.begin(0.0)
    request = one.outgoing()
    offer = b"Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover\r\n"
    assert (offer in request) is bool(options)
    head = answer(request).removesuffix(b"\r\n")
    one.receive(head + f"Sec-WebSocket-Extensions: {chosen}\r\n\r\n".encode(), 0.0)
    return one


@pytest.mark.parametrize("chosen", [ANSWER, ALONE])
def test_a_client_inflates_where_it_was_agreed_on(chosen: str) -> None:
    one = core(chosen, deflate=True)
    assert one.deflated
    payload = json.dumps([welcome(7)] * 3).encode()
    for compressed in (True, False):
        sent = deflate.compress(payload) if compressed else payload
        found = one.receive(encode(Opcode.TEXT, sent, compressed=compressed), 0.0)
        assert [event["offset"] for event in found] == [7, 7, 7]
    one.receive(encode(Opcode.TEXT, b"not deflate", compressed=True), 0.0)
    assert one.closed is not None
    assert one.closed.code == 1007


def test_a_client_reads_a_shared_window() -> None:
    one, window = core(ANSWER, deflate=True), deflate.Window()
    payload = json.dumps([welcome(7)] * 3).encode()
    # Two before the keyframe, each by itself, and what is uncompressed in between.
    sent = [deflate.compress(payload)] * 2
    sent += [window.message(payload, 6, keyframe=True), window.message(payload, 6)]
    for small in sent:
        for data, compressed in ((small, True), (payload, False)):
            found = one.receive(encode(Opcode.TEXT, data, compressed=compressed), 0.0)
            assert [event["offset"] for event in found] == [7, 7, 7]
    assert len(sent[-1]) < 20, "it refers to the one before"
    # Cut in fragments as well.
    small = window.message(payload, 6)
    data = encode(Opcode.TEXT, small[:3], fin=False, compressed=True)
    found = one.receive(data + encode(Opcode.CONTINUATION, small[3:]), 0.0)
    assert len(found) == 3
    # Another connection knows nothing of this one.
    two = core(ANSWER, deflate=True)
    two.receive(encode(Opcode.TEXT, window.message(payload, 6), compressed=True), 0.0)
    assert two.closed is not None
    assert two.closed.code == 1007


def test_messages_must_not_refer_to_others_where_that_was_agreed_on() -> None:
    one, window = core(ALONE, deflate=True), deflate.Window()
    payload = json.dumps([welcome(7)]).encode()
    assert one.receive(encode(Opcode.TEXT, window.message(payload, 6), compressed=True), 0.0)
    one.receive(encode(Opcode.TEXT, window.message(payload, 6), compressed=True), 0.0)
    assert one.closed is not None
    assert one.closed.code == 1007


def test_a_client_that_did_not_offer_refuses() -> None:
    assert core(ANSWER).state is State.CLOSED
    assert core("x", deflate=True).state is State.CLOSED


def test_a_client_whose_offer_was_declined_goes_on_without() -> None:
    one = ClientCore(URL, deflate=True)
    one.begin(0.0)
    one.receive(answer(one.outgoing()), 0.0)
    assert one.state is State.OPEN
    assert not one.deflated
