"""Decoding and encoding as a client does it, against tests/vectors/protocol.json."""

from __future__ import annotations

import json
import random
import re
import runpy
from pathlib import Path
from typing import Any

import msgpack
import pytest

from uproar import wire
from uproar.codes import CLOSE_CODES
from uproar.wire import Retry, WireError

ROOT = Path(__file__).parents[2]
VECTORS = json.loads((ROOT / "tests/vectors/protocol.json").read_text("utf-8"))
NAMES = [vector["name"] for vector in VECTORS]


@pytest.fixture(scope="module")
def maker() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "tests/vectors/make.py"))


def test_file_is_what_its_maker_makes(maker: dict[str, Any]) -> None:
    assert (ROOT / "tests/vectors/protocol.json").read_text("utf-8") == maker["document"](), (
        "run `python tests/vectors/make.py`"
    )


def test_every_row_of_the_msgpack_table_has_a_vector() -> None:
    table = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", protocol_text(), re.MULTILINE)
    assert len(table) >= 11
    seen = {
        (event[0], shape["type"])
        for vector in VECTORS
        for event, shape in zip(
            msgpack.unpackb(bytes.fromhex(vector["msgpack"]))[3], vector["events"], strict=True
        )
    }
    assert seen == {(int(code), name) for code, name in table}


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_msgpack_vector(vector: dict[str, Any]) -> None:
    assert wire.decode_msgpack(bytes.fromhex(vector["msgpack"])) == vector["events"]


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_json_vector(vector: dict[str, Any]) -> None:
    text = json.dumps(vector["events"])
    assert wire.decode_json(text) == vector["events"]
    assert wire.decode_json(text.encode()) == vector["events"]


def test_users_of_two_comments_are_not_one_object() -> None:
    vector = VECTORS[NAMES.index("comments of one author")]
    one, two, _ = wire.decode_msgpack(bytes.fromhex(vector["msgpack"]))
    one["user"]["name"] = "changed"
    assert two["user"]["name"] == "Ada"


def test_unknown_types_and_fields_cost_nothing() -> None:
    assert wire.decode_json('[{"type":"NEW","x":1}]') == [{"type": "NEW", "x": 1}]
    newer = msgpack.packb([0, 0, None, [[99, 1, 2], [4, 7, "a later field"]]])
    assert wire.decode_msgpack(newer) == [{"type": "CLEARED", "offset": 7}]


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[1]", b'[{"x":1}]', b'[{"type":1}]', b"\xff", b"[" * 100_000],
)
def test_what_is_not_json_events_is_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="not a"):
        wire.decode_json(data)


@pytest.mark.parametrize(
    "message",
    [
        [],
        [0, 0, None],
        [0, 0, None, [1]],
        [0, 0, None, [[]]],
        ["x", 0, None, []],
        [0, 0, None, [[1, 0, ["u", "n"], "no node"]]],
        [0, 0, bytes(7), [[1, 0, ["u", "n"], "short node", 5]]],
        [0, 0, bytes(8), [[1, 0, 0, "no such user"]]],
        [0, 0, bytes(8), [[1, 0, ["u", "n"], "one"], [1, 0, -1, "no such user"]]],
        [0, 0, bytes(8), [[1, 0, ["u", "n", 77], "no such role"]]],
        [0, 0, bytes(8), [[1, 0, ["u", "n", 0, 1 << 24], "no such color"]]],
        [0, 0, bytes(8), [[1, 0, ["u", "n"], "short id", bytes(15)]]],
        [0, 0, bytes(8), [[1, 0, ["u", "n"], "empty id", b""]]],
        [0, 0, bytes(8), [[1, None, ["u", "n"], "no time"]]],
        [0, 0, bytes(8), [[1, 0, ["u", "n"], "no offset", 0, "x"]]],
        [0, 0, bytes(8), [[1, 0]]],
        [0, 0, None, [[2, 1, "text"]]],
        [0, 0, None, [[6, "n", bytes(16), 0, 9]]],
        [0, 0, None, [[0, 5]]],
    ],
)  # fmt: skip
def test_what_is_not_msgpack_events_is_refused(message: list[Any]) -> None:
    with pytest.raises(WireError):
        wire.decode_msgpack(msgpack.packb(message))


def test_damaged_messages_raise_nothing_else() -> None:
    for seed in range(4000):
        chance = random.Random(seed)
        data = bytearray(bytes.fromhex(chance.choice(VECTORS)["msgpack"]))
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            wire.decode_msgpack(bytes(data))
        except WireError:
            pass


def test_commands_are_the_same_maps_in_both_codecs() -> None:
    commands = [wire.comment("hé 🎉", "n1", user={"id": "u", "name": "U"}, ts=5), wire.PING]
    assert json.loads(wire.encode_json(commands)) == commands
    assert msgpack.unpackb(wire.encode_msgpack(commands)) == commands
    assert json.loads(wire.encode_json(wire.PING)) == {"type": "PING"}


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_command_that_no_codec_can_carry(codec: str) -> None:
    with pytest.raises(WireError, match="can't be encoded"):
        wire.CODECS[codec].encode(wire.comment("lone \ud800 surrogate", "n"))


def protocol_text() -> str:
    return (ROOT / "docs/protocol.md").read_text("utf-8")


def test_close_codes_are_those_of_the_docs() -> None:
    text = protocol_text().split("## Close codes")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d{4}) \| (\w+) \| .+ \| (.+) \|$", text, re.MULTILINE)
    assert {int(code): (name, Retry(retry)) for code, name, retry in rows} == {
        code: (row.name, wire.retry_of(code)) for code, row in CLOSE_CODES.items()
    }
    assert wire.retry_of(4999) is Retry.YES
