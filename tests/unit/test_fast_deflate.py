"""The compiled deflate beside the plain one: same messages in, same payloads out, same refusals."""

from __future__ import annotations

import json
import os
import random
import zlib
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

from _fastpath import build
from gateway.dialects import native
from uproar import chatgen, deflate, ids
from uproar.events import MASK_ALL, Comment, Event, User

fast = pytest.importorskip("_fastpath.deflate", reason="the fast path is not built")

BOTH = pytest.mark.parametrize("module", [deflate, fast], ids=["reference", "fast"])
WINDOWS = pytest.mark.parametrize(
    "module", [module for module in (deflate, fast) if hasattr(module, "Window")]
)
LEVELS = pytest.mark.parametrize("level", [1, 6, 9])
SIZES = (0, 1, 2, 200, 4_095, 32_768, 65_535, 65_536, 300_000)
TAIL = b"\x00\x00\xff\xff"


class Reader:
    """A client's inflater, which keeps what came before."""

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(-15)

    def read(self, message: bytes) -> bytes:
        payload = self._inflater.decompress(message + TAIL)
        assert not self._inflater.eof and not self._inflater.unconsumed_tail
        return payload


def payloads(size: int) -> list[bytes]:
    """Nothing but zeros, noise, chat, and chat with noise in it."""
    chance = random.Random(size)
    chat = (b"first! LOL, LOL, what a goal :) " * (size // 32 + 1))[:size]
    mixed = bytearray(chat)
    for _ in range(size // 5):
        mixed[chance.randrange(size)] = chance.randrange(256)
    return [bytes(size), chance.randbytes(size), chat, bytes(mixed)]


def ticks(codec: str, count: int, number: int = 40) -> list[bytes]:
    """Ticks of real chat where there is some, else of generated."""
    folder = os.environ.get("UPROAR_CHAT_DATA")
    if folder:
        with (Path(folder) / "chat_vod.jsonl").open(encoding="utf-8") as file:
            lines = [json.loads(line) for line in islice(file, count * number)]
    else:
        lines = list(chatgen.generate(seed=1, count=count * number, kind="talk"))
    node = ids.new_node()
    objects = []
    for place, line in enumerate(lines):
        ts = 1_763_836_800_000 + line["t_ms"]
        user = User(line["user"], line["user"])
        comment = Comment(ids.build(ts, place % 5, node), user, line["text"], ts)
        objects.append(
            native.comment_object(Event(place, "COMMENT", ts, user.id, MASK_ALL, 0, comment))
        )
    return [
        native.encode(codec, objects[at : at + count])[0] for at in range(0, len(objects), count)
    ]


@BOTH
@LEVELS
@pytest.mark.parametrize("size", SIZES)
def test_a_message_by_itself_survives_the_way(module: ModuleType, level: int, size: int) -> None:
    for payload in payloads(size):
        small = module.compress(payload, level)
        assert not small.endswith(TAIL)
        assert len(small) <= size + (size >> 3) + 256
        # The one reads what the other wrote, and each stands alone.
        assert deflate.inflate(small, size) == payload
        assert fast.inflate(small, size) == payload


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("count", [1, 5, 60])
@LEVELS
@WINDOWS
def test_who_hops_on_at_a_keyframe_reads_on(
    module: ModuleType, codec: str, count: int, level: int
) -> None:
    window = module.Window()
    readers: list[Reader] = []
    plain = packed = 0
    for number, tick in enumerate(ticks(codec, count)):
        keyframe = number % 7 == 0
        message = window.message(tick, level, keyframe=keyframe)
        if keyframe:
            readers.append(Reader())
        for reader in readers:
            assert reader.read(message) == tick
        plain += len(tick)
        packed += len(message)
    assert len(readers) == 6
    assert packed < 0.75 * plain


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@LEVELS
def test_who_got_the_last_32_kib_by_themselves_needs_no_keyframe(codec: str, level: int) -> None:
    """Every inflater keeps 32 KiB of what it read, whether or not that referred to anything."""
    window = fast.Window()
    readers: list[tuple[Reader, int]] = []
    hopped = 0
    for number, tick in enumerate(ticks(codec, 5, 300)):
        shared, single = window.message(tick, level), fast.compress(tick, level)
        if number % 10 == 0:
            readers.append((Reader(), 0))
        for place, (reader, got) in enumerate(readers):
            assert reader.read(shared if got >= 32_768 else single) == tick
            readers[place] = (reader, got + len(tick))
            hopped += got >= 32_768 > got - len(tick)
    assert hopped > 10


@WINDOWS
@LEVELS
def test_a_window_remembers_and_a_keyframe_forgets(module: ModuleType, level: int) -> None:
    tick = random.Random(2).randbytes(400)
    window = module.Window()
    first = window.message(tick, level)
    again = window.message(tick, level)
    anew = window.message(tick, level, keyframe=True)
    assert len(first) > 400 and len(again) < 20 and len(anew) > 400
    assert Reader().read(anew) == tick
    with pytest.raises(zlib.error):
        Reader().read(again)


@pytest.mark.parametrize("seed", range(6))
def test_levels_keyframes_and_sizes_in_any_order(seed: int) -> None:
    chance = random.Random(seed)
    words = [chance.randbytes(chance.randrange(1, 60)) for _ in range(50)]
    window = fast.Window()
    readers = [Reader()]
    for _ in range(400):
        payload = b"".join(chance.choices(words, k=chance.choice((0, 1, 3, 20, 400, 2_000))))
        keyframe = chance.random() < 0.1
        message = window.message(payload, chance.choice((0, 1, 1, 6, 6, 9)), keyframe=keyframe)
        assert message and not message.endswith(TAIL)
        if keyframe:
            readers.append(Reader())
        for reader in readers:
            assert reader.read(message) == payload


def test_an_empty_message_disturbs_nothing() -> None:
    window = fast.Window()
    tick = random.Random(3).randbytes(400)
    messages = [window.message(part, 6) for part in (b"", tick, b"", b"", tick)]
    assert messages[0] == messages[2] == messages[3] == b"\x00"
    assert len(messages[4]) < 20
    reader = Reader()
    assert [reader.read(message) for message in messages] == [b"", tick, b"", b"", tick]
    # Behind a keyframe of nothing there is nothing to refer to.
    messages = [window.message(b"", 6, keyframe=True), window.message(tick, 6)]
    reader = Reader()
    assert [reader.read(message) for message in messages] == [b"", tick]


def test_windows_do_not_know_of_each_other() -> None:
    chance = random.Random(4)
    pairs = [(fast.Window(), Reader(), level) for level in (1, 6, 1, 6)]
    for _ in range(100):
        for window, reader, level in pairs:
            payload = chance.randbytes(90) * chance.randrange(1, 9)
            fast.compress(payload, level)
            assert reader.read(window.message(payload, level)) == payload


def outcome(module: ModuleType, data: bytes, limit: int) -> bytes | type[Exception]:
    try:
        payload: bytes = module.inflate(data, limit)
    except deflate.DeflateError as error:
        return type(error)
    return payload


def test_rfc_7692_examples() -> None:
    for shown in ("f248cdc9c90700", "000500faff48656c6c6f00", "f348cdc9c9070000"):
        assert fast.inflate(bytes.fromhex(shown), 5) == b"Hello"
    assert fast.compress(b"Hello", 6) == deflate.compress(b"Hello", 6)


def test_both_refuse_the_same() -> None:
    """Whole, cut off, gone on behind, changed in one place; each at limits around its size."""
    chance = random.Random(5)
    final = zlib.compressobj(6, zlib.DEFLATED, -15)
    closed = final.compress(b"closed by its sender, " * 9) + final.flush()
    wholes = [
        deflate.compress(payload, 6) for size in (0, 1, 300, 3_000) for payload in payloads(size)
    ]
    wholes += [closed, closed + b"\x00", closed + b"\x01", closed + b"\x00" + TAIL, closed + TAIL]
    seen: dict[object, int] = {}
    for whole in wholes:
        try:
            size = len(zlib.decompressobj(-15).decompress(whole + TAIL))
        except zlib.error:
            size = 100
        cases = [whole, whole + b"\x00", whole + whole, b"", chance.randbytes(30)]
        cases += [whole[: chance.randrange(len(whole) + 1)] for _ in range(20)]
        for _ in range(60):
            changed = bytearray(whole)
            changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
            cases.append(bytes(changed))
        for data in cases:
            for limit in {0, 1, max(size - 1, 0), size, size + 1, 100_000}:
                expected = outcome(deflate, data, limit)
                assert outcome(fast, data, limit) == expected, (data.hex(), limit)
                kind = expected if isinstance(expected, type) else bytes
                seen[kind] = seen.get(kind, 0) + 1
    assert min(seen[bytes], seen[deflate.DeflateError], seen[deflate.TooBig]) > 500


def test_a_bomb_is_cut_at_the_cap() -> None:
    bomb = fast.compress(bytes(50_000_000), 9)
    assert len(bomb) < 60_000
    for limit in (0, 1, 65_536, 49_999_999):
        with pytest.raises(deflate.TooBig, match=f"more than {limit} bytes"):
            fast.inflate(bomb, limit)
    assert len(fast.inflate(bomb, 50_000_000)) == 50_000_000


def test_the_build_names_its_libraries() -> None:
    assert f"zlib {zlib.ZLIB_RUNTIME_VERSION}" in fast.LIBRARIES
    assert fast.COMPILER


def test_the_build_is_described_in_a_line() -> None:
    assert (
        build.describe()
        == f"{fast.COMPILER}, {fast.SWITCHES.lower() or 'portable'}, {fast.LIBRARIES}"
    )
