"""How many bytes does a comment take on its way to a viewer, plain and compressed, and what CPU?

No system runs: the frames of ticks with 1, 5 and 60 comments are made as a gateway makes them, for
an audience without compression, with each message by itself, and over the shared window. The
comments are those of `chat_vod.jsonl` in the folder UPROAR_CHAT_DATA, or generated ones like them,
with every field that a COMMENT has: authors of the recording have no color, so each is given one.

A keyframe forgets the window, so what it costs depends on how many ticks pass between two. The bars
are for a tick of 10 ms and a keyframe every 5 s, 500 ticks; a room with 10 ticks a second gets one
every 50, and at the pace of the recording, a comment a second, they would come every fifth tick.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.report import Figure, Report
from gateway.dialects import native
from uproar import chatgen, deflate, frames, ids
from uproar.events import MASK_ALL, ROLES, Comment, Event, User

QUESTION: Final = "how many bytes does a comment take, plain and compressed, and what CPU a tick?"
FILE: Final = "chat_vod.jsonl"
COMMENTS: Final = 3000
BEGIN_MS: Final = 1_763_836_800_000
PER_TICK: Final = (1, 5, 60)
BARS: Final = {"msgpack": (32, 24, 20), "json": (54, 47, 41)}
KEYFRAME_TICKS: Final = 500  # 5 s of ticks of 10 ms
SLOW_ROOMS: Final = (50, 5)  # ticks in the 5 s where a tick comes every 100 ms, every second
SHOWN_OF: Final = 5  # where 60 comments come each 10 ms: 6,000 a second, above sampling's 5,000
ROUNDS: Final = 3  # the fastest counts
LEVELS: Final = {"few": deflate.LEVEL_FEW, "many": deflate.LEVEL_MANY}


def measure(command: str, *, seconds: float = 0.0) -> Report:
    """Run once; `seconds` has no meaning here. Raises RuntimeError where nothing is compiled."""
    try:
        from _fastpath.deflate import LIBRARIES
    except ImportError as error:
        raise RuntimeError(f"the fast path is not built: `make setup` ({error})") from None
    began = time.perf_counter()
    source, comments = _comments(colored=True)
    figures: dict[str, Figure] = _waterfall(comments)
    figures |= _bars(comments)
    recorded = _comments(colored=False)[1]
    for codec in BARS:
        for count in PER_TICK:
            figures |= _sizes(codec, count, comments, recorded)
    settings: dict[str, Figure] = {
        "comments": len(comments), "from": source, "each not below bytes": deflate.MIN_BYTES,
        "many from viewers": deflate.MANY, "keyframe every ticks": KEYFRAME_TICKS,
        "libraries": LIBRARIES,
    }  # fmt: skip
    took = time.perf_counter() - began
    return Report(
        "bytes", QUESTION, command, settings, figures, {}, {}, round(took, 2),
        "one core: nothing is sent",
    )  # fmt: skip


def _waterfall(comments: list[native.Object]) -> dict[str, Figure]:
    """Return the bytes a comment of a busy room, each step on top of the one before."""
    count = PER_TICK[-1]
    ticks = _ticks("msgpack", count, comments)
    sampled = _ticks("msgpack", count // SHOWN_OF, comments[::SHOWN_OF])
    steps = {
        "JSON, a frame each": _per(_plain(map(msgspec.json.encode, comments)), comments),
        "msgpack, a frame each": _per(_plain(map(msgspec.msgpack.encode, comments)), comments),
        f"differences, {count} a tick": _per(_plain(ticks), comments),
        "deflate, no context": _per(_each(ticks, deflate.LEVEL_MANY), comments),
        "shared window": _per(_window(ticks, deflate.LEVEL_MANY), comments),
        f"sampling, 1 of {SHOWN_OF} shown": _per(_window(sampled, deflate.LEVEL_MANY), comments),
    }
    first, *_, last = steps.values()
    named: dict[str, Figure] = {f"waterfall: {name} bytes/comment": n for name, n in steps.items()}
    return {**named, "waterfall: first to last times": first / last}


def _bars(comments: list[native.Object]) -> dict[str, Figure]:
    """Return what issue and docs promise, and whether it holds."""
    lines: dict[str, Figure] = {}
    for codec, bars in BARS.items():
        for count, bar in zip(PER_TICK, bars, strict=True):
            found = _per(_window(_ticks(codec, count, comments), deflate.LEVEL_MANY), comments)
            word = "reached" if found <= bar else "NOT reached"
            lines[f"bar: {codec}, {count} a tick, ≤ {bar} bytes/comment"] = f"{found:.1f} {word}"
    return lines


def _sizes(
    codec: str, count: int, comments: list[native.Object], recorded: list[native.Object]
) -> dict[str, Figure]:
    """Return the figures of one codec and tick: bytes, and CPU."""
    ticks = _ticks(codec, count, comments)
    plain = _ticks(codec, count, recorded)
    found: dict[str, Figure] = {
        "none bytes/comment": _per(_plain(ticks), comments),
        "none us/tick": _us(partial(_ticks, codec, count, comments)) / len(ticks),
    }
    for name, level in LEVELS.items():
        found[f"each, {name} bytes/comment"] = _per(_each(ticks, level), comments)
        found[f"each, {name} us/tick more"] = _us(partial(_each, ticks, level)) / len(ticks)
        found[f"window, {name} bytes/comment"] = _per(_window(ticks, level), comments)
        found[f"window, {name} us/tick more"] = _us(partial(_window, ticks, level)) / len(ticks)
    for every in SLOW_ROOMS:
        slow = _window(ticks, deflate.LEVEL_MANY, every)
        found[f"window, a keyframe every {every} bytes/comment"] = _per(slow, comments)
    never = _window(ticks, deflate.LEVEL_MANY, len(ticks))
    found["window, one keyframe bytes/comment"] = _per(never, comments)
    bare = _window(plain, deflate.LEVEL_MANY)
    found["window, without colors bytes/comment"] = _per(bare, comments)
    return {f"{codec}, {count} a tick: {name}": figure for name, figure in found.items()}


def _comments(*, colored: bool) -> tuple[str, list[native.Object]]:
    """Return where they come from, and COMMENT objects as a gateway holds them."""
    folder = os.environ.get("UPROAR_CHAT_DATA")
    if folder:
        with (Path(folder) / FILE).open(encoding="utf-8") as file:
            lines: list[dict[str, Any]] = [json.loads(line) for line in islice(file, COMMENTS)]
    else:
        lines = list(chatgen.generate(seed=1, count=COMMENTS, kind="talk"))
    maker = ids.IdMaker(bytes.fromhex("9f3c8b1d52e7a604"))  # the same bytes each time
    objects = []
    for number, line in enumerate(lines):
        ts, comment_id = maker.make(BEGIN_MS + line["t_ms"])
        role = line["role"] if line["role"] in ROLES else "viewer"
        color = f"#{zlib.crc32(line['user'].encode()) & 0xFFFFFF:06x}" if colored else None
        user = User(line["user"], line["user"], role, color)
        comment = Comment(comment_id, user, line["text"], ts)
        event = Event(BEGIN_MS // 1000 + number, "COMMENT", ts, user.id, MASK_ALL, 0, comment)
        objects.append(native.comment_object(event))
    return FILE if folder else "generated chat", objects


def _ticks(codec: str, count: int, comments: list[native.Object]) -> list[bytes]:
    """Return the payloads of all comments, the last one shorter."""
    return [
        native.encode(codec, comments[at : at + count])[0] for at in range(0, len(comments), count)
    ]


def _per(sent: Iterable[bytes], comments: Sequence[native.Object]) -> float:
    return sum(map(len, sent)) / len(comments)


def _plain(ticks: Iterable[bytes]) -> Iterator[bytes]:
    return (frames.encode(frames.Opcode.BINARY, tick) for tick in ticks)


def _each(ticks: Iterable[bytes], level: int) -> list[bytes]:
    from _fastpath.deflate import compress

    sent = []
    for tick in ticks:
        worth = len(tick) >= deflate.MIN_BYTES
        payload = compress(tick, level) if worth else tick
        sent.append(frames.encode(frames.Opcode.BINARY, payload, compressed=worth))
    return sent


def _window(ticks: Iterable[bytes], level: int, every: int = KEYFRAME_TICKS) -> list[bytes]:
    """Return the frames over a shared window, of which nothing goes uncompressed."""
    from _fastpath.deflate import Window

    window = Window()
    return [
        frames.encode(
            frames.Opcode.BINARY,
            window.message(tick, level, keyframe=number % every == 0),
            compressed=True,
        )
        for number, tick in enumerate(ticks)
    ]


def _us(work: Callable[[], object]) -> float:
    """Return the CPU microseconds."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best * 1e6
