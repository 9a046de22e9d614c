"""Inputs for the fuzz targets to begin with: what real clients send, and scripts that make sense.

python -m tests.fuzz.seeds DIRECTORY    one directory a target, one file an input
"""

from __future__ import annotations

import json
import random
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack

from tests.unit.test_engines_agree import frame, handshake
from uproar import deflate

SCRIPTS = 60


def frames() -> Iterator[bytes]:
    """Settings, where to cut, then some frames, a few of them damaged."""
    for seed in range(SCRIPTS):
        chance = random.Random(seed)
        settings = bytes((chance.choice([0x24, 0x64, 0x3D, 0x7D, 0x05, 0x45]),)) + chance.randbytes(
            4
        )
        yield settings + b"".join(frame(chance) for _ in range(chance.randrange(1, 5)))


def head() -> Iterator[bytes]:
    """Requests of browsers and of others."""
    for seed in range(SCRIPTS):
        yield handshake(random.Random(seed))
    yield b"GET /stream/room?backlog=50&rate=all HTTP/1.1\r\nHost: a\r\nOrigin: http://a\r\n\r\n"
    yield b"POST /session HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"


def commands() -> Iterator[bytes]:
    """Commands that a gateway counts or answers by itself, and some that it does not."""
    react = {"type": "REACT", "kind": "fire", "count": 3}
    for said in (
        {"type": "PING"}, react, [react] * 3 + [{"type": "PING"}],
        {"type": "REACT", "kind": "fire"}, [{"type": "PING"}] * 101,
        {"type": "COMMENT", "text": "é", "nonce": "1"}, [{"type": "PING"}] * 100, [], {},
        {"type": "REACT", "kind": "fire", "count": 1_000_000}, [{"count": 300, **react}],
    ):  # fmt: skip
        yield b"\1" + json.dumps(said).encode()
        yield b"\1" + json.dumps(said, indent=1).encode()
        yield b"\0" + msgpack.packb(said)


def deflate_() -> Iterator[bytes]:
    """Compressed messages, whole and cut off, and scripts for a window."""
    for seed in range(SCRIPTS):
        chance = random.Random(seed)
        text = " ".join(chance.choices(["LUL", "hello", "everybody", "🎉", "save"], k=30)).encode()
        small = deflate.compress(
            chance.choice([text, text * 200, chance.randbytes(300), b"", b"a"])
        )
        yield bytes((1, chance.randrange(8))) + small[: len(small) - chance.choice([0, 0, 0, 1])]
        script = b"\0\0"
        for _ in range(chance.randrange(1, 20)):
            how = chance.choice([0, 0, 7, 8, 16, 32, 64, 71, 136])
            repeat = bytes((chance.randrange(256),)) if how & 8 else b""
            part = text[: chance.randrange(len(text))]
            script += bytes((how,)) + repeat + bytes((len(part),)) + part
        yield script


class Script:
    """Steps of reactor.c by their names."""

    def __init__(self, chance: random.Random, limits: bytes) -> None:
        self.chance, self.data, self.sessions = chance, limits, 0

    def client(self, what: int, which: int, more: bytes = b"") -> None:
        self.data += bytes((what << 2, which)) + more

    def session(self, what: int, index: int, audience: int, more: bytes = b"") -> None:
        index %= max(self.sessions, 1)
        for where in range(256):
            if where % max(self.sessions, 1) % 16 == index and (where >> 3) % 6 == audience:
                self.data += bytes((what << 2 | 1, where)) + more
                return

    def broadcast(self, audience: int, how: int, skip: int = 0) -> None:
        self.data += bytes((2, audience << 3, how, skip))

    def whole(self, what: int, which: int = 0, more: bytes = b"") -> None:
        self.data += bytes((what << 2 | 3, which << 3)) + more

    def join(self, client: int, how: int, audience: int) -> None:
        """Connect, shake hands and be admitted."""
        self.client(0, client)
        self.client(1, client, bytes((how,)))
        self.sessions += 1
        self.session(2, 0, audience, bytes((self.chance.choice([0x40, 0x80, 0xD4, 0xC8]),)))
        self.whole(2)


def reactor() -> Iterator[bytes]:
    """Rooms with viewers that come, listen, lag, talk and go."""
    for seed in range(SCRIPTS):
        chance = random.Random(seed)
        script = Script(chance, bytes((chance.randrange(8), 7, 7, chance.randrange(8), 31)))
        forms = [chance.choice([7, 6, 4, 1, 7]) for _ in range(2)]
        for audience, form in enumerate(forms):
            script.whole(5, audience, bytes((form,)))
        for client in range(chance.randrange(2, 7)):
            # Deflate is agreed on (1), subprotocol none, a.v1 or a.v2.
            script.join(client, 1 + 6 * chance.randrange(4), chance.randrange(2))
        for _ in range(chance.randrange(10, 60)):
            audience, client = chance.randrange(2), chance.randrange(7)
            size = chance.randrange(12)
            steps: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
                (script.broadcast, (audience, size)),
                (script.broadcast, (audience, size)),
                (script.broadcast, (audience, size)),
                (script.broadcast, (audience, size | 0x80)),
                (script.broadcast, (audience, size | 0x40, 1 << client)),
                (script.client, (8, client)),
                (script.client, (7, client, b"\x20")),
                (script.client, (3, client, bytes((chance.randrange(8), 0x81)))),
                (script.client, (3, client, b"\x05\x88")),
                (script.client, (4, client, b"\x89\x04ping")),
                (script.client, (chance.choice([5, 6]), client)),
                (script.session, (3, client, audience, bytes((size,)))),
                (script.session, (chance.choice([0, 1]), client, audience)),
                (script.session, (2, client, audience, b"\x58")),
                (script.session, (4, client, audience, b"\x08")),
                (script.session, (8, client, audience, b"\x03")),
                (script.session, (10, 0, audience, b"\x05")),
                (script.whole, (0,)),
                (script.whole, (3, 0, chance.randbytes(1))),
                (script.whole, (4, 0, bytes((chance.randrange(8),)))),
                (script.join, (client, 1, audience)),
                (script.whole, (chance.choice([11, 11, 12]), 0, chance.randbytes(1))),
            ]
            step, arguments = chance.choice(steps)
            step(*arguments)
        if chance.random() < 0.3:
            script.client(0, 7)
            script.client(2, 7, b"\x12GET /x HTTP/1.0\r\n\r\n")
            script.whole(0)
            script.whole(8, 0, bytes((chance.choice([0x06, 0x0A, 0x08]),)))
            script.sessions += 1
            script.session(5, 0, 0, b"\x02")
        if chance.random() < 0.2:
            script.whole(10, 0, bytes((chance.randrange(16),)))
            script.join(6, 1, 0)
        yield script.data + struct.pack("B", chance.randrange(2))


TARGETS = {
    "frames": frames, "head": head, "commands": commands, "deflate": deflate_, "reactor": reactor,
}  # fmt: skip


def make(target: str, directory: Path) -> None:
    """Write a target's seeds."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(TARGETS[target]()):
        (directory / f"{number:03}").write_bytes(data)


if __name__ == "__main__":
    for name in TARGETS:
        make(name, Path(sys.argv[1]) / name)
